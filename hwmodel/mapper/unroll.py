"""Ways to lay loops side by side on the array."""

from __future__ import annotations

import itertools
import math

import numpy as np

from hwmodel.mapper.problem import LOOPS
from hwmodel.mapper.problem import Axis
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import R
from hwmodel.mapper.windows import Array
from hwmodel.mapper.windows import balanced

Units = tuple[float, ...]
"""Iterations side by side of every loop; a fraction where loops lie on an axis as one."""

MOST_UNROLLINGS = 1024
"""Unrollings that are tried, those of fewest cycles first (our choice)."""

SLOWEST = 2.0
"""Unrollings that need more than so many times the fewest cycles are left out (our choice)."""


def _on_axes(problem: Problem, left: list[int]) -> set[Units]:
    """Iterations on the axes, of those that the lanes leave."""
    if problem.rules.one_loop_per_axis:
        return _single(problem)
    units: set[Units] = {(1.0,) * len(LOOPS)}
    for axis in problem.axes:
        units = {
            tuple(a * b for a, b in zip(before, fill, strict=True))
            for before in sorted(units)
            for fill in _fills(axis, _left(tuple(left), before), problem.row_stationary)
        }
    return units


def unrollings(problem: Problem) -> tuple[Array, Array]:
    """Iterations side by side of every loop: on the axes, and on the lanes of an element.

    Each axis is filled: nothing more fits on it. Energy alone might prefer to leave multipliers
    idle, which nobody builds them for, so slow unrollings are left out.

    Returns:
        Two arrays (unrollings, loops). Their product is at most the loops' sizes, rounded up.
    """
    sizes = problem.layer.sizes
    both = []
    for fill in _fills(problem.vector, list(sizes), False):
        left = _left(sizes, fill)
        both += [(units, fill) for units in _on_axes(problem, left)]
    both.sort()
    axes = np.array([first for first, _ in both], dtype=np.float64)
    lanes = np.array([second for _, second in both], dtype=np.float64)
    cycles = np.ceil(np.array(sizes) / (axes * lanes)).prod(axis=1)
    order = np.argsort(cycles, kind="stable")[:MOST_UNROLLINGS]
    if not problem.rules.one_loop_per_axis:
        order = order[cycles[order] <= SLOWEST * cycles[order[0]]]
    return axes[order], lanes[order]


def _left(sizes: tuple[int, ...], units: Units) -> list[int]:
    return [math.ceil(size / unit) for size, unit in zip(sizes, units, strict=True)]


def _fills(axis: Axis, left: list[int], rows_first: bool) -> list[Units]:
    """Fillings of one axis to which nothing can be added."""
    limits = [(loop, min(most, left[loop])) for loop, most in axis.limits]
    room = axis.size
    fixed: dict[int, int] = {}
    if rows_first and any(loop == R for loop, _ in limits):
        folds = -(-left[R] // min(room, dict(limits)[R]))
        fixed[R] = -(-left[R] // folds)
        room //= fixed[R]
        limits = [(loop, most) for loop, most in limits if loop != R]

    found: set[Units] = set()

    def extend(index: int, room: int, chosen: dict[int, int]) -> None:
        if index == len(limits):
            found.add(tuple(chosen.get(loop, 1) for loop in range(len(LOOPS))))
            return
        loop, most = limits[index]
        fitting = balanced(left[loop], min(most, room))
        # A limit below the size cuts it in parts that balance nothing: the limit itself counts too.
        options = sorted({*fitting, _even(left[loop], min(most, room))})
        for units in options if index < len(limits) - 1 else options[-1:]:
            extend(index + 1, room // units, {**chosen, loop: units})

    extend(0, room, fixed)
    if axis.flat:
        loops = [loop for loop, _ in limits]
        turns = -(-math.prod(left[loop] for loop in loops) // axis.size)
        if turns <= min(math.prod(math.ceil(left[i] / fill[i]) for i in loops) for fill in found):
            found.add(_as_one(loops, turns, left))
    return _undominated(found)


def _as_one(loops: list[int], turns: int, left: list[int]) -> Units:
    """Loops that lie on an axis as one: the largest is cut, at a fraction of its iterations."""
    units = [1.0] * len(LOOPS)
    for loop in loops:
        units[loop] = float(left[loop])
    # A little more, so that what is left of the loop is not rounded up to one turn more.
    cut = max(loops, key=lambda loop: left[loop])
    units[cut] *= (1 + 1e-9) / turns
    return tuple(units)


def _even(size: int, limit: int) -> int:
    """The smallest size that needs no more parts than ``limit`` does."""
    return -(-size // -(-size // limit))


def _undominated(fills: set[Units]) -> list[Units]:
    ordered = sorted(fills, key=lambda fill: (-math.prod(fill), fill))
    kept: list[Units] = []
    for fill in ordered:
        if not any(all(a <= b for a, b in zip(fill, other, strict=True)) for other in kept):
            kept.append(fill)
    return kept


def _single(problem: Problem) -> set[Units]:
    """At most one loop on each axis, any loop, filled or not."""
    sizes = problem.layer.sizes
    options = []
    for axis in problem.axes:
        here = {(loop, units) for loop, size in enumerate(sizes)
                for units in balanced(size, axis.size)}  # fmt: skip
        here |= {(loop, _even(size, axis.size)) for loop, size in enumerate(sizes)}
        options.append(sorted(here))
    found: set[Units] = set()
    for choice in itertools.product(*options):
        units = [1.0] * len(LOOPS)
        for loop, count in choice:
            units[loop] *= count
        if all(unit <= size for unit, size in zip(units, sizes, strict=True)):
            found.add(tuple(units))
    return found
