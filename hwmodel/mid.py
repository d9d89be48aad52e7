"""The mid level: cycles, DRAM traffic and energy from access counts in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwmodel._activity import Activity
from hwmodel._activity import Bits
from hwmodel._mac_array import mac_array
from hwmodel._row_stationary import row_stationary
from hwmodel._shapes import Shapes
from hwmodel._systolic import systolic
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.parts import OPERANDS
from hwmodel.parts import Memory
from hwmodel.parts import Operand
from hwmodel.technology import Array
from hwmodel.technology import UnitEnergies
from hwmodel.technology import mac_energy
from hwmodel.technology import unit_energies

STATIONARY_SHARE = 0.5
"""Share of the buffer for the operand that stays; the rest double-buffers those that stream."""


@dataclass(frozen=True)
class MidCost:
    """What the mid level adds to the demand, (candidates, layers) each. See ``CostReport``."""

    component_pj: dict[str, Array]
    latency_cycles: Array
    dram_bytes: Array
    dram_words: Array
    utilization: Array
    traffic_words: dict[tuple[str, str], Array]


@dataclass(frozen=True)
class _Crossing:
    """Bits that cross DRAM when every operand does so once; ``kept`` outputs stay on chip."""

    input_bits: Array
    weight_bits: Array
    output_bits: Array
    kept_output_bits: Array | float


def price(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> MidCost:
    """Price every candidate and layer on the accelerator's array."""
    activity = _activity(shapes, demand, accelerator)
    unit = unit_energies(accelerator)
    crossing = _crossing(shapes, demand, accelerator)
    input_fetches, weight_fetches = _fetches(demand, accelerator, unit, activity, crossing)

    fetched: Bits = {
        "weight": crossing.weight_bits * weight_fetches,
        "input": crossing.input_bits * input_fetches,
    }
    written: Bits = {"output": crossing.output_bits}
    network = _add(activity.network, {"weight": activity.fetch_network_bits * weight_fetches})
    reads = _add(activity.buffer_reads, {"weight": activity.fetch_buffer_bits * weight_fetches})
    filled_weight_bits = demand.weights * demand.buffered_weight_bits
    writes = _add(
        activity.buffer_writes,
        {"weight": filled_weight_bits * weight_fetches, "input": fetched["input"]},
    )
    if activity.sums_in_buffer:  # read once more on the way to DRAM
        reads = _add(reads, {"output": crossing.output_bits})
    elif accelerator.feature_maps_stay_on_chip:  # written as an input of the next layer
        writes = _add(writes, {"input": np.asarray(crossing.kept_output_bits)})

    one_mac = mac_energy(
        accelerator.mac,
        demand.weight_bits,
        demand.activation_bits,
        accelerator.precision.accumulator_bits,
    )
    registers = _energy(activity.register_reads, unit.register_read)
    traffic = {
        "register_file": _add(activity.register_reads, activity.register_writes),
        "buffer": _add(reads, writes),
        "dram": _add(fetched, written),
    }
    dram_bits = fetched["weight"] + fetched["input"] + written["output"]
    return MidCost(
        component_pj={
            "mac": demand.active_macs * one_mac,
            "register_file": registers + _energy(activity.register_writes, unit.register_write),
            "array_network": np.asarray(sum(network.values())) * unit.network,
            "buffer": _energy(reads, unit.buffer_read) + _energy(writes, unit.buffer_write),
            "dram": _energy(fetched, unit.dram_read) + _energy(written, unit.dram_write),
        },
        latency_cycles=np.maximum(
            activity.cycles, _transfer_cycles(accelerator, "dram", fetched, written)
        ),
        dram_bytes=dram_bits / 8,
        dram_words=_words(accelerator, "dram", traffic["dram"]),
        utilization=demand.macs / np.maximum(activity.cycles * accelerator.array.multipliers, 1),
        traffic_words=_traffic_words(accelerator, traffic),
    )


