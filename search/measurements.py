"""What a seed has measured, the predictor fitted to it, and what to measure next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envs.predictor import USUAL_IMAGES
from envs.predictor import AccuracyPredictor
from envs.predictor import noise_points
from envs.problem import CompressionProblem
from search.earlier import Accuracies
from search.estimates import COMPARABLE_DROP
from search.estimates import FEWEST
from search.front import ONE_SIDED_90
from search.front import ONE_SIDED_99
from search.front import accuracy_drop
from search.front import drop_error
from search.front import pareto_front
from search.front import smallest_provable_drop
from search.proposals import select

_ENOUGH = 2 * FEWEST
"""Evaluations of which enough are expected to lose little."""
_MEASURED_WEIGHT = 0.2
"""Weight of a measured drop beside what is expected, see ``search.estimates``: what searches on
CIFAR-10 show near the front."""
_USUAL_SHARE = 0.6
"""Of the variance of a measured drop, what is left where a predictor knows the configuration: above
all the luck of the images that all configurations have in common."""


@dataclass(frozen=True)
class Reference:
    """What accuracies and costs are compared to.

    Attributes:
        accuracy: Of the uncompressed network on the search split, 0..1.
        chance: Accuracy of guessing, 0..1.
        cost: That of dense INT8 by the problem's objective: what ratios are relative to.
        aims: Drops in points at which the least cost is asked for, see
            :func:`drops_that_hold`.
        images: Images of the search split.
        energy_aims: Energies over that of dense INT8 at which the least loss is asked for.
    """

    accuracy: float
    chance: float
    cost: float
    aims: tuple[float, ...]
    images: int = USUAL_IMAGES
    energy_aims: tuple[float, ...] = ()


class Measurements:
    """Measured choices and a predictor that knows them.

    Args:
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
        earlier: What else the predictor learns from, if anything.

    Attributes:
        predictor: Knows the table alone until :meth:`fit` is called.
        choices: Measured so far, canonical, (measurements, layers, 4).
        accuracy: What they reached, 0..1, (measurements,).
    """

    def __init__(
        self,
        problem: CompressionProblem,
        reference: Reference,
        earlier: Accuracies | None = None,
    ) -> None:
        self.problem = problem
        self.reference = reference
        self.predictor = AccuracyPredictor(
            problem.table, reference.accuracy, reference.chance, reference.images
        )
        self.choices = np.zeros((0, len(problem.space.layers), 4), dtype=np.int64)
        self.accuracy = np.zeros(0)
        self.seen: set[str] = set()
        self._is_fitted = False
        self._earlier = earlier

    def add(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        """Take in measurements: choices (measurements, layers, 4), accuracy 0..1."""
        self.choices = np.concatenate([self.choices, choices])
        self.accuracy = np.concatenate([self.accuracy, accuracy])
        self.seen.update(self.problem.space.config(choice).hash for choice in choices)

    def fit(self) -> None:
        """Have the predictor learn all that was measured."""
        choices, accuracy = self.choices, self.accuracy
        if self._earlier is not None:  # what was measured again may count twice
            choices = np.concatenate([self._earlier.choices, choices])
            accuracy = np.concatenate([self._earlier.accuracy, accuracy])
        self.predictor.fit(choices, accuracy)
        self._is_fitted = True

    @property
    def cost_ratio(self) -> NDArray[np.float64]:
        """Cost over that of the reference, (measurements,)."""
        return self.priced(self.choices)[0]

    def priced(self, choices: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Cost ratios of choices, and which of them hold the limits, (choices,) both."""
        report = self.problem.cost(choices)
        ratio = self.problem.objective.cost(report) / self.reference.cost
        return ratio, self.problem.limits.hold(report)

    @property
    def accuracy_drop(self) -> NDArray[np.float64]:
        """Points lost, (measurements,)."""
        return 100 * (self.reference.accuracy - self.accuracy)

    @property
    def estimated_drop(self) -> NDArray[np.float64]:
        """Points lost by what was measured and what the predictor expects, (measurements,).

        What is measured is in the predictor, too, so little more of it counts; unless the predictor
        knows the table alone.
        """
        if not self._is_fitted:
            return self.accuracy_drop
        expected = self.predictor.accuracy_drop(self.choices)
        return expected + _MEASURED_WEIGHT * (self.accuracy_drop - expected)

    def front(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What no other measured choice that holds the limits beats, by what it is estimated to
        lose: choices, (measurements, layers, 4), and these drops in points, (measurements,).
        """
        ratio, counts = self.priced(self.choices)
        choices, drops = self.choices[counts], self.estimated_drop[counts]
        best = pareto_front(ratio[counts], drops)
        return choices[best], drops[best]

    def select(self, candidates: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """At most ``count`` of the candidates that were not measured; see :func:`select`."""
        ratio, counts = self.priced(self.choices)
        return select(
            self.problem,
            self.predictor,
            candidates,
            count,
            self.seen,
            ratio[counts],
            self.accuracy_drop[counts],
            self.estimated_drop[counts],
            self.reference.cost,
            self.reference.aims,
            self.reference.energy_aims,
        )


def drops_that_hold(
    targets: Sequence[float], baselines: pd.DataFrame, dense: pd.Series, evaluations: int
) -> tuple[float, ...]:
    """Drops, in points, whose upper bound is expected to be each of the targets.

    Of the images that compression makes right or wrong most cancel out, so a drop's standard error
    is larger than the drop alone tells. It is that of the predictor's noise, whose variance is
    taken to grow with the drop d as (1 + d) / 2, times what the baselines show of this network and
    these images; the predictor's own counts as one more baseline. Of that variance the predictor
    is expected to take its part where there are enough evaluations to know it. Below zero where
    not even a network that loses nothing is expected to hold a target.

    Args:
        targets: Points that may be lost.
        baselines: Rows of the search split.
        dense: Row of the uncompressed network among them.
        evaluations: Of all seeds, that are going to be.
    """
    images = int(dense["images"])
    variance = noise_points(images) ** 2 / 2
    drops, errors = accuracy_drop(baselines, dense), drop_error(baselines, dense)
    shown = (errors > 0) & (np.abs(drops) < COMPARABLE_DROP)
    ratios = errors[shown] ** 2 / (variance * (1 + np.maximum(drops[shown], 0.0)))
    variance *= (1 + ratios.sum()) / (1 + len(ratios))
    margin = ONE_SIDED_99**2 * variance
    if evaluations >= _ENOUGH:
        margin = ONE_SIDED_90**2 * _USUAL_SHARE * variance
    return tuple(
        _drop_at(max(target, smallest_provable_drop(images)), margin) for target in targets
    )


def _drop_at(bound: float, margin: float) -> float:
    """The drop d with d + sqrt(margin * (1 + max(d, 0))) = bound."""
    if bound**2 <= margin:
        return bound - float(np.sqrt(margin))
    return bound + margin / 2 - float(np.sqrt(margin * (1 + bound + margin / 4)))
