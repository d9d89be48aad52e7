"""Layers and states that the tests of the hardware model share."""

from __future__ import annotations

import dataclasses

import numpy as np

from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import Workload


def conv(
    in_channels: int, out_channels: int, out_side: int, kernel: int = 3, groups: int = 1
) -> LayerShape:
    """A stride-1 convolution whose padding is part of its input, and so is fetched."""
    in_side = out_side + kernel - 1
    return LayerShape(
        name="conv",
        in_channels=in_channels,
        out_channels=out_channels,
        in_height=in_side,
        in_width=in_side,
        out_height=out_side,
        out_width=out_side,
        kernel_height=kernel,
        kernel_width=kernel,
        groups=groups,
    )


def network(*layers: LayerShape) -> Workload:
    named = (dataclasses.replace(layer, name=f"layer{i}") for i, layer in enumerate(layers))
    return Workload(
        name="network",
        layers=tuple(named),
        feeds=tuple((i - 1,) if i else () for i in range(len(layers))),
    )


def with_values(states: LayerStates, **values: float) -> LayerStates:
    """The same states with some attributes set to one value everywhere."""
    arrays = {name: np.full_like(states.weight_bits, value) for name, value in values.items()}
    return dataclasses.replace(states, **arrays)
