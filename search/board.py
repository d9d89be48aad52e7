"""Who evaluates what: keeps trials that run at the same time from evaluating a config twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from typing import Literal

import pandas as pd
import ray

from search.ledger import Evaluation

Answer = Literal["granted", "pending"]


class Board:
    """What has been evaluated on the search split and what is being evaluated, by config hash.

    Run as one Ray actor for all trials of a run.

    Args:
        known: Rows of the ledger so far.
    """

    def __init__(self, known: Sequence[Evaluation]) -> None:
        self._known = {row.config_hash: row for row in known}
        self._claimed: dict[str, int] = {}

    def claim(self, hashes: Sequence[str], seed: int) -> list[Evaluation | Answer]:
        """Ask for configurations.

        Returns:
            For each its row where it is known; ``granted`` where the caller is to evaluate it;
            ``pending`` where another trial is doing so.
        """
        answers: list[Evaluation | Answer] = []
        for config_hash in hashes:
            if config_hash in self._known:
                answers.append(self._known[config_hash])
            elif config_hash in self._claimed:
                answers.append("pending")
            else:
                self._claimed[config_hash] = seed
                answers.append("granted")
        return answers

    def record(self, row: Evaluation) -> None:
        """A claimed configuration has been evaluated and is in the ledger."""
        self._claimed.pop(row.config_hash, None)
        self._known[row.config_hash] = row

    def restart(self, seed: int, rows: Sequence[Evaluation]) -> None:
        """A trial starts, maybe again: its claims are void; ``rows`` is what the ledger has."""
        self._claimed = {key: owner for key, owner in self._claimed.items() if owner != seed}
        for row in rows:
            self.record(row)

    def count(self) -> int:
        """Number of configurations known."""
        return len(self._known)


BoardActor = ray.remote(num_cpus=0)(Board)


def evaluations(rows: pd.DataFrame) -> list[Evaluation]:
    """The rows of ``Ledger.read()`` as objects."""
    return [_evaluation(dict(zip(rows.columns, row, strict=True))) for row in rows.to_numpy()]


def _evaluation(row: dict[str, Any]) -> Evaluation:
    accuracy = None if pd.isna(row["accuracy"]) else row["accuracy"]
    blocks = tuple(row["block_accuracies"])
    return Evaluation(**{**row, "accuracy": accuracy, "block_accuracies": blocks})
