"""What the nodes of a traced graph read of the network that it was traced from."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch import fx

aten = torch.ops.aten


def attribute(graph_module: fx.GraphModule, node: object) -> Tensor | None:
    """The parameter or buffer that a node stands for; None if it stands for none."""
    if not isinstance(node, fx.Node):
        return None
    value = operator.attrgetter(str(node.target))(graph_module)
    return value.detach() if isinstance(value, Tensor) else None


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
