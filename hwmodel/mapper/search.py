"""The search: inner halves by their least possible cost, and for each the best buffer tiles.

The energy of a mapping is that of its inner half plus that of what crosses DRAM, and the buffer's
tiles bound the inner half only through its last block. So every inner half has a lower bound: its
own energy with an endless last block, and every operand crossing DRAM once. Halves are completed
in the order of these bounds until the next one is above the best mapping found.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.mapper.buffers import Outer
from hwmodel.mapper.buffers import complete
from hwmodel.mapper.buffers import key_of
from hwmodel.mapper.prices import Prices
from hwmodel.mapper.prices import inner_energy
from hwmodel.mapper.prices import prices
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import OPERANDS
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import WEIGHT
from hwmodel.mapper.problem import G
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import Waiting
from hwmodel.mapper.registers import ONE
from hwmodel.mapper.registers import Inner
from hwmodel.mapper.registers import inner_halves
from hwmodel.mapper.timing import Timing
from hwmodel.mapper.timing import busy
from hwmodel.mapper.timing import transfers
from hwmodel.mapper.traffic import Moves
from hwmodel.mapper.traffic import compute_cycles
from hwmodel.mapper.traffic import inner_moves
from hwmodel.mapper.traffic import loads
from hwmodel.mapper.traffic import paced_cycles
from hwmodel.mapper.traffic import register_energy
from hwmodel.mapper.traffic import total_values
from hwmodel.mapper.unroll import unrollings
from hwmodel.mapper.windows import Array

FIRST_CHUNK, NEXT_CHUNKS = 32, 96
"""Inner halves completed at once: few at first, to find a bound."""

MOST_COMPLETED = 2048
"""Inner halves completed at most. Where loose bounds would let more through (layers far larger than
the buffer), the best was among the first few hundred in all that we let run to the end."""

MOST_UNROLLINGS = 64
"""Unrollings that are searched with all register tiles; of more the best are picked first."""

SAMPLE = 16
"""They are picked with every so many-th register tile."""


@dataclass(frozen=True)
class Found:
    """The best mapping.

    Attributes:
        inner: Its inner half, one candidate.
        past: 1 where an operand goes past the buffer, by operand.
        outer: Its outer half.
    """

    inner: Inner
    past: tuple[int, ...]
    outer: Outer


@dataclass(frozen=True)
class _Bounded:
    """Inner halves of one order that may be best, and their lower bounds.

    Attributes:
        inner: The halves.
        half: Index of each candidate's half, (candidates,).
        past: 1 where an operand goes past the buffer, by operand, (candidates,) each.
        fixed: Energy of multipliers and registers, (candidates,).
        timing: Their cycles.
        bound, tie: Least value of what is minimized, and of what decides among equals.
    """

    inner: Inner
    half: NDArray[np.int64]
    past: list[NDArray[np.int64]]
    fixed: Array
    timing: Timing
    bound: Array
    tie: Array


def search(problem: Problem) -> Found:
    """The best mapping of a layer.

    Raises:
        InputError: nothing fits the memories.
    """
    price = prices(problem)
    bounded = [
        _bounded(problem, price, inner, fits)
        for inner, fits in inner_halves(problem, *_promising(problem, price))
        if fits.any()
    ]
    if not bounded:
        raise InputError("accelerator.memories", "register_file", "hold one value of each operand")
    family = np.concatenate([np.full(len(one.bound), i) for i, one in enumerate(bounded)])
    member = np.concatenate([np.arange(len(one.bound)) for one in bounded])
    bound = np.concatenate([one.bound for one in bounded])
    tie = np.concatenate([one.tie for one in bounded])
    order = np.lexsort((tie, bound))

    best: Found | None = None
    goal, second = np.inf, np.inf
    start, size = 0, FIRST_CHUNK
    while start < min(len(order), MOST_COMPLETED):
        chunk = order[start : start + size]
        start, size = start + size, NEXT_CHUNKS
        chunk = chunk[(bound[chunk] < goal) | ((bound[chunk] <= goal) & (tie[chunk] < second))]
        if not len(chunk):
            break
        for index in np.unique(family[chunk]):
            mine = member[chunk[family[chunk] == index]]
            one = bounded[int(index)]
            rows = _distinct(one, mine)
            some, past = one.inner.take(one.half[rows]), [route[rows] for route in one.past]
            timing = one.timing.take(rows)
            for outer in complete(problem, price, some, past, one.fixed[rows], timing, goal):
                energy, cycles = np.array(outer.energy), np.array(outer.cycles)
                primary, beside = (float(key) for key in key_of(problem.objective, energy, cycles))
                if primary < goal * (1 - 1e-12) or (primary <= goal and beside < second):
                    goal, second = primary, beside
                    row = np.array([outer.row])
                    best = Found(some.take(row), tuple(int(r[outer.row]) for r in past), outer)
    if best is None:
        raise InputError("accelerator.memories", "buffer", "hold one value of each operand")
    return best


def _distinct(one: _Bounded, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows without repetitions: clipped register tiles are often equal."""
    some = one.inner.take(one.half[rows])
    parts = [*some.axes, *some.lanes, *some.tile, *some.base]
    keys = np.stack([*parts, *(route[rows] for route in one.past)])
    _, first = np.unique(keys, axis=1, return_index=True)
    return rows[np.sort(first)]


