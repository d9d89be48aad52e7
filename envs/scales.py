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

FindScales = Callable[[Tensor, int], Tensor]
"""Told weights (..., groups, rows, columns) and their width; returns the scale of every row,
(..., groups, rows), or of every weight, (..., groups, rows, columns)."""


def weight_scales(weight: Tensor, bits: int, quantizer: Quantizer = DEFAULT_QUANTIZER) -> Tensor:
    """Scale of each row; by default the one that minimizes the squared rounding error.

    Args:
        weight: Shape (..., columns).
        bits: 2 to 8, or 16 or 32, which need no scale.
        quantizer: How the range is found, and whether scales are powers of two.

    Returns:
        Shape (...), positive. 1 for rows of zeros and for 16 and 32 bits.
    """
    best = torch.ones_like(weight[..., 0])
    if bits in FLOAT_BITS:
        return best
    share = percentile(quantizer.weight_range)
    largest = weight.abs().amax(dim=-1) if share is None else _percentiles(weight, share)
    limit = weight_limit(bits)
    # A row so small that its scale would be denormal keeps the scale 1 and rounds to zero.
    usable = largest > 10 * limit * torch.finfo(weight.dtype).tiny
    least = torch.full_like(largest, torch.inf)
    # The fewer the bits, the more of the tails is worth clipping; 0.2 of the maximum at 2 bits.
    clips = {"mse": torch.linspace(bits / 10, 1, _CLIPS).tolist(), "kl": CLIPS}
    measure = _divergences if quantizer.weight_range == "kl" else _squared_errors
    errors_with = measure(weight, bits)
    for clip in clips.get(quantizer.weight_range, [1.0]):
        scale = torch.where(usable, largest * (clip / limit), 1.0)
        if quantizer.power_of_two:
            scale = power_of_two_above(scale)
        error = errors_with(scale)
        better = usable & (error < least)
        best = torch.where(better, scale, best)
        least = torch.where(better, error, least)
    return best


def _percentiles(weight: Tensor, share: float) -> Tensor:
    """Size of each row's weights that a share of those that are not zero does not exceed."""
    sizes = weight.abs().sort(dim=-1).values
    filled = (weight != 0).sum(dim=-1)
    rank = weight.shape[-1] - filled + (share * filled).ceil().long() - 1
    return sizes.gather(-1, rank.clamp_min(0)[..., None]).squeeze(-1)


def _squared_errors(weight: Tensor, bits: int) -> Callable[[Tensor], Tensor]:
    """Squared change of every row when it is rounded with a scale."""

    def errors(scale: Tensor) -> Tensor:
        return round_weights(weight, scale, bits).sub_(weight).square_().sum(dim=-1)

    return errors


def _divergences(weight: Tensor, bits: int) -> Callable[[Tensor], Tensor]:
    """Divergence of every row's distribution when it is rounded with a scale; inf for zeros."""
    limit = weight_limit(bits)
    histograms = [histogram(row) if bool(row.any()) else None for row in weight.flatten(0, -2)]

    def errors(scale: Tensor) -> Tensor:
        grids = [ActivationRange(bits, step, -limit, limit) for step in scale.flatten().tolist()]
        pairs = zip(histograms, grids, strict=True)
        found = [torch.inf if bins is None else divergence(*bins, grid) for bins, grid in pairs]
        return torch.tensor(found).view_as(scale)

    return errors


@dataclass(frozen=True)
class WeightGrid:
    """What the scales of one layer's weights may be.

    Scales of one layer have the shape (groups, rows), or, where neighbouring input channels share
    them, that of the weights, (groups, rows, columns).

    Attributes:
        quantizer: How they are found.
        fold: By how much each row grows when batch norm is folded into it, (groups, rows), > 0.
        kernel: Columns of an input channel.
        block: Columns that share a scale; None where all of a row do.
    """

    quantizer: Quantizer
    fold: Tensor
    kernel: int
    block: int | None

    @classmethod
    def of(cls, layer: TracedLayer, quantizer: Quantizer) -> WeightGrid:
        fold = layer.fold_scale.abs().view(layer.rows.shape[:2])
        columns, channels = layer.rows.shape[-1], layer.weight.shape[1]
        kernel, size = columns // channels, quantizer.group_size
        block = None if size is None or size >= channels else size * kernel
        return cls(quantizer, torch.where(fold == 0, 1.0, fold), kernel, block)

    def find(self, weight: Tensor, bits: int) -> Tensor:
        """Scales of weights as trained; a :data:`FindScales`.

        A scale that rows share, or that is a power of two, is so after folding.
        """
        quantizer = self.quantizer
        if quantizer.of_weights == DEFAULT_QUANTIZER:
            return weight_scales(weight, bits)
        folded = weight * self.fold[..., None]
        if quantizer.weight_granularity == "tensor":
            scale = weight_scales(folded.flatten(-3), bits, quantizer)
            scale = scale[..., None, None].expand(folded.shape[:-1])
        elif self.block is None:
            scale = weight_scales(folded, bits, quantizer)
        else:
            padded = F.pad(folded, (0, -folded.shape[-1] % self.block))
            blocks = padded.unflatten(-1, (-1, self.block))
            scale = self.expand(weight_scales(blocks, bits, quantizer), weight.shape[-1])
        return scale / (self.fold if self.block is None else self.fold[..., None])

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
