"""The row-stationary dataflow of Eyeriss (Chen et al., ISCA 2016), in closed form.

A processing element convolves one row of a kernel with one row of the input. A set of
``kernel_height`` by ``out_height`` elements computes one plane of a kernel; rows of outputs beyond
the array's width are folded. The elements above each other that one set leaves free hold further
sets, which take other input channels (adding to the same partial sums) or other outputs. Inside an
element a few channels and filters take turns, as many as its register file holds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel._activity import Activity
from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.technology import Array
from hwmodel.technology import unit_energies


@dataclass(frozen=True)
class Elements:
    """The array, and the register file of one element in values of each operand."""

    rows: int
    columns: int
    input_words: int
    filter_words: int
    partial_sum_words: int

    @classmethod
    def of(cls, accelerator: Accelerator) -> Elements:
        rows = accelerator.array.axes_of("kernel_height")[0]
        columns = accelerator.array.axes_of("out_height")[0]
        return cls(
            rows=rows.size,
            columns=columns.size,
            input_words=accelerator.register_words("input"),
            filter_words=accelerator.register_words("weight"),
            partial_sum_words=accelerator.register_words("output"),
        )


@dataclass(frozen=True)
class _Mapping:
    """How every layer lies on the array, (layers,); the choices of stacking, (choices, 1, layers).

    Attributes:
        folds: Folds of the output rows; each takes ``fold_rows`` columns of the array.
        kernel_folds: Folds of a kernel taller than the array; ``chain`` elements add up in each.
        channels, filters: Input channels and filters that take turns in one element.
        stacked_channels: Sets above each other that take different input channels.
        parallel_outputs: Sets that take different outputs (filters or folds).
    """

    folds: Array
    fold_rows: Array
    kernel_folds: Array
    chain: Array
    channels: Array
    filters: Array
    stacked_channels: Array
    parallel_outputs: Array


def row_stationary(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> Activity:
    """Counts on a row-stationary array; of all ways to stack sets, the one of least energy."""
    mapping = _map(shapes, Elements.of(accelerator))
    sum_bits = accelerator.precision.accumulator_bits
    choice = _least_energy(mapping, demand, accelerator)
    each_layer = np.arange(shapes.kernel.size)
    stacked = mapping.stacked_channels[choice, 0, each_layer]
    parallel = mapping.parallel_outputs[choice, 0, each_layer]

    passes = mapping.kernel_folds * np.ceil(demand.group_inputs / (stacked * mapping.channels))
    hops = passes * (mapping.chain * stacked + 1) - 1
    # Every pass but the last writes its partial sums to the buffer and reads them back.
    spilled_bits = demand.output_words * sum_bits * (passes - 1)
    turns = np.ceil(demand.group_outputs / (parallel * mapping.filters))
    input_buffer_bits = demand.input_words * demand.buffered_input_bits * turns
    cycles = (
        np.ceil(demand.group_inputs / (stacked * demand.lane_products))
        * np.ceil(demand.out_channels * mapping.folds / parallel)
        * (mapping.kernel_folds * shapes.kernel_width * shapes.out_width * shapes.batch)
    )
    # An input row enters every element of its set, once for the filters that take turns there.
    row_words = shapes.kernel_height * shapes.out_height * shapes.input_row * shapes.batch
    deliveries = np.ceil(demand.group_outputs / mapping.filters)
    input_network_bits = demand.in_channels * row_words * deliveries * demand.activation_bits
    output_bits = demand.output_words * demand.output_bits
    weight_bits = demand.weights * demand.weight_bits
    sum_register_bits = demand.active_macs * sum_bits
    return Activity(
        cycles=cycles,
        register_reads={
            "weight": demand.active_macs * demand.weight_bits + demand.weight_flags,
            "input": demand.active_macs * demand.activation_bits + demand.input_flags,
            "output": sum_register_bits,
        },
        register_writes={"output": sum_register_bits},
        network={"input": input_network_bits, "output": demand.output_words * sum_bits * hops},
        buffer_reads={"input": input_buffer_bits, "output": spilled_bits},
        buffer_writes={"output": spilled_bits + output_bits},
        fetch_network_bits=weight_bits * mapping.fold_rows,
        fetch_buffer_bits=demand.weights * demand.buffered_weight_bits,
        sums_in_buffer=True,
    )


def _least_energy(mapping: _Mapping, demand: Demand, accelerator: Accelerator) -> NDArray[np.intp]:
    """The stacking of least energy, (candidates, layers).

    Stacking channels saves passes of the partial sums, parallel filters save reads of the inputs.
    """
    unit = unit_energies(accelerator)
    network = unit.network
    read, write = unit.buffer
    spill = read["output"] + write["output"]
    stacked = mapping.stacked_channels
    # Per bit of output and pass: the hops to and from the buffer, its write and its read.
    one_pass = mapping.kernel_folds * ((mapping.chain * stacked + 1) * network + spill)
    sums = demand.output_words * accelerator.precision.accumulator_bits
    inputs = demand.input_words * demand.buffered_input_bits * read["input"]
    energy = np.ceil(demand.group_inputs / (stacked * mapping.channels))
    energy *= one_pass
    energy *= sums
    turns = np.ceil(demand.group_outputs / (mapping.parallel_outputs * mapping.filters))
    turns *= inputs
    energy += turns
    return energy.argmin(axis=0)


@functools.lru_cache(maxsize=64)
def _map(shapes: Shapes, array: Elements) -> _Mapping:
    folds = np.ceil(shapes.out_height / array.columns)
    fold_rows = np.ceil(shapes.out_height / folds)
    side_by_side = np.floor(array.columns / fold_rows)
    kernel_folds = np.ceil(shapes.kernel_height / array.rows)
    chain = np.ceil(shapes.kernel_height / kernel_folds)
    above = np.floor(array.rows / chain)
    channels = np.floor(array.input_words / shapes.kernel_width).clip(min=1)
    held = np.floor(array.filter_words / (channels * shapes.kernel_width)).clip(min=1)
    stacked = _stackings(above)
    return _Mapping(
        folds=folds,
        fold_rows=fold_rows,
        kernel_folds=kernel_folds,
        chain=chain,
        channels=channels,
        filters=held.clip(max=array.partial_sum_words),
        stacked_channels=stacked,
        parallel_outputs=np.floor(above / stacked) * side_by_side,
    )


def _stackings(above: Array) -> NDArray[np.float64]:
    """The useful numbers of sets to stack for channels, per layer, (choices, 1, layers)."""
    choices = [sorted({int(n) // k for k in range(1, int(n) + 1)}) for n in above]
    longest = max(map(len, choices))
    padded = [row + row[-1:] * (longest - len(row)) for row in choices]
    return np.asarray(padded, dtype=np.float64).T[:, np.newaxis, :]
