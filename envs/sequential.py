"""Repair layer after layer, each for the inputs that the compressed layers before it give."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import fx

from envs.quantization import ActivationRange
from envs.quantization import quantize_activation
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
_ALIGNMENT_IMAGES = 128
_IMAGES_AT_ONCE = 64
_USUAL_IMAGES = 1000
"""With fewer, more positions of each image are looked at."""


def compress_in_sequence(
    network: TracedNetwork,
    batches: Sequence[Tensor],
    input_ranges: Sequence[ActivationRange],
    kept_out: Sequence[Tensor],
    compress_layer: CompressLayer,
) -> list[Tensor]:
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

    Returns:
        Bias of every layer, (out_channels,).
    """
    biases: list[Tensor] = []

    def step(index: int, run: RunLayer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layer = network.layers[index]
        dense, compressed = inputs
        compressed = quantize_activation(compressed, input_ranges[index])
        target, covariance = _fit(layer, dense, compressed)
        weight = compress_layer(index, target, covariance)
        wanted = run(dense, layer.folded_weight, layer.bias)
        reached = run(compressed, weight, layer.bias)
        shift = _channel_mean(layer, wanted) - _channel_mean(layer, reached)
        biases.append((layer.bias + shift.cpu()) * kept_out[index])
        return wanted, _shifted(layer, reached, shift, kept_out[index])

    images = _images(network, batches, _MOST_IMAGES)
    walk_layers(network, (images, images.clone()), step)
    return biases


def aligned_biases(
    network: TracedNetwork,
    batches: Sequence[Tensor],
    input_ranges: Sequence[ActivationRange],
    kept_out: Sequence[Tensor],
    layers: Sequence[tuple[Tensor, Tensor]],
    wanted: Sequence[Tensor],
) -> list[Tensor]:
    """Biases that restore the mean of every output channel, layer after layer.

    The bias correction of Nagel et al. (Data-Free Quantization, 2019, section 4.2), measured on
    what the compressed layers before really give.

    Args:
        network: Traced network; its own weights do not matter.
        batches: Calibration images, (images, ...); the first few of them are used.
        input_ranges: Grid of every layer's input.
        kept_out: Output channels of every layer that stay, bool, (out_channels,).
        layers: Compressed weight and bias of every layer.
        wanted: Means of the dense layers' output channels, see :func:`channel_means`.

    Returns:
        Bias of every layer, (out_channels,).
    """
    biases: list[Tensor] = []

    def step(index: int, run: RunLayer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layer = network.layers[index]
        weight, bias = layers[index]
        reached = run(quantize_activation(inputs[0], input_ranges[index]), weight, bias)
        shift = wanted[index] - _channel_mean(layer, reached)
        biases.append((bias + shift.cpu()) * kept_out[index])
        return (_shifted(layer, reached, shift, kept_out[index]),)

    walk_layers(network, (_images(network, batches, _ALIGNMENT_IMAGES),), step)
    return biases


def channel_means(network: TracedNetwork, batches: Sequence[Tensor]) -> list[Tensor]:
    """Mean of every output channel of every dense layer on the images that alignment uses."""
    means: list[Tensor] = []

    def step(index: int, run: RunLayer, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        layer = network.layers[index]
        outputs = run(inputs[0], layer.folded_weight, layer.bias)
        means.append(_channel_mean(layer, outputs))
        return (outputs,)

    walk_layers(network, (_images(network, batches, _ALIGNMENT_IMAGES),), step)
    return means


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


def _channel_mean(layer: TracedLayer, x: Tensor) -> Tensor:
    """Mean of every output channel, (out_channels,)."""
    return x.transpose(0, _channel_axis(layer)).flatten(1).mean(dim=1)


def _shifted(layer: TracedLayer, x: Tensor, shift: Tensor, kept: Tensor) -> Tensor:
    """Outputs with a shift of every channel, zero in channels that are gone."""
    shape = [1] * x.ndim
    shape[_channel_axis(layer)] = -1
    return x.add_(shift.view(shape)).mul_(kept.to(shift).view(shape))
