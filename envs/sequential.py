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

from envs.quantization import ActivationRange
from envs.quantization import power_of_two_near
from envs.quantization import quantize_activation
from envs.quantizer import Quantizer
from envs.reconstruction import DAMPING
from envs.statistics import sample_patches
from envs.trace import TracedLayer
from envs.trace import TracedNetwork

CompressLayer = Callable[[int, Tensor, Tensor], Tensor]
"""Told a layer's index, target weights (groups, rows, columns) in place of its own, and covariance
of its inputs (groups, columns, columns); returns its folded weight after compression."""

_SEED = 0
_WORKING_BYTES = 1 << 29
"""Room for one feature map of all images."""
_FEWEST_IMAGES = 32
_MOST_IMAGES = 1024
_MOST_ALIGNMENT_IMAGES = 128
_FEWEST_ALIGNMENT_IMAGES = 16
_GAINS = (0.25, 4.0)
"""Range of the gains; outside there are too few samples, or nothing is left of a channel."""
_IMAGES_AT_ONCE = 64
_USUAL_IMAGES = 1000
"""With fewer, more positions of each image are looked at."""


def compress_in_sequence(
    network: TracedNetwork,
    batches: Sequence[Tensor],
    input_ranges: Sequence[ActivationRange],
    kept_out: Sequence[Tensor],
    compress_layer: CompressLayer,
    quantizers: Sequence[Quantizer],
) -> list[Alignment]:
    """Walk through a network with the dense and the compressed feature maps side by side.

    Every layer is fitted to what it really reads: inputs that compressed layers computed and that
    are rounded already. Its target is the least-squares solution for the dense layer's outputs
    from those inputs, drawn towards the trained weights by the damping (the asymmetric calibration
    of Li et al., GPTAQ, 2025), which makes up for earlier layers and for the rounding of its own
    input. The bias then restores the mean of every output channel.

    Args:
        network: Traced network; its own weights do not matter.
        batches: Calibration images, (images, ...); as many of them are used as fit the memory.
        input_ranges: Grid of every layer's input.
        kept_out: Output channels of every layer that stay, bool, (out_channels,).
        compress_layer: Compresses one layer.
        quantizers: What every layer's scales may be.

    Returns:
        Gain and bias of every layer's output channels; the gains are for the weights that
        ``compress_layer`` returned.
    """
    found: list[Alignment] = []

    def step(index: int, run: RunLayer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layer = network.layers[index]
        dense, compressed = inputs
        compressed = quantize_activation(compressed, input_ranges[index])
        target, covariance = _fit(layer, dense, compressed)
        weight = compress_layer(index, target, covariance)
        wanted = run(dense, layer.folded_weight, layer.bias)
        reached = run(compressed, weight, layer.bias)
        alignment, aligned = _align(
            layer, wanted, reached, layer.bias, kept_out[index], quantizers[index]
        )
        found.append(alignment)
        return wanted, aligned

    images = _images(network, batches, _MOST_IMAGES)
    walk_layers(network, (images, images.clone()), step)
    return found


@dataclass(frozen=True)
class Alignment:
    """What the output channels of a layer are multiplied by, and their new bias.

    Attributes:
        gain: Shape (out_channels,), > 0.
        bias: Shape (out_channels,); the gain is in it.
    """

    gain: Tensor
    bias: Tensor


def align_layers(
    network: TracedNetwork,
    batches: Sequence[Tensor],
    input_ranges: Sequence[ActivationRange],
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
        kept_out: Output channels of every layer that stay, bool, (out_channels,).
        layers: Compressed weight and bias of every layer.
        wanted: Outputs of the dense layers, see :func:`dense_outputs`.
        quantizers: What every layer's scales may be.
    """
    found: list[Alignment] = []

    def step(index: int, run: RunLayer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layer = network.layers[index]
        weight, bias = layers[index]
        reached = run(quantize_activation(inputs[0], input_ranges[index]), weight, bias)
        alignment, aligned = _align(
            layer, wanted[index], reached, bias, kept_out[index], quantizers[index]
        )
        found.append(alignment)
        return (aligned,)

    walk_layers(network, (_alignment_images(network, batches),), step)
    return found


def dense_outputs(network: TracedNetwork, batches: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of every dense layer for the images that alignment uses."""
    found: list[Tensor] = []

    def step(index: int, run: RunLayer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layer = network.layers[index]
        outputs = run(inputs[0], layer.folded_weight, layer.bias)
        found.append(outputs.clone())  # what follows may work in place
        return (outputs,)

    walk_layers(network, (_alignment_images(network, batches),), step)
    return found


def _align(
    layer: TracedLayer,
    wanted: Tensor,
    reached: Tensor,
    bias: Tensor,
    kept: Tensor,
    quantizer: Quantizer,
) -> tuple[Alignment, Tensor]:
    """Regression of the dense outputs on those reached, channel by channel.

    Args:
        layer: The layer.
        wanted: Its outputs in the dense network, (images, ...).
        reached: Its outputs in the compressed network; changed in place.
        bias: Bias in ``reached``, (out_channels,).
        kept: Output channels that stay, bool, (out_channels,).
        quantizer: What the scales that take up the gains may be.

    Returns:
        The alignment, and the outputs with it; zero in channels that are gone.
    """
    axis = _channel_axis(layer) % reached.ndim
    others = [dimension for dimension in range(reached.ndim) if dimension != axis]
    mean_wanted, mean_reached = (x.mean(dim=others, keepdim=True) for x in (wanted, reached))
    centered = reached - mean_reached
    power = centered.square().mean(dim=others)
    shared = centered.mul_(wanted - mean_wanted).mean(dim=others)
    # A channel that does not vary has no slope; what its sums vary by is rounding.
    lives = power > 1e-9 * mean_reached.flatten().square() + torch.finfo(power.dtype).tiny
    if quantizer.weight_granularity == "tensor":  # one scale, so one gain
        counts = lives & kept.to(lives.device)
        shared, power = ((x * counts).sum().expand_as(x) for x in (shared, power))
        lives = counts.any().expand_as(lives)
    gain = torch.where(lives, shared / power, 1.0).clamp(*_GAINS)
    if quantizer.power_of_two:
        gain = power_of_two_near(gain)
    shift = mean_wanted.flatten() - gain * mean_reached.flatten()
    shape = [1] * reached.ndim
    shape[axis] = -1
    aligned = reached.mul_(gain.view(shape)).add_(shift.view(shape))
    aligned = aligned.mul_(kept.to(aligned).view(shape))
    gain, shift = gain.cpu(), shift.cpu()
    return Alignment(gain, (gain * bias + shift) * kept), aligned


RunLayer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A layer's operation on (inputs, weight, bias)."""

Step = Callable[[int, RunLayer, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Told a layer's index, its operation and its inputs, one of each network; returns the outputs."""


def walk_layers(network: TracedNetwork, images: tuple[Tensor, ...], step: Step) -> None:
    """Execute a graph for several networks of one architecture at once.

    Args:
        network: Traced network.
        images: Inputs of each of the networks.
        step: Computes the layers, in execution order; all else is the same for all networks.
    """
    index_of = {layer.node: index for index, layer in enumerate(network.layers)}
    nodes = list(network.graph_module.graph.nodes)
    last_reader = {item: node for node in nodes for item in node.all_input_nodes}
    values: dict[fx.Node, tuple[Any, ...]] = {}
    with torch.inference_mode():
        for node in nodes:
            if node.op == "placeholder":
                values[node] = images
            elif node.op == "get_attr":
                value: Any = network.graph_module
                for part in str(node.target).split("."):
                    value = getattr(value, part)
                values[node] = (value,) * len(images)
            elif node.op == "call_module":  # a layer's input, which the layer's step rounds
                values[node] = values[node.all_input_nodes[0]]
            elif node.name in index_of:
                source = values[node.all_input_nodes[0]]
                values[node] = step(index_of[node.name], _operation(node), source)
            elif node.op == "call_function":
                values[node] = tuple(
                    _call(node, values, network_number) for network_number in range(len(images))
                )
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


def _call(node: fx.Node, values: dict[fx.Node, tuple[Any, ...]], network_number: int) -> Any:
    target: Any = node.target
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda item: values[item][network_number]
    )
    return target(*args, **kwargs)


def _images(network: TracedNetwork, batches: Sequence[Tensor], most: int) -> Tensor:
    """The first calibration images whose largest feature map fits the memory, on the device."""
    largest = max(
        max(
            layer.shape.in_channels * layer.shape.in_height * layer.shape.in_width,
            layer.shape.out_channels * layer.shape.out_height * layer.shape.out_width,
        )
        for layer in network.layers
    )
    count = min(most, max(_FEWEST_IMAGES, _WORKING_BYTES // (4 * largest)))
    images = torch.cat(list(batches))[:count]
    return images.to(network.graph_module.get_parameter("weight_0").device)


def _alignment_images(network: TracedNetwork, batches: Sequence[Tensor]) -> Tensor:
    """The first calibration images, so few that the outputs of all layers fit the memory."""
    shapes = [layer.shape for layer in network.layers]
    values = sum(shape.out_channels * shape.out_height * shape.out_width for shape in shapes)
    most = max(_WORKING_BYTES // (4 * values), _FEWEST_ALIGNMENT_IMAGES)
    return _images(network, batches, min(most, _MOST_ALIGNMENT_IMAGES))


def _fit(layer: TracedLayer, dense: Tensor, compressed: Tensor) -> tuple[Tensor, Tensor]:
    """Weights that give the dense outputs from the compressed inputs, and those inputs' covariance.

    Returns:
        Shapes (groups, rows, columns) and (groups, columns, columns), on the CPU.
    """
    wanted, given = (_centered_patches(layer, inputs) for inputs in (dense, compressed))
    samples = given.shape[1]
    covariance = torch.bmm(given.mT, given).div_(samples).cpu()
    cross = torch.bmm(wanted.mT, given).div_(samples).cpu()
    power = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    ridge = torch.where(power > 0, DAMPING * power, 1.0)
    matrix = covariance.double() + ridge * torch.eye(covariance.shape[-1], dtype=torch.float64)
    reads = layer.rows @ cross + ridge * layer.rows
    return torch.linalg.solve(matrix, reads.double().mT).mT.float(), covariance


def _centered_patches(layer: TracedLayer, x: Tensor) -> Tensor:
    """Patches less their mean, (groups, samples, columns); of the same places for every ``x``."""
    generator = torch.Generator().manual_seed(_SEED)
    scarcity = -(-_USUAL_IMAGES // len(x))
    patches = torch.cat(
        [sample_patches(layer, part, generator, scarcity) for part in x.split(4 * _IMAGES_AT_ONCE)],
        dim=1,
    )
    return patches.sub_(patches.mean(dim=1, keepdim=True))


def _channel_axis(layer: TracedLayer) -> int:
    return -1 if layer.weight.ndim == 2 else 1
