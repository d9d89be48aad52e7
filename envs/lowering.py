"""Makes a compressed network run fast: integer layers, fused roundings, no needless memory."""

from __future__ import annotations

from collections.abc import Sequence
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
from envs.quantization import round_map
from envs.quantization import undivided
from envs.removal import map_grids
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


class _OnGrid(nn.Module):
    """What maps pass on their way to or from a grid."""

    def __init__(self, grid: ActivationRange) -> None:
        super().__init__()
        self.grid = grid


class RoundedInput(_OnGrid):
    """Rounds what passes to a grid."""

    def forward(self, x: Tensor) -> Tensor:
        return quantize_activation(x, self.grid)


class IntegersOfInput(_OnGrid):
    """Gives the integers, as floats, of what passes on a grid."""

    def forward(self, x: Tensor) -> Tensor:
        return activation_integers(x, self.grid)


class RoundedMap(_OnGrid):
    """Rounds a stored map to a grid, for readers that do not equalize it."""

    def forward(self, x: Tensor) -> Tensor:
        return round_map(x, self.grid)


class ValuesOfIntegers(_OnGrid):
    """Gives what bytes on a grid stand for: :class:`RoundedMap` of the map that they are of."""

    def forward(self, x: Tensor) -> Tensor:
        values = x.float()
        if self.grid.low:
            values += self.grid.low
        values *= self.grid.scale
        return undivided(values, self.grid)


_FRESH_MODULES = (IntegerLayer, ValuesOfIntegers)

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
    grids: list[ActivationRange] = []
    scales: list[Tensor | None] = []
    for index, layer in enumerate(compressed.layers):
        units = network.units.in_units[index], network.units.out_units[index]
        kept_in, kept_out = (~is_removed(of_channels, removed) for of_channels in units)
        grids.append(layer.input_range.of_channels(kept_in))
        scales.append(layer.scale_of(kept_in, kept_out))
    for number, grid in enumerate(map_grids(network, compressed, removed)):
        lowering.lower_map(f"map_{number}", grid, grids)
    for index, (traced, layer) in enumerate(zip(network.layers, compressed.layers, strict=True)):
        lowering.lower_layer(index, traced.node, layer, grids[index], scales[index])
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

    def lower_map(self, name: str, grid: ActivationRange, grids: Sequence[ActivationRange]) -> None:
        """Exchange the rounding of a stored map.

        Layers that round to the map's own grid can read the map as it was before: that is the same.

        Args:
            name: Of the module.
            grid: Of the map, for the channels that the graph still has.
            grids: Of the inputs of all layers.
        """
        (node,) = self.graph.find_nodes(op="call_module", target=name)
        source: Any = node.args[0]
        alike = {f"input_{index}" for index, of_layer in enumerate(grids) if of_layer == grid}
        for reader in list(node.users):
            if grid.bits == 32 or reader.target in alike:
                reader.replace_input_with(node, source)
        if node.users:
            with self.graph.inserting_before(node):
                if self.integers and grid.bits not in FLOAT_BITS:
                    integers = self._module(name, IntegerInput(grid), source)
                    self.inputs[source, grid, IntegerInput] = integers
                    written = self._module(f"{name}_values", ValuesOfIntegers(grid), integers)
                else:
                    written = self._module(name, RoundedMap(grid), source)
            node.replace_all_uses_with(written)
        self.graph.erase_node(node)

    def _module(self, name: str, module: nn.Module, source: fx.Node) -> fx.Node:
        """A node that passes a node's values through a new module."""
        self.modules[name] = module
        node = self.graph.call_module(name, (source,))
        node.meta.update(source.meta)
        return node

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
            with self.graph.inserting_before(read):
                name = f"rounded_{len(self.inputs)}"
                self.inputs[key] = self._module(name, rounding(grid), source)
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
            if reader is not None and reader.target is aten.add.Tensor:
                self._fuse_sum(node, layer, reader, grids)
                continue
            if reader is not None and reader.target is aten.relu.default:
                layer.rectify()
                reader.replace_all_uses_with(node)
                self.graph.erase_node(reader)
                reader = _only_user(node)
            if reader is not None and reader in grids and layer.can_round(grids[reader]):
                layer.round_output(grids[reader])
                reader.replace_all_uses_with(node)
                self.graph.erase_node(reader)

    def _fuse_sum(
        self,
        node: fx.Node,
        layer: IntegerLayer,
        total: fx.Node,
        grids: dict[fx.Node, ActivationRange],
    ) -> None:
        """Let a layer add a stored map to its output, rectify the sum, and round it.

        Args:
            node: The layer's node, which nothing reads but the addition.
            layer: The layer.
            total: The addition's node.
            grids: Of the nodes that round to bytes.
        """
        other = next((item for item in total.args if item is not node), None)
        last = _only_user(total)
        relu = last if last is not None and last.target is aten.relu.default else None
        rounding = last if relu is None else _only_user(relu)
        if not isinstance(other, fx.Node) or other.op != "call_module" or total.kwargs:
            return
        if rounding not in grids:
            return
        values, grid = self.modules[str(other.target)], grids[rounding]
        same = other.meta.get("shape") == node.meta.get("shape") is not None
        if not (isinstance(values, ValuesOfIntegers) and same and grid.divided is None):
            return
        integers = other.all_input_nodes[0]
        if not (layer.can_add(values.grid) and layer.can_round(grid) and integers < node):
            return
        # It will be written over, and ``other`` may go on to be fused with a later layer.
        if len(other.users) > 1 or any(not user < node for user in integers.users):
            with self.graph.inserting_before(node):
                integers = self.graph.call_function(aten.clone.default, (integers,))
        if relu is not None:
            layer.rectify()
        layer.add(values.grid)
        layer.round_output(grid)
        node.args = (node.args[0], integers)
        rounding.replace_all_uses_with(node)
        for unused in (rounding, relu, total, other):
            if unused is not None and not unused.users:
                self.graph.erase_node(unused)

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
            return isinstance(self.modules[str(value.target)], _FRESH_MODULES)
        return value.target in _FRESH


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _geometry(node: fx.Node) -> Geometry | None:
    if node.target is aten.linear.default:
        return None
    return Geometry(*convolution_geometry(node), group_count(node))
