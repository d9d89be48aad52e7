"""Channel units: the sets of output channels that are removed together, and who reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch import fx

from envs.channels import LabelInterpreter
from envs.channels import Labels


@dataclass(frozen=True)
class ChannelUnits:
    """What can be removed from a network, channel by channel.

    A unit is a set of output channels, of one layer or of several coupled ones, that are removed
    together. Layers that share a unit, directly or through others, form a group.

    Attributes:
        group: For every layer its group, numbered by the first layer in it, or -1 where output
            channels cannot be removed, (layers,).
        out_units: For every layer the unit of each output channel, -1 where it must stay.
        in_units: For every layer the unit of each input channel, -1 where it must stay.
        unit_group: Group of every unit, (units,).
        signature: Units with the same number are on the same way through the graph, (units,).
        node_units: Axis and unit (-1: stays) of every index along it, by node of the graph.
    """

    group: tuple[int, ...]
    out_units: tuple[Tensor, ...]
    in_units: tuple[Tensor, ...]
    unit_group: Tensor
    signature: Tensor
    node_units: dict[str, Labels]

    def layers_of(self, group: int) -> list[int]:
        return [layer for layer, number in enumerate(self.group) if number == group]


def is_removed(units: Tensor, removed: Tensor) -> Tensor:
    """Which channels go: those of ``units`` (-1: stays) whose unit is in ``removed``, bool."""
    if not len(removed):
        return torch.zeros(len(units), dtype=torch.bool)
    return (units >= 0) & removed[units.clamp_min(0)]


def channel_units(
    interpreter: LabelInterpreter, graph_module: fx.GraphModule, nodes: list[str]
) -> ChannelUnits:
    """Turn the labels of a graph into units.

    Args:
        interpreter: Has run on the graph.
        graph_module: The graph.
        nodes: Names of the layers' nodes in execution order.
    """
    channels = interpreter.channels
    outputs = [channels.roots(interpreter.labels[node].ids) for node in nodes]
    frozen = channels.frozen_roots()
    while True:  # a layer that must keep one channel keeps all: its decision is one number
        stuck = [roots for roots in outputs if not frozen.isdisjoint(roots)]
        grown = frozen.union(*stuck)
        if grown == frozen:
            break
        frozen = grown
    group_of_layer = _groups(outputs, frozen)
    members: dict[int, set[int]] = {}
    for layer, roots in enumerate(outputs):
        if group_of_layer[layer] >= 0:
            for root in roots:
                members.setdefault(root, set()).add(layer)
    unit_of = {root: unit for unit, root in enumerate(members)}
    readers: dict[int, set[int]] = {root: set() for root in members}
    for layer, node in enumerate(nodes):
        for root in set(channels.roots(interpreter.layer_inputs[node])) & set(members):
            readers[root].add(layer)
    passes: dict[int, set[str]] = {root: set() for root in members}
    for name, labels in interpreter.labels.items():
        for root in set(channels.roots(labels.ids)) & set(members):
            passes[root].add(name)
    # Units that take different ways are thinned alike, so that no part of a split gets empty.
    places = {root: (tuple(sorted(readers[root])), tuple(sorted(passes[root]))) for root in members}
    signatures = sorted(set(places.values()))
    groups = [group_of_layer[min(layers)] for layers in members.values()]
    signature = [signatures.index(place) for place in places.values()]

    def units(ids: Tensor) -> Tensor:
        return torch.tensor([unit_of.get(root, -1) for root in channels.roots(ids)])

    return ChannelUnits(
        group=tuple(group_of_layer),
        out_units=tuple(units(interpreter.labels[node].ids) for node in nodes),
        in_units=tuple(units(interpreter.layer_inputs[node]) for node in nodes),
        unit_group=torch.tensor(groups, dtype=torch.int64),
        signature=torch.tensor(signature, dtype=torch.int64),
        node_units={
            name: Labels(labels.axis, units(labels.ids))
            for name, labels in interpreter.labels.items()
            if name in {node.name for node in graph_module.graph.nodes}
        },
    )


def _groups(outputs: list[list[int]], frozen: set[int]) -> list[int]:
    """Number of every layer's group of layers that share channels; -1 for frozen layers."""
    groups = [-1] * len(outputs)
    owner: dict[int, int] = {}
    parent = list(range(len(outputs)))

    def find(layer: int) -> int:
        while parent[layer] != layer:
            layer = parent[layer]
        return layer

    for layer, roots in enumerate(outputs):
        for root in roots:
            first = owner.setdefault(root, layer)
            one, other = find(first), find(layer)
            parent[max(one, other)] = min(one, other)
    numbers: dict[int, int] = {}
    for layer, roots in enumerate(outputs):
        if frozen.isdisjoint(roots):
            groups[layer] = numbers.setdefault(find(layer), len(numbers))
    return groups
