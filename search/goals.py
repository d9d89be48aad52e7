"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from envs.limits import NO_LIMITS
from envs.limits import CostLimits


@dataclass(frozen=True)
class Goals:
    """The least energy at each target, among what holds the limits.

    Attributes:
        targets: Points of accuracy that may be lost.
        limits: What an inference may cost at most at the run's level, besides energy.
    """

    targets: tuple[float, ...]
    limits: CostLimits = NO_LIMITS
