"""From any nn.Module to layers, a workload, and a graph whose weights can be swapped."""

from __future__ import annotations

import io
import logging
import math
import operator
import warnings
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import fx
from torch import nn

from envs.channels import LAYER_OPS
from envs.channels import LabelInterpreter
from envs.channels import group_count
from envs.parameters import attribute
from envs.parameters import batch_norm_behind
from envs.parameters import require_own_parameters
from envs.stored_maps import StoredMap
from envs.stored_maps import follow_maps
from envs.transposed import replace_transposed_convolutions
from envs.units import ChannelUnits
from envs.units import channel_units
from envs.vector_operations import between_layers
from hwmodel import InputError
from hwmodel import LayerShape
from hwmodel import Workload

aten = torch.ops.aten

EXAMPLE_BATCH = 2
"""Inputs in the example that shapes are recorded on; one would be taken for a constant."""

_UNPRICED_OPS = {
    "conv3d", "conv_transpose3d", "lstm", "gru", "rnn_tanh", "rnn_relu", "embedding",
    "embedding_bag", "bilinear",
}  # fmt: skip
_LAYERS = "Linear, Conv1d, Conv2d, ConvTranspose1d or ConvTranspose2d"
_PRODUCT_OPS = {"matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"}


@dataclass(frozen=True)
class TracedLayer:
    """A convolution or linear layer, with the batch norm behind it.

    Attributes:
        name: Path in the network.
        shape: What the hardware sees.
        node: Name of its node in the graph.
        weight: As trained, before folding, (out_channels, in_channels / groups, *kernel).
        fold_scale: What folding the batch norm multiplies each output channel by, (out_channels,).
        bias: Bias after folding, (out_channels,).
    """

    name: str
    shape: LayerShape
    node: str
    weight: Tensor
    fold_scale: Tensor
    bias: Tensor

    @property
    def folded_weight(self) -> Tensor:
        return self.weight * self.fold_scale.view(-1, *[1] * (self.weight.ndim - 1))

    @property
    def channel_axis(self) -> int:
        """Axis of the channels in its input and output: 1, or -1 of a linear layer."""
        return -1 if self.weight.ndim == 2 else 1

    @property
    def rows(self) -> Tensor:
        """Weights as (groups, out_channels / groups, in_channels / groups * kernel)."""
        return self.weight.reshape(self.shape.groups, -1, self.weight[0].numel())


@dataclass(frozen=True)
class TracedNetwork:
    """A network as a graph of known operations.

    Attributes:
        graph_module: Batch norms folded where possible; layer i reads ``weight_i`` and ``bias_i``
            and its input passes through the submodule ``input_i``. Stored map j passes through
            ``map_j`` on its way to all that read it.
        layers: In execution order.
        maps: Those that others than one layer read.
        same_input: For every layer, the first one that reads the same values along the same axis.
        workload: Their shapes, and which feeds which.
        units: Which channels can be removed, and with which others.
    """

    graph_module: fx.GraphModule
    layers: tuple[TracedLayer, ...]
    maps: tuple[StoredMap, ...]
    same_input: tuple[int, ...]
    workload: Workload
    units: ChannelUnits

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)


def trace(network: nn.Module, example: Tensor, name: str) -> TracedNetwork:
    """Trace a network with ``torch.export`` and find its layers and coupled channels.

    Args:
        network: In evaluation mode; takes one tensor, returns one tensor.
        example: A batch of inputs, (batch >= 1, ...); only its shape and type matter.
        name: Name of the workload.

    Raises:
        InputError: the network cannot be exported, contains an operation with weights that
            cannot be priced, or uses the same weights twice.
    """
    inputs = torch.randn(EXAMPLE_BATCH, *example.shape[1:])
    with torch.no_grad():
        expected = network.eval()(inputs)
    if not isinstance(expected, Tensor):
        allowed = "its forward must return one tensor: wrap it in a module that takes that out"
        raise InputError(f"output of network {name}", type(expected).__name__, allowed)
    graph_module = _export(network, inputs, name)
    _make_functional(graph_module)
    graph_module.graph.eliminate_dead_code()  # a layer that nothing depends on costs nothing
    _fold_constants(graph_module)
    replace_transposed_convolutions(graph_module, name)
    _record_shapes(graph_module, inputs)
    _refuse_unpriced(graph_module, name)
    nodes = _layer_nodes(graph_module, name)
    layers = tuple(_layer(graph_module, node) for node in nodes)
    _fold_batch_norms(graph_module, nodes)
    interpreter = LabelInterpreter(graph_module)
    between = between_layers(graph_module.graph, nodes, EXAMPLE_BATCH)
    flow = follow_maps(graph_module.graph, nodes, between.sources)
    workload = Workload(
        name,
        tuple(layer.shape for layer in layers),
        _feeds(graph_module, nodes),
        tuple(between.operations),
        tuple(between.sources),
        flow.asked_by,
        tuple(between.values_read),
    )
    units = channel_units(interpreter, graph_module, [layer.node for layer in layers])
    same_input = _first_readers(nodes, layers)
    for index, (node, layer) in enumerate(zip(nodes, layers, strict=True)):
        _attach_layer(graph_module, index, node, layer)
    for number, stored in enumerate(flow.stored):
        _attach_map(graph_module, number, stored)
    _drop_unused_parameters(graph_module)
    graph_module.recompile()
    _require_same_outputs(graph_module, inputs, expected, name)
    return TracedNetwork(graph_module, layers, flow.stored, same_input, workload, units)


