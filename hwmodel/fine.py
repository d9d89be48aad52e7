"""The fine level: the best mapping of every layer, searched.

Builds the mapper's problems, plain numbers, from layers, their states and an accelerator, and the
report's arrays from the mappings found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hwmodel._shapes import Shapes
from hwmodel._tiling import Crossing
from hwmodel._tiling import crossing_of
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.mapper import Mapping
from hwmodel.mapper import problem as p
from hwmodel.mapper import solve
from hwmodel.mapper.solve import Counting
from hwmodel.parts import OPERANDS
from hwmodel.parts import REDUCTIONS
from hwmodel.parts import Memory
from hwmodel.report import COMPONENTS
from hwmodel.technology import Array
from hwmodel.technology import mac_energy
from hwmodel.technology import static_energy_per_cycle
from hwmodel.technology import unit_energies
from hwmodel.workload import LayerShape
from hwmodel.workload import Workload

LATCHED = {"row_stationary": None, "weight_stationary": p.WEIGHT, "output_stationary": p.OUTPUT}
"""What each dataflow keeps in an element."""


@dataclass(frozen=True)
class FineCost:
    """What the fine level adds to the demand, (candidates, layers) each. See ``CostReport``."""

    component_pj: dict[str, Array]
    latency_cycles: Array
    dram_bytes: Array
    dram_words: Array
    utilization: Array
    traffic_words: dict[tuple[str, str], Array]
    mappings: tuple[tuple[Mapping | None, ...], ...]


def map_layers(
    workload: Workload,
    shapes: Shapes,
    demand: Demand,
    accelerator: Accelerator,
    objective: str,
    counting: Counting,
) -> FineCost:
    """Price every candidate and layer by the best mapping; None for layers that are gone.

    Raises:
        InputError: a layer fits no mapping.
    """
    crossing = crossing_of(shapes, demand, accelerator)
    rows = []
    for candidate in range(demand.macs.shape[0]):
        row: list[Mapping | None] = []
        for index, layer in enumerate(workload.layers):
            if demand.macs[candidate, index] == 0:
                row.append(None)
                continue
            problem = problem_of(
                layer, _Work(demand, crossing, (candidate, index)), accelerator, objective
            )
            row.append(solve(problem, counting))
        rows.append(tuple(row))
    return _report(accelerator, demand, tuple(rows))


@dataclass(frozen=True)
class _Work:
    """One layer of one candidate."""

    demand: Demand
    crossing: Crossing
    at: tuple[int, int]

    def __call__(self, name: str) -> float:
        """A number of the demand."""
        value = getattr(self.demand, name)
        return float(value[self.at] if isinstance(value, np.ndarray) else value)

    def stored(self) -> tuple[float, float, float]:
        """Average bits of a value in DRAM by operand, atoms filled; 0 of maps that stay on chip."""
        crossing = self.crossing
        return (
            float(crossing.weight_bits[self.at]) / self("weights"),
            float(crossing.input_bits[self.at]) / self("input_words"),
            float(crossing.output_bits[self.at]) / self("output_words"),
        )


def problem_of(
    layer: LayerShape, work: _Work, accelerator: Accelerator, objective: str
) -> p.Problem:
    """The mapper's problem for one layer of one candidate."""
    array, network = accelerator.array, accelerator.array_network
    sums = float(accelerator.precision.accumulator_bits)
    weight, inputs, outputs = work("weight_bits"), work("activation_bits"), work("output_bits")
    stored_weight, stored_input, stored_output = work.stored()
    per_bit = network.energy_per_word / network.word_bits if network else 0.0
    multiply = mac_energy(accelerator.mac, np.array(weight), np.array(inputs), int(sums))
    flag_prices = unit_energies(accelerator).register[0]
    flags = (
        work("weight_flags") * flag_prices["weight"] + work("input_flags") * flag_prices["input"]
    )
    buffered = (work("buffered_weight_bits"), work("buffered_input_bits"), sums)
    groups = int(work("groups"))
    return p.Problem(
        layer=p.Layer(
            sizes=(
                layer.batch,
                math.ceil(work("group_outputs")),
                math.ceil(work("group_inputs")),
                layer.out_height,
                layer.out_width,
                layer.kernel_height,
                layer.kernel_width,
                groups,
            ),
            stride=layer.stride,
            dilation=layer.dilation,
            input_size=(layer.in_height, layer.in_width),
        ),
        axes=_axes(accelerator),
        vector=_lanes(accelerator, int(work("lane_products"))),
        row_stationary=array.dataflow == "row_stationary",
        latched=LATCHED[array.dataflow],
        positions_per_weight=array.positions_per_weight_load or 0,
        registers=_level(accelerator, "register_file", (weight, inputs, sums), outputs),
        buffer=_level(accelerator, "buffer", buffered, outputs),
        dram=_level(
            accelerator,
            "dram",
            # A map that stays on chip leaves no partial sums outside, either.
            (stored_weight, stored_input, sums if stored_output else 0.0),
            stored_output,
        ),
        hop=(weight * per_bit, inputs * per_bit, sums * per_bit),
        mac=work("active_macs") * float(multiply),
        active=work("active_macs") / work("macs"),
        register_overhead=flags,
        cycles_per_mac=work("cycles_per_step"),
        startup_cycles=array.startup_cycles,
        energy_per_cycle=sum(static_energy_per_cycle(accelerator).values()),
        objective=objective,
    )


