from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from ray.rllib.utils.pre_checks.env import check_multiagent_environments

from envs.composite import COMPOSITE_AGENTS
from envs.composite import amounts_of
from envs.composite import nearest_entries
from envs.compression_env import CompositeEnv
from envs.compression_env import CompressionEnv
from hwmodel import InputError
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=3)
LAYERS = len(PROBLEM.space.layers)
CONFIG = {"problem": PROBLEM, "accuracy": SyntheticAccuracy(PROBLEM)}
ENV = CompositeEnv(CONFIG)

FRACTIONS = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=9, unique=True).map(sorted)
WIDTHS = st.lists(st.integers(2, 16), min_size=1, max_size=9, unique=True).map(sorted)


def test_rllib_accepts_it() -> None:
    check_multiagent_environments(ENV)


@settings(max_examples=40)
@given(FRACTIONS, WIDTHS, WIDTHS)
def test_every_entry_of_every_menu_can_be_reached(
    sparsities: list[float], weights: list[int], activations: list[int]
) -> None:
    menus = (tuple(sparsities), tuple(weights), tuple(activations))
    space = replace(
        PROBLEM.space, sparsities=menus[0], weight_bits=menus[1], activation_bits=menus[2]
    )
    for column, menu in enumerate(menus):
        span = max(menu[-1] - menu[0], 1e-9)
        amounts = np.zeros((len(menu), 3))
        amounts[:, column] = 2 * (np.array(menu) - menu[0]) / span - 1
        entries = nearest_entries(space, amounts)
        assert entries[:, column].tolist() == list(range(len(menu)))
        assert np.array_equal(nearest_entries(space, amounts_of(space, entries)), entries)


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3), min_size=1, max_size=20))
def test_more_of_an_amount_is_never_a_smaller_entry(amounts: list[tuple[float, ...]]) -> None:
    rising = np.sort(np.array(amounts), axis=0)
    entries = nearest_entries(PROBLEM.space, rising)
    assert np.all(np.diff(entries, axis=0) >= 0)
    assert np.all((entries >= 0) & (entries < PROBLEM.space.sizes[1:]))


@settings(max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_it_is_the_game_of_the_other_environment(seed: int) -> None:
    """The same decisions earn the same; observations lie in their spaces; turns alternate."""
    rng = np.random.default_rng(seed)
    other = CompressionEnv(CONFIG)
    target = {"target": float(rng.uniform(0.2, 10))}
    observations, _ = ENV.reset(options=target)
    expected, _ = other.reset(options=target)
    for _ in range(LAYERS):
        assert set(observations) == {"amounts"}
        assert np.array_equal(observations["amounts"], expected["pruning"])
        amounts = rng.uniform(-1, 1, 3).astype(np.float32)
        method = rng.integers(len(PROBLEM.space.methods))
        seen, nothing, *_ = ENV.step({"amounts": amounts})
        assert set(seen) == {"method"}
        assert set(nothing.values()) == {0.0}
        assert np.array_equal(seen["method"], [*observations["amounts"], *amounts])
        for agent, observation in (*observations.items(), *seen.items()):
            assert ENV.observation_spaces[agent].contains(observation)
        observations, rewards, *_, infos = ENV.step({"method": method})
        sparsity, *widths = nearest_entries(PROBLEM.space, amounts[None])[0]
        _, pruned, *_ = other.step({"pruning": np.array([method, sparsity])})
        expected, rounded, *_, outcome = other.step({"precision": np.array(widths)})
        assert set(rewards) == set(COMPOSITE_AGENTS)
        assert rewards["amounts"] == rewards["method"]
        assert rewards["method"] == pytest.approx(pruned["pruning"] + rounded["precision"])
    assert not observations
    assert infos["__common__"]["score"] == outcome["__common__"]["score"]
    assert np.array_equal(infos["__common__"]["choice"], outcome["__common__"]["choice"])


@pytest.mark.parametrize("action", [[0, 0], [0, 0, 1.1], [0, 0, np.nan], ["a", "b", "c"], None])
def test_amounts_out_of_range_are_refused(action: list | None) -> None:
    ENV.reset(seed=0)
    with pytest.raises(InputError, match="action"):
        ENV.step({"amounts": action})


@pytest.mark.parametrize("action", [-1, 5, 0.5, [0], None])
def test_methods_that_there_are_not_are_refused(action: object) -> None:
    ENV.reset(seed=0)
    ENV.step({"amounts": np.zeros(3, dtype=np.float32)})
    with pytest.raises(InputError, match="action"):
        ENV.step({"method": action})
