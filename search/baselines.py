"""The configurations that every run measures first, so that ratios have a denominator."""

from __future__ import annotations

from collections.abc import Mapping

DENSE_FP32 = "dense FP32"
DENSE_FP16 = "dense FP16"
DENSE_INT8 = "dense INT8"

BASELINES: Mapping[str, int] = {
    DENSE_FP32: 32,
    DENSE_FP16: 16,
    DENSE_INT8: 8,
    "uniform 6-bit": 6,
    "uniform 5-bit": 5,
    "uniform 4-bit": 4,
}
"""Bits of every weight and activation of the unpruned network, by name, in table order."""
