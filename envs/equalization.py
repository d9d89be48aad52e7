"""Equalization: every channel of a layer's input is divided by a power of two before it is rounded.

A grid spans the widest channel, so on few bits the narrow ones round to next to nothing. Dividing a
channel by f and multiplying the weights that read it with f changes nothing in exact arithmetic,
and with powers of two nothing in floating point either. On an accelerator f is a part of the factor
by which the channel is rescaled when the map is written. The larger the power of the channels'
sizes that f is, the more of the trouble goes to the weights, which have a scale for each output
channel but none for an input channel (Nagel et al., Data-Free Quantization, 2019, section 4.1; Xiao
et al., SmoothQuant, 2023, equation 4). Which power is best, if any, is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from envs.calibration import calibrate_activation
from envs.quantization import ChannelExponents
from envs.quantization import quantize_activation
from envs.quantization import round_weights
from envs.reconstruction import output_error
from envs.scales import weight_scales
from envs.statistics import LayerStatistics
from envs.statistics import divided
from envs.statistics import divided_moment
from envs.trace import TracedLayer
from envs.trace import TracedNetwork

aten = torch.ops.aten

_RESHAPING = (aten.view.default, aten.reshape.default, aten.flatten.using_ints)
"""Behind these, features are not the channels that were written."""
_POWERS = (0.5, 1.0)
"""Of the channels' sizes."""
_LEAST_EXPONENT = -6
_BITS = 4
"""Width of weights and inputs that powers are compared at."""


def equalize(
    network: TracedNetwork, statistics: Sequence[LayerStatistics]
) -> tuple[LayerStatistics, ...]:
    """Statistics with those of the equalized inputs, where equalization helps.

    All layers that read a map read it divided by the same factors.
    """
    nodes = {node.name: node for node in network.graph_module.graph.nodes}
    readers: dict[int, list[int]] = {}
    for index, first in enumerate(network.same_input):
        if _source(nodes[network.layers[index].node]).target not in _RESHAPING:
            readers.setdefault(first, []).append(index)
    found = list(statistics)
    for indices in readers.values():
        layers = [(network.layers[index], statistics[index]) for index in indices]
        by = _best(layers)
        if by is not None:
            for index, (layer, plain) in zip(indices, layers, strict=True):
                found[index] = replace(plain, equalized=divided(layer, plain, by))
    return tuple(found)


def _best(layers: Sequence[tuple[TracedLayer, LayerStatistics]]) -> ChannelExponents | None:
    """What the map that these layers read is best divided by; None for nothing."""
    first, statistics = layers[0]
    zeros = (0,) * len(statistics.extremes[0])
    candidates = {zeros, *(channel_exponents(statistics, power) for power in _POWERS)}

    def lost(exponents: tuple[int, ...]) -> float:
        by = ChannelExponents(exponents, first.channel_axis)
        return sum(_rounding_error(*layer, by) for layer in layers)

    best = min(sorted(candidates, reverse=True), key=lost)
    return ChannelExponents(best, first.channel_axis) if any(best) else None


def channel_exponents(statistics: LayerStatistics, power: float) -> tuple[int, ...]:
    """Exponent of the power of two nearest to a power of each channel's relative size.

    The size is the root mean square of the sample; a channel of zeros is left alone.
    """
    channels = statistics.sample_channels.long()
    count = statistics.extremes.shape[1]
    squares = torch.zeros(count).index_add_(0, channels, statistics.sample.square())
    mean = squares / channels.bincount(minlength=count).clamp_min(1)
    lives = mean > 0
    if not bool(lives.any()):
        return (0,) * count
    exponents = power / 2 * torch.where(lives, mean / mean.max(), 1.0).log2()
    return tuple(exponents.round().clamp(_LEAST_EXPONENT, 0).int().tolist())


def _rounding_error(layer: TracedLayer, statistics: LayerStatistics, by: ChannelExponents) -> float:
    """Squared error of a layer's output over its size, by rounding its weights and its input."""
    layer = equalized_layer(layer, by)
    factors = by.factors
    channels = statistics.sample_channels.long()
    sample = statistics.sample * factors[channels]
    moment = divided_moment(layer, statistics, by)
    scale, _ = weight_scales(layer.rows, _BITS)
    change = round_weights(layer.rows, scale, _BITS) - layer.rows
    of_weights = float(output_error(change[None], moment, layer.rows)[0])
    off = quantize_activation(sample, calibrate_activation(sample, _BITS)) - sample
    count = torch.bincount(channels, minlength=len(factors)).clamp_min(1)
    noise = torch.zeros(len(factors)).index_add_(0, channels, off.square()) / count
    energy = layer.rows.square().sum(dim=1).unflatten(1, (layer.weight.shape[1], -1)).sum(dim=2)
    size = torch.einsum("grc,gcd,grd->", layer.rows, moment, layer.rows)
    of_input = float((energy.flatten() * noise).sum() / size) if size > 0 else 0.0
    return of_weights + of_input


def equalized_layer(layer: TracedLayer, by: ChannelExponents) -> TracedLayer:
    """The layer with the weights that it needs for a divided input."""
    groups, shape = layer.shape.groups, layer.weight.shape
    factors = (1 / by.factors).view(groups, 1, -1).expand(groups, shape[0] // groups, shape[1])
    weight = layer.weight * factors.reshape(*shape[:2], *[1] * (layer.weight.ndim - 2))
    return replace(layer, weight=weight)


def _source(node: fx.Node) -> fx.Node:
    """What a layer's node reads, before it is rounded."""
    source = node.all_input_nodes[0]
    while source.op == "call_module":
        source = source.all_input_nodes[0]
    return source
