"""What the nodes of a traced graph read of the network that it was traced from."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch import fx

from hwmodel import InputError

aten = torch.ops.aten


def attribute(graph_module: fx.GraphModule, node: object) -> Tensor | None:
    """The parameter or buffer that a node stands for; None if it stands for none."""
    if not isinstance(node, fx.Node):
        return None
    value = operator.attrgetter(str(node.target))(graph_module)
    return value.detach() if isinstance(value, Tensor) else None


def require_own_parameters(graph_module: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Refuse a layer whose weights or bias are computed, or whose weights are read elsewhere too.

    Args:
        graph_module: The graph.
        node: Convolution, transposed convolution or linear layer.
        name: Of the network.

    Raises:
        InputError: a weight or bias is no parameter, or weights are used twice.
    """
    weight: Any = node.args[1]
    bias: Any = node.args[2] if len(node.args) > 2 else None
    for role, constant in (("weights", weight), ("bias", bias)):
        if constant is not None and constant.op != "get_attr":
            raise InputError(f"network {name}", node.name, f"its {role} must be a parameter")
    reads = graph_module.graph.find_nodes(op="get_attr")
    if sum(len(read.users) for read in reads if read.target == weight.target) > 1:
        raise InputError(f"network {name}", weight.target, "its weights may be used only once")


def batch_norm_behind(node: fx.Node) -> fx.Node | None:
    """The batch norm that alone reads a layer's outputs, if it normalizes their channels."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not aten.batch_norm.default:
        return None
    norm = users[0]
    if node.target is aten.linear.default and len(node.meta["shape"]) != 2:
        return None  # it normalizes the tokens' axis, not the features
    constants = [arg for arg in norm.args[1:5] if isinstance(arg, fx.Node)]
    has_statistics = norm.args[3] is not None and norm.args[4] is not None
    return norm if has_statistics and all(arg.op == "get_attr" for arg in constants) else None
