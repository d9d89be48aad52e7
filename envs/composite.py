"""The walk of the composite agent: amounts first, as real numbers, then the way to prune."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from envs.episode import Episode
from envs.episode import Game
from envs.observation import OBSERVATION_SIZE
from envs.space import SearchSpace

AMOUNTS_AGENT: Final = "amounts"
METHOD_AGENT: Final = "method"
COMPOSITE_AGENTS: Final = (AMOUNTS_AGENT, METHOD_AGENT)
"""Who decides, in turn, about every layer."""
AMOUNTS: Final = ("sparsity", "weight bits", "activation bits")
"""What ``amounts`` decides, each a number from -1 (the menu's least) to 1 (its most)."""
METHOD_OBSERVATION_SIZE: Final = OBSERVATION_SIZE + len(AMOUNTS)


def nearest_entries(space: SearchSpace, amounts: NDArray[np.floating]) -> NDArray[np.int64]:
    """Menu entries nearest to amounts, by value: every entry is the nearest of some amount.

    Args:
        space: Has the menus.
        amounts: In [-1, 1], (walks, 3) in the order of ``AMOUNTS``.

    Returns:
        Indices into the menus of sparsities, weight widths and activation widths, (walks, 3).
    """
    columns = []
    menus = (space.sparsities, space.weight_bits, space.activation_bits)
    for amount, menu in zip(np.asarray(amounts, dtype=np.float64).T, menus, strict=True):
        low, high = menu[0], menu[-1]
        value = low + (amount + 1.0) / 2.0 * (high - low)
        columns.append(np.abs(value[:, None] - np.array(menu)).argmin(axis=1))
    return np.stack(columns, axis=1)


class CompositeEpisode(Episode):
    """An :class:`Episode` whose decisions are split as in the published composite agent.

    At every layer ``amounts`` first picks how much to prune and how wide numbers are, as real
    numbers. Then ``method``, which sees these, picks what is pruned by which criterion, and all
    of it is applied and paid: the layer is one step of the team.
    """

    def __init__(self, game: Game, targets: NDArray[np.float64]) -> None:
        super().__init__(game, targets)
        self._space = game.problem.space
        self._amounts: NDArray[np.float32] | None = None

    @property
    def agent(self) -> str:
        """Whose turn it is; the last agent's after the end."""
        return COMPOSITE_AGENTS[1 if self._amounts is not None or self.is_done else 0]

    def observe(self) -> NDArray[np.float32]:
        """What the agent whose turn it is sees, in [-1, 1].

        For ``amounts`` (candidates, OBSERVATION_SIZE); for ``method`` the same with the amounts
        of this layer appended, (candidates, METHOD_OBSERVATION_SIZE).
        """
        seen = super().observe()
        return seen if self._amounts is None else np.concatenate([seen, self._amounts], axis=1)

    def decide(self, actions: NDArray[np.generic]) -> NDArray[np.float64]:
        """Take one agent's actions and pay the team, (candidates,).

        Args:
            actions: Of ``amounts``, real numbers in [-1, 1], (candidates, 3); of ``method``,
                indices into the methods, (candidates,).
        """
        if self._amounts is None:
            self._amounts = actions.astype(np.float32)
            return np.zeros(len(actions))
        sparsity, *widths = nearest_entries(self._space, self._amounts).T
        self._amounts = None
        pruned = super().decide(np.stack([actions.astype(np.int64), sparsity], axis=1))
        return pruned + super().decide(np.stack(widths, axis=1))
