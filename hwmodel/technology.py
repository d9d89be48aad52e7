"""How energy and storage scale with bits and density. The constants are in the accelerators."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hwmodel.accelerator import Energy
from hwmodel.errors import InputError

Array = NDArray[np.float64]

WORD_BITS = 16
"""Unit energies are per word of this size; an access of n bits costs n / 16 of a word."""


def mac_pj(energy: Energy, weight_bits: Array, activation_bits: Array, sum_bits: int) -> Array:
    """Energy of one multiply-accumulate in pJ.

    An array multiplier has one cell for each pair of operand bits, an adder one for each bit of
    the sum. Fits Horowitz (ISSCC 2014): 0.2 pJ for 8-bit and 3.1 pJ for 32-bit multiplication.
    Operands of 16 and 32 bits may be floating-point numbers; the same law prices them.
    """
    products = weight_bits * activation_bits * energy.multiplier_pj_per_bit_product
    return products + sum_bits * energy.adder_pj_per_bit


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
