"""Prioritized replay of whole walks, which a new judge of accuracy appraises anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns

from envs.composite import AMOUNTS
from envs.composite import COMPOSITE_AGENTS
from envs.composite import METHOD_AGENT
from envs.episode import Game
from envs.observation import observation_size
from search.composite_walks import Walks
from search.composite_walks import replay

LEAST_PRIORITY = 1e-3
"""Added to every error, so that nothing is forgotten."""


class WalkReplay:
    """The latest walks, and how much each agent has to learn from each of their layers.

    What a walk decided is kept; what it saw and earned follows from the rules. So a checkpoint
    is small, and after the predictor has learnt from measurements nothing in here is stale. What
    was earned by measured accuracy stays, and is kept too.

    Transitions are drawn with a probability proportional to ``error ** alpha`` and weighted
    against the bias by ``beta`` (Schaul et al., ICLR 2016), apart for each agent.

    Args:
        game: Of the walks; its judge of accuracy may change, see :meth:`appraise`.
        capacity: Walks that are kept.
        n_steps: Rewards that each agent adds up before it asks for a value.
        alpha, beta: Exponents of prioritization and of its correction.
    """

    def __init__(
        self, game: Game, capacity: int, n_steps: Mapping[str, int], alpha: float, beta: float
    ) -> None:
        self._game = game
        self._capacity = capacity
        self._n_steps = n_steps
        self._alpha = alpha
        self._beta = beta
        layers = len(game.layers)
        seen = observation_size(bool(game.problem.limits.given))
        self._priorities = np.zeros((len(COMPOSITE_AGENTS), 0, layers), dtype=np.float32)
        self._walks = Walks(
            np.zeros(0),
            np.zeros((0, layers, len(AMOUNTS)), dtype=np.float32),
            np.zeros((0, layers), dtype=np.int64),
            np.zeros((0, layers, seen), dtype=np.float32),
            np.zeros((0, layers), dtype=np.float32),
            np.zeros((0, *game.start_choice.shape), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self._walks.targets)

    def add(self, walks: Walks) -> None:
        """Keep these walks, and of the oldest only as many as still fit."""
        pairs = [(getattr(self._walks, f.name), getattr(walks, f.name)) for f in fields(Walks)]
        self._walks = Walks(*(np.concatenate(pair)[-self._capacity :] for pair in pairs))
        # What was never learnt from goes first.
        urgent = self._priorities.max(initial=1.0)
        shape = (len(COMPOSITE_AGENTS), *walks.rewards.shape)
        added = [self._priorities, np.full(shape, urgent, dtype=np.float32)]
        self._priorities = np.concatenate(added, axis=1)[:, -self._capacity :]

    def appraise(self) -> None:
        """Let the game's present judge say what was seen and earned, unless it was measured."""
        if len(self) and self._game.accuracy.is_cheap:
            self._walks = replay(self._game, self._walks)

    def sample(
        self, agent: str, size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """Draw transitions of one agent.

        Returns:
            Where they are, for :meth:`prioritize`, and the columns of RLlib's train batch.
        """
        walks, layers = self._walks, self._walks.rewards.shape[1]
        mass = np.cumsum(self._priorities[COMPOSITE_AGENTS.index(agent)].ravel(), dtype=np.float64)
        drawn = np.searchsorted(mass, rng.random(size) * mass[-1], side="right")
        share = np.diff(mass, prepend=0.0)[drawn] / mass[-1]
        weights = (share * len(mass)) ** -self._beta
        walk, first = np.divmod(drawn, layers)
        end = np.minimum(first + self._n_steps[agent], layers)
        next_layer = np.minimum(end, layers - 1)  # masked where the walk has ended
        earned = np.cumsum(np.pad(walks.rewards, ((0, 0), (1, 0))), axis=1)
        actions = walks.methods if agent == METHOD_AGENT else walks.amounts
        return drawn, {
            Columns.OBS: self._seen(agent, walk, first),
            Columns.NEXT_OBS: self._seen(agent, walk, next_layer),
            Columns.ACTIONS: actions[walk, first],
            Columns.REWARDS: earned[walk, end] - earned[walk, first],
            Columns.TERMINATEDS: end == layers,
            "n_step": (end - first).astype(np.float32),
            "weights": (weights / weights.max()).astype(np.float32),
        }

    def prioritize(
        self, agent: str, drawn: NDArray[np.int64], errors: NDArray[np.floating]
    ) -> None:
        """Set what can still be learnt from transitions: the errors of their values."""
        priorities = self._priorities[COMPOSITE_AGENTS.index(agent)].reshape(-1)
        priorities[drawn] = (np.abs(errors) + LEAST_PRIORITY) ** self._alpha

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds, as tensors: decisions and priorities, and what was measured."""
        kept = {name: getattr(self._walks, name) for name in ("targets", "amounts", "methods")}
        if not self._game.accuracy.is_cheap:
            kept["rewards"] = self._walks.rewards
        kept["priorities"] = self._priorities
        return {name: torch.from_numpy(np.ascontiguousarray(kept[name])) for name in kept}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`, appraised by the game's present judge if not measured."""
        kept = {name: tensor.numpy() for name, tensor in state.items()}
        self._priorities = kept.pop("priorities")
        walks = replay(self._game, replace(self._walks, **kept))
        self._walks = replace(walks, rewards=kept.get("rewards", walks.rewards))

    def _seen(
        self, agent: str, walk: NDArray[np.int64], layer: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        seen = self._walks.observations[walk, layer]
        if agent != METHOD_AGENT:
            return seen
        return np.concatenate([seen, self._walks.amounts[walk, layer]], axis=1)
