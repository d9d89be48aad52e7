"""The process that drives a run: who it is, and whether it is still there."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A driver on another machine is taken for dead after this long without a heartbeat."""


@dataclass(frozen=True)
class Driver:
    """One process.

    Attributes:
        pid: Process id.
        host: Machine.
        started: Start of the process in clock ticks since boot, so that a process id that was
            given again is not taken for the driver; None where the system does not tell.
    """

    pid: int
    host: str
    started: int | None

    @classmethod
    def of(cls, pid: int) -> Driver:
        """A process of this machine."""
        return cls(pid, socket.gethostname(), _start_time(pid))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Driver:
        return cls(data["pid"], data["host"], data.get("started"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()

    def is_alive(self, heartbeat: str | None) -> bool:
        """Whether it runs: by its process on this machine, by its last heartbeat elsewhere."""
        if self.is_here:
            return _exists(self.pid) and self == Driver.of(self.pid)
        if heartbeat is None:
            return False
        age = datetime.now(timezone.utc) - datetime.fromisoformat(heartbeat)
        return age.total_seconds() < STALE_SECONDS


class Heartbeat:
    """Calls ``beat`` every few seconds from a thread, until :meth:`stop`."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            try:
                self._beat()
            except OSError:
                continue  # a full disk stops the ledger, which tells the user; this cannot


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A process that was killed and that nobody has waited for yet still has its number.
    return (_stat(pid) or [""])[0] not in ("Z", "X")


def _start_time(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[19])  # field 22 of proc(5)


def _stat(pid: int) -> list[str] | None:
    """What Linux tells of a process, from its state on; None on other systems."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()
