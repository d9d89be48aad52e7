from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import ENVIRONMENT_ID
from envs.compression_env import CompressionEnv
from hwmodel import InputError
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=3)
ACCURACY = SyntheticAccuracy(PROBLEM)


def make() -> gymnasium.Env:
    return gymnasium.make(ENVIRONMENT_ID, problem=PROBLEM, accuracy=ACCURACY)


@pytest.mark.filterwarnings("error:.*WARN.*")
def test_gymnasium_accepts_it() -> None:
    check_env(make().unwrapped)


def test_both_environments_agree_on_the_same_decisions() -> None:
    joint = make()
    pair = CompressionEnv({"problem": PROBLEM, "accuracy": ACCURACY})
    rng = np.random.default_rng(0)
    for _ in range(3):
        target = {"target": float(rng.uniform(0.2, 10))}
        seen, _ = joint.reset(options=target)
        observations, _ = pair.reset(options=target)
        over = False
        while not over:
            assert np.array_equal(seen, observations["pruning"])
            action = rng.integers(0, joint.action_space.nvec)
            seen, reward, over, _, info = joint.step(action)
            _, first, *_ = pair.step({"pruning": action[:2]})
            observations, second, _, _, infos = pair.step({"precision": action[2:]})
            assert reward == pytest.approx(first["pruning"] + second["precision"])
        assert np.array_equal(info["choice"], infos["__common__"]["choice"])
        assert info["score"] == infos["__common__"]["score"]


def test_the_same_seed_gives_the_same_episode() -> None:
    env = make()
    first = [env.reset(seed=4)[0], env.reset()[0]]
    again = [env.reset(seed=4)[0], env.reset()[0]]
    assert np.array_equal(first, again)
    assert not np.array_equal(*first)


def test_stepping_after_the_end_is_refused() -> None:
    env = make().unwrapped
    env.reset(seed=0)
    for _ in PROBLEM.space.layers:
        env.step(np.zeros(4, dtype=np.int64))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(4, dtype=np.int64))


def test_half_given_arguments_are_named() -> None:
    with pytest.raises(InputError, match="task and accelerator"):
        gymnasium.make(ENVIRONMENT_ID, task="digits")
