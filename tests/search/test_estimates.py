"""Losses from what was measured and what was expected, on splits whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from ledger_rows import evaluation

from search.estimates import FEWEST
from search.estimates import estimate_drops
from search.front import accuracy_drop
from search.front import drop_error
from search.front import drop_upper_bound
from search.goals import Goal
from search.goals import Goals
from search.picks import Candidates

BLOCKS = 10
LUCK = 0.25
"""Standard deviation of a drop by the luck of the images, in points, at no loss."""


def split(
    rng: np.random.Generator, count: int, common: float, unknown: float
) -> tuple[pd.DataFrame, pd.Series, np.ndarray]:
    """Rows of a split, its dense network, and what the rows lose on images like those.

    Args:
        rng: Draws the luck.
        count: Rows.
        common: Share of the luck's variance that all rows have in common.
        unknown: Standard deviation of what the predictor does not know, at no loss.
    """
    truth = rng.uniform(0, 3, count)
    size = LUCK * np.sqrt(BLOCKS) * np.sqrt(1 + truth)[:, None]
    shared, own = rng.normal(size=BLOCKS), rng.normal(size=(count, BLOCKS))
    luck = size * (np.sqrt(common) * shared + np.sqrt(1 - common) * own)
    expected = truth + (size * np.sqrt(common) * shared).mean(axis=1)  # learnt on this split
    expected += unknown * np.sqrt(1 + truth) * rng.normal(size=count)
    rows = [evaluation(9999, block_accuracies=(0.9,) * BLOCKS, images=5000)]
    for number in range(count):
        blocks = 0.9 - (truth[number] + luck[number]) / 100
        rows.append(
            evaluation(
                number,
                accuracy=float(blocks.mean()),
                block_accuracies=tuple(blocks),
                images=5000,
                energy_pj=1e6 / (1 + truth[number]),
                predicted_drop=float(expected[number]),
            )
        )
    table = pd.DataFrame([vars(row) for row in rows])
    return table.iloc[1:].reset_index(drop=True), table.iloc[0], truth


@pytest.mark.parametrize("common", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("unknown", [0.05, 0.2, 1.0])
def test_estimates_are_nearer_to_the_truth_and_their_bounds_hold(
    common: float, unknown: float
) -> None:
    held, off, measured_off = [], [], []
    for seed in range(60):
        rows, dense, truth = split(np.random.default_rng(seed), 80, common, unknown)
        measured = accuracy_drop(rows, dense)
        found = estimate_drops(rows, dense, measured, drop_error(rows, dense))
        known = np.isfinite(found.drop)
        off.append(np.square(found.drop - truth)[known].mean())
        measured_off.append(np.square(measured - truth)[known].mean())
        held.append((truth <= drop_upper_bound(rows, dense)).mean())
    assert np.mean(off) < 1.02 * np.mean(measured_off)
    if common < 0.9 and unknown < 1.0:
        assert np.mean(off) < 0.95 * np.mean(measured_off)
    assert np.mean(held) > 0.86
    if unknown >= 0.2:  # below, the least that is taken to be unknown makes bounds wider
        assert np.mean(held) < 0.97


def test_the_luckiest_of_many_is_not_taken_at_its_word() -> None:
    """The cheapest that seems to hold a target loses more than it seems, not more than it may."""
    rows, dense, truth = split(np.random.default_rng(1), 400, 0.5, 0.05)
    picked = Candidates(rows, dense, dense, Goals((1.0,))).pick(Goal(max_accuracy_drop=1.0))
    assert picked is not None
    assert truth[int(picked["config_hash"], 16)] <= 1.0
    measured = accuracy_drop(rows, dense)
    cheapest = rows["energy_pj"].where(measured <= 1.0).idxmin()
    assert truth[cheapest] > 1.2


@pytest.mark.parametrize("known", [0, FEWEST - 1])
def test_with_little_known_of_expectations_what_was_measured_counts(known: int) -> None:
    rows, dense, _ = split(np.random.default_rng(0), 40, 0.5, 0.1)
    rows.loc[known:, "predicted_drop"] = np.nan
    bound = accuracy_drop(rows, dense) + 2.33 * drop_error(rows, dense)
    np.testing.assert_allclose(drop_upper_bound(rows, dense), bound)


def test_a_row_without_an_expectation_is_bounded_by_what_was_measured() -> None:
    rows, dense, _ = split(np.random.default_rng(0), 40, 0.5, 0.1)
    rows.loc[7, "predicted_drop"] = np.nan
    measured, error = accuracy_drop(rows, dense), drop_error(rows, dense)
    bound = drop_upper_bound(rows, dense)
    assert bound[7] == pytest.approx(measured[7] + 2.33 * error[7])
    assert bound[8] != pytest.approx(measured[8] + 2.33 * error[8])
    assert np.isfinite(bound).all()


def test_early_guesses_that_are_far_off_change_little() -> None:
    rows, dense, _ = split(np.random.default_rng(0), 200, 0.5, 0.05)
    before = drop_upper_bound(rows, dense)
    wild = np.arange(0, 200, 20)
    rows.loc[wild, "predicted_drop"] = 4.5
    after = drop_upper_bound(rows, dense)
    others = np.setdiff1d(np.arange(200), wild)
    np.testing.assert_allclose(after[others], before[others], atol=0.15)


@pytest.mark.parametrize("expected", [0.5, 30.0])
def test_what_was_or_is_far_from_what_a_user_would_take_is_bounded_by_what_was_measured(
    expected: float,
) -> None:
    rows, dense, _ = split(np.random.default_rng(0), 40, 0.5, 0.1)
    rows.loc[3, "predicted_drop"] = expected
    if expected == 0.5:
        rows.at[3, "block_accuracies"] = (0.7,) * BLOCKS
        rows.loc[3, "accuracy"] = 0.7
    measured, error = accuracy_drop(rows, dense)[3], drop_error(rows, dense)[3]
    assert drop_upper_bound(rows, dense)[3] == pytest.approx(measured + 2.33 * error)


def test_blocks_without_an_accuracy_are_left_out() -> None:
    rows, dense, _ = split(np.random.default_rng(0), 80, 0.5, 0.1)
    whole = estimate_drops(rows, dense, accuracy_drop(rows, dense), drop_error(rows, dense))
    rows["block_accuracies"] = [(float("nan"), *x[1:]) for x in rows["block_accuracies"]]
    part = estimate_drops(rows, dense, accuracy_drop(rows, dense), drop_error(rows, dense))
    np.testing.assert_allclose(part.drop, whole.drop, atol=0.1)
    np.testing.assert_allclose(part.std, whole.std, rtol=0.2)


def test_where_blocks_tell_nothing_what_was_measured_counts() -> None:
    """Blocks that were not kept; networks that lose the same in each."""
    rows, dense, _ = split(np.random.default_rng(0), 40, 0.5, 0.0)
    rows["block_accuracies"] = [()] * len(rows)
    bound = accuracy_drop(rows, dense) + 2.33 * drop_error(rows, dense)
    np.testing.assert_allclose(drop_upper_bound(rows, dense), bound)
    alike = [(accuracy,) * BLOCKS for accuracy in rows["accuracy"]]
    rows["block_accuracies"] = alike
    bound = accuracy_drop(rows, dense) + 2.33 * drop_error(rows, dense)
    np.testing.assert_allclose(drop_upper_bound(rows, dense), bound)
