from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import evaluation

from search.front import distinct
from search.front import drop_upper_bound
from search.front import hypervolume
from search.front import non_dominated
from search.front import pareto_front
from search.ledger import COLUMNS
from search.ledger import Evaluation

points = st.lists(
    st.tuples(st.floats(0, 2, allow_nan=False), st.floats(-5, 20, allow_nan=False)), max_size=30
)


def frame(rows: list[Evaluation]) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))


def columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def test_front_of_known_points() -> None:
    #   loss
    #   4 |  0
    #   3 |     3        3 is beaten by 1
    #   2 |     1
    #   1 |        2  4  4 is beaten by 2
    #     +--1--2--3--4 energy
    energy, loss = [1, 2, 3, 2, 4], [4, 2, 1, 3, 1]
    assert pareto_front(energy, loss).tolist() == [0, 1, 2]


def test_front_of_nothing_and_of_unknowns() -> None:
    assert pareto_front([], []).tolist() == []
    assert pareto_front([1, math.nan, 2], [math.nan, 0, 5]).tolist() == [2]


def test_equal_points_appear_once() -> None:
    assert pareto_front([1, 1], [2, 2]).tolist() == [0]


@given(points)
def test_front_is_exactly_what_no_point_dominates(pairs) -> None:
    energy, loss = columns(pairs)
    front = {pairs[i] for i in pareto_front(energy, loss)}
    for point in pairs:
        beaten = any(q != point and q[0] <= point[0] and q[1] <= point[1] for q in pairs)
        assert (point in front) == (not beaten)


def attacked_rows(triples: list[tuple[float, float, float]]) -> pd.DataFrame:
    """Configurations by energy, accuracy and accuracy under attack."""
    names = ("energy_pj", "accuracy", "robust_accuracy")
    rows = [
        evaluation(number, **dict(zip(names, map(float, values), strict=True)))
        for number, values in enumerate(triples)
    ]
    return frame(rows)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=25))
def test_the_front_of_three_objectives_is_what_no_row_beats(triples) -> None:
    rows = attacked_rows(triples)
    found = non_dominated(rows, pd.Series({"accuracy": 1.0}), rows["energy_pj"].to_numpy()).tolist()
    costs = np.array([(energy, -right, -robust) for energy, right, robust in triples]).reshape(
        -1, 3
    )
    beaten = [
        any((other <= cost).all() and (other < cost).any() for other in costs) for cost in costs
    ]
    assert {triples[i] for i in found} == {
        triples[i] for i, is_beaten in enumerate(beaten) if not is_beaten
    }
    assert len(found) == len({triples[i] for i in found})
    assert [triples[i][0] for i in found] == sorted(triples[i][0] for i in found)


def test_rows_without_an_attack_have_a_front_of_two_objectives() -> None:
    rows = frame(
        [
            evaluation(i, energy_pj=e, accuracy=a)
            for i, (e, a) in enumerate([(2, 0.8), (1, 0.9), (3, 0.95)])
        ]
    )
    assert non_dominated(
        rows, pd.Series({"accuracy": 1.0}), rows["energy_pj"].to_numpy()
    ).tolist() == [1, 2]


def test_hypervolume_of_known_points() -> None:
    assert hypervolume([], []) == 0
    assert hypervolume([0.0], [0.0]) == 1
    assert hypervolume([0.5], [5.0]) == 0.25
    # 0.25 * 8 of the first, and 0.5 * 2 more of the second, of 10.
    assert hypervolume([0.5, 0.25], [0.0, 8.0]) == pytest.approx((0.5 * 10 + 0.25 * 2) / 10)


def test_points_outside_the_box_add_nothing() -> None:
    assert hypervolume([1.2, 0.1, math.nan], [0.0, 10.0, 0.0]) == 0


def test_a_gain_of_accuracy_counts_as_no_loss() -> None:
    assert hypervolume([0.5], [-3.0]) == hypervolume([0.5], [0.0])


@given(points, points)
def test_more_points_never_lower_the_hypervolume(some, more) -> None:
    before = hypervolume(*columns(some))
    after = hypervolume(*columns(some + more))
    assert 0 <= before <= after + 1e-12
    assert after <= 1


@given(points)
def test_the_front_has_the_hypervolume_of_all(pairs) -> None:
    energy, loss = columns(pairs)
    front = pareto_front(energy, loss)
    of_front = hypervolume(np.array(energy)[front], np.array(loss)[front])
    assert of_front == pytest.approx(hypervolume(energy, loss))


def test_a_repeated_configuration_counts_once_and_success_comes_first() -> None:
    rows = frame(
        [
            evaluation(1, accuracy=None, error="worker died"),
            evaluation(1, accuracy=0.8),
            evaluation(1, accuracy=0.7),
            evaluation(2, split="test"),
        ]
    )
    assert distinct(rows, "search")["accuracy"].tolist() == [0.8]


REFERENCE = frame([evaluation(999, accuracy=0.9, images=1000)]).iloc[0]


def bound(row: Evaluation) -> float:
    return float(drop_upper_bound(frame([row]), REFERENCE)[0])


def test_the_bound_of_blocks_that_agree_is_the_binomial_one() -> None:
    # One point lost of 1000 images: sqrt(0.01 / 1000) is 0.316 points.
    assert bound(evaluation(accuracy=0.89)) == pytest.approx(1 + 2.33 * 0.3162, abs=1e-3)


def test_no_loss_is_still_uncertain_by_an_image() -> None:
    assert bound(evaluation(accuracy=0.9)) == pytest.approx(2.33 * 0.1)


def test_the_bound_of_blocks_that_disagree_is_the_paired_one() -> None:
    blocks = (0.84, 0.94) * 5  # 1 point lost in the mean, by 6 and -4 points in turn
    error = np.std([6, -4] * 5, ddof=1) / np.sqrt(10)
    row = evaluation(accuracy=0.89, block_accuracies=blocks)
    assert bound(row) == pytest.approx(1 + 2.33 * error)
