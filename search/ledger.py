"""Every true evaluation ever made in a run: an append-only Parquet data set.

::

    part-ID.parquet      rows of one call of ``append``
    part-ID-1.parquet    64 of those, merged; ``-2`` is 64 of these, and so on

A part never changes and appears all at once. ID is 32 random hexadecimal digits and 16 of the
file's SHA-256, since Parquet's own checksums leave out its headers. A merged part names in its
metadata the parts that it stands for, and readers pass over those, so it does not matter when a
merge is killed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields
from datetime import datetime
from typing import Any
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hwmodel.errors import InputError
from search.storage import Location
from search.storage import Storage
from search.storage import read_error
from search.storage import write_error

SCHEMA = pa.schema(
    [
        pa.field("config_hash", pa.string(), nullable=False),
        pa.field("config", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("weights_hash", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("accuracy", pa.float64()),
        pa.field("block_accuracies", pa.list_(pa.float64())),
        pa.field("images", pa.int64()),
        pa.field("robust_accuracy", pa.float64()),
        pa.field("energy_pj", pa.float64()),
        pa.field("latency_cycles", pa.float64()),
        pa.field("bops", pa.float64()),
        pa.field("model_bytes", pa.float64()),
        pa.field("dram_bytes", pa.float64()),
        pa.field("accelerator", pa.string(), nullable=False),
        pa.field("seconds", pa.float64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("algorithm", pa.string(), nullable=False),
        pa.field("host", pa.string(), nullable=False),
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("predicted_drop", pa.float64()),
    ]
)
"""Columns of the data set, in the order of the fields of :class:`Evaluation`."""
_ROW = pa.struct(list(SCHEMA))
_LATER = {"robust_accuracy", "predicted_drop"}
"""Columns that parts from before they were known lack: null there."""


@dataclass(frozen=True)
class Evaluation:
    """What one configuration of one network scored on one split: a row of the ledger.

    Attributes:
        config_hash: ``CompressionConfig.hash``.
        config: The configuration as JSON text.
        task: Name of the task.
        weights_hash: Content hash of the uncompressed weights.
        split: ``search``, ``test``, or ``recalibrated``: the test split, by a network compressed
            from another sample of calibration data, which the costs are of, too.
        role: ``search``, ``baseline`` or ``finalist``: why it was evaluated.
        name: Name of the baseline; empty for others.
        accuracy: 0..1; None where the evaluation failed.
        block_accuracies: Accuracy on consecutive blocks of the split, for paired differences.
        images: Images looked at.
        robust_accuracy: Accuracy under the specification's attack, 0..1; None without one, and
            where the evaluation failed.
        energy_pj, latency_cycles, bops, model_bytes, dram_bytes: Costs of one inference.
        accelerator: Name of the accelerator that the costs are for.
        seconds: How long the evaluation took.
        seed: Seed of the trial that asked for it; -1 where none did.
        algorithm: What proposed it, as in the specification; empty where none did.
        host: Machine that made it.
        time: When it ended, with time zone.
        code_version: Version of the code that compressed and ran the network.
        error: Why it failed; None where it did not.
        predicted_drop: Points that it was expected to lose, by what its seed had measured before;
            None for baselines and on other splits than the search split.
    """

    config_hash: str
    config: str
    task: str
    weights_hash: str
    split: str
    role: str
    name: str
    accuracy: float | None
    block_accuracies: tuple[float, ...]
    images: int
    robust_accuracy: float | None
    energy_pj: float
    latency_cycles: float
    bops: float
    model_bytes: float
    dram_bytes: float
    accelerator: str
    seconds: float
    seed: int
    algorithm: str
    host: str
    time: datetime
    code_version: str
    error: str | None = None
    predicted_drop: float | None = None


COLUMNS = tuple(field.name for field in fields(Evaluation))
MEASURED = tuple(name for name in COLUMNS if name != "config")

RECALIBRATED = "recalibrated"
"""The test split, by a network compressed from another sample of calibration data."""
SPLITS = ("search", "test", RECALIBRATED)

MERGED = 64
"""Parts of one size that become one of the next."""
_REPLACES = b"joulecut.replaces"
_OWN_NAME = re.compile(r"part-[0-9a-f]{32}([0-9a-f]{16})[-.]")
_DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What parsing a part that is in memory may raise: Parquet's errors of its end are OSErrors."""


class DamagedPartError(InputError):
    """A part is not a whole Parquet file."""


