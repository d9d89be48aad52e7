"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from hwmodel import InputError


def write_whole(path: Path, save: Callable[[Path], object], field: str) -> None:
    """Have ``save`` write a file, all of it or nothing; several writers may be at the same one.

    Args:
        path: The file; its folder is made.
        save: Writes to the path that it is given.
        field: What an error names.

    Raises:
        InputError: it cannot be written.
    """
    # Hidden, so that what a killed writer leaves is no entry.
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        if path.parent.is_dir():
            partial.unlink(missing_ok=True)
        allowed = f"it cannot be written ({error}); use a place with space and permission"
        raise InputError(field, str(path.parent), allowed) from None
