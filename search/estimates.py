"""What a configuration loses, from what was measured of it and what was expected before.

A measured loss is off by the luck of the images. Part of that luck all configurations share, since
they saw the same images; the rest is a configuration's own, and the cheapest of hundreds that seem
to hold a target is among the luckiest. What a predictor expected before it was measured knows
nothing of a configuration's own luck. So both are weighed by their variances, which the
measurements themselves tell (empirical Bayes), and all of them grow alike with the loss p that was
expected, as 1 + p:

- of the luck of the images, the paired errors of all that was measured;
- the share of that which is common, the mean correlation of two configurations' losses over the
  blocks of the split;
- of what the predictor does not know, what the distances of measured from expected losses leave,
  of which none counts as more than three standard deviations: a few early guesses are far off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

COMPARABLE_DROP = 5.0
"""Points lost beyond which a network errs in other ways than one that a user would take."""
FEWEST = 20
"""Comparable configurations that are needed to know the variances."""
_FARTHEST = 3.0
_MEDIAN_OF_SQUARE = 0.4549
"""Of a standard normal variable."""
_LEAST_UNKNOWN = 0.1
"""Variance of what the predictor does not know, of that of the luck of the images, at least."""


@dataclass(frozen=True)
class Estimates:
    """Losses of rows in points, and their standard deviations, (rows,) each; NaN where unknown."""

    drop: NDArray[np.float64]
    std: NDArray[np.float64]


def estimate_drops(
    rows: pd.DataFrame,
    reference: pd.Series,
    measured: NDArray[np.float64],
    error: NDArray[np.float64],
) -> Estimates:
    """Losses of ledger rows of one split.

    Args:
        rows: The rows.
        reference: Row of the uncompressed network on the same split.
        measured: Points lost, NaN where an evaluation failed, (rows,).
        error: Their standard errors, (rows,).

    Returns:
        NaN for rows that were not expected to lose less than :data:`COMPARABLE_DROP`, or did not.
        All NaN where these are fewer than :data:`FEWEST`, or their blocks do not tell what luck
        they share.
    """
    expected = rows["predicted_drop"].to_numpy(dtype=float)
    # False for NaN.
    comparable = (expected < COMPARABLE_DROP) & (measured < COMPARABLE_DROP)
    common = common_share(_block_losses(rows[comparable], reference))
    if comparable.sum() < FEWEST or np.isnan(common):
        nothing = np.full(len(rows), np.nan)
        return Estimates(nothing, nothing)
    growth = 1 + np.maximum(expected, 0.0)
    luck = float(np.mean(error[comparable] ** 2 / growth[comparable]))
    own = (1 - common) * luck
    distance = (measured - expected)[comparable] ** 2 / growth[comparable]
    farthest = _FARTHEST**2 * np.median(distance) / _MEDIAN_OF_SQUARE
    unknown = max(float(np.minimum(distance, farthest).mean()) - own, _LEAST_UNKNOWN * luck)
    weight = unknown / (unknown + own)
    drop = expected + weight * (measured - expected)
    std = np.sqrt(growth * (common * luck + weight * own))
    return Estimates(np.where(comparable, drop, np.nan), np.where(comparable, std, np.nan))


def _block_losses(rows: pd.DataFrame, reference: pd.Series) -> NDArray[np.float64]:
    """Points lost on every block of the split, (rows, blocks), of the rows that have blocks."""
    dense = np.array(reference["block_accuracies"], dtype=float)
    blocks = [np.asarray(x) for x in rows["block_accuracies"] if len(x) == len(dense)]
    return 100 * (dense - np.array(blocks, dtype=float).reshape(len(blocks), len(dense)))


def common_share(losses: NDArray[np.float64]) -> float:
    """Mean correlation of two networks' losses over the blocks of a split, 0..1; NaN if unknown.

    Args:
        losses: Shape (networks, blocks); blocks on which one is not defined are left out.
    """
    losses = losses[:, np.isfinite(losses).all(axis=0)]
    if losses.shape[1] < 2:
        return float("nan")
    losses = losses - losses.mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(losses, axis=1)
    vary = sizes > 1e-9
    directions = losses[vary] / sizes[vary, None]
    pairs = len(directions) * (len(directions) - 1)
    if not pairs:
        return float("nan")
    together = float(np.square(directions.sum(axis=0)).sum()) - len(directions)
    return float(np.clip(together / pairs, 0.0, 1.0))
