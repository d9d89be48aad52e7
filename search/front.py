"""Non-dominated configurations, how good a set of them is, and what they lose for sure.

The functions that take ``rows`` work on ledger rows (``Ledger.read()``); ``drop`` is accuracy
lost against the uncompressed network on the same split, in points (1 point = 1 % of the images).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from numpy.typing import NDArray

from envs.limits import CostLimits
from envs.preference import CostFunction
from envs.preference import Preference
from search.estimates import estimate_drops

ONE_SIDED_90 = 1.282
"""Standard deviations between an estimate and its one-sided 90 % bound."""
ONE_SIDED_99 = 2.33
"""Standard errors between what was measured and its one-sided 99 % confidence bound. So strict
because the cheapest of hundreds of candidates near a target is among the luckiest of them."""


def pareto_front(cost: ArrayLike, loss: ArrayLike) -> NDArray[np.int64]:
    """Indices of the points that no other point beats in cost and loss.

    Args:
        cost: Shape (points,). A point with a NaN is never on the front.
        loss: Shape (points,).

    Returns:
        By ascending cost, so strictly descending loss; of equal points the first.
    """
    costs, losses = np.asarray(cost, dtype=float), np.asarray(loss, dtype=float)
    order = np.lexsort((losses, costs))
    order = order[~np.isnan(costs[order]) & ~np.isnan(losses[order])]
    best = np.concatenate([[np.inf], np.minimum.accumulate(losses[order])[:-1]])[: len(order)]
    return order[losses[order] < best].astype(np.int64)


def cost_ratios(
    rows: pd.DataFrame, int8: pd.Series | None, preference: Preference
) -> NDArray[np.float64]:
    """What every row costs by a preference, over what dense INT8 does, (rows,).

    NaN where a row's costs are not known, or those of dense INT8 are not known yet.
    """
    if int8 is None:
        return np.full(len(rows), np.nan)
    return relative_to(int8, preference).cost_of({name: rows[name] for name in preference.given})


def relative_to(int8: pd.Series, preference: Preference) -> CostFunction:
    """What a preference makes of costs, over what it makes of dense INT8's."""
    return preference.over({name: int8[name] for name in preference.given})


