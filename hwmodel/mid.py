"""The mid level: cycles, DRAM traffic and energy from access counts in closed form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hwmodel._activity import Activity
from hwmodel._activity import Bits
from hwmodel._loading import with_waiting
from hwmodel._mac_array import mac_array
from hwmodel._passes import row_stationary_passes
from hwmodel._row_stationary import row_stationary
from hwmodel._shapes import Shapes
from hwmodel._systolic import systolic
from hwmodel._tiling import Crossing
from hwmodel._tiling import crossing_of
from hwmodel._tiling import fetches
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.coarse import VectorWork
from hwmodel.coarse import vector_work
from hwmodel.parts import OPERANDS
from hwmodel.parts import Memory
from hwmodel.parts import Operand
from hwmodel.technology import Array
from hwmodel.technology import mac_energy
from hwmodel.technology import static_energy_per_cycle
from hwmodel.technology import unit_energies


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
class _Traffic:
    """Bits read from and written to the memories of a role, by operand."""

    reads: Bits
    writes: Bits

    def of(self, operand: Operand) -> Array | None:
        """All bits of an operand, None if it does not move here."""
        moved = [bits[operand] for bits in (self.reads, self.writes) if operand in bits]
        return moved[0] + moved[1] if len(moved) == 2 else next(iter(moved), None)


def price(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> MidCost:
    """Price every candidate and layer on the accelerator's array."""
    activity = _activity(shapes, demand, accelerator)
    crossing = crossing_of(shapes, demand, accelerator)
    return price_activity(activity, demand, accelerator, crossing, vector_work(shapes, demand))


def price_activity(
    activity: Activity,
    demand: Demand,
    accelerator: Accelerator,
    crossing: Crossing,
    work: VectorWork,
) -> MidCost:
    """Price what an array does, (candidates, layers) or whatever broadcasts to that."""
    traffic, network = _traffic(demand, accelerator, activity, crossing)

    cycles = with_waiting(
        activity.cycles * demand.cycles_per_step, demand, accelerator, traffic["dram"].reads
    )
    vector = accelerator.vector_unit
    if vector:
        vector_cycles = (work.additions + work.multiplications) / vector.operations_per_cycle
        cycles = np.maximum(cycles, vector_cycles) if vector.overlaps else cycles + vector_cycles
    for role in ("buffer", "dram"):
        for transfer in _transfer_cycles(accelerator, role, traffic[role]):
            cycles = np.maximum(cycles, transfer)
    unit = unit_energies(accelerator)
    one_mac = mac_energy(
        accelerator.mac,
        demand.weight_bits,
        demand.activation_bits,
        accelerator.precision.accumulator_bits,
    )
    component = {
        "mac": demand.active_macs * one_mac,
        "register_file": _energy(traffic["register_file"], *unit.register, cycles.shape),
        "array_network": np.asarray(sum(network.values())) * unit.network,
        "buffer": _energy(traffic["buffer"], *unit.buffer, cycles.shape),
        "dram": _energy(traffic["dram"], *unit.dram, cycles.shape),
    }
    if vector:
        component["vector"] = (
            work.additions * vector.add_energy + work.multiplications * vector.multiply_energy
        )
    for name, per_cycle in static_energy_per_cycle(accelerator).items():
        component[name] = cycles * per_cycle
    words = _traffic_words(accelerator, traffic)
    dram = {memory.name: memory for memory in accelerator.memories if memory.role == "dram"}
    dram_words = [each for (memory, _), each in words.items() if memory in dram]
    dram_bits = [
        each * dram[memory].word_bits for (memory, _), each in words.items() if memory in dram
    ]
    multipliers = accelerator.array.multipliers * demand.lane_products
    return MidCost(
        component_pj=component,
        latency_cycles=cycles,
        dram_bytes=sum(dram_bits[1:], dram_bits[0]) / 8,
        dram_words=sum(dram_words[1:], dram_words[0]),
        utilization=demand.macs / np.maximum(activity.cycles * multipliers, 1),
        traffic_words=words,
    )


