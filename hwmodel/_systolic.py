"""Systolic arrays, in closed form: a layer is a matrix product that passes through in tiles.

A group of a layer multiplies ``positions`` rows (output pixels of all images) of ``reduction``
values (input channels times kernel) with a matrix of ``reduction`` by ``outputs``. Operands enter
at two edges and go from neighbour to neighbour, so the far corner starts ``rows + columns - 2``
cycles after the near one: every tile pays to fill the array, and to drain it.
"""

from __future__ import annotations

import numpy as np

from hwmodel._activity import Activity
from hwmodel._activity import Bits
from hwmodel._activity import kernel_values
from hwmodel._shapes import Shapes
from hwmodel._tiling import STATIONARY_SHARE
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.parts import Loop
from hwmodel.technology import Array


def weight_stationary_cycles(
    positions: Array,
    reduction: Array,
    outputs: Array,
    rows: int,
    columns: int,
    blocks: Array | float = 1.0,
) -> Array:
    """Cycles of a matrix product on an array that holds a tile of weights at a time.

    A tile of ``rows x columns`` weights is shifted in row by row, ``positions`` vectors stream
    through, and the last one needs ``rows + columns - 2`` cycles more to reach the far corner::

        ceil(reduction / rows) * ceil(outputs / columns) * (2 * rows + columns + positions - 2)

    The same as SCALE-Sim's (Samajdar et al., ISPASS 2020), which counts from cycle 0: one less.
    Positions that come in ``blocks``, one after the other, load and drain each tile so many times.
    """
    tiles = np.ceil(reduction / rows) * np.ceil(outputs / columns)
    return np.asarray(tiles * (blocks * (2 * rows + columns - 2) + positions))


def output_stationary_cycles(
    positions: Array, reduction: Array, outputs: Array, rows: int, columns: int
) -> Array:
    """Cycles of a matrix product on an array that holds a tile of sums at a time.

    ``reduction`` pairs of operands stream through each element of a tile of ``rows`` positions by
    ``columns`` outputs, skewed by ``rows + columns - 2`` cycles; the sums leave on wires of their
    own while the next tile starts::

        ceil(positions / rows) * ceil(outputs / columns) * (reduction + rows + columns - 2)

    The same as SCALE-Sim's, which counts from cycle 0: one less.
    """
    tiles = np.ceil(positions / rows) * np.ceil(outputs / columns)
    return np.asarray(tiles * (reduction + rows + columns - 2))


def systolic(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> Activity:
    """Counts on a systolic array; groups, and kernel positions that are not unrolled, in turn."""
    array = accelerator.array
    is_weight_stationary = array.dataflow == "weight_stationary"
    down: Loop = "in_channels" if is_weight_stationary else "out_width"
    rows, columns = array.units(down), array.units("out_channels")
    positions = np.broadcast_to(shapes.out_pixels, demand.macs.shape)
    # What the rows unroll of a kernel they take for more channels (im2col), the rest in turn. Where
    # sums stay, all of it streams through.
    on_rows = array.axes_of(down)[0].unroll
    unrolled = kernel_values(shapes, on_rows) if is_weight_stationary else shapes.kernel
    reduction = demand.group_inputs * unrolled
    turns = demand.groups * (shapes.kernel / unrolled)

    steps = reduction / demand.lane_products
    sizes = (positions, steps, demand.group_outputs, rows, columns)
    sum_turns = np.ceil(steps / rows) * (turns / demand.groups)
    blocks = _position_blocks(accelerator, positions, sum_turns, columns)
    if is_weight_stationary:
        cycles = turns * weight_stationary_cycles(*sizes, blocks)
    else:
        cycles = turns * output_stationary_cycles(*sizes)
    output_tiles = np.ceil(demand.group_outputs / columns)
    input_words = turns * positions * reduction
    if is_weight_stationary:
        weight_reads = demand.weights * (blocks - 1)  # and once a fetch from DRAM
    else:
        weight_reads = demand.weights * np.ceil(positions / rows)
        sum_turns = np.ones_like(demand.macs)
    sum_bits = demand.output_words * accelerator.precision.accumulator_bits
    has_accumulator = bool(accelerator.holding("buffer", "output"))
    spills = sum_bits * (sum_turns - 1)
    passed_on: Bits = {"weight": demand.macs * demand.weight_bits}
    if is_weight_stationary:
        sums = demand.output_words * np.ceil(steps) * (turns / demand.groups)
        passed_on = {"output": sums * accelerator.precision.accumulator_bits}
    return Activity(
        cycles=cycles,
        register_reads={"weight": demand.active_macs * demand.weight_bits + demand.weight_flags},
        register_writes={},
        # Inputs go on to the next column, sums (or weights) to the next row, with every product.
        network={
            "input": demand.macs * demand.activation_bits,
            **passed_on,
        },
        buffer_reads={
            "weight": weight_reads * demand.buffered_weight_bits,
            "input": input_words * output_tiles * demand.buffered_input_bits,
            "output": spills,
        },
        buffer_writes={"output": spills + demand.output_words * demand.output_bits},
        fetch_network_bits=0.0,
        fetch_buffer_bits=demand.weights * demand.buffered_weight_bits * is_weight_stationary,
        sums_in_buffer=has_accumulator,
    )


def _position_blocks(
    accelerator: Accelerator, positions: Array, sum_turns: Array, columns: int
) -> Array:
    """Blocks of positions whose sums fit the accumulator, of layers that add up several tiles."""
    accumulator = accelerator.holding("buffer", "output")
    if accumulator is None:
        return np.ones_like(positions)
    column_bits = columns * accelerator.precision.accumulator_bits
    # The other half takes the next block's sums while this one's leave.
    held = np.maximum(accumulator.capacity_bits("output") * STATIONARY_SHARE // column_bits, 1)
    return np.where(sum_turns > 1, np.ceil(positions / held), 1.0)
