"""Episodes of the agents, many at a time: for proposals and for RLlib's samples."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import KeysView
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import Protocol

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
from envs.episode import draw_target
from envs.episode import drop_penalty

Policy = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""From an agent and its observations (episodes, ...) to the logits of both actions, joined."""

ACTION_MASK = "action_mask"
"""Column that tells which values of every action were open when it was drawn."""
IMPOSSIBLE = -1e9
"""Logit of a value that is never drawn; finite, for an entropy that is a number."""


def sample_actions(
    logits: NDArray[np.float32],
    sizes: NDArray[np.int64],
    rng: np.random.Generator | None,
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw categorical actions, one per entry of ``sizes``.

    They are independent unless some are not allowed together: then each is drawn from the values
    that those before it leave open.

    Args:
        logits: Unnormalized log-probabilities of all actions side by side, (episodes, sum of
            sizes).
        sizes: Number of values of each action.
        rng: Draws the actions; None takes the likeliest.
        allowed: Actions that may be taken, at least one in every episode, (episodes, *sizes); all
            if None.

    Returns:
        Actions, (episodes, actions), and the logarithm of their joint probability, (episodes,).
    """
    actions, log_probability = [], np.zeros(len(logits), dtype=np.float32)
    rows = np.arange(len(logits))
    for part in np.split(logits, np.cumsum(sizes)[:-1], axis=1):
        if allowed is not None:
            part = np.where(_open_now(allowed), part, np.float32(IMPOSSIBLE))
        # The largest of Gumbel-perturbed logits is a draw from their softmax.
        noise = 0.0 if rng is None else rng.gumbel(size=part.shape)
        action = np.argmax(part + noise, axis=1)
        peak = part.max(axis=1)
        normalizer = peak + np.log(np.exp(part - peak[:, None]).sum(axis=1))
        log_probability += part[rows, action] - normalizer
        if allowed is not None:
            allowed = allowed[rows, action]
        actions.append(action)
    return np.stack(actions, axis=1), log_probability


def open_values(allowed: NDArray[np.bool_], actions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values of each action were open when it was drawn, (episodes, sum of sizes).

    Args:
        allowed: See :func:`sample_actions`.
        actions: What was drawn, (episodes, actions).
    """
    parts = []
    for action in actions.T:
        parts.append(_open_now(allowed))
        allowed = allowed[np.arange(len(actions)), action]
    return np.concatenate(parts, axis=1)


def _open_now(allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Values of the first action that go with some values of the others, (episodes, values)."""
    return np.asarray(allowed.reshape(*allowed.shape[:2], -1).any(axis=2))


def module_outputs(
    module: Mapping[str, Any], agent: str, observations: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """What the network of an agent says, by column; (episodes, ...) each."""
    with torch.no_grad():
        outputs = module[agent].forward_inference({Columns.OBS: torch.from_numpy(observations)})
    return {column: tensor.numpy() for column, tensor in outputs.items()}


def module_policy(module: Mapping[str, Any]) -> Policy:
    """The policy of RLlib's modules, one per agent."""

    def policy(agent: str, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        return module_outputs(module, agent, observations)[Columns.ACTION_DIST_INPUTS]

    return policy


def play(
    episode: Episode,
    sizes: Mapping[str, NDArray[np.int64]],
    policy: Policy,
    rng: np.random.Generator | None,
) -> NDArray[np.int64]:
    """Choices that a policy takes in episodes that begin.

    Args:
        episode: Many side by side, each with its target.
        sizes: Number of values of each action of every agent.
        policy: Takes the decisions.
        rng: Draws the actions; None takes the likeliest.

    Returns:
        Canonical choices, (candidates, layers, 4).
    """
    while not episode.is_done:
        logits = policy(episode.agent, episode.observe())
        allowed = episode.action_mask()
        actions, _ = sample_actions(logits, sizes[episode.agent], rng, allowed)
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
    every step is taken by all episodes of a batch together.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._env: CompressionEnv = self.env.envs[0].unwrapped
        self.game = self._env.game
        self.rng = np.random.default_rng([self.config.seed or 0, self.worker_index or 0])

    def use(self, accuracy: AccuracySource) -> None:
        """Judge by ``accuracy`` from the next episode on."""
        self.game.use(accuracy)

    def draw_targets(self, count: int) -> NDArray[np.float64]:
        """Targets from the environment's range, in points, (count,)."""
        return np.array([draw_target(self.rng, self._env.targets) for _ in range(count)])


@dataclass(frozen=True)
class Turn:
    """One agent's decision in many episodes side by side.

    Attributes:
        agent: Who decided.
        seen: Its observations, (episodes, ...).
        actions: (episodes, actions).
        rewards: Of the team, (episodes,).
        columns: What the learner is told besides, by name, (episodes, ...) each.
    """

    agent: str
    seen: NDArray[np.float32]
    actions: NDArray[np.int64]
    rewards: NDArray[np.float64]
    columns: dict[str, NDArray[Any]]


class Walked(Protocol):
    """Walks that have ended, side by side, for which accuracy is still to be paid."""

    @property
    def choices(self) -> NDArray[np.int64]:
        """Where they ended, canonical, (walks, layers, 4)."""
        ...


@dataclass(frozen=True)
class Played:
    """Episodes that have ended, side by side, for which accuracy is still to be paid.

    Attributes:
        targets: Accepted accuracy drops in points, (episodes,).
        turns: All decisions.
        choices: What came of them, canonical, (episodes, layers, 4).
    """

    targets: NDArray[np.float64]
    turns: list[Turn]
    choices: NDArray[np.int64]


class EpisodeRunner(GameRunner):
    """Samples batches of episodes of its environment, the same as RLlib would.

    The environment's actions are discrete, its agents act in turn.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sizes = {agent: space.nvec for agent, space in self._env.action_spaces.items()}
        self._turns = self._env.start(np.ones(1)).turns

    def propose(
        self, targets: NDArray[np.float64], rng: np.random.Generator | None
    ) -> NDArray[np.int64]:
        """Choices that the policies take; see :func:`play`."""
        return play(self._env.start(targets), self._sizes, module_policy(self.module), rng)

    def demonstrate(
        self, choices: NDArray[np.int64], targets: NDArray[np.float64]
    ) -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """What each agent sees and does in the episodes that lead to ``choices``.

        Args:
            choices: Canonical, (candidates, layers, 4).
            targets: Accepted accuracy drops in points, (candidates,).

        Returns:
            By agent: observations, (decisions, ...), and actions, (decisions, actions).
        """
        played = self._env.start(targets)
        seen: dict[str, list[NDArray[np.float32]]] = {agent: [] for agent in AGENTS}
        done: dict[str, list[NDArray[np.int64]]] = {agent: [] for agent in AGENTS}
        while not played.is_done:
            agent = played.agent
            seen[agent].append(played.observe())
            done[agent].append(played.actions_toward(choices))
            played.decide(done[agent][-1])
        return {a: (np.concatenate(seen[a]), np.concatenate(done[a])) for a in AGENTS}

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[MultiAgentEpisode]:
        count = num_episodes or -(-(num_timesteps or 1) // self._turns)
        turns = self._play(self._env.start(self.draw_targets(count)), self.rng if explore else None)
        episodes = [self._episode(turns, index) for index in range(count)]
        self._done_episodes_for_metrics.extend(episodes)
        for episode in episodes:
            self._increase_sampled_metrics(self._turns, {}, episode)
            episode.to_numpy()
        return episodes

    def walk(self, count: int, freedom: float) -> Played:
        """Play ``count`` episodes whose accuracy is measured later; see :meth:`paid`.

        Args:
            count: How many.
            freedom: What logits are divided by: 1 draws as the policies say, more draws more
                evenly.
        """
        played = self._env.start(self.draw_targets(count))
        turns = self._play(played, self.rng, freedom)
        return Played(played.targets, turns, played.choices)

    def paid(self, played: Played, drops: NDArray[np.float64]) -> list[MultiAgentEpisode]:
        """RLlib's form of episodes that lost ``drops`` points; without those of which it is NaN."""
        *earlier, last = played.turns
        rewards = last.rewards - drop_penalty(drops, played.targets)
        turns = [*earlier, replace(last, rewards=rewards)]
        known = np.flatnonzero(np.isfinite(drops)).tolist()
        episodes = [self._episode(turns, index) for index in known]
        for episode in episodes:
            episode.to_numpy()
        return episodes

    def _play(
        self, played: Episode, rng: np.random.Generator | None, freedom: float = 1.0
    ) -> list[Turn]:
        turns = []
        while not played.is_done:
            agent, seen = played.agent, played.observe()
            columns = module_outputs(self.module, agent, seen)
            # The learner weighs by the probabilities that were drawn with.
            logits = np.float32(1 / freedom) * columns[Columns.ACTION_DIST_INPUTS]
            columns[Columns.ACTION_DIST_INPUTS] = logits
            allowed = played.action_mask()
            actions, columns[Columns.ACTION_LOGP] = sample_actions(
                logits, self._sizes[agent], rng, allowed
            )
            if allowed is not None:
                columns[ACTION_MASK] = open_values(allowed, actions)
            turns.append(Turn(agent, seen, actions, played.decide(actions), columns))
        self._add_columns(played, turns)
        return turns

    def _add_columns(self, played: Episode, turns: list[Turn]) -> None:
        """Add to the columns of every turn what else the learner wants to know."""

    def _episode(self, turns: list[Turn], index: int) -> MultiAgentEpisode:
        """RLlib's form of one of the episodes."""
        episode = self._empty_episode()
        first = turns[0]
        episode.add_env_reset(observations={first.agent: first.seen[index]}, infos={})
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            episode.add_env_step(
                observations={following.agent: following.seen[index]} if following else {},
                actions={turn.agent: turn.actions[index]},
                rewards=dict.fromkeys(AGENTS, float(turn.rewards[index])),
                infos={},
                terminateds={"__all__": following is None},
                truncateds={"__all__": False},
                extra_model_outputs={
                    turn.agent: {name: rows[index] for name, rows in turn.columns.items()}
                },
            )
        return episode

    def _empty_episode(self) -> MultiAgentEpisode:
        return OrderedEpisode(
            observation_space=self._env.observation_spaces,
            action_space=self._env.action_spaces,
            agent_to_module_mapping_fn=self.config.policy_mapping_fn,
        )
