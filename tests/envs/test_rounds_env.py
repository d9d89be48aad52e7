from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from ray.rllib.utils.pre_checks.env import check_multiagent_environments

from envs.compression_env import RoundsEnv
from envs.config import LayerDecision
from envs.episode import AGENTS
from envs.episode import COLUMNS
from envs.episode import Game
from envs.episode import score
from envs.limits import CostLimits
from envs.observation import PROPOSAL_NAMES
from envs.rounds import ROUNDS
from envs.rounds import RoundsEpisode
from envs.space import WEIGHT_BITS
from hwmodel import InputError
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PINNED = {"stem": LayerDecision(weight_bits=8, activation_bits=8)}
PROBLEM = synthetic_problem(blocks=3, pinned=PINNED)
ACCURACY = SyntheticAccuracy(PROBLEM)
ENV = RoundsEnv({"problem": PROBLEM, "accuracy": ACCURACY})
GAME = Game(PROBLEM, ACCURACY)
DOCS = Path(__file__).parents[2] / "docs" / "environment.md"


def sampled(count: int, seed: int = 0) -> np.ndarray:
    return PROBLEM.space.canonical(PROBLEM.space.sample(np.random.default_rng(seed), count))


def random_actions(episode: RoundsEpisode, rng: np.random.Generator) -> np.ndarray:
    return episode.actions_toward(PROBLEM.space.sample(rng, len(episode.targets)))


def test_rllib_accepts_it() -> None:
    check_multiagent_environments(ENV)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_episode_takes_turns_sees_its_spaces_and_earns_the_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = float(rng.uniform(0.2, 10))
    observations, _ = ENV.reset(options={"target": target})
    turns, earned, infos = [], 0.0, {}
    while observations:
        ((agent, observation),) = observations.items()
        assert ENV.observation_spaces[agent].contains(observation)
        turns.append(agent)
        action = rng.integers(0, ENV.action_spaces[agent].nvec)
        observations, rewards, *_, infos = ENV.step({agent: action})
        earned += rewards[agent]
    assert turns == list(AGENTS) * ROUNDS
    outcome = infos["__common__"]
    choice = outcome["choice"][None]
    assert np.array_equal(PROBLEM.space.canonical(choice), choice)
    ratio = PROBLEM.cost(choice).energy_pj / GAME.start_cost
    exact = score(ratio, ACCURACY.accuracy_drop(choice), np.array([target]))[0]
    begun = score(np.ones(1), ACCURACY.accuracy_drop(GAME.start_choice[None]), np.array([target]))
    assert outcome["score"] == pytest.approx(exact)
    assert earned == pytest.approx(exact - begun[0])


def test_any_configuration_is_reached_in_one_round_and_kept_in_the_next() -> None:
    wanted = sampled(20)
    episode = RoundsEpisode(GAME, np.ones(20))
    for turn in range(episode.turns):
        episode.decide(episode.actions_toward(wanted))
        if turn:
            assert np.array_equal(episode.choices, wanted)
    assert episode.is_done