def _bounded(problem: Problem, price: Prices, inner: Inner, fits: NDArray[np.bool_]) -> _Bounded:
    """Lower bounds of all routes of all inner halves."""
    fixed = _fixed_energy(problem, inner)
    moves = inner_moves(problem, inner)
    timing = _timing(problem, inner, moves)
    bound, tie = _bounds(problem, price, inner, fixed, moves, timing)
    bound = np.where(fits, bound, np.inf).reshape(len(bound), -1)
    kept = np.flatnonzero(np.isfinite(bound))
    which, half = np.unravel_index(kept, bound.shape)
    routes = np.array(_routes(problem))
    return _Bounded(
        inner,
        half,
        [routes[which, operand] for operand in range(len(OPERANDS))],
        np.broadcast_to(fixed, inner.shape).ravel()[half],
        timing.take(half),
        bound.ravel()[kept],
        tie.ravel()[kept],
    )


def _fixed_energy(problem: Problem, inner: Inner) -> Array:
    """Energy that no buffer tile changes."""
    beside, buffer = problem.beside, problem.buffer
    energy = beside.dram_reads * problem.dram.read[INPUT] + beside.vector_energy
    energy += beside.buffer_reads * buffer.read[INPUT] + beside.buffer_writes * buffer.write[INPUT]
    return problem.mac + energy + register_energy(problem, inner)


def _timing(problem: Problem, inner: Inner, moves: list[Moves]) -> Timing:
    """Cycles of all candidates, in one dimension."""
    compute, once = compute_cycles(problem, inner), loads(problem, inner)
    least = paced_cycles(problem, compute, once, moves)
    matters = bool(
        problem.dram.ports
        or problem.buffer.ports
        or problem.energy_per_cycle
        or problem.startup_cycles
        or problem.beside.vector_cycles
        or problem.waiting != Waiting()
    )
    columns = [np.broadcast_to(each, inner.shape).ravel() for each in (compute, once, least)]
    return Timing(columns[0], columns[1], columns[2], matters)


def _bounds(
    problem: Problem,
    price: Prices,
    inner: Inner,
    fixed: Array,
    moves: list[Moves],
    timing: Timing,
) -> tuple[Array, Array]:
    """Least value of what is minimized, and of what decides among equals, (routes, ...)."""
    layer = problem.layer
    totals = total_values(layer)
    crossing = (totals[WEIGHT] * price.cross[WEIGHT], totals[INPUT] * price.cross[INPUT], 0.0)
    bounds, ties = [], []
    for route in _routes(problem):
        energy = inner_energy(problem, price, moves, route, totals[OUTPUT])
        energy = energy + sum(crossing[operand] * (1 - route[operand]) for operand in range(3))
        energy = fixed + energy * layer.sizes[G]
        cycles = timing.least.reshape(inner.shape)
        if problem.dram.ports or problem.buffer.ports:
            far = [ONE * total for total in totals]
            dram, buffer = transfers(problem, moves, far, route)
            outside = np.maximum(busy(problem.dram, *dram), busy(problem.buffer, *buffer))
            cycles = np.maximum(cycles, outside)
        bound, tie = key_of(problem.objective, energy + problem.energy_per_cycle * cycles, cycles)
        if route[INPUT] and problem.buffer.holds(INPUT):
            bound = np.where(moves[INPUT].again, np.inf, bound)
        bounds.append(np.broadcast_to(bound, inner.shape))
        ties.append(np.broadcast_to(tie, inner.shape))
    return np.stack(bounds), np.stack(ties)


def _promising(problem: Problem, price: Prices) -> tuple[Array, Array]:
    """Unrollings; of too many, those whose bounds are least for some of the register tiles."""
    axes, lanes = unrollings(problem)
    if len(axes) <= MOST_UNROLLINGS:
        return axes, lanes
    least = np.full((2, len(axes)), np.inf)
    for inner, fits in inner_halves(problem, axes, lanes, every=SAMPLE):
        moves = inner_moves(problem, inner)
        timing = _timing(problem, inner, moves)
        keys = _bounds(problem, price, inner, _fixed_energy(problem, inner), moves, timing)
        for index, key in enumerate(keys):
            here = np.where(fits, key, np.inf).min(axis=(0, 2), initial=np.inf)
            least[index] = np.minimum(least[index], here)
    best = np.sort(np.lexsort(least[::-1])[:MOST_UNROLLINGS])
    return axes[best], lanes[best]


def _routes(problem: Problem) -> list[tuple[int, ...]]:
    """Which operands go past the buffer, all combinations that the array allows."""
    options: list[tuple[int, ...]] = []
    for operand in range(len(OPERANDS)):
        waits = problem.waiting.whole_input_first and operand != OUTPUT
        if not problem.buffer.holds(operand):
            options.append((1,))
        elif waits or problem.resident[operand] or not problem.rules.bypass:
            options.append((0,))
        else:
            options.append((0, 1))
    return list(itertools.product(*options))
