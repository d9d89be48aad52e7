"""Mappings found before, by content: in this process, and in a folder shared by processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwmodel.files import cache_directory
from hwmodel.files import write_whole
from hwmodel.mapper.mapping import Mapping

MAPPER_VERSION = 5
"""Part of every key: raise it when the same problem gets another answer."""


class Store:
    """A folder with one immutable JSON file for each mapping.

    A file is written under a name of its own and then renamed, so that any number of processes
    may share a folder: readers see whole files, and who comes second writes the same content.
    A folder that cannot be written or a file that cannot be read costs a search, nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Mapping | None:
        """The mapping of a key, or None."""
        try:
            data = json.loads(self._path(key).read_text(encoding="utf-8"))
            return _decoded(data)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, mapping: Mapping) -> None:
        """Keep a mapping."""
        path, content = self._path(key), json.dumps(_encoded(mapping))
        try:
            write_whole(path, lambda partial: partial.write_text(content, encoding="utf-8"))
        except OSError:
            return

    def remembered(self, content: Sequence[object], find: Callable[[], Mapping]) -> Mapping:
        """The mapping of a problem, found once.

        Args:
            content: Everything that decides the answer, as JSON has it.
            find: Finds it.
        """
        text = json.dumps([MAPPER_VERSION, *content])
        key = hashlib.sha256(text.encode()).hexdigest()
        mapping = self.get(key)
        if mapping is None:
            mapping = find()
            self.put(key, mapping)
        return mapping

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def default_folder() -> Path:
    """Folder of mappings in the cache directory."""
    return cache_directory() / "mappings"


def _encoded(mapping: Mapping) -> dict[str, object]:
    data = dataclasses.asdict(mapping)
    data["traffic_bits"] = [[*key, bits] for key, bits in mapping.traffic_bits.items()]
    return data


def _decoded(data: dict[str, Any]) -> Mapping:
    traffic = {(memory, operand): bits for memory, operand, bits in data["traffic_bits"]}
    return Mapping(**{**data, "nest": tuple(data["nest"]), "traffic_bits": traffic})
