"""Rounding of weights and activations to few bits, and the scales of weights that lose least.

Weights are symmetric integers with one scale per output channel; activations are integers with
one scale per tensor and an exact zero (:mod:`envs.calibration` finds it). 16 and 32 bits mean IEEE
half and single precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from envs.config import FLOAT_BITS

_WEIGHT_CLIPS = 24


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


def quantize_activation(x: Tensor, range_: ActivationRange) -> Tensor:
    """Nearest representable values, ties to even; shape and type of ``x``, which is unchanged."""
    if range_.bits == 32:
        return x
    if range_.bits == 16:
        return x.half().to(x.dtype)
    integers = x.mul(1 / range_.scale).round_().clamp_(range_.low, range_.high)
    return integers.mul_(range_.scale)
