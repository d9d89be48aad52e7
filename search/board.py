"""Who evaluates what: keeps trials that run at the same time from evaluating a config twice."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal

import pandas as pd
import ray

from search.ledger import Evaluation

Answer = Literal["granted", "pending"]

_TELL_SECONDS = 0.2
"""Between two messages of a trial, each of which takes longer than an entry of it."""


class Board:
    """What has been evaluated on the search split and what is being evaluated, by config hash.

    Run as one Ray actor for all trials of a run.

    Args:
        known: Accuracies of the ledger so far, see :func:`accuracies`.
        seconds: Until trials are to stop.
    """

    def __init__(self, known: Mapping[str, float], seconds: float = math.inf) -> None:
        self._deadline = time.monotonic() + seconds
        self._known = dict(known)
        self._claimed: dict[str, int] = {}

    def claim(self, hashes: Sequence[str], seed: int) -> list[float | Answer]:
        """Ask for configurations.

        Returns:
            For each its accuracy where it is known, NaN if the evaluation failed; ``granted``
            where the caller is to evaluate it; ``pending`` where another trial is doing so.
        """
        answers: list[float | Answer] = []
        for config_hash in hashes:
            if config_hash in self._known:
                answers.append(self._known[config_hash])
            elif config_hash in self._claimed:
                answers.append("pending")
            else:
                self._claimed[config_hash] = seed
                answers.append("granted")
        return answers

    def record(self, measured: Mapping[str, float]) -> None:
        """Claimed configurations have been evaluated and are in the ledger: accuracies by hash."""
        for config_hash in measured:
            self._claimed.pop(config_hash, None)
        self._known.update(measured)

    def restart(self, seed: int, known: Mapping[str, float]) -> None:
        """A trial starts, maybe again: its claims are void; ``known`` is what the ledger has."""
        self.release(seed)
        self.record(known)

    def release(self, seed: int) -> None:
        """A trial ended, or is lost: its claims are void."""
        self._claimed = {key: owner for key, owner in self._claimed.items() if owner != seed}

    def seconds_left(self) -> float:
        """Until trials are to stop: machines' clocks differ, and jump, so theirs do not tell."""
        return self._deadline - time.monotonic()

    def count(self) -> int:
        """Number of configurations known."""
        return len(self._known)


BoardActor = ray.remote(num_cpus=0)(Board)


class News:
    """What one trial has evaluated and tells the others, a little later and in groups.

    Not waited for: a trial's messages arrive in order, so what it claims next comes after.

    Args:
        board: Handle of the run's ``BoardActor``.
    """

    def __init__(self, board: Any) -> None:
        self._board = board
        self._measured: dict[str, float] = {}
        self._told = -math.inf

    def add(self, config_hash: str, accuracy: float) -> None:
        """A configuration has been evaluated and is in the ledger; NaN where that failed."""
        self._measured[config_hash] = accuracy
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Tell what has not been told yet."""
        self._board.record.remote(self._measured)
        self._measured, self._told = {}, time.monotonic()


def accuracies(rows: pd.DataFrame) -> dict[str, float]:
    """Accuracy on the search split by config hash; NaN where the evaluation failed.

    Baselines that failed are left out: a search cannot do without, so they are tried again.

    Args:
        rows: Columns ``split``, ``config_hash``, ``accuracy`` and ``role`` of the ledger.
    """
    is_lost = (rows["role"] == "baseline") & rows["accuracy"].isna()
    rows = rows[(rows["split"] == "search") & ~is_lost]
    return dict(zip(rows["config_hash"], rows["accuracy"].tolist(), strict=True))


def accuracy(row: Evaluation) -> float:
    """Accuracy of one row; NaN where the evaluation failed."""
    return math.nan if row.accuracy is None else row.accuracy
