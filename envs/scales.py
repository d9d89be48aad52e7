"""Scales of weights: which weights share one, how it is found, and which values it may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.calibration import CLIPS
from envs.calibration import divergence
from envs.calibration import histogram
from envs.config import FLOAT_BITS
from envs.quantization import ActivationRange
from envs.quantization import power_of_two_above
from envs.quantization import power_of_two_near
from envs.quantization import round_weights
from envs.quantization import weight_limit
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.quantizer import percentile
from envs.trace import TracedLayer

_CLIPS = 24

Scales = tuple[Tensor, Tensor | None]
"""Scale, and least integer if the grid is not symmetric, of every row, (..., groups, rows), or of
every weight, (..., groups, rows, columns)."""

FindScales = Callable[[Tensor, int], Scales]
"""Told weights (..., groups, rows, columns) and their width."""


def weight_scales(weight: Tensor, bits: int, quantizer: Quantizer = DEFAULT_QUANTIZER) -> Scales:
    """Scale of each row; by default the one that minimizes the squared rounding error.

    Args:
        weight: Shape (..., columns).
        bits: 2 to 8, or 16 or 32, which need no scale.
        quantizer: How the range is found, whether it is symmetric, and whether scales are powers of
            two.

    Returns:
        Scales (...), positive; 1 for rows of zeros and for 16 and 32 bits. And the least of the
        2**bits integers of each row, None where they are symmetric.
    """
    best = torch.ones_like(weight[..., 0])
    if bits in FLOAT_BITS:
        return best, None
    bottom, top = _ends(weight, quantizer)
    affine = quantizer.weight_symmetry == "affine"
    steps = 2**bits - 1 if affine else 2 * weight_limit(bits)
    span = top - bottom
    # A row so small that its scale would be denormal keeps the scale 1 and rounds to zero.
    usable = span > 10 * steps * torch.finfo(weight.dtype).tiny
    least = torch.full_like(span, torch.inf)
    best_low = torch.full_like(span, -(steps // 2))
    # The fewer the bits, the more of the tails is worth clipping; 0.2 of the maximum at 2 bits.
    clips = {"mse": torch.linspace(bits / 10, 1, _CLIPS).tolist(), "kl": CLIPS}
    measure = _divergences if quantizer.weight_range == "kl" else _squared_errors
    errors_with = measure(weight, bits)
    low = None
    for clip in clips.get(quantizer.weight_range, [1.0]):
        scale = torch.where(usable, span * (clip / steps), 1.0)
        if quantizer.power_of_two:
            scale = power_of_two_above(scale)
        if affine:
            low = (bottom * clip / scale).round().clamp_(-steps, 0)
        error = errors_with(scale, low)
        better = usable & (error < least)
        best = torch.where(better, scale, best)
        least = torch.where(better, error, least)
        if low is not None:
            best_low = torch.where(better, low, best_low)
    return best, best_low if affine else None


def _ends(weight: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Ends <= 0 and >= 0 of what each row's integers span before it is clipped, both (...)."""
    share = percentile(quantizer.weight_range)
    if quantizer.weight_symmetry == "symmetric":
        sizes = weight.abs()
        top = sizes.amax(dim=-1) if share is None else _upper_ends(sizes, share)
        return -top, top
    if share is None:
        return weight.amin(dim=-1).clamp_max(0), weight.amax(dim=-1).clamp_min(0)
    return -_upper_ends(-weight, share), _upper_ends(weight, share)


def _upper_ends(values: Tensor, share: float) -> Tensor:
    """What a share of each row's values that are not zero does not exceed, at least 0."""
    filled = (values != 0).sum(dim=-1)
    above = filled - (share * filled).ceil().long()
    ends = values.sort(dim=-1, descending=True).values
    return ends.gather(-1, above[..., None]).squeeze(-1).clamp_min(0)


_Errors = Callable[[Tensor, Tensor | None], Tensor]
"""Told a scale and a least integer for every row; returns the error of rounding it so, (...)."""


def _squared_errors(weight: Tensor, bits: int) -> _Errors:
    def errors(scale: Tensor, low: Tensor | None) -> Tensor:
        return round_weights(weight, scale, bits, low).sub_(weight).square_().sum(dim=-1)

    return errors


