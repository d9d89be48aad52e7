"""Plain allocation: for every layer the option that costs least at a price for damage.

With damage that adds up over layers, the configurations of least ``cost + price * damage`` are
the convex hull of the predicted front (Shoham and Gersho, IEEE ASSP 36(9), 1988). Energy is not
quite a sum over layers: a map is written at the width of its widest reader, and a removed channel
is gone from all layers that read it. So layers are decided in turn, each by what the whole network
then costs, until nothing changes any more.

Limits of other costs have prices, too (Everett, Operations Research 11(3), 1963): the share of a
limit that a configuration takes counts at its price, and the price is found at which it just holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.predictor import LayerDamage
from envs.prices import LayerPrices
from envs.problem import CompressionProblem
from envs.space import ACTIVATION_BITS
from envs.space import METHOD
from envs.space import SPARSITY
from envs.space import WEIGHT_BITS

MOST_SWEEPS = 12
"""Sweeps over the layers after which a descent ends, settled or not; most take five."""
_LEAST_GAIN = 1e-9
"""Improvements below this are rounding errors."""
_FIRST_LIMIT_PRICE = 0.1
"""Of all of a limit, in units of the baseline's cost: the first that is tried."""
_LIMIT_PRICE_STEP = 4.0
"""By how much prices of limits change at once before they are known from both sides."""


@dataclass(frozen=True)
class _Descent:
    """Configurations on their way down, changed in place.

    Attributes:
        damage: Of every option.
        prices: Of damage, one for each configuration, (candidates,).
        limit_prices: Of all of each of the problem's limits, in units of the baseline's cost,
            (candidates, limits).
        choices: Where they are, (candidates, layers, 4).
        objective: ``cost / baseline + price * damage`` there, and what is taken of the limits
            at their prices, (candidates,).
    """

    damage: LayerDamage
    prices: NDArray[np.float64]
    limit_prices: NDArray[np.float64]
    choices: NDArray[np.int64]
    objective: NDArray[np.float64]


