"""Every true evaluation ever made in a run: an append-only Parquet data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import fields
from datetime import datetime
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hwmodel.errors import InputError
from search.storage import Location
from search.storage import Storage
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
    ]
)
"""Columns of the data set, in the order of the fields of :class:`Evaluation`."""


@dataclass(frozen=True)
class Evaluation:
    """What one configuration of one network scored on one split: a row of the ledger.

    Attributes:
        config_hash: ``CompressionConfig.hash``.
        config: The configuration as JSON text.
        task: Name of the task.
        weights_hash: Content hash of the uncompressed weights.
        split: ``search`` or ``test``.
        role: ``search``, ``baseline`` or ``finalist``: why it was evaluated.
        name: Name of the baseline; empty for others.
        accuracy: 0..1; None where the evaluation failed.
        block_accuracies: Accuracy on consecutive blocks of the split, for paired differences.
        images: Images looked at.
        energy_pj, latency_cycles, bops, model_bytes, dram_bytes: Costs of one inference.
        accelerator: Name of the accelerator that the costs are for.
        seconds: How long the evaluation took.
        seed: Seed of the trial that asked for it; -1 where none did.
        algorithm: What proposed it, as in the specification; empty where none did.
        host: Machine that made it.
        time: When it ended, with time zone.
        code_version: Version of the code that compressed and ran the network.
        error: Why it failed; None where it did not.
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


COLUMNS = tuple(field.name for field in fields(Evaluation))


class Ledger:
    """The evaluations of a run, one immutable Parquet file for every call of :meth:`append`.

    Any number of processes and machines may append and read at the same time: a part appears
    all at once under a name of its own and never changes.

    Args:
        location: The folder, which need not exist: path, URI, or (file system, path).
    """

    def __init__(self, location: Location | Storage) -> None:
        self.storage = location if isinstance(location, Storage) else Storage.at(location)
        self._parts: dict[str, pa.Table] = {}  # parts never change, so each is read once

    @property
    def location(self) -> str:
        """Path or URI; ``pandas.read_parquet`` takes it as it is."""
        return self.storage.location

    def append(self, rows: Sequence[Evaluation]) -> None:
        """Add evaluations; when this returns they will survive a kill.

        Raises:
            InputError: the disk is full, or the folder cannot be written; nothing was added.
        """
        if not rows:
            return
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        try:
            self.storage.make()
            self.storage.write(f"part-{uuid4().hex}.parquet", buffer.getvalue().to_pybytes())
        except OSError as error:
            raise write_error("ledger", self.location, error) from error

    def read(self) -> pd.DataFrame:
        """All evaluations so far, one row each, oldest first, with the columns of ``SCHEMA``.

        Raises:
            InputError: a part is damaged or has other columns; names the file.
        """
        names = [name for name in self.storage.names("ledger") if _is_part(name)]
        for name in names:
            if name not in self._parts:
                self._parts[name] = self._read_part(name)
        tables = [SCHEMA.empty_table(), *(self._parts[name] for name in names)]
        rows = pa.concat_tables(tables).to_pandas()
        return rows.sort_values("time", kind="stable", ignore_index=True)

    def _read_part(self, name: str) -> pa.Table:
        where = f"{self.location}/{name}"
        try:
            table = pq.read_table(pa.BufferReader(self.storage.read(name)))
        except (pa.ArrowException, OSError) as error:
            allowed = "it is not a whole Parquet file; restore it, or move it out of the ledger"
            raise InputError("ledger", where, allowed) from error
        if set(table.column_names) != set(COLUMNS):
            raise InputError("ledger", where, f"use a part with columns {', '.join(COLUMNS)}")
        try:
            return table.select(list(COLUMNS)).cast(SCHEMA)
        except (pa.ArrowException, ValueError) as error:
            raise InputError("ledger", where, "its columns need the ledger's types") from error


def _is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")
