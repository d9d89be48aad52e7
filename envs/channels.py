"""Which channels can only be removed together: labels that follow channels through a graph.

Every output channel of a layer gets a label. Labels travel through the operations of an exported
graph: operations that only move data are run on the labels themselves, element-wise operations
unite the labels that meet, and an operation that mixes channels, or that is not known, freezes
those that reach it. What is left is one *unit* for every set of channels that can be removed.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import torch
from torch import Tensor
from torch import fx

aten = torch.ops.aten

LAYER_OPS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.linear.default,
)

_PER_CHANNEL_OPS = (
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bilinear2d.default,
)
_REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
_UNTAGGED_POINTWISE_OPS = (
    aten.hardswish.default,
    aten.log_sigmoid.default,
    aten.expand.default,
    aten.expand_as.default,
)
_MOVING_OPS = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.cat.default,
    aten.contiguous.default,
    aten.clone.default,
)
"""Operations that only move data and whose arguments :mod:`envs.removal` can rewrite."""


_SPATIAL_RANK = {"1d": 3, "2d": 4}
"""Rank of a batch that pooling takes, by the end of the operation's name."""


@dataclass(frozen=True)
class Labels:
    """Labels of a tensor whose channels lie along one axis.

    Attributes:
        axis: The axis along which labels change.
        ids: One label per index of that axis, int64.
    """

    axis: int
    ids: Tensor


