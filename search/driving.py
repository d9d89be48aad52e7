"""Who works on a directory, and what became of it: ``state.json``."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from datetime import timezone
from typing import Any

from hwmodel.errors import InputError
from search._driver import HEARTBEAT_SECONDS
from search._driver import Driver
from search._driver import Heartbeat
from search.stopping import was_told_to_end
from search.storage import Storage
from search.storage import reason
from search.storage import write_error

FILE = "state.json"
WATCH_SECONDS = 4 * HEARTBEAT_SECONDS
"""How long a driver on another machine is watched for a heartbeat, by the clock of this one."""


class BusyError(InputError):
    """Another driver is at work."""


class State:
    """``state.json`` of a directory that one driver at a time works on.

    Args:
        storage: The directory.
        field: What errors call it.
        allowed: What errors advise where it is damaged.
    """

    def __init__(self, storage: Storage, field: str, allowed: str) -> None:
        self._storage = storage
        self._field = field
        self._allowed = allowed

    def read(self) -> dict[str, Any]:
        """The state; ``running`` with a driver that is gone is ``interrupted``.

        Raises:
            InputError: the file is missing or damaged.
        """
        state = self._read()
        driver = _driver(state)
        if state["state"] == "running" and not (driver and driver.is_alive(state.get("heartbeat"))):
            state["state"] = "interrupted"
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace the state.

        Raises:
            OSError: it cannot be written.
        """
        self._storage.write(FILE, to_json(state))

    @contextlib.contextmanager
    def driving(self) -> Iterator[dict[str, Any]]:
        """Own the directory while it is worked on: state ``running`` and a heartbeat.

        What the block puts into the mapping that it is given is written with every heartbeat; a
        ``message`` in it is that of a completed state.

        At the end the state is ``completed``; ``interrupted`` after KeyboardInterrupt;
        ``failed``, with the message, after any other exception. A driver that is killed leaves
        ``running`` behind, which :meth:`read` reports as ``interrupted``.

        Raises:
            BusyError: another driver is at work.
            InputError: the state cannot be written.
        """
        driver = Driver.of(os.getpid())
        self._refuse_second(driver)
        state: dict[str, Any] = {"state": "running", "message": "", "driver": driver.to_json()}

        details: dict[str, Any] = {}

        def beat() -> None:
            self.write(details | state | {"heartbeat": now()})

        try:
            beat()
        except OSError as error:
            raise write_error(self._field, self._storage.location, error) from error
        heartbeat = Heartbeat(beat)
        try:
            yield details
        except KeyboardInterrupt:
            message = "stopped by SIGTERM" if was_told_to_end() else "stopped by the user"
            state |= {"state": "interrupted", "message": message}
            raise
        except BaseException as error:
            state |= {"state": "failed", "message": f"{type(error).__name__}: {reason(error)}"}
            raise
        else:
            state |= {"state": "completed", "message": details.pop("message", "")}
        finally:
            heartbeat.stop()
            with contextlib.suppress(OSError):  # must not hide why the work ended
                beat()

    def _refuse_second(self, driver: Driver) -> None:
        state = self._read()
        other = _driver(state)
        if state["state"] != "running" or other is None or other == driver:
            return
        if other.is_here:
            alive = other.is_alive(None)
        else:  # clocks of machines differ, and jump: what counts is that its heart beats
            heartbeat, end = state.get("heartbeat"), time.monotonic() + WATCH_SECONDS
            alive = False
            while not alive and time.monotonic() < end:
                time.sleep(min(1.0, WATCH_SECONDS / 4))
                alive = self._read().get("heartbeat") != heartbeat
        if alive:
            allowed = f"process {other.pid} on {other.host} works on it; stop it, or wait"
            raise BusyError(self._field, self._storage.location, allowed)

    def _read(self) -> dict[str, Any]:
        state = read_json(self._storage, FILE, self._field, self._allowed)
        if not isinstance(state.get("state"), str):
            where = f"{self._storage.location}/{FILE}"
            raise InputError(self._field, where, f"it is damaged; {self._allowed}")
        return state


def read_json(storage: Storage, name: str, field: str, allowed: str) -> dict[str, Any]:
    """One JSON document of a directory.

    Raises:
        InputError: about ``field``: it is missing, half-written, or no mapping.
    """
    where = f"{storage.location}/{name}"
    try:
        data = json.loads(storage.read(name))
    except (OSError, ValueError):
        raise InputError(field, where, f"it is missing or half-written; {allowed}") from None
    if not isinstance(data, dict):
        raise InputError(field, where, f"it is damaged; {allowed}")
    return data


def to_json(data: dict[str, Any]) -> bytes:
    """A JSON document as it is written to a directory."""
    return (json.dumps(data, indent=2) + "\n").encode()


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _driver(state: dict[str, Any]) -> Driver | None:
    return Driver.from_json(state["driver"]) if state.get("driver") else None
