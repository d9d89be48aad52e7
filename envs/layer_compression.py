"""One layer compressed: pruned, then rounded, repaired or not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from envs.adaptive_rounding import round_adaptively
from envs.config import FLOAT_BITS
from envs.config import Criterion
from envs.config import Granularity
from envs.config import LayerDecision
from envs.config import Repair
from envs.exact_reconstruction import prune_exactly
from envs.exact_reconstruction import round_exactly
from envs.exact_reconstruction import solve_exactly
from envs.least_squares import inverse_diagonal
from envs.patterns import pattern_of
from envs.pruning import magnitude_scores
from envs.pruning import random_scores
from envs.pruning import second_order_scores
from envs.quantization import round_weights
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.reconstruction import reconstruct_masked
from envs.reconstruction import reconstruct_rounded
from envs.reconstruction import reconstruct_sparse
from envs.reconstruction_settings import DEFAULT_RECONSTRUCTION
from envs.reconstruction_settings import Reconstruction
from envs.scales import FindScales
from envs.scales import WeightGrid
from envs.statistics import LayerStatistics
from envs.trace import TracedLayer

COMPRESSION_VERSION = "13"
"""Changes whenever the same configuration would give other weights or another accuracy: part of
every cache key."""

_ROUNDINGS = {
    "gptq": reconstruct_rounded,
    "exact": round_exactly,
    "adaround": round_adaptively,
}


def compressed_rows(
    layer: TracedLayer,
    statistics: LayerStatistics,
    decision: LayerDecision,
    removed: Tensor | None,
    repair: Repair,
    quantizer: Quantizer = DEFAULT_QUANTIZER,
    reconstruction: Reconstruction = DEFAULT_RECONSTRUCTION,
) -> tuple[Tensor, Tensor | None]:
    """Prune and round one layer's raw weights.

    Args:
        layer: The layer.
        statistics: Its statistics.
        decision: What to do. Filters are removed by the caller.
        removed: Columns whose input channels are gone, bool, (groups, columns), or None.
        repair: See ``CompressionConfig``.
        quantizer: See ``CompressionConfig``.
        reconstruction: See ``CompressionConfig``.

    Returns:
        Weights (groups, rows, columns) and the scale of every output channel, (out_channels,), or
        of every output and input channel, (out_channels, in_channels / groups); None for floats.
    """
    pruned = pruned_rows(
        layer, statistics, decision.granularity, decision.criterion, [decision.sparsity],
        removed, repair, reconstruction,
    )  # fmt: skip
    grid, bits = WeightGrid.of(layer, quantizer), decision.weight_bits
    rounded, scales = rounded_rows(
        statistics, pruned, [bits], removed, repair, grid.find, reconstruction
    )
    return rounded[0, 0], None if bits in FLOAT_BITS else grid.of_channels(scales[0, 0])


def pruned_rows(
    layer: TracedLayer,
    statistics: LayerStatistics,
    granularity: Granularity,
    criterion: Criterion,
    sparsities: Sequence[float],
    removed: Tensor | None,
    repair: Repair,
    reconstruction: Reconstruction = DEFAULT_RECONSTRUCTION,
) -> Tensor:
    """One layer pruned to several sparsities, (sparsities, groups, rows, columns)."""
    rows, moment = layer.rows, statistics.second_moment
    repairs, exactly = repair != "none", reconstruction.pruning == "exact"
    if granularity in ("none", "filter"):
        sparsities = [0.0] * len(sparsities)
    patterns = [pattern_of(granularity, sparsity, layer.shape) for sparsity in sparsities]
    if criterion == "second_order" and repairs:
        pruned = torch.empty(len(sparsities), *rows.shape)
        prune = prune_exactly if exactly else reconstruct_sparse
        for pattern in dict.fromkeys(patterns):
            same = [index for index, other in enumerate(patterns) if other == pattern]
            goals = [sparsities[index] for index in same]
            pruned[same] = prune(rows, moment, goals, pattern=pattern, removed_columns=removed)
        return pruned
    stays = torch.ones_like(rows, dtype=torch.bool)
    if removed is not None:
        stays &= ~removed[:, None]
    scores = torch.where(stays, weight_scores(layer, statistics, criterion), -1.0)
    keep = torch.stack(
        [
            stays & pattern.keep(scores, stays, 1 - sparsity) if sparsity else stays
            for pattern, sparsity in zip(patterns, sparsities, strict=True)
        ]
    )
    if bool(keep.all()):
        return rows.expand_as(keep)
    if not repairs:
        return rows * keep
    solve = solve_exactly if exactly else reconstruct_masked
    return solve(rows, moment, keep, removed_columns=removed)


def weight_scores(layer: TracedLayer, statistics: LayerStatistics, criterion: Criterion) -> Tensor:
    """Score of every weight as trained, >= 0, (groups, rows, columns)."""
    if criterion == "second_order":
        return second_order_scores(layer.rows, inverse_diagonal(statistics.second_moment))
    return random_scores(layer.rows) if criterion == "random" else magnitude_scores(layer.rows)


def rounded_rows(
    statistics: LayerStatistics,
    pruned: Tensor,
    bits: Sequence[int],
    removed: Tensor | None,
    repair: Repair,
    find_scales: FindScales,
    reconstruction: Reconstruction = DEFAULT_RECONSTRUCTION,
) -> tuple[Tensor, Tensor]:
    """Pruned weights at several widths.

    Args:
        statistics: Of their layer.
        pruned: Shape (options, groups, rows, columns).
        bits: Widths.
        removed: Columns that are gone, (groups, columns), or None.
        repair: See ``CompressionConfig``.
        find_scales: Finds the scales.
        reconstruction: See ``CompressionConfig``.

    Returns:
        Weights (options, widths, groups, rows, columns) and scales, (options, widths, groups, rows)
        or one for each weight.
    """
    integers = [width for width in bits if width not in FLOAT_BITS]
    if repair != "none" and integers == list(bits):
        return _ROUNDINGS[reconstruction.rounding](
            pruned,
            statistics.second_moment,
            bits,
            removed_columns=removed,
            find_scales=find_scales,
        )
    found = [(width, *find_scales(pruned, width)) for width in bits]
    rounded = [round_weights(pruned, scale, width, low) for width, scale, low in found]
    return torch.stack(rounded, dim=1), torch.stack([scale for _, scale, _ in found], dim=1)


def removed_columns(layer: TracedLayer, kept_in: Tensor) -> Tensor | None:
    """Columns of a layer's rows whose input channel is gone, (groups, columns); None if none."""
    if bool(kept_in.all()):
        return None
    kernel = layer.rows.shape[-1] * layer.shape.groups // len(kept_in)
    return ~kept_in.view(layer.shape.groups, -1).repeat_interleave(kernel, dim=1)
