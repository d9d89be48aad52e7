"""Accuracy as it is: every question runs the network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.config import uniform
from envs.evaluator import Evaluator
from envs.space import SearchSpace


class MeasuredAccuracy:
    """An ``AccuracySource`` that evaluates on the search split; a repeated choice costs nothing.

    Args:
        evaluator: Runs the network.
        space: Gives choices their meaning.
    """

    is_cheap = False

    def __init__(self, evaluator: Evaluator, space: SearchSpace) -> None:
        self._evaluator = evaluator
        self._space = space
        dense = uniform(space.layers, bits=32)
        self._reference = evaluator.evaluate(dense, "search").accuracy
        self._known: dict[str, float] = {}

    def accuracy_drop(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points lost against the uncompressed network, (candidates,)."""
        return 100.0 * np.array([self._reference - self._accuracy(choice) for choice in choices])

    def _accuracy(self, choice: NDArray[np.int64]) -> float:
        config = self._space.config(choice)
        if config.hash not in self._known:
            self._known[config.hash] = self._evaluator.evaluate(config, "search").accuracy
        return self._known[config.hash]
