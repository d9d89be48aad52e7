"""The walk of the composite agent: amounts first, as real numbers, then the way to prune."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from envs.episode import Episode
from envs.episode import Game
from envs.observation import observation_size
from envs.space import SearchSpace

AMOUNTS_AGENT: Final = "amounts"
METHOD_AGENT: Final = "method"
COMPOSITE_AGENTS: Final = (AMOUNTS_AGENT, METHOD_AGENT)
"""Who decides, in turn, about every layer."""
AMOUNTS: Final = ("sparsity", "weight bits", "activation bits")
"""What ``amounts`` decides, each a number from -1 (the menu's least) to 1 (its most)."""


def method_observation_size(limited: bool) -> int:
    """Length of what ``method`` sees of a problem that has limits, or has none."""
    return observation_size(limited) + len(AMOUNTS)


def nearest_entries(space: SearchSpace, amounts: NDArray[np.floating]) -> NDArray[np.int64]:
    """Menu entries nearest to amounts, by value: every entry is the nearest of some amount.

    Args:
        space: Has the menus.
        amounts: In [-1, 1], (walks, 3) in the order of ``AMOUNTS``.

    Returns:
        Indices into the menus of sparsities, weight widths and activation widths, (walks, 3).
    """
    columns = []
    for amount, menu in zip(np.asarray(amounts, dtype=np.float64).T, _menus(space), strict=True):
        low, high = menu[0], menu[-1]
        value = low + (amount + 1.0) / 2.0 * (high - low)
        columns.append(np.abs(value[:, None] - menu).argmin(axis=1))
    return np.stack(columns, axis=1)


def amounts_of(space: SearchSpace, entries: NDArray[np.int64]) -> NDArray[np.float32]:
    """Amounts, (..., 3), whose nearest entries these are, (..., 3); inverse of the above."""
    amounts = np.zeros(entries.shape, dtype=np.float32)
    for column, menu in enumerate(_menus(space)):
        span = menu[-1] - menu[0]
        if span > 0:
            amounts[..., column] = 2.0 * (menu[entries[..., column]] - menu[0]) / span - 1.0
    return amounts


def _menus(space: SearchSpace) -> list[NDArray[np.float64]]:
    menus = (space.sparsities, space.weight_bits, space.activation_bits)
    return [np.array(menu, dtype=np.float64) for menu in menus]


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

        For ``amounts`` the same as in :class:`Episode`; for ``method`` with the amounts of this
        layer appended, (candidates, :func:`method_observation_size`).
        """
        seen = super().observe()
        return seen if self._amounts is None else np.concatenate([seen, self._amounts], axis=1)

    def action_mask(self) -> None:
        """None: amounts are real numbers."""

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
