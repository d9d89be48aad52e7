"""The mapper's problems, plain numbers, from layers, their states and an accelerator."""

from __future__ import annotations

import math

import numpy as np

from hwmodel import _mapping_memories as memories
from hwmodel._mapping_memories import LATCHED
from hwmodel._tiling import Crossing
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.coarse import VectorWork
from hwmodel.mapper import problem as p
from hwmodel.parts import REDUCTIONS
from hwmodel.technology import Array
from hwmodel.technology import mac_energy
from hwmodel.technology import static_energy_per_cycle
from hwmodel.workload import LayerShape

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
_CROSSING = (
    "weight_bits",
    "input_bits",
    "output_bits",
    "kept_output_bits",
    "reread_bits",
    "kept_reread_bits",
    "live_bits",
)
_VECTOR = ("additions", "multiplications")


def work_table(demand: Demand, crossing: Crossing, vector: VectorWork) -> Array:
    """Everything about the layers that decides their cost, (candidates, layers, numbers)."""
    sources = ((demand, _DEMAND), (crossing, _CROSSING), (vector, _VECTOR))
    columns = [getattr(source, name) for source, names in sources for name in names]
    table = np.empty((*demand.macs.shape, len(columns)))
    for index, column in enumerate(columns):
        table[..., index] = column
    return table


class Work:
    """One layer of one candidate, numbers by name; those that cross DRAM as ``crossing_NAME``."""

    def __init__(self, numbers: Array) -> None:
        names = (*_DEMAND, *(f"crossing_{name}" for name in _CROSSING), *_VECTOR)
        self.numbers = dict(zip(names, numbers.tolist(), strict=True))

    def __getitem__(self, name: str) -> float:
        return self.numbers[name]

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
    array = accelerator.array
    sums = float(accelerator.precision.accumulator_bits)
    weight, inputs, outputs = work["weight_bits"], work["activation_bits"], work["output_bits"]
    stored_weight, stored_input, stored_output = work.stored()
    multiply = mac_energy(accelerator.mac, np.array(weight), np.array(inputs), int(sums))
    is_row_stationary = array.dataflow == "row_stationary"
    is_mac_array = not is_row_stationary and array.interconnect == "broadcast"
    products = int(work["lane_products"])
    buffered = (work["buffered_weight_bits"], work["buffered_input_bits"], sums)
    resident = (
        False,
        stored_input == 0 and bool(accelerator.holding("buffer", "input")),
        stored_output == 0 and bool(accelerator.holding("buffer", "output")),
    )
    return p.Problem(
        layer=_layer(layer, work, accelerator),
        axes=_axes(accelerator),
        vector=_lanes(accelerator, products),
        row_stationary=is_row_stationary,
        latched=LATCHED[array.dataflow],
        positions_per_weight=array.positions_per_weight_load or 0,
        registers=memories.registers(accelerator, (weight, inputs, sums), products),
        buffer=memories.buffer(accelerator, buffered, outputs, work["crossing_live_bits"]),
        dram=memories.level(
            accelerator,
            "dram",
            # A map that stays on chip leaves no partial sums outside, either.
            (stored_weight, stored_input, 0.0 if resident[2] else sums),
            stored_output,
        ),
        hop=_hops(accelerator, (weight, inputs, sums)),
        broadcast=is_mac_array,
        whole_vectors=is_mac_array and array.vector.size > 1,
        resident=resident,
        waiting=_waiting(accelerator, work["cycles_per_step"]),
        beside=_beside(accelerator, work),
        mac=work["active_macs"] * float(multiply),
        active=work["active_macs"] / work["macs"],
        flags=(work["weight_flags"], work["input_flags"], 0.0),
        cycles_per_mac=work["cycles_per_step"],
        startup_cycles=array.startup_cycles,
        energy_per_cycle=sum(static_energy_per_cycle(accelerator).values()),
        objective=objective,
    )


def _layer(layer: LayerShape, work: Work, accelerator: Accelerator) -> p.Layer:
    """The loops of a layer; those over positions as one where nothing tells them apart."""
    batch, height, width = layer.batch, layer.out_height, layer.out_width
    in_size = (layer.in_height, layer.in_width)
    on_axes = {loop for axis in accelerator.array.axes for loop in axis.unroll}
    is_product = layer.weights == layer.in_channels // layer.groups * layer.out_channels
    if (
        is_product
        and in_size == (height, width)
        and not on_axes & {"batch", "out_height", "out_width"}
    ):
        batch, height, width = 1, 1, batch * height * width
        in_size = (1, width)
    return p.Layer(
        sizes=(
            batch,
            math.ceil(work["group_outputs"]),
            math.ceil(work["group_inputs"]),
            height,
            width,
            layer.kernel_height,
            layer.kernel_width,
            int(work["groups"]),
        ),
        stride=layer.stride,
        dilation=layer.dilation,
        input_size=in_size,
    )