class Allocator:
    """Minimizes ``cost / baseline + price * damage`` over whole configurations.

    Args:
        problem: What may be decided and how it is priced.
        baseline_cost: What costs are relative to.
    """

    def __init__(self, problem: CompressionProblem, baseline_cost: float) -> None:
        space = problem.space
        self._problem = problem
        self._baseline_cost = baseline_cost
        self._prices = LayerPrices(problem)
        self._is_filter = np.array([method.granularity == "filter" for method in space.methods])
        self._free = [i for i, name in enumerate(space.layers) if name not in space.pinned]
        self._shared_readers = _shared_readers(problem, self._free)

    def front(
        self,
        damage: LayerDamage,
        prices: NDArray[np.float64],
        choices: NDArray[np.int64],
        limit_prices: NDArray[np.float64] | None = None,
    ) -> NDArray[np.int64]:
        """One configuration for every price.

        Args:
            damage: Of every option of every layer.
            prices: Of a unit of damage, in units of the baseline's cost, (prices,).
            choices: Where the descents begin, canonical, (prices, layers, 4).
            limit_prices: Of all of each of the problem's limits, in the same units,
                (prices, limits); nothing if None.

        Returns:
            Canonical choices, (prices, layers, 4).
        """
        limit_prices = self._limit_prices(limit_prices, len(prices))
        choices = self.descend(damage, prices, choices, limit_prices)
        # A descent may end where its neighbour found a way on: go on from the best at each price.
        ratio, usage = self._costs(choices)
        objective = ratio + prices[:, None] * damage.total(choices) + limit_prices @ usage.T
        return self.descend(damage, prices, choices[objective.argmin(axis=1)], limit_prices)

    def front_within_limits(
        self,
        damage: LayerDamage,
        prices: NDArray[np.float64],
        choices: NDArray[np.int64],
        limit_prices: NDArray[np.float64],
        trials: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As :meth:`front`, with the prices at which limits just hold.

        Args:
            damage: Of every option of every layer.
            prices: Of a unit of damage, (prices,).
            choices: Where the descents begin, canonical, (prices, layers, 4).
            limit_prices: The first that are tried, (prices, limits).
            trials: How many are tried at most.

        Returns:
            The best choices that hold all limits, or the last ones where none were found, and the
            prices of limits that led there.
        """
        found, at_prices, least = choices, limit_prices, np.full(len(prices), np.inf)
        too_low, high_enough = np.zeros_like(limit_prices), np.full_like(limit_prices, np.inf)
        for _ in range(trials):
            choices = self.front(damage, prices, choices, limit_prices)
            ratio, usage = self._costs(choices)
            exceeds = usage > 1
            holds = ~exceeds.any(axis=1)
            objective = np.where(holds, ratio + prices * damage.total(choices), np.inf)
            better = (objective < least) | np.isinf(least)
            found = np.where(better[:, None, None], choices, found)
            at_prices = np.where(better[:, None], limit_prices, at_prices)
            least = np.minimum(least, objective)
            too_low = np.where(exceeds, limit_prices, too_low)
            high_enough = np.where(exceeds, high_enough, limit_prices)
            before, limit_prices = limit_prices, _between(too_low, high_enough)
            if np.array_equal(before, limit_prices):  # as where nothing is limited
                break
        return found, at_prices

    def descend(
        self,
        damage: LayerDamage,
        prices: NDArray[np.float64],
        choices: NDArray[np.int64],
        limit_prices: NDArray[np.float64] | None = None,
        sweeps: int = MOST_SWEEPS,
    ) -> NDArray[np.int64]:
        """Improve choices, each at its prices, till no move helps.

        Args:
            damage: Of every option of every layer.
            prices: Of a unit of damage, (prices,).
            choices: Canonical, (prices, layers, 4).
            limit_prices: See :meth:`front`.
            sweeps: Over the layers, at most.
        """
        limit_prices = self._limit_prices(limit_prices, len(prices))
        ratio, usage = self._costs(choices)
        objective = ratio + prices * damage.total(choices) + (limit_prices * usage).sum(axis=1)
        descent = _Descent(damage, prices, limit_prices, choices.copy(), objective)
        active = np.arange(len(choices))
        for _ in range(sweeps):
            if not len(active):
                break
            before = descent.objective[active]
            for layer in self._free:
                self._take_best(descent, active, self._layer_moves(descent, active, layer))
            for readers in self._shared_readers:
                self._take_best(descent, active, self._width_moves(descent, active, readers))
            active = active[descent.objective[active] < before - _LEAST_GAIN]
        return descent.choices

    def _limit_prices(
        self, limit_prices: NDArray[np.float64] | None, count: int
    ) -> NDArray[np.float64]:
        free = np.zeros((count, len(self._problem.limits.given)))
        return free if limit_prices is None else limit_prices

    def _costs(self, choices: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Costs over the baseline's, (candidates,), and shares of limits, (candidates, limits)."""
        report = self._problem.cost(choices)
        ratio = self._problem.objective.cost(report) / self._baseline_cost
        return ratio, self._problem.limits.usage(report)

    def _take_best(
        self, descent: _Descent, active: NDArray[np.intp], moves: NDArray[np.int64]
    ) -> None:
        """Take the best move of each active configuration where it improves.

        Args:
            descent: The configurations.
            active: Those that may move, (active,).
            moves: Where each may go, (active, moves, layers, 4).
        """
        moves = self._problem.space.canonical(moves)
        flat = moves.reshape(-1, *moves.shape[2:])
        ratio, usage = self._costs(flat)
        damage = descent.damage.total(flat).reshape(moves.shape[:2])
        value = ratio.reshape(moves.shape[:2]) + descent.prices[active, None] * damage
        usage = usage.reshape(*moves.shape[:2], -1)
        value += np.einsum("aml,al->am", usage, descent.limit_prices[active])
        best = value.argmin(axis=1)
        lowest = value[np.arange(len(active)), best]
        moving = np.flatnonzero(lowest < descent.objective[active] - _LEAST_GAIN)
        descent.choices[active[moving]] = moves[moving, best[moving]]
        descent.objective[active[moving]] = lowest[moving]

    def _layer_moves(
        self, descent: _Descent, active: NDArray[np.intp], layer: int
    ) -> NDArray[np.int64]:
        """For every activation width the best weights; at a group's first layer all removals.

        Removals keep the widths, or take the best one of the weights.
        """
        choices = descent.choices[active]
        value = self._values(descent, active, layer)
        options = [self._weight_options(value, choices[:, layer])]
        space = self._problem.space
        if space.leader(layer) == layer:
            removals = np.argwhere(np.repeat(self._is_filter[:, None], space.sizes[SPARSITY], 1))
            removals = np.concatenate([[[0, 0]], removals])  # and the way back
            option = np.repeat(choices[:, None, layer], len(removals), axis=1)
            option[..., :2] = removals
            options.append(option)
            methods, sparsities = removals.T
            inputs = option[:, :1, ACTIVATION_BITS]
            candidate = np.arange(len(active))[:, None]
            of_widths = value[candidate, methods, sparsities, :, inputs]
            rounded = option.copy()
            rounded[..., WEIGHT_BITS] = of_widths.argmin(axis=-1)
            options.append(rounded)
        merged = np.concatenate(options, axis=1)
        moves = np.repeat(choices[:, None], merged.shape[1], axis=1)
        moves[:, :, layer] = merged
        return moves

    def _values(
        self, descent: _Descent, active: NDArray[np.intp], layer: int
    ) -> NDArray[np.float64]:
        """What the options of a layer cost by its own price, (active, M, S, W, A).

        Damage of the weights is in it, that of the input is not.
        """
        choices = descent.choices[active]
        cost, usage = self._prices.option_costs(layer, choices)
        spent = cost / self._baseline_cost
        spent += np.einsum("aol,al->ao", usage, descent.limit_prices[active])
        damage = descent.damage.weight[layer][..., None]
        price = descent.prices[active, None, None, None, None]
        return spent.reshape(-1, *self._problem.space.sizes) + price * damage

    def _weight_options(
        self, value: NDArray[np.float64], here: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """For every activation width the weights that cost least by the layer's own price.

        Args:
            value: See :meth:`_values`.
            here: What the layer does now, (active, 4).

        Returns:
            Options of the layer that leave its channels as they are, (active, widths, 4).
        """
        space, value = self._problem.space, value.copy()
        # What removing channels is worth, other layers tell: who removes some goes on doing so.
        removes = self._is_filter[here[:, METHOD]]
        allowed = np.zeros(value.shape[:3], dtype=np.bool_)
        allowed[np.ix_(~removes, ~self._is_filter)] = True
        allowed[removes, here[removes, METHOD], here[removes, SPARSITY]] = True
        value[~allowed] = np.inf
        best = value.reshape(len(here), -1, space.sizes[ACTIVATION_BITS]).argmin(axis=1)
        widths = np.broadcast_to(np.arange(best.shape[1]), best.shape)
        return np.stack([*np.unravel_index(best, tuple(space.sizes[:3])), widths], axis=-1)

    def _width_moves(
        self, descent: _Descent, active: NDArray[np.intp], readers: tuple[int, ...]
    ) -> NDArray[np.int64]:
        """All that ask for a map's width to at most, and to at least, each width."""
        widths = np.arange(self._problem.space.sizes[ACTIVATION_BITS])[:, None]
        moves = np.repeat(descent.choices[active][:, None], 2 * len(widths), axis=1)
        now = moves[:, : len(widths), readers, ACTIVATION_BITS]
        moves[:, : len(widths), readers, ACTIVATION_BITS] = np.minimum(now, widths)
        moves[:, len(widths) :, readers, ACTIVATION_BITS] = np.maximum(now, widths)
        return moves


def _between(too_low: NDArray[np.float64], high_enough: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prices of limits to try next, where 0 is too low and infinity high enough for sure."""
    up = np.maximum(_LIMIT_PRICE_STEP * too_low, _FIRST_LIMIT_PRICE)
    down = np.where(high_enough > _FIRST_LIMIT_PRICE / 64, high_enough / _LIMIT_PRICE_STEP, 0.0)
    both = np.sqrt(too_low * np.where(np.isinf(high_enough), 0.0, high_enough))
    return np.where(np.isinf(high_enough), up, np.where(too_low == 0, down, both))


def _shared_readers(problem: CompressionProblem, free: list[int]) -> list[tuple[int, ...]]:
    """Layers that ask for one map's width, where several do: it is narrower only if all are."""
    asking = (set(layers) & set(free) for layers in problem.workload.width_asked_by)
    return sorted({tuple(sorted(layers)) for layers in asking if len(layers) > 1})
