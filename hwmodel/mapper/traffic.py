"""Words that move inside the buffer's tile: between buffer (or DRAM), network and registers.

All counts are values of one group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hwmodel.mapper.problem import FILTERS
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import POSITIONS
from hwmodel.mapper.problem import REDUCTION
from hwmodel.mapper.problem import SETS
from hwmodel.mapper.problem import WEIGHT
from hwmodel.mapper.problem import B
from hwmodel.mapper.problem import C
from hwmodel.mapper.problem import K
from hwmodel.mapper.problem import Layer
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import R
from hwmodel.mapper.problem import S
from hwmodel.mapper.problem import X
from hwmodel.mapper.problem import Y
from hwmodel.mapper.registers import ORDERS
from hwmodel.mapper.registers import Inner
from hwmodel.mapper.windows import Array
from hwmodel.mapper.windows import positions

LAST = np.array([order[2] for order in ORDERS])
"""The last block of every order."""


@dataclass(frozen=True)
class Moves:
    """Values moved for one operand, (candidates,) each.

    Attributes:
        fetched: Words read from the next memory outwards, or visits of partial sums to it.
        delivered: Words that reach elements; of outputs, that elements give away.
    """

    fetched: Array
    delivered: Array


def total_values(layer: Layer) -> tuple[float, float, float]:
    """Values of each operand of one group; of inputs, positions that are read."""
    n = layer.sizes
    one = np.ones(1)
    rows = positions(n[Y], one * n[Y], n[R], one * n[R], layer.stride[0], layer.dilation[0],
                     layer.input_size[0])  # fmt: skip
    columns = positions(n[X], one * n[X], n[S], one * n[S], layer.stride[1], layer.dilation[1],
                        layer.input_size[1])  # fmt: skip
    return (
        float(n[K] * n[C] * n[R] * n[S]),
        float(n[B] * n[C] * rows[0] * columns[0]),
        float(n[B] * n[K] * n[Y] * n[X]),
    )


def steps(layer: Layer, block: int, extent: Array) -> Array:
    """Tiles of ``extent`` (..., loops) along the loops of one set."""
    count = np.ones(extent.shape[:-1])
    for loop in SETS[block]:
        if layer.sizes[loop] > 1:
            count = count * np.ceil(layer.sizes[loop] / extent[..., loop])
    return count


def input_positions(layer: Layer, tile: Array, sweep: Array) -> Array:
    """Input positions of all tiles, (...,): rows times columns.

    Args:
        layer: The layer.
        tile: Iterations inside one tile, (..., loops).
        sweep: Outputs over which a window slides without a break, (..., loops): columns of a
            tile that does not hold whole rows, rows of one that does. Equal to ``tile`` if it
            jumps.
    """
    n = layer.sizes
    whole_rows = tile[..., X] >= n[X]
    columns = np.where(whole_rows, tile[..., X], sweep[..., X])
    rows = np.where(whole_rows, sweep[..., Y], tile[..., Y])
    down, across = layer.stride
    return positions(
        n[Y], rows, n[R], tile[..., R], down, layer.dilation[0], layer.input_size[0]
    ) * positions(
        n[X], columns, n[S], tile[..., S], across, layer.dilation[1], layer.input_size[1]
    )  # fmt: skip


def inner_moves(problem: Problem, halves: Inner, sweep: Array | None = None) -> list[Moves]:
    """What every operand moves inside the buffer's tile.

    Args:
        problem: Layer and array.
        halves: Candidates; with a sweep, all with the same last block.
        sweep: Iterations of every loop inside the buffer's tile, (candidates, loops), which bound
            the last block and how far a window slides; the whole layer if None.
    """
    layer = problem.layer
    n = np.array(layer.sizes, dtype=np.float64)
    totals = total_values(layer)
    active = n / np.ceil(n / halves.axes)
    step, streamed = halves.step, halves.axes * halves.lanes
    last = LAST[halves.order]
    visits = []
    for block in range(len(SETS)):
        if not problem.stays(block):
            visits.append(steps(layer, block, streamed))
            continue
        ended = 1.0 if sweep is None else steps(layer, block, sweep)
        visits.append(np.where(last == block, ended, steps(layer, block, step)))
    if problem.positions_per_weight:
        served = math.prod(layer.sizes[loop] for loop in SETS[POSITIONS])
        least = math.ceil(served / problem.positions_per_weight)
        visits[POSITIONS] = np.maximum(visits[POSITIONS], least)

    weight = totals[WEIGHT] * visits[POSITIONS]
    near, far = _input_words(problem, halves, sweep)
    output = totals[OUTPUT] * visits[REDUCTION]
    copies = [active[:, list(SETS[block])].prod(axis=1) for block in range(len(SETS))]
    return [
        Moves(weight, weight * copies[POSITIONS]),
        Moves(far * visits[FILTERS], near * visits[FILTERS] * copies[FILTERS]),
        Moves(output, output * copies[REDUCTION]),
    ]


def _input_words(problem: Problem, halves: Inner, sweep: Array | None) -> tuple[Array, Array]:
    """Input values that reach elements, and that leave the memory, each filter counted once.

    The memory is read once for all elements that want a value. A window slides in an element
    whose tile lies directly inside the loops over positions.
    """
    layer = problem.layer
    n = np.array(layer.sizes, dtype=np.float64)
    element = np.empty_like(halves.tile)
    slide = np.zeros(len(halves), dtype=bool)
    bound = np.broadcast_to(n, halves.tile.shape) if sweep is None else sweep
    reach = halves.tile.copy()
    for index, order in enumerate(ORDERS):
        rows = np.flatnonzero(halves.order == index)
        if not len(rows):
            continue
        some = halves.take(rows)
        element[rows] = some.held(INPUT, order)
        outside = order[order.index(INPUT) + 1 :]
        if POSITIONS not in outside:
            continue
        reduction = REDUCTION in outside[: outside.index(POSITIONS)]
        loops = list(SETS[REDUCTION])
        still = (some.tile[:, loops] == some.base[:, loops]).all(axis=1)
        slide[rows] = still if reduction else True
        if order[2] == POSITIONS:
            reach[rows] = bound[rows]
    spread = (halves.axes[:, X] > 1) | ((halves.tile[:, X] >= n[X]) & (halves.axes[:, Y] > 1))
    slide &= problem.rules.sliding & problem.stays(INPUT) & ~spread
    reach = np.maximum(reach, element)
    count = n[B] * n[C]

    def words(tile: Array) -> Array:
        chosen = np.where(slide[:, None], np.maximum(reach, tile), tile)
        return count * input_positions(layer, tile, chosen)

    return words(element), words(np.minimum(element * halves.axes, n))


def register_energy(problem: Problem, halves: Inner) -> Array:
    """Energy of the registers beside the multipliers, (candidates,)."""
    level = problem.registers
    macs = problem.layer.macs
    adds = halves.lanes.prod(axis=1)
    reads = np.zeros(len(halves))
    for operand, block in ((WEIGHT, POSITIONS), (INPUT, FILTERS)):
        held = halves.base[:, list(SETS[block])].prod(axis=1)
        reads = reads + macs * level.bits[operand] * level.read[operand] / held
    sums = macs / adds * level.bits[OUTPUT] * (level.read[OUTPUT] + level.write[OUTPUT])
    return (reads + sums) * problem.active + problem.register_overhead


def compute_cycles(problem: Problem, halves: Inner) -> Array:
    """Cycles of the array without stalls."""
    sizes = np.array(problem.layer.sizes)
    return np.ceil(sizes / (halves.axes * halves.lanes)).prod(axis=1) * problem.cycles_per_mac