@dataclass
class ChannelLabels:
    """Unites labels that must be removed together (a union-find) and freezes those that stay."""

    parent: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)

    def fresh(self, count: int) -> Tensor:
        """``count`` labels that nothing else has."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def roots(self, ids: Tensor) -> list[int]:
        return [self.find(label) for label in ids.tolist()]

    def unite(self, left: Tensor, right: Tensor) -> None:
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            self.parent[self.find(one)] = self.find(other)

    def freeze(self, ids: Tensor) -> None:
        self.frozen.update(ids.tolist())

    def frozen_roots(self) -> set[int]:
        return {self.find(label) for label in self.frozen}


class LabelInterpreter:
    """Runs a graph on labels. Afterwards ``labels`` maps node names to what could be followed.

    Args:
        graph_module: Exported network; every node carries ``meta["shape"]``, the shape of its
            value on an example of two inputs (None where the value is no tensor).
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.channels = ChannelLabels()
        self.labels: dict[str, Labels] = {}
        self.constants: set[str] = set()
        self.layer_inputs: dict[str, Tensor] = {}
        self._parts: dict[str, list[Labels]] = {}
        for node in graph_module.graph.nodes:
            labels = self._run(node)
            if labels is not None:
                self.labels[node.name] = labels

    def _run(self, node: fx.Node) -> Labels | None:
        if node.op == "get_attr":
            self.constants.add(node.name)
            return None
        if node.op == "placeholder":
            shape = node.meta["shape"]
            ids = self.channels.fresh(shape[1] if len(shape) > 1 else 1)
            self.channels.freeze(ids)
            return Labels(axis=1, ids=ids)
        if node.op == "call_function":
            inputs = [item for item in node.all_input_nodes if item.meta["shape"] is not None]
            if inputs and all(item.name in self.constants for item in inputs):
                self.constants.add(node.name)
                return None
            labels = self._call(node)
            if labels is not None:
                return labels
        if node.name not in self._parts:
            self._freeze_inputs(node)
        return None

    def _call(self, node: fx.Node) -> Labels | None:
        target: Any = node.target
        if target in LAYER_OPS:
            return self._layer(node)
        if target in (aten.batch_norm.default, aten.prelu.default):
            return self._same_channels(node)
        if target in _PER_CHANNEL_OPS:
            return self._pool(node)
        if target in _REDUCTIONS:
            return self._reduce(node)
        if target in (aten.pad.default, aten.constant_pad_nd.default):
            return self._pad(node)
        if target in _MOVING_OPS:
            return self._move(node)
        if target in (aten.pixel_shuffle.default, aten.pixel_unshuffle.default):
            return self._shuffle(node)
        if target is operator.getitem:
            index: Any = node.args[1]
            parts = self._parts.get(input_node(node).name)
            return parts[index] if parts is not None else None
        is_pointwise = torch.Tag.pointwise in getattr(target, "tags", ())
        if is_pointwise or target in _UNTAGGED_POINTWISE_OPS:
            return self._pointwise(node)
        return None

    def _layer(self, node: fx.Node) -> Labels:
        source, weight = input_node(node), input_node(node, 1)
        out_channels, in_per_group = weight.meta["shape"][:2]
        is_linear = node.target is aten.linear.default
        axis = len(node.meta["shape"]) - 1 if is_linear else 1
        groups = 1 if is_linear else group_count(node)
        in_channels = in_per_group * groups
        known = self.labels.get(source.name)
        if known is not None and known.axis == axis:
            ids = known.ids
        else:
            self._freeze_inputs(node)
            ids = self.channels.fresh(in_channels)
            self.channels.freeze(ids)
        self.layer_inputs[node.name] = ids
        phases = node.meta.get("phases", 1)  # of a transposed convolution: they are one channel
        if groups == in_channels == out_channels // phases and groups > 1:  # depthwise
            return Labels(axis, ids.repeat_interleave(phases))
        outputs = self.channels.fresh(out_channels // phases).repeat_interleave(phases)
        if groups > 1:  # every group must keep as many channels as the others: none is removed
            self.channels.freeze(ids)
            self.channels.freeze(outputs)
        return Labels(axis, outputs)

    def _same_channels(self, node: fx.Node) -> Labels | None:
        source = input_node(node)
        labels = self.labels.get(source.name)
        rank = _SPATIAL_RANK.get(node.target.overloadpacket.__name__[-2:])  # type: ignore[union-attr]
        if labels is None or rank not in (None, len(source.meta["shape"])):
            return None
        return labels if labels.axis == 1 else None

    def _pool(self, node: fx.Node) -> Labels | None:
        labels = self._same_channels(node)
        if labels is None or node.meta["shape"] is not None:
            return labels
        self._parts[node.name] = [labels, labels]  # maxima, and where they are
        return None

    def _reduce(self, node: fx.Node) -> Labels | None:
        source = input_node(node)
        labels = self.labels.get(source.name)
        if labels is None:
            return None
        rank = len(source.meta["shape"])
        reduced: Any = node.args[1] if len(node.args) > 1 else None
        dims = sorted(dim % rank for dim in reduced or range(rank))
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        if labels.axis in dims:
            return None
        return Labels(labels.axis - (0 if keep else sum(d < labels.axis for d in dims)), labels.ids)

    def _pad(self, node: fx.Node) -> Labels | None:
        labels = self.labels.get(input_node(node).name)
        mode = node.args[2] if len(node.args) > 2 else "constant"
        if labels is None or (isinstance(mode, str) and mode != "constant"):
            return None
        low, high = axis_padding(node, labels.axis)
        if low < 0 or high < 0:
            return None
        ids = [self.channels.fresh(low), labels.ids, self.channels.fresh(high)]
        return Labels(labels.axis, torch.cat(ids))

    def _move(self, node: fx.Node) -> Labels | None:
        """Run a data movement on the labels themselves."""
        if node.target is aten.slice.Tensor and len(node.args) > 4 and node.args[4] != 1:
            source = self.labels.get(input_node(node).name)
            dim: Any = node.args[1]
            if source is None or source.axis == dim % len(input_node(node).meta["shape"]):
                return None  # every n-th channel: what is left would not be a slice
        if any(item.name not in self.labels for item in node.all_input_nodes if _is_tensor(item)):
            return None

        def value(item: fx.Node) -> Any:
            if not _is_tensor(item):
                return item.meta["value"]
            return self._expand(self.labels[item.name], item.meta["shape"])

        args = fx.node.map_arg(node.args, value)
        kwargs = fx.node.map_arg(node.kwargs, value)
        operation: Any = node.target
        moved = operation(*args, **kwargs)
        if isinstance(moved, Tensor):
            labels = _compress(moved)
            return labels if labels is not None and labels.axis > 0 else None
        parts = [_compress(part) for part in moved]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            self._parts[node.name] = known
        return None

    def _shuffle(self, node: fx.Node) -> Labels | None:
        """Several channels become one of larger maps, or the other way round."""
        labels, factor = self.labels.get(input_node(node).name), int(node.args[1])  # type: ignore[arg-type]
        if labels is None or labels.axis != len(node.meta["shape"]) - 3:
            return None
        if node.target is aten.pixel_unshuffle.default:
            return Labels(labels.axis, labels.ids.repeat_interleave(factor**2))
        phases = labels.ids.view(-1, factor**2)
        for phase in phases[:, 1:].T:
            self.channels.unite(phases[:, 0], phase)
        return Labels(labels.axis, phases[:, 0].clone())

    def _pointwise(self, node: fx.Node) -> Labels | None:
        shape = node.meta["shape"]
        found: list[Labels] = []
        for item in node.all_input_nodes:
            if item.name in self.constants or not _is_tensor(item):
                continue
            if item.name not in self.labels:
                return None
            labels = self.labels[item.name]
            axis = labels.axis + len(shape) - len(item.meta["shape"])
            if len(labels.ids) != shape[axis]:  # broadcast along its own channel axis
                return None
            found.append(Labels(axis, labels.ids))
        if not found or any(labels.axis != found[0].axis for labels in found):
            return None
        for labels in found[1:]:
            self.channels.unite(found[0].ids, labels.ids)
        constants = [item for item in node.all_input_nodes if item.name in self.constants]
        if any(item.op != "get_attr" and _varies(item, node, found[0].axis) for item in constants):
            return None
        return found[0]

    def _freeze_inputs(self, node: fx.Node) -> None:
        for item in node.all_input_nodes:
            if item.name in self.labels:
                self.channels.freeze(self.labels[item.name].ids)
            for part in self._parts.get(item.name, []):
                self.channels.freeze(part.ids)

    @staticmethod
    def _expand(labels: Labels, shape: tuple[int, ...]) -> Tensor:
        view = [1] * len(shape)
        view[labels.axis] = -1
        return labels.ids.view(view).expand(shape)


def input_node(node: fx.Node, position: int = 0) -> fx.Node:
    """The node that is a node's argument at ``position``."""
    value: Any = node.args[position]
    return value


def group_count(node: fx.Node) -> int:
    """Groups of a convolution node."""
    groups: Any = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    return int(groups)


def axis_padding(node: fx.Node, axis: int) -> tuple[int, int]:
    """What a padding node adds (before, after) along one axis."""
    pads: Any = node.args[1]
    position = 2 * (len(input_node(node).meta["shape"]) - 1 - axis)
    return (pads[position], pads[position + 1]) if position < len(pads) else (0, 0)


def _is_tensor(node: fx.Node) -> bool:
    return node.meta["shape"] is not None


def _varies(constant: fx.Node, node: fx.Node, axis: int) -> bool:
    """Whether a constant operand of an element-wise node changes along the node's axis."""
    shape = constant.meta["shape"]
    position = axis - len(node.meta["shape"]) + len(shape)
    return position >= 0 and shape[position] != 1


def _compress(labels: Tensor) -> Labels | None:
    """The one axis along which labels change; None if there are several."""
    varying = [
        axis
        for axis, size in enumerate(labels.shape)
        if size > 1 and bool((labels != labels.narrow(axis, 0, 1)).any())
    ]
    if len(varying) > 1 or math.prod(labels.shape) == 0:
        return None
    axis = varying[0] if varying else min(1, labels.ndim - 1)
    index: list[Any] = [0] * labels.ndim
    index[axis] = slice(None)
    return Labels(axis, labels[tuple(index)].clone())
