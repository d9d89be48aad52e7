from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from envs.episode import start_choice
from envs.predictor import LEAST_MODEL_ERROR
from envs.predictor import MODEL_ERROR
from envs.predictor import AccuracyPredictor
from envs.predictor import DropBound
from envs.predictor import _decoupled
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem()
SPACE = PROBLEM.space


def truth() -> SyntheticAccuracy:
    """What layers really lose differs from what their sensitivities say."""
    rng = np.random.default_rng(7)
    return SyntheticAccuracy(PROBLEM, scales=np.exp(rng.normal(0.5, 1.0, (len(SPACE.layers), 2))))


def mild_choices(count: int, seed: int) -> np.ndarray:
    """Choices around those that a search asks for: mostly wide, little pruned."""
    rng = np.random.default_rng(seed)
    shape = (count, len(SPACE.layers))
    harshness = rng.uniform(0.2, 1.0, (count, 1))
    width = [5 - rng.binomial(3, harshness, shape) for _ in range(2)]
    method = rng.integers(0, 5, shape) * (rng.random(shape) < 0.5)
    choices = np.stack([method, rng.binomial(5, harshness, shape), *width], axis=-1)
    return SPACE.canonical(choices)


def measured(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    choices = mild_choices(count, seed)
    noise = np.random.default_rng(seed).normal(0, 0.002, count)
    return choices, 0.9 - truth().accuracy_drop(choices) / 100 + noise


def fitted(count: int) -> AccuracyPredictor:
    predictor = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1)
    predictor.fit(*measured(count))
    return predictor


def test_the_start_loses_next_to_nothing_before_any_measurement() -> None:
    predictor = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1)
    assert 0 <= predictor.accuracy_drop(start_choice(SPACE)[None])[0] < 0.5


def test_measurements_improve_ranking_and_error() -> None:
    choices = mild_choices(400, seed=2)
    drop = truth().accuracy_drop(choices)
    near = drop < 15
    ranks, errors = [], []
    for count in (0, 30, 300):
        predicted = fitted(count).accuracy_drop(choices)
        ranks.append(spearmanr(predicted[near], drop[near]).statistic)
        errors.append(np.median(np.abs(np.log(predicted[near] / drop[near]))))
    assert ranks[0] < ranks[1] < ranks[2]
    assert ranks[2] > 0.95
    assert errors[2] < 0.1 < errors[1] < errors[0]


@given(st.floats(-1, 6), st.floats(0, 1000))
def test_what_adds_up_is_found_from_what_was_lost(exponent: float, coupling: float) -> None:
    damage = _decoupled(np.array([exponent]), coupling)[0]
    assert damage + coupling * damage**3 == pytest.approx(exponent, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("coupling", [0.0, 20.0, 200.0])
def test_large_losses_are_foretold_where_layers_disturb_each_other(coupling: float) -> None:
    def drops(choices: np.ndarray) -> np.ndarray:
        damage = -np.log1p(-truth().accuracy_drop(choices) / 80.0)
        return -80.0 * np.expm1(-(damage + coupling * damage**3))

    predictor = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1)
    known, choices = mild_choices(150, seed=1), mild_choices(400, seed=2)
    predictor.fit(known, 0.9 - drops(known) / 100)
    predicted, lost = predictor.accuracy_drop(choices), drops(choices)
    for low, high in ((2, 5), (5, 15), (15, 30), (30, 60)):
        within = (predicted >= low) & (predicted < high)
        assert within.sum() > 20
        assert np.median(lost[within] / predicted[within]) == pytest.approx(1, abs=0.3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 19), st.integers(2, 3), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_narrower_width_never_gains(layer: int, column: int, width: int, seed: int) -> None:
    wide = SPACE.sample(np.random.default_rng(seed), 1)
    wide[0, layer, column] = width
    narrow = wide.copy()
    narrow[0, layer, column] = width - 1
    predictor = fitted(30)
    assert predictor.accuracy_drop(narrow)[0] >= predictor.accuracy_drop(wide)[0] - 1e-9


def test_drops_stay_between_nothing_and_chance() -> None:
    drop = fitted(100).accuracy_drop(SPACE.sample(np.random.default_rng(0), 500))
    assert np.all((drop >= 0) & (drop <= 80.0 + 1e-9))


