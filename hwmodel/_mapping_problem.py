"""The mapper's problems, plain numbers, from layers, their states and an accelerator."""

from __future__ import annotations

import math

import numpy as np

from hwmodel._tiling import Crossing
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.mapper import problem as p
from hwmodel.parts import OPERANDS
from hwmodel.parts import REDUCTIONS
from hwmodel.parts import Memory
from hwmodel.technology import Array
from hwmodel.technology import mac_energy
from hwmodel.technology import static_energy_per_cycle
from hwmodel.technology import unit_energies
from hwmodel.workload import LayerShape

LATCHED = {"row_stationary": None, "weight_stationary": p.WEIGHT, "output_stationary": p.OUTPUT}
"""What each dataflow keeps in an element."""


_DEMAND = (
    "macs",
    "active_macs",
    "groups",
    "group_inputs",
    "group_outputs",
    "weights",
    "input_words",
    "output_words",
    "weight_bits",
    "activation_bits",
    "output_bits",
    "weight_flags",
    "input_flags",
    "lane_products",
    "cycles_per_step",
    "buffered_weight_bits",
    "buffered_input_bits",
)
_CROSSING = ("weight_bits", "input_bits", "output_bits")


def work_table(demand: Demand, crossing: Crossing) -> Array:
    """Everything about the layers that decides their cost, (candidates, layers, numbers)."""
    table = np.empty((*demand.macs.shape, len(_DEMAND) + len(_CROSSING)))
    for column, name in enumerate(_DEMAND):
        table[..., column] = getattr(demand, name)
    for column, name in enumerate(_CROSSING, start=len(_DEMAND)):
        table[..., column] = getattr(crossing, name)
    return table


class Work:
    """One layer of one candidate, numbers by name; those that cross DRAM as ``crossing_NAME``."""

    def __init__(self, numbers: Array) -> None:
        names = (*_DEMAND, *(f"crossing_{name}" for name in _CROSSING))
        self._numbers = dict(zip(names, numbers.tolist(), strict=True))

    def __getitem__(self, name: str) -> float:
        return self._numbers[name]

    def stored(self) -> tuple[float, float, float]:
        """Average bits of a value in DRAM by operand, atoms filled; 0 of maps that stay on chip."""
        return (
            self["crossing_weight_bits"] / self["weights"],
            self["crossing_input_bits"] / self["input_words"],
            self["crossing_output_bits"] / self["output_words"],
        )


def problem_of(
    layer: LayerShape, work: Work, accelerator: Accelerator, objective: str
) -> p.Problem:
    """The mapper's problem for one layer of one candidate."""
    array, network = accelerator.array, accelerator.array_network
    sums = float(accelerator.precision.accumulator_bits)
    weight, inputs, outputs = work["weight_bits"], work["activation_bits"], work["output_bits"]
    stored_weight, stored_input, stored_output = work.stored()
    per_bit = network.energy_per_word / network.word_bits if network else 0.0
    multiply = mac_energy(accelerator.mac, np.array(weight), np.array(inputs), int(sums))
    flag_prices = unit_energies(accelerator).register[0]
    flags = (
        work["weight_flags"] * flag_prices["weight"] + work["input_flags"] * flag_prices["input"]
    )
    buffered = (work["buffered_weight_bits"], work["buffered_input_bits"], sums)
    groups = int(work["groups"])
    return p.Problem(
        layer=p.Layer(
            sizes=(
                layer.batch,
                math.ceil(work["group_outputs"]),
                math.ceil(work["group_inputs"]),
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
        vector=_lanes(accelerator, int(work["lane_products"])),
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
        mac=work["active_macs"] * float(multiply),
        active=work["active_macs"] / work["macs"],
        register_overhead=flags,
        cycles_per_mac=work["cycles_per_step"],
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