def _activity(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> Activity:
    array = accelerator.array
    if array.dataflow == "row_stationary":
        form = row_stationary_passes if array.passes else row_stationary
        return form(shapes, demand, accelerator)
    if array.interconnect == "systolic":
        return systolic(shapes, demand, accelerator)
    return mac_array(shapes, demand, accelerator)


def _traffic(
    demand: Demand, accelerator: Accelerator, activity: Activity, crossing: Crossing
) -> tuple[dict[str, _Traffic], Bits]:
    """Traffic of every role, and bits in the array's network."""
    input_fetches, weight_fetches = fetches(demand, accelerator, activity, crossing)
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
        {
            "weight": filled_weight_bits * weight_fetches,
            "input": crossing.filled_input_bits * input_fetches,
        },
    )
    if activity.sums_in_buffer:  # read once more on the way to DRAM
        reads = _add(reads, {"output": crossing.output_bits})
    elif accelerator.feature_maps_stay_on_chip:  # written as an input of the next layer
        writes = _add(writes, {"input": np.asarray(crossing.kept_output_bits)})
    for operand in OPERANDS:
        if not accelerator.holding("buffer", operand):
            # The array reads from, and spills to, where the operand lives.
            writes.pop(operand, None)
            if operand in reads:
                fetched[operand] = reads.pop(operand)
            if operand in activity.buffer_writes:
                written[operand] = activity.buffer_writes[operand]
    if accelerator.vector_unit:
        fetched = _add(fetched, {"input": np.asarray(crossing.reread_bits)})
        if accelerator.feature_maps_stay_on_chip and "input" in reads:
            reads = _add(reads, {"input": np.asarray(crossing.kept_reread_bits)})
    traffic = {
        "register_file": _Traffic(activity.register_reads, activity.register_writes),
        "buffer": _Traffic(reads, writes),
        "dram": _Traffic(fetched, written),
    }
    return traffic, network


def _add(first: Bits, second: Bits) -> Bits:
    total = dict(first)
    for operand, bits in second.items():
        total[operand] = total[operand] + bits if operand in total else bits
    return total


def _energy(
    traffic: _Traffic,
    read: dict[Operand, float],
    write: dict[Operand, float],
    shape: tuple[int, ...],
) -> Array:
    """Energy of moving bits; those of one price are added up first."""
    moved = [(read[operand], bits) for operand, bits in traffic.reads.items()]
    moved += [(write[operand], bits) for operand, bits in traffic.writes.items()]
    total = np.zeros(shape)
    for price_per_bit in dict.fromkeys(each for each, _ in moved):
        same = [bits for each, bits in moved if each == price_per_bit]
        total += sum(same[1:], same[0]) * price_per_bit
    return total


def _traffic_words(
    accelerator: Accelerator, traffic: dict[str, _Traffic]
) -> dict[tuple[str, str], Array]:
    """Words by memory and operand, of those that move where a memory holds them."""
    words: dict[tuple[str, str], Array] = {}
    for role, moved in traffic.items():
        for operand in OPERANDS:
            bits = moved.of(operand)
            memory = accelerator.holding(role, operand)
            if memory and bits is not None:
                words[memory.name, operand] = bits / memory.word_bits
    return words


def _transfer_cycles(accelerator: Accelerator, role: str, traffic: _Traffic) -> Iterable[Array]:
    """Cycles that each port of the memories of a role takes, of those with a bandwidth."""
    for memory in accelerator.memories:
        if memory.role == role:
            read = _bits_of(memory, traffic.reads)
            written = _bits_of(memory, traffic.writes)
            for bits, bytes_per_cycle in (
                (read + written, memory.bytes_per_cycle),
                (read, memory.read_bytes_per_cycle),
                (written, memory.write_bytes_per_cycle),
            ):
                if bytes_per_cycle is not None:
                    yield bits / (8 * bytes_per_cycle)


def _bits_of(memory: Memory, bits: Bits) -> Array:
    return np.asarray(sum(moved for operand, moved in bits.items() if operand in memory.operands))
