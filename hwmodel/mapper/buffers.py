"""The outer half of a mapping: what the buffer holds, and what crosses DRAM.

Outside the buffer's tile the loops again run in three blocks, one for each set (see
``registers``). The last block of the inner half ends where the buffer's tile does, so it is chosen
here: growing it lets an operand stay in its registers longer and asks the buffer for more.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.mapper.prices import Prices
from hwmodel.mapper.prices import inner_energy
from hwmodel.mapper.prices import returning
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import LOOPS
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
from hwmodel.mapper.registers import ONE
from hwmodel.mapper.registers import ORDERS
from hwmodel.mapper.registers import Extent
from hwmodel.mapper.registers import Inner
from hwmodel.mapper.registers import Order
from hwmodel.mapper.registers import values
from hwmodel.mapper.timing import Timing
from hwmodel.mapper.traffic import Moves
from hwmodel.mapper.traffic import inner_moves
from hwmodel.mapper.traffic import input_positions
from hwmodel.mapper.traffic import steps
from hwmodel.mapper.traffic import total_values
from hwmodel.mapper.traffic import whole
from hwmodel.mapper.windows import Array
from hwmodel.mapper.windows import parts

FEW = 64
"""Tiles whose stalls are counted first."""


@dataclass(frozen=True)
class Outer:
    """The best outer half for some inner halves.

    Attributes:
        energy, cycles: Of the mapping.
        row: Index of the inner half.
        order: Of the blocks outside the buffer's tile.
        tile: Iterations of every loop inside the buffer's tile, last inner block included.
        blocks: The same with the first two outer blocks: what an operand that stays over a later
            block holds.
        near: What moves inside the buffer's tile, arrays of one candidate.
        far: Weights and inputs that cross DRAM into the buffer, and visits of sums to DRAM,
            (operands,), of one group.
    """

    energy: float
    cycles: float
    row: int
    order: Order
    tile: Array
    blocks: Array
    near: list[Moves]
    far: Array


@dataclass(frozen=True)
class _Tiles:
    """Growing buffer tiles of every set, and what the inner half costs inside them.

    Attributes:
        grids: Iterations of every loop; those of each set are (candidates, tiles). The first tile
            is what one step of the array covers and the last is the whole layer.
        energy: Of all but what crosses DRAM into the buffer, (candidates, tiles of the last block).
        moves: Values moved inside, of the same shape.
    """

    grids: Extent
    energy: Array
    moves: list[Moves]


def complete(
    problem: Problem,
    price: Prices,
    inner: Inner,
    past: Sequence[NDArray[np.int64]],
    fixed: Array,
    timing: Timing,
    goal: float,
) -> list[Outer]:
    """The best mapping of each outer order.

    Args:
        problem: The problem.
        price: Its prices.
        inner: Inner halves, (candidates,).
        past: 1 where an operand goes past the buffer, (candidates,) for each operand.
        fixed: Energy of multipliers and registers, (candidates,).
        timing: Cycles of computing and transfers.
        goal: What the best mapping so far has reached; worse ones are not looked for.
    """
    tiles = _tiles(problem, price, inner, past, fixed)
    found = []
    for order in ORDERS:
        best = _Choice(problem, inner, tiles, order).best(price, past, timing, goal)
        if best is not None:
            found.append(best)
    return found


def key_of(objective: str, energy: Array, cycles: Array) -> tuple[Array, Array]:
    """What is to be least, and what decides among equals."""
    if objective == "latency":
        return cycles, energy
    if objective == "edp":
        return energy * cycles, energy
    return energy, cycles


def _tiles(
    problem: Problem, price: Prices, inner: Inner, past: Sequence[NDArray[np.int64]], fixed: Array
) -> _Tiles:
    step = [np.minimum(a, size) for a, size in zip(inner.step, problem.layer.sizes, strict=True)]
    grids: list[Array] = [ONE] * len(LOOPS)
    for loops in SETS:
        for loop, grid in zip(loops, _grid(problem, step, loops), strict=True):
            grids[loop] = grid
    sweep = [array[:, None] for array in step]
    for loop in SETS[inner.order[2]]:
        sweep[loop] = grids[loop]
    rows = inner.take(np.arange(inner.shape[0]))
    columns = Inner(
        inner.order,
        *([a[:, None] for a in extent] for extent in (rows.axes, rows.lanes, rows.tile, rows.base)),
    )
    moves = inner_moves(problem, columns, sweep)
    outputs = total_values(problem.layer)[OUTPUT]
    routes = [route[:, None] for route in past]
    energy = inner_energy(problem, price, moves, routes, outputs) * problem.layer.sizes[G]
    shape = np.broadcast_shapes(energy.shape, sweep[SETS[inner.order[2]][0]].shape)
    moves = [
        Moves(
            np.broadcast_to(move.fetched, shape),
            np.broadcast_to(move.delivered, shape),
            np.broadcast_to(move.again, shape),
        )
        for move in moves
    ]
    return _Tiles(grids, np.broadcast_to(fixed[:, None] + energy, shape), moves)


def _grid(problem: Problem, step: Extent, loops: tuple[int, ...]) -> list[Array]:
    """Growing tiles of one set of loops, (candidates, tiles) each.

    A loop grows when those before it in its set are whole.
    """
    columns: list[list[Array]] = [[step[loop]] for loop in loops]
    for index, loop in enumerate(loops):
        size = problem.layer.sizes[loop]
        if size == 1:
            continue
        count = np.ceil(size / step[loop])
        for part in parts(int(count.max()))[1:]:
            for other, column in enumerate(columns):
                column.append(column[-1])
                if other == index:
                    column[-1] = np.minimum(step[loop] * np.ceil(count / part), size)
    return [np.stack(column, axis=1) for column in columns]


class _Choice:
    """All tiles of one outer order: arrays are (candidates, first, second, last inner block).

    If the last inner block and the first outer one are the same set, one ends where the other
    does (nothing is gained otherwise), and the fourth dimension is 1.
    """

    def __init__(self, problem: Problem, inner: Inner, tiles: _Tiles, order: Order) -> None:
        self.problem = problem
        self.inner = inner
        self.tiles = tiles
        self.order = order
        self.free = inner.order[2]
        self.last = 1 if self.free == order[0] else 3
        self.side_by_side = self._shaped(inner.side_by_side[G][:, None], 0)
        self.counts = [
            np.broadcast_to(
                steps(problem.layer, block, tiles.grids), tiles.grids[SETS[block][0]].shape
            )
            for block in range(len(SETS))
        ]
        self.alone = [count[:, 0] == 1 for count in self.counts]
        self.held = [self._held(operand) for operand in range(len(OPERANDS))]
        layer = problem.layer
        self.values = [
            values(layer, operand, self.held[operand]) * self.side_by_side
            for operand in range(len(OPERANDS))
        ]

    def _spread(self, table: NDArray[Any]) -> NDArray[Any]:
        """What depends on how long the operand of the last inner block stays, for all tiles.

        It stays beyond the buffer's tile where nothing but loops of its own set is between: where
        the outer blocks inside its own are empty; and to the end if no other loops are left.

        Args:
            table: (candidates, tiles of the last inner block).
        """
        first, second, third = self.order
        if self.free == first:
            alone = self.alone[second] & self.alone[third]
            return self._shaped(np.where(alone[:, None], table[:, -1:], table), 1)
        sizes = [self.counts[block].shape[1] for block in (first, second, self.free)]
        full = np.broadcast_to(self._shaped(table, 3), (len(table), *sizes)).copy()
        if self.free == second:
            merged = np.where(self.alone[third][:, None], table[:, -1:], table)
            full[:, 0] = merged[:, :, None]
        else:
            full[:, 0, 0] = table[:, -1:]
        return full

    def _columns(self, at: tuple[NDArray[np.int64], ...]) -> NDArray[np.int64]:
        """Where ``_spread`` looks, for some of the tiles."""
        first, second, third = self.order
        row, end = at[0], self.counts[self.free].shape[1] - 1
        if self.free == first:
            return np.where((self.alone[second] & self.alone[third])[row], end, at[1])
        if self.free == second:
            merged = np.where(self.alone[third][row], end, at[2])
            return np.where(at[1] == 0, merged, at[3])
        return np.where((at[1] == 0) & (at[2] == 0), end, at[3])

    def best(
        self, price: Prices, past: Sequence[NDArray[np.int64]], timing: Timing, goal: float
    ) -> Outer | None:
        """The best tiles; None if none reaches the goal."""
        problem = self.problem
        far = self._crossing()
        feasible = self._feasible(past) & self._streams(past)
        compute = self._shaped(timing.least[:, None], 0)
        energy = self._energy(price, past, far) + problem.energy_per_cycle * compute
        shape = np.broadcast_shapes(energy.shape, feasible.shape)
        energy = np.where(feasible, energy, np.inf).ravel()

        def cycles_at(flat: NDArray[np.int64]) -> Array:
            """Cycles with stalls of some of the tiles."""
            at = np.unravel_index(flat, shape)
            inside = (at[0], self._columns(at))
            near = [move.take(inside) for move in self.tiles.moves]
            crossing = [np.broadcast_to(amount, shape)[at] for amount in far]
            routes = [np.broadcast_to(route, shape[:1])[at[0]] for route in past]
            twice = self._fits_twice(shape, at, routes)
            return timing.take(at[0]).latency(problem, near, crossing, routes, twice)

        flat, least, cycles = _ranked(
            problem, energy, np.broadcast_to(compute, shape).ravel(), timing, cycles_at, goal
        )
        if not np.isfinite(least):
            return None
        at = tuple(int(index) for index in np.unravel_index(flat, shape))
        index = tuple(np.array([value]) for value in at)
        inside = (index[0], self._columns(index))
        near = [move.take(inside) for move in self.tiles.moves]
        crossing = [np.broadcast_to(amount, shape)[at] for amount in far]
        return self._outer(at, least, cycles, near, np.array(crossing))

    def _outer(
        self, at: tuple[int, ...], energy: float, cycles: float, near: list[Moves], far: Array
    ) -> Outer:
        row, one, two = at[:3]
        sizes = np.array(self.problem.layer.sizes, dtype=np.float64)
        tile = np.minimum(np.array([extent[row] for extent in self.inner.step]), sizes)
        for loop in SETS[self.free]:
            tile[loop] = self.tiles.grids[loop][row, at[self.last]]
        blocks = tile.copy()
        for block, column in zip(self.order, (one, two), strict=False):
            for loop in SETS[block]:
                blocks[loop] = max(blocks[loop], self.tiles.grids[loop][row, column])
        return Outer(
            energy=energy,
            cycles=cycles,
            row=row,
            order=self.order,
            tile=tile,
            blocks=blocks,
            near=near,
            far=far,
        )

    def _shaped(self, array: NDArray[Any], dimension: int) -> NDArray[Any]:
        """Candidates first, tiles along a dimension (0 if there is one)."""
        shape = [array.shape[0], 1, 1, 1]
        if dimension:
            shape[dimension] = array.shape[1]
        return array.reshape(shape)

    def _held(self, operand: int) -> Extent:
        """What the buffer holds of an operand.

        The outer blocks inside the operand's own are whole, the others at the inner tile.
        """
        inside = self.order[: self.order.index(operand)]
        extent: list[Array] = [ONE] * len(LOOPS)
        for block, loops in enumerate(SETS):
            for loop in loops:
                grid = self.tiles.grids[loop]
                if block in inside:
                    extent[loop] = self._shaped(grid, 1 + self.order.index(block))
                elif block == self.free:
                    extent[loop] = self._shaped(grid, self.last)
                else:
                    extent[loop] = self._shaped(grid[:, :1], 0)
        return extent

    def _feasible(self, past: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        buffer = self.problem.buffer
        feasible = np.ones((1, 1, 1, 1), dtype=bool)
        for operands, capacity in buffer.spaces:
            bits = ONE * 0
            for operand in operands:
                through = self._shaped(1 - past[operand][:, None], 0)
                through = through * (not self.problem.resident[operand])
                bits = bits + self.values[operand] * (through * buffer.bits[operand])
            feasible = feasible & (bits <= capacity)
        if self.free == self.order[1]:
            count = self.tiles.grids[SETS[self.free][0]].shape[1]
            inside = np.arange(count)[:, None] >= np.arange(count)[None, :]
            feasible = feasible & inside[None, None]
        return feasible

    def _streams(self, past: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        """Whether inputs that go past the buffer cross DRAM once.

        To read the rows that two tiles share once more costs DRAM little more energy than a buffer
        costs, but words that the buffer is there to save.
        """
        if not (past[INPUT].any() and self.problem.buffer.holds(INPUT)):
            return np.ones((1, 1, 1, 1), dtype=bool)
        again = self._spread(self.tiles.moves[INPUT].again)
        through = self._shaped(past[INPUT][:, None] == 0, 0)
        return through | ~again

    def _crossing(self) -> list[Array]:
        """Weights and inputs that cross DRAM into the buffer, visits of partial sums to DRAM."""
        layer = self.problem.layer
        totals = total_values(layer)
        again = [np.ones((1, 1, 1, 1))] * len(SETS)
        for dimension, block in enumerate(self.order[:2]):
            again[block] = self._shaped(self.counts[block], 1 + dimension)
        inputs = layer.sizes[B] * layer.sizes[C] * self._input_positions()
        return [
            totals[WEIGHT] * again[WEIGHT],
            inputs * again[INPUT],
            totals[OUTPUT] * again[OUTPUT],
        ]

    def _input_positions(self) -> Array:
        """Input positions that cross DRAM, each filter counted once.

        The overlap of two tiles is fetched once if the next tile but for loops over filters, which
        change nothing, is the neighbour.
        """
        layer = self.problem.layer
        tile, everything = self.held[INPUT], whole(layer)
        outside = self.order[self.order.index(INPUT) + 1 :]
        if not self.problem.rules.sliding:
            return input_positions(layer, tile, tile)
        if REDUCTION not in outside:
            return input_positions(layer, tile, everything)
        alone = steps(layer, REDUCTION, tile) == 1
        slide = {loop: np.where(alone, everything[loop], tile[loop]) for loop in SETS[POSITIONS]}
        if outside == (POSITIONS, REDUCTION):
            for loop in slide:
                slide[loop] = np.maximum(slide[loop], self._shaped(self.tiles.grids[loop], 2))
        elif outside == (REDUCTION, POSITIONS):
            grid = self._shaped(self.counts[REDUCTION], 2)
            still = grid == steps(layer, REDUCTION, tile)
            for loop in slide:
                slide[loop] = np.where(still, everything[loop], slide[loop])
        sweep = [slide.get(loop, extent) for loop, extent in enumerate(tile)]
        return input_positions(layer, tile, sweep)

    def _energy(self, price: Prices, past: Sequence[NDArray[np.int64]], far: list[Array]) -> Array:
        outputs = total_values(self.problem.layer)[OUTPUT]
        through = [
            self._shaped(1 - route[:, None], 0) * self.problem.layer.sizes[G] for route in past
        ]
        spilled = far[OUTPUT] - outputs
        refilled = returning(self.problem, far[OUTPUT], far[OUTPUT] > outputs, outputs)
        energy = self._spread(self.tiles.energy)
        energy = energy + far[WEIGHT] * (price.cross[WEIGHT] * through[WEIGHT])
        energy = energy + far[INPUT] * (price.cross[INPUT] * through[INPUT])
        sums = spilled * price.spill + refilled * price.refill
        return energy + sums * through[OUTPUT]

    def _fits_twice(
        self,
        shape: tuple[int, ...],
        at: tuple[NDArray[np.int64], ...],
        past: Sequence[NDArray[np.int64]],
    ) -> NDArray[np.bool_]:
        """Whether a second tile of everything that changes fits, so that transfers hide."""
        problem = self.problem
        side_by_side = np.broadcast_to(self.side_by_side, shape)[at]
        needed = []
        for operand in range(len(OPERANDS)):
            mine = np.broadcast_to(self.values[operand], shape)[at]
            everything = values(problem.layer, operand, whole(problem.layer))
            changes = mine < everything * problem.layer.sizes[G]
            changes |= side_by_side < problem.layer.sizes[G]
            bits = mine * (1 - past[operand]) * problem.buffer.bits[operand]
            bits = bits * (not problem.resident[operand])
            needed.append(bits * np.where(changes, 2.0, 1.0))
        fits = np.ones(len(side_by_side), dtype=bool)
        for operands, capacity in problem.buffer.spaces:
            fits &= sum(needed[operand] for operand in operands) <= capacity
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
        return (*key_of(problem.objective, total, cycles), total, cycles)

    bound, tie = key_of(problem.objective, energy, compute)
    some = np.flatnonzero((bound <= goal) & np.isfinite(energy))
    if len(some) > FEW:
        # Best first: cycles are equal bounds for many tiles, so energy decides among them.
        first = some[np.lexsort((tie[some], bound[some]))[:FEW]]
        reached, beside = keys(first)[:2]
        least = reached.min()
        second = beside[reached <= least].min()
        some = some[(bound[some] < least) | ((bound[some] <= least) & (tie[some] <= second))]
    if not len(some):
        return 0, np.inf, np.inf
    primary, tie, total, cycles = keys(some)
    equal = np.flatnonzero(primary <= primary.min() * (1 + 1e-12))
    best = int(equal[np.argmin(tie[equal])])
    return int(some[best]), float(total[best]), float(cycles[best])