def _lanes(accelerator: Accelerator, products: int) -> p.Axis:
    """Multipliers of an element, and products side by side in each, which add into one sum."""
    array = accelerator.array
    size = array.vector.size * products
    if size == 1:
        return p.Axis(1, ())
    # Products of a fusible multiplier lie along channels, and what an array takes for channels.
    loops = array.vector.unroll
    if not loops:
        loops = REDUCTIONS if array.axes_of("kernel_width") else ("in_channels",)
    limits = tuple((p.LOOPS.index(loop), size) for loop in loops)
    return p.Axis(size, limits, flat=_is_flat(limits))


def _axes(accelerator: Accelerator) -> tuple[p.Axis, ...]:
    """The array's axes; sets of kernel rows that stand above each other may be folds of outputs."""
    axes = []
    array = accelerator.array
    for axis in array.axes:
        loops = axis.unroll
        if array.dataflow == "row_stationary":
            if "kernel_height" in loops:
                loops = (*dict.fromkeys((*loops, "out_height")),)
        elif array.interconnect == "systolic" and "out_width" in loops:
            loops = ("out_width", "out_height", "batch")  # positions of a matrix product
        limits = tuple((p.LOOPS.index(loop), axis.at_most.get(loop, axis.size)) for loop in loops)
        flat = array.dataflow != "row_stationary" and not axis.at_most and _is_flat(limits)
        axes.append(p.Axis(axis.size, limits, flat))
    return tuple(axes)


def _is_flat(limits: tuple[tuple[int, int], ...]) -> bool:
    """Whether several loops, which all change nothing for the same operand, lie there as one."""
    loops = {loop for loop, _ in limits}
    return len(loops) > 1 and any(loops <= set(together) for together in p.SETS)


def _hops(accelerator: Accelerator, bits: tuple[float, float, float]) -> tuple[float, float, float]:
    """Energy of one value on the array network; what stays in a systolic array takes no hops."""
    network, array = accelerator.array_network, accelerator.array
    per_bit = network.energy_per_word / network.word_bits if network else 0.0
    stays = LATCHED[array.dataflow] if array.interconnect == "systolic" else None
    weight, inputs, sums = (
        0.0 if operand == stays else each * per_bit for operand, each in enumerate(bits)
    )
    return weight, inputs, sums


def _waiting(accelerator: Accelerator, cycles_per_step: float) -> p.Waiting:
    """What the array waits for: see ``_systolic``, ``_mac_array`` and ``_loading``."""
    array = accelerator.array
    if array.interconnect == "systolic" and array.dataflow == "weight_stationary":
        cycles = 2 * array.units("in_channels") + array.units("out_channels") - 2
        return p.Waiting(p.WEIGHT, more_cycles=cycles * cycles_per_step)
    if array.interconnect == "systolic":
        cycles = array.units("out_width") + array.units("out_channels") - 2
        return p.Waiting(p.OUTPUT, more_cycles=cycles * cycles_per_step)
    least = array.min_positions_per_weight_load
    return p.Waiting(
        p.WEIGHT,
        least_cycles=least * cycles_per_step if least > 1 else 0.0,
        whole_input_first=array.units("out_channels") if array.whole_input_first else 0,
    )


def _beside(accelerator: Accelerator, work: Work) -> p.Beside:
    """Additions and the like, and maps that are read again or stay on chip, as at the mid level."""
    vector = accelerator.vector_unit
    kept = work["crossing_kept_output_bits"]
    writes = 0.0 if accelerator.holding("buffer", "output") else kept
    if vector is None:
        return p.Beside(buffer_writes=writes)
    additions, multiplications = work["additions"], work["multiplications"]
    on_chip = accelerator.holding("buffer", "input")
    return p.Beside(
        dram_reads=work["crossing_reread_bits"],
        buffer_reads=work["crossing_kept_reread_bits"] if on_chip else 0.0,
        buffer_writes=writes,
        vector_energy=additions * vector.add_energy + multiplications * vector.multiply_energy,
        vector_cycles=(additions + multiplications) / vector.operations_per_cycle,
        overlaps=vector.overlaps,
    )
