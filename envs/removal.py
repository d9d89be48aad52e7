"""Physically removes channels: a compressed network as a graph of smaller operations.

Layers whose weights and inputs are integers multiply and add these, kept as floats, and scale the
sums, as an accelerator does. Single precision is exact for sums below 2^24, so the outputs do not
depend on the order of the additions: they are the same on every device, and those of the kernels in
:mod:`envs.integer`, to the last bit.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor
from torch import fx

from envs.channels import LAYER_OPS
from envs.channels import Labels
from envs.channels import axis_padding
from envs.channels import group_count
from envs.compression import CompressedLayer
from envs.compression import CompressedNetwork
from envs.compression import integer_weights
from envs.config import FLOAT_BITS
from envs.quantization import ActivationRange
from envs.quantization import inverse_steps
from envs.trace import TracedNetwork
from envs.units import is_removed

aten = torch.ops.aten


def remove_channels(network: TracedNetwork, compressed: CompressedNetwork) -> fx.GraphModule:
    """The compressed network without the channels that are gone.

    Every tensor is a buffer of the module itself with a flat name; layer i has ``weight_i`` and
    ``bias_i``, and ``scale_i`` where ``weight_i`` holds integers. All operations are ATen calls,
    the rounding of inputs included.

    Args:
        network: Traced network; left as it is.
        compressed: Its compressed layers.
    """
    graph, tensors = shrunk_graph(network, compressed, compressed.removed_units)
    inputs = {str(node.target): node for node in graph.find_nodes(op="call_module")}
    nodes = {node.name: node for node in graph.nodes}
    for index, (traced, layer) in enumerate(zip(network.layers, compressed.layers, strict=True)):
        _inline_rounding(inputs[f"input_{index}"], index, tensors, layer)
        if sums_integers(layer):
            scale = layer.scale_of(layer.kept_in, layer.kept_out)
            assert scale is not None
            scale_sums(nodes[traced.node], index, tensors, layer.input_range, scale)
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(tensors, graph).eval()


def shrunk_graph(
    network: TracedNetwork, compressed: CompressedNetwork, removed_units: Tensor
) -> tuple[fx.Graph, dict[str, Tensor]]:
    """A copy of a network's graph without some channels, and the tensors that it reads.

    Layer i keeps its module ``input_i``, which rounds what the layer reads.

    Args:
        network: Traced network; left as it is.
        compressed: Its compressed layers.
        removed_units: Units to leave out, bool, (units,): those of ``compressed`` or fewer.
    """
    graph = copy.deepcopy(network.graph_module.graph)
    tensors = {
        str(node.target): operator.attrgetter(str(node.target))(network.graph_module).detach()
        for node in graph.find_nodes(op="get_attr")
    }
    remover = _Remover(graph, tensors, network, compressed, removed_units)
    for node in list(graph.nodes):
        remover.rewrite(node)
    return graph, tensors


def sums_integers(layer: CompressedLayer) -> bool:
    """Whether a layer adds up products of integers before anything is scaled."""
    one_scale_each = layer.scale is not None and layer.scale.ndim == 1
    return one_scale_each and layer.input_range.bits not in FLOAT_BITS


def scale_sums(
    node: fx.Node, index: int, tensors: dict[str, Tensor], grid: ActivationRange, scale: Tensor
) -> None:
    """Have a layer that reads integers use integer weights, and scale and shift its sums.

    In this order: grid of the input, scale of the output channel, bias. It is that of oneDNN.

    Args:
        node: The layer's node.
        index: Its number.
        tensors: Of the graph; the layer's change, and ``scale_INDEX`` is added.
        grid: Of its input.
        scale: Of its output channels, (out_channels,).
    """
    weight, bias = (tensors[f"{name}_{index}"] for name in ("weight", "bias"))
    each = [-1] + [1] * (weight.ndim - 2)  # of the channels, for images and tokens alike
    tensors[f"weight_{index}"] = integer_weights(weight, scale).float()
    tensors[f"scale_{index}"] = scale.view(each)
    tensors[f"bias_{index}"] = bias.view(each)
    graph, call = node.graph, node.graph.call_function
    shift: Any = node.args[2]
    with graph.inserting_before(node):
        factor = graph.get_attr(f"scale_{index}")
    with graph.inserting_after(node):
        scaled = call(aten.mul_.Tensor, (node, grid.scale))
    with graph.inserting_after(scaled):
        scaled_each = call(aten.mul_.Tensor, (scaled, factor))
    with graph.inserting_after(scaled_each):
        shifted = call(aten.add_.Tensor, (scaled_each, shift))
    for made in (scaled, scaled_each, shifted):
        made.meta.update(node.meta)
    node.replace_all_uses_with(shifted, delete_user_cb=lambda user: user is not scaled)
    node.args = (*node.args[:2], None, *node.args[3:])


class _Remover:
    def __init__(
        self,
        graph: fx.Graph,
        tensors: dict[str, Tensor],
        network: TracedNetwork,
        compressed: CompressedNetwork,
        removed_units: Tensor,
    ) -> None:
        self.graph = graph
        self.tensors = tensors
        self.layers = compressed.layers
        self.units = network.units
        self.removed_units = removed_units
        self.removes = bool(removed_units.any())
        self.layer_of = {layer.node: index for index, layer in enumerate(network.layers)}

    def rewrite(self, node: fx.Node) -> None:
        target: Any = node.target
        if target in LAYER_OPS:
            self._shrink_layer(node)
        elif node.op != "call_function" or not self.removes:
            return
        elif target in (aten.view.default, aten.reshape.default):
            self._resize(node)
        elif target is aten.slice.Tensor:
            self._reslice(node)
        elif target in (
            aten.chunk.default,
            aten.split.Tensor,
            aten.split_with_sizes.default,
        ):
            self._resplit(node)
        elif target in (aten.pad.default, aten.constant_pad_nd.default):
            self._repad(node)
        elif target is aten.batch_norm.default:
            self._shrink_constants(node, axis_of=0)
        elif target is not operator.getitem:
            self._shrink_constants(node, axis_of=None)

    def kept(self, node: fx.Node) -> Tensor | None:
        """Which indices of a node's channel axis stay, bool; None if all do."""
        labels = self._labels(node)
        if labels is None:
            return None
        gone = is_removed(labels.ids, self.removed_units)
        return ~gone if bool(gone.any()) else None

    def _labels(self, node: fx.Node) -> Labels | None:
        if node.op == "call_module":  # the rounding of a layer's input changes no channel
            return self._labels(node.args[0])  # type: ignore[arg-type]
        return self.units.node_units.get(node.name)

    def _shrink_layer(self, node: fx.Node) -> None:
        index = self.layer_of[node.name]
        layer = self.layers[index]
        weight, bias = layer.weight, layer.bias
        kept_out = ~is_removed(self.units.out_units[index], self.removed_units)
        kept_in = ~is_removed(self.units.in_units[index], self.removed_units)
        if not bool(kept_out.all()):
            weight, bias = weight[kept_out], bias[kept_out]
        if not bool(kept_in.all()):
            if len(kept_in) == layer.weight.shape[1]:
                weight = weight[:, kept_in]
            else:  # depthwise: every channel is a group of its own
                node.args = (*node.args[:6], int(kept_in.sum()))
                assert group_count(node) == len(weight)
        self.tensors[f"weight_{index}"] = weight
        self.tensors[f"bias_{index}"] = bias

    def _resize(self, node: fx.Node) -> None:
        kept = self.kept(node)
        if kept is None:
            return
        axis = self.units.node_units[node.name].axis
        sizes: Any = list(node.args[1])  # type: ignore[arg-type]
        if isinstance(sizes[axis], int) and sizes[axis] != -1:
            sizes[axis] = int(kept.sum())
        node.args = (node.args[0], sizes)

    def _reslice(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        kept = self.kept(source)
        if kept is None:
            return
        labels = self._labels(source)
        rest: list[Any] = list(node.args[1:])
        axis, start, end, *_ = rest + [0, None, None][len(rest) :]
        if labels is None or axis % len(source.meta["shape"]) != labels.axis:
            return
        first, last, _ = slice(start, end).indices(len(kept))
        bounds = int(kept[:first].sum()), int(kept[:last].sum())
        node.args = (source, axis, *bounds)

    def _resplit(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        kept = self.kept(source)
        labels = self._labels(source)
        axis = int(node.args[2]) if len(node.args) > 2 else 0  # type: ignore[arg-type]
        if kept is None or labels is None or axis % len(source.meta["shape"]) != labels.axis:
            return
        parts = node.target(kept, node.args[1], 0)  # type: ignore[operator]
        node.target = aten.split_with_sizes.default
        node.args = (source, [int(part.sum()) for part in parts], axis)

    def _repad(self, node: fx.Node) -> None:
        kept = self.kept(node)
        if kept is None:
            return
        axis = self.units.node_units[node.name].axis
        low, high = axis_padding(node, axis)
        pads: Any = list(node.args[1])  # type: ignore[arg-type]
        position = 2 * (len(node.meta["shape"]) - 1 - axis)
        if position < len(pads):
            pads[position] = int(kept[:low].sum())
            pads[position + 1] = int(kept[len(kept) - high :].sum())
        node.args = (node.args[0], pads, *node.args[2:])

    def _shrink_constants(self, node: fx.Node, axis_of: int | None) -> None:
        """Cut the constants that a node reads along its channel axis.

        Args:
            node: Batch norm or element-wise operation.
            axis_of: The constants' channel axis; None where they are broadcast to the node.
        """
        kept = self.kept(node)
        if kept is None:
            return
        for item in node.all_input_nodes:
            if item.op != "get_attr":
                continue
            tensor = self.tensors[str(item.target)]
            axis = axis_of
            if axis is None:
                axis = self.units.node_units[node.name].axis - len(node.meta["shape"]) + tensor.ndim
            if axis < 0 or tensor.shape[axis] != len(kept):
                continue
            with self.graph.inserting_before(node):
                name = f"constant_{node.name}_{item.name}"
                self.tensors[name] = tensor.index_select(axis, kept.nonzero().flatten())
                smaller = self.graph.get_attr(name)
            node.replace_input_with(item, smaller)


def _inline_rounding(
    node: fx.Node, index: int, tensors: dict[str, Tensor], layer: CompressedLayer
) -> None:
    """Exchange the module that rounds what layer ``index`` reads for nodes that do."""
    source: Any = node.args[0]
    grid = layer.input_range.of_channels(layer.kept_in)
    with node.graph.inserting_before(node):
        steps: Any = inverse_steps(grid, len(source.meta["shape"]))
        if isinstance(steps, Tensor):
            tensors[f"inverse_step_{index}"] = steps
            steps = node.graph.get_attr(f"inverse_step_{index}")
        rounded = _round(node.graph, source, grid, steps, integers=sums_integers(layer))
    node.replace_all_uses_with(rounded)
    node.graph.erase_node(node)


def _round(
    graph: fx.Graph, source: fx.Node, grid: ActivationRange, steps: Any, *, integers: bool
) -> fx.Node:
    """Nodes that round what a layer reads, as functions of :mod:`envs.quantization` do."""
    call = graph.call_function
    if grid.bits == 32:
        return source
    if grid.bits == 16:
        half = call(aten.to.dtype, (source, torch.float16))
        return call(aten.to.dtype, (half, torch.float32))
    # The product is nobody else's, so the rest may happen in place.
    scaled = call(aten.mul.Tensor, (source, steps))
    rounded = call(aten.clamp_.default, (call(aten.round_.default, (scaled,)), grid.low, grid.high))
    return rounded if integers else call(aten.mul_.Tensor, (rounded, grid.scale))
