"""What happened in a run: one line of JSON for every event, one file for every process.

Common to all events are ``time`` (UTC, ISO 8601), ``event`` and ``run``; see docs/cluster.md for
the others.
"""

from __future__ import annotations

import json
import math
import os
import socket
import traceback
from datetime import datetime
from datetime import timezone
from types import TracebackType
from typing import Any
from uuid import uuid4

from search.appending import GrowingFile
from search.ledger import Evaluation
from search.storage import Storage


class EventLog:
    """Events of one process; as a context it says when it ``started`` and ``ended``, and why.

    Args:
        run: Directory of the run; the file goes to its folder ``log``.
        who: What the process is, ``driver`` or the trial: the beginning of the file's name.
        common: Fields that all its events have.
    """

    def __init__(self, run: Storage, who: str, **common: Any) -> None:
        started = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S")
        name = f"{who}-{started}-{uuid4().hex[:8]}.jsonl"
        self._file = GrowingFile(run.child("log"), name)
        self._common = {"run": run.root, **common}
        self._who = who

    def __enter__(self) -> EventLog:
        self.write("started", process=self._who, host=socket.gethostname(), pid=os.getpid())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        why = None if error is None else one_line(error)
        self.write("ended", process=self._who, error=why)
        self.close()

    def write(self, event: str, **fields: Any) -> None:
        """Add one event. Fields are JSON values; numbers that are not finite become null."""
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = {"time": time, "event": event, **self._common, **fields}
        record = {key: None if _is_not_finite(value) else value for key, value in record.items()}
        self._file.append(json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


def evaluation_fields(row: Evaluation) -> dict[str, Any]:
    """What an event ``evaluation`` says of a ledger row."""
    names = ("config_hash", "split", "role", "name", "seed", "seconds", "host")
    measured = ("accuracy", "energy_pj", "error")
    return {name: getattr(row, name) for name in names + measured}


def one_line(error: BaseException) -> str:
    """An exception's type and the last line of what it says."""
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