def _divergences(weight: Tensor, bits: int) -> _Errors:
    """Divergence of each row's distribution after rounding from that before; inf for zeros."""
    limit = weight_limit(bits)
    histograms = [histogram(row) if bool(row.any()) else None for row in weight.flatten(0, -2)]

    def errors(scale: Tensor, low: Tensor | None) -> Tensor:
        ends = torch.full_like(scale, -limit) if low is None else low
        steps = 2 * limit if low is None else 2**bits - 1
        found = []
        for bins, step, end in zip(
            histograms, scale.flatten().tolist(), ends.flatten().tolist(), strict=True
        ):
            grid = ActivationRange(bits, step, int(end), int(end) + steps)
            found.append(torch.inf if bins is None else divergence(*bins, grid))
        return torch.tensor(found).view_as(scale)

    return errors


@dataclass(frozen=True)
class WeightGrid:
    """What the scales of one layer's weights may be.

    Scales of one layer have the shape (groups, rows), or, where neighbouring input channels share
    them, that of the weights, (groups, rows, columns).

    Attributes:
        quantizer: How they are found.
        fold: What each row is multiplied by when batch norm is folded into it, (groups, rows), or
            1 in place of 0.
        kernel: Columns of an input channel.
        block: Columns that share a scale; None where all of a row do.
    """

    quantizer: Quantizer
    fold: Tensor
    kernel: int
    block: int | None

    @classmethod
    def of(cls, layer: TracedLayer, quantizer: Quantizer) -> WeightGrid:
        fold = layer.fold_scale.view(layer.rows.shape[:2])
        columns, channels = layer.rows.shape[-1], layer.weight.shape[1]
        kernel, size = columns // channels, quantizer.group_size
        block = None if size is None or size >= channels else size * kernel
        return cls(quantizer, torch.where(fold == 0, 1.0, fold), kernel, block)

    def find(self, weight: Tensor, bits: int) -> Scales:
        """Scales of weights as trained; a :data:`FindScales`.

        A scale that rows share, or that is a power of two, is so after folding.
        """
        quantizer = self.quantizer
        if quantizer.of_weights == DEFAULT_QUANTIZER:
            return weight_scales(weight, bits)
        sets = weight * self.fold[..., None]
        if quantizer.weight_granularity == "tensor":
            sets = sets.flatten(-3)
        elif self.block is not None:
            padded = F.pad(sets, (0, -weight.shape[-1] % self.block))
            sets = padded.unflatten(-1, (-1, self.block))
        scale, low = weight_scales(sets, bits, quantizer)
        fold = self.fold if self.block is None else self.fold[..., None]
        scale = self._of_rows(scale, weight) / fold.abs()
        if low is None:
            return scale, None
        low = self._of_rows(low, weight)
        return scale, torch.where(fold < 0, -low - (2**bits - 1), low)

    def _of_rows(self, found: Tensor, weight: Tensor) -> Tensor:
        """What was found for sets of weights, for every row or weight."""
        if self.quantizer.weight_granularity == "tensor":
            return found[..., None, None].expand(weight.shape[:-1])
        return self.expand(found, weight.shape[-1])

    def fold_in(self, scale: Tensor, fold: Tensor) -> Tensor:
        """Scales after folding, exactly on what they may be.

        Args:
            scale: Of output channels, (out_channels,), or of them and of input channels,
                (out_channels, in_channels / groups).
            fold: By how much output channels grow, (out_channels,), >= 0.
        """
        scale = scale * fold.view(-1, *[1] * (scale.ndim - 1))
        if self.quantizer.weight_granularity == "tensor":
            scale = scale.amax().expand_as(scale).contiguous()
        return power_of_two_near(scale) if self.quantizer.power_of_two else scale

    def compact(self, scale: Tensor) -> Tensor:
        """One scale for each block of columns instead of each column, (groups, rows, blocks)."""
        return scale if self.block is None else scale[..., :: self.block]

    def expand(self, scale: Tensor, columns: int) -> Tensor:
        """Inverse of :meth:`compact`."""
        if self.block is None:
            return scale
        return scale.repeat_interleave(self.block, dim=-1)[..., :columns]

    def of_channels(self, scale: Tensor) -> Tensor:
        """Scales of output channels, or of output and input channels; see :meth:`fold_in`."""
        if self.block is None:
            return scale.flatten()
        return scale[..., :: self.kernel].flatten(0, 1)