def _activity(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> Activity:
    array = accelerator.array
    if array.dataflow == "row_stationary":
        return row_stationary(shapes, demand, accelerator)
    if array.interconnect == "systolic":
        return systolic(shapes, demand, accelerator)
    return mac_array(shapes, demand, accelerator)


def _add(first: Bits, second: Bits) -> Bits:
    total = dict(first)
    for operand, bits in second.items():
        total[operand] = total[operand] + bits if operand in total else bits
    return total


def _energy(bits: Bits, unit: dict[Operand, float]) -> Array:
    """Energy of moving bits; operands of one price are added up first."""
    total: Array | float = 0.0
    for price_per_bit in dict.fromkeys(unit[operand] for operand in bits):
        same = [bits[operand] for operand in bits if unit[operand] == price_per_bit]
        total = total + sum(same[1:], same[0]) * price_per_bit
    return np.asarray(total)


def _memory(accelerator: Accelerator, role: str, operand: Operand) -> Memory | None:
    return next(iter(accelerator.holding(role, operand)), None)


def _traffic_words(
    accelerator: Accelerator, traffic: dict[str, Bits]
) -> dict[tuple[str, str], Array]:
    """Words by memory and operand; what an operand's own memory lacks is not there."""
    words: dict[tuple[str, str], Array] = {}
    for role, by_operand in traffic.items():
        for operand, bits in by_operand.items():
            memory = _memory(accelerator, role, operand)
            if memory is not None:
                words[memory.name, operand] = bits / memory.word_bits
    return words


def _words(accelerator: Accelerator, role: str, traffic: Bits) -> Array:
    words: Array | float = 0.0
    for operand, bits in traffic.items():
        memory = _memory(accelerator, role, operand)
        assert memory is not None  # every operand has a DRAM
        words = words + bits / memory.word_bits
    return np.asarray(words)


def _transfer_cycles(accelerator: Accelerator, role: str, reads: Bits, writes: Bits) -> Array:
    """Cycles that the slowest memory of a role takes for its traffic, 0 without a bandwidth."""
    slowest: Array | float = 0.0
    for memory in accelerator.memories:
        if memory.role != role:
            continue
        read = sum(bits for operand, bits in reads.items() if operand in memory.operands)
        written = sum(bits for operand, bits in writes.items() if operand in memory.operands)
        for bits, bytes_per_cycle in (
            (read + written, memory.bytes_per_cycle),
            (read, memory.read_bytes_per_cycle),
            (written, memory.write_bytes_per_cycle),
        ):
            if bytes_per_cycle is not None:
                slowest = np.maximum(slowest, bits / (8 * bytes_per_cycle))
    return np.asarray(slowest)


def _crossing(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> _Crossing:
    home = {operand: accelerator.holding("dram", operand)[0] for operand in OPERANDS}
    input_bits = _map_bits(
        demand.in_channels,
        demand.activation_bits,
        shapes.in_pixels,
        home["input"].feature_atom_bytes,
    )
    output_bits = _map_bits(
        demand.out_channels,
        demand.output_bits,
        shapes.out_pixels,
        home["output"].feature_atom_bytes,
    )
    weight_bits = demand.weights * demand.stored_weight_bits
    if home["weight"].weight_atom_bytes:
        weight_atom_bits = 8 * home["weight"].weight_atom_bytes
        weight_bits = np.ceil(weight_bits / weight_atom_bits) * weight_atom_bits
    if not accelerator.feature_maps_stay_on_chip:
        return _Crossing(input_bits, weight_bits, output_bits, 0.0)
    # Both maps of a layer share what the streaming operand leaves; an exchange stays if the maps
    # of all its layers do.
    available = _buffer_bits(accelerator, "input") * (1 - STATIONARY_SHARE)
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


def _buffer_bits(accelerator: Accelerator, operand: Operand) -> float:
    """Bits of the buffer that an operand may use, 0 without one."""
    buffer = _memory(accelerator, "buffer", operand)
    return buffer.capacity_bits(operand) if buffer else 0.0


def _fetches(
    demand: Demand,
    accelerator: Accelerator,
    unit: UnitEnergies,
    activity: Activity,
    crossing: _Crossing,
) -> tuple[Array, Array]:
    """How often inputs and weights are read from DRAM.

    One operand stays in the buffer, block after block, and for each block another streams past:
    with blocks of weights the inputs are read once a block, with blocks of inputs the weights are;
    blocks of partial sums (where the buffer holds them) do either. The cheaper way is taken.
    """
    filled_weight_bits = demand.weights * demand.buffered_weight_bits

    def blocks(bits: Array, operand: Operand) -> Array:
        # Groups share nothing and follow one another, so blocks are counted in one group.
        block_bits = demand.groups * (_buffer_bits(accelerator, operand) * STATIONARY_SHARE)
        return np.maximum(np.ceil(bits / block_bits), 1)

    input_blocks = blocks(demand.input_words * demand.activation_bits, "input")
    weight_blocks = blocks(filled_weight_bits, "weight")
    if activity.sums_in_buffer:
        sum_bits = demand.output_words * accelerator.precision.accumulator_bits
        sum_blocks = blocks(sum_bits, "output")
        input_blocks = np.minimum(input_blocks, sum_blocks)
        weight_blocks = np.minimum(weight_blocks, sum_blocks)
    input_energy = crossing.input_bits * (unit.dram_read["input"] + unit.buffer_write["input"])
    weight_energy = (
        crossing.weight_bits * unit.dram_read["weight"]
        + filled_weight_bits * unit.buffer_write["weight"]
        + activity.fetch_buffer_bits * unit.buffer_read["weight"]
        + activity.fetch_network_bits * unit.network
    )
    again = input_energy * (weight_blocks - 1) <= weight_energy * (input_blocks - 1)
    return np.where(again, weight_blocks, 1), np.where(again, 1, input_blocks)
