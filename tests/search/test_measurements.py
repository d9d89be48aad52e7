"""Which drops are worth to look for, where picks need a bound."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import evaluation

from search.front import drop_error
from search.front import smallest_provable_drop
from search.measurements import drops_that_hold

LIMITS = (0.5, 1.0, 2.0)


def frame(drops: list[float], spread: float, images: int = 5000) -> tuple[pd.DataFrame, pd.Series]:
    """The dense network and others that lose ``drops`` points, blocks ``spread`` points apart."""
    rows = [evaluation(0, images=images)]
    for number, drop in enumerate(drops, 1):
        accuracy = 0.9 - drop / 100
        blocks = tuple(accuracy + spread / 100 * sign for sign in (-1, 1) * 5)
        rows.append(evaluation(number, accuracy=accuracy, block_accuracies=blocks, images=images))
    table = pd.DataFrame([vars(row) for row in rows])
    return table, table.iloc[0]


@given(st.floats(0.05, 3.0), st.integers(100, 100_000))
def test_the_bound_at_such_a_drop_is_expected_to_be_the_limit(spread: float, images: int) -> None:
    baselines, dense = frame([0.1, 1.0, 3.0], spread, images)
    limits = [max(limit, smallest_provable_drop(images)) for limit in LIMITS]
    drops = np.array(drops_that_hold(LIMITS, baselines, dense, 300))
    assert (np.diff(drops) >= 0).all()
    # Whatever the variance at no loss, it is the same one for all of them.
    errors = (limits - drops) / 2.33
    variances = errors**2 / (1 + np.maximum(drops, 0.0))
    np.testing.assert_allclose(variances, variances[0], rtol=1e-6)


def test_drops_come_nearer_to_the_limits_the_less_baselines_spread() -> None:
    drops = [drops_that_hold(LIMITS, *frame([0.5, 1.0], spread), 300) for spread in (0.1, 0.5, 1.0)]
    assert np.all(np.diff(np.array(drops), axis=0) < 0)
    assert np.all(np.array(drops) < LIMITS)


def test_what_says_nothing_about_errors_is_left_out() -> None:
    """The dense network itself, and what loses more than anyone would take."""
    assert drops_that_hold(LIMITS, *frame([], 1.0), 300) == drops_that_hold(
        LIMITS, *frame([20.0], 9.0), 300
    )


def test_rows_that_spread_as_expected_hold_what_was_expected_of_them() -> None:
    baselines, dense = frame([0.0] * 200, 1.0)
    (drop,) = drops_that_hold([2.0], baselines, dense, 300)
    found, _ = frame([drop], float(np.sqrt(1 + drop)))
    error = drop_error(found, dense)[1]
    assert error > 0.3
    assert drop + 1.282 * np.sqrt(0.6) * error == pytest.approx(2.0, abs=0.02)
