"""What masks allow, against all configurations of spaces that are small enough to list."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from ray.rllib.utils.pre_checks.env import check_multiagent_environments

from envs import ENVIRONMENT_ID
from envs.compression_env import CompositeEnv
from envs.compression_env import CompressionEnv
from envs.compression_env import RoundsEnv
from envs.config import LayerDecision
from envs.episode import COLUMNS
from envs.episode import Episode
from envs.episode import Game
from envs.limits import LIMITED
from envs.limits import CostLimits
from envs.observation import OBSERVATION_SIZE
from envs.observation import PROPOSAL_SIZE
from envs.prices import LayerPrices
from envs.problem import CompressionProblem
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

TARGET = np.array([1.0])


def small_problem(pinned: bool) -> CompressionProblem:
    """Four layers, of which two share their channels, with three methods and few values each."""
    decision = LayerDecision("element", "l1", 0.5, 8, 8)
    problem = synthetic_problem(blocks=1, pinned={"block0.a": decision} if pinned else None)
    space, table = problem.space, problem.table
    methods, sparsities, widths = [0, 1, 3], [1, 5], [0, 3]
    if pinned:  # a pinned layer keeps its channels
        groups = list(space.channel_group)
        groups[space.layers.index("block0.a")] = -1
        space = replace(space, channel_group=tuple(groups))
    space = replace(
        space,
        methods=tuple(space.methods[i] for i in methods),
        sparsities=tuple(space.sparsities[i] for i in sparsities),
        weight_bits=tuple(space.weight_bits[i] for i in widths),
        activation_bits=tuple(space.activation_bits[i] for i in widths),
    )
    pruned = np.ix_(range(len(space.layers)), methods, sparsities)
    rounded = np.ix_(range(len(space.layers)), methods, sparsities, widths)
    groups_of = np.ix_(*map(range, table.removed_in.shape[:2]), methods, sparsities)
    table = replace(
        table,
        weight_density=table.weight_density[rounded],
        weight_error=table.weight_error[rounded],
        activation_density=table.activation_density[:, widths],
        activation_error=table.activation_error[:, widths],
        kept_out=table.kept_out[pruned],
        removed_in=table.removed_in[groups_of],
    )
    return replace(problem, space=space, table=table)


@cache
def everything(pinned: bool) -> np.ndarray:
    """All configurations of the small problem, canonical."""
    space = small_problem(pinned).space
    options = np.stack(np.unravel_index(np.arange(space.sizes.prod()), tuple(space.sizes)), -1)
    index = np.indices([len(options)] * len(space.layers)).reshape(len(space.layers), -1).T
    return np.unique(space.canonical(options[index]), axis=0)


def limited(pinned: bool, quantiles: dict[str, float]) -> CompressionProblem:
    """The small problem with limits that the given shares of all configurations hold."""
    problem = small_problem(pinned)
    one = CostLimits(**dict.fromkeys(quantiles, 1.0))
    usage = LayerPrices(replace(problem, limits=one)).layer_costs(everything(pinned))[1].sum(axis=1)
    names = [name for name in LIMITED if name in quantiles]
    limits = {n: float(np.quantile(usage[:, i], quantiles[n])) for i, n in enumerate(names)}
    return replace(problem, limits=CostLimits(**limits))


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize(
    "quantiles",
    [
        {"model_bytes": 0.001},
        {"latency_cycles": 0.02},
        {"dram_bytes": 0.005},
        {"bops": 0.2},
        {"model_bytes": 0.02, "bops": 0.02},
    ],
)
def test_no_action_is_masked_from_which_the_limits_can_be_held(
    pinned: bool, quantiles: dict[str, float]
) -> None:
    problem = limited(pinned, quantiles)
    game = Game(problem, SyntheticAccuracy(problem))
    holding = everything(pinned)
    usage = game.prices.layer_costs(holding)[1].sum(axis=1)
    holding = holding[(usage <= 1).all(axis=1)]
    assert len(holding)
    rng = np.random.default_rng(0)
    masked = 0
    for _ in range(8):
        episode, reachable = Episode(game, TARGET), holding
        goal = holding[rng.integers(len(holding))]
        while not episode.is_done:
            columns = COLUMNS[0 if episode.agent == "pruning" else 1]
            mask = episode.action_mask()
            options = episode.option_mask()
            assert mask is not None
            assert options is not None
            done = reachable[:, episode.layer, columns]
            assert mask[0][tuple(done.T)].all()
            assert options[0][tuple(reachable[:, episode.layer].T)].all()
            masked += int((~mask).sum())
            here = goal[episode.layer, columns]
            episode.decide(here[None])
            reachable = reachable[(done == here).all(axis=1)]
    assert masked


@pytest.mark.parametrize("pinned", [False, True])
def test_walks_that_keep_to_the_mask_hold_one_limit(pinned: bool) -> None:
    """A bound on one limit is met but where layers that share channels would not agree.

    By the prices of layers, less what these are known to be too high.
    """
    for name in LIMITED:
        problem = limited(pinned, {name: 0.02})
        game = Game(problem, SyntheticAccuracy(problem))
        episode = Episode(game, np.ones(200))
        random_walk(episode)
        assert game.completions is not None
        usage = game.prices.layer_costs(episode.choices)[1].sum(axis=1)
        assert (usage / game.completions.overestimate <= 1 + 1e-9).mean() > 0.9


def random_walk(episode: Episode) -> None:
    """Uniformly among what is allowed."""
    rng = np.random.default_rng(0)
    while not episode.is_done:
        mask = episode.action_mask()
        assert mask is not None
        assert mask.any(axis=(1, 2)).all()
        flat = mask.reshape(len(mask), -1)
        drawn = np.where(flat, rng.random(flat.shape), -1.0).argmax(axis=1)
        episode.decide(np.stack(np.unravel_index(drawn, mask.shape[1:]), axis=1))


def test_where_no_action_holds_the_limits_those_that_cost_least_remain() -> None:
    problem = replace(small_problem(False), limits=CostLimits(bops=1.0))
    episode = Episode(Game(problem, SyntheticAccuracy(problem)), np.ones(50))
    random_walk(episode)
    bops = problem.cost(episode.choices).total_bops
    least = problem.cost(everything(False)).total_bops.min()
    assert np.allclose(bops, least, rtol=0.2)  # the table knows no widest reader
    assert bops.max() < np.quantile(problem.cost(everything(False)).total_bops, 0.001)


def test_without_limits_there_is_no_mask() -> None:
    problem = small_problem(False)
    arguments = {"problem": problem, "accuracy": SyntheticAccuracy(problem)}
    episode = Episode(Game(**arguments), TARGET)
    assert episode.action_mask() is None
    assert episode.option_mask() is None
    assert CompressionEnv(arguments).reset()[1] == {}
    assert gymnasium.make(ENVIRONMENT_ID, **arguments).reset()[1] == {}


def test_the_limits_that_are_left_are_seen() -> None:
    """At their cheapest when an episode begins; what the model says when it is over."""
    names = ("latency_cycles", "model_bytes")
    problem = limited(False, dict.fromkeys(names, 0.05))
    game = Game(problem, SyntheticAccuracy(problem))
    episode = Episode(game, TARGET)
    taken = []
    while not episode.is_done:
        seen = episode.observe()
        assert seen.shape == (1, OBSERVATION_SIZE + len(LIMITED))
        taken.append(2.0 * seen[0, OBSERVATION_SIZE:])
        episode.decide(
            np.array([game.problem.space.sizes[COLUMNS[episode.agent != "pruning"]]]) - 1
        )
    taken.append(2.0 * episode.observe()[0, OBSERVATION_SIZE:])
    first, last = taken[0], taken[-1]
    least = game.prices.layer_costs(everything(False))[1].sum(axis=1).min(axis=0)
    where = [LIMITED.index(name) for name in names]
    assert np.all(first[where] <= least + 1e-6)
    assert np.all(first[where] > 0.8 * least)
    assert np.all(np.diff(np.array(taken)[:-1], axis=0) >= -1e-6)  # what is decided stays
    expected = problem.limits.usage(problem.cost(episode.choices))[0]
    assert np.allclose(last[where], np.minimum(expected, 2.0))
    assert not np.delete(first, where).any()


def test_public_environments_tell_the_mask() -> None:
    problem = limited(False, {"model_bytes": 0.01})
    arguments = {"problem": problem, "accuracy": SyntheticAccuracy(problem)}
    pair, joint = CompressionEnv(arguments), gymnasium.make(ENVIRONMENT_ID, **arguments)
    check_multiagent_environments(pair)
    check_env(joint.unwrapped)
    seen, infos = pair.reset(seed=0)
    _, info = joint.reset(seed=0)
    for _ in problem.space.layers:
        layer_mask = info["action_mask"]
        assert layer_mask.shape == tuple(joint.action_space.nvec)
        assert np.array_equal(infos["pruning"]["action_mask"], layer_mask.any(axis=(2, 3)))
        first = np.argwhere(infos["pruning"]["action_mask"])[-1]
        _, _, _, _, infos = pair.step({"pruning": first})
        assert np.array_equal(infos["precision"]["action_mask"], layer_mask[tuple(first)])
        second = np.argwhere(infos["precision"]["action_mask"])[-1]
        seen, _, _, _, infos = pair.step({"precision": second})
        _, _, over, _, info = joint.step(np.concatenate([first, second]))
    assert over
    assert not seen
    assert "action_mask" not in info
    assert set(infos) == {"__common__"}


@pytest.mark.parametrize(
    ("kind", "size"), [(CompositeEnv, OBSERVATION_SIZE), (RoundsEnv, PROPOSAL_SIZE)]
)
def test_other_environments_see_limits_too(kind: type[CompressionEnv], size: int) -> None:
    problem = limited(False, {"model_bytes": 0.01})
    env = kind({"problem": problem, "accuracy": SyntheticAccuracy(problem)})
    observations, infos = env.reset(seed=0)
    (agent,) = observations
    assert observations[agent].shape[-1] == size + len(LIMITED)
    assert not infos
    while observations:
        (agent,) = observations
        assert env.observation_spaces[agent].contains(observations[agent])
        action = env.action_spaces[agent].sample()
        observations, *_ = env.step({agent: action})
