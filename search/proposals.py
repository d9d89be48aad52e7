"""Which candidates to evaluate next: those that promise most beyond the front measured so far."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.predictor import AccuracyPredictor
from envs.problem import CompressionProblem
from search.front import pareto_front

WORST_RATIO = 1.0
WORST_DROP = 10.0
"""Corner of the box whose dominated part is to grow: cost ratio, and drop in points."""
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
"""Gauss-Hermite quadrature of a standard normal variable."""

Axis = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def linear_axis(drop: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drops in points from 0 to ``WORST_DROP`` as numbers from 0 to 1."""
    return np.clip(drop, 0.0, WORST_DROP) / WORST_DROP


def log_axis(drop: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same, stretched where drops are small: a point matters more below one than above."""
    half_point = 0.5
    return np.log1p(np.clip(drop, 0.0, WORST_DROP) / half_point) / np.log1p(WORST_DROP / half_point)


def plain_axis(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cost ratios as they are."""
    return ratio


def aim_axis(aims: Sequence[float]) -> Axis:
    """Share of the aims that a cost exceeds: growth is what the other cost falls by at an aim."""

    def axis(cost: NDArray[np.float64]) -> NDArray[np.float64]:
        return (cost[..., None] > np.array(aims)).mean(axis=-1)

    return axis


def select(
    problem: CompressionProblem,
    predictor: AccuracyPredictor,
    candidates: NDArray[np.int64],
    count: int,
    seen: Collection[str],
    measured_ratio: NDArray[np.float64],
    measured_drop: NDArray[np.float64],
    estimated_drop: NDArray[np.float64],
    baseline_cost: float,
    aims: Sequence[float],
    energy_aims: Sequence[float] = (),
) -> NDArray[np.int64]:
    """Pick candidates by the expected growth of the dominated part of the box, one by one.

    Those that exceed the problem's limits are left out.

    A candidate's damage is uncertain by ``predictor.relative_std``, so an uncertain one may be
    expected to add more than a certain one that is predicted the same: that is what explores.
    Picks take turns between a linear and a logarithmic drop axis, so that small drops get their
    share, the drops that a user asked for, and the energies. Each pick counts as measured, as
    predicted, for those that follow.

    Args:
        problem: Prices the candidates.
        predictor: Predicts their drops.
        candidates: Canonical choices, (candidates, layers, 4); duplicates are dropped.
        count: How many to pick.
        seen: Hashes of configurations that need not be evaluated again.
        measured_ratio: Energy ratios measured so far, (measurements,).
        measured_drop: Drops measured so far in points, (measurements,).
        estimated_drop: What these are without the luck of the images, (measurements,): it is by
            this that a target is held.
        baseline_cost: What cost ratios are relative to.
        aims: Drops in points at which the least cost counts most.
        energy_aims: Energy ratios at which the least drop counts most.

    Returns:
        At most ``count`` choices, (picked, layers, 4), best first.
    """
    candidates = np.unique(candidates, axis=0)
    report = problem.cost(candidates)
    holds = problem.limits.hold(report)
    candidates, ratio = candidates[holds], problem.objective.cost(report)[holds] / baseline_cost
    outcomes = np.stack([predictor.optimistic_drop(candidates, -node) for node in _NODES], axis=1)
    middle = outcomes[:, len(_NODES) // 2]
    views: list[tuple[Axis, Axis, NDArray[np.float64]]] = [
        (plain_axis, linear_axis, measured_drop),
        (plain_axis, log_axis, measured_drop),
        (plain_axis, aim_axis(aims), estimated_drop),
    ]
    if energy_aims:
        views.append((aim_axis(energy_aims), log_axis, estimated_drop))
    fronts = [
        _Front(of_ratio(ratio), of_drop(outcomes), of_ratio(measured_ratio), of_drop(measured))
        for of_ratio, of_drop, measured in views
    ]
    open_to_pick = np.ones(len(candidates), dtype=np.bool_)
    picked: list[int] = []
    while len(picked) < count and open_to_pick.any():
        gain = fronts[len(picked) % len(fronts)].gain()
        # Where nothing promises to add, the cheapest at the smallest drop goes first.
        order = np.where(open_to_pick, gain - 1e-9 * (ratio + linear_axis(middle)), -np.inf)
        best = int(np.argmax(order))
        open_to_pick[best] = False
        if problem.space.config(candidates[best]).hash in seen:
            continue
        picked.append(best)
        for front, (of_ratio, of_drop, _) in zip(fronts, views, strict=True):
            front.add(of_ratio(ratio[best : best + 1]), of_drop(middle[best : best + 1]))
    return candidates[picked]


class _Front:
    """Expected growth of the part of the unit box that points dominate, for many candidates.

    Args:
        ratio: Energy ratios of the candidates, (candidates,).
        drop: Possible drops of each on an axis from 0 to 1, (candidates, nodes).
        measured_ratio, measured_drop: What is known, (measurements,).
    """

    def __init__(
        self,
        ratio: NDArray[np.float64],
        drop: NDArray[np.float64],
        measured_ratio: NDArray[np.float64],
        measured_drop: NDArray[np.float64],
    ) -> None:
        self._ratio = ratio
        self._drop = drop
        self._points = np.empty((0, 2))
        self.add(measured_ratio, measured_drop)

    def add(self, ratio: NDArray[np.float64], drop: NDArray[np.float64]) -> None:
        """Count these points as measured."""
        points = np.concatenate([self._points, np.stack([drop, ratio], axis=1)])
        self._points = points[pareto_front(points[:, 0], points[:, 1])]

    def gain(self) -> NDArray[np.float64]:
        """Expected growth of the dominated part, (candidates,)."""
        # The front is a staircase over the drop axis: from edge to edge it has one height.
        edges = np.concatenate([[0.0], np.minimum(self._points[:, 0], 1.0), [1.0]])
        heights = np.concatenate([[WORST_RATIO], np.minimum(self._points[:, 1], WORST_RATIO)])
        left = np.maximum(edges[:-1], self._drop[..., None])
        widths = np.clip(edges[1:] - left, 0.0, None)
        rises = np.clip(heights - self._ratio[:, None], 0.0, None)
        return np.einsum("cns,cs,n->c", widths, rises, _NODE_WEIGHTS)


def propose_random(
    problem: CompressionProblem, count: int, seen: Collection[str], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Uniformly random choices that were not evaluated yet, at most ``count``."""
    taken = set(seen)
    picked: list[NDArray[np.int64]] = []
    for choice in problem.space.sample(rng, 4 * count):
        config_hash = problem.space.config(choice).hash
        if config_hash not in taken and len(picked) < count:
            taken.add(config_hash)
            picked.append(choice)
    shape = (0, len(problem.space.layers), 4)
    return np.stack(picked) if picked else np.empty(shape, dtype=np.int64)
