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
from envs.quantization import ScaleRun
from envs.quantization import inverse_factors
from envs.quantization import inverse_steps
from envs.quantization import scale_runs
from envs.trace import TracedNetwork
from envs.units import is_removed

aten = torch.ops.aten


def remove_channels(network: TracedNetwork, compressed: CompressedNetwork) -> fx.GraphModule:
    """The compressed network without the channels that are gone.

    Every tensor is a buffer of the module itself with a flat name; layer i has ``weight_i`` and
    ``bias_i``, and ``scale_i`` where ``weight_i`` holds integers. All operations are ATen calls,
    the rounding of inputs and maps included.

    Args:
        network: Traced network; left as it is.
        compressed: Its compressed layers.
    """
    graph, tensors = shrunk_graph(network, compressed, compressed.removed_units)
    inputs = {str(node.target): node for node in graph.find_nodes(op="call_module")}
    nodes = {node.name: node for node in graph.nodes}
    for number, grid in enumerate(map_grids(network, compressed, compressed.removed_units)):
        _inline_map(inputs[f"map_{number}"], tensors, grid)
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

    Layer i keeps its module ``input_i``, which rounds what the layer reads, and stored map j its
    ``map_j``.

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


def map_grids(
    network: TracedNetwork, compressed: CompressedNetwork, removed_units: Tensor
) -> list[ActivationRange]:
    """Grids of the stored maps, for the channels that a graph still has.

    Args:
        network: Traced network.
        compressed: Its compressed layers.
        removed_units: Units that the graph does without, see :func:`shrunk_graph`.
    """
    grids = []
    for stored, grid in zip(network.maps, compressed.map_ranges, strict=True):
        if stored.reader is not None:
            grid = grid.of_channels(
                ~is_removed(network.units.in_units[stored.reader], removed_units)
            )
        grids.append(grid)
    return grids


def sums_integers(layer: CompressedLayer) -> bool:
    """Whether a layer adds up products of integers before anything is scaled."""
    return layer.scale is not None and layer.input_range.bits not in FLOAT_BITS


def scale_sums(
    node: fx.Node, index: int, tensors: dict[str, Tensor], grid: ActivationRange, scale: Tensor
) -> None:
    """Have a layer that reads integers use integer weights, and scale and shift its sums.

    In this order: grid of the input, scale of the output channel, bias. It is that of oneDNN. Where
    scales change along the input channels, every run of channels that share them is summed and
    scaled by itself, and runs are added from the first on, as in :class:`envs.integer.IntegerSum`.

    Args:
        node: The layer's node.
        index: Its number.
        tensors: Of the graph; the layer's change, and ``scale_INDEX`` is added: one for each output
            channel, or, with several runs, (runs, out_channels).
        grid: Of its input.
        scale: Of its output channels, (out_channels,), or of these and of the input channels of a
            group, (out_channels, in_channels / groups).
    """
    weight, bias = (tensors[f"{name}_{index}"] for name in ("weight", "bias"))
    each = [-1] + [1] * (weight.ndim - 2)  # of the channels, for images and tokens alike
    runs = scale_runs(scale, weight.shape[1])
    scales = torch.stack([run.scale for run in runs]).view(len(runs), *each)
    tensors[f"weight_{index}"] = integer_weights(weight, scale).float()
    tensors[f"scale_{index}"] = scales if len(runs) > 1 else scales[0]
    tensors[f"bias_{index}"] = bias.view(each)
    with node.graph.inserting_before(node):
        total = _sum_of_runs(node, index, tensors, runs, grid.scale)
    node.replace_all_uses_with(total)
    node.graph.erase_node(node)


def _sum_of_runs(
    node: fx.Node, index: int, tensors: dict[str, Tensor], runs: list[ScaleRun], step: float
) -> fx.Node:
    """Nodes that compute a layer as :func:`scale_sums` says; returns the last one."""
    graph, call = node.graph, node.graph.call_function
    read, weights, shift, *moves = node.args
    total: Any = shift
    scales = graph.get_attr(f"scale_{index}")
    for number, run in enumerate(runs):
        inputs, columns, scale = read, weights, scales
        if len(runs) > 1:
            inputs = _inputs_of_run(node, index, tensors, number, run)
            columns = call(aten.slice.Tensor, (weights, 1, run.start, run.stop))
            scale = call(aten.select.int, (scales, 0, number))
        sums: Any = call(node.target, (inputs, columns, None, *moves), node.kwargs)  # type: ignore[arg-type]
        scaled = call(aten.mul_.Tensor, (sums, step))
        scaled_each = call(aten.mul_.Tensor, (scaled, scale))
        total = call(aten.add_.Tensor, (scaled_each, total))
        for made in (sums, scaled, scaled_each, total):
            made.meta.update(node.meta)
    return total


def _inputs_of_run(
    node: fx.Node, index: int, tensors: dict[str, Tensor], number: int, run: ScaleRun
) -> fx.Node:
    """A node that gives the input channels that a run of a layer reads."""
    graph, call = node.graph, node.graph.call_function
    weight = tensors[f"weight_{index}"]
    axis = -1 if node.target is aten.linear.default else 1
    groups = 1 if node.target is aten.linear.default else group_count(node)
    if groups == 1:
        return call(aten.slice.Tensor, (node.args[0], axis, run.start, run.stop))
    name = f"channels_{index}_{number}"
    tensors[name] = run.inputs(weight.shape[1], groups)
    return call(aten.index_select.default, (node.args[0], axis, graph.get_attr(name)))


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
        elif target in (aten.view.default, aten.reshape.default, aten.expand.default):
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
        elif target in (aten.batch_norm.default, aten.prelu.default):
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
        if node.op == "call_module":  # rounding changes no channel
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
                assert len(weight) % group_count(node) == 0  # several phases if it is transposed
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


def _inline_map(node: fx.Node, tensors: dict[str, Tensor], grid: ActivationRange) -> None:
    """Exchange the module that rounds a stored map for nodes that do."""
    source: Any = node.args[0]
    with node.graph.inserting_before(node):
        steps = _steps(node, grid, tensors)
        rounded = _round(node.graph, source, grid, steps, integers=False)
        if isinstance(steps, fx.Node):  # back to what was divided, exactly
            factors = f"factors_{node.target}"
            tensors[factors] = 1 / inverse_factors(grid.divided, len(source.meta["shape"]))
            rounded = node.graph.call_function(
                aten.mul_.Tensor, (rounded, node.graph.get_attr(factors))
            )
    node.replace_all_uses_with(rounded)
    node.graph.erase_node(node)


def _inline_rounding(
    node: fx.Node, index: int, tensors: dict[str, Tensor], layer: CompressedLayer
) -> None:
    """Exchange the module that rounds what layer ``index`` reads for nodes that do."""
    source: Any = node.args[0]
    grid = layer.input_range.of_channels(layer.kept_in)
    with node.graph.inserting_before(node):
        steps = _steps(node, grid, tensors)
        rounded = _round(node.graph, source, grid, steps, integers=sums_integers(layer))
    node.replace_all_uses_with(rounded)
    node.graph.erase_node(node)


def _steps(node: fx.Node, grid: ActivationRange, tensors: dict[str, Tensor]) -> float | fx.Node:
    """What the input of a rounding module is multiplied by to get integers."""
    steps = inverse_steps(grid, len(node.meta["shape"]))
    if isinstance(steps, float):
        return steps
    name = f"inverse_step_{node.target}"
    tensors[name] = steps
    return node.graph.get_attr(name)


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