class Ledger:
    """The evaluations of a run, one immutable Parquet file for every call of :meth:`append`.

    Any number of processes and machines may append and read at the same time, and one of them
    may merge.

    Args:
        location: The folder, which need not exist: path, URI, or (file system, path).
    """

    def __init__(self, location: Location) -> None:
        self.storage = Storage.at(location)
        self._swept = False

    @property
    def location(self) -> str:
        """Path or URI; ``pandas.read_parquet`` takes it as it is."""
        return self.storage.location

    def append(self, rows: Sequence[Evaluation]) -> None:
        """Add evaluations; when this returns they will survive a kill.

        Raises:
            InputError: the disk is full, or the folder cannot be written, and stays so for
                ``storage.PATIENCE_SECONDS``; nothing was added.
        """
        if rows:
            # At once: ``from_pylist`` takes thrice as long for one row of many columns.
            table = pa.Table.from_struct_array(pa.array([vars(row) for row in rows], _ROW))
            self._write(table)

    def read(
        self, columns: Sequence[str] = COLUMNS, hashes: Collection[str] | None = None
    ) -> pd.DataFrame:
        """All evaluations so far, one row each, oldest first.

        Args:
            columns: Those of ``SCHEMA`` that are needed; ``MEASURED`` where it is not the texts of
                configurations, which are most of a ledger.
            hashes: Configurations whose rows are needed; all if None.

        Raises:
            DamagedPartError: a part is not a whole Parquet file; names it.
            InputError: a part has other columns, or still cannot be read after
                ``storage.PATIENCE_SECONDS``; names it.
        """
        wanted = [*columns, *{"time", "config_hash"}.difference(columns)]
        parts: dict[str, pa.Table] = {}
        while not self._read_new(parts, wanted, hashes):
            continue
        tables = [_schema(wanted).empty_table(), *_standing(parts).values()]
        rows = pa.concat_tables(table.replace_schema_metadata() for table in tables).to_pandas()
        rows = rows.sort_values("time", kind="stable", ignore_index=True)
        return rows[list(columns)]

    def find(self, config_hash: str, split: str) -> Evaluation | None:
        """The first row of a configuration that was measured on a split; None if there is none."""
        rows = self.read(hashes=[config_hash])
        found = evaluations(rows[(rows["split"] == split) & rows["accuracy"].notna()])
        return found[0] if found else None

    def configs(self, hashes: Collection[str]) -> dict[str, str]:
        """Configurations as JSON text, by hash."""
        rows = self.read(("config_hash", "config"), hashes)
        return dict(zip(rows["config_hash"], rows["config"], strict=True))

    def merge(self) -> int:
        """Keep the number of parts small, while others append; one process at a time.

        Returns:
            How many parts became fewer.

        Raises:
            OSError: something could not be read or written; nothing is lost.
            InputError: the same, or a part is damaged.
        """
        if not self._swept:  # what a merge left that was killed before it could delete
            self._delete(self._replaced())
        size = merged = 0
        while True:
            names = [name for name in self._names() if _size(name) == size]
            if not names:
                return merged
            for first in range(0, len(names) - MERGED + 1, MERGED):
                self._merge(names[first : first + MERGED], size + 1)
                merged += MERGED
            size += 1

    def set_aside_damaged(self, storage: Storage) -> list[str]:
        """Move parts that are not whole Parquet files to another folder; returns their names.

        Raises:
            InputError: a part has other columns, or cannot be read or moved.
        """
        damaged = []
        while True:
            try:
                self.read()
            except DamagedPartError as error:
                name = str(error.value).rpartition("/")[2]
                try:
                    self.storage.move(name, storage)
                except OSError as problem:
                    raise write_error("ledger", storage.location, problem) from problem
                damaged.append(name)
            else:
                return damaged

    def _read_new(
        self, parts: dict[str, pa.Table], columns: Sequence[str], hashes: Collection[str] | None
    ) -> bool:
        """Add what ``parts`` lacks; False where a merge took one away meanwhile."""
        names = self._names()
        for name in set(parts) - set(names):
            del parts[name]
        try:
            for name in names:
                if name not in parts:
                    part = self._read_part(name, columns)
                    if hashes is not None:
                        part = part.filter(pc.field("config_hash").isin(list(hashes)))
                    parts[name] = part
        except FileNotFoundError:
            return False
        return True

    def _merge(self, names: list[str], size: int) -> None:
        table = pa.concat_tables(self._read_part(name).replace_schema_metadata() for name in names)
        replaces = {_REPLACES: json.dumps(names).encode()}
        merged = self._write(table.replace_schema_metadata(replaces), f"-{size}")
        self._read_part(merged)  # before anything is deleted: what was written can be read
        self._delete(names)

    def _delete(self, names: Iterable[str]) -> None:
        self._swept = False
        for name in names:
            self.storage.delete(name)
        self._swept = True

    def _replaced(self) -> list[str]:
        names = self._names()
        merged = {name: self._read_part(name) for name in names if _size(name) > 0}
        return sorted(_replaced(merged.values()) & set(names))

    def _names(self) -> list[str]:
        return [name for name in self.storage.names("ledger") if _is_part(name)]

    def _write(self, table: pa.Table, suffix: str = "") -> str:
        """Write a part; returns its name."""
        buffer = pa.BufferOutputStream()
        many = table.num_rows > 1  # a dictionary of one value is longer than the value
        pq.write_table(table, buffer, use_dictionary=many, write_statistics=False)
        content = buffer.getvalue().to_pybytes()
        name = f"part-{uuid4().hex}{_digest(content)}{suffix}.parquet"
        try:
            self.storage.write_patiently(name, content)
        except OSError as error:
            raise write_error("ledger", self.location, error) from error
        return name

    def _read_part(self, name: str, columns: Sequence[str] = COLUMNS) -> pa.Table:
        where = f"{self.location}/{name}"
        try:
            content = self.storage.read_patiently(name)
        except FileNotFoundError:  # merged meanwhile
            raise
        except OSError as error:  # of the storage; the part may well be whole
            raise read_error("ledger", where, error) from error
        try:
            if _is_torn(name, content):
                raise pa.ArrowInvalid("its digest is not that in its name")
            table = _columns(pq.ParquetFile(pa.BufferReader(content)), columns)
        except _DAMAGED as error:
            allowed = "it is not a whole Parquet file; joulecut resume will put it aside"
            raise DamagedPartError("ledger", where, allowed) from error
        if table is None:
            raise InputError("ledger", where, f"use a part with columns {', '.join(COLUMNS)}")
        schema = _schema(columns)
        if table.schema.equals(schema):  # as this class writes it
            return table
        try:
            return table.cast(schema.with_metadata(table.schema.metadata))
        except (pa.ArrowException, ValueError) as error:
            raise InputError("ledger", where, "its columns need the ledger's types") from error


