from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from envs.episode import Game
from envs.episode import score
from envs.observation import OBSERVATION_NAMES
from envs.observation import PROPOSAL_NAMES
from hwmodel import InputError
from search.agents import Agents
from search.checkpoints import CHECKPOINT
from search.learners import LEARNERS
from search.learners import learner
from search.policy_settings import PolicySettings
from search.walks import sample_actions
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem
from tests.envs.synthetic import without_pruning

pytestmark = pytest.mark.usefixtures("local_ray")

PROBLEM = synthetic_problem(blocks=2)
ACCURACY = SyntheticAccuracy(PROBLEM)
GAME = Game(PROBLEM, ACCURACY)
TARGETS = np.repeat([1.0, 5.0], 32)


def mean_score(choices: np.ndarray) -> float:
    """Mean score over the targets of choices that were made for them."""
    ratio = PROBLEM.cost(choices).energy_pj / GAME.start_cost
    return float(score(ratio, ACCURACY.accuracy_drop(choices), TARGETS).mean())


@pytest.fixture(params=["ppo", "appo", "ppo-rounds"])
def algorithm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(algorithm: str, seed: int = 0) -> Agents:
    make_agents, _ = learner(algorithm)
    return make_agents(PROBLEM, ACCURACY, seed)


def test_agents_learn_to_do_better_than_nothing_and_far_better_than_chance(algorithm: str) -> None:
    agents = make(algorithm)
    rng = np.random.default_rng(0)
    untrained = mean_score(agents.propose(TARGETS, rng))
    returns = [agents.train(768) for _ in range(2)]
    trained = mean_score(agents.propose(TARGETS, rng))
    chance = mean_score(PROBLEM.space.sample(rng, len(TARGETS)))
    assert returns[-1] > returns[0]
    assert trained > 0.05  # leaving everything dense scores 0
    assert trained > untrained + 0.1
    assert trained > chance + 1.0
    agents.stop()


def test_settings_reach_networks_and_training(algorithm: str) -> None:
    settings = PolicySettings((24, 24), learning_rate=0.02, entropy_coefficient=0.5)
    make_agents, make_modules = learner(algorithm, settings)
    agents = make_agents(PROBLEM, ACCURACY, 0)
    config = agents.algorithm.config
    assert (config.lr, config.entropy_coeff) == (0.02, 0.5)
    built = agents.algorithm.env_runner.module["pruning"].state_dict()
    assert {24} <= {size for weights in built.values() for size in weights.shape}
    assert not {64} & {size for weights in built.values() for size in weights.shape}
    alone = make_modules(PROBLEM.space.sizes, False).rl_module_specs["pruning"].build()
    shapes = {name: weights.shape for name, weights in alone.state_dict().items()}
    assert {name: weights.shape for name, weights in built.items()} == shapes
    before = agents.propose(TARGETS, None)
    agents.train(64)
    assert not np.array_equal(agents.propose(TARGETS, None), before)
    agents.stop()


@pytest.mark.parametrize("name", LEARNERS)
def test_agents_learn_what_is_left_where_there_is_one_method(name: str) -> None:
    problem = without_pruning(PROBLEM)
    agents = learner(name)[0](problem, SyntheticAccuracy(problem), 0)
    agents.train(64)
    choices = agents.propose(TARGETS, np.random.default_rng(0))
    assert not choices[..., :2].any()
    assert len(np.unique(choices[..., 2:], axis=0)) > 1
    agents.stop()


def test_a_great_weight_of_entropy_keeps_policies_free() -> None:
    rng = np.random.default_rng(0)
    kinds = []
    for weight in (0.0, 1.0):
        settings = PolicySettings(learning_rate=5e-3, entropy_coefficient=weight)
        agents = learner("ppo", settings)[0](PROBLEM, ACCURACY, 0)
        agents.train(512)
        kinds.append(len(np.unique(agents.propose(np.ones(64), rng), axis=0)))
        agents.stop()
    assert kinds[0] < kinds[1]


def test_what_is_imitated_is_done(algorithm: str) -> None:
    rng = np.random.default_rng(0)
    space = PROBLEM.space
    shown = space.canonical(space.sample(rng, 2))
    targets = np.array([0.5, 8.0])
    agents = make(algorithm)
    agents.imitate(np.repeat(shown, 32, axis=0), np.repeat(targets, 32), epochs=60)
    assert np.array_equal(agents.propose(targets, None), shown)
    agents.stop()


def test_training_is_the_same_for_the_same_seed_and_differs_between_seeds(algorithm: str) -> None:
    proposals = []
    for seed in (1, 1, 2):
        agents = make(algorithm, seed)
        agents.imitate(GAME.start_choice[None], np.ones(1), epochs=2)
        agents.train(16)
        proposals.append(agents.propose(TARGETS, np.random.default_rng(0)))
        agents.stop()
    assert np.array_equal(proposals[0], proposals[1])
    assert not np.array_equal(proposals[0], proposals[2])


