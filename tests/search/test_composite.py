from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.composite import COMPOSITE_AGENTS
from envs.episode import Episode
from envs.episode import Game
from envs.episode import score
from envs.limits import NO_LIMITS
from envs.limits import CostLimits
from hwmodel import InputError
from search.checkpoints import CHECKPOINT
from search.composite import CompositeAgents
from search.composite import composite_agents
from search.composite_walks import Walks
from search.composite_walks import demonstrate
from search.composite_walks import play
from search.composite_walks import replay
from search.policy_settings import PolicySettings
from search.replay import WalkReplay
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

pytestmark = pytest.mark.usefixtures("local_ray")

PROBLEM = synthetic_problem(blocks=2)
ACCURACY = SyntheticAccuracy(PROBLEM)
GAME = Game(PROBLEM, ACCURACY)
LAYERS = len(GAME.layers)
ONE_STEP = dict.fromkeys(COMPOSITE_AGENTS, 1)
TARGETS = np.repeat([1.0, 5.0], 32)


def mean_score(choices: np.ndarray) -> float:
    """Mean score over the targets of choices that were made for them."""
    ratio = PROBLEM.cost(choices).energy_pj / GAME.start_cost
    return float(score(ratio, ACCURACY.accuracy_drop(choices), TARGETS).mean())


@pytest.fixture(scope="module")
def trained(local_ray: None) -> Iterator[CompositeAgents]:
    agents = composite_agents(PROBLEM, ACCURACY, seed=0)
    agents.train(160)
    yield agents
    agents.stop()


def test_the_agents_learn_to_do_better_than_nothing_and_far_better_than_chance(
    trained: CompositeAgents,
) -> None:
    rng = np.random.default_rng(0)
    learnt = mean_score(trained.propose(TARGETS, None))
    assert learnt > 0.05  # leaving everything dense scores 0
    assert learnt > mean_score(PROBLEM.space.sample(rng, len(TARGETS))) + 1.0


def test_settings_reach_networks_exploration_and_replay() -> None:
    settings = PolicySettings(
        (24,), 0.02, target_entropy=-1.0, first_epsilon=1.0, exploring_walks=64, replay_walks=40
    )
    agents = composite_agents(PROBLEM, ACCURACY, seed=0, settings=settings)
    algorithm = agents.algorithm
    assert algorithm.config.actor_lr == 0.02
    for module in algorithm.env_runner.module.values():
        assert 64 not in {
            size for weights in module.state_dict().values() for size in weights.shape
        }
    blind, guided = (len(np.unique(agents.walk(64).methods, axis=0)) for _ in range(2))
    assert blind > guided  # so many walks on
    agents.train(64)
    assert float(algorithm.learner_group._learner.target_entropy["amounts"]) == -1.0
    assert len(algorithm.walks) == 40
    agents.stop()


def test_what_is_to_be_imitated_is_replayed() -> None:
    shown = PROBLEM.space.canonical(PROBLEM.space.sample(np.random.default_rng(0), 3))
    walks = demonstrate(GAME, shown, np.ones(3))
    assert np.array_equal(walks.choices, shown)
    agents = composite_agents(PROBLEM, ACCURACY, seed=1)
    agents.imitate(shown, np.ones(3), epochs=1)
    assert len(agents.algorithm.walks) == 3
    agents.train(32)
    assert len(agents.algorithm.walks) == 35
    agents.stop()


def test_saved_agents_go_on_exactly_where_they_stopped(
    trained: CompositeAgents, tmp_path: Path
) -> None:
    trained.save(tmp_path)
    other = composite_agents(PROBLEM, ACCURACY, seed=5)
    other.restore(tmp_path)
    assert_equal(trained._state(), other._state())
    other.save(tmp_path / "again")
    assert (tmp_path / "again" / CHECKPOINT).stat().st_size < 2e6
    proposals = []
    for agents, folder in ((trained, tmp_path), (other, tmp_path / "again")):
        agents.restore(folder)  # SAC draws from torch's one generator, which both share
        agents.train(32)
        proposals.append(agents.propose(TARGETS, np.random.default_rng(0)))
    assert np.array_equal(*proposals)
    assert_equal(trained._state(), other._state())
    other.stop()


