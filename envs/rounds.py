"""Whole configurations, decided at once and refined in a few rounds, many side by side."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from envs.episode import AGENTS
from envs.episode import COLUMNS
from envs.episode import Episode
from envs.episode import Game
from envs.episode import score
from envs.limits import excess

ROUNDS: Final = 2
"""Times that every agent decides about all layers."""


class RoundsEpisode(Episode):
    """An :class:`Episode` in which every agent decides about all layers at once.

    In each round ``pruning`` picks (method, sparsity) for every layer that is not pinned, and
    then ``precision`` (weight width, activation width). Both see the costs of the whole
    configuration that stands, and their decisions replace their own of the round before.

    Attributes:
        credit: For every decision of the rounds that are over, in their order, what each layer's
            part of it added to the score that the round came to: that score less the one with
            this part as it was before the round (a difference reward, Wolpert and Tumer, 2001),
            (candidates, layers that are not pinned). Zeros where accuracy is expensive.
    """

    def __init__(self, game: Game, targets: NDArray[np.float64]) -> None:
        super().__init__(game, targets)
        self.credit: list[NDArray[np.float64]] = []
        self._round_start = self.choices

    @property
    def turns(self) -> int:
        return len(AGENTS) * ROUNDS

    def observe(self) -> NDArray[np.float32]:
        """What the agent whose turn it is sees, in [-1, 1].

        Shape (candidates, layers, :func:`envs.observation.proposal_size`).
        """
        game = self._game
        layer_drop = np.zeros((len(self.choices), len(game.layers)))
        if game.accuracy.is_cheap:
            start = np.broadcast_to(game.start_choice, self.choices.shape)
            undone = self._with_parts_of(start, slice(None))
            layer_drop = self.accuracy_drop[:, None] - self._drops(undone)
        seen = game.observer.proposal(
            layers=game.layers,
            choices=self.choices,
            layer_cost=self._layer_cost,
            start_cost=game.start_cost,
            drop=self.accuracy_drop,
            layer_drop=layer_drop,
            target=self.targets,
            turns_left=1.0 - self._turn / self.turns,
        )
        return game.observer.with_limits(seen, self._usage)

    def action_mask(self) -> None:
        """None: a layer's part of a decision does not know what the others take."""

    def decide(self, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take one agent's actions and pay the team the change of the score, (candidates,).

        Args:
            actions: Two for every layer that is not pinned, layer by layer, (candidates,
                2 * layers).
        """
        pairs = np.asarray(actions, dtype=np.int64).reshape(len(self.choices), -1, 2)
        score_before = self.score
        wanted = self.choices.copy()
        wanted[:, self._game.layers, self._columns] = pairs
        self.choices = self._game.problem.space.canonical(wanted)
        self._turn += 1
        self._appraise()
        if self._turn % len(AGENTS) == 0:
            self.credit += [self._credit_of(columns) for columns in COLUMNS]
            self._round_start = self.choices
        return self.score - score_before

    def actions_toward(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        return choices[:, self._game.layers, self._columns].reshape(len(choices), -1)

    def _credit_of(self, columns: slice) -> NDArray[np.float64]:
        """Credit of the agent that decides about these columns, for the round that is over.

        A decision alone would be judged before the other agent has answered it: pruning would
        spend all that may be lost and leave nothing to the widths.
        """
        game = self._game
        if not game.accuracy.is_cheap:
            return np.zeros((len(self.choices), len(game.layers)))
        others = self._with_parts_of(self._round_start, columns)
        flat = others.reshape(-1, *others.shape[2:])
        targets = np.repeat(self.targets, others.shape[1])
        without = self._score_by_the_table(flat, self._drops(others).ravel(), targets)
        # By the table of layers on both sides, whatever the score of a finished episode is by.
        here = self._score_by_the_table(self.choices, self.accuracy_drop, self.targets)
        return here[:, None] - without.reshape(others.shape[:2])

    def _score_by_the_table(
        self, choices: NDArray[np.int64], drops: NDArray[np.float64], targets: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Score of choices, (candidates, layers, 4), that are priced layer by layer."""
        game = self._game
        layer_cost, usage = game.prices.layer_costs(choices)
        over_limits = excess(usage.sum(axis=1))
        return score(layer_cost.sum(axis=1) / game.start_cost, drops, targets, over_limits)

    def _with_parts_of(self, others: NDArray[np.int64], columns: slice) -> NDArray[np.int64]:
        """What stands, with these columns of one layer at a time taken from ``others``.

        Returns:
            Canonical, (candidates, layers that are not pinned, layers, 4).
        """
        layers = self._game.layers
        mixed = np.repeat(self.choices[:, None], len(layers), axis=1)
        for position, layer in enumerate(layers):
            mixed[:, position, layer, columns] = others[:, layer, columns]
        return self._game.problem.space.canonical(mixed)

    def _drops(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points that (candidates, parts, layers, 4) lose, (candidates, parts)."""
        flat = choices.reshape(-1, *choices.shape[2:])
        return self._game.accuracy.accuracy_drop(flat).reshape(choices.shape[:2])