def _export(network: nn.Module, example: Tensor, name: str) -> fx.GraphModule:
    try:
        # Without no_grad the network's own would become a part of the graph.
        with torch.no_grad(), _silenced():
            program = torch.export.export(
                network.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
    except Exception as error:  # torch.export raises many kinds; the user needs the reason
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        if "batch" in reason:
            reason += " (its forward must take any batch size: x.shape[0], not len(x))"
        raise InputError("network", name, f"torch.export cannot trace it: {reason}") from error
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    _flatten_signature(graph_module)
    return graph_module


@contextmanager
def _silenced() -> Iterator[None]:
    """Without the graphs that torch.export prints where it fails, and what it warns of."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def _flatten_signature(graph_module: fx.GraphModule) -> None:
    """One tensor in, one tensor out, instead of the trees that torch.export packs them in."""
    graph_module.graph.set_codegen(fx.graph.CodeGen())
    (output,) = graph_module.graph.find_nodes(op="output")
    value: Any = output.args[0]
    output.args = (value[0],) if isinstance(value, tuple | list) else (value,)
    graph_module.recompile()


def _make_functional(graph_module: fx.GraphModule) -> None:
    """Remove dropout; replace in-place operations on tensors that have no views; free views.

    A view of a channels-last tensor may be impossible where a reshape is not.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target.overloadpacket.__name__
        source: Any = node.args[0] if node.args else None
        if name in ("dropout", "dropout_", "feature_dropout", "alpha_dropout"):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            continue
        if node.target is aten.view.default:
            node.target = aten.reshape.default
            continue
        functional = getattr(aten, name.removesuffix("_"), None)
        if not name.endswith("_") or name.endswith("__") or functional is None:
            continue
        overload = getattr(functional, node.target._overloadname, None)
        if overload is None or _aliases(source) or any(map(_is_view, source.users)):
            continue
        if not _keeps_dtype(node, overload):
            continue
        node.target = overload
        later = [user for user in source.users if user is not node and node < user]
        for user in later:
            user.replace_input_with(source, node)
    graph.lint()


def _aliases(node: object) -> bool:
    """Whether a node returns memory of what it reads: as a view, or written over."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is operator.getitem:  # of what several views are in
        return _aliases(node.args[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(item.alias_info is not None for item in node.target._schema.returns)


def _is_view(node: fx.Node) -> bool:
    return _aliases(node) and not node.target._schema.is_mutable  # type: ignore[union-attr]


def _keeps_dtype(node: fx.Node, overload: torch._ops.OpOverload) -> bool:
    """Whether an operation in place would give the same dtype if it were not."""

    def like(item: fx.Node) -> Tensor:
        value = item.meta["val"]
        return torch.empty((1,) * value.ndim, dtype=value.dtype, device="meta")

    try:
        args: Any
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), like)
        return bool(overload(*args, **kwargs).dtype == args[0].dtype)
    except Exception:  # of many kinds: then it stays as it is
        return False


def _fold_constants(graph_module: fx.GraphModule) -> None:
    """Compute once what depends on parameters alone, what is written in place included."""
    graph = graph_module.graph
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            value = attribute(graph_module, node)
            if value is not None:  # not a submodule, as of a branch
                values[node] = value
        elif _is_computed(node) and inputs and all(item in values for item in inputs):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    computed = [node for node in values if node.op == "call_function"]
    for node in computed:
        if isinstance(values[node], Tensor) and any(user not in values for user in node.users):
            graph_module.register_buffer(f"constant_{node.name}", values[node].detach().clone())
            with graph.inserting_before(node):
                constant = graph.get_attr(f"constant_{node.name}")
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in values)
    for node in reversed(computed):
        if not node.users:
            graph.erase_node(node)


def _is_computed(node: fx.Node) -> bool:
    return node.target is operator.getitem or isinstance(node.target, torch._ops.OpOverload)


def _require_same_outputs(
    graph_module: fx.GraphModule, inputs: Tensor, expected: Tensor, name: str
) -> None:
    """Refuse a network that the graph does not reproduce, whatever the reason."""
    with torch.no_grad():
        difference = (graph_module(inputs) - expected).abs().max()
    if not difference <= 1e-3 * expected.abs().max() + 1e-5:
        allowed = "an operation changes a tensor in place behind its views, or is random"
        raise InputError("network", name, f"its trace computes something else; {allowed}")


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        node.meta["dtype"] = value.dtype if isinstance(value, Tensor) else None
        if not isinstance(value, Tensor):
            node.meta["value"] = value
        return value


def _record_shapes(graph_module: fx.GraphModule, example: Tensor) -> None:
    with torch.no_grad():
        output = _ShapeRecorder(graph_module).run(example)
    if not isinstance(output, Tensor):
        raise InputError("network", type(output).__name__, "its forward must return one tensor")


def _refuse_unpriced(graph_module: fx.GraphModule, name: str) -> None:
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        operation = node.target.overloadpacket.__name__
        has_weights = any(item.op == "get_attr" for item in node.all_input_nodes)
        if operation in _UNPRICED_OPS or (operation in _PRODUCT_OPS and has_weights):
            where = next(
                (item.target for item in node.all_input_nodes if item.op == "get_attr"), node.name
            )
            raise InputError(
                f"network {name}", f"{operation} ({where})", f"use {_LAYERS} for weights"
            )


def _layer_nodes(graph_module: fx.GraphModule, name: str) -> list[fx.Node]:
    nodes = [node for node in graph_module.graph.nodes if node.target in LAYER_OPS]
    for node in nodes:
        require_own_parameters(graph_module, node, name)
    if not nodes:
        raise InputError("network", name, f"it needs one layer at least: {_LAYERS}")
    return nodes


def _layer(graph_module: fx.GraphModule, node: fx.Node) -> TracedLayer:
    """The layer of one node, with the batch norm behind it folded into scale and bias."""
    weight = attribute(graph_module, node.args[1])
    assert weight is not None
    bias = attribute(graph_module, node.args[2]) if len(node.args) > 2 else None
    scale = torch.ones(weight.shape[0])
    shift = torch.zeros(weight.shape[0]) if bias is None else bias.clone()
    norm = batch_norm_behind(node)
    if norm is not None:
        gamma, beta, mean, variance = (attribute(graph_module, arg) for arg in norm.args[1:5])
        assert mean is not None and variance is not None
        scale = (variance + float(norm.args[7])).rsqrt()  # type: ignore[arg-type]
        scale = scale if gamma is None else scale * gamma
        shift = (shift - mean) * scale + (0 if beta is None else beta)
    name = str(node.args[1].target).removesuffix(".weight")  # type: ignore[union-attr]
    shape = _layer_shape(name, node)
    return TracedLayer(name, shape, node.name, weight.clone(), scale, shift)


def _layer_shape(name: str, node: fx.Node) -> LayerShape:
    source, weight = node.args[0], node.args[1]
    read, kernel = source.meta["shape"], weight.meta["shape"]  # type: ignore[union-attr]
    written = node.meta["shape"]
    if node.target is aten.linear.default:
        tokens = math.prod(written[:-1]) // EXAMPLE_BATCH  # the batch need not come first
        return LayerShape(name, kernel[1], kernel[0], in_width=tokens, out_width=tokens)
    planar = len(kernel) == 4
    stride, padding, dilation = convolution_geometry(node)
    groups = group_count(node)
    return LayerShape(
        name=name,
        in_channels=kernel[1] * groups,
        out_channels=kernel[0],
        in_height=read[-2] if planar else 1,
        in_width=read[-1],
        out_height=written[-2] if planar else 1,
        out_width=written[-1],
        kernel_height=kernel[-2] if planar else 1,
        kernel_width=kernel[-1],
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        batch=max(1, written[0] // EXAMPLE_BATCH),  # frames or views merged into the batch
    )


def convolution_geometry(
    node: fx.Node,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(stride, padding, dilation) of a convolution node, each (vertical, horizontal).

    ``padding="same"`` pads unevenly when the kernel is even; the side with more is given.
    """
    kernel = node.args[1].meta["shape"][2:]  # type: ignore[union-attr]
    neutral: list[Any] = [None, None, None, 1, 0, 1]
    args = list(node.args[:6]) + neutral[len(node.args[:6]) :]
    stride, padding, dilation = args[3], args[4], args[5]

    def pair(value: Any, fill: int) -> tuple[int, int]:
        values = list(value) if isinstance(value, list | tuple) else [value]
        values = values * len(kernel) if len(values) == 1 else values
        return (fill, int(values[0])) if len(kernel) == 1 else (int(values[0]), int(values[1]))

    if padding == "valid":
        padding = 0
    elif padding == "same":
        steps = pair(dilation, 1)[-len(kernel) :]
        padding = [math.ceil(d * (k - 1) / 2) for d, k in zip(steps, kernel, strict=True)]
    return pair(stride, 1), pair(padding, 0), pair(dilation, 1)


def _fold_batch_norms(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> None:
    for node in nodes:
        norm = batch_norm_behind(node)
        if norm is not None:
            norm.replace_all_uses_with(node)
            graph_module.graph.erase_node(norm)


def _feeds(graph_module: fx.GraphModule, nodes: list[fx.Node]) -> tuple[tuple[int, ...], ...]:
    """For every layer, the layers whose outputs reach its input."""
    index = {node: position for position, node in enumerate(nodes)}
    reach: dict[fx.Node, set[int]] = {}
    feeds: list[tuple[int, ...]] = []
    for node in graph_module.graph.nodes:
        sources = set().union(*(reach[item] for item in node.all_input_nodes))
        if node in index:
            feeds.append(tuple(sorted(sources)))
            sources = {index[node]}
        reach[node] = sources
    return tuple(feeds)


def _first_readers(nodes: list[fx.Node], layers: tuple[TracedLayer, ...]) -> tuple[int, ...]:
    first: dict[tuple[object, int], int] = {}
    return tuple(
        first.setdefault((node.args[0], layer.channel_axis), index)
        for index, (node, layer) in enumerate(zip(nodes, layers, strict=True))
    )


def _attach_layer(
    graph_module: fx.GraphModule, index: int, node: fx.Node, layer: TracedLayer
) -> None:
    """Give a layer's node its own weight and bias, and a module that its input passes."""
    graph = graph_module.graph
    folded = layer.folded_weight
    graph_module.register_parameter(f"weight_{index}", nn.Parameter(folded, requires_grad=False))
    bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
    graph_module.register_parameter(f"bias_{index}", bias)
    graph_module.add_submodule(f"input_{index}", nn.Identity())
    source, old_weight = node.args[0], node.args[1]
    with graph.inserting_before(node):
        read = graph.call_module(f"input_{index}", (source,))
        weight = graph.get_attr(f"weight_{index}")
        offset = graph.get_attr(f"bias_{index}")
    read.meta.update(source.meta)  # type: ignore[union-attr]
    weight.meta.update(old_weight.meta)  # type: ignore[union-attr]
    offset.meta["shape"] = tuple(layer.bias.shape)
    node.args = (read, weight, offset, *node.args[3:])


def _attach_map(graph_module: fx.GraphModule, number: int, stored: StoredMap) -> None:
    """Give a stored map a module that it passes on its way to whoever reads it."""
    graph = graph_module.graph
    (node,) = (node for node in graph.nodes if node.name == stored.node)
    graph_module.add_submodule(f"map_{number}", nn.Identity())
    with graph.inserting_after(node):
        written = graph.call_module(f"map_{number}", (node,))
    written.meta.update(node.meta)
    node.replace_all_uses_with(written, delete_user_cb=lambda user: user is not written)


def _drop_unused_parameters(graph_module: fx.GraphModule) -> None:
    """Forget the network's own copies of what is attached to its layers now."""
    for node in list(graph_module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph_module.graph.erase_node(node)
    graph_module.graph.lint()
    graph_module.delete_all_unused_submodules()
    used = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    tensors: Mapping[str, Tensor] = {
        **dict(graph_module.named_parameters()),
        **dict(graph_module.named_buffers()),
    }
    for name in set(tensors) - used:
        parent, _, leaf = name.rpartition(".")
        delattr(graph_module.get_submodule(parent), leaf)
