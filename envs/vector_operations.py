"""What happens between the layers of a traced network: additions, pooling, requantization."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from typing import Any

from torch import fx

from hwmodel import VectorOperation
from hwmodel.workload import VectorKind

_OPERATIONS: dict[str, tuple[VectorKind, ...]] = {
    **dict.fromkeys(("add", "sub", "rsub", "maximum", "minimum"), ("add",)),
    **dict.fromkeys(("mul", "div", "reciprocal", "square"), ("multiply",)),
    **dict.fromkeys(("addcmul", "addcdiv", "lerp"), ("multiply", "add")),
    "batch_norm": ("multiply", "add"),  # of those that no layer takes up
    # One pass for the mean and the variance, one to normalize, scale and shift.
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm"), ("multiply", "add") * 2),
    "rms_norm": ("multiply", "add", "multiply"),
    "upsample_linear1d": ("multiply",) * 2 + ("add",),
    "upsample_bilinear2d": ("multiply",) * 4 + ("add",) * 3,
    "upsample_bicubic2d": ("multiply",) * 16 + ("add",) * 15,
    **dict.fromkeys(
        (
            *("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean", "sum", "amax", "amin"),
            *("adaptive_max_pool1d", "adaptive_max_pool2d"),
        ),
        ("pool",),
    ),
    **dict.fromkeys(
        (
            *("relu", "relu6", "clamp", "clamp_min", "clamp_max", "hardtanh", "threshold"),
            *("leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "glu"),
            *("sigmoid", "hardsigmoid", "log_sigmoid", "logit", "hardswish", "softplus"),
            *("softmax", "log_softmax", "hardshrink", "softshrink", "tanh", "erf"),
            *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "sqrt", "rsqrt"),
            *("sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan", "atan2"),
            *("abs", "neg", "sign", "round", "floor", "ceil", "trunc", "frac"),
        ),
        ("activation",),
    ),
}
"""What is priced for each value, by names in ATen; views and the like cost nothing."""

_INPUT = -1
"""In place of a layer's number: the network's input."""

_POOLS_OF_WINDOWS = ("max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d")


@dataclass(frozen=True)
class BetweenLayers:
    """What a workload needs to know of a graph besides its layers.

    Attributes:
        operations: See ``hwmodel.Workload``.
        sources: For every layer, the layers whose maps it reads itself.
        values_read: For every layer, how many values it reads of each of these maps.
    """

    operations: list[VectorOperation] = field(default_factory=list)
    sources: list[tuple[int, ...]] = field(default_factory=list)
    values_read: list[tuple[float, ...]] = field(default_factory=list)


def between_layers(graph: fx.Graph, layers: list[fx.Node], batch: int) -> BetweenLayers:
    """Find the operations behind every layer, and the maps that each layer reads.

    An operation runs behind the last layer that it depends on, and writes what that layer would
    have written. Its other operands are maps of earlier layers, read once more.

    Args:
        graph: With shapes recorded on its nodes.
        layers: Nodes of its layers, in execution order.
        batch: Examples in the recorded shapes.
    """
    index = {node: position for position, node in enumerate(layers)}
    found = BetweenLayers()
    # Layers whose maps hold a node's values, and how many of these come of each.
    writers: dict[fx.Node, Mapping[int, float]] = {}
    for node in graph.nodes:
        operands = [writers[item] for item in node.all_input_nodes if writers[item]]
        if node.op == "placeholder":
            held = {_INPUT: math.prod(node.meta["shape"])}
        elif node in index:
            read = writers[node.all_input_nodes[0]]
            sources = tuple(sorted(read.keys() - {_INPUT}))
            found.sources.append(sources)
            found.values_read.append(tuple(read[source] / batch for source in sources))
            held = {index[node]: math.prod(node.meta["shape"])}
            values = math.prod(node.meta["shape"]) / batch
            _append(found, layers, "requantize", index[node], values, ())
        else:
            held = _held(node, operands)
            kinds = Counter(_OPERATIONS.get(operation_name(node), ()))
            last = max(held, default=_INPUT)
            if kinds and last != _INPUT:
                maps = {max(operand) for operand in operands}
                others = tuple(sorted(maps - {last, _INPUT}))
                for number, (kind, times) in enumerate(kinds.items()):
                    values = times * _values(node, kind, batch)
                    _append(found, layers, kind, last, values, () if number else others)
                if len(maps) > 1:  # one map takes the place of its operands
                    held = {last: math.prod(node.meta["shape"])}
        writers[node] = held
    return found


def _held(node: fx.Node, operands: list[Mapping[int, float]]) -> dict[int, float]:
    """How many of a node's values come of each layer: of all, the same part as of its operands."""
    held: dict[int, float] = {}
    for operand in operands:
        for writer, values in operand.items():
            held[writer] = held.get(writer, 0) + values
    shape, read = node.meta["shape"], sum(held.values())
    written = read if shape is None else math.prod(shape)  # several tensors are taken out later
    return {writer: values * written / read for writer, values in held.items() if written}


def _append(
    found: BetweenLayers,
    layers: list[fx.Node],
    kind: VectorKind,
    layer: int,
    values: float,
    reads: tuple[int, ...],
) -> None:
    channels = layers[layer].args[1].meta["shape"][0]  # type: ignore[union-attr]
    found.operations.append(VectorOperation(kind, layer, values / channels, reads))


def _values(node: fx.Node, kind: VectorKind, batch: int) -> float:
    """What an operation looks at: all that it writes, or, if it pools, what its windows read."""
    shape = node.meta["shape"]
    if kind != "pool":
        return math.prod(shape) / batch
    read = math.prod(node.all_input_nodes[0].meta["shape"])
    if operation_name(node) in _POOLS_OF_WINDOWS:
        window: Any = node.args[1]
        sides = window if isinstance(window, list | tuple) else [window]
        if all(isinstance(side, int) for side in sides):
            read = max(read, math.prod(shape) * math.prod(sides))  # windows may overlap
    return read / batch


def operation_name(node: fx.Node) -> str:
    """Name of a node's operation in ATen, without the underscore of what works in place."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", "")).removesuffix("_")
