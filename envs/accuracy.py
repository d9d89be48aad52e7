"""Where an environment gets the accuracy of a proposal from."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class AccuracySource(Protocol):
    """Accuracy lost by proposals: a predictor, or the evaluator itself.

    Attributes:
        is_cheap: True where asking at every step costs little, so that the environment can pay
            out the reward step by step; False where it is asked once, at the end of an episode.
    """

    is_cheap: bool

    def accuracy_drop(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points of accuracy lost against the uncompressed network.

        Args:
            choices: Canonical choices, shape (candidates, layers, 4); see ``SearchSpace``.

        Returns:
            Shape (candidates,), in points (1 is one percent of the images); may be below zero.
        """
        ...


class DeferredAccuracy:
    """An ``AccuracySource`` for walks that are measured only after they have ended.

    To it nothing loses accuracy. What a drop takes from the score is to be paid when it is known,
    see ``envs.episode.drop_penalty``.
    """

    is_cheap = False

    def accuracy_drop(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Zero for each of the choices (candidates, layers, 4), (candidates,)."""
        return np.zeros(len(choices))
