"""Transposed convolutions as convolutions whose outputs interleave, as accelerators run them.

Of a stride s every s-th output is a convolution of stride 1 with every s-th weight, so the s phases
of an axis are s output channels of one convolution, put side by side afterwards (Shi et al., "Is
the deconvolution layer the same as a convolutional layer?", arXiv 1609.07009). Where the kernel is
no multiple of the stride some phases have fewer weights than others, and the rest of theirs is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import fx
from torch import nn

from envs.parameters import attribute
from envs.parameters import batch_norm_behind
from envs.parameters import require_own_parameters

aten = torch.ops.aten

_CONVOLUTIONS = {
    aten.conv_transpose1d.default: aten.conv1d.default,
    aten.conv_transpose2d.input: aten.conv2d.default,
}
_DEFAULTS = (None, None, None, 1, 0, 0, 1, 1)
"""Of both: input, weight, bias, stride, padding, output padding, groups, dilation."""


@dataclass(frozen=True)
class _Axis:
    """What becomes of one axis of the maps.

    Attributes:
        stride: Phases that interleave.
        padding: Zeros on either side of what the convolution reads.
        start, stop: What is kept of the interleaved outputs.
        length: Of these.
    """

    stride: int
    padding: int
    start: int
    stop: int
    length: int


def replace_transposed_convolutions(graph_module: fx.GraphModule, name: str) -> None:
    """Exchange transposed convolutions for convolutions that compute the same.

    A weight keeps its name and becomes (out_channels * phases, in_channels / groups, *kernel), the
    phases of a channel one after another. So does what a batch norm behind it knows of channels.

    Args:
        graph_module: Exported, its nodes with what export knows of their values.
        name: Of the network.

    Raises:
        InputError: a weight or bias is no parameter, or a weight is used twice.
    """
    for node in list(graph_module.graph.nodes):
        if node.target in _CONVOLUTIONS:
            require_own_parameters(graph_module, node, name)
            args: tuple[Any, ...] = (*node.args, *_DEFAULTS[len(node.args) :])
            _replace(graph_module, node, *args)


def _replace(
    graph_module: fx.GraphModule,
    node: fx.Node,
    source: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Any,
    padding: Any,
    extra: Any,
    groups: int,
    dilation: Any,
) -> None:
    trained = attribute(graph_module, weight)
    assert trained is not None
    sizes = source.meta["val"].shape[2:]
    strides, paddings, extras, steps = (
        _each(value, len(sizes)) for value in (stride, padding, extra, dilation)
    )
    trained = _dilated(trained, steps)
    geometry = zip(sizes, trained.shape[2:], strides, paddings, extras, strict=True)
    axes = [_axis(*of_axis) for of_axis in geometry]
    graph, phases = graph_module.graph, math.prod(strides)

    def of_phases(constant: Any) -> Any:
        """What is known of every channel, for each of its phases."""
        values = attribute(graph_module, constant)
        if values is None:
            return constant
        name = f"{node.name}_{constant.name}"
        graph_module.register_buffer(name, values.repeat_interleave(phases))
        return graph.get_attr(name)

    norm = batch_norm_behind(node)
    with graph.inserting_before(norm or node):
        _assign(graph_module, str(weight.target), _weight_of_phases(trained, strides, groups))
        pads = [axis.padding for axis in axes]
        ones = [1] * len(axes)
        written = graph.call_function(
            _CONVOLUTIONS[node.target],  # type: ignore[index]
            (source, weight, of_phases(bias), ones, pads, ones, groups),
        )
        written.meta["phases"] = phases
        if norm is not None:
            constants = map(of_phases, norm.args[1:5])
            written = graph.call_function(norm.target, (written, *constants, *norm.args[5:]))  # type: ignore[arg-type]
        written = _interleaved(graph, written, axes, trained.shape[1] * groups)
    last = norm or node
    written.meta["val"] = last.meta["val"]  # the next transposed convolution asks for its sizes
    last.replace_all_uses_with(written)
    for old in (norm, node):
        if old is not None:
            graph.erase_node(old)


def _each(value: Any, axes: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * axes if len(values) == 1 else values


def _dilated(weight: Tensor, steps: Sequence[int]) -> Tensor:
    """The weight with the zeros between its values that a dilation leaves out."""
    kernel = [step * (size - 1) + 1 for step, size in zip(steps, weight.shape[2:], strict=True)]
    spread = weight.new_zeros(*weight.shape[:2], *kernel)
    places: Any = (..., *(slice(None, None, step) for step in steps))
    spread[places] = weight
    return spread


def _axis(size: int, kernel: int, stride: int, padding: int, extra: int) -> _Axis:
    """Geometry of one axis.

    Output u is sum over t of input m - t times weight stride * t + r, where u + padding =
    stride * m + r.
    """
    taps = math.ceil(kernel / stride)
    length = (size - 1) * stride - 2 * padding + kernel + extra
    first, last = padding // stride, (padding + length - 1) // stride  # of m
    pads = max(taps - 1 - first, last - (size - 1), 0)
    start = padding - stride * (taps - 1 - pads)
    return _Axis(stride, pads, start, start + length, stride * (size + 2 * pads - taps + 1))


def _weight_of_phases(weight: Tensor, strides: Sequence[int], groups: int) -> Tensor:
    """Weight of the convolution.

    Args:
        weight: Of the transposed convolution, (in_channels, out_channels / groups, *kernel).
        strides: Of every axis.
        groups: Of the channels.

    Returns:
        Shape (out_channels * phases, in_channels / groups, *taps).
    """
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    split = [groups, inputs, outputs]
    for axis, stride in enumerate(strides):
        taps = math.ceil(weight.shape[2 + axis] / stride)
        missing = taps * stride - weight.shape[2 + axis]
        zeros = list(weight.shape)
        zeros[2 + axis] = missing
        weight = torch.cat([weight, weight.new_zeros(zeros)], dim=2 + axis)
        split += [taps, stride]
    phase_axes = range(4, len(split), 2)
    tap_axes = range(3, len(split), 2)
    parts = weight.reshape(split).flip(list(tap_axes)).permute(0, 2, *phase_axes, 1, *tap_axes)
    taps_of_axes = [split[axis] for axis in tap_axes]
    return parts.reshape(groups * outputs * math.prod(strides), inputs, *taps_of_axes).contiguous()


def _interleaved(graph: fx.Graph, phases: fx.Node, axes: Sequence[_Axis], channels: int) -> fx.Node:
    """Nodes that put the phases of every channel side by side and keep what is asked for."""
    call = graph.call_function
    strides = [axis.stride for axis in axes]
    result = phases
    if math.prod(strides) > 1:
        rows = [axis.length // axis.stride for axis in axes]
        apart = call(aten.reshape.default, (phases, [-1, channels, *strides, *rows]))
        order = [0, 1]
        for phase in range(2, 2 + len(axes)):
            order += [phase + len(axes), phase]
        together = call(aten.permute.default, (apart, order))
        lengths = [axis.length for axis in axes]
        result = call(aten.reshape.default, (together, [-1, channels, *lengths]))
    for position, axis in enumerate(axes):
        if (axis.start, axis.stop) != (0, axis.length):
            bounds = (2 + position, axis.start, axis.stop)
            result = call(aten.slice.Tensor, (result, *bounds))
    return result


def _assign(graph_module: fx.GraphModule, path: str, value: Tensor) -> None:
    """Give a parameter or buffer another value of any shape."""
    parent, _, leaf = path.rpartition(".")
    module = graph_module.get_submodule(parent)
    is_parameter = leaf in dict(module.named_parameters(recurse=False))
    setattr(module, leaf, nn.Parameter(value, requires_grad=False) if is_parameter else value)
