"""Rounding of weights and activations to few bits, with scales that lose least.

Weights are symmetric integers with one scale per output channel; activations are integers with
one scale per tensor and an exact zero. 16 and 32 bits mean IEEE half and single precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.config import FLOAT_BITS

_WEIGHT_CLIPS = 24
# 6 % apart: the squared error is flat around its minimum.
_ACTIVATION_CLIPS = torch.logspace(-1.4, 0, 60).tolist()


def weight_limit(bits: int) -> int:
    """Largest integer of a weight of 2 to 8 bits; the smallest is its negative."""
    return 2 ** (bits - 1) - 1


def weight_scales(weight: Tensor, bits: int) -> Tensor:
    """Scale of each row that minimizes the squared rounding error, over a grid of clip values.

    Args:
        weight: Shape (..., columns).
        bits: 2 to 8, or 16 or 32, which need no scale.

    Returns:
        Shape (...), positive. 1 for rows of zeros and for 16 and 32 bits.
    """
    largest = weight.abs().amax(dim=-1)
    best = torch.ones_like(largest)
    if bits in FLOAT_BITS:
        return best
    limit = weight_limit(bits)
    # A row so small that its scale would be denormal keeps the scale 1 and rounds to zero.
    usable = largest > 10 * limit * torch.finfo(weight.dtype).tiny
    least = torch.full_like(largest, torch.inf)
    # The fewer the bits, the more of the tails is worth clipping; 0.2 of the maximum at 2 bits.
    for clip in torch.linspace(bits / 10, 1, _WEIGHT_CLIPS).tolist():
        scale = torch.where(usable, largest * (clip / limit), 1.0)
        error = round_weights(weight, scale, bits).sub_(weight).square_().sum(dim=-1)
        better = usable & (error < least)
        best = torch.where(better, scale, best)
        least = torch.where(better, error, least)
    return best


def integer_weights(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Nearest integers, shape of ``weight`` (..., columns), int8; ``scale`` has shape (...)."""
    limit = weight_limit(bits)
    return (weight / scale[..., None]).round_().clamp_(-limit, limit).to(torch.int8)


def round_weights(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Nearest representable weights.

    Args:
        weight: Shape (..., columns).
        scale: Shape (...); not used for 16 and 32 bits.
        bits: 2 to 8, 16 or 32.

    Returns:
        Shape and type of ``weight``.
    """
    if bits in FLOAT_BITS:
        return weight.half().to(weight.dtype) if bits == 16 else weight.clone()
    limit, scale = weight_limit(bits), scale[..., None]
    return (weight / scale).round_().clamp_(-limit, limit).mul_(scale)


@dataclass(frozen=True)
class ActivationRange:
    """The values that an activation tensor can take: ``scale * integer``.

    Attributes:
        bits: 2 to 8, 16 or 32; the other attributes have no meaning for 16 and 32.
        scale: Distance of neighbouring values.
        low: Smallest integer, <= 0.
        high: Largest integer, >= 0; high - low = 2**bits - 1.
    """

    bits: int
    scale: float = 1.0
    low: int = 0
    high: int = 0


def calibrate_activation(sample: Tensor, bits: int) -> ActivationRange:
    """Range that minimizes the squared rounding error of a sample, over a grid of clip values.

    Unsigned where the sample has no negative value. Otherwise both ends are clipped together
    first, then each alone, since the two tails may differ (as they do after a GELU).

    Args:
        sample: Values of the activation, one dimension, at least one.
        bits: 2 to 8, 16 or 32.
    """
    if bits in FLOAT_BITS:
        return ActivationRange(bits)
    sample = sample.float()
    bottom, top = min(sample.min().item(), 0.0), max(sample.max().item(), 0.0)
    if top - bottom <= 2**bits * torch.finfo(torch.float32).tiny / _ACTIVATION_CLIPS[0]:
        return ActivationRange(bits, high=2**bits - 1)

    def best(ends: list[tuple[float, float]]) -> tuple[float, float]:
        return min(ends, key=lambda e: _squared_error(sample, _range_between(e[0], e[1], bits)))

    low, high = best([(clip * bottom, clip * top) for clip in _ACTIVATION_CLIPS])
    if bottom < 0 < top:
        low, high = best([(low, high)] + [(low, clip * top) for clip in _ACTIVATION_CLIPS])
        low, high = best([(low, high)] + [(clip * bottom, high) for clip in _ACTIVATION_CLIPS])
    return _range_between(low, high, bits)


def quantize_activation(x: Tensor, range_: ActivationRange) -> Tensor:
    """Nearest representable values, ties to even; shape and type of ``x``, which is unchanged."""
    if range_.bits == 32:
        return x
    if range_.bits == 16:
        return x.half().to(x.dtype)
    integers = x.mul(1 / range_.scale).round_().clamp_(range_.low, range_.high)
    return integers.mul_(range_.scale)


def _range_between(low: float, high: float, bits: int) -> ActivationRange:
    """Range of 2**bits values that spans about low <= 0 <= high, with zero among its values."""
    steps = 2**bits - 1
    # Single precision, so that what is stored is exactly what is multiplied with.
    scale = torch.tensor((high - low) / steps, dtype=torch.float32).item()
    lowest = max(round(low / scale), -steps)
    return ActivationRange(bits, scale, lowest, lowest + steps)


def _squared_error(sample: Tensor, range_: ActivationRange) -> float:
    return quantize_activation(sample, range_).sub_(sample).square_().sum().item()
