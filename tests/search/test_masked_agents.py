"""Policies of problems with limits: what they draw, and what they learn from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns

from envs.episode import start_choice
from envs.limits import CostLimits
from search.agents import Agents
from search.learners import LEARNERS
from search.learners import learner
from search.walks import ACTION_MASK
from search.walks import open_values
from search.walks import sample_actions
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

pytestmark = pytest.mark.usefixtures("local_ray")

FREE = synthetic_problem(blocks=2)
START = FREE.cost(start_choice(FREE.space)[None])
LIMITED = replace(FREE, limits=CostLimits(model_bytes=0.25 * float(START.model_bytes[0])))
TARGETS = np.repeat([1.0, 5.0], 100)


def make(algorithm: str, seed: int = 0) -> Agents:
    return learner(algorithm)[0](LIMITED, SyntheticAccuracy(LIMITED), seed)


@pytest.fixture(scope="module", params=["ppo", "appo"])
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def agents(algorithm: str) -> Iterator[Agents]:
    made = make(algorithm)
    yield made
    made.stop()


def test_a_new_policy_holds_a_limit_that_the_start_exceeds_fourfold(agents: Agents) -> None:
    for rng in (np.random.default_rng(0), None):
        walks = agents.propose(TARGETS, rng)
        usage = LIMITED.limits.usage(LIMITED.cost(walks))
        assert (usage <= 1).mean() > 0.95


def test_the_learner_sees_the_probabilities_that_were_drawn_from(agents: Agents) -> None:
    runner = agents.algorithm.env_runner
    closed = 0
    for episode in runner.sample(num_episodes=8):
        for agent, part in episode.agent_episodes.items():
            module = runner.module[agent].unwrapped()
            mask = np.asarray(part.get_extra_model_outputs(ACTION_MASK))
            batch = {
                Columns.OBS: torch.from_numpy(part.get_observations()[: len(mask)]),
                ACTION_MASK: torch.from_numpy(mask),
            }
            with torch.no_grad():
                logits = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
            distribution = module.get_train_action_dist_cls().from_logits(logits)
            said = distribution.logp(torch.from_numpy(part.get_actions()))
            drawn = part.get_extra_model_outputs(Columns.ACTION_LOGP)
            assert np.allclose(said, drawn, atol=1e-4)
            assert torch.isfinite(distribution.entropy()).all()
            closed += int((~mask).sum())
    assert closed


def test_the_first_update_starts_from_the_policy_that_played(agents: Agents) -> None:
    """Masks reach the loss: without them the ratio is far from 1 before anything is learnt."""
    ratios = []
    trainer = agents.algorithm.learner_group._learner
    loss = type(trainer).compute_loss_for_module

    def spy(self: object, *, module_id: str, config: object, batch: dict, fwd_out: dict) -> object:
        counts = batch[Columns.LOSS_MASK]
        module = trainer.module[module_id].unwrapped()
        distribution = module.get_train_action_dist_cls().from_logits(
            fwd_out[Columns.ACTION_DIST_INPUTS]
        )
        change = distribution.logp(batch[Columns.ACTIONS]) - batch[Columns.ACTION_LOGP]
        ratios.append(change[counts].detach().abs().max().item())
        return loss(self, module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(trainer), "compute_loss_for_module", spy)
        agents.train(1)
    assert max(ratios[:2]) < 1e-3
    assert max(ratios) > 1e-3


def test_training_within_limits_is_the_same_for_the_same_seed(algorithm: str) -> None:
    proposals = []
    for _ in range(2):
        made = make(algorithm, seed=1)
        made.imitate(start_choice(FREE.space)[None], np.ones(1), epochs=2)  # exceeds the limit
        made.train(16)
        proposals.append(made.propose(TARGETS, np.random.default_rng(0)))
        made.stop()
    assert np.array_equal(*proposals)
    assert (LIMITED.limits.usage(LIMITED.cost(proposals[0])) <= 1).mean() > 0.95


def test_pairs_are_drawn_from_those_that_are_allowed() -> None:
    allowed = np.array([[True, False, True], [False, False, False], [False, True, False]])
    everywhere = np.broadcast_to(allowed, (30_000, 3, 3))
    logits = np.tile(np.log([0.2, 0.5, 0.3, 0.1, 0.2, 0.7]).astype(np.float32), (30_000, 1))
    sizes = np.array([3, 3])
    drawn, log_probability = sample_actions(logits, sizes, np.random.default_rng(0), everywhere)
    expected = {(0, 0): 0.4 * 0.125, (0, 2): 0.4 * 0.875, (2, 1): 0.6}
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert set(map(tuple, found.tolist())) == set(expected)
    for pair, count in zip(found, counts, strict=True):
        assert count / len(drawn) == pytest.approx(expected[tuple(pair)], abs=0.015)
        said = log_probability[(drawn == pair).all(axis=1)]
        assert np.allclose(np.exp(said), expected[tuple(pair)], atol=1e-5)
    likeliest, _ = sample_actions(logits, sizes, None, everywhere)
    assert np.array_equal(np.unique(likeliest, axis=0), [[2, 1]])
    opened = open_values(everywhere[:2], np.array([[0, 0], [2, 1]]))
    assert opened.astype(int).tolist() == [[1, 0, 1, 1, 0, 1], [1, 0, 1, 0, 1, 0]]


def test_all_agents_learn_within_limits() -> None:
    for name in LEARNERS:
        made = learner(name)[0](LIMITED, SyntheticAccuracy(LIMITED), 0)
        made.imitate(start_choice(FREE.space)[None], np.ones(1), epochs=1)
        made.train(32)
        assert made.propose(TARGETS, None).shape == (len(TARGETS), len(FREE.space.layers), 4)
        made.stop()
