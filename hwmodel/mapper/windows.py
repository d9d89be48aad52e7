"""Sizes that tiles may have, and the input positions that tiles of outputs read."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@functools.lru_cache(maxsize=4096)
def balanced(size: int, limit: int | None = None) -> tuple[int, ...]:
    """The sizes worth trying for a tile of ``size``: those that split it into equal parts.

    A tile between two of them needs as many parts as the smaller one and holds more.
    """
    sizes = {-(-size // parts) for parts in range(1, math.isqrt(size) + 1)}
    sizes |= {-(-size // -(-size // small)) for small in range(1, math.isqrt(size) + 1)}
    return tuple(sorted(value for value in sizes if limit is None or value <= limit))


@functools.lru_cache(maxsize=1024)
def parts(most: int) -> tuple[int, ...]:
    """Numbers of equal parts to try, descending to 1: all small ones, then every fourth of it."""
    numbers = {most, *range(1, min(most, 8) + 1)}
    number = 10
    while number < most:
        numbers.add(number)
        number += max(number // 4, 1)
    return tuple(sorted(numbers, reverse=True))


def positions(
    outputs: int,
    tile: Array,
    taps: int,
    tap_tile: Array,
    stride: int,
    dilation: int,
    real: int,
) -> Array:
    """Input positions read along one dimension, when outputs and kernel taps are tiled.

    Every tile reads the span of its outputs, or only what its taps touch where they leave gaps
    (stride beyond the kernel). Padding is not read.

    Args:
        outputs: Outputs along the dimension.
        tile: Those of one tile.
        taps: Kernel taps.
        tap_tile: Those of one tile.
        stride: From one output to the next.
        dilation: From one tap to the next.
        real: Positions of the input that exist.
    """
    if outputs == 1 and taps == 1:
        return np.ones(1)
    common = math.gcd(stride, dilation)
    span = (outputs - 1) * stride + (taps - 1) * dilation + 1
    padding = max(span - real, 0) / common
    step, gap = stride // common, dilation // common
    tiles, tap_tiles = np.ceil(outputs / tile), np.ceil(taps / tap_tile)
    reach = (taps - tap_tiles) * gap + tap_tiles
    spans = tap_tiles * (outputs - tiles) * step + tiles * reach
    return np.maximum(np.minimum(spans, float(outputs * taps)) - padding, 1.0)


def window(tile: Array, tap_tile: Array, stride: int, dilation: int) -> Array:
    """Input positions along one dimension that a tile of outputs and taps holds."""
    common = math.gcd(stride, dilation)
    span = (tile - 1) * (stride // common) + (tap_tile - 1) * (dilation // common) + 1
    return np.minimum(span, tile * tap_tile)
