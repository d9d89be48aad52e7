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
from hwmodel.accelerator import MacArray
from hwmodel.coarse import Demand


def mac_array(
    shapes: Shapes, demand: Demand, accelerator: Accelerator, array: MacArray
) -> Activity:
    """Counts on a MAC array; groups follow one another."""
    steps = np.ceil(demand.group_inputs / array.input_lanes)  # vectors along the channels
    cells = np.ceil(demand.group_outputs / array.output_lanes)
    cycles = demand.groups * steps * cells * (shapes.kernel * shapes.out_pixels)
    vector_bits = cycles * array.input_lanes * demand.activation_bits
    loads = np.ceil(shapes.out_pixels / array.positions_per_weight_load)
    sparsity = accelerator.sparsity
    # Each cell adds a whole vector of products before it updates its accumulator.
    updates = demand.output_words * steps * shapes.kernel
    return Activity(
        cycles=cycles,
        register_file_bits=demand.active_macs * (demand.weight_bits + demand.activation_bits)
        + demand.macs * (sparsity.gate_zero_weights + sparsity.gate_zero_activations)
        + updates * 2 * accelerator.accumulator_bits,
        array_network_bits=vector_bits + demand.weights * demand.weight_bits * loads,
        buffer_bits=vector_bits + demand.weights * demand.buffered_weight_bits * loads,
        fetch_network_bits=0.0,
        fetch_buffer_bits=0.0,
        sums_in_buffer=False,
    )
