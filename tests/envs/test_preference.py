from __future__ import annotations

from dataclasses import asdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.episode import Episode
from envs.episode import Game
from envs.episode import score
from envs.episode import start_choice
from envs.observation import OBSERVATION_NAMES
from envs.predictor import AccuracyPredictor
from envs.preference import ENERGY
from envs.preference import ENERGY_PJ
from envs.preference import LAYER_COSTS
from envs.preference import CostFunction
from envs.preference import Preference
from envs.prices import LayerPrices
from hwmodel.errors import InputError
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=2)
START = start_choice(PROBLEM.space)[None]
CHOICES = PROBLEM.space.sample(np.random.default_rng(0), 50)
REPORT = PROBLEM.cost(CHOICES)
TOTALS = {
    "energy_pj": REPORT.energy_pj,
    "latency_cycles": REPORT.total_latency_cycles,
    "bops": REPORT.total_bops,
    "model_bytes": REPORT.model_bytes,
    "dram_bytes": REPORT.dram_bytes.sum(axis=1),
}


def raw(**weights: float) -> CostFunction:
    """Weights of costs as they are."""
    return CostFunction(weights, dict.fromkeys(weights, 1.0))


def test_energy_alone_is_the_energy_of_the_report() -> None:
    assert np.array_equal(ENERGY_PJ.cost(REPORT), REPORT.energy_pj)
    assert np.array_equal(ENERGY_PJ.layer_cost(REPORT), REPORT.layer_energy_pj)


@given(st.lists(st.just(0.0) | st.floats(0.01, 10), min_size=5, max_size=5).filter(any))
def test_a_cost_is_the_weighted_sum_of_those_of_the_ledger(weights) -> None:
    function = Preference(*weights).over(dict.fromkeys(TOTALS, 2.0))
    expected = sum(w * TOTALS[name] / 2 for name, w in zip(TOTALS, weights, strict=True))
    np.testing.assert_allclose(function.cost(REPORT), expected)
    np.testing.assert_allclose(function.cost_of(TOTALS), expected)


def test_every_cost_can_count() -> None:
    assert list(TOTALS) == list(LAYER_COSTS) == list(asdict(ENERGY))


@given(st.lists(st.floats(0.01, 1), min_size=5, max_size=5))
def test_shares_of_a_reference_cost_their_weights_there(weights) -> None:
    reference = {name: float(values[0]) for name, values in TOTALS.items()}
    relative = Preference(*weights).over(reference)
    assert relative.cost(REPORT)[0] == pytest.approx(sum(weights))


@pytest.mark.parametrize("none", [0.0, float("nan")])
def test_what_the_reference_has_not_cannot_count(none: float) -> None:
    reference = {name: 1.0 for name in TOTALS} | {"dram_bytes": none}
    assert Preference(energy_pj=2.0).over(reference) == raw(energy_pj=2.0)
    with pytest.raises(InputError, match=r"preference\.dram_bytes"):
        Preference(energy_pj=1.0, dram_bytes=1.0).over(reference)


@pytest.mark.parametrize("weights", [{}, {"bops": 0.0}, {"bops": -1.0}, {"bops": float("inf")}])
def test_weights_that_are_none_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Preference(**weights)


@pytest.mark.parametrize("name", LAYER_COSTS)
def test_walks_are_priced_and_scored_by_what_counts(name: str) -> None:
    at_start = float(raw(**{name: 1.0}).cost(PROBLEM.cost(START))[0])
    problem = replace(PROBLEM, objective=raw(**{name: 3.0}))
    assert LayerPrices(problem).layer_cost(START).sum() == pytest.approx(3.0 * at_start)
    game = Game(problem, AccuracyPredictor(problem.table, 0.9, 0.1))
    episode = Episode(game, np.full(len(CHOICES), 1.0))
    while not episode.is_done:
        episode.decide(episode.actions_toward(CHOICES))
    ratio = TOTALS[name] / at_start
    np.testing.assert_allclose(episode.cost_ratio, ratio)
    np.testing.assert_allclose(episode.score, score(ratio, episode.accuracy_drop, episode.targets))


def test_agents_see_shares_and_savings_of_what_counts() -> None:
    """Everything that is static about a layer stays as it is but what of the cost is its own."""
    seen = {}
    for name in ("energy_pj", "model_bytes"):
        game = Game(
            replace(PROBLEM, objective=raw(**{name: 1.0})), AccuracyPredictor(PROBLEM.table)
        )
        seen[name] = Episode(game, np.ones(1)).observe()[0]
    differs = {
        name
        for name, a, b in zip(OBSERVATION_NAMES, *seen.values(), strict=True)
        if abs(a - b) > 1e-6
    }
    assert "share of the cost" in differs
    assert all("cost" in name or name.startswith("saving of probe") for name in differs)
