from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from envs.config import LayerDecision
from envs.episode import start_choice
from envs.limits import CostLimits
from envs.predictor import AccuracyPredictor
from envs.predictor import LayerDamage
from envs.preference import LAYER_COSTS
from envs.preference import CostFunction
from envs.problem import CompressionProblem
from search.allocation import Allocator
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=2)
START = start_choice(PROBLEM.space)[None]
BASELINE = float(PROBLEM.cost(START).energy_pj[0])
DAMAGE = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1).layer_damage()
PRICES = np.geomspace(0.1, 100, 12)


def objective(
    problem: CompressionProblem, damage: LayerDamage, prices: np.ndarray, choices: np.ndarray
) -> np.ndarray:
    return problem.cost(choices).energy_pj / BASELINE + prices * damage.total(choices)


def front(problem: CompressionProblem, prices: np.ndarray) -> np.ndarray:
    starts = np.repeat(start_choice(problem.space)[None], len(prices), axis=0)
    return Allocator(problem, BASELINE).front(DAMAGE, prices, starts)


def front_within(limits: CostLimits) -> np.ndarray:
    problem = replace(PROBLEM, limits=limits)
    starts = np.repeat(start_choice(problem.space)[None], len(PRICES), axis=0)
    free = np.zeros((len(PRICES), len(limits.given)))
    return Allocator(problem, BASELINE).front_within_limits(DAMAGE, PRICES, starts, free, 10)[0]


def single_changes(problem: CompressionProblem, choice: np.ndarray) -> np.ndarray:
    """All choices that differ in one layer, and those that follow it."""
    sizes = problem.space.sizes
    options = np.stack(np.unravel_index(np.arange(sizes.prod()), tuple(sizes)), axis=-1)
    changed = np.repeat(choice[None], len(options) * len(choice), axis=0)
    layer = np.repeat(np.arange(len(choice)), len(options))
    changed[np.arange(len(changed)), layer] = np.tile(options, (len(choice), 1))
    return problem.space.canonical(changed)


def test_no_single_layer_can_improve_on_an_allocation() -> None:
    for price, choice in zip(PRICES, front(PROBLEM, PRICES), strict=True):
        reached = objective(PROBLEM, DAMAGE, np.array([price]), choice[None])[0]
        others = single_changes(PROBLEM, choice)
        least = objective(PROBLEM, DAMAGE, np.full(len(others), price), others).min()
        assert least >= reached - 1e-6


def test_allocations_beat_many_random_choices_at_their_own_price() -> None:
    choices = front(PROBLEM, PRICES)
    others = PROBLEM.space.sample(np.random.default_rng(0), 5000)
    for price, choice in zip(PRICES, choices, strict=True):
        reached = objective(PROBLEM, DAMAGE, np.array([price]), choice[None])[0]
        assert reached < objective(PROBLEM, DAMAGE, np.full(len(others), price), others).min()


def test_the_dearer_damage_is_the_less_of_it_there_is() -> None:
    choices = front(PROBLEM, PRICES)
    assert np.array_equal(choices, PROBLEM.space.canonical(choices))
    assert np.all(np.diff(DAMAGE.total(choices)) <= 1e-9)
    assert np.all(np.diff(PROBLEM.cost(choices).energy_pj) >= -1e-6 * BASELINE)


@pytest.mark.parametrize("seed", range(3))
def test_a_descent_never_ends_higher(seed: int) -> None:
    starts = PROBLEM.space.sample(np.random.default_rng(seed), len(PRICES))
    ended = Allocator(PROBLEM, BASELINE).descend(DAMAGE, PRICES, starts, sweeps=1)
    before, after = (objective(PROBLEM, DAMAGE, PRICES, at) for at in (starts, ended))
    assert np.all(after <= before)


def test_pinned_layers_keep_their_decision() -> None:
    pinned = {"stem": LayerDecision(weight_bits=8, activation_bits=8)}
    problem = synthetic_problem(blocks=2, pinned=pinned)
    for choice in front(problem, PRICES):
        assert problem.space.config(choice).layers["stem"] == pinned["stem"]


