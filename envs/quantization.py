"""Rounding of weights and activations to few bits.

Numbers are integers times scales, with an exact zero: those of weights are found in
:mod:`envs.scales`, those of activations, one for a tensor, in :mod:`envs.calibration`. 16 and 32
bits mean IEEE half and single precision.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from dataclasses import replace

import torch
from torch import Tensor

from envs.config import FLOAT_BITS


def weight_limit(bits: int) -> int:
    """Largest integer of a symmetric weight of 2 to 8 bits; the smallest is its negative."""
    return 2 ** (bits - 1) - 1


def integers_on_grid(weight: Tensor, step: Tensor) -> Tensor:
    """Integers of weights that are multiples of a step; int8, or int16 where these do not fit."""
    integers = (weight / step).round()
    low, high = (float(end) for end in integers.aminmax())
    return integers.to(torch.int8 if low >= -128 and high <= 127 else torch.int16)


def round_weights(weight: Tensor, scale: Tensor, bits: int, low: Tensor | None = None) -> Tensor:
    """Nearest representable weights.

    Args:
        weight: Shape (..., columns).
        scale: One for each row, (...), or for each weight; not used for 16 and 32 bits.
        bits: 2 to 8, 16 or 32.
        low: Least integer of each row, or weight, of 2**bits; None for symmetric ones.

    Returns:
        Shape and type of ``weight``.
    """
    if bits in FLOAT_BITS:
        return weight.half().to(weight.dtype) if bits == 16 else weight.clone()
    limit, scale = weight_limit(bits), of_each(scale, weight)
    integers = (weight / scale).round_()
    if low is None:
        return integers.clamp_(-limit, limit).mul_(scale)
    low = of_each(low, weight)
    return integers.clamp_(low, low + (2**bits - 1)).mul_(scale)


def of_each(scale: Tensor, weight: Tensor) -> Tensor:
    """Scales of rows, (...), or of weights, (..., columns), to multiply ``weight`` with."""
    return scale if scale.ndim == weight.ndim else scale[..., None]


@dataclass(frozen=True)
class ScaleRun:
    """Consecutive input channels, in every group of a layer, whose weights share their scales.

    Attributes:
        scale: Of the output channels, (out_channels,).
        start, stop: The channels' numbers in a group: columns of the weight.
    """

    scale: Tensor
    start: int
    stop: int

    def inputs(self, columns: int, groups: int) -> Tensor:
        """Numbers of the run's input channels, in a layer of ``groups`` with ``columns`` each."""
        numbers = torch.arange(groups * columns).view(groups, columns)
        return numbers[:, self.start : self.stop].flatten()


def scale_runs(scale: Tensor, columns: int) -> list[ScaleRun]:
    """The runs of a layer, in order.

    Args:
        scale: (out_channels,), or (out_channels, columns) where it changes along input channels.
        columns: Input channels of a group.
    """
    if scale.ndim == 1:
        return [ScaleRun(scale, 0, columns)]
    scales, lengths = scale.unique_consecutive(dim=1, return_counts=True)
    ends = lengths.cumsum(0).tolist()
    return [
        ScaleRun(each.contiguous(), start, end)
        for each, start, end in zip(scales.T, [0, *ends[:-1]], ends, strict=True)
    ]


def power_of_two_above(x: Tensor) -> Tensor:
    """Least power of two that is not below each value; single precision, positive and normal."""
    below = _power_of_two_below(x)
    return torch.where(below == x, x, 2 * below)


def power_of_two_near(x: Tensor) -> Tensor:
    """Nearest power of two by ratio; single precision, positive and normal. 0 stays 0."""
    return _power_of_two_below(x * 2**0.5)


def short_scale(x: Tensor) -> Tensor:
    """Nearest number of 16 significant bits, single precision, positive and normal.

    Its products with integers of 8 bits are exact, whoever computes them in whatever order.
    """
    return ((x.view(torch.int32) + 0x80) & ~0xFF).view(torch.float32)


