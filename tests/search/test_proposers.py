"""One suite for every algorithm that proposes; the policies' own tests are elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from envs.accuracy import AccuracySource
from envs.config import LayerDecision
from envs.episode import start_choice
from envs.predictor import DropBound
from envs.preference import CostFunction
from envs.problem import CompressionProblem
from hwmodel import load_accelerator
from hwmodel.errors import InputError
from search.allocation import Allocator
from search.front import hypervolume
from search.measurements import Measurements
from search.measurements import Reference
from search.policy_proposer import PolicyProposer
from search.predicted_front import Front
from search.proposers import Proposer
from search.proposers import make_proposer
from search.storage import Storage
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=3)
LAYER_NAMES = PROBLEM.space.layers
LAYERS = len(LAYER_NAMES)
PINNED = LayerDecision(weight_bits=8, activation_bits=8)
TRUTH = SyntheticAccuracy(
    PROBLEM, scales=np.exp(np.random.default_rng(7).normal(0, 0.7, (LAYERS, 2)))
)
START = start_choice(PROBLEM.space)[None]
REFERENCE = Reference(0.9, 0.1, float(PROBLEM.cost(START).energy_pj[0]), (0.5, 1.0, 2.0))
ALGORITHMS = [
    "random", "uniform", "dp", "dp+local", "dp+fitted", "optuna-tpe", "optuna-nsga2",
]  # fmt: skip


class Apprentice:
    """Agents that watch and do nothing of their own."""

    def __init__(self) -> None:
        self.shown: list[tuple[np.ndarray, np.ndarray]] = []

    def use(self, accuracy: object) -> None: ...

    def train(self, episodes: int) -> None: ...

    def imitate(self, choices: np.ndarray, targets: np.ndarray, epochs: int) -> None:
        self.shown.append((choices, targets))

    def propose(self, targets: np.ndarray, rng: object) -> np.ndarray:
        return np.repeat(START, len(targets), axis=0)


def make(algorithm: str, seed: int = 0) -> Proposer:
    if algorithm.startswith("optuna"):
        pytest.importorskip("optuna")
    return make_proposer(algorithm, PROBLEM, REFERENCE, seed, Storage.at("unused"))


def measure(choices: np.ndarray) -> np.ndarray:
    return 0.9 - TRUTH.accuracy_drop(choices) / 100


def search(proposer: Proposer, batches: int = 3, count: int = 8) -> np.ndarray:
    """Choices of a small search that knows the start."""
    proposer.learn(START, measure(START))
    found = []
    for _ in range(batches):
        choices = proposer.propose(count)
        proposer.learn(choices, measure(choices))
        found.append(choices)
    return np.concatenate(found)


def volume(choices: np.ndarray) -> float:
    ratio = PROBLEM.cost(choices).energy_pj / REFERENCE.cost
    return hypervolume(ratio, TRUTH.accuracy_drop(choices))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_proposals_are_canonical_and_new_each_time(algorithm: str) -> None:
    choices = search(make(algorithm))
    hashes = [PROBLEM.space.config(choice).hash for choice in choices]
    assert len(choices) == 24
    assert len(set(hashes)) == 24
    assert PROBLEM.space.config(START[0]).hash not in hashes
    assert np.array_equal(choices, PROBLEM.space.canonical(choices))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_and_measurements_give_the_same_proposals(algorithm: str) -> None:
    first, again = (search(make(algorithm, seed=3), batches=2) for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("algorithm", ["uniform", "dp", "dp+local", "dp+fitted"])
def test_allocation_goes_on_from_the_measurements_alone(algorithm: str) -> None:
    whole = make(algorithm)
    known = search(whole, batches=2)
    resumed = make(algorithm)
    resumed.learn(np.concatenate([START, known]), measure(np.concatenate([START, known])))
    hashes = {PROBLEM.space.config(choice).hash for choice in known}
    more = resumed.propose(8)
    assert len(more) == 8
    assert not hashes & {PROBLEM.space.config(choice).hash for choice in more}


def test_a_front_that_is_used_up_is_allocated_more_finely() -> None:
    proposer = make("dp")
    proposer.learn(START, measure(START))
    found: set[str] = set()
    while len(found) < 60:  # more than there are prices on the first front
        choices = proposer.propose(20)
        assert len(choices)
        proposer.learn(choices, measure(choices))
        found |= {PROBLEM.space.config(choice).hash for choice in choices}


def policies_that_do_nothing(problem: CompressionProblem, reference: Reference) -> Proposer:
    return PolicyProposer(problem, reference, 0, lambda *_: Apprentice(), Storage.at("unused"))


def fitted(problem: CompressionProblem, reference: Reference) -> Proposer:
    return make_proposer("dp+fitted", problem, reference, 0, Storage.at("unused"))


@pytest.mark.parametrize("make_one", [fitted, policies_that_do_nothing])
def test_a_cost_of_few_steps_does_not_use_up_the_search(
    make_one: Callable[[CompressionProblem, Reference], Proposer],
) -> None:
    """Cycles of this accelerator depend on channels alone, so many allocations are alike."""
    free = synthetic_problem(blocks=3, pinned=dict.fromkeys(LAYER_NAMES[3:], PINNED))
    array = load_accelerator("systolic-16x16")
    cycles = CostFunction({"latency_cycles": 1.0}, {"latency_cycles": 1.0})
    problem = replace(free, accelerator=array, objective=cycles)
    reference = replace(REFERENCE, cost=float(cycles.cost(problem.cost(START))[0]))
    found = search(make_one(problem, reference), batches=4)
    assert len(np.unique(found, axis=0)) == len(found) == 32


def test_policies_that_know_nothing_new_leave_it_to_allocation() -> None:
    proposer = policies_that_do_nothing(PROBLEM, REFERENCE)
    assert len(search(proposer)) == 24


def test_a_search_by_policies_ends_where_all_of_a_space_is_measured() -> None:
    problem = synthetic_problem(blocks=3, pinned=dict.fromkeys(LAYER_NAMES[1:], PINNED))
    proposer = policies_that_do_nothing(problem, REFERENCE)
    proposer.learn(START, measure(START))
    rounds = 0
    while len(choices := proposer.propose(20)) and rounds < 40:
        proposer.learn(choices, measure(choices))
        rounds += 1
    assert 0 < rounds < 40


def test_a_space_that_is_used_up_is_given_up_until_something_is_learnt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unseen = PROBLEM.space.sample(np.random.default_rng(0), 3)
    problem = synthetic_problem(blocks=3, pinned=dict.fromkeys(LAYER_NAMES[1:], PINNED))
    proposer = make_proposer("dp+fitted", problem, REFERENCE, 0, Storage.at("unused"))
    proposer.learn(START, measure(START))
    while len(choices := proposer.propose(50)):
        proposer.learn(choices, np.full(len(choices), 0.9))
    descents = []
    monkeypatch.setattr(Allocator, "descend", lambda *_, **__: descents.append(1))
    assert not len(proposer.propose(50))
    assert not descents  # it would find the same
    monkeypatch.undo()
    proposer.learn(START, measure(START) - 0.1)
    monkeypatch.setattr(Front, "candidates", lambda *_: unseen)
    assert len(proposer.propose(1)) == 1


def test_measurements_are_worth_more_than_sensitivities_and_those_more_than_chance() -> None:
    volumes = {
        name: volume(search(make(name))) for name in ("random", "uniform", "dp", "dp+fitted")
    }
    assert volumes["random"] < volumes["uniform"] < volumes["dp"] < volumes["dp+fitted"]


def test_uniform_decides_the_same_everywhere() -> None:
    for choice in search(make("uniform"), batches=1):
        kept = choice[PROBLEM.space.channel_group.index(-1)]
        assert np.all(choice[:, 2:] == kept[2:])


def test_without_optuna_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="pip install optuna"):
        make_proposer("optuna-tpe", PROBLEM, REFERENCE, 0, Storage.at("unused"))


def test_what_is_chosen_and_known_goes_by_the_objective() -> None:
    """Of two candidates that lose as much that is chosen which costs less by what is preferred."""
    cheap, small = (START[0].copy() for _ in range(2))
    cheap[0, 3], small[-1, 2] = 0, 0  # the input of the first layer; the weights of the last
    candidates = np.stack([cheap, small])
    report = PROBLEM.cost(candidates)
    assert report.energy_pj[0] < report.energy_pj[1]
    assert report.model_bytes[0] > report.model_bytes[1]
    expected = {"energy_pj": cheap, "model_bytes": small}
    for name, best in expected.items():
        problem = replace(PROBLEM, objective=CostFunction({name: 1.0}, {name: 1.0}))
        reference = replace(REFERENCE, cost=float(problem.objective.cost(problem.cost(START))[0]))
        known = Measurements(problem, reference)
        known.add(candidates, np.array([0.89, 0.89]))
        np.testing.assert_allclose(known.cost_ratio, getattr(report, name) / reference.cost)
        front, _ = known.front()
        assert np.array_equal(front, best[None])


def test_the_measured_front_is_what_no_other_choice_beats() -> None:
    known = Measurements(PROBLEM, REFERENCE)
    choices = PROBLEM.space.sample(np.random.default_rng(0), 40)
    known.add(choices, measure(choices))
    front, drops = known.front()
    ratio, lost = known.cost_ratio, known.accuracy_drop
    for choice, drop in zip(front, drops, strict=True):
        here = float(PROBLEM.cost(choice[None]).energy_pj[0]) / REFERENCE.cost
        assert not ((ratio <= here) & (lost < drop - 1e-9)).any()
        assert not ((ratio < here - 1e-9) & (lost <= drop)).any()
    assert len(front) < len(choices)


def test_policies_are_shown_what_turned_out_best_within_their_targets() -> None:
    apprentice, band = Apprentice(), (0.3, 20.0)
    proposer = PolicyProposer(
        PROBLEM, REFERENCE, 0, lambda *_: apprentice, Storage.at("unused"), targets=band
    )
    known = Measurements(PROBLEM, REFERENCE)
    choices = make("dp").propose(12)
    proposer.learn(choices, measure(choices))
    known.add(choices, measure(choices))
    known.fit()
    proposer.propose(4)
    ((seen, targets),) = apprentice.shown
    front, drops = known.front()
    beyond_expected = DropBound(known.predictor).accuracy_drop(front)
    beyond_expected -= known.predictor.accuracy_drop(front)
    within = (drops + beyond_expected >= band[0]) & (drops + beyond_expected <= band[1])
    assert within.any()
    assert (targets >= band[0]).all() and (targets <= band[1]).all()
    for choice, drop in zip(front[within], (drops + beyond_expected)[within], strict=True):
        assert np.isclose(targets[(seen == choice).all(axis=(1, 2))], drop).any()


def test_policies_are_paid_by_what_a_choice_may_lose() -> None:
    judges = []

    def make_agents(problem: object, accuracy: AccuracySource, seed: int) -> Apprentice:
        judges.append(accuracy)
        return Apprentice()

    PolicyProposer(PROBLEM, REFERENCE, 0, make_agents, Storage.at("unused"))
    choices = PROBLEM.space.sample(np.random.default_rng(0), 20)
    expected = Measurements(PROBLEM, REFERENCE).predictor.accuracy_drop(choices)
    assert (judges[0].accuracy_drop(choices) > expected).all()
