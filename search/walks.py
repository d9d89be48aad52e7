"""Walks of the agents through a network, many at a time: for proposals and for RLlib's samples."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import KeysView
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

from envs.accuracy import AccuracySource
from envs.compression_env import CompressionEnv
from envs.episode import AGENTS
from envs.episode import Episode
from envs.episode import Game
from envs.episode import draw_target

Policy = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""From an agent and its observations (walks, numbers) to the logits of both actions, joined."""


def sample_actions(
    logits: NDArray[np.float32], sizes: NDArray[np.int64], rng: np.random.Generator | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw independent categorical actions, one per entry of ``sizes``.

    Args:
        logits: Unnormalized log-probabilities of all actions side by side, (walks, sum of sizes).
        sizes: Number of values of each action.
        rng: Draws the actions; None takes the likeliest.

    Returns:
        Actions, (walks, actions), and the logarithm of their joint probability, (walks,).
    """
    actions, log_probability = [], np.zeros(len(logits), dtype=np.float32)
    for part in np.split(logits, np.cumsum(sizes)[:-1], axis=1):
        # The largest of Gumbel-perturbed logits is a draw from their softmax.
        noise = 0.0 if rng is None else rng.gumbel(size=part.shape)
        action = np.argmax(part + noise, axis=1)
        peak = part.max(axis=1)
        normalizer = peak + np.log(np.exp(part - peak[:, None]).sum(axis=1))
        log_probability += part[np.arange(len(part)), action] - normalizer
        actions.append(action)
    return np.stack(actions, axis=1), log_probability


def module_policy(module: Mapping[str, Any]) -> Policy:
    """The policy of RLlib's modules, one per agent."""

    def policy(agent: str, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            batch = {Columns.OBS: torch.from_numpy(observations)}
            outputs = module[agent].forward_inference(batch)
        return outputs[Columns.ACTION_DIST_INPUTS].numpy()

    return policy


def walk(
    game: Game,
    targets: NDArray[np.float64],
    policy: Policy,
    rng: np.random.Generator | None,
) -> NDArray[np.int64]:
    """Choices that a policy takes at the given targets.

    Args:
        game: The rules.
        targets: Accepted accuracy drops in points, (walks,).
        policy: Takes the decisions.
        rng: Draws the actions; None takes the likeliest.

    Returns:
        Canonical choices, (walks, layers, 4).
    """
    episode = Episode(game, targets)
    while not episode.is_done:
        logits = policy(episode.agent, episode.observe())
        actions, _ = sample_actions(logits, game.action_sizes[episode.agent], rng)
        episode.decide(actions)
    return episode.choices


class OrderedEpisode(MultiAgentEpisode):
    """One whose agents come in the order in which they first saw something.

    RLlib makes them a set, which has another order in every process, and batches in that order:
    the same seed would learn something else.
    """

    @property
    def agent_ids(self) -> KeysView[str]:
        return self.agent_episodes.keys()


class GameRunner(MultiAgentEnvRunner):
    """A runner in this process that plays the game of its environment by itself.

    RLlib steps environments one by one through its connectors, about a millisecond a step. Here
    every step is taken by all walks of a batch together.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._env: CompressionEnv = self.env.envs[0].unwrapped
        self.game = self._env.game
        self.rng = np.random.default_rng([self.config.seed or 0, self.worker_index or 0])

    def use(self, accuracy: AccuracySource) -> None:
        """Judge by ``accuracy`` from the next episode on."""
        self.game.use(accuracy)

    def draw_targets(self, walks: int) -> NDArray[np.float64]:
        """Targets from the environment's range, in points, (walks,)."""
        return np.array([draw_target(self.rng, self._env.targets) for _ in range(walks)])


class WalkRunner(GameRunner):
    """Samples batches of episodes of ``CompressionEnv``, the same as RLlib would."""

    def propose(
        self, targets: NDArray[np.float64], rng: np.random.Generator | None
    ) -> NDArray[np.int64]:
        """Choices that the policies take; see :func:`walk`."""
        return walk(self.game, targets, module_policy(self.module), rng)

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[MultiAgentEpisode]:
        steps = len(AGENTS) * len(self.game.layers)
        walks = num_episodes or -(-(num_timesteps or 1) // steps)
        episodes = self._walk(self.draw_targets(walks), explore)
        self._done_episodes_for_metrics.extend(episodes)
        for episode in episodes:
            self._increase_sampled_metrics(steps, {}, episode)
            episode.to_numpy()
        return episodes

    def _walk(self, targets: NDArray[np.float64], explore: bool) -> list[MultiAgentEpisode]:
        policy = module_policy(self.module)
        walks = Episode(self.game, targets)
        episodes = [self._empty_episode() for _ in targets]
        seen = walks.observe()
        for episode, observation in zip(episodes, seen, strict=True):
            episode.add_env_reset(observations={walks.agent: observation}, infos={})
        while not walks.is_done:
            agent = walks.agent
            logits = policy(agent, seen)
            sizes = self.game.action_sizes[agent]
            actions, log_probability = sample_actions(logits, sizes, self.rng if explore else None)
            rewards = walks.decide(actions)
            seen = walks.observe()
            for index, episode in enumerate(episodes):
                episode.add_env_step(
                    observations={} if walks.is_done else {walks.agent: seen[index]},
                    actions={agent: actions[index]},
                    rewards=dict.fromkeys(AGENTS, float(rewards[index])),
                    infos={},
                    terminateds={"__all__": walks.is_done},
                    truncateds={"__all__": False},
                    extra_model_outputs={
                        agent: {
                            Columns.ACTION_DIST_INPUTS: logits[index],
                            Columns.ACTION_LOGP: log_probability[index],
                        }
                    },
                )
        return episodes

    def _empty_episode(self) -> MultiAgentEpisode:
        return OrderedEpisode(
            observation_space=self._env.observation_spaces,
            action_space=self._env.action_spaces,
            agent_to_module_mapping_fn=self.config.policy_mapping_fn,
        )
