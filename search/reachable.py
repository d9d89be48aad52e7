"""Whether a problem's limits can be held, before anything is evaluated."""

from __future__ import annotations

import math

import numpy as np

from envs.episode import start_choice
from envs.limits import CostLimits
from envs.predictor import AccuracyPredictor
from envs.problem import CompressionProblem
from hwmodel.errors import InputError
from search.allocation import Allocator

_DOMINATES = 1e6
"""Price of a limit against which the cost counts for nothing."""
_TRIALS = 20
"""Prices of limits that are tried to hold all of them together."""


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
    start = np.repeat(start_choice(problem.space)[None], len(limits), axis=0)
    cost = float(problem.preference.cost(problem.cost(start[:1]))[0])
    damage = AccuracyPredictor(problem.table, reference=1.0, chance=0.0).layer_damage()
    free = np.zeros(len(limits))
    allocator = Allocator(problem, cost)
    least = allocator.descend(damage, free, start, _DOMINATES * np.eye(len(limits)))
    usage = problem.limits.usage(problem.cost(least)).diagonal()
    for (name, limit), share in zip(limits.items(), usage, strict=True):
        if share > 1:
            allowed = f"the smallest network found in this space needs {math.ceil(limit * share)}"
            raise InputError(f"limits.{name}", limit, allowed)
    together, _ = allocator.front_within_limits(
        damage, free[:1], start[:1], np.zeros((1, len(limits))), _TRIALS
    )
    if not problem.limits.hold(problem.cost(together))[0]:
        raise InputError("limits", limits, "no network was found that holds all of them together")
