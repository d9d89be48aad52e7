"""Row-stationary processing passes, as the Eyeriss chip runs a layer (Chen et al., JSSC 2017).

A pass takes ``strip`` rows of outputs of ``images`` images, and in each set of elements ``filters``
filters of ``channels`` input channels; ``stacked`` sets take different channels, ``parallel`` sets
different filters. Its inputs and the partial sums of a whole block of filters share the buffer,
in whole banks. Filters only pass through the chip, so they are read again for every strip and for
every turn of images, and inputs for every block of filters. The register files are not
double-buffered: a pass begins with loading filters and the first windows of the inputs. After that
the multipliers, or the bus of one of the operands, set the pace.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from hwmodel._activity import Activity
from hwmodel._pass_mapping import PassMapping
from hwmodel._pass_mapping import pass_mapping
from hwmodel._shapes import Shapes
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.workload import LayerShape


def row_stationary_passes(shapes: Shapes, demand: Demand, accelerator: Accelerator) -> Activity:
    """Counts on a row-stationary array that runs in processing passes.

    Raises:
        InputError: the inputs and sums of the smallest possible pass do not fit the buffer.
    """
    mapping = pass_mapping(shapes, demand, accelerator)
    return activity_of(mapping, shapes, demand, accelerator.precision.accumulator_bits)


def activity_of(mapping: PassMapping, shapes: Shapes, demand: Demand, sum_bits: int) -> Activity:
    """What an array does that runs like this, (candidates or choices, layers)."""
    alive = demand.macs > 0
    input_rows = demand.in_channels * (mapping.rows * shapes.input_row * shapes.batch)
    sums = demand.output_words * sum_bits
    spilled = sums * (mapping.channel_turns - 1)
    row_words = shapes.kernel_height * shapes.out_height * shapes.input_row * shapes.batch
    deliveries = np.ceil(demand.group_outputs / mapping.filters)
    sum_registers = demand.active_macs * sum_bits
    return Activity(
        cycles=demand.groups * mapping.cycles * alive,
        register_reads={
            "weight": demand.active_macs * demand.weight_bits + demand.weight_flags,
            "input": demand.active_macs * demand.activation_bits + demand.input_flags,
            "output": sum_registers,
        },
        register_writes={"output": sum_registers},
        network={
            "input": demand.in_channels * row_words * deliveries * demand.activation_bits,
            "output": sums * (mapping.channel_turns * (mapping.chain * mapping.stacked + 1) - 1),
        },
        buffer_reads={
            "input": input_rows * mapping.filter_turns * demand.activation_bits,
            "output": spilled,
        },
        buffer_writes={"output": spilled + demand.output_words * demand.output_bits},
        fetch_network_bits=demand.weights * demand.weight_bits * mapping.strip,
        fetch_buffer_bits=demand.weights * demand.buffered_weight_bits,
        sums_in_buffer=True,
        fetches=(
            input_rows * mapping.blocks / np.maximum(demand.input_words, 1),
            mapping.strips * mapping.image_turns,
        ),
    )


def loop_nest(layer: LayerShape, groups: int, mapping: PassMapping, choice: int) -> tuple[str, ...]:
    """One of several mappings of a layer as a loop nest, from DRAM inwards."""
    at = {item.name: int(getattr(mapping, item.name)[choice, 0]) for item in fields(PassMapping)}
    lines = (
        f"for {groups} groups",
        f"for {at['blocks']} blocks of filters: their sums stay in the buffer",
        f"for {at['strips']} strips of {at['strip']} output rows, "
        f"{at['image_turns']} times {at['images']} images: weights from DRAM",
        f"for {at['channel_turns']} times {at['channels'] * at['stacked']} input channels: "
        "inputs from DRAM to the buffer",
        f"for {at['filter_turns'] // at['blocks']} passes of {at['pass_cycles']} cycles: "
        "weights to the elements",
        f"at once: {at['chain']} kernel rows x {at['strip']} output rows x "
        f"{at['stacked']} channel sets x {at['parallel']} filter sets",
        f"inside: {at['images']} images x {layer.out_width} columns x "
        f"{at['channels']} channels x {at['filters']} filters x "
        f"{layer.kernel_width} kernel columns",
    )
    return tuple("  " * depth + line for depth, line in enumerate(lines))
