"""Words that move inside the buffer's tile: between buffer (or DRAM), network and registers.

All counts are values of one group, arrays over candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.mapper.problem import FILTERS
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
from hwmodel.mapper.problem import K
from hwmodel.mapper.problem import Layer
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import R
from hwmodel.mapper.problem import S
from hwmodel.mapper.problem import X
from hwmodel.mapper.problem import Y
from hwmodel.mapper.registers import ONE
from hwmodel.mapper.registers import Extent
from hwmodel.mapper.registers import Inner
from hwmodel.mapper.registers import product
from hwmodel.mapper.registers import values
from hwmodel.mapper.windows import Array
from hwmodel.mapper.windows import positions


@dataclass(frozen=True)
class Moves:
    """Values moved for one operand.

    Attributes:
        fetched: Words read from the next memory outwards, or visits of partial sums to it.
        delivered: Words that reach elements; of outputs, that elements give away.
        again: Whether more than once.
    """

    fetched: Array
    delivered: Array
    again: NDArray[np.bool_]

    def take(self, index: tuple[NDArray[np.int64], ...]) -> Moves:
        """Some of the candidates."""
        return Moves(self.fetched[index], self.delivered[index], self.again[index])


def whole(layer: Layer) -> Extent:
    """The extent of a group."""
    return [ONE * size for size in layer.sizes[:-1]] + [ONE]


def total_values(layer: Layer) -> tuple[float, float, float]:
    """Values of each operand of one group; of inputs, positions that are read."""
    n = layer.sizes
    everything = whole(layer)
    inputs = input_positions(layer, everything, everything)
    return (
        float(n[K] * n[C] * n[R] * n[S]),
        float(n[B] * n[C] * inputs[0]),
        float(n[B] * n[K] * n[Y] * n[X]),
    )


def steps(layer: Layer, block: int, extent: Extent) -> Array:
    """Tiles of an extent along the loops of one set."""
    count = ONE
    for loop in SETS[block]:
        if layer.sizes[loop] > 1:
            count = count * np.ceil(layer.sizes[loop] / extent[loop])
    return count


def input_positions(layer: Layer, tile: Extent, sweep: Extent) -> Array:
    """Input positions of all tiles: rows times columns.

    Args:
        layer: The layer.
        tile: Iterations inside one tile.
        sweep: Outputs over which a window slides without a break: columns of a tile that does not
            hold whole rows, rows of one that does. Equal to ``tile`` if it jumps.
    """
    n = layer.sizes
    whole_rows = tile[X] >= n[X]
    columns = np.where(whole_rows, tile[X], sweep[X])
    rows = np.where(whole_rows, sweep[Y], tile[Y])
    (down, across), (apart, aside) = layer.stride, layer.dilation
    height, width = layer.input_size
    vertical = positions(n[Y], rows, n[R], tile[R], down, apart, height)
    return vertical * positions(n[X], columns, n[S], tile[S], across, aside, width)


def inner_moves(problem: Problem, inner: Inner, sweep: Extent | None = None) -> list[Moves]:
    """What every operand moves inside the buffer's tile.

    Args:
        problem: Layer and array.
        inner: Candidates.
        sweep: Iterations of every loop inside the buffer's tile, which bound the last block and
            how far a window slides; the whole layer if None.
    """
    layer = problem.layer
    sweep = whole(layer) if sweep is None else sweep
    totals = total_values(layer)
    step, streamed = inner.step, inner.side_by_side
    visits, copies = [], []
    for block in range(len(SETS)):
        if not problem.stays(block):
            extent = streamed
        else:
            extent = sweep if block == inner.order[2] else step
        visits.append(steps(layer, block, extent))
        copies.append(_active(layer, inner, block))
    if problem.positions_per_weight:
        served = math.prod(layer.sizes[loop] for loop in SETS[POSITIONS])
        least = math.ceil(served / problem.positions_per_weight)
        visits[POSITIONS] = np.maximum(visits[POSITIONS], least)

    near, far = _input_words(problem, inner, sweep)
    weight, output = ONE * totals[WEIGHT], ONE * totals[OUTPUT]
    fetched, delivered = (weight, far, output), (weight, near, output)
    moves = []
    for operand in range(len(OPERANDS)):
        unique, all_of_them = _rounding(problem, inner, operand)
        times = visits[operand]
        vectors = _vectors(problem, inner) if operand == INPUT else ONE
        moves.append(
            Moves(
                fetched[operand] * times * unique * vectors,
                delivered[operand] * times * copies[operand] * all_of_them,
                fetched[operand] * times > totals[operand] * (1 + 1e-9),
            )
        )
    return moves


def _rounding(problem: Problem, inner: Inner, operand: int) -> tuple[Array, Array]:
    """What whole numbers of elements make of averages: of those with values of their own, of all.

    1 but for ``Rules.whole_elements``.
    """
    if not problem.rules.whole_elements:
        return ONE, ONE
    sizes = problem.layer.sizes
    units = [size / np.ceil(size / axis) for size, axis in zip(sizes, inner.axes, strict=True)]
    everything = ONE
    for unit in units:
        everything = everything * unit
    own = values(problem.layer, operand, units) * units[G]
    return np.maximum(np.round(own), 1) / own, np.round(everything) / everything


def _vectors(problem: Problem, inner: Inner) -> Array:
    """Words of the vectors that lanes read, full or not, for each word that is needed."""
    if not problem.whole_vectors:
        return ONE
    return problem.vector.size / _added(problem, inner.lanes)


def _added(problem: Problem, together: Extent) -> Array:
    """Products that are added at once, on average: the last of several sums may have fewer."""
    count = ONE
    for loop in SETS[REDUCTION]:
        size = problem.layer.sizes[loop]
        count = count * (size / np.ceil(size / together[loop]))
    return count


def _active(layer: Layer, inner: Inner, block: int) -> Array:
    """Elements on the axes of one set, on average: the last of several rounds may be smaller."""
    count = ONE
    for loop in SETS[block]:
        size = layer.sizes[loop]
        if size > 1:
            count = count * (size / np.ceil(size / inner.axes[loop]))
    return count


def _input_words(problem: Problem, inner: Inner, sweep: Extent) -> tuple[Array, Array]:
    """Input values that reach elements, and that leave the memory, each filter counted once.

    The memory is read once for all elements that want a value. A window slides in an element
    whose tile lies directly inside the loops over positions.
    """
    layer = problem.layer
    n = layer.sizes
    element = inner.held(INPUT) if problem.stays(INPUT) else product(inner.lanes, inner.base)
    count = n[B] * n[C]
    reach = _slides_to(problem, inner, sweep)

    def words(tile: Extent) -> Array:
        if reach is None:
            return count * input_positions(layer, tile, tile)
        slides, across = reach
        chosen = [np.where(slides, np.maximum(a, t), t) for a, t in zip(across, tile, strict=True)]
        return count * input_positions(layer, tile, chosen)

    array = [
        np.minimum(mine * units, size)
        for mine, units, size in zip(element, inner.axes, n, strict=True)
    ]
    return words(element), words(array)


def _slides_to(
    problem: Problem, inner: Inner, sweep: Extent
) -> tuple[NDArray[np.bool_], Extent] | None:
    """Where input windows slide, and how far; None if nowhere."""
    n = problem.layer.sizes
    outside = inner.order[inner.order.index(INPUT) + 1 :]
    if not (problem.rules.sliding and problem.stays(INPUT)) or POSITIONS not in outside:
        return None
    spread = (inner.axes[X] > 1) | ((inner.tile[X] >= n[X]) & (inner.axes[Y] > 1))
    slides = ~spread
    if outside[0] != POSITIONS:
        for loop in SETS[REDUCTION]:
            slides = slides & (inner.tile[loop] == inner.base[loop])
    return slides, (sweep if inner.order[2] == POSITIONS else inner.tile)


def register_accesses(problem: Problem, inner: Inner) -> list[Array]:
    """Values that the multipliers read from registers, and partial sums read and written."""
    macs = problem.layer.macs * _rounding(problem, inner, OUTPUT)[1]
    accesses = []
    for block in (POSITIONS, FILTERS):
        held = ONE
        for loop in SETS[block]:
            held = held * inner.base[loop]
        accesses.append(macs * problem.active / held)
    together = inner.side_by_side if problem.broadcast else inner.lanes
    sums = 2 * macs / _added(problem, together)
    return [*accesses, sums if problem.whole_vectors else sums * problem.active]


def register_energy(problem: Problem, inner: Inner) -> Array:
    """Energy of the registers beside the multipliers, but for what arrives and leaves."""
    level = problem.registers
    energy = ONE * problem.flag_energy
    for operand, count in enumerate(register_accesses(problem, inner)):
        one = level.read[operand]
        if operand == OUTPUT:
            one = (level.read[operand] + level.write[operand]) / 2
        energy = energy + count * (level.bits[operand] * one)
    return energy


def compute_cycles(problem: Problem, inner: Inner) -> Array:
    """Cycles of the multipliers if nothing makes them wait."""
    cycles = ONE * problem.cycles_per_mac
    for size, units in zip(problem.layer.sizes, inner.side_by_side, strict=True):
        if size > 1:
            cycles = cycles * np.ceil(size / units)
    return cycles


def loads(problem: Problem, inner: Inner) -> Array:
    """How often the array loads what its elements keep, if each value is loaded once."""
    layer, kept = problem.layer, problem.waiting.operand
    count = np.ceil(layer.sizes[G] / inner.side_by_side[G])
    for block in range(len(SETS)):
        if block != kept:
            count = count * steps(layer, block, inner.side_by_side)
    return count


def paced_cycles(problem: Problem, compute: Array, once: Array, moves: list[Moves]) -> Array:
    """Cycles of the array with the loads that it waits for.

    Args:
        problem: The problem.
        compute: From :func:`compute_cycles`.
        once: From :func:`loads`.
        moves: Say how often everything is loaded.
    """
    waiting = problem.waiting
    if not (waiting.least_cycles or waiting.more_cycles):
        return compute
    total = total_values(problem.layer)[waiting.operand]
    times = once * (moves[waiting.operand].fetched / total)
    return np.maximum(compute, once * waiting.least_cycles) + times * waiting.more_cycles
