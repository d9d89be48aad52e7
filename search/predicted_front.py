"""What allocation would do, at every price of damage: the front that the predictor foretells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.episode import start_choice
from envs.predictor import LayerDamage
from envs.problem import CompressionProblem
from search.allocation import Allocator
from search.measurements import Measurements
from search.measurements import Reference

DAMAGE_PRICES = (0.3, 300.0)
"""Range of the prices of damage at which allocations are made: costs from that of some ten
points lost to that of a tenth of a point."""
FRONT_PRICES = 48
"""Prices at which the predicted front is computed."""
POSTERIOR_DRAWS = 3
"""Damage tables drawn for each batch of refined allocations."""
_SPREADS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5)
"""Of the random factors that are tried in turn, in natural logarithms."""
_FIRST_TRIALS = 10
_TRIALS = 4
"""Prices of limits that are tried for the first and for every later front."""


class Front:
    """Allocations along the predicted front.

    Args:
        problem: What is decided and how it is priced.
        reference: What costs are relative to.
    """

    def __init__(self, problem: CompressionProblem, reference: Reference) -> None:
        self._allocator = Allocator(problem, reference.cost)
        self._latest = np.repeat(start_choice(problem.space)[None], FRONT_PRICES, axis=0)
        self._limit_prices = np.zeros((FRONT_PRICES, len(problem.limits.given)))
        self._trials = _FIRST_TRIALS

    def allocate(self, known: Measurements, count: int) -> NDArray[np.int64]:
        """For each of ``count`` prices the best that the predictor knows, (count, layers, 4)."""
        damage = known.predictor.layer_damage()
        repeats = count // FRONT_PRICES
        start = np.repeat(self._latest, repeats, axis=0)  # of the nearest price
        limit_prices = np.repeat(self._limit_prices, repeats, axis=0)
        choices, limit_prices = self._allocator.front_within_limits(
            damage, _prices(count), start, limit_prices, self._trials
        )
        if count == FRONT_PRICES:  # the next front lies near
            self._latest, self._limit_prices, self._trials = choices, limit_prices, _TRIALS
        return choices

    def candidates(self, known: Measurements, rng: np.random.Generator) -> NDArray[np.int64]:
        """The front for the expected damage and for some drawn, (candidates, layers, 4)."""
        fronts = [self.allocate(known, FRONT_PRICES)]
        for _ in range(POSTERIOR_DRAWS):
            fronts.append(self.of(known.predictor.layer_damage(rng)))
        return np.concatenate(fronts)

    def of(self, damage: LayerDamage, near: slice = slice(None)) -> NDArray[np.int64]:
        """The front for other damage than the predictor's, from the latest on, (prices, layers, 4).

        Prices of limits stay those of the latest, so what it holds may exceed limits.

        Args:
            damage: Of every option.
            near: Which of the prices.
        """
        return self._allocator.descend(
            damage, _prices(FRONT_PRICES)[near], self._latest[near], self._limit_prices[near]
        )

    def select(
        self,
        known: Measurements,
        candidates: NDArray[np.int64],
        count: int,
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """What promises most among ``candidates``, and among variations where these are too few.

        Where a cost knows few steps, the front and what is drawn give little that is new. Then it
        is allocated anew for coefficients that vary more and more.

        Args:
            known: What was measured.
            candidates: Shape (candidates, layers, 4).
            count: How many are wanted.
            rng: Draws the coefficients.

        Returns:
            At most ``count``, (choices, layers, 4).
        """
        picked = known.select(candidates, count)
        for spread in _SPREADS:
            if len(picked) == count:
                break
            candidates = np.concatenate([candidates, self._varied(known, rng, spread)])
            picked = known.select(candidates, count)
        return picked

    def _varied(
        self, known: Measurements, rng: np.random.Generator, spread: float
    ) -> NDArray[np.int64]:
        """The front for damage times random factors, apart for weights and input of every layer.

        Args:
            known: What was measured.
            rng: Draws the factors.
            spread: Standard deviation of their logarithms.

        Returns:
            Shape (candidates, layers, 4).
        """
        damage = known.predictor.layer_damage()
        factors = np.exp(spread * rng.standard_normal((2, len(damage.weight))))
        return self.of(damage.scaled(*factors))

    def refine(self, known: Measurements, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sweep once over the layers of each choice, (choices, layers, 4).

        The price of damage is the one at which the front of the latest :meth:`allocate` has the
        same predicted drop: the sweep moves toward the front, not along it.
        """
        drops = known.predictor.accuracy_drop(self._latest)  # falls while prices rise
        order = np.argsort(drops)
        reached = known.predictor.accuracy_drop(choices)
        price = np.interp(reached, drops[order], _prices(FRONT_PRICES)[order])
        nearest = order[np.searchsorted(drops[order], reached).clip(max=len(order) - 1)]
        damage, limit_prices = known.predictor.layer_damage(), self._limit_prices[nearest]
        return self._allocator.descend(damage, price, choices, limit_prices, sweeps=1)


def _prices(count: int) -> NDArray[np.float64]:
    return np.geomspace(*DAMAGE_PRICES, count)
