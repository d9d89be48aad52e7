from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from ray.rllib.utils.pre_checks.env import check_multiagent_environments

from envs.compression_env import CompressionEnv
from envs.episode import AGENTS
from envs.observation import OBSERVATION_NAMES
from hwmodel import InputError
from tests.envs.synthetic import SyntheticAccuracy
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=3)
LAYERS = len(PROBLEM.space.layers)
ENV = CompressionEnv({"problem": PROBLEM, "accuracy": SyntheticAccuracy(PROBLEM)})
DOCS = Path(__file__).parents[2] / "docs" / "environment.md"


def play(env: CompressionEnv, actions: np.random.Generator, **reset: object) -> dict:
    """An episode of random actions; what it saw, earned and came to."""
    observations, _ = env.reset(**reset)
    seen, earned, turns = [], dict.fromkeys(AGENTS, 0.0), []
    infos: dict = {}
    while observations:
        (agent, observation), *others = observations.items()
        assert not others
        turns.append(agent)
        seen.append(observation)
        action = actions.integers(0, env.action_spaces[agent].nvec)
        observations, rewards, terminateds, truncateds, infos = env.step({agent: action})
        assert terminateds["__all__"] == (not observations)
        assert not truncateds["__all__"]
        earned = {agent: earned[agent] + rewards[agent] for agent in AGENTS}
    return {"seen": seen, "earned": earned, "turns": turns, **infos["__common__"]}


def test_rllib_accepts_it() -> None:
    check_multiagent_environments(ENV)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_spaces_hold_all_that_agents_see(seed: int) -> None:
    played = play(ENV, np.random.default_rng(seed), seed=seed)
    assert played["turns"] == list(AGENTS) * LAYERS
    for agent, observation in zip(played["turns"], played["seen"], strict=True):
        assert ENV.observation_spaces[agent].contains(observation)


def test_the_team_earns_the_score_together() -> None:
    played = play(ENV, np.random.default_rng(1), seed=1, options={"target": 2.0})
    assert played["target"] == 2.0
    start = play(ENV, _Cautious(), seed=1, options={"target": 2.0})["score"]
    assert played["earned"]["pruning"] == played["earned"]["precision"]
    assert played["earned"]["pruning"] == pytest.approx(played["score"] - start)


class _Cautious:
    """Stands in for a random generator; leaves everything as it is."""

    def integers(self, low: int, high: np.ndarray) -> np.ndarray:
        return np.array([0, 0]) if high[0] == len(PROBLEM.space.methods) else high - 1


def test_one_seed_fixes_all_targets_that_follow() -> None:
    targets = []
    for _ in range(2):
        actions = np.random.default_rng(0)
        first = play(ENV, actions, seed=5)["target"]
        targets.append([first, *(play(ENV, actions)["target"] for _ in range(3))])
    assert targets[0] == targets[1]
    assert len(set(targets[0])) == 4


def test_a_new_accuracy_counts_from_the_next_episode() -> None:
    env = CompressionEnv({"problem": PROBLEM, "accuracy": SyntheticAccuracy(PROBLEM)})
    before = play(env, np.random.default_rng(0), seed=0)["accuracy_drop"]
    env.use(SyntheticAccuracy(PROBLEM, scales=np.full((1, 2), 0.01)))
    assert play(env, np.random.default_rng(0), seed=0)["accuracy_drop"] < before


def test_the_text_of_a_failure_reaches_the_user() -> None:
    class Broken(SyntheticAccuracy):
        def accuracy_drop(self, choices: np.ndarray) -> np.ndarray:
            raise OSError("the disk with the images is gone")

    with pytest.raises(RuntimeError, match="OSError: the disk with the images is gone"):
        CompressionEnv({"problem": PROBLEM, "accuracy": Broken(PROBLEM)})


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "env"),
        ({"task": "digits"}, "env"),
        ({"task": "digits", "accelerator": "abacus"}, "accelerator"),
        ({"problem": PROBLEM}, "env"),
        ({"problem": PROBLEM, "accuracy": None, "task": "digits"}, "env"),
        ({"problem": PROBLEM, "accuracies": None}, "env.accuracies"),
        ({"targets": (2.0, 1.0)}, "env.targets"),
        ({"targets": 1.0}, "env.targets"),
        ({"targets": (0.0, 1.0)}, "env.targets"),
    ],
)
def test_bad_arguments_are_named(config: dict, field: str) -> None:
    with pytest.raises(InputError) as error:
        CompressionEnv(config)
    assert error.value.field == field


@pytest.mark.parametrize("options", [{"target": 0}, {"target": "1"}, {"goal": 1.0}])
def test_bad_options_are_named(options: dict) -> None:
    with pytest.raises(InputError, match="options"):
        ENV.reset(options=options)


@pytest.mark.parametrize("action", [[0], [0, 99], [-1, 0], [0.5, 0], None])
def test_bad_actions_are_refused(action: list | None) -> None:
    ENV.reset(seed=0)
    with pytest.raises(InputError, match="action"):
        ENV.step({"pruning": action})


def test_the_documented_table_lists_every_number() -> None:
    section = DOCS.read_text().split("## Observation\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|", section, flags=re.MULTILINE)
    assert [int(row) for row in rows] == list(range(len(OBSERVATION_NAMES)))


def test_documented_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert len(example.strip().splitlines()) <= 10
        exec(example, {})
    assert capsys.readouterr().out.count("points lost") == 2
