"""Sequential verdicts: exact at the end, wrong as rarely as promised, early where it is clear."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.early_stopping import AccuracyLimit
from envs.early_stopping import SequentialTest
from hwmodel import InputError


def run(values: np.ndarray, limit: float, error_rate: float, part: int) -> SequentialTest:
    test = SequentialTest(len(values), limit, error_rate)
    for first in range(0, len(values), part):
        if test.update(values[first : first + part]) is not None:
            break
    return test


def population(size: int, losses: int, gains: int) -> np.ndarray:
    values = np.zeros(size)
    values[:losses] = 1
    values[losses : losses + gains] = -1
    return values


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60),
    st.integers(-60, 60),
    st.integers(1, 20),
)
def test_a_verdict_that_may_not_err_is_that_of_all_values(
    values: list[float], total: int, part: int
) -> None:
    limit = total / len(values)
    test = run(np.array(values), limit, 1e-300, part)
    assert test.verdict == (sum(values) <= total)


@pytest.mark.parametrize("excess", [0, 1], ids=["just within", "just beyond"])
def test_errors_are_no_more_frequent_than_stated(excess: int) -> None:
    # The hardest populations: at the limit of 20 of 400, and one beyond it.
    generator = np.random.default_rng(0)
    values = population(400, 30 + excess, 10)
    orders = 400
    wrong = 0
    for _ in range(orders):
        verdict = run(generator.permutation(values), 20 / 400, 0.1, 10).verdict
        wrong += verdict != (excess == 0)
    # Three standard deviations above the stated rate.
    assert 0 < wrong <= orders * 0.1 + 3 * np.sqrt(orders * 0.1 * 0.9)


@pytest.mark.parametrize(("losses", "holds"), [(0, True), (1500, False)])
def test_clear_cases_need_few_values(losses: int, holds: bool) -> None:
    values = np.random.default_rng(0).permutation(population(5000, losses, 0))
    test = run(values, 0.01, 0.01, 20)
    assert test.verdict is holds
    assert test.seen < 1000


def test_parts_of_any_size_give_the_same_verdict() -> None:
    values = np.random.default_rng(0).permutation(population(1000, 80, 20))
    seen = [run(values, 0.01, 0.01, part).seen for part in (1, 7)]
    assert seen[0] <= seen[1] < seen[0] + 7


@pytest.mark.parametrize(("drop", "rate"), [(-1, 0.01), (101, 0.01), (1, 0), (1, 1)])
def test_limits_out_of_range_are_refused(drop: float, rate: float) -> None:
    with pytest.raises(InputError):
        AccuracyLimit(drop, rate)
