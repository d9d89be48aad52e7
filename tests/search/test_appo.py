"""What APPO learns from: whole trajectories, and the policy that played them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.appo.torch import appo_torch_learner
from ray.rllib.algorithms.impala.impala_learner import _LearnerThread
from test_composite import assert_equal

from envs.episode import AGENTS
from envs.episode import start_choice
from envs.limits import CostLimits
from envs.problem import CompressionProblem
from search.agents import EPISODES_PER_ROUND
from search.agents import Agents
from search.appo import MINIBATCH_EPISODES
from search.appo import appo_agents
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

pytestmark = pytest.mark.usefixtures("local_ray")

FREE = synthetic_problem(blocks=1)
DECISIONS = len(FREE.space.layers)
START = FREE.cost(start_choice(FREE.space)[None])
LIMITED = replace(FREE, limits=CostLimits(model_bytes=0.25 * float(START.model_bytes[0])))
MINIBATCHES = EPISODES_PER_ROUND // MINIBATCH_EPISODES


@pytest.fixture
def make() -> Iterator[Callable[..., Agents]]:
    """Makes agents, and stops them at the end of the test."""
    made: list[Agents] = []

    def make(problem: CompressionProblem = FREE, seed: int = 0) -> Agents:
        made.append(appo_agents(problem, SyntheticAccuracy(problem), seed))
        return made[-1]

    yield make
    for agents in made:
        agents.stop()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """What V-trace is given, (steps, episodes) each, agent by agent and minibatch by minibatch."""
    calls = []
    vtrace = appo_torch_learner.vtrace_torch

    def spy(**given: Any) -> Any:
        calls.append({name: torch.as_tensor(value).detach() for name, value in given.items()})
        return vtrace(**given)

    monkeypatch.setattr(appo_torch_learner, "vtrace_torch", spy)
    return calls


def weights(agents: Agents) -> Any:
    return agents._state()["modules"]


@pytest.mark.parametrize("problem", [FREE, LIMITED], ids=["free", "limited"])
def test_every_trajectory_is_one_agents_decisions_of_one_episode(
    problem: CompressionProblem,
    make: Callable[..., Agents],
    traced: list[dict[str, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agents = make(problem)
    runner = agents.algorithm.env_runner
    sample, returns = runner.sample, []

    def watched(**arguments: Any) -> Any:
        episodes = sample(**arguments)
        returns.extend([episode.agent_episodes["pruning"].get_return() for episode in episodes])
        return episodes

    monkeypatch.setattr(runner, "sample", watched)
    agents.train(1)
    assert len(traced) % (2 * MINIBATCHES) == 0
    for given in traced:
        assert given["rewards"].shape == (DECISIONS + 1, MINIBATCH_EPISODES)
        assert (given["discounts"][:-2] == 1).all()  # the last decision ends an episode, and the
        assert (given["discounts"][-2:] == 0).all()  # step that RLlib appends is part of none
    earned = torch.cat([given["rewards"].sum(dim=0) for given in traced[: 2 * MINIBATCHES : 2]])
    assert earned.numpy() == pytest.approx(np.array(returns), abs=1e-4)


@pytest.mark.parametrize("problem", [FREE, LIMITED], ids=["free", "limited"])
def test_the_target_network_is_the_policy_that_played(
    problem: CompressionProblem,
    make: Callable[..., Agents],
    traced: list[dict[str, torch.Tensor]],
) -> None:
    agents = make(problem)
    played = copy.deepcopy(weights(agents))
    agents.imitate(start_choice(FREE.space)[None], np.ones(1), epochs=2)
    agents.train(2 * EPISODES_PER_ROUND)
    for given in traced:
        change = given["target_action_log_probs"] - given["behaviour_action_log_probs"]
        assert change[:-1].abs().max() < 1e-4
    for agent, learnt in weights(agents).items():
        assert not torch.equal(learnt["pi.net.mlp.0.weight"], played[agent]["pi.net.mlp.0.weight"])


def test_an_update_is_over_when_it_returns(make: Callable[..., Agents]) -> None:
    agents = make()
    agents.train(1)
    assert not any(isinstance(thread, _LearnerThread) for thread in threading.enumerate())
    played = agents.algorithm.env_runner.module
    learnt = agents.algorithm.learner_group._learner.module
    for agent in AGENTS:
        seen = {"obs": torch.rand(16, *played[agent].observation_space.shape)}
        with torch.no_grad():
            said = [module[agent].forward_inference(seen) for module in (played, learnt)]
        assert_equal(*said)


def test_restored_agents_learn_the_same_as_those_that_did_not_stop(
    make: Callable[..., Agents], tmp_path: Path
) -> None:
    first = make()
    first.train(2 * EPISODES_PER_ROUND)
    first.save(tmp_path)
    second = make(seed=5)
    second.restore(tmp_path)
    for agents in (first, second):
        agents.train(2 * EPISODES_PER_ROUND)
    assert_equal(weights(first), weights(second))
