"""Policies in training: what every learner of RLlib has in common."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from envs.accuracy import AccuracySource
from envs.compression_env import CompressionEnv
from envs.compression_env import Spaces
from envs.episode import AGENTS
from hwmodel.errors import InputError
from search.checkpoints import CHECKPOINT
from search.walks import GameRunner
from search.walks import Walked

EPISODES_PER_ROUND = 32
"""Episodes between two updates of the policies."""
IMITATION_BATCH = 64
IMITATION_RATE = 2e-3
CAUTION = 1.0
"""Log-odds by which a new policy prefers a milder value of an action to the next harsher one."""


class Agents:
    """Agents that play the game of one problem and learn from it, in this process.

    Args:
        algorithm: Trains them, with a local runner that has ``use``, ``propose`` and ``rng``.
        episodes: That one iteration of it plays.
    """

    def __init__(self, algorithm: Algorithm, episodes: int = EPISODES_PER_ROUND) -> None:
        self.algorithm = algorithm
        self._episodes = episodes

    def use(self, accuracy: AccuracySource) -> None:
        """Judge the episodes to come by ``accuracy``: a predictor that has learnt more."""
        self.algorithm.env_runner.use(accuracy)

    def train(self, episodes: int) -> float:
        """Train for at least so many episodes.

        Returns:
            Mean return of the latest episodes: their score minus that of the start.
        """
        mean_return = 0.0
        for _ in range(0, episodes, self._episodes):
            result = self.algorithm.train()
            mean_return = float(result["env_runners"]["episode_return_mean"])
        return mean_return

    def walk(self, count: int, freedom: float = 1.0) -> Walked:
        """Play ``count`` walks, at drawn targets, whose accuracy is measured afterwards.

        Args:
            count: How many.
            freedom: From 1, where the agents explore as they do in training, upwards: the more,
                the less what they have learnt decides.
        """
        played: Walked = self.algorithm.env_runner.walk(count, freedom)
        return played

    def learn(self, walked: Iterable[tuple[Any, NDArray[np.float64]]]) -> None:
        """Train on walks, and on nothing else, once it is known what they lose.

        Args:
            walked: What :meth:`walk` returned since the latest call, and the accuracy drops in
                points, (walks,), each. Walks of which it is NaN are left out.
        """
        runner, config = self.algorithm.env_runner, self.algorithm.config
        episodes = [episode for played, drops in walked for episode in runner.paid(played, drops)]
        if not episodes:
            return
        # All in one batch: of so few none can be spared. RLlib appends a step to each.
        batch = sum(len(each.agent_episodes[AGENTS[0]]) + 1 for each in episodes)
        self.algorithm.learner_group.update(
            episodes=episodes, num_epochs=config.num_epochs, minibatch_size=batch
        )
        self._share_weights()

    def imitate(
        self, choices: NDArray[np.int64], targets: NDArray[np.float64], epochs: int
    ) -> None:
        """Learn to take the decisions that lead to given configurations, by their likelihood.

        Args:
            choices: Canonical, (candidates, layers, 4).
            targets: Accuracy drops, in points, at which each is the thing to do, (candidates,).
            epochs: Passes over all decisions.
        """
        runner = self.algorithm.env_runner
        module = self.algorithm.learner_group._learner.module
        for agent, (seen, actions) in runner.demonstrate(choices, targets).items():
            _maximize_likelihood(module[agent].unwrapped(), seen, actions, epochs, runner.rng)
        self._share_weights()

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
        self._share_weights()

    def _share_weights(self) -> None:
        """Have the runner play by what the learner has."""
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


def _maximize_likelihood(
    module: Any,
    seen: NDArray[np.float32],
    actions: NDArray[np.int64],
    epochs: int,
    rng: np.random.Generator,
) -> None:
    """Raise the probability of actions (decisions, ...) after observations (decisions, ...)."""
    observations, wanted = torch.from_numpy(seen), torch.from_numpy(actions)
    distribution = module.get_train_action_dist_cls()
    optimizer = torch.optim.Adam(module.parameters(), lr=IMITATION_RATE)
    for _ in range(epochs):
        for rows in torch.from_numpy(rng.permutation(len(seen))).split(IMITATION_BATCH):
            logits = module.forward_train({Columns.OBS: observations[rows]})
            likelihood = distribution.from_logits(logits[Columns.ACTION_DIST_INPUTS]).logp(
                wanted[rows]
            )
            optimizer.zero_grad()
            (-likelihood.mean()).backward()
            optimizer.step()


def cautious_logits(agent: str, sizes: Sequence[int], caution: float = CAUTION) -> torch.Tensor:
    """Logits of a policy that changes little: wide numbers, few weights removed.

    A network decided uniformly at random guesses; all that such episodes teach is that.

    Args:
        agent: One of ``AGENTS``.
        sizes: Number of values of its two actions.
        caution: Log-odds by which a milder value is preferred to the next harsher one.

    Returns:
        Of both actions, joined, (sum of sizes,).
    """
    first, second = (torch.arange(float(size)) for size in sizes)
    if agent == AGENTS[0]:  # no method first, then low sparsities
        first, second = -first.clamp(max=1), -second
    return caution * torch.cat([first, second])  # widths ascend


def two_modules(
    module: type, spaces: tuple[Spaces, Spaces], network: Mapping[str, Any]
) -> MultiRLModuleSpec:
    """A network of one class for each of ``AGENTS``.

    Args:
        module: The class.
        spaces: Observation and action spaces of the agents.
        network: The class's configuration, to which ``agent`` is added.
    """
    observations, actions = spaces
    modules = {
        agent: RLModuleSpec(
            module_class=module,
            observation_space=observations[agent],
            action_space=actions[agent],
            model_config={**network, "agent": agent},
        )
        for agent in AGENTS
    }
    return MultiRLModuleSpec(rl_module_specs=modules)


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