def _lanes(accelerator: Accelerator, products: int) -> p.Axis:
    """Multipliers of an element, and products side by side in each, which add into one sum."""
    vector = accelerator.array.vector
    size = vector.size * products
    loops = vector.unroll or REDUCTIONS
    return p.Axis(size, tuple((p.LOOPS.index(loop), size) for loop in loops) if size > 1 else ())


def _axes(accelerator: Accelerator) -> tuple[p.Axis, ...]:
    """The array's axes; sets of kernel rows that stand above each other may be folds of outputs."""
    axes = []
    for axis in accelerator.array.axes:
        loops = axis.unroll
        if accelerator.array.dataflow == "row_stationary" and "kernel_height" in loops:
            loops = (*dict.fromkeys((*loops, "out_height")),)
        limits = ((p.LOOPS.index(loop), axis.at_most.get(loop, axis.size)) for loop in loops)
        axes.append(p.Axis(axis.size, tuple(limits)))
    return tuple(axes)


def _level(
    accelerator: Accelerator, role: str, bits: tuple[float, float, float], final_bits: float
) -> p.Level:
    memories = [next(iter(accelerator.holding(role, operand)), None) for operand in OPERANDS]

    def by_bit(key: str) -> tuple[float, float, float]:
        first, second, third = (
            getattr(memory, key) / memory.word_bits if memory else 0.0 for memory in memories
        )
        return first, second, third

    spaces: list[tuple[tuple[int, ...], float]] = []
    ports: list[p.Port] = []
    for memory in dict.fromkeys(memory.name for memory in memories if memory):
        operands = tuple(i for i, held in enumerate(memories) if held and held.name == memory)
        held = memories[operands[0]]
        assert held is not None
        if held.words is not None:
            spaces += [((i,), held.words[OPERANDS[i]] * bits[i]) for i in operands]
        elif held.capacity_bytes is not None:
            spaces.append((operands, 8.0 * held.capacity_bytes))
        ports += _ports(held, operands, 1 if role != "register_file" else 0)
    names = tuple(memory.name if memory else None for memory in memories)
    return p.Level(
        names=(names[0], names[1], names[2]),
        bits=bits,
        final_bits=final_bits,
        read=by_bit("read_energy_per_word"),
        write=by_bit("write_energy_per_word"),
        spaces=tuple(spaces) if role != "dram" else (),
        ports=tuple(ports),
    )


def _ports(memory: Memory, operands: tuple[int, ...], shared: int) -> list[p.Port]:
    if not shared:
        return []
    ports = []
    if memory.bytes_per_cycle is not None:
        ports.append(p.Port(operands, 8 * memory.bytes_per_cycle))
    if memory.read_bytes_per_cycle is not None:
        ports.append(p.Port(operands, 8 * memory.read_bytes_per_cycle, writes=False))
    if memory.write_bytes_per_cycle is not None:
        ports.append(p.Port(operands, 8 * memory.write_bytes_per_cycle, reads=False))
    return ports


def _report(
    accelerator: Accelerator, demand: Demand, mappings: tuple[tuple[Mapping | None, ...], ...]
) -> FineCost:
    shape = demand.macs.shape
    word_bits = {memory.name: memory.word_bits for memory in accelerator.memories}
    dram = {memory.name for memory in accelerator.memories if memory.role == "dram"}
    static = static_energy_per_cycle(accelerator)
    components = {name: np.zeros(shape) for name in (*COMPONENTS, *static)}
    traffic: dict[tuple[str, str], Array] = {}
    cycles, utilization = np.zeros(shape), np.zeros(shape)
    dram_bits, dram_words = np.zeros(shape), np.zeros(shape)
    for at in np.ndindex(*shape):
        mapping = mappings[at[0]][at[1]]
        if mapping is None:
            continue
        for name, energy in mapping.energy.items():
            components[name][at] = energy
        for name, per_cycle in static.items():
            components[name][at] = mapping.cycles * per_cycle
        for (memory, operand), bits in mapping.traffic_bits.items():
            words = traffic.setdefault((memory, operand), np.zeros(shape))
            words[at] = bits / word_bits[memory]
            if memory in dram:
                dram_bits[at] += bits
                dram_words[at] += bits / word_bits[memory]
        cycles[at] = mapping.cycles
        utilization[at] = mapping.utilization
    return FineCost(
        component_pj=components,
        latency_cycles=cycles,
        dram_bytes=dram_bits / 8,
        dram_words=dram_words,
        utilization=utilization,
        traffic_words=traffic,
        mappings=mappings,
    )
