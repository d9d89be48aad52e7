"""SIGTERM, as schedulers and spot machines send it, stops a run as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# Not a kind of KeyboardInterrupt: Ray, interrupted while it waits, raises a plain one instead.
_told = threading.Event()


def was_told_to_end() -> bool:
    """Whether SIGTERM is why the latest :func:`interrupted_by_sigterm` was left."""
    return _told.is_set()


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread at the first SIGTERM; later ones do nothing."""
    _told.clear()
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the report must be written to its end
    _told.set()
    raise KeyboardInterrupt