def test_layers_that_ask_for_one_map_are_moved_together_though_none_reads_its_writer() -> None:
    """As behind a gate: who asks for a map's width may read another."""
    count = len(PROBLEM.workload)
    asked_by = ((1, 2), *((layer + 1,) for layer in range(1, count - 1)), ())
    workload = replace(PROBLEM.workload, asked_by=asked_by)
    problem = replace(PROBLEM, workload=workload)
    cheap = LayerDamage(np.zeros_like(DAMAGE.weight), np.full_like(DAMAGE.activation, 1e-6))
    assert Allocator(problem, BASELINE)._shared_readers == [(1, 2)]
    choice = Allocator(problem, BASELINE).descend(cheap, np.ones(1), START)[0]
    assert np.all(choice[1:3, 3] == 0)


def test_a_shared_map_gets_narrow_only_with_all_its_readers() -> None:
    """Each reader alone has no reason to: the map is written for the widest anyway."""
    cheap = LayerDamage(np.zeros_like(DAMAGE.weight), np.full_like(DAMAGE.activation, 1e-6))
    starts = start_choice(PROBLEM.space)[None]
    choice = Allocator(PROBLEM, BASELINE).descend(cheap, np.ones(1), starts)[0]
    assert np.all(choice[:, 3] == 0)


@pytest.mark.parametrize("name", LAYER_COSTS)
def test_an_allocation_minimizes_what_is_preferred(name: str) -> None:
    """Nothing that lets another cost count takes less of it at the same damage."""
    functions = {name: CostFunction({name: 1.0}, {name: 1.0}) for name in LAYER_COSTS}
    dense = {name: float(of.cost(PROBLEM.cost(START))[0]) for name, of in functions.items()}
    starts = np.repeat(START, len(PRICES), axis=0)
    reached = {}
    for counts in LAYER_COSTS:
        problem = replace(PROBLEM, objective=functions[counts])
        choices = Allocator(problem, dense[counts]).front(DAMAGE, PRICES, starts)
        cost = functions[name].cost(PROBLEM.cost(choices)) / dense[name]
        # The best at each price of all that is on the front.
        reached[counts] = (cost + PRICES[:, None] * DAMAGE.total(choices)).min(axis=1)
    for others in reached.values():
        assert np.all(reached[name] <= others + 1e-6)
    assert any(np.any(reached[name] < others - 1e-3) for others in reached.values())


@pytest.mark.parametrize("share", [0.6, 0.3, 0.15])
@pytest.mark.parametrize("name", ["latency_cycles", "bops", "model_bytes", "dram_bytes"])
def test_a_front_within_a_limit_holds_it_and_uses_it(name: str, share: float) -> None:
    dense = CostLimits(**{name: 1.0}).usage(PROBLEM.cost(start_choice(PROBLEM.space)[None]))
    limits = CostLimits(**{name: share * float(dense[0, 0])})
    free = front(PROBLEM, PRICES)
    over = limits.usage(PROBLEM.cost(free))[:, 0] > 1
    within = front_within(limits)
    assert np.all(limits.usage(PROBLEM.cost(within)) <= 1)
    assert np.array_equal(within[~over], free[~over])
    # No limited allocation is worse than the best free one that happens to hold the limit.
    for price, reached in zip(PRICES, objective(PROBLEM, DAMAGE, PRICES, within), strict=True):
        assert reached <= objective(PROBLEM, DAMAGE, price, free[~over]).min() + 1e-3


def test_all_of_several_limits_hold() -> None:
    report = PROBLEM.cost(start_choice(PROBLEM.space)[None])
    limits = CostLimits(
        model_bytes=0.2 * float(report.model_bytes[0]), bops=0.1 * float(report.total_bops[0])
    )
    assert np.all(limits.usage(PROBLEM.cost(front_within(limits))) <= 1)
