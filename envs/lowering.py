"""Makes a compressed network run fast: integer layers, fused roundings, no needless memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import fx
from torch import nn

from envs.channels import LAYER_OPS
from envs.channels import group_count
from envs.compression import CompressedLayer
from envs.compression import CompressedNetwork
from envs.compression import integer_weights
from envs.config import FLOAT_BITS
from envs.integer import CHANNELS
from envs.integer import Geometry
from envs.integer import IntegerInput
from envs.integer import IntegerLayer
from envs.integer import IntegerSum
from envs.integer import fits
from envs.quantization import ActivationRange
from envs.quantization import activation_integers
from envs.quantization import quantize_activation
from envs.removal import scale_sums
from envs.removal import shrunk_graph
from envs.removal import sums_integers
from envs.trace import TracedNetwork
from envs.trace import convolution_geometry
from envs.units import ChannelUnits
from envs.units import is_removed

aten = torch.ops.aten

_IN_PLACE = {
    aten.relu.default: aten.relu_.default,
    aten.hardtanh.default: aten.hardtanh_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
}
_FRESH = {*LAYER_OPS, *_IN_PLACE, *_IN_PLACE.values()}
"""Operations whose result shares memory with nothing but, in place, a result nobody else reads."""


class RoundedInput(nn.Module):
    """Rounds what passes to a grid."""

    def __init__(self, grid: ActivationRange) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return quantize_activation(x, self.grid)


class IntegersOfInput(nn.Module):
    """Gives the integers, as floats, of what passes on a grid."""

    def __init__(self, grid: ActivationRange) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return activation_integers(x, self.grid)


Rounding = type[RoundedInput] | type[IntegersOfInput] | type[IntegerInput]


def lower(network: TracedNetwork, compressed: CompressedNetwork, integers: bool) -> fx.GraphModule:
    """A compressed network that computes fast what :func:`envs.removal.remove_channels` computes.

    Args:
        network: Traced network; left as it is.
        compressed: Its compressed layers.
        integers: Use integer arithmetic wherever weights and inputs are integers (see
            :func:`envs.integer.is_available`). The outputs are the same to the last bit, but
            where sums leave the integers that single precision holds, 2^24.
    """
    removed = compressed.removed_units
    if integers:
        removed = _whole_blocks(network.units, removed)
    graph, tensors = shrunk_graph(network, compressed, removed)
    lowering = _Lowering(graph, tensors, integers)
    for index, (traced, layer) in enumerate(zip(network.layers, compressed.layers, strict=True)):
        units = network.units.in_units[index], network.units.out_units[index]
        kept_in, kept_out = (~is_removed(of_channels, removed) for of_channels in units)
        scale, grid = layer.scale_of(kept_in, kept_out), layer.input_range.of_channels(kept_in)
        lowering.lower_layer(index, traced.node, layer, grid, scale)
    lowering.fuse()
    lowering.work_in_place()
    return fx.GraphModule({**tensors, **lowering.modules}, graph).eval()


def _whole_blocks(units: ChannelUnits, removed: Tensor) -> Tensor:
    """Removed units less those that fill up the last block of a layer; these stay, as zeros."""
    removed = removed.clone()
    alike = torch.stack([units.unit_group, units.signature], dim=1)
    for kind in alike.unique(dim=0):
        members = (alike == kind).all(dim=1).nonzero().flatten()
        gone = members[removed[members]]
        kept = len(members) - len(gone)
        removed[gone[: -kept % CHANNELS]] = False
    return removed


class _Lowering:
    def __init__(self, graph: fx.Graph, tensors: dict[str, Tensor], integers: bool) -> None:
        self.graph = graph
        self.tensors = tensors
        self.integers = integers
        self.nodes = {node.name: node for node in graph.nodes}
        self.modules: dict[str, nn.Module] = {}
        self.inputs: dict[tuple[fx.Node, ActivationRange, Rounding], fx.Node] = {}

    def lower_layer(
        self,
        index: int,
        name: str,
        layer: CompressedLayer,
        grid: ActivationRange,
        scale: Tensor | None,
    ) -> None:
        """Exchange a layer and the rounding of its input.

        Args:
            index: Number of the layer.
            name: Name of its node.
            layer: The layer.
            grid: Of its input, for the channels that the graph still has.
            scale: Its scale, for the channels that the graph still has.
        """
        node = self.nodes[name]
        weight = self.tensors[f"weight_{index}"]
        integers = None
        if (
            self.integers
            and scale is not None
            and grid.bits not in FLOAT_BITS
            and node.target in (aten.conv2d.default, aten.linear.default)
            and fits(weight)
        ):
            integers = integer_weights(weight, scale)
        is_integer = integers is not None and integers.dtype == torch.int8
        read: Any = node.args[0]
        if not is_integer:
            rounding: Rounding = RoundedInput
            if sums_integers(layer):
                assert scale is not None
                rounding = IntegersOfInput
                scale_sums(node, index, self.tensors, grid, scale)
            weight = self.tensors[f"weight_{index}"]
            if weight.ndim == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
                self.tensors[f"weight_{index}"] = weight
            read.replace_all_uses_with(self._rounded(read, grid, rounding))
            self.graph.erase_node(read)
            return
        rounded = self._rounded(read, grid, IntegerInput)
        assert scale is not None
        assert integers is not None
        scale = torch.where(scale == 0, 1.0, scale)
        make = IntegerLayer if scale.ndim == 1 else IntegerSum
        self.modules[f"layer_{index}"] = make(
            integers,
            scale,
            self.tensors[f"bias_{index}"],
            grid,
            _geometry(node),
        )
        with self.graph.inserting_before(node):
            lowered = self.graph.call_module(f"layer_{index}", (rounded,))
        lowered.meta.update(node.meta)
        node.replace_all_uses_with(lowered)
        for unused in (node, *node.all_input_nodes):
            self.graph.erase_node(unused)

    def _rounded(self, read: fx.Node, grid: ActivationRange, rounding: Rounding) -> fx.Node:
        """The rounded input of a layer; readers of one map that agree about its grid share it."""
        source: Any = read.args[0]
        if grid.bits == 32:
            return source
        key = (source, grid, rounding)
        if key not in self.inputs:
            name = f"rounded_{len(self.inputs)}"
            self.modules[name] = rounding(grid)
            with self.graph.inserting_before(read):
                self.inputs[key] = self.graph.call_module(name, (source,))
            self.inputs[key].meta.update(read.meta)
        return self.inputs[key]

    def fuse(self) -> None:
        """Let integer layers rectify and round what they write."""
        grids = {
            node: grid for (_, grid, kind), node in self.inputs.items() if kind is IntegerInput
        }
        for node in list(self.graph.find_nodes(op="call_module")):
            layer = self.modules[str(node.target)]
            if not isinstance(layer, IntegerLayer):
                continue
            reader = _only_user(node)
            if reader is not None and reader.target is aten.relu.default:
                layer.rectify()
                reader.replace_all_uses_with(node)
                self.graph.erase_node(reader)
                reader = _only_user(node)
            if reader is not None and reader in grids and layer.can_round(grids[reader]):
                layer.round_output(grids[reader])
                reader.replace_all_uses_with(node)
                self.graph.erase_node(reader)

    def work_in_place(self) -> None:
        """Write over results that nobody else reads."""
        for node in self.graph.nodes:
            if node.target not in _IN_PLACE:
                continue
            if node.target is aten.add.Tensor and not node.kwargs:
                first, second = node.args
                if self._is_free(second, node) and not self._is_free(first, node):
                    node.args = (second, first)
            if self._is_free(node.args[0], node):
                node.target = _IN_PLACE[node.target]
        if self.integers:  # on a CPU, which alone has the operation
            self._rectify_sums()

    def _rectify_sums(self) -> None:
        for node in self.graph.find_nodes(op="call_function", target=aten.add_.Tensor):
            reader = _only_user(node)
            second = node.args[1]
            same = isinstance(second, fx.Node) and second.meta.get("shape") == node.meta["shape"]
            if same and reader is not None and reader.target is aten.relu_.default:
                node.target = aten._add_relu_.Tensor
                reader.replace_all_uses_with(node)
                self.graph.erase_node(reader)

    def _is_free(self, value: object, reader: fx.Node) -> bool:
        if not isinstance(value, fx.Node) or list(value.users) != [reader]:
            return False
        if value.meta.get("shape") != reader.meta.get("shape"):
            return False
        if value.op == "call_module":
            return isinstance(self.modules[str(value.target)], IntegerLayer)
        return value.target in _FRESH


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _geometry(node: fx.Node) -> Geometry | None:
    if node.target is aten.linear.default:
        return None
    return Geometry(*convolution_geometry(node), group_count(node))
