"""Layers in integer arithmetic, as an accelerator computes them: int8 products, int32 sums.

oneDNN's quantized kernels run on the CPU's VNNI or AMX units. Inputs are unsigned bytes that stand
for ``scale * (byte - zero_point)``, weights are signed bytes with one scale per output channel.
Sums are exact; their one rounding is that of the product with the scales in single precision.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from envs.quantization import ActivationRange
from envs.quantization import inverse_factors
from envs.quantization import scale_runs
from envs.quantization import short_scale

CHANNELS = 16
"""The kernels work on as many channels at once: fewer cost the same, and more often more."""

_MAGIC = 1.5 * 2**23
"""Where neighbouring single precision numbers differ by 1, with room on both sides."""

_LARGEST_SUM = 2**31 - 1
_LARGEST_PRODUCT = 255 * 128


@dataclass(frozen=True)
class Geometry:
    """How a convolution's kernel moves: (vertical, horizontal) each, and its groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class IntegerInput(nn.Module):
    """Rounds floats to a grid, as ``quantization.quantize_activation`` does, but gives bytes."""

    def __init__(self, grid: ActivationRange) -> None:
        super().__init__()
        self._grid = (grid.scale, -grid.low)
        self._divided = grid.divided
        self._top = grid.high - grid.low
        self._round = _round_at_once if _rounds_at_once() else _round_in_steps

    def forward(self, x: Tensor) -> Tensor:
        if self._divided is not None:
            x = x * inverse_factors(self._divided, x.ndim)
        codes = self._round(x, *self._grid)
        return codes.clamp_(max=self._top) if self._top < 255 else codes