def non_dominated(
    rows: pd.DataFrame, reference: pd.Series, cost: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Indices of the rows that no other row beats in cost, accuracy and, if known, robustness.

    Args:
        rows: Of one split, one for each configuration.
        reference: Row of the uncompressed network on the same split.
        cost: Of every row, (rows,).

    Returns:
        By ascending cost.
    """
    drops = accuracy_drop(rows, reference)
    robust = rows["robust_accuracy"].to_numpy(dtype=float)
    if np.isnan(robust).all():
        return pareto_front(cost, drops)
    costs = np.stack([cost, drops, -robust], axis=1)
    kept: list[int] = []
    for index in np.lexsort(costs.T[::-1]):  # one that beats another comes before it
        others = costs[kept]
        if not np.isnan(costs[index]).any() and not (others <= costs[index]).all(axis=1).any():
            kept.append(int(index))
    return np.array(kept, dtype=np.int64)


def hypervolume(
    cost_ratio: ArrayLike, loss_points: ArrayLike, reference: tuple[float, float] = (1.0, 10.0)
) -> float:
    """Share of the box from (0, 0) to ``reference`` that the points dominate, 0..1.

    Args:
        cost_ratio: Cost over that of dense INT8, shape (points,).
        loss_points: Accuracy drop in points, shape (points,); a gain counts as no drop.
        reference: Worst corner; points outside the box add nothing.
    """
    ratios = np.maximum(np.asarray(cost_ratio, dtype=float), 0.0)
    losses = np.maximum(np.asarray(loss_points, dtype=float), 0.0)
    inside = (ratios < reference[0]) & (losses < reference[1])
    ratios, losses = ratios[inside], losses[inside]
    front = pareto_front(ratios, losses)
    widths = np.diff(np.append(ratios[front], reference[0]))
    share = np.sum(widths * (reference[1] - losses[front])) / (reference[0] * reference[1])
    return min(float(share), 1.0)  # sums of parts of the box can round to more than the box


def distinct(rows: pd.DataFrame, split: str) -> pd.DataFrame:
    """The first successful row of every configuration on ``split``; failed ones where none is."""
    rows = rows[rows["split"] == split]
    failed_last = rows.sort_values("accuracy", key=pd.isna, kind="stable")
    first = failed_last.drop_duplicates("config_hash")
    return first.sort_values("time", kind="stable").reset_index(drop=True)


def baseline(rows: pd.DataFrame, name: str, split: str) -> pd.Series | None:
    """The row of one of ``BASELINES``; None if it has not been evaluated."""
    found = rows[(rows["name"] == name) & (rows["split"] == split) & rows["accuracy"].notna()]
    return None if found.empty else found.iloc[0]


def accuracy_drop(rows: pd.DataFrame, reference: pd.Series) -> NDArray[np.float64]:
    """Drop of every row in points; NaN where the evaluation failed."""
    return (reference["accuracy"] - rows["accuracy"].to_numpy(dtype=float)) * 100


def drop_error(rows: pd.DataFrame, reference: pd.Series) -> NDArray[np.float64]:
    """Standard error of the drop of every row, in points.

    Both networks saw the same images, so it is that of paired differences: with B blocks of equal
    size, ``std(differences, ddof=1) / sqrt(B)``. A few blocks can agree by chance, so it is floored
    by the binomial error of the share p of the n images that were lost, ``sqrt(max(p, 1/n) / n)``.
    The uncompressed network itself loses nothing for sure.

    Args:
        rows: Ledger rows of one split.
        reference: Row of the uncompressed network on the same split.
    """
    drops = accuracy_drop(rows, reference)
    images = rows["images"].to_numpy(dtype=float)
    floor = np.sqrt(np.maximum(drops / 100, 1 / images) / images)
    blocks = [_paired_error(blocks, reference) for blocks in rows["block_accuracies"]]
    error = 100 * np.maximum(floor, np.array(blocks, dtype=float))
    is_reference = (rows["config_hash"] == reference["config_hash"]).to_numpy()
    return np.where(is_reference, 0.0, error)


def drop_upper_bound(rows: pd.DataFrame, reference: pd.Series) -> NDArray[np.float64]:
    """Bound on the drop of every row, in points.

    One-sided 90 % by what was measured and what was expected before, see
    :func:`search.estimates.estimate_drops`. Where nothing was expected of a row, or too little is
    known of how far expectations are off, one-sided 99 % by what was measured alone:
    ``drop + 2.33 * standard_error``, see :func:`drop_error`.
    """
    measured, error = accuracy_drop(rows, reference), drop_error(rows, reference)
    known = estimate_drops(rows, reference, measured, error)
    bound = known.drop + ONE_SIDED_90 * known.std
    return np.where(np.isnan(bound), measured + ONE_SIDED_99 * error, bound)


def smallest_provable_drop(images: int) -> float:
    """The bound of a configuration that loses no image of a split of this size, in points."""
    return 100 * ONE_SIDED_99 / images


def holds_limits(rows: pd.DataFrame, limits: CostLimits) -> NDArray[np.bool_]:
    """Whether the costs of each row hold all limits; those of a failed one do not."""
    holds = np.ones(len(rows), dtype=np.bool_)
    for name, limit in limits.given.items():
        holds &= rows[name].to_numpy(dtype=float) <= limit
    return holds


def _paired_error(blocks: Any, reference: pd.Series) -> float:
    """Standard error of the mean difference between blocks; 0 where blocks do not pair up."""
    dense = reference["block_accuracies"]
    if blocks is None or dense is None or len(blocks) != len(dense) or len(dense) < 2:
        return 0.0
    differences = np.asarray(dense, dtype=float) - np.asarray(blocks, dtype=float)
    differences = differences[np.isfinite(differences)]
    if len(differences) < 2:
        return 0.0
    return float(np.std(differences, ddof=1) / np.sqrt(len(differences)))
