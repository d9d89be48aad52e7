"""A weight-fed MAC array such as NVDLA's convolution core, in closed form.

In a cycle one vector of input channels is broadcast to all cells; each cell multiplies it with its
own weights and adds the products to its own output channel. Channels that do not fill the lanes
leave multipliers idle, but neither cycles nor vectors get fewer.
"""

from __future__ import annotations

import numpy as np

from hwmodel._activity import Activity
from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand


def mac_array(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> Activity:
    """Counts on a MAC array; groups follow one another."""
    array = accelerator.array
    lanes = array.units("in_channels")
    steps = np.ceil(demand.group_inputs / (lanes * demand.lane_products))  # along the channels
    cells = np.ceil(demand.group_outputs / array.units("out_channels"))
    turns = demand.groups * cells * shapes.kernel
    places = turns * shapes.out_pixels
    paced = np.maximum(shapes.out_pixels, array.min_positions_per_weight_load)
    # Whole vectors of channels are read, full or not.
    vector_words = places * np.ceil(demand.group_inputs / lanes) * lanes
    loads = np.ceil(shapes.out_pixels / (array.positions_per_weight_load or shapes.out_pixels))
    # Each cell adds a whole vector of products before it updates its accumulator.
    sum_bits = demand.output_words * steps * shapes.kernel * accelerator.precision.accumulator_bits
    return Activity(
        cycles=turns * paced * steps,
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
