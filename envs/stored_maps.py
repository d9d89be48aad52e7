"""Which feature maps of a traced network wait in memory until something reads them again.

An accelerator runs a layer and the operations behind it (an activation, the addition of a shortcut)
as one module, rounds what comes out, and writes it once. Whoever needs it later gets what was
written: the next layers, and also an addition whose other operand it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

_MOVING = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "getitem", "cat",
    "stack", "contiguous", "clone", "expand", "pad", "constant_pad_nd", "roll", "channel_shuffle",
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


def find_stored_maps(graph: fx.Graph, layers: list[fx.Node]) -> tuple[StoredMap, ...]:
    """The maps of a graph that are read from memory by others than one layer.

    An operation runs behind the last layer that it depends on. What it needs of earlier layers has
    been written by then; what comes from this layer is on its way to memory and is not read from
    there. The network's input is none of the network's maps.

    Args:
        graph: With shapes and types recorded on its nodes.
        layers: Nodes of its layers, in execution order.
    """
    index = {node: position for position, node in enumerate(layers)}
    writer: dict[fx.Node, int] = {}  # of all nodes whose values depend on the network's input
    holds: dict[fx.Node, frozenset[fx.Node]] = {}  # whose values a node has, moved or as they are
    readers: dict[fx.Node, list[int]] = {}
    again: list[tuple[fx.Node, set[fx.Node]]] = []  # operands, and the earlier maps in them
    for node in graph.nodes:
        read = [item for item in node.all_input_nodes if item in writer]
        if node.op == "placeholder":
            writer[node] = -1
        elif node in index:
            writer[node] = index[node]
            readers.setdefault(read[0], []).append(index[node])
        elif read:
            writer[node] = max(writer[item] for item in read)
        held = frozenset[fx.Node]().union(*(holds[item] for item in read))
        is_moved = node.op == "call_function" and _name(node) in _MOVING and bool(held)
        # Of several tensors that an operation returns each is held by what takes it out.
        is_tensor = node.meta.get("shape") is not None
        holds[node] = held if is_moved else frozenset([node] if is_tensor else [])
        if node.op == "call_function" and node not in index and not is_moved:
            for item in read:
                earlier = {of for of in holds[item] if writer[of] < writer[node]}
                again.append((item, earlier))
    stored = {node for node, indices in readers.items() if len(indices) > 1}
    for item, earlier in again:  # what layers read put together is written put together
        stored |= {item} if earlier and item in readers else earlier
    return tuple(
        StoredMap(node.name, writer[node], min(readers[node]) if node in readers else None)
        for node in graph.nodes
        if node in stored and writer[node] >= 0 and node.meta["dtype"].is_floating_point
    )


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", "")).removesuffix("_")
