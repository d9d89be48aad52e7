"""Who evaluates what: keeps trials that run at the same time from evaluating a config twice."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Literal

import pandas as pd
import ray

from search.ledger import SPLITS
from search.ledger import Evaluation

Answer = Literal["granted", "pending"]
Known = Mapping[str, Mapping[str, float]]
"""Accuracies by split and hash of the configuration; NaN where the evaluation failed."""

_TELL_SECONDS = 0.2
"""Between two messages of a trial, each of which takes longer than an entry of it."""


class Board:
    """What has been evaluated on each split and what is being evaluated, by config hash.

    Run as one Ray actor for all trials of a run.

    Args:
        known: Accuracies of the ledger so far, see :func:`accuracies`.
        seeds: Whose trials search.
        seconds: Until trials are to stop.
    """

    def __init__(self, known: Known, seeds: Iterable[int] = (), seconds: float = math.inf) -> None:
        self._deadline = time.monotonic() + seconds
        self._searching = set(seeds)
        self._is_late = False
        self._known: dict[str, dict[str, float]] = {split: {} for split in SPLITS}
        self._claimed: dict[tuple[str, str], int] = {}
        self.record(known)

    def claim(
        self, hashes: Sequence[str], seed: int, split: str = "search"
    ) -> list[float | Answer]:
        """Ask for configurations.

        Returns:
            For each its accuracy where it is known, NaN if the evaluation failed; ``granted``
            where the caller is to evaluate it; ``pending`` where another trial is doing so.
        """
        answers: list[float | Answer] = []
        known = self._known[split]
        for config_hash in hashes:
            if config_hash in known:
                answers.append(known[config_hash])
            elif (split, config_hash) in self._claimed:
                answers.append("pending")
            else:
                self._claimed[split, config_hash] = seed
                answers.append("granted")
        return answers

    def record(self, measured: Known) -> None:
        """Claimed configurations have been evaluated and are in the ledger."""
        for split, accuracies in measured.items():
            for config_hash in accuracies:
                self._claimed.pop((split, config_hash), None)
            self._known[split].update(accuracies)

    def restart(self, seed: int, known: Known) -> None:
        """A trial starts, maybe again: its claims are void; ``known`` is what the ledger has."""
        self.release(seed)
        self.record(known)

    def release(self, seed: int) -> None:
        """A trial ended, or is lost: its claims are void."""
        self._claimed = {key: owner for key, owner in self._claimed.items() if owner != seed}

    def searched(self, seed: int) -> None:
        """A trial has searched, though it may still verify."""
        self._searching.discard(seed)
        self._is_late = self._is_late or self.seconds_left() <= 0

    def is_late(self) -> bool:
        """Whether a trial searched until it was to stop."""
        return self._is_late

    def is_searching(self) -> bool:
        """Whether the trial of any seed still searches."""
        return bool(self._searching)

    def seconds_left(self) -> float:
        """Until trials are to stop: machines' clocks differ, and jump, so theirs do not tell."""
        return self._deadline - time.monotonic()

    def count(self, split: str = "search") -> int:
        """Number of configurations known."""
        return len(self._known[split])


BoardActor = ray.remote(num_cpus=0)(Board)


class News:
    """What one trial has evaluated and tells the others, a little later and in groups.

    Not waited for: a trial's messages arrive in order, so what it claims next comes after.

    Args:
        board: Handle of the run's ``BoardActor``.
    """

    def __init__(self, board: Any) -> None:
        self._board = board
        self._measured: defaultdict[str, dict[str, float]] = defaultdict(dict)
        self._told = -math.inf

    def add(self, row: Evaluation) -> None:
        """A configuration has been evaluated and is in the ledger, maybe with an error."""
        self._measured[row.split][row.config_hash] = accuracy(row)
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Tell what has not been told yet."""
        self._board.record.remote(dict(self._measured))
        self._measured.clear()
        self._told = time.monotonic()


def accuracies(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Accuracies by split and config hash; NaN where the evaluation failed.

    Left out is what failed and is to be tried again: baselines, and all that is not on the search
    split.

    Args:
        rows: Columns ``split``, ``config_hash``, ``accuracy`` and ``role`` of the ledger.
    """
    is_needed = (rows["role"] == "baseline") | (rows["split"] != "search")
    rows = rows[~is_needed | rows["accuracy"].notna()]
    by_split = {split: rows[rows["split"] == split] for split in SPLITS}
    return {
        split: dict(zip(part["config_hash"], part["accuracy"].tolist(), strict=True))
        for split, part in by_split.items()
    }


def accuracy(row: Evaluation) -> float:
    """Accuracy of one row; NaN where the evaluation failed."""
    return math.nan if row.accuracy is None else row.accuracy
