"""What zeros save: bits of compressed formats, and the time of hardware that skips zeros."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hwmodel.parts import OperandSparsity
from hwmodel.parts import Sparsity
from hwmodel.states import LayerStates

Array = NDArray[np.float64]
Pattern = tuple[Array | float, Array | float]
"""Share of the values that an N:M pattern keeps, and bits of the place of each."""

DENSE: Pattern = (1.0, 0.0)


def stored_bits(bits: Array, density: Array, zeros: OperandSparsity, pattern: Pattern) -> Array:
    """Average bits of a stored value: compressed, or dense where that is not more.

    ``bitmask`` keeps the values that are not zero and one bit for every value. ``run_length``
    (Chen et al., JSSC 2017, section V) keeps entries of a run of up to ``2^run_bits - 1`` zeros and
    the value behind it, which is zero where the run goes on. ``n_m`` keeps N values of every M,
    zero or not, and ``log2 M`` bits for the place of each.

    Args:
        bits: Width of a value.
        density: Fraction of values that are not zero, taken as independent of each other.
        zeros: Says which format.
        pattern: From :func:`supported_pattern`.
    """
    if zeros.format == "bitmask":
        return np.minimum(bits, density * bits + 1)
    if zeros.format == "run_length":
        assert zeros.run_bits is not None
        # An entry ends at a value that is not zero or after 2^r values: on average it covers
        # sum_{k < 2^r} (1 - d)^k = (1 - (1 - d)^(2^r)) / d of them.
        longest = 2**zeros.run_bits
        some = np.maximum(density, 1e-9)
        entries = some / (1 - (1 - some) ** longest)
        return np.minimum(bits, entries * (bits + zeros.run_bits))
    if zeros.format == "n_m":
        share, index_bits = pattern
        return np.minimum(bits, share * (bits + index_bits))
    return bits


def supported_pattern(states: LayerStates, zeros: OperandSparsity) -> Pattern:
    """The N:M pattern at which the hardware handles every layer's weights.

    It is the sparsest of its patterns that holds the layer's: n of m fits N of M if m divides M
    and ``n M / m <= N``. Unstructured layers (1:1), and those that fit none, are dense.
    """
    if zeros.zeros != "n_m" and zeros.format != "n_m":
        return DENSE
    share = np.ones_like(states.weight_bits)
    index_bits = np.zeros_like(share)
    n, m = states.weight_n, states.weight_m
    for kept, group in sorted(zeros.patterns, key=lambda pattern: -pattern[0] / pattern[1]):
        fits = (m > 1) & (group % m == 0) & (n * (group / m) <= kept)
        share[fits] = kept / group
        index_bits[fits] = math.ceil(math.log2(group))
    return share, index_bits


def array_time(zeros: Sparsity, states: LayerStates, pattern: Pattern) -> Array | float:
    """Time of the array on every layer, relative to one that takes all zeros."""
    time: Array | float = pattern[0] if zeros.weight.zeros == "n_m" else 1.0
    left: Array | float = 1.0
    if zeros.weight.zeros == "skipping":
        left = left * states.weight_density
    if zeros.input.zeros == "skipping":
        left = left * states.activation_density
    if zeros.lanes is None or zeros.window is None:
        return time
    return time * skipping_share(np.asarray(left), zeros.lanes, zeros.window)


def skipping_share(density: Array, lanes: int, window: int) -> Array:
    """Time of an array that skips zeros, relative to one that does not.

    Every lane gets ``window`` products, of which the ``density`` is not zero, and all wait for the
    slowest before they go on. The expected maximum of ``lanes`` binomial counts is that of normal
    ones, ``w d + c sqrt(w d (1 - d))`` with Blom's ``c`` (Statistical Estimates and Transformed
    Beta-Variables, 1958), and at most ``w``. It grows with the density: it is concave and has
    reached ``w`` before it falls. Counts of few products in many lanes are skewed: there this is up
    to 10 % low.
    """
    blom = NormalDist().inv_cdf((lanes - 0.375) / (lanes + 0.25))
    slowest = density + blom * np.sqrt(density * (1 - density) / window)
    return np.minimum(slowest, 1.0)
