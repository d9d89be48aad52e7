"""Policies in training: what every learner of RLlib has in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from envs.accuracy import AccuracySource
from envs.compression_env import CompressionEnv
from hwmodel.errors import InputError
from search.run_directory import CHECKPOINT
from search.walks import GameRunner

EPISODES_PER_ROUND = 32
"""Episodes between two updates of the policies."""


class Agents:
    """Agents that play the game of one problem and learn from it, in this process.

    Args:
        algorithm: Trains them; one iteration of it plays ``EPISODES_PER_ROUND`` episodes with a
            local runner that has ``use``, ``propose`` and ``rng``.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        self.algorithm = algorithm

    def use(self, accuracy: AccuracySource) -> None:
        """Judge the episodes to come by ``accuracy``: a predictor that has learnt more."""
        self.algorithm.env_runner.use(accuracy)

    def train(self, episodes: int) -> float:
        """Train for at least so many episodes.

        Returns:
            Mean return of the latest episodes: their score minus that of the start.
        """
        mean_return = 0.0
        for _ in range(0, episodes, EPISODES_PER_ROUND):
            result = self.algorithm.train()
            mean_return = float(result["env_runners"]["episode_return_mean"])
        return mean_return

    def propose(
        self, targets: NDArray[np.float64], rng: np.random.Generator | None
    ) -> NDArray[np.int64]:
        """Choices that the agents take at the given targets, all walks side by side.

        Args:
            targets: Accepted accuracy drops in points, (candidates,).
            rng: Draws the actions; None takes the likeliest.

        Returns:
            Canonical choices, (candidates, layers, 4).
        """
        choices: NDArray[np.int64] = self.algorithm.env_runner.propose(targets, rng)
        return choices

    def save(self, directory: Path) -> None:
        """Write what the agents learnt, and where their random numbers stand."""
        directory.mkdir(parents=True, exist_ok=True)
        torch.save(self._state(), directory / CHECKPOINT)

    def restore(self, directory: Path) -> None:
        """Continue from what :meth:`save` wrote for the same problem.

        Raises:
            InputError: the file is missing, damaged, or belongs to another problem.
        """
        self._read(directory, self._load)

    def start_from(self, directory: Path) -> None:
        """Begin with the weights that :meth:`save` wrote, for this problem or another.

        Optimizers, replays and random numbers stay new: they belong to what was played there.

        Raises:
            InputError: the file is missing or damaged, or its menus have other sizes.
        """
        self._read(directory, self._load_weights)

    def _read(self, directory: Path, load: Callable[[dict[str, Any]], None]) -> None:
        path = directory / CHECKPOINT
        try:
            # Weights only: a run directory may come from someone else, and pickles run code.
            load(torch.load(path, weights_only=True))
        except Exception as error:  # torch and zipfile raise many kinds
            raise InputError("policies", str(path), f"use agents of this run ({error})") from None
        self.algorithm.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.algorithm.learner_group, inference_only=True
        )

    def stop(self) -> None:
        """Free what the algorithm holds."""
        self.algorithm.stop()

    def _state(self) -> dict[str, Any]:
        """Tensors, plain numbers, and containers of them."""
        learner = self.algorithm.learner_group._learner
        agents = list(learner.module.keys())
        return {
            "modules": {agent: learner.module[agent].unwrapped().state_dict() for agent in agents},
            "optimizers": {
                agent: [each.state_dict() for _, each in learner.get_optimizers_for_module(agent)]
                for agent in agents
            },
            "rng": self.algorithm.env_runner.rng.bit_generator.state,
        }

    def _load_weights(self, state: dict[str, Any]) -> None:
        module = self.algorithm.learner_group._learner.module
        for agent in module.keys():  # noqa: SIM118 - RLlib's modules iterate otherwise
            module[agent].unwrapped().load_state_dict(state["modules"][agent])

    def _load(self, state: dict[str, Any]) -> None:
        self._load_weights(state)
        learner = self.algorithm.learner_group._learner
        for agent in learner.module.keys():  # noqa: SIM118
            optimizers = learner.get_optimizers_for_module(agent)
            for (_, optimizer), values in zip(optimizers, state["optimizers"][agent], strict=True):
                optimizer.load_state_dict(values)
        self.algorithm.env_runner.rng.bit_generator.state = state["rng"]


def in_process(
    config: AlgorithmConfig,
    env: type[CompressionEnv],
    env_config: dict[str, Any],
    runner: type[GameRunner],
    modules: MultiRLModuleSpec,
    seed: int,
) -> AlgorithmConfig:
    """``config`` for a game that is played and learnt in this process, a module for each agent.

    Raises:
        InputError: the targets are out of range, or nothing is to be decided.
    """
    # Small matrices: more threads only make the learner wait for them.
    torch.set_num_threads(1)
    env(env_config)  # RLlib hides what is wrong with these behind its own errors
    return (
        config.environment(env, env_config=env_config)
        .env_runners(env_runner_cls=runner, num_env_runners=0, num_envs_per_env_runner=1)
        .learners(num_learners=0)
        .multi_agent(
            policies=list(modules.rl_module_specs),  # a set has another order in every process
            policy_mapping_fn=lambda agent, episode, **_: agent,
        )
        .rl_module(rl_module_spec=modules)
        .debugging(seed=seed, log_level="ERROR")
    )


def build(config: AlgorithmConfig) -> Algorithm:
    """The algorithm of a configuration, without its log folder."""
    algorithm = config.build_algo()
    with suppress(OSError):  # an empty folder of results in the user's home, which nobody fills
        Path(algorithm.logdir).rmdir()
    return algorithm
