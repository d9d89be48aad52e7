"""The outer half of a mapping: what the buffer holds, and what crosses DRAM.

Outside the buffer's tile the loops again run in three blocks, one for each set (see
``registers``). The last block of the inner half ends where the buffer's tile does, so it is chosen
here: growing it lets an operand stay in its registers longer and asks the buffer for more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.mapper.prices import Prices
from hwmodel.mapper.prices import inner_energy
from hwmodel.mapper.prices import returning
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import OPERANDS
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import POSITIONS
from hwmodel.mapper.problem import REDUCTION
from hwmodel.mapper.problem import SETS
from hwmodel.mapper.problem import WEIGHT
from hwmodel.mapper.problem import B
from hwmodel.mapper.problem import C
from hwmodel.mapper.problem import G
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.registers import ORDERS
from hwmodel.mapper.registers import Inner
from hwmodel.mapper.registers import values
from hwmodel.mapper.timing import Timing
from hwmodel.mapper.traffic import Moves
from hwmodel.mapper.traffic import inner_moves
from hwmodel.mapper.traffic import input_positions
from hwmodel.mapper.traffic import steps
from hwmodel.mapper.traffic import total_values
from hwmodel.mapper.windows import Array
from hwmodel.mapper.windows import parts


@dataclass(frozen=True)
class Outer:
    """The best outer half of one inner half.

    Attributes:
        energy, cycles: Of the mapping.
        row: Index of the inner half.
        order: Index in ``ORDERS``, of the blocks outside the buffer's tile.
        tile: Iterations of every loop inside the buffer's tile, last inner block included.
        blocks: The same with the first two outer blocks: what an operand that stays over a later
            block holds.
        near: Values (fetched, delivered) of every operand inside the buffer's tile, (operands, 2).
        far: Weights and inputs that cross DRAM into the buffer, and visits of sums to DRAM,
            (operands,). Both are of one group.
    """

    energy: float
    cycles: float
    row: int
    order: int
    tile: Array
    blocks: Array
    near: Array
    far: Array


NOTHING = Outer(np.inf, np.inf, 0, 0, np.empty(0), np.empty(0), np.empty(0), np.empty(0))
"""Nothing fits."""

FEW = 64
"""Tiles whose stalls are counted first."""


def tile_grid(problem: Problem, halves: Inner, block: int) -> Array:
    """Growing tiles of one set of loops, (candidates, tiles, loops), the rest 1.

    The first is what one step of the array covers and the last the whole layer; a loop grows when
    those before it in its set are whole.
    """
    step = np.minimum(halves.step, problem.layer.sizes)
    current = np.ones_like(step)
    loops = list(SETS[block])
    current[:, loops] = step[:, loops]
    tiles = [current]
    for loop in SETS[block]:
        size = problem.layer.sizes[loop]
        count = np.ceil(size / step[:, loop])
        for part in parts(int(count.max()))[1:]:
            grown = tiles[-1].copy()
            grown[:, loop] = np.minimum(step[:, loop] * np.ceil(count / part), size)
            tiles.append(grown)
    return np.stack(tiles, axis=1)


def complete(
    problem: Problem,
    price: Prices,
    halves: Inner,
    past: NDArray[np.int64],
    fixed: Array,
    timing: Timing,
    goal: float,
) -> list[Outer]:
    """The best mapping of each last block and outer order, for inner halves of one last block.

    Args:
        problem: The problem.
        price: Its prices.
        halves: Inner halves, all with the same last block.
        past: 1 where an operand goes past the buffer, (candidates, operands).
        fixed: Energy of multipliers and registers, (candidates,).
        timing: Cycles of computing and transfers.
        goal: What the best mapping so far has reached; worse ones are not looked for.
    """
    grids = [tile_grid(problem, halves, block) for block in range(len(SETS))]
    free = ORDERS[int(halves.order[0])][2]
    inner, moves = _inner(problem, price, halves, past, grids[free])
    return [
        _best(problem, price, halves, past, fixed[:, None] + inner, moves, grids, free, index,
              timing, goal)
        for index in range(len(ORDERS))
    ]  # fmt: skip


def _inner(
    problem: Problem, price: Prices, halves: Inner, past: NDArray[np.int64], grid: Array
) -> tuple[Array, list[Moves]]:
    """Energy and moves of the inner half for every length of its last block, (candidates, tiles).

    Energies are those of all groups.
    """
    count, tiles = grid.shape[:2]
    rows = np.repeat(np.arange(count), tiles)
    repeated = halves.take(rows)
    flat = grid.reshape(count * tiles, -1)
    sweep = np.maximum(repeated.step, flat)
    moves = inner_moves(problem, repeated, sweep)
    outputs = total_values(problem.layer)[OUTPUT]
    energy = inner_energy(problem, price, moves, past[rows], outputs) * problem.layer.sizes[G]
    shape = (count, tiles)
    return energy.reshape(shape), [
        Moves(move.fetched.reshape(shape), move.delivered.reshape(shape)) for move in moves
    ]


def _best(
    problem: Problem, price: Prices, halves: Inner, past: NDArray[np.int64], inner: Array,
    moves: list[Moves], grids: list[Array], free: int, order_index: int, timing: Timing,
    goal: float,
) -> Outer:  # fmt: skip
    """The best tiles of one outer order. Arrays are (candidates, first, second, last tile)."""
    order = ORDERS[order_index]
    layer, buffer = problem.layer, problem.buffer
    groups = layer.sizes[G]
    totals = total_values(layer)
    first, second, third = order
    counts = [steps(layer, block, grids[block]) for block in range(len(SETS))]
    sizes = [grid.shape[1] for grid in grids]
    rows = len(halves)

    def along(block: int, stage: int) -> tuple[Array, int]:
        """The tiles of a block that an operand holds, and their dimension.

        An operand holds the outer blocks inside its own whole, and of the others the inner tile.
        """
        inside = block in order[:stage]
        if inside:
            return grids[block], 1 + order.index(block)
        if block == free:
            return grids[block], 3 if block != first else 1
        return grids[block][:, :1], 0

    def shaped(array: Array, dimension: int) -> Array:
        shape = [rows, 1, 1, 1, *array.shape[2:]]
        if dimension:
            shape[dimension] = array.shape[1]
        return array.reshape(shape)

    # The axis of the last inner block is the first outer block's if they are the same set: one
    # that ends where the other does is never worse.
    held: dict[int, Array] = {}
    for stage, operand in enumerate(order):
        extent = np.ones((1, 1, 1, 1, len(layer.sizes)))
        for block in range(len(SETS)):
            if block != operand:
                extent = extent * shaped(*along(block, stage))
        held[operand] = extent

    side_by_side = (halves.axes * halves.lanes)[:, G]
    through = 1.0 - past
    bits = {}
    for operand, extent in held.items():
        mine = values(layer, operand, extent) * side_by_side[:, None, None, None]
        bits[operand] = mine * (through[:, operand, None, None, None] * buffer.bits[operand])
    feasible = np.ones((1, 1, 1, 1), dtype=bool)
    for operands, capacity in buffer.spaces:
        feasible = feasible & (sum(bits[operand] for operand in operands) <= capacity)
    if free == second:
        allowed = np.arange(sizes[second])[:, None] >= np.arange(sizes[free])[None, :]
        feasible = feasible & allowed[None, None]

    again = {
        first: shaped(counts[first], 1),
        second: shaped(counts[second], 2),
        third: np.ones((1, 1, 1, 1)),
    }
    crossing = _input_crossing(problem, held[INPUT], order, grids, shaped)
    weight = totals[WEIGHT] * again[WEIGHT]
    inputs = layer.sizes[B] * layer.sizes[C] * crossing * again[INPUT]
    visits = totals[OUTPUT] * again[OUTPUT]
    spilled = visits - totals[OUTPUT]
    refilled = returning(problem, visits, totals[OUTPUT])

    def cost(operand: int, amount: Array) -> Array:
        return amount * (through[:, operand] * groups)[:, None, None, None]

    last = 3 if free != first else 1
    energy = shaped(inner, last)
    energy = energy + cost(WEIGHT, weight * price.cross[WEIGHT])
    energy = energy + cost(INPUT, inputs * price.cross[INPUT])
    energy = energy + cost(OUTPUT, spilled * price.spill + refilled * price.refill)
    far = [weight, inputs, visits]
    compute = shaped(timing.compute[:, None], 0)
    shape = np.broadcast_shapes(energy.shape, feasible.shape)
    energy = np.where(feasible, energy + problem.energy_per_cycle * compute, np.inf)
    energy = np.broadcast_to(energy, shape).ravel()
    if not np.isfinite(energy.min()):
        return NOTHING

    def cycles_at(flat: NDArray[np.int64]) -> Array:
        """Cycles with stalls of some of the tiles."""
        at = np.unravel_index(flat, shape)
        near = [
            Moves(move.fetched[at[0], at[last]], move.delivered[at[0], at[last]]) for move in moves
        ]
        sizes_at = [np.broadcast_to(bits[operand], shape)[at] for operand in range(len(OPERANDS))]
        extents = [
            np.broadcast_to(extent, (*shape, extent.shape[-1]))[at]
            for extent in (held[operand] for operand in range(len(OPERANDS)))
        ]
        twice = _fits_twice(problem, side_by_side[at[0]], extents, sizes_at)
        crossing = [np.broadcast_to(amount, shape)[at] for amount in far]
        return timing.take(at[0]).latency(problem, near, crossing, past[at[0]], twice)

    best = _ranked(
        problem, energy, np.broadcast_to(compute, shape).ravel(), timing, cycles_at, goal
    )
    flat, least_energy, cycles = best
    if not np.isfinite(least_energy):
        return NOTHING
    at = tuple(int(index) for index in np.unravel_index(flat, shape))
    row, one, two = at[:3]
    tile = np.minimum(halves.step[row], layer.sizes)
    tile = np.maximum(tile, grids[free][row, at[last]])
    blocks = np.maximum(tile, np.maximum(grids[first][row, one], grids[second][row, two]))
    return Outer(
        energy=least_energy,
        cycles=cycles,
        row=row,
        order=order_index,
        tile=tile,
        blocks=blocks,
        near=np.array([[m.fetched[row, at[last]], m.delivered[row, at[last]]] for m in moves]),
        far=np.array([np.broadcast_to(amount, shape)[at] for amount in far]),
    )


def _input_crossing(
    problem: Problem,
    tile: Array,
    order: tuple[int, ...],
    grids: list[Array],
    shaped: Callable[[Array, int], Array],
) -> Array:
    """Input positions that cross DRAM, each filter counted once.

    The overlap of two tiles is fetched once if the next tile but for loops over filters, which
    change nothing, is the neighbour.
    """
    layer = problem.layer
    whole = np.array(layer.sizes, dtype=np.float64)
    outside = order[order.index(INPUT) + 1 :]
    loops = list(SETS[REDUCTION])
    sums = tile[..., loops]
    if not problem.rules.sliding:
        return input_positions(layer, tile, tile)
    if REDUCTION not in outside:
        return input_positions(layer, tile, np.maximum(tile, whole))
    alone = (sums >= whole[loops]).all(axis=-1, keepdims=True)
    sweep = np.where(alone, whole, tile)
    if outside == (POSITIONS, REDUCTION):
        sweep = np.maximum(sweep, shaped(grids[POSITIONS], 2))
    elif outside == (REDUCTION, POSITIONS):
        still = (shaped(grids[REDUCTION], 2)[..., loops] <= sums).all(axis=-1, keepdims=True)
        sweep = np.where(still, whole, sweep)
    return input_positions(layer, tile, sweep)


def _fits_twice(
    problem: Problem, side_by_side: Array, extents: list[Array], bits: list[Array]
) -> NDArray[np.bool_]:
    """Whether a second tile of everything that changes fits, so that transfers hide.

    Args:
        problem: The problem.
        side_by_side: Groups on the array, (tiles,).
        extents: What the buffer holds of every operand, (tiles, loops) each.
        bits: The same in bits, (tiles,).
    """
    layer = problem.layer
    sizes = np.array(layer.sizes, dtype=np.float64)
    more_groups = layer.sizes[G] > side_by_side
    needed = []
    for operand, extent in enumerate(extents):
        changes = values(layer, operand, extent) < values(layer, operand, sizes)
        needed.append(bits[operand] * np.where(changes | more_groups, 2.0, 1.0))
    fits = np.ones(len(side_by_side), dtype=bool)
    for operands, capacity in problem.buffer.spaces:
        fits &= sum((needed[operand] for operand in operands), np.zeros(1)) <= capacity
    return fits


def _ranked(
    problem: Problem,
    energy: Array,
    compute: Array,
    timing: Timing,
    cycles_at: Callable[[NDArray[np.int64]], Array],
    goal: float,
) -> tuple[int, float, float]:
    """The best tiles: their index, energy and cycles; infinite if none reaches the goal.

    Energy without that of stalls, and cycles without stalls, are lower bounds. Stalls are counted
    for the tiles of least bound, and then for all whose bound is below the best of those.
    """

    def keys(some: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
        cycles = cycles_at(some) if timing.matters else compute[some]
        total = energy[some] + problem.energy_per_cycle * (cycles - compute[some])
        return (*key_of(problem, total, cycles), total, cycles)

    bound, tie = key_of(problem, energy, compute)
    some = np.flatnonzero(bound <= goal)
    if len(some) > FEW:
        # Best first: cycles are equal bounds for many tiles, so energy decides among them.
        first = some[np.lexsort((tie[some], bound[some]))[:FEW]]
        reached, beside = keys(first)[:2]
        least = reached.min()
        second = beside[reached <= least].min()
        ahead = (bound[some] < least) | ((bound[some] <= least) & (tie[some] <= second))
        some = some[ahead]
    if not len(some):
        return 0, np.inf, np.inf
    primary, tie, total, cycles = keys(some)
    equal = np.flatnonzero(primary <= primary.min() * (1 + 1e-12))
    best = int(equal[np.argmin(tie[equal])])
    return int(some[best]), float(total[best]), float(cycles[best])


def key_of(problem: Problem, energy: Array, cycles: Array) -> tuple[Array, Array]:
    """What is to be least, and what decides among equals."""
    if problem.objective == "latency":
        return cycles, energy
    if problem.objective == "edp":
        return energy * cycles, energy
    return energy, cycles
