from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from envs.config import LayerDecision
from envs.episode import AGENTS
from envs.episode import Episode
from envs.episode import Game
from envs.episode import draw_target
from envs.episode import score
from envs.episode import start_choice
from envs.observation import OBSERVATION_NAMES
from envs.observation import OBSERVATION_SIZE
from envs.space import Method
from hwmodel import InputError
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=6)
LAYERS = len(PROBLEM.space.layers)
GAME = Game(PROBLEM, SyntheticAccuracy(PROBLEM))
EXPENSIVE = Game(PROBLEM, SyntheticAccuracy(PROBLEM, is_cheap=False))


def play(
    game: Game, targets: np.ndarray, seed: int
) -> tuple[Episode, np.ndarray, list[np.ndarray], np.ndarray]:
    """A random walk: the finished episode, rewards, observations, and the raw decisions."""
    rng = np.random.default_rng(seed)
    episode = Episode(game, targets)
    raw = np.zeros_like(episode.choices)
    rewards, seen = [], []
    while not episode.is_done:
        seen.append(episode.observe())
        columns = slice(0, 2) if episode.agent == "pruning" else slice(2, 4)
        actions = rng.integers(0, game.problem.space.sizes[columns], (len(targets), 2))
        raw[:, episode.layer, columns] = actions
        rewards.append(episode.decide(actions))
    return episode, np.array(rewards), seen, raw


@pytest.mark.parametrize(
    ("ratio", "drop", "target", "expected"),
    [
        (1.0, 0.0, 1.0, 0.0),
        (0.5, 1.0, 1.0, math.log(2)),  # at the target nothing is lost
        (0.5, -0.3, 1.0, math.log(2)),  # a gain of accuracy earns nothing
        (0.5, 2.0, 1.0, math.log(2) - 2 * math.log(2)),
        (0.0, 500.0, 0.2, math.log(1000) - 2 * math.log(500)),  # bounded on both sides
    ],
)
def test_score_known_answers(ratio: float, drop: float, target: float, expected: float) -> None:
    given_score = score(np.array([ratio]), np.array([drop]), np.array([target]))
    assert given_score[0] == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100.0))
def test_what_stands_at_the_end_is_what_the_space_makes_of_the_decisions(
    seed: int, target: float
) -> None:
    episode, _, _, raw = play(GAME, np.full(3, target), seed)
    assert np.array_equal(episode.choices, PROBLEM.space.canonical(raw))
    energy = PROBLEM.cost(episode.choices).energy_pj
    assert np.allclose(episode.cost_ratio, energy / GAME.start_cost)


