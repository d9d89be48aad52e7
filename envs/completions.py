"""What walks can still come to: the least that their layers not decided yet take of the limits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.prices import LayerPrices
from envs.problem import CompressionProblem
from envs.space import METHOD
from envs.space import SPARSITY
from envs.space import SearchSpace

_POINTS = 33
"""Shares of the input channels at which the cheapest options are known."""
_SAMPLE = 512
"""Random configurations that tell how far the prices of layers are above the model's."""
_SURE = 0.99
"""Share of them that must not be masked for an error of the prices."""
_ROUNDING = 1e-9
"""Sums that differ by less are the same."""


class Completions:
    """A lower bound on the limits that walks use up, by the prices of layers.

    Every layer not decided yet takes of each limit what the option that is cheapest for it takes,
    and reads as few channels as leaders not decided yet could leave. So no configuration that is
    still reachable takes less; but none may take as little, where layers share channels or the
    limits ask for different options. Prices that are above the model's, as where a map's readers
    are narrower than its layer, count for less by as much as they are off for random ones.

    Args:
        problem: With limits.
        prices: Of the same problem.

    Attributes:
        overestimate: Prices of layers over the model's, at least 1, (limits,).
    """

    def __init__(self, problem: CompressionProblem, prices: LayerPrices) -> None:
        space = problem.space
        self._table = problem.table
        self._prices = prices
        self._sparsities = len(space.sparsities)
        self._is_filter = np.array([method.granularity == "filter" for method in space.methods])
        self._leaders = np.array([space.leader(layer) for layer in range(len(space.layers))])
        self._most_removed = self._table.removed_in.max(axis=(2, 3))
        # What a layer may still do about its weights, by number: one (method, sparsity) each, then
        # anything that leaves its channels, then anything.
        self._prunings = self._is_filter.size * self._sparsities
        self._keeps_channels, self._anything = self._prunings, self._prunings + 1
        self._floors = self._cheapest(space)
        sample = space.sample(np.random.default_rng(0), _SAMPLE)
        by_layer = prices.layer_costs(sample)[1].sum(axis=1)
        overestimate = by_layer / problem.limits.usage(problem.cost(sample))
        self.overestimate = np.maximum(np.quantile(overestimate, _SURE, axis=0), 1.0)

    def option_usage(
        self,
        layer: int,
        choices: NDArray[np.int64],
        layer_usage: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """The least that whole networks take of the limits, for every option of one layer.

        Args:
            layer: Whose options. What it has decided itself does not count; those before it have
                decided, those after it have not.
            choices: Canonical, (candidates, layers, 4).
            layer_usage: Shares of the limits that their layers take, (candidates, layers, limits).

        Returns:
            (candidates, methods * sparsities, weight and activation widths, limits).
        """
        _, own = self._prices.option_costs(layer, choices)
        widths = own.shape[1] // self._prunings
        own = own.reshape(len(choices), self._prunings, widths, own.shape[-1])
        least = own + self._others(layer, choices, layer_usage)[:, :, None]
        return np.asarray(least / self.overestimate)

    def _others(
        self,
        layer: int,
        choices: NDArray[np.int64],
        layer_usage: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """What all layers but one take at least, for every way to prune that one.

        Returns:
            (candidates, methods * sparsities, limits), or 1 in the middle if it leads no others.
        """
        table = self._table
        least = layer_usage[:, :layer].sum(axis=1)
        # Pinned ones among them too: what they read may still shrink.
        later = range(layer + 1, choices.shape[1])
        kept_in = self._fewest_inputs(choices, layer)
        states = self._states(choices, layer)
        reacts = np.zeros(choices.shape[1], dtype=np.bool_)
        if self._leaders[layer] == layer:
            group = int(np.flatnonzero(table.leaders == layer)[0])
            reacts = (self._leaders == layer) | (self._most_removed[:, group] > 0)
        settled = [other for other in later if not reacts[other]]
        least += self._floor(settled, states[:, settled], kept_in[:, settled]).sum(axis=1)
        reacting = [other for other in later if reacts[other]]
        if not reacting:
            return least[:, None]
        removed = table.removed_in[reacting, group].reshape(len(reacting), -1).T
        kept_in = kept_in + self._most_removed[:, group]
        kept_in = kept_in[:, None, reacting] - removed
        follows = self._leaders[reacting] == layer
        forced = np.where(
            np.repeat(self._is_filter, self._sparsities),
            np.arange(self._prunings),
            self._keeps_channels,
        )
        states = np.where(follows, forced[:, None], states[:, None, reacting])
        return least[:, None] + self._floor(reacting, states, kept_in).sum(axis=2)

    def _fewest_inputs(self, choices: NDArray[np.int64], layer: int) -> NDArray[np.float64]:
        """Input channels where leaders from ``layer`` on remove most, (candidates, layers)."""
        leaders = self._table.leaders
        leads = choices[:, leaders]
        group = np.arange(len(leaders))
        removed = self._table.removed_in[:, group, leads[..., METHOD], leads[..., SPARSITY]]
        removed = removed.transpose(1, 0, 2)  # candidates first
        is_open = (leaders >= layer) & (self._leaders[leaders] == leaders)
        removed = np.where(is_open, self._most_removed, removed)
        return np.asarray(self._table.dense_in - removed.sum(axis=-1))

    def _states(self, choices: NDArray[np.int64], layer: int) -> NDArray[np.int64]:
        """What every layer after ``layer`` may do about its weights, (candidates, layers)."""
        pruning = choices[..., METHOD] * self._sparsities + choices[..., SPARSITY]
        follows = self._is_filter[choices[..., METHOD]]
        states = np.where(follows, pruning, self._keeps_channels)
        return np.where(self._leaders > layer, self._anything, states)

    def _floor(
        self, layers: Sequence[int], states: NDArray[np.int64], kept_in: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What layers take at least, (..., len(layers), limits).

        Args:
            layers: Which.
            states: What each may do about its weights, (..., len(layers)).
            kept_in: Input channels that each has at least, (..., len(layers)).
        """
        position = np.maximum(kept_in / self._table.dense_in[layers], 0.0) * (_POINTS - 1)
        point = np.minimum(position.astype(np.int64), _POINTS - 2)
        weight = (position - point)[..., None]
        low, high = (self._floors[layers, states, at] for at in (point, point + 1))
        return np.maximum(low + weight * (high - low), self._prices.least[layers, 1:])

    def _cheapest(self, space: SearchSpace) -> NDArray[np.float64]:
        """Shares of limits that the cheapest options take, before ``LayerPrices.least``.

        The least of straight lines is concave, so between the points the true one is not below
        the straight line that joins them.

        Returns:
            At the given share of the inputs or more, (layers, states, points, limits).
        """
        methods = np.arange(len(space.methods))[:, None]
        canonical = (methods * self._sparsities + space.nearest_sparsity).ravel()
        keeps_channels = canonical[~np.repeat(self._is_filter, self._sparsities)]
        share = np.linspace(0.0, 1.0, _POINTS)[:, None]
        fixed = space.canonical(np.zeros((len(space.layers), 4), dtype=np.int64))
        floors = []
        for layer, name in enumerate(space.layers):
            without = self._prices.without_inputs[:, None, layer, 1:]
            usage = without + self._prices.per_input_share[:, None, layer, 1:] * share
            if name in space.pinned:
                usage[:] = usage[np.ravel_multi_index(fixed[layer], space.sizes)]
            pruned = usage.reshape(self._prunings, -1, *usage.shape[1:]).min(axis=1)[canonical]
            free = [pruned[keeps_channels].min(axis=0), pruned.min(axis=0)]
            floors.append(np.concatenate([pruned, np.stack(free)]))
        # Where fewer inputs cost more, it is those that are certain to be left that bound.
        return np.minimum.accumulate(np.stack(floors)[:, :, ::-1], axis=2)[:, :, ::-1]


def least_excessive(over: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Actions that hold the limits or, where none does, exceed them least.

    Args:
        over: How far actions exceed the limits, see :func:`envs.limits.excess`, (candidates, ...).

    Returns:
        Of the same shape; at least one is True for every candidate.
    """
    least = over.min(axis=tuple(range(1, over.ndim)), keepdims=True)
    return np.asarray(over <= least + _ROUNDING)
