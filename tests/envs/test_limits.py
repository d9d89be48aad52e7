from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.episode import PENALTY
from envs.episode import Episode
from envs.episode import Game
from envs.episode import score
from envs.limits import CostLimits
from envs.limits import excess
from envs.prices import LayerPrices
from hwmodel import InputError
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=2)
CHOICES = PROBLEM.space.sample(np.random.default_rng(0), 100)
LIMITS = CostLimits(latency_cycles=2e4, model_bytes=3e3)


def test_usage_is_the_share_of_each_limit() -> None:
    report = PROBLEM.cost(CHOICES)
    totals = {
        "latency_cycles": report.total_latency_cycles,
        "bops": report.total_bops,
        "model_bytes": report.model_bytes,
        "dram_bytes": report.dram_bytes.sum(axis=1),
    }
    assert set(totals) == set(vars(CostLimits()))
    for name, total in totals.items():
        usage = CostLimits(**{name: 123.0}).usage(report)
        np.testing.assert_allclose(usage, total[:, None] / 123.0)
        some = float(np.median(total))
        assert np.array_equal(CostLimits(**{name: some}).hold(report), total / some <= 1)
    assert CostLimits().usage(report).shape == (len(CHOICES), 0)


def test_only_what_exceeds_a_limit_counts() -> None:
    assert excess(np.array([[0.1, 1.0]])) == 0
    assert excess(np.array([[0.5, np.e]])) == pytest.approx(1)
    assert excess(np.array([[np.e, np.e**2]])) == pytest.approx(3)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_zero(limit: float) -> None:
    with pytest.raises(InputError, match="bops"):
        CostLimits(bops=limit)


def test_unfinished_configurations_take_about_as_much_as_the_model_says() -> None:
    limited = replace(PROBLEM, limits=LIMITS)
    table = LayerPrices(limited).layer_costs(CHOICES)[1].sum(axis=1)
    model = LIMITS.usage(PROBLEM.cost(CHOICES))
    assert np.all(np.median(np.abs(table / model - 1), axis=0) < 0.1)
    for column in range(table.shape[1]):
        assert np.corrcoef(table[:, column], model[:, column])[0, 1] > 0.97


def test_a_price_by_layer_is_that_of_its_own_option() -> None:
    """Whatever the removal of its input channels, which is no part of an option, makes of zeros."""
    removed = PROBLEM.table.removed_in[..., None] > 0
    denser = np.where(removed, 1.3, PROBLEM.table.column_density)
    table = replace(PROBLEM.table, column_density=denser)
    other = replace(PROBLEM, table=table)
    assert not np.array_equal(other.cost(CHOICES).energy_pj, PROBLEM.cost(CHOICES).energy_pj)
    here, there = (LayerPrices(problem).layer_cost(CHOICES) for problem in (PROBLEM, other))
    np.testing.assert_array_equal(here, there)


def test_a_finished_episode_pays_for_exceeding_a_limit() -> None:
    choice = PROBLEM.space.sample(np.random.default_rng(1), 1)
    needed = float(PROBLEM.cost(choice).model_bytes[0])

    def final_score(limit: float) -> float:
        limited = replace(PROBLEM, limits=CostLimits(model_bytes=limit))
        episode = Episode(Game(limited, SyntheticAccuracy(limited)), np.array([1.0]))
        while not episode.is_done:
            episode.decide(episode.actions_toward(choice))
        return float(episode.score[0])

    free = final_score(2 * needed)
    ratio, drop, target = (np.array([x]) for x in (0.5, 2.0, 1.0))
    assert final_score(needed / np.e) == pytest.approx(free - PENALTY)
    assert score(ratio, drop, target, 1.0) == pytest.approx(score(ratio, drop, target) - PENALTY)
