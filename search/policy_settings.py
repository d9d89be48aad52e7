"""How large policies are, how they explore and what they replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hwmodel.errors import InputError

HEADS = 4
"""Of the attention of ``ppo-rounds``."""

_HIDDEN: Mapping[str, tuple[int, ...]] = {
    "ppo": (64, 64),
    "appo": (64, 64),
    "ppo-rounds": (64,),
    "composite": (64, 64),
}
_OF_PPO = ("hidden", "learning_rate", "entropy_coefficient")
_OF_COMPOSITE = (
    "hidden", "learning_rate", "target_entropy", "first_epsilon", "exploring_walks", "replay_walks",
)  # fmt: skip
_USED = {"ppo": _OF_PPO, "appo": _OF_PPO, "ppo-rounds": _OF_PPO, "composite": _OF_COMPOSITE}
"""Settings of every algorithm that has policies."""


@dataclass(frozen=True)
class PolicySettings:
    """What may be set of learned policies. The defaults were found by measurement.

    Attributes:
        hidden: Units of every hidden layer of each network, >= 1; for ``ppo-rounds`` those of every
            attention block, all the same. None for those of the algorithm.
        learning_rate: Of all networks, > 0; None for that of the algorithm.
        entropy_coefficient: Weight of the policies' entropy in the losses of ``ppo``, ``appo`` and
            ``ppo-rounds``, >= 0.
        target_entropy: Of the amounts that ``composite`` draws, in nats.
        first_epsilon: Share of the methods that ``composite`` draws blindly at first, 0..1.
        exploring_walks: Walks during which that share goes to 0.05, >= 1.
        replay_walks: Latest walks that ``composite`` learns from, >= 1.
    """

    hidden: tuple[int, ...] | None = None
    learning_rate: float | None = None
    entropy_coefficient: float = 0.003
    target_entropy: float = -3.0
    first_epsilon: float = 0.2
    exploring_walks: int = 512
    replay_walks: int = 1024

    def hidden_of(self, algorithm: str) -> tuple[int, ...]:
        """Units of the hidden layers of an algorithm that has policies."""
        return self.hidden or _HIDDEN[algorithm]


DEFAULT_SETTINGS = PolicySettings()


def require_used(algorithm: str, given: Mapping[str, Any]) -> None:
    """Refuse settings that an algorithm would ignore.

    Args:
        algorithm: See ``search.spec.Spec``.
        given: Settings by name.

    Raises:
        InputError: the algorithm has no such setting, or its networks cannot have this shape.
    """
    used = _USED.get(algorithm)
    if used is None:
        allowed = f"leave it out: {algorithm} has no policies; {', '.join(_USED)} have"
        raise InputError("", dict(given), allowed)
    for name, value in given.items():
        if name not in used:
            raise InputError(name, value, f"{algorithm} has {', '.join(used)}")
    hidden = given.get("hidden") or ()
    if algorithm == "ppo-rounds" and (len(set(hidden)) > 1 or any(n % HEADS for n in hidden)):
        allowed = f"use one multiple of {HEADS} for all attention blocks, such as [64]"
        raise InputError("hidden", list(hidden), allowed)
