"""Physically removes channels: a compressed network as a graph of smaller operations."""

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
from envs.compression import CompressedNetwork
from envs.quantization import ActivationRange
from envs.trace import TracedNetwork
from envs.units import is_removed

aten = torch.ops.aten


def remove_channels(network: TracedNetwork, compressed: CompressedNetwork) -> fx.GraphModule:
    """The compressed network without the channels that are gone.

    Every tensor is a buffer of the module itself with a flat name; layer i has ``weight_i`` and
    ``bias_i``. All operations are ATen calls, the rounding of inputs included.

    Args:
        network: Traced network; left as it is.
        compressed: Its compressed layers.
    """
    module = copy.deepcopy(network.graph_module)
    remover = _Remover(module, network, compressed)
    for node in list(module.graph.nodes):
        remover.rewrite(node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module.eval()


class _Remover:
    def __init__(
        self, module: fx.GraphModule, network: TracedNetwork, compressed: CompressedNetwork
    ) -> None:
        self.module = module
        self.graph = module.graph
        self.compressed = compressed
        self.node_units = network.units.node_units
        self.layer_of = {layer.node: index for index, layer in enumerate(network.layers)}

    def rewrite(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._inline_rounding(node)
        elif node.op == "call_function":
            target: Any = node.target
            if target in LAYER_OPS:
                self._shrink_layer(node)
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
        gone = is_removed(labels.ids, self.compressed.removed_units)
        return ~gone if bool(gone.any()) else None

    def _labels(self, node: fx.Node) -> Labels | None:
        if node.op == "call_module":  # the rounding of a layer's input changes no channel
            return self._labels(node.args[0])  # type: ignore[arg-type]
        return self.node_units.get(node.name)

    def _inline_rounding(self, node: fx.Node) -> None:
        index = int(str(node.target).removeprefix("input_"))
        source: Any = node.args[0]
        with self.graph.inserting_before(node):
            rounded = _round(self.graph, source, self.compressed.layers[index].input_range)
        node.replace_all_uses_with(rounded)
        if rounded is not source:
            rounded.meta.update(node.meta)
            if source.name in self.node_units:
                self.node_units = {**self.node_units, rounded.name: self.node_units[source.name]}
        self.graph.erase_node(node)
        self.module.delete_submodule(f"input_{index}")

    def _shrink_layer(self, node: fx.Node) -> None:
        index = self.layer_of[node.name]
        layer = self.compressed.layers[index]
        weight = layer.weight[layer.kept_out]
        groups = len(layer.kept_in) // layer.weight.shape[1]
        if groups == 1:
            weight = weight[:, layer.kept_in]
        elif not bool(layer.kept_in.all()):  # depthwise: every channel is a group of its own
            node.args = (*node.args[:6], int(layer.kept_in.sum()))
            assert group_count(node) == len(weight)
        self._set(f"weight_{index}", weight)
        self._set(f"bias_{index}", layer.bias[layer.kept_out])

    def _resize(self, node: fx.Node) -> None:
        kept = self.kept(node)
        if kept is None:
            return
        axis = self.node_units[node.name].axis
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
        axis = self.node_units[node.name].axis
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
            tensor = self._get(str(item.target))
            axis = axis_of
            if axis is None:
                axis = self.node_units[node.name].axis - len(node.meta["shape"]) + tensor.ndim
            if axis < 0 or tensor.shape[axis] != len(kept):
                continue
            with self.graph.inserting_before(node):
                name = f"constant_{node.name}_{item.name}"
                self._set(name, tensor.index_select(axis, kept.nonzero().flatten()))
                smaller = self.graph.get_attr(name)
            node.replace_input_with(item, smaller)

    def _get(self, name: str) -> Tensor:
        value: Any = self.module
        for part in name.split("."):
            value = getattr(value, part)
        return value.detach()

    def _set(self, name: str, tensor: Tensor) -> None:
        if hasattr(self.module, name):
            delattr(self.module, name)
        self.module.register_buffer(name, tensor.detach().clone())


def _round(graph: fx.Graph, source: fx.Node, grid: ActivationRange) -> fx.Node:
    """Nodes that round to a grid, as ``quantization.quantize_activation`` does."""
    if grid.bits == 32:
        return source
    call = graph.call_function
    if grid.bits == 16:
        half = call(aten.to.dtype, (source, torch.float16))
        return call(aten.to.dtype, (half, torch.float32))
    # The product is nobody else's, so the rest may happen in place.
    scaled = call(aten.mul.Tensor, (source, 1 / grid.scale))
    integers = call(
        aten.clamp_.default, (call(aten.round_.default, (scaled,)), grid.low, grid.high)
    )
    return call(aten.mul_.Tensor, (integers, grid.scale))
