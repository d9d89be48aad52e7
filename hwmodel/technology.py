"""How energy and storage scale with bits and density. The constants are in the accelerators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import Accelerator
from hwmodel.errors import InputError
from hwmodel.parts import OPERANDS
from hwmodel.parts import Mac
from hwmodel.parts import Operand
from hwmodel.parts import Precision

Array = NDArray[np.float64]


ByOperand = dict[Operand, float]


@dataclass(frozen=True)
class UnitEnergies:
    """Energy of one bit, in the accelerator's unit.

    Attributes:
        register, buffer, dram: (read, write) by operand, of the memory with that role that holds
            it; 0 where none does.
        network: Of one bit delivered in the array.
    """

    register: tuple[ByOperand, ByOperand]
    buffer: tuple[ByOperand, ByOperand]
    dram: tuple[ByOperand, ByOperand]
    network: float


def unit_energies(accelerator: Accelerator) -> UnitEnergies:
    """Energies per bit: those of a word divided by its bits."""

    def of(role: str) -> tuple[ByOperand, ByOperand]:
        read = dict.fromkeys(OPERANDS, 0.0)
        write = dict.fromkeys(OPERANDS, 0.0)
        for operand in OPERANDS:
            if memory := accelerator.holding(role, operand):
                read[operand] = memory.read_energy_per_word / memory.word_bits
                write[operand] = memory.write_energy_per_word / memory.word_bits
        return read, write

    network = accelerator.array_network
    return UnitEnergies(
        register=of("register_file"),
        buffer=of("buffer"),
        dram=of("dram"),
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


def throughput(
    precision: Precision, weight_bits: Array, activation_bits: Array
) -> tuple[Array | float, Array | float]:
    """Products that a multiplier finishes side by side, and the cycles it takes for them.

    ``bit_parallel``: 1 and 1. ``bit_serial``: 1, and a cycle for every bit of the serial operand
    (Stripes, Judd et al., MICRO 2016), or for every pair of bits where both are (Loom, Sharify et
    al., DAC 2018). ``fusible``: the multiplier's bricks over the bricks of a product, below 1 as
    so many more cycles (Bit Fusion, Sharma et al., ISCA 2018).
    """
    if precision.style == "fusible":
        assert precision.bricks is not None and precision.brick_bits is not None
        of_weight = np.ceil(weight_bits / precision.brick_bits)
        needed = of_weight * np.ceil(activation_bits / precision.brick_bits)
        return np.maximum(precision.bricks // needed, 1), np.ceil(needed / precision.bricks)
    cycles: Array | float = 1.0
    if "weight" in precision.serial:
        cycles = cycles * weight_bits
    if "input" in precision.serial:
        cycles = cycles * activation_bits
    return 1.0, cycles


def static_energy_per_cycle(accelerator: Accelerator) -> dict[str, float]:
    """Energy of leakage and clock in a cycle, of those that the accelerator states.

    In pJ: a milliwatt at one hertz is 1e9 pJ a cycle.
    """
    if accelerator.static is None:
        return {}
    power_mw = {"leakage": accelerator.static.leakage_mw, "clock": accelerator.static.clock_mw}
    return {name: mw * 1e9 / accelerator.clock_hz for name, mw in power_mw.items() if mw}


def round_up_bits(field: str, bits: Array, supported: tuple[int, ...]) -> Array:
    """The smallest supported width that holds each operand.

    Raises:
        InputError: an operand is wider than every supported width.
    """
    if bits.max(initial=0) > supported[-1]:
        raise InputError(field, float(bits.max()), f"this accelerator takes up to {supported[-1]}")
    widths = np.asarray(supported, dtype=np.float64)
    return widths[widths.searchsorted(bits)]
