"""The inner half of a mapping: unrolling and register tiles.

Inside the buffer's tile the loops run, from the innermost outwards, in three blocks: all loops of
one set of ``SETS``, then of another, then of the last. An operand stays in its registers while the
block that does not concern it runs, and holds what the blocks inside that one touch. More blocks
would save nothing: only the loops right outside an operand's tile let it stay, and the sets do not
overlap. The last block is bounded by the buffer's tile alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.mapper.problem import FILTERS
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import LOOPS
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
from hwmodel.mapper.windows import Array
from hwmodel.mapper.windows import balanced
from hwmodel.mapper.windows import window

Extent = Sequence[Array]
"""Iterations of every loop (indexed as in ``LOOPS``), arrays that broadcast over candidates."""

Order = tuple[int, int, int]
"""The three blocks from the innermost outwards. Operand i stays while block i runs."""

ORDERS: tuple[Order, ...] = tuple(itertools.permutations((0, 1, 2)))  # type: ignore[arg-type]

ONE = np.ones(1)

TOLERANCE = 1e-6
"""Of sizes that are fractions: loops that lie on an axis as one, positions across rows."""

MOST_SIZES = 40
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
    """Inner halves of mappings with one order of blocks.

    Attributes:
        order: Of the blocks.
        axes, lanes: Iterations on the axes and on an element's lanes.
        tile: Iterations one after the other in an element, last block left out.
        base: Those of them inside all blocks, for which a register that stays is read once.
    """

    order: Order
    axes: Extent
    lanes: Extent
    tile: Extent
    base: Extent

    @property
    def shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(*(array.shape for array in (*self.axes, *self.tile)))

    def take(self, index: NDArray[np.int64]) -> Inner:
        """Some of the candidates, by flat index."""
        at = np.unravel_index(index, self.shape)

        def some(extent: Extent) -> Extent:
            return [np.broadcast_to(array, self.shape)[at] for array in extent]

        return Inner(
            self.order, some(self.axes), some(self.lanes), some(self.tile), some(self.base)
        )

    @property
    def side_by_side(self) -> Extent:
        """Iterations in one cycle."""
        return product(self.axes, self.lanes)

    @property
    def step(self) -> Extent:
        """Iterations inside the last block: those of axes, lanes and register tiles."""
        return product(self.axes, self.lanes, self.tile)

    def held(self, operand: int) -> Extent:
        """Iterations of every loop whose values of an operand one element holds.

        Whole blocks inside the operand's own, and the base of the others.
        """
        inside = {loop for block in self.order[: self.order.index(operand)] for loop in SETS[block]}
        return [
            self.lanes[loop] * (self.tile[loop] if loop in inside else self.base[loop])
            for loop in range(len(LOOPS))
        ]


def product(*extents: Extent) -> Extent:
    """Loop by loop."""
    result = list(extents[0])
    for extent in extents[1:]:
        result = [first * second for first, second in zip(result, extent, strict=True)]
    return result


def values(layer: Layer, operand: int, extent: Extent) -> Array:
    """Values of an operand that a tile of loops touches, of one group."""
    if operand == OUTPUT:
        return extent[B] * extent[K] * extent[Y] * extent[X]
    if operand == INPUT:
        rows = window(_rows(extent[Y]), extent[R], layer.stride[0], layer.dilation[0])
        columns = window(extent[X], extent[S], layer.stride[1], layer.dilation[1])
        return extent[B] * extent[C] * rows * columns
    return extent[K] * extent[C] * extent[R] * extent[S]


def _rows(tile: Array) -> Array:
    """Rows that a tile touches; one that runs on across rows, a fraction, begins anywhere."""
    rows = np.rint(tile)
    parts = abs(tile - rows) > TOLERANCE
    return np.where(parts, np.floor(tile) + 2, rows) if parts.any() else tile


def inner_halves(
    problem: Problem, axes: Array, lanes: Array, every: int = 1
) -> list[tuple[Inner, NDArray[np.bool_]]]:
    """Inner halves of every order, (unrollings, tiles), and which of them fit the registers.

    Args:
        problem: The problem.
        axes: Unrollings on the axes, (unrollings, loops).
        lanes: And on the lanes of an element.
        every: Take only one register tile of so many.
    """
    unrolled = [axes[:, loop, None] for loop in range(len(LOOPS))]
    vectors = [lanes[:, loop, None] for loop in range(len(LOOPS))]
    left = [
        np.ceil(size / (first * second))
        for size, first, second in zip(problem.layer.sizes, unrolled, vectors, strict=True)
    ]
    found = []
    for order in ORDERS:
        tile, base = (extent[::every] for extent in _register_tiles(problem, order))
        inner = Inner(
            order,
            unrolled,
            vectors,
            [np.minimum(tile[:, loop], left[loop]) for loop in range(len(LOOPS))],
            [np.minimum(base[:, loop], left[loop]) for loop in range(len(LOOPS))],
        )
        # A tile that fits also fits when it is clipped, unless lanes multiply it.
        fits = np.ones(inner.shape, dtype=bool)
        if problem.vector.size > 1:
            fits &= fits_registers(problem, inner)
        found.append((inner, fits))
    return found


def fits_registers(problem: Problem, inner: Inner) -> NDArray[np.bool_]:
    """Whether what an element holds fits; what it only latches is one value per lane.

    An element of whole vectors keeps whole vectors of weights and inputs, full or not.
    """
    layer, level = problem.layer, problem.registers
    held = [values(layer, operand, inner.held(operand)) for operand in range(3)]
    if problem.whole_vectors:
        lanes = functools.reduce(np.multiply, inner.lanes)
        held[:OUTPUT] = [each * (problem.vector.size / lanes) for each in held[:OUTPUT]]
    fits = np.ones(1, dtype=bool)
    if problem.latched is not None and not level.holds(problem.latched):
        fits = fits & (held[problem.latched] <= values(layer, problem.latched, inner.lanes))
    for operands, bits in level.spaces:
        needed = sum(held[operand] * level.bits[operand] for operand in operands)
        fits = fits & (needed <= bits * (1 + TOLERANCE))
    return fits


@functools.lru_cache(maxsize=32)
def _register_tiles(problem: Problem, order: Order) -> tuple[Array, Array]:
    """Tiles and bases of one order, (tiles, loops) each, that fit an element of one lane."""
    first, second = (
        _chain(problem, block) if _matters(problem, order, block) else _chain(problem, block)[:1]
        for block in order[:2]
    )
    tile = (first[:, None] * second[None]).reshape(-1, len(LOOPS))
    tile = tile[_fits_alone(problem, order, tile, np.ones_like(tile))]
    base = np.ones_like(tile)
    if not problem.rules.held_reads:
        return tile, base
    # A loop inside all blocks lets weights (positions) or inputs (filters) stand at the ports.
    tiles, bases = [tile], [base]
    for block in (POSITIONS, FILTERS):
        for inside in _chain(problem, block)[1:]:
            grown = np.maximum(tile, inside)
            some = _fits_alone(problem, order, grown, np.broadcast_to(inside, grown.shape))
            some[some] = _largest(grown[some])
            tiles.append(grown[some])
            bases.append(np.broadcast_to(inside, grown.shape)[some])
    return np.concatenate(tiles), np.concatenate(bases)


def _fits_alone(problem: Problem, order: Order, tile: Array, base: Array) -> NDArray[np.bool_]:
    ones = [ONE] * len(LOOPS)
    inner = Inner(order, ones, ones, list(tile.T), list(base.T))
    return np.broadcast_to(fits_registers(problem, inner), len(tile)).copy()


def _largest(tile: Array) -> NDArray[np.bool_]:
    """Tiles that no other contains: a larger one moves no more words."""
    kept = np.zeros(len(tile), dtype=bool)
    rows = np.argsort(-tile.prod(axis=1), kind="stable")
    while len(rows):
        kept[rows[0]] = True
        rows = rows[(tile[rows] > tile[rows[0]]).any(axis=1)]
    return kept


def _matters(problem: Problem, order: Order, block: int) -> bool:
    """Whether an operand stays over a block, or holds what it touches."""
    later = order[order.index(block) + 1 :]
    return problem.stays(block) or any(problem.stays(operand) for operand in later)


def _chain(problem: Problem, block: int) -> Array:
    """Growing tiles of one set of loops, (tiles, loops)."""
    sizes = problem.layer.sizes
    tiles: dict[tuple[float, ...], None] = {}
    for chain in CHAINS[block]:
        current = [1.0] * len(sizes)
        for loop in chain:
            options = balanced(sizes[loop])
            if len(options) > MOST_SIZES:
                picks = np.linspace(0, len(options) - 1, MOST_SIZES).round().astype(int)
                options = tuple(options[pick] for pick in picks)
            for size in options:
                current[loop] = size
                tiles[tuple(current)] = None
    served = problem.positions_per_weight
    if block == POSITIONS and sizes[X] * sizes[Y] > served > 0:
        stripe = [1.0] * len(sizes)
        if sizes[Y] == 1:
            stripe[X] = served
        else:
            stripe[X], stripe[Y] = sizes[X], served / sizes[X] * (1 + 1e-9)
        tiles[tuple(stripe)] = None
    return np.array(list(tiles), dtype=np.float64)
