"""SIGTERM, as schedulers and spot machines send it, stops a run as Ctrl-C does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """The process was asked to end; what was found until then is to be kept."""


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` in the main thread at the first SIGTERM; later ones do nothing."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the report must be written to its end
    raise Terminated("stopped by SIGTERM")