def test_what_was_measured_is_more_certain_than_what_was_not() -> None:
    choices = mild_choices(50, seed=3)
    certainty = [fitted(count).relative_std(choices).mean() for count in (0, 30, 300)]
    assert certainty[0] > certainty[1] > certainty[2] > 0
    predictor = fitted(30)
    optimistic = predictor.optimistic_drop(choices)
    assert np.all(optimistic < predictor.accuracy_drop(choices))


def test_the_bound_comes_down_to_what_is_expected_as_more_is_known() -> None:
    choices = mild_choices(50, seed=3)
    ratios = []
    for count in (0, 30, 300):
        predictor = fitted(count)
        bound, expected = DropBound(predictor), predictor.accuracy_drop(choices)
        assert np.all(bound.accuracy_drop(choices) > expected)
        assert np.allclose(DropBound(predictor, 0.0).accuracy_drop(choices), expected)
        ratios.append(float((bound.accuracy_drop(choices) / expected).mean()))
    assert ratios[0] > ratios[1] > ratios[2] > 1


def test_the_error_of_the_model_is_learnt_from_what_it_leaves() -> None:
    choices, _ = measured(200)
    true = truth().accuracy_drop(choices)

    def learnt(spread: float, count: int) -> float:
        drop = true * np.exp(np.random.default_rng(5).normal(0, spread, len(true)))
        predictor = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1, images=10**6)
        predictor.fit(choices[:count], 0.9 - drop[:count] / 100)
        return predictor.model_error

    assert LEAST_MODEL_ERROR <= learnt(0.0, 200) < learnt(0.0, 20) <= MODEL_ERROR
    assert learnt(0.0, 200) < learnt(0.2, 200) < learnt(0.5, 200)
    assert learnt(0.5, 200) > MODEL_ERROR


def test_uncertainty_covers_the_truth() -> None:
    choices = mild_choices(400, seed=4)
    drop = truth().accuracy_drop(choices)
    near = drop < 30
    predictor = fitted(60)
    low = predictor.optimistic_drop(choices, 2.0)
    high = predictor.optimistic_drop(choices, -2.0)
    assert np.mean((low <= drop) & (drop <= high), where=near) > 0.85


def test_what_loses_many_points_does_not_spoil_what_loses_few() -> None:
    """Above some points damage grows faster than its parts add up to."""
    choices = mild_choices(400, seed=8)
    drop = truth().accuracy_drop(choices)
    few, many = choices[drop < 3], choices[(drop > 10) & (drop < 20)]
    assert len(few) > 20
    assert len(many) > 20
    predictor = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1)
    lost = np.concatenate([truth().accuracy_drop(few[:20]), 3 * truth().accuracy_drop(many[:20])])
    predictor.fit(np.concatenate([few[:20], many[:20]]), 0.9 - lost / 100)
    ratio = predictor.accuracy_drop(few) / truth().accuracy_drop(few)
    assert 0.7 < np.median(ratio) < 1.4


def test_a_measurement_on_more_images_counts_for_more() -> None:
    choices, accuracy = measured(10)
    start = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1).accuracy_drop(choices)
    away = []
    for images in (200, 2000, 20_000):
        predictor = AccuracyPredictor(PROBLEM.table, 0.9, 0.1, images)
        predictor.fit(choices, accuracy)
        away.append(np.abs(np.log(predictor.accuracy_drop(choices) / start)).mean())
    assert away[0] < away[1] < away[2]


def test_the_same_measurements_give_the_same_predictor() -> None:
    choices = mild_choices(20, seed=5)
    first, second = fitted(40), fitted(40)
    assert np.array_equal(first.accuracy_drop(choices), second.accuracy_drop(choices))
    copy = pickle.loads(pickle.dumps(first))
    assert np.array_equal(first.accuracy_drop(choices), copy.accuracy_drop(choices))


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.9, 1.0])
def test_accuracies_at_the_edges_can_be_learnt_from(accuracy: float) -> None:
    predictor = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1)
    choices = mild_choices(5, seed=6)
    predictor.fit(choices, np.full(5, accuracy))
    assert np.all(np.isfinite(predictor.accuracy_drop(choices)))
