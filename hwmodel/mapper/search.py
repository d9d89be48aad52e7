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
from hwmodel.mapper.prices import inner_energy
from hwmodel.mapper.prices import prices
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import OPERANDS
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import WEIGHT
from hwmodel.mapper.problem import G
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.registers import Inner
from hwmodel.mapper.registers import inner_halves
from hwmodel.mapper.timing import Timing
from hwmodel.mapper.timing import busy
from hwmodel.mapper.timing import transfers
from hwmodel.mapper.traffic import LAST
from hwmodel.mapper.traffic import compute_cycles
from hwmodel.mapper.traffic import inner_moves
from hwmodel.mapper.traffic import register_energy
from hwmodel.mapper.traffic import total_values
from hwmodel.mapper.windows import Array

FIRST_CHUNK, NEXT_CHUNKS = 16, 64
"""Inner halves completed at once: few at first, to find a bound."""


@dataclass(frozen=True)
class Found:
    """The best mapping.

    Attributes:
        inner: Its inner half, one candidate.
        past: 1 where an operand goes past the buffer, (1, operands).
        outer: Its outer half.
    """

    inner: Inner
    past: NDArray[np.int64]
    outer: Outer


def search(problem: Problem) -> Found:
    """The best mapping of a layer.

    Raises:
        InputError: nothing fits the memories.
    """
    halves = inner_halves(problem)
    if not len(halves):
        raise InputError("accelerator.memories", "register_file", "hold one value of each operand")
    routes = _routes(problem)
    price = prices(problem)
    fixed = problem.mac + register_energy(problem, halves)
    timing = Timing(compute_cycles(problem, halves), _timed(problem))
    energy, cycles = _bounds(problem, halves, routes, fixed, timing)
    bound, tie = key_of(problem, energy, cycles)
    order = np.lexsort((tie.ravel(), bound.ravel()))

    best: Found | None = None
    goal, second = np.inf, np.inf
    start, size = 0, FIRST_CHUNK
    while start < len(order):
        chunk = order[start : start + size]
        ahead = (bound.flat[chunk] < goal) | (
            (bound.flat[chunk] <= goal) & (tie.flat[chunk] < second)
        )
        if not ahead.any():
            break
        chunk = chunk[ahead]
        start, size = start + size, NEXT_CHUNKS
        row, route = np.unravel_index(chunk, bound.shape)
        for last in range(len(OPERANDS)):
            mine = np.flatnonzero(LAST[halves.order[row]] == last)
            if not len(mine):
                continue
            some, past = halves.take(row[mine]), routes[route[mine]]
            found = complete(
                problem, price, some, past, fixed[row[mine]], timing.take(row[mine]), goal
            )
            for outer in found:
                key = _scalar_key(problem, outer)
                if key < (goal * (1 - 1e-12), 0.0) or (key[0] <= goal and key[1] < second):
                    goal, second = key
                    at = np.array([outer.row])
                    best = Found(some.take(at), past[at], outer)
    if best is None:
        raise InputError("accelerator.memories", "buffer", "hold one value of each operand")
    return best


def _routes(problem: Problem) -> NDArray[np.int64]:
    """Which operands go past the buffer, all combinations that the array allows."""
    options: list[tuple[int, ...]] = []
    for operand in range(len(OPERANDS)):
        if not problem.buffer.holds(operand):
            options.append((1,))
        else:
            options.append((0, 1) if problem.rules.bypass else (0,))
    return np.array(list(itertools.product(*options)), dtype=np.int64)


def _timed(problem: Problem) -> bool:
    return bool(problem.dram.ports or problem.buffer.ports or problem.energy_per_cycle)


def _bounds(
    problem: Problem, halves: Inner, routes: NDArray[np.int64], fixed: Array, timing: Timing
) -> tuple[Array, Array]:
    """Least energy and cycles of every inner half and route, (candidates, routes)."""
    price = prices(problem)
    layer = problem.layer
    totals = total_values(layer)
    moves = inner_moves(problem, halves)
    crossing = (totals[WEIGHT] * price.cross[WEIGHT], totals[INPUT] * price.cross[INPUT], 0.0)
    energies, cycles = [], []
    for route in routes:
        past = np.broadcast_to(route, (len(halves), len(OPERANDS)))
        energy = inner_energy(problem, price, moves, past, totals[OUTPUT])
        energy = energy + sum(crossing[operand] * (1 - route[operand]) for operand in range(3))
        energies.append(fixed + energy * layer.sizes[G])
        busiest = timing.compute
        if timing.matters:
            far = [np.full(len(halves), total) for total in totals]
            dram, buffer = transfers(problem, moves, far, past)
            outside = np.maximum(busy(problem.dram, *dram), busy(problem.buffer, *buffer))
            busiest = np.maximum(busiest, outside)
        cycles.append(busiest)
        energies[-1] = energies[-1] + problem.energy_per_cycle * busiest
    return np.stack(energies, axis=1), np.stack(cycles, axis=1)


def _scalar_key(problem: Problem, outer: Outer) -> tuple[float, float]:
    primary, tie = key_of(problem, np.array(outer.energy), np.array(outer.cycles))
    return float(primary), float(tie)
