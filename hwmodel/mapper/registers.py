"""The inner half of a mapping: unrolling and register tiles.

Inside the buffer's tile the loops run, from the innermost outwards, in three blocks: all loops of
one set of ``SETS``, then of another, then of the last. An operand stays in its registers while the
block that does not concern it runs, and holds what the blocks inside that one touch. More blocks
would save nothing: only the loops right outside an operand's tile let it stay, and the sets do not
overlap. The last block is bounded by the buffer's tile alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.mapper.problem import FILTERS
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import POSITIONS
from hwmodel.mapper.problem import SETS
from hwmodel.mapper.problem import B
from hwmodel.mapper.problem import C
from hwmodel.mapper.problem import K
from hwmodel.mapper.problem import Layer
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import R
from hwmodel.mapper.problem import S
from hwmodel.mapper.problem import X
from hwmodel.mapper.problem import Y
from hwmodel.mapper.unroll import unrollings
from hwmodel.mapper.windows import Array
from hwmodel.mapper.windows import balanced
from hwmodel.mapper.windows import window

ORDERS = tuple(itertools.permutations(range(len(SETS))))
"""Orders of the three blocks, from the innermost outwards. Operand i stays while block i runs."""

MOST_SIZES = 16
"""Sizes of a register tile that are tried for one loop, evenly spread if there are more."""

CHAINS: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((X, Y, B), (Y, X, B)),
    ((K,),),
    ((S, R, C), (C, S, R), (S, C, R)),
)
"""For every set, the orders in which a register tile takes its loops: the next one grows only when
those before are whole."""


@dataclass(frozen=True)
class Inner:
    """Inner halves of mappings, arrays over candidates.

    Attributes:
        axes, lanes: Iterations of every loop on the axes and on an element's lanes,
            (candidates, loops).
        tile: Iterations one after the other in an element, last block left out.
        base: Those of them inside all blocks, for which a register that stays is read once.
        order: Index in ``ORDERS``.
    """

    axes: Array
    lanes: Array
    tile: Array
    base: Array
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    def take(self, index: NDArray[np.int64]) -> Inner:
        """Some of the candidates."""
        return Inner(
            self.axes[index],
            self.lanes[index],
            self.tile[index],
            self.base[index],
            self.order[index],
        )

    @property
    def step(self) -> Array:
        """Iterations inside the last block: those of axes, lanes and register tiles."""
        return self.axes * self.lanes * self.tile

    def held(self, operand: int, order: tuple[int, ...]) -> Array:
        """Iterations of every loop whose values of an operand one element holds."""
        return self.lanes * inside(order, operand, self.tile, self.base)


def inside(order: tuple[int, ...], operand: int, tile: Array, base: Array) -> Array:
    """The loops inside an operand's tile: whole blocks inside its own, the base of the others."""
    extent = base.copy()
    for block in order[: order.index(operand)]:
        loops = list(SETS[block])
        extent[..., loops] = tile[..., loops]
    return extent


def values(layer: Layer, operand: int, extent: Array) -> Array:
    """Values of an operand that a tile of loops touches, of one group."""
    if operand == OUTPUT:
        return extent[..., [B, K, Y, X]].prod(axis=-1)
    if operand == INPUT:
        rows = window(extent[..., Y], extent[..., R], layer.stride[0], layer.dilation[0])
        columns = window(extent[..., X], extent[..., S], layer.stride[1], layer.dilation[1])
        return extent[..., B] * extent[..., C] * rows * columns
    return extent[..., [K, C, R, S]].prod(axis=-1)


def inner_halves(problem: Problem) -> Inner:
    """All inner halves that fit the registers."""
    axes, lanes = unrollings(problem)
    tiles = _register_tiles(problem)
    sizes = np.array(problem.layer.sizes, dtype=np.float64)
    left = np.ceil(sizes / (axes * lanes))
    unrolling, tile = np.indices((len(axes), len(tiles))).reshape(2, -1)
    halves = Inner(
        axes[unrolling],
        lanes[unrolling],
        np.minimum(tiles.tile[tile], left[unrolling]),
        np.minimum(tiles.base[tile], left[unrolling]),
        tiles.order[tile],
    )
    return halves.take(_distinct(problem, halves, unrolling))


