"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from envs.limits import NO_LIMITS
from envs.limits import CostLimits
from envs.preference import ENERGY
from envs.preference import Preference

OF_INT8 = " of INT8"
"""How the name of a goal ends that is an energy."""


@dataclass(frozen=True)
class Goal:
    """The least cost at a loss, or the least loss at an energy; one of both is None.

    Attributes:
        max_accuracy_drop: Points of accuracy that may be lost.
        max_energy_ratio: Energy that may be taken, over that of dense INT8.
    """

    max_accuracy_drop: float | None = None
    max_energy_ratio: float | None = None

    @property
    def asked(self) -> tuple[str, float]:
        """The attribute that is not None, and its value."""
        return next((name, value) for name, value in vars(self).items() if value is not None)

    @property
    def flag(self) -> str:
        """What asks for it on the command line."""
        return f"--{self.asked[0].replace('_', '-')}"

    @property
    def name(self) -> str:
        """What its pick is called: ``best at 1`` point, ``best at 0.5 of INT8``."""
        if self.max_energy_ratio is not None:
            return f"best at {self.max_energy_ratio:g}{OF_INT8}"
        return f"best at {self.max_accuracy_drop:g}"


@dataclass(frozen=True)
class Goals:
    """All that a search is asked for.

    Attributes:
        targets: Points of accuracy that may be lost, at which the least cost is wanted.
        limits: What an inference may cost at most at the run's level, besides energy.
        energy_targets: Energies over that of dense INT8, at which the least loss is wanted.
        preference: The costs of which, weighted, the least is wanted where no energy is given.
    """

    targets: tuple[float, ...]
    limits: CostLimits = NO_LIMITS
    energy_targets: tuple[float, ...] = ()
    preference: Preference = ENERGY

    @property
    def all(self) -> list[Goal]:
        """One by one, losses first."""
        losses = [Goal(max_accuracy_drop=drop) for drop in self.targets]
        return losses + [Goal(max_energy_ratio=ratio) for ratio in self.energy_targets]
