"""What ends a run through no fault of its input."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.storage import Storage


class RunError(RuntimeError):
    """A process of the run broke; the message is one line that says why, and where to read on."""


def keep_trace(errors: Storage, trace: str, name: str | None = None) -> str:
    """Write a traceback to a run's ``errors`` folder, as ``NAME.txt``; returns the file."""
    name = f"{name or time.time_ns()}.txt"
    with suppress(OSError):  # what the user is told is more than this file
        errors.make()
        errors.write(name, trace.encode())
    return f"{errors.location}/{name}"
