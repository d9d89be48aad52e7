"""Accuracy from the evaluator itself: dear, and true."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.config import uniform
from envs.evaluator import Evaluator
from envs.space import SearchSpace


class MeasuredAccuracy:
    """An ``AccuracySource`` that runs the network on the search split, in this process.

    Args:
        evaluator: Runs it.
        space: Says what choices mean.
    """

    is_cheap = False

    def __init__(self, evaluator: Evaluator, space: SearchSpace) -> None:
        self._evaluator = evaluator
        self._space = space
        self._known: dict[str, float] = {}
        self._reference: float | None = None

    def accuracy_drop(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points lost by choices (candidates, layers, 4), (candidates,)."""
        if self._reference is None:
            dense = uniform(self._space.layers, 32)
            self._reference = self._evaluator.evaluate(dense, "search").accuracy
        return np.array([100 * (self._reference - self._accuracy(choice)) for choice in choices])

    def _accuracy(self, choice: NDArray[np.int64]) -> float:
        config = self._space.config(choice)
        if config.hash not in self._known:
            self._known[config.hash] = self._evaluator.evaluate(config, "search").accuracy
        return self._known[config.hash]
