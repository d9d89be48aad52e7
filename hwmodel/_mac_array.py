"""Arrays of cells that each add up a vector of products, in closed form.

In a cycle one vector of input channels is broadcast to all cells; each cell multiplies it with its
own weights and adds the products to its own output channel, as in NVDLA's convolution core. Cells
may also lie along output positions, each with inputs of its own, and one cell alone is a processor
with a multiply-accumulate instruction. Channels that do not fill the lanes leave multipliers idle,
but neither cycles nor vectors get fewer.
"""

from __future__ import annotations

import math

import numpy as np

from hwmodel._activity import Activity
from hwmodel._activity import kernel_values
from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.parts import Array as ArrayPart
from hwmodel.technology import Array


def mac_array(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> Activity:
    """Counts on a MAC array; groups follow one another."""
    array = accelerator.array
    lanes, on_axes = array.vector.size, array.units_on_axes("in_channels")
    # Channels that no axis takes fill the vector, with what it takes of the kernel.
    channels = demand.group_inputs
    if on_axes > 1:
        channels = np.ceil(channels / on_axes)
    taken = kernel_values(shapes, array.vector.unroll)
    takes_channels = "in_channels" in array.vector.unroll or not array.vector.unroll

    def vectors(products: Array | float) -> Array:
        """Vectors that follow each other, of so many products in each lane."""
        if takes_channels:
            return np.ceil(channels * taken / (lanes * products))
        return channels * np.ceil(taken / (lanes * products))

    windows = shapes.kernel / taken
    steps = vectors(demand.lane_products)
    cells = np.ceil(demand.group_outputs / array.units("out_channels"))
    positions = _positions(shapes, array)
    turns = demand.groups * cells * windows
    paced = np.maximum(positions, array.min_positions_per_weight_load)
    # Whole vectors are read, full or not.
    vector_words = turns * shapes.out_pixels * vectors(1) * (lanes * on_axes)
    loads = np.ceil(positions / (array.positions_per_weight_load or positions))
    if array.dataflow == "output_stationary":  # sums stay, so weights come again for the next ones
        loads = positions
    # Each cell adds a whole vector of products before it updates its accumulator.
    sum_bits = demand.output_words * steps * windows * accelerator.precision.accumulator_bits
    # Loops that may lie on the same axis share it: together they cannot have more than all of it.
    all_at_work = np.ceil(demand.macs / (array.multipliers * demand.lane_products) - 1e-9)
    return Activity(
        cycles=np.maximum(turns * paced * steps, all_at_work),
        register_reads={
            "weight": demand.active_macs * demand.weight_bits + demand.weight_flags,
            "input": demand.active_macs * demand.activation_bits + demand.input_flags,
            "output": sum_bits,
        },
        register_writes={"output": sum_bits},
        network={
            "weight": demand.weights * demand.weight_bits * loads,
            "input": vector_words * demand.activation_bits,
        },
        buffer_reads={
            "weight": demand.weights * demand.buffered_weight_bits * loads,
            "input": vector_words * demand.buffered_input_bits,
        },
        buffer_writes={},
        fetch_network_bits=0.0,
        fetch_buffer_bits=0.0,
        sums_in_buffer=False,
    )


def _positions(shapes: Shapes, array: ArrayPart) -> Array:
    """Output positions that follow each other, those side by side in the array taken as one."""
    rows, columns = array.axes_of("out_height"), array.axes_of("out_width")
    height = np.ceil(shapes.out_height / array.units("out_height"))
    apart = height * np.ceil(shapes.out_width / array.units("out_width")) * shapes.batch
    shared = [axis for axis in rows if axis in columns]
    if not shared:
        return apart
    # One axis for both takes them as they come, as far as it limits neither.
    sizes = {axis.name: axis.size for axis in (*rows, *columns)}
    together = np.ceil(shapes.out_pixels / math.prod(sizes.values()))
    return np.maximum(together, apart) if any(axis.at_most for axis in shared) else together
