"""What an array waits for: loads that it cannot hide behind its computing."""

from __future__ import annotations

import numpy as np

from hwmodel._activity import Bits
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.parts import Operand
from hwmodel.technology import Array


def with_waiting(
    computing: Array, demand: Demand, accelerator: Accelerator, fetched: Bits
) -> Array:
    """Cycles of every layer with the start-up and the loads that its array waits for.

    Args:
        computing: Cycles of the multipliers, (candidates, layers).
        demand: What is computed.
        accelerator: Its array says what it waits for.
        fetched: Bits of weights and inputs read from DRAM.
    """
    array = accelerator.array
    cycles = computing
    if array.whole_input_first:

        def load(operand: Operand, bits: Array) -> Array:
            memory = accelerator.dram(operand)
            bytes_per_cycle = memory.read_bytes_per_cycle or memory.bytes_per_cycle
            assert bytes_per_cycle  # checked when the accelerator was made
            return bits / (8 * bytes_per_cycle)

        buffer = accelerator.holding("buffer", "input")
        assert buffer is not None  # checked when the accelerator was made
        cycles = whole_input_first_cycles(
            computing,
            load("input", fetched["input"]),
            load("weight", fetched["weight"]),
            turns=np.ceil(demand.group_outputs / array.units("out_channels")),
            groups=demand.groups,
            buffer_load=float(load("input", np.asarray(buffer.capacity_bits("input")))),
        )
    return cycles + array.startup_cycles * (demand.macs > 0)


def whole_input_first_cycles(
    computing: Array,
    input_load: Array,
    weight_load: Array,
    turns: Array,
    groups: Array,
    buffer_load: float,
) -> Array:
    """Cycles of a layer that starts when its input and its first weights are in the buffer.

    NVDLA's sequencer works so: it waits until the buffer holds all slices of the input and the
    kernels of the current turn (NV_NVDLA_CSC_sg.v, ``dat_cbuf_ready`` and ``wt_cbuf_ready``).
    Input and weights take turns on the memory's bus, so until the input is there as many weights
    have come, if there are as many and the buffer has room. What is left of them streams in behind
    the computing. Weights of a turn give way only when it is over; where the room holds less than
    two turns, the next turn waits for the rest. An input that does not fit is cut into parts of
    half the buffer, and only the first one is waited for.

    Args:
        computing: Cycles of the multipliers.
        input_load: Cycles that reading all inputs takes.
        weight_load: Cycles that reading all weights takes.
        turns: Sets of output channels, side by side in the array, that follow each other.
        groups: Groups of the layer, which follow each other.
        buffer_load: Cycles that filling the buffer would take.
    """
    one_input = input_load / groups
    one_weight = weight_load / groups
    turn = one_weight / np.maximum(turns, 1)
    waited = np.where(one_input + turn > buffer_load, buffer_load / 2, one_input)
    waited = np.minimum(waited, one_input)
    room = buffer_load - waited
    early = np.maximum(turn, np.minimum(one_weight, np.minimum(waited, room)))
    missing = np.where(one_weight > room, np.clip(2 * turn - room, 0, turn), 0.0)
    stalls = groups * np.maximum(turns - 1, 0) * missing
    streamed = input_load + weight_load - waited - early
    last_turn = computing / np.maximum(groups * turns, 1)
    return np.asarray(waited + early + np.maximum(computing + stalls, streamed + last_turn))


def pass_cycles(
    computing: Array,
    weight_load: Array,
    window_load: Array,
    input_load: Array,
    sum_transfer: Array,
) -> Array:
    """Cycles of one processing pass of a row-stationary array (Chen et al., JSSC 2017).

    The elements' register files are not double-buffered: first come the filters, then the first
    window of inputs, from which the elements can start. After that multipliers and buses work at
    the same time, and the slowest sets the pace. Sums are read and written on a bus each.

    Args:
        computing: Cycles of the multipliers.
        weight_load: Cycles to bring all filters of the pass.
        window_load: Cycles to bring one window of every input row and channel of the pass.
        input_load: Cycles to bring all inputs of the pass.
        sum_transfer: Cycles to bring, or to take away, all its partial sums.
    """
    pace = np.maximum(np.maximum(computing, input_load), sum_transfer)
    return np.asarray(weight_load + window_load + pace)