def _power_of_two_below(x: Tensor) -> Tensor:
    exponent_bits = 0xFF << 23
    return (x.view(torch.int32) & exponent_bits).view(torch.float32)


@dataclass(frozen=True)
class ChannelExponents:
    """Powers of two that the channels of an activation are divided by before it is rounded.

    Attributes:
        exponents: One for each channel.
        axis: Along which the channels lie: 1 for convolutions, -1 for linear layers.
    """

    exponents: tuple[int, ...]
    axis: int

    @property
    def factors(self) -> Tensor:
        """What the channels are multiplied by instead, exactly, float32, (channels,)."""
        return torch.exp2(-torch.tensor(self.exponents, dtype=torch.float32))


@dataclass(frozen=True)
class ActivationRange:
    """The values that an activation tensor can take: ``scale * integer``.

    Its channels may be equalized first (:mod:`envs.equalization`): integers then stand for values
    divided by the channel's power of two, and so does what :func:`quantize_activation` returns.

    Attributes:
        bits: 2 to 8, 16 or 32; the other attributes have no meaning for 16 and 32.
        scale: Distance of neighbouring values.
        low: Smallest integer, <= 0.
        high: Largest integer, >= 0; high - low = 2**bits - 1.
        divided: How the channels are equalized; None if they are not.
    """

    bits: int
    scale: float = 1.0
    low: int = 0
    high: int = 0
    divided: ChannelExponents | None = None

    def of_channels(self, kept: Tensor) -> ActivationRange:
        """The same where only some channels are left, bool (channels,)."""
        if self.divided is None:
            return self
        pairs = zip(self.divided.exponents, kept.tolist(), strict=True)
        left = tuple(exponent for exponent, stays in pairs if stays)
        return replace(self, divided=replace(self.divided, exponents=left))


def quantize_activation(x: Tensor, range_: ActivationRange) -> Tensor:
    """Nearest representable values, ties to even; shape and type of ``x``, which is unchanged."""
    if range_.bits == 32:
        return x
    if range_.bits == 16:
        return x.half().to(x.dtype)
    return activation_integers(x, range_).mul_(range_.scale)


def round_map(x: Tensor, range_: ActivationRange) -> Tensor:
    """Nearest representable values of a map itself, as those that do not equalize it read it.

    The same as :func:`quantize_activation` but for grids whose channels are divided.
    """
    return undivided(quantize_activation(x, range_), range_)


def undivided(x: Tensor, range_: ActivationRange) -> Tensor:
    """Values on a grid without what equalizes its channels; exact, since that is powers of two."""
    if range_.divided is None or range_.bits in FLOAT_BITS:
        return x
    # A new tensor: gradients cannot go through the kept one, which may be of inference mode.
    return x * (1 / inverse_factors(range_.divided, x.ndim)).to(x.device)


def activation_integers(x: Tensor, range_: ActivationRange) -> Tensor:
    """Integers of the nearest representable values, as floats; not for 16 and 32 bits."""
    return in_steps(x, range_).round_().clamp_(range_.low, range_.high)


def in_steps(x: Tensor, range_: ActivationRange) -> Tensor:
    """Values in steps of a grid, not rounded yet; not for 16 and 32 bits."""
    steps = inverse_steps(range_, x.ndim)
    return x.mul(steps if isinstance(steps, float) else steps.to(x.device))


def inverse_steps(range_: ActivationRange, rank: int) -> float | Tensor:
    """What values of a tensor with ``rank`` dimensions are multiplied by to get integers."""
    if range_.divided is None:
        return 1 / range_.scale
    return inverse_factors(range_.divided, rank) * (1 / range_.scale)


@functools.lru_cache(maxsize=1024)
def inverse_factors(divided: ChannelExponents, rank: int) -> Tensor:
    """What the channels of a tensor with ``rank`` dimensions are multiplied by first."""
    shape = [1] * rank
    shape[divided.axis] = -1
    return divided.factors.view(shape)