def test_pinned_layers_are_neither_seen_nor_decided() -> None:
    layers = len(PROBLEM.space.layers) - len(PINNED)
    assert ENV.observation_spaces["pruning"].shape == (layers, len(PROPOSAL_NAMES))
    assert ENV.action_spaces["precision"].shape == (2 * layers,)
    episode = RoundsEpisode(GAME, np.ones(5))
    rng = np.random.default_rng(0)
    while not episode.is_done:
        episode.decide(random_actions(episode, rng))
    assert np.array_equal(episode.choices[:, 0], np.repeat(GAME.start_choice[None, 0], 5, axis=0))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_credit_is_what_the_round_loses_without_a_layers_part(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.uniform(0.2, 10, 4)
    episode = RoundsEpisode(GAME, targets)
    for round_ in range(ROUNDS):
        before = episode.choices.copy()
        for _ in AGENTS:
            assert len(episode.credit) == round_ * len(AGENTS)
            episode.decide(random_actions(episode, rng))
        for credit, columns in zip(episode.credit[-len(AGENTS) :], COLUMNS, strict=True):
            for position, layer in enumerate(GAME.layers):
                without = episode.choices.copy()
                without[:, layer, columns] = before[:, layer, columns]
                gain = by_the_table(episode.choices, targets) - by_the_table(
                    PROBLEM.space.canonical(without), targets
                )
                assert np.allclose(credit[:, position], gain)


def test_credit_counts_what_exceeds_a_limit() -> None:
    """Parts of a round that bring a model under its limit earn more than without the limit."""
    dense = float(PROBLEM.cost(GAME.start_choice[None]).model_bytes[0])
    limited = replace(PROBLEM, limits=CostLimits(model_bytes=0.5 * dense))
    credits = []
    for problem in (PROBLEM, limited):
        episode = RoundsEpisode(Game(problem, ACCURACY), np.ones(8))
        wanted = sampled(8)
        for _ in AGENTS:
            episode.decide(episode.actions_toward(wanted))
        credits.append(np.sum(episode.credit, axis=0))
    assert np.all(credits[1] >= credits[0] - 1e-9)
    assert credits[1].sum() > credits[0].sum() + 1


def by_the_table(choices: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Scores by the table of layers' prices, (candidates,)."""
    ratio = GAME.prices.layer_cost(choices).sum(axis=1) / GAME.start_cost
    return score(ratio, ACCURACY.accuracy_drop(choices), targets)


def test_who_changes_nothing_gets_no_credit() -> None:
    episode = RoundsEpisode(GAME, np.ones(3))
    wanted = sampled(3)
    while not episode.is_done:
        episode.decide(episode.actions_toward(wanted))
    first, second = episode.credit[:2], episode.credit[2:]
    assert np.any(first)
    assert np.allclose(second, 0.0)


def test_rows_say_what_stands_at_their_layer() -> None:
    episode = RoundsEpisode(GAME, np.array([0.5, 8.0]))
    wanted = np.repeat(sampled(1, seed=3), 2, axis=0)
    for _ in AGENTS:
        episode.decide(episode.actions_toward(wanted))
    seen = episode.observe()
    named = {name: seen[..., index] for index, name in enumerate(PROPOSAL_NAMES)}
    widths = np.array(PROBLEM.space.weight_bits)[wanted[:, GAME.layers, WEIGHT_BITS]]
    assert np.allclose(named["this layer: weight width"], widths / 8)
    assert np.allclose(named["decisions left"], 0.5)
    assert np.all(named["drop against target"][0] > named["drop against target"][1])
    shares = named["cost of this layer"] ** 2
    pinned_share = GAME.prices.layer_cost(wanted)[:, 0] / GAME.start_cost
    whole = np.minimum(shares.sum(axis=1) + pinned_share, 1.0)
    assert np.allclose(named["cost of the whole"][:, 0], whole, atol=1e-6)


def test_expensive_accuracy_pays_once_and_gives_no_credit() -> None:
    dear = replace(ACCURACY, is_cheap=False)
    episode = RoundsEpisode(Game(PROBLEM, dear), np.ones(2))
    rng = np.random.default_rng(0)
    rewards = [episode.decide(random_actions(episode, rng)) for _ in range(episode.turns)]
    assert not np.any(rewards[:-1])
    assert np.all(rewards[-1] != 0)
    assert not np.any(episode.credit)


@pytest.mark.parametrize("action", [[0, 0], None, "none"])
def test_actions_that_are_not_of_every_layer_are_refused(action: object) -> None:
    ENV.reset(seed=0)
    with pytest.raises(InputError, match="action"):
        ENV.step({"pruning": action})


def test_the_manual_names_every_number_that_is_seen() -> None:
    section = DOCS.read_text().split("## Whole configurations at once")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+)(?: to (\d+))? \|", section, flags=re.MULTILINE)
    numbers = [n for low, high in rows for n in range(int(low), int(high or low) + 1)]
    assert numbers == list(range(len(PROPOSAL_NAMES)))
