"""Compress layer after layer, each for the inputs that the compressed layers before it give."""

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
    walk = _Walk(network, input_ranges, kept_out, compress_layer)
    largest = max(
        max(
            layer.shape.in_channels * layer.shape.in_height * layer.shape.in_width,
            layer.shape.out_channels * layer.shape.out_height * layer.shape.out_width,
        )
        for layer in network.layers
    )
    images = torch.cat(list(batches))[: max(_FEWEST_IMAGES, _WORKING_BYTES // (4 * largest))]
    with torch.inference_mode():
        walk.run(images.to(network.graph_module.get_parameter("weight_0").device))
    return walk.biases


class _Walk:
    """Executes the graph on pairs of tensors: of the dense network and of the compressed one."""

    def __init__(
        self,
        network: TracedNetwork,
        input_ranges: Sequence[ActivationRange],
        kept_out: Sequence[Tensor],
        compress_layer: CompressLayer,
    ) -> None:
        self.network = network
        self.input_ranges = input_ranges
        self.kept_out = kept_out
        self.compress_layer = compress_layer
        self.biases = [layer.bias for layer in network.layers]
        self._index = {layer.node: index for index, layer in enumerate(network.layers)}
        self._pairs: dict[fx.Node, Any] = {}

    def run(self, images: Tensor) -> None:
        nodes = list(self.network.graph_module.graph.nodes)
        last_reader = {item: node for node in nodes for item in node.all_input_nodes}
        for node in nodes:
            if node.op == "placeholder":
                self._pairs[node] = (images, images.clone())
            elif node.op == "get_attr":
                value: Any = self.network.graph_module
                for part in str(node.target).split("."):
                    value = getattr(value, part)
                self._pairs[node] = (value, value)
            elif node.op == "call_module":  # a layer's input: rounded when the layer's turn comes
                self._pairs[node] = self._pairs[node.all_input_nodes[0]]
            elif node.name in self._index:
                self._pairs[node] = self._layer(self._index[node.name], node)
            elif node.op == "call_function":
                self._pairs[node] = tuple(self._call(node, side) for side in (0, 1))
            for item in node.all_input_nodes:
                if last_reader[item] is node:
                    del self._pairs[item]

    def _call(self, node: fx.Node, side: int) -> Any:
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda item: self._pairs[item][side])
        return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]

    def _layer(self, index: int, node: fx.Node) -> tuple[Tensor, Tensor]:
        layer = self.network.layers[index]
        source: Any = node.args[0]
        dense, compressed = self._pairs[source]
        compressed = quantize_activation(compressed, self.input_ranges[index])
        target, covariance = _fit(layer, dense, compressed)
        weight = self.compress_layer(index, target, covariance)

        def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            weight, bias = weight.to(x), bias.to(x)
            parts = x.split(_IMAGES_AT_ONCE)
            return torch.cat([node.target(part, weight, bias, *node.args[3:]) for part in parts])  # type: ignore[operator]

        wanted = output(dense, layer.folded_weight, layer.bias)
        reached = output(compressed, weight, layer.bias)
        axis = -1 if layer.weight.ndim == 2 else 1
        shift = _channel_mean(wanted, axis) - _channel_mean(reached, axis)
        kept = self.kept_out[index]
        self.biases[index] = (layer.bias + shift.cpu()) * kept
        view = [1] * reached.ndim
        view[axis] = -1
        return wanted, reached.add_(shift.view(view)).mul_(kept.to(shift).view(view))


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


def _channel_mean(x: Tensor, axis: int) -> Tensor:
    return x.mean(dim=[index for index in range(x.ndim) if index != axis % x.ndim])
