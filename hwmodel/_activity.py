"""What the two dataflows have in common: the counts that the mid level turns into energy."""

from __future__ import annotations

from dataclasses import dataclass

from hwmodel.technology import Array


@dataclass(frozen=True)
class Activity:
    """Counts of every candidate and layer, (candidates, layers), once each layer's data is on chip.

    Attributes:
        cycles: Cycles the array computes.
        register_file_bits: Bits read from and written to register files and accumulators.
        array_network_bits, buffer_bits: Bits moved in the array, and to and from the buffer,
            however often DRAM is read.
        fetch_network_bits, fetch_buffer_bits: The same for each time the weights are fetched.
        sums_in_buffer: Partial sums and outputs live in the buffer, not beside it.
    """

    cycles: Array
    register_file_bits: Array
    array_network_bits: Array
    buffer_bits: Array
    fetch_network_bits: Array | float
    fetch_buffer_bits: Array | float
    sums_in_buffer: bool