def assert_equal(first: object, second: object) -> None:
    """Equal containers of equal tensors and numbers, to the last bit."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for pair in zip(first, second, strict=True):
            assert_equal(*pair)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def test_damaged_or_foreign_agents_are_named(trained: CompositeAgents, tmp_path: Path) -> None:
    for content in (None, b"half a fi", {"modules": {}}):
        if isinstance(content, bytes):
            (tmp_path / CHECKPOINT).write_bytes(content)
        elif content is not None:
            torch.save(content, tmp_path / CHECKPOINT)
        with pytest.raises(InputError, match="policies"):
            trained.restore(tmp_path)


def test_a_new_judge_appraises_what_was_kept(trained: CompositeAgents) -> None:
    columns = trained.algorithm.walks.sample("amounts", 500, np.random.default_rng(0))[1]
    trained.use(SyntheticAccuracy(PROBLEM, scales=np.full((1, 2), 1000.0)))
    harsh = trained.algorithm.walks.sample("amounts", 500, np.random.default_rng(0))[1]
    trained.use(ACCURACY)
    again = trained.algorithm.walks.sample("amounts", 500, np.random.default_rng(0))[1]
    assert harsh["rewards"].mean() < columns["rewards"].mean() - 0.1
    assert np.array_equal(harsh["actions"], columns["actions"])
    assert all(np.array_equal(columns[name], again[name]) for name in columns)


def test_methods_depend_on_the_features_of_the_actor(trained: CompositeAgents) -> None:
    module = trained.algorithm.learner_group._learner.module
    rainbow, actor = (module[agent].unwrapped() for agent in ("method", "amounts"))
    observations = torch.rand(8, 49)
    before = rainbow.compute_q_values({"obs": observations})
    with torch.no_grad():
        kept = [parameter.clone() for parameter in actor.pi_encoder.parameters()]
        for parameter in actor.pi_encoder.parameters():
            parameter.add_(0.1)
        after = rainbow.compute_q_values({"obs": observations})
        for parameter, value in zip(actor.pi_encoder.parameters(), kept, strict=True):
            parameter.copy_(value)
    assert not torch.allclose(before["qf_preds"], after["qf_preds"])
    assert not any("features" in name or "pi" in name for name in rainbow.state_dict())
    # Both streams matter: RLlib's own value stream never gets a gradient.
    before["qf_preds"].sum().backward()
    for stream in (rainbow.af, rainbow.vf):
        assert any(parameter.grad.abs().max() > 1e-6 for parameter in stream.parameters())
    rainbow.zero_grad()


def random_walks(walks: int, seed: int = 0) -> Walks:
    rng = np.random.default_rng(seed)

    def decide(agent: str, position: int, seen: np.ndarray) -> np.ndarray:
        if agent == "amounts":
            return rng.uniform(-1, 1, (walks, 3)).astype(np.float32)
        return rng.integers(len(PROBLEM.space.methods), size=walks)

    return play(GAME, rng.uniform(0.5, 5, walks), decide)


def test_replayed_walks_are_the_walks() -> None:
    walks = random_walks(20)
    again = replay(GAME, walks)
    assert all(np.array_equal(value, vars(again)[name]) for name, value in vars(walks).items())
    assert np.array_equal(walks.choices, PROBLEM.space.canonical(walks.choices))
    episode = Episode(GAME, walks.targets)
    start = episode.score.copy()
    for layer in range(LAYERS):
        episode.decide(walks.choices[:, layer, :2])
        episode.decide(walks.choices[:, layer, 2:])
    assert np.allclose(walks.rewards.sum(axis=1), episode.score - start, atol=1e-4)


def test_transitions_add_up_rewards_until_the_walk_ends() -> None:
    kept = WalkReplay(
        GAME, capacity=100, n_steps=dict.fromkeys(COMPOSITE_AGENTS, 3), alpha=0.6, beta=0.4
    )
    walks = random_walks(30)
    kept.add(walks)
    for agent in COMPOSITE_AGENTS:
        where, columns = kept.sample(agent, 400, np.random.default_rng(0))
        walk, layer = np.divmod(where, LAYERS)
        assert set(layer) == set(range(LAYERS))
        for row, (each, first) in enumerate(zip(walk, layer, strict=True)):
            end = min(first + 3, LAYERS)
            earned = walks.rewards[each, first:end].sum()
            assert columns["rewards"][row] == pytest.approx(earned, abs=1e-5)
            assert columns["terminateds"][row] == (end == LAYERS)
            assert columns["n_step"][row] == end - first
            assert np.array_equal(columns["obs"][row, :46], walks.observations[each, first])
            if end < LAYERS:
                assert np.array_equal(columns["new_obs"][row, :46], walks.observations[each, end])
        if agent == "method":
            assert np.array_equal(columns["obs"][:, 46:], walks.amounts[walk, layer])
            assert np.array_equal(columns["actions"], walks.methods[walk, layer])


def test_what_surprised_is_drawn_more_often_and_weighs_less() -> None:
    kept = WalkReplay(GAME, capacity=100, n_steps=ONE_STEP, alpha=1.0, beta=1.0)
    kept.add(random_walks(10))
    everything = np.arange(10 * LAYERS)
    errors = np.where(everything < LAYERS, 3.0, 1.0)
    kept.prioritize("amounts", everything, errors)
    where, columns = kept.sample("amounts", 20_000, np.random.default_rng(0))
    surprising = where < LAYERS
    assert surprising.mean() == pytest.approx(3 / 12, abs=0.02)
    assert columns["weights"][surprising] == pytest.approx(1 / 3, abs=0.01)
    assert columns["weights"][~surprising] == pytest.approx(1.0)
    others, _ = kept.sample("method", 20_000, np.random.default_rng(0))
    assert (others < LAYERS).mean() == pytest.approx(1 / 10, abs=0.02)


@pytest.mark.parametrize("limits", [NO_LIMITS, CostLimits(model_bytes=1e3, bops=1e6)])
def test_an_empty_replay_is_kept(limits: CostLimits) -> None:
    game = Game(replace(PROBLEM, limits=limits), ACCURACY)
    kept, resumed = (WalkReplay(game, 25, ONE_STEP, alpha=0.6, beta=0.4) for _ in range(2))
    resumed.load(kept.state())
    assert len(resumed) == 0


def test_the_oldest_walks_are_forgotten() -> None:
    kept = WalkReplay(GAME, capacity=25, n_steps=ONE_STEP, alpha=0.6, beta=0.4)
    first, second = random_walks(20, seed=1), random_walks(10, seed=2)
    kept.add(first)
    kept.add(second)
    assert len(kept) == 25
    state = kept.state()
    expected = np.concatenate([first.targets[5:], second.targets])
    assert np.array_equal(state["targets"].numpy(), expected)
    resumed = WalkReplay(GAME, capacity=25, n_steps=ONE_STEP, alpha=0.6, beta=0.4)
    resumed.load(state)
    both = [each.sample("method", 100, np.random.default_rng(0)) for each in (kept, resumed)]
    assert np.array_equal(both[0][0], both[1][0])
    assert all(np.array_equal(both[0][1][name], both[1][1][name]) for name in both[0][1])