def _round_at_once(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Nearest codes 0..255 by one operation, which PyTorch may drop one day."""
    codes = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)
    # The same memory as plain bytes: ``int_repr`` would copy it, and slowly.
    storage = codes.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, codes.shape, codes.stride())


def _round_in_steps(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Nearest codes 0..255: adding a large number rounds a float to an integer in its low bits."""
    origin = torch.tensor(_MAGIC + zero_point)
    shifted = torch.add(origin, x, alpha=1 / scale).clamp_(_MAGIC, _MAGIC + 255)
    return shifted.view(torch.int32).to(torch.uint8)


@functools.cache
def _rounds_at_once() -> bool:
    grid = (0.25, 3)
    values = torch.linspace(-9.0, 99.0, 4096).view(4, 64, 4, 4)
    values = values.contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        try:
            codes = _round_at_once(values, *grid)
        except (AttributeError, RuntimeError):
            return False
    return torch.equal(codes, _round_in_steps(values, *grid))


class IntegerLayer(nn.Module):
    """A convolution of images, or a linear layer, from bytes to floats or to the next one's bytes.

    Args:
        weight: Integers, int8, (out_channels, in_channels / groups, ...).
        scale: Step of every output channel, (out_channels,).
        bias: (out_channels,).
        grid: Grid of the input.
        geometry: Of a convolution; None for a linear layer.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        grid: ActivationRange,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__()
        self._scale = scale
        self._zero_points = torch.zeros(len(scale), dtype=torch.int32)
        self._bias = bias
        self._source = (grid.scale, -grid.low)
        self._geometry: tuple[Any, ...] = ()
        if geometry is None:
            self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
            self._kernel = torch.ops.onednn.qlinear_pointwise.default
        else:
            moves = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
            self._geometry = tuple(list(m) if isinstance(m, tuple) else m for m in moves)
            self._packed = torch.ops.onednn.qconv_prepack(
                weight, scale, *self._source, *self._geometry
            )
            self._kernel = torch.ops.onednn.qconv2d_pointwise.default
        self._target: tuple[float, int, torch.dtype] = (1.0, 0, torch.float32)
        self._activation = "none"
        self._top = 255
        self._added: tuple[float, int] | None = None

    def rectify(self) -> None:
        """Apply a ReLU to the output."""
        self._activation = "relu"

    def can_round(self, grid: ActivationRange) -> bool:
        """Whether :meth:`round_output` is possible: where the grid's channels are its own.

        The kernels add a zero point before they round, which moves some values by a step.
        """
        axis = 1 if self._geometry else -1
        return grid.low == 0 and (grid.divided is None or grid.divided.axis == axis)

    def round_output(self, grid: ActivationRange) -> None:
        """Give bytes on a grid instead of floats."""
        if grid.divided is not None:
            factors = grid.divided.factors
            self._scale, self._bias = self._scale * factors, self._bias * factors
        self._target = (grid.scale, -grid.low, torch.uint8)
        self._top = grid.high - grid.low

    def can_add(self, grid: ActivationRange) -> bool:
        """Whether :meth:`add` is possible: of convolutions whose output is rounded."""
        return bool(self._geometry) and grid.low == 0 and grid.divided is None and adds_exactly()

    def add(self, grid: ActivationRange) -> None:
        """Add what other bytes, on a grid, stand for, before the output is rectified and rounded.

        The module then takes these bytes, in channels-last memory, as well, and writes its output
        over them.
        """
        self._added = (grid.scale, -grid.low)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        layer = (x, *self._source, self._packed, self._scale, self._zero_points)
        if self._added is None:
            y: Tensor = self._kernel(
                *layer, self._bias, *self._geometry, *self._target, self._activation, [], ""
            )
        else:
            assert added is not None
            y = added.contiguous(memory_format=torch.channels_last)
            # It returns a copy of what it has written over ``y``.
            torch.ops.onednn.qconv2d_pointwise.binary(
                *layer, y, self._bias, *self._geometry, *self._target,
                *self._added, "sum", 1.0, self._activation, [], "",
            )  # fmt: skip
        return y.clamp_(max=self._top) if self._top < 255 else y


class IntegerSum(nn.Module):
    """A layer whose scale changes along its input channels: a sum of integer layers.

    The sum of each run of channels that share a scale is exact; these are added in single
    precision.

    Args:
        weight: Integers, int8, (out_channels, in_channels / groups, ...).
        scale: Step of every output and input channel, (out_channels, in_channels / groups).
        bias: (out_channels,).
        grid: Grid of the input.
        geometry: Of a convolution; None for a linear layer.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        grid: ActivationRange,
        geometry: Geometry | None = None,
    ) -> None:
        super().__init__()
        self._axis = -1 if geometry is None else 1
        groups = 1 if geometry is None else geometry.groups
        runs = scale_runs(scale, weight.shape[1])
        self._channels = [run.inputs(weight.shape[1], groups) for run in runs]
        self._layers = nn.ModuleList(
            IntegerLayer(
                weight[:, run.start : run.stop].contiguous(),
                run.scale,
                torch.zeros_like(bias) if number else bias,
                grid,
                geometry,
            )
            for number, run in enumerate(runs)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [self._part(x, channels) for channels in self._channels]
        total: Tensor = self._layers[0](parts[0])
        for layer, part in zip(self._layers[1:], parts[1:], strict=True):
            total += layer(part)
        return total

    def _part(self, x: Tensor, channels: Tensor) -> Tensor:
        part = x.index_select(self._axis, channels)
        return part.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else part


def fits(weight: Tensor) -> bool:
    """Whether the sums of a layer with these weights cannot leave int32."""
    return weight[0].numel() * _LARGEST_PRODUCT <= _LARGEST_SUM


@functools.cache
def is_available() -> bool:
    """Whether this CPU and this PyTorch compute what :class:`IntegerLayer` says, to the last bit.

    Older CPUs add pairs of products in 16 bits, which saturate, so it is tried with the largest.
    """
    try:
        return all(_is_exact(groups) for groups in (1, 2 * CHANNELS)) and _is_exact(0)
    except (AttributeError, RuntimeError):  # no such operator, or no kernel behind it
        return False


@functools.cache
def adds_exactly() -> bool:
    """Whether the kernels that add bytes compute what :meth:`IntegerLayer.add` says."""
    try:
        return all(_adds_exactly(top) for top in (15, 255))
    except (AttributeError, RuntimeError):
        return False


def _adds_exactly(top: int) -> bool:
    """Compare a convolution, with bytes added, with what floats give, step by step."""
    generator = torch.Generator().manual_seed(0)
    channels = 2 * CHANNELS
    shape = (channels, channels, 3, 3)
    weight = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    codes, added = (
        torch.randint(0, 256, (16, channels, 12, 12), generator=generator, dtype=torch.uint8)
        for _ in range(2)
    )
    memory = torch.channels_last
    codes, added = codes.contiguous(memory_format=memory), added.contiguous(memory_format=memory)
    scale, bias = torch.rand(2, channels, generator=generator)
    step, of_added = short_scale(torch.tensor([0.0371, 73.13])).tolist()
    sums = F.conv2d(codes.double(), weight.double(), None, 1, 1).float()
    total = sums * step * scale.view(-1, 1, 1) + bias.view(-1, 1, 1) + added.float() * of_added
    of_output = short_scale(total.max() / top).item()
    layer = IntegerLayer(
        weight, scale, bias, ActivationRange(8, step, 0, 255), Geometry(padding=(1, 1))
    )
    layer.rectify()
    layer.add(ActivationRange(8, of_added, 0, 255))
    layer.round_output(ActivationRange(8, of_output, 0, top))
    rounded = total.relu().mul(1 / of_output).round().clamp(0, top)
    return torch.equal(layer(codes, added).float(), rounded)


def _is_exact(groups: int) -> bool:
    """Compare a convolution in groups, or, without any, a linear layer, with what floats give.

    Sums are exact in double precision; scaling, in :func:`envs.removal.scale_sums`'s order, and
    rounding are single precision, or search and export would differ in the last bits.
    """
    generator = torch.Generator().manual_seed(0)
    channels = 2 * CHANNELS
    shape = (channels, channels // groups, 3, 3) if groups else (channels, channels)
    weight = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    images = (4, channels, 6, 6) if groups else (4, channels)
    codes = torch.randint(0, 256, images, generator=generator, dtype=torch.uint8)
    weight[0], codes[0] = 127, 255
    geometry = Geometry((2, 1), (1, 1), groups=groups) if groups else None
    scale, bias = torch.rand(2, channels, generator=generator)
    each = (-1, 1, 1) if groups else (-1,)
    for low in (0, -100):
        grid = ActivationRange(8, torch.tensor(0.0371).item(), low, low + 255)
        layer = IntegerLayer(weight, scale, bias, grid, geometry)
        source = (codes.double() + low).contiguous()
        if geometry is None:
            sums = F.linear(source, weight.double())
        else:
            sums = F.conv2d(source, weight.double(), None, (2, 1), (1, 1), groups=groups)
        expected = sums.float() * grid.scale * scale.view(each) + bias.view(each)
        memory = torch.channels_last if groups else torch.contiguous_format
        codes = codes.contiguous(memory_format=memory)
        if not torch.equal(layer(codes), expected):
            return False
        layer.rectify()
        layer.round_output(ActivationRange(7, 151.7, 0, 127))
        rounded = expected.mul(1 / 151.7).round().clamp(0, 127)
        if not torch.equal(layer(codes).float(), rounded):
            return False
    return True