def _columns(file: pq.ParquetFile, columns: Sequence[str]) -> pa.Table | None:
    """Columns of a part; None where it does not have those of a ledger."""
    if columns == COLUMNS:  # a merge reads many files of one row: no more steps than are needed
        table = file.read(use_threads=False)
        names = table.schema.names
    else:
        names = file.schema_arrow.names
        table = file.read([name for name in columns if name in names], use_threads=False)
    missing = set(COLUMNS) - set(names)
    if set(names) - set(COLUMNS) or missing - _LATER:
        return None
    for name in missing.intersection(columns):
        field = SCHEMA.field(name)
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table if table.schema.names == list(columns) else table.select(list(columns))


def _schema(columns: Sequence[str]) -> pa.Schema:
    if columns == COLUMNS:
        return SCHEMA
    return pa.schema([SCHEMA.field(name) for name in columns])


def evaluations(rows: pd.DataFrame) -> list[Evaluation]:
    """The rows of ``Ledger.read()`` as objects."""
    return [_evaluation(dict(zip(rows.columns, row, strict=True))) for row in rows.to_numpy()]


def _evaluation(row: dict[str, Any]) -> Evaluation:
    optional = ("accuracy", "robust_accuracy", "error", "predicted_drop")
    missing = {key: None for key in optional if pd.isna(row[key])}
    blocks = tuple(row["block_accuracies"])
    return Evaluation(**{**row, **missing, "block_accuracies": blocks})


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def _size(name: str) -> int:
    """How often what is in a part was merged."""
    _, _, size = name.removeprefix("part-").removesuffix(".parquet").partition("-")
    return int(size) if size.isdigit() else 0


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _is_torn(name: str, content: bytes) -> bool:
    """Whether a part that this class wrote is no longer what it was."""
    written = _OWN_NAME.match(name)
    return written is not None and written[1] != _digest(content)


def _standing(parts: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The parts that no other one stands for."""
    replaced = _replaced(parts.values())
    return {name: table for name, table in parts.items() if name not in replaced}


def _replaced(tables: Iterable[pa.Table]) -> set[str]:
    texts = [(table.schema.metadata or {}).get(_REPLACES, b"[]") for table in tables]
    return {name for text in texts for name in json.loads(text)}