def test_a_method_that_cannot_reach_a_sparsity_takes_the_nearest() -> None:
    methods = (*PROBLEM.space.methods[:-1], Method("n:4", "l1"))
    space = dataclasses.replace(PROBLEM.space, methods=methods)
    game = Game(dataclasses.replace(PROBLEM, space=space), SyntheticAccuracy(PROBLEM))
    episode, _, _, raw = play(game, np.full(32, 1.0), seed=0)
    assert np.array_equal(episode.choices, space.canonical(raw))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_observations_lie_in_their_space(seed: int, target: float) -> None:
    for game in (GAME, EXPENSIVE):
        for seen in play(game, np.full(2, target), seed)[2]:
            assert seen.dtype == np.float32
            assert seen.shape == (2, OBSERVATION_SIZE)
            assert np.all((seen >= -1) & (seen <= 1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rewards_add_up_to_the_gain_in_score(seed: int) -> None:
    targets = np.array([0.3, 3.0])
    begin = Episode(GAME, targets).score
    episode, rewards, _, _ = play(GAME, targets, seed)
    assert np.allclose(rewards.sum(axis=0), episode.score - begin)
    assert np.allclose(episode.score, score(episode.cost_ratio, episode.accuracy_drop, targets))
    assert np.count_nonzero(rewards[:-1]) > LAYERS  # paid as it goes


def test_an_expensive_accuracy_is_asked_once_and_pays_at_the_end() -> None:
    asked = []

    class Counting(SyntheticAccuracy):
        def accuracy_drop(self, choices: np.ndarray) -> np.ndarray:
            asked.append(len(choices))
            return super().accuracy_drop(choices)

    game = Game(PROBLEM, Counting(PROBLEM, is_cheap=False))
    episode, rewards, _, _ = play(game, np.array([1.0, 2.0]), seed=0)
    assert asked == [2]
    assert not rewards[:-1].any()
    assert np.allclose(rewards[-1], episode.score)
    cheap, _, _, _ = play(GAME, np.array([1.0, 2.0]), seed=0)
    assert np.allclose(cheap.score, episode.score)


def test_walks_side_by_side_are_the_same_as_alone() -> None:
    targets = np.array([0.5, 5.0])
    rng = np.random.default_rng(3)
    both = Episode(GAME, targets)
    alone = [Episode(GAME, targets[i : i + 1]) for i in range(2)]
    while not both.is_done:
        sizes = PROBLEM.space.sizes
        actions = rng.integers(0, sizes[:2] if both.agent == "pruning" else sizes[2:], (2, 2))
        seen = np.concatenate([episode.observe() for episode in alone])
        assert np.array_equal(both.observe(), seen)
        rewards = np.concatenate([e.decide(actions[i : i + 1]) for i, e in enumerate(alone)])
        assert np.allclose(both.decide(actions), rewards)


def test_agents_take_turns_through_all_layers() -> None:
    episode = Episode(GAME, np.array([1.0]))
    turns = []
    while not episode.is_done:
        turns.append((episode.layer, episode.agent))
        episode.decide(np.zeros((1, 2), dtype=np.int64))
    assert turns == [(layer, agent) for layer in range(LAYERS) for agent in AGENTS]


def test_followers_remove_what_their_leader_removes_at_once() -> None:
    episode = Episode(GAME, np.array([1.0]))
    episode.decide(np.array([[3, 4]]))  # the stem leads the first group
    group = [i for i, g in enumerate(PROBLEM.space.channel_group) if g == 0]
    assert len(group) > 1
    assert np.array_equal(episode.choices[0, group, :2], [[3, 4]] * len(group))
    assert np.array_equal(episode.choices, PROBLEM.space.canonical(episode.choices))
    forced = OBSERVATION_NAMES.index("forced by the group's leader")
    while episode.layer != group[1]:
        assert episode.observe()[0, forced] == 0
        episode.decide(np.zeros((1, 2), dtype=np.int64))
    assert episode.observe()[0, forced] == 1


def test_unfinished_configurations_are_priced_close_to_the_model() -> None:
    choices = PROBLEM.space.sample(np.random.default_rng(0), 200)
    table = GAME.prices.layer_cost(choices).sum(axis=1)
    model = PROBLEM.cost(choices).energy_pj
    assert np.median(np.abs(table / model - 1)) < 0.1
    assert np.corrcoef(table, model)[0, 1] > 0.97
    start = start_choice(PROBLEM.space)[None]
    assert GAME.prices.layer_cost(start).sum() == pytest.approx(GAME.start_cost)


def test_pinned_layers_are_not_asked_about() -> None:
    decision = LayerDecision("element", "l1", 0.5, 6, 6)
    problem = synthetic_problem(blocks=3, pinned={"stem": decision, "classifier": decision})
    game = Game(problem, SyntheticAccuracy(problem))
    episode, rewards, _, _ = play(game, np.array([1.0]), seed=1)
    assert len(rewards) == 2 * (len(problem.space.layers) - 2)
    assert problem.space.config(episode.choices[0]).layers["stem"] == decision


def test_nothing_to_decide_is_refused() -> None:
    names = PROBLEM.space.layers
    problem = synthetic_problem(blocks=6, pinned=dict.fromkeys(names, LayerDecision()))
    with pytest.raises(InputError, match=r"space\.pinned"):
        Game(problem, SyntheticAccuracy(problem))


def test_a_model_without_energy_is_refused() -> None:
    problem = dataclasses.replace(PROBLEM, level="coarse")
    with pytest.raises(InputError, match="level"):
        Game(problem, SyntheticAccuracy(problem))


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_impossible_targets_are_refused(target: float) -> None:
    with pytest.raises(InputError, match="target"):
        Episode(GAME, np.array([target]))


def test_targets_are_drawn_log_uniformly_from_their_range() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_target(rng, (0.1, 10.0)) for _ in range(2000)])
    assert drawn.min() >= 0.1
    assert drawn.max() <= 10.0
    assert np.mean(drawn < 1.0) == pytest.approx(0.5, abs=0.05)
