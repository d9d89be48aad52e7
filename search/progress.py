"""What a running search shows on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress as Bars
from rich.progress import TaskID
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.progress import TimeRemainingColumn

_POLL_SECONDS = 1.0
_RATE_SECONDS = 600.0
"""What is to come takes as long as this much of what was: seeds measure and learn by turns."""
_LINE_SECONDS = 60.0
"""Between two lines about the same stage, where there are no bars."""


def tell(line: str) -> None:
    """Print a line to stderr; that nobody reads it any more ends no work."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class Progress:
    """One bar for every stage of a run, or, where no terminal shows it, lines; a context manager.

    Args:
        notice: Told the description of every stage that begins.
    """

    def __init__(self, notice: Callable[[str], None] = lambda _: None) -> None:
        self._notice = notice
        self._console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            speed_estimate_period=_RATE_SECONDS,
            get_time=lambda: time.monotonic(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._told = 0.0
        self._current: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._bars.stop()

    def stage(self, description: str) -> None:
        """Begin a stage, unless it has begun; the one before is done."""
        if description == self._stage:
            return
        self._finish()
        self._stage = description
        self._notice(description)
        self._tell(description)
        self._current = self._bars.add_task(description, total=None)

    def step(self, description: str, done: int, total: int | None) -> None:
        """Say how far the current stage is; without ``total`` where that is not known."""
        if self._current is None:
            self.stage(description)
        assert self._current is not None
        if self._bars.tasks[self._current].description != description:
            self._bars.reset(self._current, total=total)  # other work has another pace
        self._bars.update(self._current, description=description, completed=done, total=total)
        if time.monotonic() - self._told >= _LINE_SECONDS:
            known = f"{description}: {done}"
            self._tell(known if total is None else f"{known} of {total}{self._left()}")

    @contextmanager
    def following(self, look: Callable[[], None]) -> Iterator[None]:
        """Have somebody look every second how far a stage is, while the block runs."""
        stop = threading.Event()

        def poll() -> None:
            while not stop.wait(_POLL_SECONDS):
                try:
                    look()
                except Exception:  # what broke the search will be reported where it broke
                    return

        thread = threading.Thread(target=poll, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _left(self) -> str:
        """How long the current stage still takes, if that can be told."""
        seconds = None if self._current is None else self._bars.tasks[self._current].time_remaining
        return f", {math.ceil(seconds / 60)} min left" if seconds else ""

    def _tell(self, line: str) -> None:
        self._told = time.monotonic()
        if not self._console.is_terminal:
            tell(line)

    def _finish(self) -> None:
        if self._current is not None:
            total = self._bars.tasks[self._current].total
            self._bars.update(self._current, total=total or 1, completed=total or 1)