def _distinct(problem: Problem, halves: Inner, unrolling: NDArray[np.int64]) -> NDArray[np.int64]:
    """Candidates that fit, the first of those that are equal."""
    keys = unrolling * len(ORDERS) + halves.order
    for array in (halves.tile, halves.base):
        for loop, size in enumerate(problem.layer.sizes):
            if size > 1:
                keys = keys * 1000003 + array[:, loop].astype(np.int64)  # wraps: a hash
    fitting = np.flatnonzero(fits_registers(problem, halves))
    _, first = np.unique(keys[fitting], return_index=True)
    return fitting[np.sort(first)]


def fits_registers(problem: Problem, halves: Inner) -> NDArray[np.bool_]:
    """Whether what an element holds fits; what it only latches is one value per lane."""
    fits = np.ones(len(halves), dtype=bool)
    layer, level = problem.layer, problem.registers
    for index, order in enumerate(ORDERS):
        rows = np.flatnonzero(halves.order == index)
        if not len(rows):
            continue
        some = halves.take(rows)
        held = [values(layer, operand, some.held(operand, order)) for operand in range(3)]
        if problem.latched is not None and not level.holds(problem.latched):
            fits[rows] &= held[problem.latched] <= values(layer, problem.latched, some.lanes)
        for operands, bits in level.spaces:
            needed = sum(held[operand] * level.bits[operand] for operand in operands)
            fits[rows] &= needed <= bits
    return fits


def _register_tiles(problem: Problem) -> Inner:
    """Register tiles of all orders, as large as one element might hold."""
    chains = [_chain(problem, block) for block in range(len(SETS))]
    found = []
    for index, order in enumerate(ORDERS):
        first, second = (
            chains[block] if _matters(problem, order, block) else chains[block][:1]
            for block in order[:2]
        )
        pairs = np.indices((len(first), len(second))).reshape(2, -1)
        tile = first[pairs[0]] * second[pairs[1]]
        ones = np.ones_like(tile)
        kinds = np.full(len(tile), index)
        found.append(Inner(ones, ones, tile, ones, kinds))
    tiles = _joined(found)
    tiles = tiles.take(np.flatnonzero(fits_registers(problem, tiles)))
    if not problem.rules.held_reads:
        return tiles
    # A loop inside all blocks lets weights (positions) or inputs (filters) stand at the ports.
    based = [tiles]
    for block in (POSITIONS, FILTERS):
        for base in chains[block][1:]:
            ones = np.broadcast_to(base, tiles.tile.shape)
            based.append(
                Inner(tiles.axes, tiles.lanes, np.maximum(tiles.tile, ones), ones, tiles.order)
            )
    tiles = _joined(based)
    return tiles.take(np.flatnonzero(fits_registers(problem, tiles)))


def _matters(problem: Problem, order: tuple[int, ...], block: int) -> bool:
    """Whether an operand stays over a block, or holds what it touches."""
    later = order[order.index(block) + 1 :]
    return problem.stays(block) or any(problem.stays(operand) for operand in later)


def _joined(parts: list[Inner]) -> Inner:
    names = ("axes", "lanes", "tile", "base", "order")
    return Inner(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _chain(problem: Problem, block: int) -> Array:
    """Growing tiles of one set of loops, (tiles, loops)."""
    sizes = problem.layer.sizes
    tiles: dict[tuple[int, ...], None] = {}
    for chain in CHAINS[block]:
        current = [1] * len(sizes)
        for loop in chain:
            options = balanced(sizes[loop])
            if len(options) > MOST_SIZES:
                picks = np.linspace(0, len(options) - 1, MOST_SIZES).round().astype(int)
                options = [options[pick] for pick in picks]
            for size in options:
                current[loop] = size
                tiles[tuple(current)] = None
    return np.array(list(tiles), dtype=np.float64)
