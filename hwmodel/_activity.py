"""What the dataflows have in common: the counts that the mid level turns into energy."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from hwmodel._shapes import Shapes
from hwmodel.parts import Loop
from hwmodel.parts import Operand
from hwmodel.technology import Array

Bits = dict[Operand, Array]
"""Bits moved, by operand; an operand that does not move is left out."""


@dataclass(frozen=True)
class Activity:
    """Counts of every candidate and layer, (candidates, layers), once each layer's data is on chip.

    Attributes:
        cycles: Cycles the array computes.
        register_reads, register_writes: Bits read from and written to register files and
            accumulators.
        network: Bits moved in the array, however often DRAM is read.
        buffer_reads, buffer_writes: Bits the array reads from and writes to the buffer, however
            often DRAM is read.
        fetch_network_bits, fetch_buffer_bits: Bits of weights that cross the array's network, and
            that the array reads from the buffer, each time the weights are fetched from DRAM.
        sums_in_buffer: Partial sums and outputs live in the buffer, not beside it.
        fetches: How often inputs and weights are read from DRAM, where the dataflow decides it.
    """

    cycles: Array
    register_reads: Bits
    register_writes: Bits
    network: Bits
    buffer_reads: Bits
    buffer_writes: Bits
    fetch_network_bits: Array | float
    fetch_buffer_bits: Array | float
    sums_in_buffer: bool
    fetches: tuple[Array, Array] | None = None


def kernel_values(shapes: Shapes, loops: Collection[Loop]) -> Array | int:
    """Values of a kernel along those of its sides that are among the loops; 1 where none is."""
    sides: dict[Loop, Array] = {
        "kernel_height": shapes.kernel_height,
        "kernel_width": shapes.kernel_width,
    }
    return math.prod(size for side, size in sides.items() if side in loops)
