"""Costs of unfinished configurations, looked up by layer instead of run through the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.problem import CompressionProblem
from hwmodel import LayerStates
from hwmodel import cost

LEAST_FRACTION = 0.01
"""Of a layer's dense cost: the least that the interpolation over input channels may give."""


class LayerPrices:
    """Cost of every option of every layer, and its shares of the problem's limits, priced once.

    The cost is that by the problem's objective.

    A price depends on the layer's own option and, linearly between two priced points (all input
    channels and half of them), on the input channels left. What it leaves out is the width at
    which a layer's readers ask for its output, which is taken to be the layer's own, as is that at
    which its input was written, and that the input channels left are denser than all. That is near
    enough to guide a walk through the layers; whole configurations are priced by
    ``CompressionProblem.cost``.

    Args:
        problem: What is priced.

    Attributes:
        without_inputs: Price of every option where no input channel is left, the cost first and
            then the shares of the limits, (options, layers, 1 + limits); may be below 0.
        per_input_share: What all input channels add to it, of the same shape.
        least: What a layer costs at least, (layers, 1 + limits).
    """

    def __init__(self, problem: CompressionProblem) -> None:
        self._table = problem.table
        sizes = problem.space.sizes
        self._strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1)
        options = np.stack(np.unravel_index(np.arange(sizes.prod()), tuple(sizes)), axis=-1)
        layers = len(problem.workload)
        self._row = np.arange(layers)
        everywhere = np.broadcast_to(options[:, None, :], (len(options), layers, 4))
        # Its own density: which input channels are left is not its option's.
        density = problem.table.weight_density[(self._row, *np.moveaxis(everywhere, -1, 0)[:3])]
        states = replace(problem.states(everywhere), weight_density=density)
        full, half = (_price(problem, states, fraction) for fraction in (1.0, 0.5))
        self.without_inputs = 2.0 * half - full
        self.per_input_share = 2.0 * (full - half)
        self.least = LEAST_FRACTION * full.max(axis=0)

    def layer_cost(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Cost of canonical choices (candidates, layers, 4), (candidates, layers)."""
        return self.layer_costs(choices)[0]

    def layer_costs(
        self, choices: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As :meth:`layer_cost`, and shares of the limits, (candidates, layers, limits)."""
        option = choices @ self._strides
        kept_in, _ = self._table.channels(choices)
        fraction = (kept_in / self._table.dense_in)[..., None]
        price = self.without_inputs[option, self._row]
        price += self.per_input_share[option, self._row] * fraction
        price = np.maximum(price, self.least)
        return price[..., 0], price[..., 1:]

    def option_costs(
        self, layer: int, choices: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Costs of all options of one layer, with the input channels that choices leave.

        Args:
            layer: The layer.
            choices: Canonical, (candidates, layers, 4).

        Returns:
            Cost, (candidates, options), and shares of the limits, (candidates, options, limits);
            options in the order of the columns of a choice.
        """
        kept_in, _ = self._table.channels(choices)
        fraction = (kept_in[:, layer] / self._table.dense_in[layer])[:, None, None]
        price = self.without_inputs[:, layer] + self.per_input_share[:, layer] * fraction
        price = np.maximum(price, self.least[layer])
        return price[..., 0], price[..., 1:]


def _price(
    problem: CompressionProblem, states: LayerStates, fraction: float
) -> NDArray[np.float64]:
    """Cost and shares of limits, (options, layers, 1 + limits), of a share of the inputs.

    Args:
        problem: What is priced.
        states: Of every option, taken by all layers.
        fraction: Of the dense input channels that are left everywhere.
    """
    in_channels = np.broadcast_to(problem.table.dense_in * fraction, states.in_channels.shape)
    layers = problem.workload.layers
    depthwise = np.array([layer.is_depthwise for layer in layers])
    outputs_each = np.array([layer.out_channels / layer.in_channels for layer in layers])
    # A depthwise layer's inputs go with its outputs, so its price follows from its own option.
    in_channels = np.where(depthwise, states.out_channels / outputs_each, in_channels)
    states = replace(states, in_channels=in_channels)
    report = cost(problem.workload, states, problem.accelerator, level=problem.level)
    layer_cost = problem.objective.layer_cost(report)[..., None]
    return np.concatenate([layer_cost, problem.limits.layer_usage(report)], axis=-1)
