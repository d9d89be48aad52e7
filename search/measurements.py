"""What a seed has measured, the predictor fitted to it, and what to measure next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.predictor import USUAL_IMAGES
from envs.predictor import AccuracyPredictor
from envs.problem import CompressionProblem
from search.proposals import select


@dataclass(frozen=True)
class Reference:
    """What accuracies and energies are compared to.

    Attributes:
        accuracy: Of the uncompressed network on the search split, 0..1.
        chance: Accuracy of guessing, 0..1.
        energy_pj: Energy of dense INT8 at the problem's level, which ratios of proposers are
            relative to.
        limits: Drops in points at which the least energy is asked for.
        images: Images of the search split.
    """

    accuracy: float
    chance: float
    energy_pj: float
    limits: tuple[float, ...]
    images: int = USUAL_IMAGES


class Measurements:
    """Measured choices and a predictor that knows them.

    Args:
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.

    Attributes:
        predictor: Knows the table alone until :meth:`fit` is called.
        choices: Measured so far, canonical, (measurements, layers, 4).
        accuracy: What they reached, 0..1, (measurements,).
    """

    def __init__(self, problem: CompressionProblem, reference: Reference) -> None:
        self.problem = problem
        self.reference = reference
        self.predictor = AccuracyPredictor(
            problem.table, reference.accuracy, reference.chance, reference.images
        )
        self.choices = np.zeros((0, len(problem.space.layers), 4), dtype=np.int64)
        self.accuracy = np.zeros(0)
        self.seen: set[str] = set()

    def add(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        """Take in measurements: choices (measurements, layers, 4), accuracy 0..1."""
        self.choices = np.concatenate([self.choices, choices])
        self.accuracy = np.concatenate([self.accuracy, accuracy])
        self.seen.update(self.problem.space.config(choice).hash for choice in choices)

    def fit(self) -> None:
        """Have the predictor learn all that was measured."""
        self.predictor.fit(self.choices, self.accuracy)

    @property
    def energy_ratio(self) -> NDArray[np.float64]:
        """Energy over that of the reference, (measurements,)."""
        return self.problem.cost(self.choices).energy_pj / self.reference.energy_pj

    @property
    def accuracy_drop(self) -> NDArray[np.float64]:
        """Points lost, (measurements,)."""
        return 100 * (self.reference.accuracy - self.accuracy)

    def select(self, candidates: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """At most ``count`` of the candidates that were not measured; see :func:`select`."""
        return select(
            self.problem,
            self.predictor,
            candidates,
            count,
            self.seen,
            self.energy_ratio,
            self.accuracy_drop,
            self.reference.energy_pj,
            self.reference.limits,
        )
