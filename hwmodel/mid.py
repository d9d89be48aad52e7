"""The mid level: cycles, DRAM traffic and energy from access counts in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel._activity import Activity
from hwmodel._mac_array import mac_array
from hwmodel._row_stationary import row_stationary
from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.accelerator import RowStationaryArray
from hwmodel.coarse import Demand
from hwmodel.technology import WORD_BITS
from hwmodel.technology import Array
from hwmodel.technology import mac_pj

STATIONARY_SHARE = 0.5
"""Share of the buffer for the operand that stays; the rest double-buffers those that stream."""


@dataclass(frozen=True)
class MidCost:
    """What the mid level adds to the demand, (candidates, layers) each. See ``CostReport``."""

    component_pj: dict[str, Array]
    latency_cycles: Array
    dram_bytes: Array
    utilization: Array


@dataclass(frozen=True)
class _Crossing:
    """Bits that cross DRAM when every operand does so once; ``kept`` outputs stay on chip."""

    input_bits: Array
    weight_bits: Array
    output_bits: Array
    kept_output_bits: Array | float


def price(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> MidCost:
    """Price every candidate and layer on the accelerator's array."""
    array = accelerator.array
    if isinstance(array, RowStationaryArray):
        activity = row_stationary(shapes, demand, accelerator, array)
    else:
        activity = mac_array(shapes, demand, accelerator, array)
    crossing = _crossing(shapes, demand, accelerator)
    input_fetches, weight_fetches = _fetches(demand, accelerator, activity, crossing)

    input_bits = crossing.input_bits * input_fetches
    dram_bits = input_bits + crossing.weight_bits * weight_fetches + crossing.output_bits
    network_bits = activity.array_network_bits + activity.fetch_network_bits * weight_fetches
    filled_weight_bits = demand.weights * demand.buffered_weight_bits
    buffer_bits = (
        activity.buffer_bits
        + input_bits
        + (filled_weight_bits + activity.fetch_buffer_bits) * weight_fetches
        # Read once more on the way to DRAM, or written there instead of going past the buffer.
        + (crossing.output_bits if activity.sums_in_buffer else crossing.kept_output_bits)
    )
    energy = accelerator.energy
    one_mac_pj = mac_pj(
        energy, demand.weight_bits, demand.activation_bits, accelerator.accumulator_bits
    )
    dram_bytes = dram_bits / 8
    return MidCost(
        component_pj={
            "mac": demand.active_macs * one_mac_pj,
            "register_file": activity.register_file_bits
            * (energy.register_file_pj_per_word / WORD_BITS),
            "array_network": network_bits * (energy.array_network_pj_per_word / WORD_BITS),
            "buffer": buffer_bits * (energy.buffer_pj_per_word / WORD_BITS),
            "dram": dram_bits * (energy.dram_pj_per_word / WORD_BITS),
        },
        latency_cycles=np.maximum(activity.cycles, dram_bytes / accelerator.dram.bytes_per_cycle),
        dram_bytes=dram_bytes,
        utilization=demand.macs / np.maximum(activity.cycles * array.multipliers, 1),
    )


def _crossing(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> _Crossing:
    atom = accelerator.dram.feature_atom_bytes
    input_bits = _map_bits(demand.in_channels, demand.activation_bits, shapes.in_pixels, atom)
    output_bits = _map_bits(demand.out_channels, demand.output_bits, shapes.out_pixels, atom)
    weight_bits = demand.weights * demand.stored_weight_bits
    if accelerator.dram.weight_atom_bytes:
        weight_atom_bits = 8 * accelerator.dram.weight_atom_bytes
        weight_bits = np.ceil(weight_bits / weight_atom_bits) * weight_atom_bits
    if not accelerator.feature_maps_stay_on_chip:
        return _Crossing(input_bits, weight_bits, output_bits, 0.0)
    # Both maps of a layer share what the streaming operand leaves; an exchange stays if the maps
    # of all its layers do.
    available = accelerator.buffer_bytes * 8 * (1 - STATIONARY_SHARE)
    too_large = (input_bits + output_bits > available) @ shapes.exchanges
    stays = (too_large == 0).astype(np.float64)
    keeps_input = stays @ shapes.inner_input
    keeps_output = stays @ shapes.inner_output
    return _Crossing(
        input_bits=input_bits * (1 - keeps_input),
        weight_bits=weight_bits,
        output_bits=output_bits * (1 - keeps_output),
        kept_output_bits=output_bits * keeps_output,
    )


def _map_bits(channels: Array, bits: Array, pixels: Array, atom_bytes: int | None) -> Array:
    pixel_bits = channels * bits
    if atom_bytes:
        pixel_bits = np.ceil(pixel_bits / (8 * atom_bytes)) * (8 * atom_bytes)
    return pixel_bits * pixels


def _fetches(
    demand: Demand, accelerator: Accelerator, activity: Activity, crossing: _Crossing
) -> tuple[Array, Array]:
    """How often inputs and weights are read from DRAM.

    One operand stays in the buffer, block after block, and for each block another streams past:
    with blocks of weights the inputs are read once a block, with blocks of inputs the weights are;
    blocks of partial sums (where the buffer holds them) do either. The cheaper way is taken.
    """
    energy = accelerator.energy
    filled_weight_bits = demand.weights * demand.buffered_weight_bits
    # Groups share nothing and follow one another, so blocks are counted in one group.
    block_bits = demand.groups * (accelerator.buffer_bytes * 8 * STATIONARY_SHARE)
    input_blocks = _blocks(demand.input_words * demand.activation_bits, block_bits)
    weight_blocks = _blocks(filled_weight_bits, block_bits)
    if activity.sums_in_buffer:
        sum_blocks = _blocks(demand.output_words * accelerator.accumulator_bits, block_bits)
        input_blocks = np.minimum(input_blocks, sum_blocks)
        weight_blocks = np.minimum(weight_blocks, sum_blocks)
    input_pj = crossing.input_bits * (energy.dram_pj_per_word + energy.buffer_pj_per_word)
    weight_pj = (
        crossing.weight_bits * energy.dram_pj_per_word
        + (filled_weight_bits + activity.fetch_buffer_bits) * energy.buffer_pj_per_word
        + activity.fetch_network_bits * energy.array_network_pj_per_word
    )
    again = input_pj * (weight_blocks - 1) <= weight_pj * (input_blocks - 1)
    return np.where(again, weight_blocks, 1), np.where(again, 1, input_blocks)


def _blocks(bits: Array, block_bits: Array) -> Array:
    return np.maximum(np.ceil(bits / block_bits), 1)
