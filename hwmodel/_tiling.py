"""What crosses DRAM: how large each operand is there, and how often it is fetched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel._activity import Activity
from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.parts import OPERANDS
from hwmodel.parts import Operand
from hwmodel.technology import Array
from hwmodel.technology import unit_energies

STATIONARY_SHARE = 0.5
"""Share of the buffer for the operand that stays; the rest double-buffers those that stream."""


@dataclass(frozen=True)
class Crossing:
    """Bits that cross DRAM when every operand does so once, (candidates, layers) each.

    Attributes:
        input_bits, weight_bits, output_bits: As stored in DRAM; 0 for maps that stay on chip.
        filled_input_bits: What the buffer gets of the input, as stored there.
        kept_output_bits: Outputs that stay on chip.
        live_bits: Maps that stay on chip while the layer runs, its own included.
        reread_bits, kept_reread_bits: Maps that operations behind the layer read once more, from
            DRAM and from the chip; only priced with a vector unit.
    """

    input_bits: Array
    weight_bits: Array
    output_bits: Array
    filled_input_bits: Array
    kept_output_bits: Array | float
    live_bits: Array | float
    reread_bits: Array | float
    kept_reread_bits: Array | float


def crossing_of(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> Crossing:
    """Sizes in DRAM, whole atoms included, and which maps never go there."""
    home = {operand: accelerator.dram(operand) for operand in OPERANDS}

    def inputs(bits: Array) -> Array:
        atom = home["input"].feature_atom_bytes
        return _map_bits(demand.in_channels, bits, shapes.in_pixels, atom)

    input_bits = inputs(demand.stored_input_bits)
    filled_bits = input_bits
    if demand.buffered_input_bits is not demand.stored_input_bits:
        filled_bits = inputs(demand.buffered_input_bits)
    output_bits = _map_bits(
        demand.out_channels,
        demand.stored_output_bits,
        shapes.out_pixels,
        home["output"].feature_atom_bytes,
    )
    weight_bits = demand.weights * demand.stored_weight_bits
    if home["weight"].weight_atom_bytes:
        weight_atom_bits = 8 * home["weight"].weight_atom_bytes
        weight_bits = np.ceil(weight_bits / weight_atom_bits) * weight_atom_bits
    if not accelerator.feature_maps_stay_on_chip:
        rereads = output_bits @ shapes.rereads if accelerator.vector_unit else 0.0
        return Crossing(input_bits, weight_bits, output_bits, filled_bits, 0.0, 0.0, rereads, 0.0)
    # What is live shares the half of the buffer that the operand that stays leaves. A map is kept
    # if all that is live with it would fit, kept or not: so smaller maps never cost others a place.
    available = _buffer_bits(accelerator, "input") * (1 - STATIONARY_SHARE)
    from_outside = filled_bits * (1 - shapes.share.sum(axis=0))
    too_large = output_bits @ shapes.live.T + from_outside > available
    is_read = (shapes.share.sum(axis=1) > 0).astype(np.float64)
    kept = (too_large @ shapes.live == 0) * is_read
    keeps_input = kept @ shapes.share
    return Crossing(
        input_bits=input_bits * (1 - keeps_input),
        weight_bits=weight_bits,
        output_bits=output_bits * (1 - kept),
        filled_input_bits=filled_bits * (1 - keeps_input),
        kept_output_bits=output_bits * kept,
        live_bits=(output_bits * kept) @ shapes.live.T,
        reread_bits=(output_bits * (1 - kept)) @ shapes.rereads,
        kept_reread_bits=(output_bits * kept) @ shapes.rereads,
    )


def _map_bits(channels: Array, bits: Array, pixels: Array, atom_bytes: int | None) -> Array:
    pixel_bits = channels * bits
    if atom_bytes:
        pixel_bits = np.ceil(pixel_bits / (8 * atom_bytes)) * (8 * atom_bytes)
    return pixel_bits * pixels


def _buffer_bits(accelerator: Accelerator, operand: Operand) -> float:
    """Bits that an operand may use of its buffer, 0 without one."""
    buffer = accelerator.holding("buffer", operand)
    return buffer.capacity_bits(operand) if buffer else 0.0


def fetches(
    demand: Demand, accelerator: Accelerator, activity: Activity, crossing: Crossing
) -> tuple[Array, Array]:
    """How often inputs and weights are read from DRAM.

    One operand stays in the buffer, block after block, and for each block another streams past:
    with blocks of weights the inputs are read once a block, with blocks of inputs the weights are;
    blocks of partial sums (where the buffer holds them) do either. The cheaper way is taken.
    An operand without a buffer has no blocks, and every access counts as one of DRAM's.
    A dataflow that decides how often has the last word.
    """
    if activity.fetches is not None:
        return activity.fetches
    unit = unit_energies(accelerator)
    dram_read, buffer_read, buffer_write = unit.dram[0], *unit.buffer
    filled_weight_bits = demand.weights * demand.buffered_weight_bits

    def blocks(bits: Array, operand: Operand) -> Array:
        buffer_bits = _buffer_bits(accelerator, operand)
        if not buffer_bits:
            return np.ones_like(bits)
        # Groups share nothing and follow one another, so blocks are counted in one group.
        block_bits = demand.groups * (buffer_bits * STATIONARY_SHARE)
        return np.maximum(np.ceil(bits / block_bits), 1)

    input_blocks = blocks(demand.input_words * demand.buffered_input_bits, "input")
    weight_blocks = blocks(filled_weight_bits, "weight")
    if activity.sums_in_buffer:
        sum_bits = demand.output_words * accelerator.precision.accumulator_bits
        sum_blocks = blocks(sum_bits, "output")
        input_blocks = np.minimum(input_blocks, sum_blocks)
        weight_blocks = np.minimum(weight_blocks, sum_blocks)
    input_energy = (
        crossing.input_bits * dram_read["input"]
        + crossing.filled_input_bits * buffer_write["input"]
    )
    weight_energy = (
        crossing.weight_bits * dram_read["weight"]
        + filled_weight_bits * buffer_write["weight"]
        + activity.fetch_buffer_bits * buffer_read["weight"]
        + activity.fetch_network_bits * unit.network
    )
    again = input_energy * (weight_blocks - 1) <= weight_energy * (input_blocks - 1)
    return np.where(again, weight_blocks, 1), np.where(again, 1, input_blocks)
