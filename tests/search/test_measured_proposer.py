"""Policies that learn from true evaluations alone: what is walked, paid and learnt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from envs.accuracy import DeferredAccuracy
from envs.episode import Game
from envs.episode import score
from envs.episode import start_choice
from search.agents import Agents
from search.learners import MEASURED_LEARNERS
from search.learners import learner
from search.measured_proposer import MeasuredPolicyProposer
from search.measurements import Reference
from search.storage import Storage
from search.walks import Played
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=2)
SPACE = PROBLEM.space
TRUTH = SyntheticAccuracy(PROBLEM)
GAME = Game(PROBLEM, TRUTH)
START = start_choice(SPACE)[None]
REFERENCE = Reference(0.9, 0.1, GAME.start_cost, (0.5, 1.0, 2.0))
SOME = SPACE.canonical(SPACE.sample(np.random.default_rng(0), 6))


def measure(choices: NDArray[np.int64]) -> NDArray[np.float64]:
    return 0.9 - TRUTH.accuracy_drop(choices) / 100


class ScriptedAgents:
    """Ends walks at given choices, one after the other and then all over again.

    Attributes:
        freedoms: Of the walks so far, batch by batch.
        learnt: Ends of the walks that were learnt from, and their drops, call by call.
    """

    def __init__(self, ends: NDArray[np.int64]) -> None:
        self._ends = ends
        self._walked = 0
        self.freedoms: list[float] = []
        self.learnt: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def walk(self, count: int, freedom: float) -> Played:
        self.freedoms.append(freedom)
        taken = (self._walked + np.arange(count)) % len(self._ends)
        self._walked += count
        return Played(np.ones(count), [], self._ends[taken])

    def learn(self, walked: Iterable[tuple[Any, NDArray[np.float64]]]) -> None:
        pairs = list(walked)
        if pairs:
            choices = np.concatenate([walks.choices for walks, _ in pairs])
            self.learnt.append((choices, np.concatenate([drops for _, drops in pairs])))


def scripted(
    ends: NDArray[np.int64], policies: Path
) -> tuple[MeasuredPolicyProposer, ScriptedAgents]:
    """A proposer whose agents walk to these ends; it has been told of the start."""
    agents = ScriptedAgents(ends)

    def make(*_: Any) -> Any:
        return agents

    proposer = MeasuredPolicyProposer(PROBLEM, REFERENCE, 0, make, Storage.at(policies))
    proposer.learn(START, measure(START))
    return proposer, agents


def test_all_walks_are_paid_also_those_that_ended_where_others_had(tmp_path: Path) -> None:
    ends = np.concatenate([SOME[[0, 1, 0]], START, SOME[[2, 3]]])
    proposer, agents = scripted(ends, tmp_path)
    choices = proposer.propose(4)
    assert np.array_equal(choices, SOME[:4])
    proposer.learn(choices, measure(choices))
    ((walked, drops),) = agents.learnt
    assert np.array_equal(walked, ends)
    assert drops == pytest.approx(TRUTH.accuracy_drop(ends))


def test_a_walk_whose_end_is_not_measured_is_not_learnt_from_then_or_later(tmp_path: Path) -> None:
    proposer, agents = scripted(SOME, tmp_path)
    choices = proposer.propose(3)
    proposer.learn(choices[:2], measure(choices[:2]))
    assert np.isnan(agents.learnt[-1][1]).tolist() == [False, False, True]
    choices = proposer.propose(2)
    proposer.learn(choices, measure(choices))
    assert np.array_equal(agents.learnt[-1][0], SOME[3:5])


def test_walks_get_freer_until_enough_is_new_and_start_anew_each_time(tmp_path: Path) -> None:
    proposer, agents = scripted(np.concatenate([START, START, SOME]), tmp_path)
    assert len(proposer.propose(2)) == 2
    first, second = agents.freedoms
    assert first == 1 < second
    proposer.propose(2)
    assert agents.freedoms[2] == 1


def test_where_nothing_new_is_left_nothing_is_proposed(tmp_path: Path) -> None:
    proposer, agents = scripted(SOME, tmp_path)
    proposer.learn(SOME, measure(SOME))
    choices = proposer.propose(5)
    assert choices.shape == (0, len(SPACE.layers), 4)
    assert agents.freedoms == sorted(set(agents.freedoms))
    assert agents.freedoms[-1] > 20
    # Walks that led to what is known are paid by it, although nothing is evaluated.
    ((ends, drops),) = agents.learnt[-1:]
    np.testing.assert_allclose(drops, 100 * (REFERENCE.accuracy - measure(ends)))


@pytest.fixture(params=MEASURED_LEARNERS)
def algorithm(request: pytest.FixtureRequest, local_ray: None) -> str:
    return str(request.param)


def make_agents(algorithm: str, seed: int = 0) -> Agents:
    make, _ = learner(algorithm)
    return make(PROBLEM, DeferredAccuracy(), seed)


def true_score(choices: NDArray[np.int64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio = PROBLEM.cost(choices).energy_pj / GAME.start_cost
    return score(ratio, TRUTH.accuracy_drop(choices), targets)


def rounds(agents: Agents, count: int, walks: int = 8) -> None:
    for _ in range(count):
        walked = agents.walk(walks)
        agents.learn([(walked, TRUTH.accuracy_drop(walked.choices))])


@pytest.mark.parametrize("name", ["ppo", pytest.param("composite", marks=pytest.mark.slow)])
def test_agents_learn_from_few_true_evaluations(name: str, local_ray: None) -> None:
    agents = make_agents(name)
    targets = np.repeat([1.0, 5.0], 32)

    def mean_score() -> float:
        choices = agents.propose(targets, np.random.default_rng(0))
        return float(true_score(choices, targets).mean())

    untrained = mean_score()
    rounds(agents, 12)
    assert mean_score() > untrained + 0.2
    agents.stop()


def test_walks_earn_their_score_at_the_end_and_nothing_before(local_ray: None) -> None:
    ppo = make_agents("ppo")
    played: Any = ppo.walk(6)
    drops = TRUTH.accuracy_drop(played.choices)
    expected = true_score(played.choices, played.targets)
    drops[2] = np.nan
    episodes = ppo.algorithm.env_runner.paid(played, drops)
    assert len(episodes) == 5
    for episode, earned in zip(episodes, np.delete(expected, 2), strict=True):
        rewards = episode.agent_episodes["precision"].get_rewards()
        assert rewards[:-1] == pytest.approx(0.0)
        assert rewards[-1] == pytest.approx(earned, abs=1e-4)
    ppo.stop()


def test_replayed_walks_earn_their_score_at_the_end_and_nothing_before(local_ray: None) -> None:
    composite = make_agents("composite")
    walks: Any = composite.walk(6)
    drops = TRUTH.accuracy_drop(walks.choices)
    expected = true_score(walks.choices, walks.targets)
    drops[2] = np.nan
    composite.learn([(walks, drops)])
    where, columns = composite.algorithm.walks.sample("amounts", 200, np.random.default_rng(0))
    walk = where // len(GAME.layers)
    assert columns["terminateds"].all()  # so it is the score itself that all of a walk is worth
    assert columns["rewards"] == pytest.approx(np.delete(expected, 2)[walk], abs=1e-4)
    composite.stop()


def test_freer_walks_are_drawn_with_the_probabilities_that_they_say(local_ray: None) -> None:
    ppo = make_agents("ppo")
    settled, free = (ppo.walk(64, freedom).choices for freedom in (1.0, 1e6))
    menu = len(SPACE.weight_bits) - 1
    assert (settled[..., 2] == menu).mean() > 0.3
    assert (free[..., 2] == menu).mean() == pytest.approx(1 / (menu + 1), abs=0.08)
    played: Any = ppo.walk(64, 1e6)
    evenly = -np.log(len(SPACE.weight_bits) * len(SPACE.activation_bits))
    (last,) = [turn for turn in played.turns[-1:] if turn.agent == "precision"]
    assert last.columns["action_logp"] == pytest.approx(evenly, abs=1e-3)
    ppo.stop()


def test_what_is_learnt_depends_on_the_accuracy_that_is_told(algorithm: str) -> None:
    proposals = []
    for penalty in (0.0, 50.0, 50.0):
        agents = make_agents(algorithm)
        walked = agents.walk(2)
        drops = np.array([penalty, 0.0])
        agents.learn([(walked, drops)])
        targets = np.repeat([1.0, 5.0], 32)
        proposals.append(agents.propose(targets, np.random.default_rng(0)))
        agents.stop()
    assert not np.array_equal(proposals[0], proposals[1])
    assert np.array_equal(proposals[1], proposals[2])  # the same seed learns the same


def test_a_resumed_proposer_goes_on_as_if_it_had_not_stopped(
    algorithm: str, tmp_path: Path
) -> None:
    make, _ = learner(algorithm)

    def proposer(seed: int = 0) -> MeasuredPolicyProposer:
        return MeasuredPolicyProposer(PROBLEM, REFERENCE, seed, make, Storage.at(tmp_path))

    first = proposer()
    first.learn(START, measure(START))
    known = START
    for _ in range(2):
        choices = first.propose(2)
        first.learn(choices, measure(choices))
        known = np.concatenate([known, choices])
    first.save()
    resumed = proposer()
    resumed.learn(known, measure(known))
    proposals = []
    for each in (first, resumed):
        proposals.append(each.propose(4))
        each._agents.stop()
    assert np.array_equal(*proposals)
