"""Walks of the composite agent through a network, many at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.core.columns import Columns

from envs.composite import AMOUNTS_AGENT
from envs.composite import METHOD_AGENT
from envs.composite import CompositeEpisode
from envs.composite import amounts_of
from envs.episode import Game
from envs.episode import drop_penalty
from envs.space import METHOD
from envs.space import SPARSITY
from search.walks import GameRunner

EPSILON = 0.05
"""Share of methods drawn blindly once exploration has settled."""

Decide = Callable[[str, int, NDArray[np.float32]], NDArray[Any]]
"""From an agent, the layer's position and the agent's observations to its actions."""


@dataclass(frozen=True)
class Walks:
    """What walks decided, saw and earned at every layer that is not pinned.

    Attributes:
        targets: Accepted accuracy drops in points, (walks,).
        amounts: Actions of ``amounts``, (walks, layers, 3).
        methods: Actions of ``method``, (walks, layers).
        observations: Of ``amounts``, (walks, layers, numbers).
        rewards: Of the team, (walks, layers).
        choices: What came of it, canonical, (walks, all layers, 4).
    """

    targets: NDArray[np.float64]
    amounts: NDArray[np.float32]
    methods: NDArray[np.int64]
    observations: NDArray[np.float32]
    rewards: NDArray[np.float32]
    choices: NDArray[np.int64]


def play(game: Game, targets: NDArray[np.float64], decide: Decide) -> Walks:
    """Walk with the given targets as ``decide`` says, all walks side by side."""
    walks = CompositeEpisode(game, targets)
    amounts, methods, seen, earned = [], [], [], []
    for position in range(len(game.layers)):
        seen.append(walks.observe())
        amounts.append(decide(AMOUNTS_AGENT, position, seen[-1]))
        walks.decide(amounts[-1])
        methods.append(decide(METHOD_AGENT, position, walks.observe()))
        earned.append(walks.decide(methods[-1]))
    return Walks(
        walks.targets,
        np.stack(amounts, axis=1),
        np.stack(methods, axis=1),
        np.stack(seen, axis=1),
        np.stack(earned, axis=1).astype(np.float32),
        walks.choices,
    )


def replay(game: Game, walks: Walks) -> Walks:
    """Take the same decisions again: seen and earned is what ``game`` judges now."""
    decided: dict[str, NDArray[Any]] = {
        AMOUNTS_AGENT: walks.amounts,
        METHOD_AGENT: walks.methods,
    }
    return play(game, walks.targets, lambda agent, position, _: decided[agent][:, position])


def demonstrate(game: Game, choices: NDArray[np.int64], targets: NDArray[np.float64]) -> Walks:
    """The walks that lead to ``choices``, canonical, (walks, layers, 4)."""
    decided = choices[:, game.layers]
    amounts = amounts_of(game.problem.space, decided[..., SPARSITY:])

    def decide(agent: str, position: int, _: NDArray[np.float32]) -> NDArray[Any]:
        return (amounts if agent == AMOUNTS_AGENT else decided[..., METHOD])[:, position]

    return play(game, targets, decide)


def paid(walks: Walks, drops: NDArray[np.float64]) -> Walks:
    """Walks that lost ``drops`` points, paid for that; without those of which it is NaN."""
    rewards = walks.rewards.copy()
    rewards[:, -1] -= drop_penalty(drops, walks.targets)
    known = np.isfinite(drops)
    everything = vars(walks) | {"rewards": rewards}
    return Walks(**{name: values[known] for name, values in everything.items()})


class CompositeRunner(GameRunner):
    """Plays whole batches of walks with the policies of both modules."""

    def play(
        self,
        targets: NDArray[np.float64],
        rng: np.random.Generator | None,
        epsilon: float,
        freedom: float = 1.0,
    ) -> Walks:
        """Walks of the policies.

        Args:
            targets: Accepted accuracy drops in points, (walks,).
            rng: Draws the actions; None takes the best.
            epsilon: Share of methods that are drawn blindly.
            freedom: What the spread of drawn amounts is multiplied by.
        """

        def decide(agent: str, position: int, seen: NDArray[np.float32]) -> NDArray[Any]:
            observations = torch.from_numpy(seen)
            if agent == AMOUNTS_AGENT:
                return self._amounts(observations, rng, freedom)
            return self._methods(observations, rng, epsilon)

        with torch.no_grad():
            return play(self.game, targets, decide)

    def propose(
        self, targets: NDArray[np.float64], rng: np.random.Generator | None
    ) -> NDArray[np.int64]:
        """Canonical choices that the policies take, (candidates, layers, 4)."""
        return self.play(targets, rng, EPSILON).choices

    def _amounts(
        self, observations: torch.Tensor, rng: np.random.Generator | None, freedom: float
    ) -> NDArray[np.float32]:
        mean, deviation = self.module[AMOUNTS_AGENT].distribution(observations)
        if rng is not None:
            noise = rng.standard_normal(mean.shape, dtype=np.float32)
            mean = mean + freedom * deviation * torch.from_numpy(noise)
        actions: NDArray[np.float32] = torch.tanh(mean).numpy()
        return actions

    def _methods(
        self, observations: torch.Tensor, rng: np.random.Generator | None, epsilon: float
    ) -> NDArray[np.int64]:
        values = self.module[METHOD_AGENT].compute_q_values({Columns.OBS: observations})[QF_PREDS]
        best: NDArray[np.int64] = values.numpy().argmax(axis=1)
        if rng is None:
            return best
        blind = rng.random(len(best)) < epsilon
        return np.where(blind, rng.integers(0, values.shape[1], size=len(best)), best)
