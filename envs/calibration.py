"""Which values the grid of an activation spans, found from a sample of the activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from envs.config import FLOAT_BITS
from envs.quantization import ActivationRange
from envs.quantization import power_of_two_above
from envs.quantization import quantize_activation
from envs.quantization import short_scale
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.quantizer import percentile

# 6 % apart: the squared error is flat around its minimum.
CLIPS = torch.logspace(-1.4, 0, 60).tolist()

_BINS = 2048
"""Of the histogram whose divergence is measured; as many as Migacz (2017) takes."""

Ends = tuple[float, float]


def calibrate_activation(
    sample: Tensor, bits: int, quantizer: Quantizer = DEFAULT_QUANTIZER
) -> ActivationRange:
    """Grid of an activation.

    ``mse`` and ``kl`` choose from a grid of clip values: both ends are clipped together first, then
    each alone, since the two tails may differ (as they do after a GELU).

    Args:
        sample: Values of the activation, one dimension, at least one; for ``max_abs`` the extremes
            do.
        bits: 2 to 8, 16 or 32.
        quantizer: How the range is found, and where its zero may lie.
    """
    if bits in FLOAT_BITS:
        return ActivationRange(bits)
    sample = sample.float()
    bottom, top = min(sample.min().item(), 0.0), max(sample.max().item(), 0.0)
    if top - bottom <= 2**bits * torch.finfo(torch.float32).tiny / CLIPS[0]:
        return ActivationRange(bits, high=2**bits - 1)
    symmetric = quantizer.activation_symmetry == "symmetric" and bottom < 0
    if symmetric:
        bottom, top = -max(top, -bottom), max(top, -bottom)

    def grid(ends: Ends) -> ActivationRange:
        return _range_between(*ends, bits, symmetric, quantizer.power_of_two)

    if quantizer.activation_range == "max_abs":
        return grid((bottom, top))
    share = percentile(quantizer.activation_range)
    if share is not None:
        return grid(_percentiles(sample, share, symmetric=symmetric))
    loss: Callable[[ActivationRange], float] = partial(_squared_error, sample)
    if quantizer.activation_range == "kl":
        loss = partial(divergence, *histogram(sample))

    def best(ends: list[Ends]) -> Ends:
        return min(ends, key=lambda candidate: loss(grid(candidate)))

    low, high = best([(clip * bottom, clip * top) for clip in CLIPS])
    if bottom < 0 < top and not symmetric:
        low, high = best([(low, high)] + [(low, clip * top) for clip in CLIPS])
        low, high = best([(low, high)] + [(clip * bottom, high) for clip in CLIPS])
    return grid((low, high))


def _range_between(
    low: float, high: float, bits: int, symmetric: bool, power_of_two: bool
) -> ActivationRange:
    """Range of 2**bits values that spans about low <= 0 <= high, with zero among its values."""
    steps = 2**bits - 1
    if high - low <= 2**bits * torch.finfo(torch.float32).tiny:  # its scale would be denormal
        return ActivationRange(bits, high=steps)
    half = 2 ** (bits - 1)
    step = high / (half - 1) if symmetric else (high - low) / steps
    # Single precision, so that what is stored is exactly what is multiplied with.
    step_32 = torch.tensor(step, dtype=torch.float32)
    scale = (power_of_two_above if power_of_two else short_scale)(step_32).item()
    lowest = -half if symmetric else max(round(low / scale), -steps)
    return ActivationRange(bits, scale, lowest, lowest + steps)


def _percentiles(sample: Tensor, share: float, *, symmetric: bool) -> Ends:
    """Ends of the values without the outer ``1 - share`` at each; zeros do not count.

    An activation may be all but zeros after a ReLU, and these are exact on every grid.
    """
    values = sample[sample != 0]
    if symmetric:
        end = values.abs().quantile(share).item()
        return -end, end
    low, high = values.quantile(1 - share).item(), values.quantile(share).item()
    return min(low, 0.0), max(high, 0.0)


def _squared_error(sample: Tensor, range_: ActivationRange) -> float:
    return quantize_activation(sample, range_).sub_(sample).square_().sum().item()


def histogram(sample: Tensor) -> tuple[Tensor, Tensor]:
    """Centers and counts of the bins of the values that are not zero, both (bins,)."""
    values = sample[sample != 0]
    counts, edges = torch.histogram(values, _BINS)
    return (edges[1:] + edges[:-1]) / 2, counts


def divergence(centers: Tensor, counts: Tensor, range_: ActivationRange) -> float:
    """Kullback-Leibler divergence of a histogram after rounding from that before.

    Before rounding, what lies outside counts as lying at the outermost bins inside. Rounding
    spreads what fell on one value evenly over the value's bins, and knows nothing of what lay
    outside, so clipping costs as well (Migacz, 8-bit inference with TensorRT, 2017).
    """
    integers = (centers / range_.scale).round_()
    inside = ((integers >= range_.low) & (integers <= range_.high)).nonzero().flatten()
    if len(inside) == 0:
        return torch.inf
    first, last = int(inside[0]), int(inside[-1]) + 1
    kept = counts[first:last]
    before = kept.clone()
    before[0] += counts[:first].sum()
    before[-1] += counts[last:].sum()
    level = (integers[first:last] - range_.low).long()
    filled = before > 0
    levels = range_.high - range_.low + 1
    bins_of = torch.bincount(level, filled.to(kept), levels)
    spread = torch.bincount(level, kept, levels) / bins_of.clamp_min(1)
    # Half a value spread over all bins where none is left, or it would be infinite.
    after = spread[level][filled].clamp_min(0.5 / len(kept))
    before = before[filled] / before.sum()
    return float((before * (before * (after.sum() / after)).log()).sum())
