"""How energy and storage scale with bits and density. The constants are in the accelerators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import Accelerator
from hwmodel.errors import InputError
from hwmodel.parts import OPERANDS
from hwmodel.parts import Mac
from hwmodel.parts import Memory
from hwmodel.parts import Operand

Array = NDArray[np.float64]


@dataclass(frozen=True)
class UnitEnergies:
    """Energy of one bit of every operand at every role, in the accelerator's unit.

    An operand without a memory of a role costs nothing there.
    """

    register_read: dict[Operand, float]
    register_write: dict[Operand, float]
    buffer_read: dict[Operand, float]
    buffer_write: dict[Operand, float]
    dram_read: dict[Operand, float]
    dram_write: dict[Operand, float]
    network: float


def unit_energies(accelerator: Accelerator) -> UnitEnergies:
    """Energies per bit: those of a word divided by its bits."""

    def by_operand(role: str, key: str) -> dict[Operand, float]:
        energies: dict[Operand, float] = {}
        for operand in OPERANDS:
            memory: Memory | None = next(iter(accelerator.holding(role, operand)), None)
            energies[operand] = getattr(memory, key) / memory.word_bits if memory else 0.0
        return energies

    network = accelerator.array_network
    return UnitEnergies(
        register_read=by_operand("register_file", "read_energy_per_word"),
        register_write=by_operand("register_file", "write_energy_per_word"),
        buffer_read=by_operand("buffer", "read_energy_per_word"),
        buffer_write=by_operand("buffer", "write_energy_per_word"),
        dram_read=by_operand("dram", "read_energy_per_word"),
        dram_write=by_operand("dram", "write_energy_per_word"),
        network=network.energy_per_word / network.word_bits if network else 0.0,
    )


def mac_energy(mac: Mac, weight_bits: Array, activation_bits: Array, sum_bits: int) -> Array:
    """Energy of one multiply-accumulate, in the unit of ``mac``.

    An array multiplier has one cell for each pair of operand bits, an adder one for each bit of
    the sum. Fits Horowitz (ISSCC 2014): 0.2 pJ for 8-bit and 3.1 pJ for 32-bit multiplication.
    Operands of 16 and 32 bits may be floating-point numbers; the same law prices them.
    """
    energy = weight_bits * activation_bits * mac.multiplier_per_bit_product
    if mac.operand_per_bit:
        energy = energy + (weight_bits + activation_bits) * mac.operand_per_bit
    return energy + sum_bits * mac.adder_per_bit


def round_up_bits(field: str, bits: Array, supported: tuple[int, ...]) -> Array:
    """The smallest supported width that holds each operand.

    Raises:
        InputError: an operand is wider than every supported width.
    """
    if bits.max(initial=0) > supported[-1]:
        raise InputError(field, float(bits.max()), f"this accelerator takes up to {supported[-1]}")
    widths = np.asarray(supported, dtype=np.float64)
    return widths[widths.searchsorted(bits)]


def bitmask_bits(bits: Array, density: Array) -> Array:
    """Average stored bits of a weight: non-zero values and one bit of mask, or all values if less.

    The overhead of one bit pays while ``density < 1 - 1 / bits``.
    """
    return np.minimum(bits, density * bits + 1)
