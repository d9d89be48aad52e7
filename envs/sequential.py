"""Repair layer after layer, each for the inputs that the compressed layers before it give.

Both repairs align every layer: gain and bias of each output channel are those of the regression of
the dense network's outputs on the compressed one's. Restoring the means alone (the bias correction
of Nagel et al., Data-Free Quantization, 2019, section 4.2) can do harm: the noise of compression
adds to the variance, layer after layer, and a channel that is mostly noise should count for less.
The gain goes into the scale of the channel's grid, so it costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import fx

from envs.least_squares import DAMPING
from envs.quantization import ActivationRange
from envs.quantization import power_of_two_near
from envs.quantization import quantize_activation
from envs.quantization import round_map
from envs.quantizer import Quantizer
from envs.reconstruction import reconstruct_masked
from envs.statistics import outputs_at
from envs.statistics import patches_at
from envs.statistics import sample_positions
from envs.statistics import usual_positions
from envs.trace import TracedLayer
from envs.trace import TracedNetwork

CompressLayer = Callable[[int, Tensor, Tensor], Tensor]
"""Told a layer's index, target weights (groups, rows, columns) in place of its own, and covariance
of its inputs (groups, columns, columns); returns its folded weight after compression."""

_SEED = 0
_WORKING_BYTES = 1 << 29
"""Room for one feature map of all images, and for what is kept of the dense outputs."""
_FEWEST_IMAGES = 32
_MOST_IMAGES = 1024
_MOST_ALIGNMENT_IMAGES = 128
_FEWEST_ALIGNMENT_IMAGES = 16
_GAINS = (0.25, 4.0)
"""Range of the gains; outside there are too few samples, or nothing is left of a channel."""
_IMAGES_AT_ONCE = 64
_USUAL_IMAGES = 1000
"""With fewer, more positions of each image are looked at."""


@dataclass(frozen=True)
class DenseSample:
    """What a dense layer writes at some places.

    Attributes:
        positions: Output positions looked at in each part of the images, (parts, positions).
        outputs: Shape (groups, images * positions, rows).
    """

    positions: Tensor
    outputs: Tensor

    def patches(self, layer: TracedLayer, inputs: Tensor) -> Tensor:
        """Columns of the unfolded inputs at the same places, (groups, places, columns)."""
        return _at_places(patches_at, layer, inputs, self.positions)

    def of(self, layer: TracedLayer, outputs: Tensor) -> Tensor:
        """Other outputs of the layer at the same places, shape of ``outputs``."""
        return _at_places(outputs_at, layer, outputs, self.positions)


def sample_dense(network: TracedNetwork, batches: Sequence[Tensor]) -> list[DenseSample]:
    """What the dense layers write for the images that :func:`compress_in_sequence` uses."""
    images = _images(network, batches, _MOST_IMAGES)
    budgets = _position_budgets(network, len(images))
    found: list[DenseSample] = []

    def step(index: int, run: RunLayer, inputs: Tensor) -> Tensor:
        layer = network.layers[index]
        generator = torch.Generator().manual_seed(_SEED)
        parts = inputs.split(_IMAGES_AT_ONCE)
        most = budgets[index]
        positions = torch.stack([sample_positions(layer, x, generator, most) for x in parts])
        outputs = run(inputs, layer.folded_weight, layer.bias)
        found.append(DenseSample(positions, _at_places(outputs_at, layer, outputs, positions)))
        return outputs

    walk_layers(network, images, step)
    return found


def _at_places(
    gather: Callable[[TracedLayer, Tensor, Tensor], Tensor],
    layer: TracedLayer,
    x: Tensor,
    positions: Tensor,
) -> Tensor:
    """What ``gather`` finds in each part of the images at its own positions, end to end."""
    parts = zip(x.split(_IMAGES_AT_ONCE), positions, strict=True)
    return torch.cat([gather(layer, part, chosen) for part, chosen in parts], dim=1)


def _position_budgets(network: TracedNetwork, images: int) -> list[int]:
    """Output positions to look at in each image: enough for each layer's columns, if they fit."""
    scarcity = -(-_USUAL_IMAGES // images)
    wanted = [scarcity * usual_positions(layer) for layer in network.layers]
    shapes = [layer.shape for layer in network.layers]
    values = sum(
        shape.batch * shape.out_channels * min(positions, shape.out_height * shape.out_width)
        for positions, shape in zip(wanted, shapes, strict=True)
    )
    share = min(1.0, _WORKING_BYTES / (4 * values * images))
    return [max(1, int(share * positions)) for positions in wanted]


def compress_in_sequence(
    network: TracedNetwork,
    layers: Sequence[TracedLayer],
    batches: Sequence[Tensor],
    input_ranges: Sequence[ActivationRange],
    map_ranges: Sequence[ActivationRange],
    kept_out: Sequence[Tensor],
    compress_layer: CompressLayer,
    dense: Sequence[DenseSample],
    quantizers: Sequence[Quantizer],
) -> list[Alignment]:
    """Walk through a network with the feature maps that its compressed layers give.

    Every layer is fitted to what it really reads: inputs that compressed layers computed and that
    are rounded already. Its target is the least-squares solution for the dense layer's outputs
    from those inputs, drawn towards the trained weights by the damping (the asymmetric calibration
    of Li et al., GPTAQ, 2025), which makes up for earlier layers and for the rounding of its own
    input. The bias then restores the mean of every output channel.

    Args:
        network: Traced network; its own weights do not matter.
        layers: Its layers with the weights for what they read, equalized or not.
        batches: Calibration images, (images, ...); as many of them are used as fit the memory.
        input_ranges: Grid of every layer's input.
        map_ranges: Grid of every stored map.
        kept_out: Output channels of every layer that stay, bool, (out_channels,).
        compress_layer: Compresses one layer.
        dense: Outputs of the dense layers, see :func:`sample_dense`.
        quantizers: What every layer's scales may be.

    Returns:
        Gain and bias of every layer's output channels; the gains are for the weights that
        ``compress_layer`` returned.
    """
    found: list[Alignment] = []

    def step(index: int, run: RunLayer, inputs: Tensor) -> Tensor:
        layer, places = layers[index], dense[index]
        inputs = quantize_activation(inputs, input_ranges[index])
        weight = compress_layer(index, *_fit(layer, places, inputs))
        reached = run(inputs, weight, layer.bias)
        wanted, seen = (
            x.movedim(0, 1).flatten(1) for x in (places.outputs, places.of(layer, reached))
        )
        alignment = _alignment(wanted, seen, 1, layer.bias, kept_out[index], quantizers[index])
        found.append(alignment)
        return _aligned(layer, reached, alignment, kept_out[index])

    walk_layers(network, _images(network, batches, _MOST_IMAGES), step, map_ranges)
    return found


@dataclass(frozen=True)
class Alignment:
    """What the output channels of a layer are multiplied by, and their new bias.

    Attributes:
        gain: Shape (out_channels,), > 0.
        shift: What is added behind the gain to outputs that have the old bias, (out_channels,).
        bias: Shape (out_channels,); gain and shift are in it.
    """

    gain: Tensor
    shift: Tensor
    bias: Tensor


def align_layers(
    network: TracedNetwork,
    batches: Sequence[Tensor],
    input_ranges: Sequence[ActivationRange],
    map_ranges: Sequence[ActivationRange],
    kept_out: Sequence[Tensor],
    layers: Sequence[tuple[Tensor, Tensor]],
    wanted: Sequence[Tensor],
    quantizers: Sequence[Quantizer],
) -> list[Alignment]:
    """Gains and biases that bring every layer's output closest to the dense one.

    Args:
        network: Traced network; its own weights do not matter.
        batches: Calibration images, (images, ...); the first few of them are used.
        input_ranges: Grid of every layer's input.
        map_ranges: Grid of every stored map.
        kept_out: Output channels of every layer that stay, bool, (out_channels,).
        layers: Compressed weight and bias of every layer.
        wanted: Outputs of the dense layers, see :func:`dense_outputs`.
        quantizers: What every layer's scales may be.
    """
    found: list[Alignment] = []

    def step(index: int, run: RunLayer, inputs: Tensor) -> Tensor:
        layer, kept = network.layers[index], kept_out[index]
        weight, bias = layers[index]
        reached = run(quantize_activation(inputs, input_ranges[index]), weight, bias)
        axis = layer.channel_axis % reached.ndim
        alignment = _alignment(wanted[index], reached, axis, bias, kept, quantizers[index])
        found.append(alignment)
        return _aligned(layer, reached, alignment, kept)

    walk_layers(network, _alignment_images(network, batches), step, map_ranges)
    return found


def dense_outputs(network: TracedNetwork, batches: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of every dense layer for the images that :func:`align_layers` uses."""
    found: list[Tensor] = []

    def step(index: int, run: RunLayer, inputs: Tensor) -> Tensor:
        layer = network.layers[index]
        outputs = run(inputs, layer.folded_weight, layer.bias)
        found.append(outputs.clone())  # what follows may work in place
        return outputs

    walk_layers(network, _alignment_images(network, batches), step)
    return found


def _alignment(
    wanted: Tensor, seen: Tensor, axis: int, bias: Tensor, kept: Tensor, quantizer: Quantizer
) -> Alignment:
    """Regression of the dense outputs on those of the compressed network, channel by channel.

    Args:
        wanted: Outputs of the dense layer.
        seen: Outputs of the compressed one at the same places; shape of ``wanted``.
        axis: Where their channels are.
        bias: Bias in ``seen``, (out_channels,).
        kept: Output channels that stay, bool, (out_channels,).
        quantizer: What the scales that take up the gains may be.
    """
    others = [dimension for dimension in range(seen.ndim) if dimension != axis]
    mean_wanted, mean_seen = (x.mean(dim=others, keepdim=True) for x in (wanted, seen))
    centered = seen - mean_seen
    power = centered.square().mean(dim=others)
    shared = centered.mul_(wanted - mean_wanted).mean(dim=others)
    # A channel that does not vary has no slope; what its sums vary by is rounding.
    lives = power > 1e-9 * mean_seen.flatten().square() + torch.finfo(power.dtype).tiny
    if quantizer.weight_granularity == "tensor":  # one scale, so one gain
        counts = lives & kept.to(lives.device)
        shared, power = ((x * counts).sum().expand_as(x) for x in (shared, power))
        lives = counts.any().expand_as(lives)
    gain = torch.where(lives, shared / power, 1.0).clamp(*_GAINS)
    if quantizer.power_of_two:
        gain = power_of_two_near(gain)
    gain, shift = gain.cpu(), (mean_wanted.flatten() - gain * mean_seen.flatten()).cpu()
    return Alignment(gain, shift, (gain * bias + shift) * kept)


def _aligned(layer: TracedLayer, outputs: Tensor, alignment: Alignment, kept: Tensor) -> Tensor:
    """Outputs with an alignment, in place; zero in channels that are gone."""
    shape = [1] * outputs.ndim
    shape[layer.channel_axis] = -1
    gain, shift = ((x * kept).to(outputs).view(shape) for x in (alignment.gain, alignment.shift))
    return outputs.mul_(gain).add_(shift)


RunLayer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A layer's operation on (inputs, weight, bias)."""

Step = Callable[[int, RunLayer, Tensor], Tensor]
"""Told a layer's index, its operation and its inputs; returns its outputs."""


def walk_layers(
    network: TracedNetwork,
    images: Tensor,
    step: Step,
    map_ranges: Sequence[ActivationRange] | None = None,
) -> None:
    """Execute a graph.

    Args:
        network: Traced network.
        images: Inputs of the network.
        step: Computes the layers, in execution order; all else is computed as it is.
        map_ranges: Grid that every stored map is rounded to; as they are if None.
    """
    grids = {f"map_{number}": grid for number, grid in enumerate(map_ranges or ())}
    index_of = {layer.node: index for index, layer in enumerate(network.layers)}
    nodes = list(network.graph_module.graph.nodes)
    last_reader = {item: node for node in nodes for item in node.all_input_nodes}
    values: dict[fx.Node, Any] = {}
    with torch.inference_mode():
        for node in nodes:
            target: Any = node.target
            if node.op == "placeholder":
                values[node] = images
            elif node.op == "get_attr":
                value: Any = network.graph_module
                for part in target.split("."):
                    value = getattr(value, part)
                values[node] = value
            elif node.op == "call_module":  # a layer's input is rounded by the layer's step
                grid = grids.get(target)
                source = values[node.all_input_nodes[0]]
                values[node] = source if grid is None else round_map(source, grid)
            elif node.name in index_of:
                source = values[node.all_input_nodes[0]]
                values[node] = step(index_of[node.name], _operation(node), source)
            elif node.op == "call_function":
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = target(*args, **kwargs)
            for item in node.all_input_nodes:
                if last_reader[item] is node:
                    del values[item]


def _operation(node: fx.Node) -> RunLayer:
    target: Any = node.target

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = weight.to(x), bias.to(x)
        parts = x.split(_IMAGES_AT_ONCE)
        return torch.cat([target(part, weight, bias, *node.args[3:]) for part in parts])

    return run


def _images(network: TracedNetwork, batches: Sequence[Tensor], most: int) -> Tensor:
    """The first calibration images whose largest feature map fits the memory, on the device."""
    largest = max(layer.shape.largest_map for layer in network.layers)
    count = min(most, max(_FEWEST_IMAGES, _WORKING_BYTES // (4 * largest)))
    images = torch.cat(list(batches))[:count]
    return images.to(network.graph_module.get_parameter("weight_0").device)


def _alignment_images(network: TracedNetwork, batches: Sequence[Tensor]) -> Tensor:
    """The first calibration images, so few that the outputs of all layers fit the memory."""
    shapes = [layer.shape for layer in network.layers]
    values = sum(
        shape.batch * shape.out_channels * shape.out_height * shape.out_width for shape in shapes
    )
    most = max(_WORKING_BYTES // (4 * values), _FEWEST_ALIGNMENT_IMAGES)
    return _images(network, batches, min(most, _MOST_ALIGNMENT_IMAGES))


def _fit(layer: TracedLayer, dense: DenseSample, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that give the dense outputs from other inputs, and the covariance of those inputs.

    Weights that are 0 stay 0.

    Returns:
        Shapes (groups, rows, columns) and (groups, columns, columns), on the CPU.
    """
    given, wanted = (
        x.sub_(x.mean(dim=1, keepdim=True))
        for x in (dense.patches(layer, inputs), dense.outputs.clone())
    )
    samples = given.shape[1]
    covariance = torch.bmm(given.mT, given).div_(samples).cpu()
    shared = torch.bmm(wanted.mT, given).div_(samples).cpu()
    # Outputs have the batch norm in them, which the weights do not.
    fold = layer.fold_scale.view(*shared.shape[:2], 1)
    shared = torch.where(fold == 0, 0.0, shared / fold)
    power = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    ridge = torch.where(power > 0, DAMPING * power, 1.0)
    matrix = covariance.double() + ridge * torch.eye(covariance.shape[-1], dtype=torch.float64)
    reads = shared + ridge * layer.rows
    weight = torch.linalg.solve(matrix, reads.double().mT).mT.float()
    filled = layer.rows != 0
    if not bool(filled.all()):
        weight = reconstruct_masked(weight, covariance, filled[None])[0]
    return weight, covariance
