"""Which feature maps of a traced network wait in memory until something reads them again.

An accelerator runs a layer and the operations behind it (an activation, the addition of a shortcut)
as one module, rounds what comes out, and writes it once. Whoever needs it later gets what was
written: the next layers, and also an addition whose other operand it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from envs.vector_operations import operation_name

_MOVING = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "getitem", "cat",
    "stack", "contiguous", "clone", "expand", "pad", "constant_pad_nd", "roll", "channel_shuffle",
    "pixel_shuffle", "pixel_unshuffle",
}  # fmt: skip
"""Operations that move values and compute none, by their names in ATen."""


@dataclass(frozen=True)
class StoredMap:
    """A map that an operation reads from memory, or that several layers read.

    Attributes:
        node: Name of the node whose value it is.
        writer: Index of the last layer that it depends on, which writes it.
        reader: Index of the first layer that reads it as it is; None if none does.
    """

    node: str
    writer: int
    reader: int | None


@dataclass(frozen=True)
class MapFlow:
    """Who reads the maps of a network.

    Attributes:
        stored: The maps that are read from memory by others than one layer.
        asked_by: For every layer, the layers whose inputs say how wide its output is written.
    """

    stored: tuple[StoredMap, ...]
    asked_by: tuple[tuple[int, ...], ...]


def follow_maps(
    graph: fx.Graph, layers: list[fx.Node], sources: Sequence[Sequence[int]]
) -> MapFlow:
    """Find out who reads which map.

    An operation runs behind the last layer that it depends on. What it needs of earlier layers has
    been written by then; what comes from this layer is on its way to memory and is not read from
    there. The network's input is none of the network's maps.

    Args:
        graph: With shapes and types recorded on its nodes.
        layers: Nodes of its layers, in execution order.
        sources: For every layer, those whose maps it reads, see ``hwmodel.Workload``.
    """
    index = {node: position for position, node in enumerate(layers)}
    writer: dict[fx.Node, int] = {}  # of all nodes whose values depend on the network's input
    holds: dict[fx.Node, frozenset[fx.Node]] = {}  # whose values a node has, moved or as they are
    comes_of: dict[fx.Node, frozenset[fx.Node]] = {}  # the same, and computed on the way to memory
    readers: dict[fx.Node, list[int]] = {}
    again: list[tuple[fx.Node, fx.Node, frozenset[fx.Node]]] = []  # operation, operand, its maps
    for node in graph.nodes:
        read = [item for item in node.all_input_nodes if item in writer]
        if node.op == "placeholder":
            writer[node] = -1
        elif node in index:
            writer[node] = index[node]
            if read:  # a layer may depend on parameters alone
                readers.setdefault(read[0], []).append(index[node])
        elif read:
            writer[node] = max(writer[item] for item in read)
        held = _union(holds[item] for item in read)
        is_moved = node.op == "call_function" and operation_name(node) in _MOVING and bool(held)
        # Of several tensors that an operation returns each is held by what takes it out.
        itself = frozenset([node] if node.meta.get("shape") is not None else [])
        holds[node] = held if is_moved else itself
        passed = _union(comes_of[item] for item in read)
        if not is_moved:
            passed = frozenset(of for of in passed if _is_on_the_way(of, node, writer)) | itself
        comes_of[node] = passed
        if node.op == "call_function" and node not in index and not is_moved:
            for item in read:
                maps = frozenset(of for of in holds[item] if writer[of] < writer[node])
                again.append((node, item, maps))
    stored = {node for node, indices in readers.items() if len(indices) > 1}
    for _, item, earlier in again:  # what layers read put together is written put together
        stored |= {item} if earlier and item in readers else earlier
    found = tuple(
        StoredMap(node.name, writer[node], min(readers[node]) if node in readers else None)
        for node in graph.nodes
        if node in stored and writer[node] >= 0 and node.meta["dtype"].is_floating_point
    )
    asking: dict[fx.Node, set[int]] = {}
    for node, indices in readers.items():
        for map_ in comes_of[node]:
            asking.setdefault(map_, set()).update(indices)
    results: dict[fx.Node, set[int]] = {}
    for node, _, earlier in again:
        for map_ in earlier:
            results.setdefault(map_, set()).add(writer[node])
    return MapFlow(found, _asked_by(writer, asking, results, sources))


def _is_on_the_way(map_: fx.Node, node: fx.Node, writer: dict[fx.Node, int]) -> bool:
    """Whether a node is a map that the same layer writes, further computed but not made smaller.

    What is made smaller, as by pooling for a gate, is a map of its own.
    """
    shapes = map_.meta["shape"], node.meta.get("shape")
    if shapes[1] is None or writer[map_] != writer[node]:
        return False
    return math.prod(shapes[1]) >= math.prod(shapes[0])


def _asked_by(
    writer: dict[fx.Node, int],
    asking: dict[fx.Node, set[int]],
    results: dict[fx.Node, set[int]],
    sources: Sequence[Sequence[int]],
) -> tuple[tuple[int, ...], ...]:
    """See :class:`MapFlow`.

    Args:
        writer: Layer that writes every node's value.
        asking: Layers that read a node's value.
        results: Layers behind which operations read it from memory.
        sources: See :func:`follow_maps`.
    """
    asked: list[set[int]] = [set() for _ in sources]
    for reader, producers in enumerate(sources):
        for producer in producers:
            asked[producer].add(reader)
    # What an operation gives is written behind a later layer than what it reads from memory.
    for node in sorted(asking.keys() | results.keys(), key=lambda node: -writer[node]):
        if writer[node] < 0:
            continue
        if node in asking:
            asked[writer[node]] |= asking[node]
        else:
            asked[writer[node]] |= set[int]().union(*(asked[of] for of in results[node]))
    return tuple(tuple(sorted(layers_asking)) for layers_asking in asked)


def _union(sets: Iterable[frozenset[fx.Node]]) -> frozenset[fx.Node]:
    return frozenset[fx.Node]().union(*sets)
