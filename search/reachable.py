"""Whether what is asked of costs can be held, before anything is evaluated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.episode import start_choice
from envs.limits import CostLimits
from envs.predictor import AccuracyPredictor
from envs.predictor import LayerDamage
from envs.problem import CompressionProblem
from hwmodel.errors import InputError
from search.allocation import Allocator

_DOMINATES = 1e6
"""Price of a limit against which the cost counts for nothing."""
_TRIALS = 20
"""Prices of limits that are tried to hold all of them together."""


def require_energies(
    problem: CompressionProblem, ratios: Sequence[float], int8_energy_pj: float
) -> None:
    """Refuse an energy that no configuration of the space is found to hold.

    Args:
        problem: Its objective is energy.
        ratios: Energies over that of dense INT8.
        int8_energy_pj: Of dense INT8 at the problem's level.

    Raises:
        InputError: names the energy, and the least that the network can be brought to.
    """
    if not ratios:
        return
    start, allocator, damage = _beginning(problem)
    smallest = allocator.descend(damage, np.zeros(1), start)
    least = float(problem.cost(smallest).energy_pj[0]) / int8_energy_pj
    if min(ratios) < least:
        allowed = (
            f"the smallest network found in this space takes {least:.3f} of dense INT8's energy"
        )
        raise InputError("energy_targets", min(ratios), allowed)


def require_reachable(problem: CompressionProblem, asked: CostLimits) -> None:
    """Refuse a limit that no configuration of the space is found to hold.

    Args:
        problem: With limits.
        asked: The same limits as the user gave them, at whatever level.

    Raises:
        InputError: names the limit, and the least that the network can be brought to, or tells
            that the limits are not held together.
    """
    limits = asked.given
    if not limits:
        return
    start, allocator, damage = _beginning(problem)
    free, starts = np.zeros(len(limits)), np.repeat(start, len(limits), axis=0)
    least = allocator.descend(damage, free, starts, _DOMINATES * np.eye(len(limits)))
    usage = problem.limits.usage(problem.cost(least)).diagonal()
    for (name, limit), share in zip(limits.items(), usage, strict=True):
        if share > 1:
            allowed = f"the smallest network found in this space needs {math.ceil(limit * share)}"
            raise InputError(f"limits.{name}", limit, allowed)
    together, _ = allocator.front_within_limits(
        damage, free[:1], start, np.zeros((1, len(limits))), _TRIALS
    )
    if not problem.limits.hold(problem.cost(together))[0]:
        raise InputError("limits", limits, "no network was found that holds all of them together")


def _beginning(
    problem: CompressionProblem,
) -> tuple[NDArray[np.int64], Allocator, LayerDamage]:
    """The start, (1, layers, 4), what goes down from there, and damage that counts for nothing."""
    start = start_choice(problem.space)[None]
    allocator = Allocator(problem, float(problem.objective.cost(problem.cost(start))[0]))
    damage = AccuracyPredictor(problem.table, reference=1.0, chance=0.0).layer_damage()
    return start, allocator, damage