def test_saved_agents_go_on_where_they_stopped(algorithm: str, tmp_path: Path) -> None:
    first = make(algorithm)
    first.train(16)
    first.save(tmp_path)
    second = make(algorithm, seed=5)
    second.restore(tmp_path)

    def proposals() -> list[np.ndarray]:
        return [agents.propose(TARGETS, np.random.default_rng(0)) for agents in (first, second)]

    assert np.array_equal(*proposals())
    assert first.algorithm.env_runner.rng.random() == second.algorithm.env_runner.rng.random()
    second.train(16)
    assert not np.array_equal(*proposals())
    first.stop()
    second.stop()


def test_damaged_or_foreign_agents_are_named(tmp_path: Path) -> None:
    agents = make("ppo")
    with pytest.raises(InputError, match="policies"):
        agents.restore(tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"half a fi")
    with pytest.raises(InputError, match="policies"):
        agents.restore(tmp_path)
    torch.save({"modules": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="policies"):
        agents.restore(tmp_path)
    agents.stop()


def test_a_new_accuracy_judges_the_episodes_that_follow() -> None:
    agents = make("ppo")
    harsh = SyntheticAccuracy(PROBLEM, scales=np.full((1, 2), 1000.0))
    before = agents.train(16)
    agents.use(harsh)
    (episode, *_) = agents.algorithm.env_runner.sample(num_episodes=1)
    assert episode.get_return() < 2 * before
    agents.stop()


def test_batched_episodes_are_those_of_the_environment(algorithm: str) -> None:
    """Every sampled episode, played again decision by decision, sees and earns the same."""
    agents = make(algorithm)
    runner = agents.algorithm.env_runner
    env = runner.env.envs[0].unwrapped
    names = PROPOSAL_NAMES if algorithm == "ppo-rounds" else OBSERVATION_NAMES
    for episode in runner.sample(num_episodes=2):
        assert episode.is_terminated
        parts = episode.agent_episodes
        seen = {agent: part.get_observations() for agent, part in parts.items()}
        told = seen["pruning"][0][..., names.index("target")].max()
        target = float(0.05 * np.exp(told * np.log(1000.0)))
        observations, _ = env.reset(options={"target": target})
        earned = 0.0
        for step in range(len(parts["pruning"])):
            for agent in ("pruning", "precision"):
                assert np.allclose(observations[agent], seen[agent][step], atol=1e-5)
                action = parts[agent].get_actions(step)
                observations, rewards, *_ = env.step({agent: action})
                earned += rewards[agent]
        assert not observations
        assert parts["pruning"].get_return() == pytest.approx(earned, abs=1e-4)
    agents.stop()


def test_log_probabilities_are_those_of_rllib(algorithm: str) -> None:
    agents = make(algorithm)
    module = agents.algorithm.env_runner.module["pruning"]
    sizes = module.action_space.nvec
    logits = np.random.default_rng(0).normal(size=(50, sizes.sum())).astype(np.float32)
    actions, log_probability = sample_actions(logits, sizes, np.random.default_rng(1))
    distribution = module.get_train_action_dist_cls().from_logits(torch.from_numpy(logits))
    expected = distribution.logp(torch.from_numpy(actions)).numpy()
    assert np.allclose(log_probability, expected, atol=1e-4)
    agents.stop()


def test_actions_are_drawn_with_the_probabilities_of_their_logits() -> None:
    probabilities = np.array([0.7, 0.2, 0.1])
    logits = np.tile(np.log(probabilities).astype(np.float32), (20_000, 1))
    drawn, _ = sample_actions(logits, np.array([3]), np.random.default_rng(0))
    assert np.allclose(np.bincount(drawn[:, 0]) / len(drawn), probabilities, atol=0.015)
    likeliest, _ = sample_actions(logits, np.array([3]), None)
    assert not likeliest.any()


def test_a_new_policy_is_cautious(algorithm: str) -> None:
    agents = make(algorithm)
    choices = agents.propose(TARGETS, None)
    assert np.array_equal(choices, np.broadcast_to(GAME.start_choice, choices.shape))
    agents.stop()


def test_attention_does_not_care_how_many_layers_there_are_or_in_what_order() -> None:
    agents = make("ppo-rounds")
    module = agents.algorithm.env_runner.module["pruning"]
    seen = torch.rand(3, 11, module.observation_space.shape[1])
    order = torch.randperm(11)
    said, shuffled = (
        module.forward_inference({"obs": rows})["action_dist_inputs"].view(3, 11, -1)
        for rows in (seen, seen[:, order])
    )
    assert torch.allclose(said[:, order], shuffled, atol=1e-5)
    agents.stop()
