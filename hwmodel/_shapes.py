"""The layers of a workload as arrays, so that all of them are priced at once."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.workload import LayerShape
from hwmodel.workload import Workload


@dataclass(frozen=True, eq=False)  # hashed by identity: a key for what derives from it
class Shapes:
    """Dense shapes, each of shape (layers,); ``pixels`` count all images of the batch.

    Attributes:
        input_row: Width of the input row that one row of outputs reads, with padding.
        row_stride, row_reach: Input rows from one row of outputs to the next, and that one reads.
        exchanges: (layers, exchanges), 1 where a layer writes or reads an exchange: the smallest
            sets of feature maps that are kept on chip together or not at all.
        inner_output, inner_input: (exchanges, layers), 1 where the layer writes or reads there.
    """

    in_channels: NDArray[np.float64]
    out_channels: NDArray[np.float64]
    groups: NDArray[np.float64]
    batch: NDArray[np.float64]
    kernel: NDArray[np.float64]
    kernel_height: NDArray[np.float64]
    kernel_width: NDArray[np.float64]
    in_pixels: NDArray[np.float64]
    out_pixels: NDArray[np.float64]
    out_height: NDArray[np.float64]
    out_width: NDArray[np.float64]
    input_row: NDArray[np.float64]
    row_stride: NDArray[np.float64]
    row_reach: NDArray[np.float64]
    exchanges: NDArray[np.float64]
    inner_output: NDArray[np.float64]
    inner_input: NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def shapes_of(workload: Workload) -> Shapes:
    """The arrays of one workload, computed once."""
    layers = workload.layers

    def stack(values: list[int]) -> NDArray[np.float64]:
        return np.asarray(values, dtype=np.float64)

    writes, reads = _exchanges(workload)
    return Shapes(
        in_channels=stack([layer.in_channels for layer in layers]),
        out_channels=stack([layer.out_channels for layer in layers]),
        groups=stack([layer.groups for layer in layers]),
        batch=stack([layer.batch for layer in layers]),
        kernel=stack([layer.kernel_height * layer.kernel_width for layer in layers]),
        kernel_height=stack([layer.kernel_height for layer in layers]),
        kernel_width=stack([layer.kernel_width for layer in layers]),
        in_pixels=stack([layer.batch * layer.in_height * layer.in_width for layer in layers]),
        out_pixels=stack([layer.batch * layer.out_height * layer.out_width for layer in layers]),
        out_height=stack([layer.out_height for layer in layers]),
        out_width=stack([layer.out_width for layer in layers]),
        input_row=stack([_input_row(layer) for layer in layers]),
        row_stride=stack([layer.stride[0] for layer in layers]),
        row_reach=stack([(layer.kernel_height - 1) * layer.dilation[0] + 1 for layer in layers]),
        exchanges=np.maximum(writes, reads).T,
        inner_output=writes,
        inner_input=reads,
    )


def _input_row(layer: LayerShape) -> int:
    reach = (layer.kernel_width - 1) * layer.dilation[1]
    return (layer.out_width - 1) * layer.stride[1] + reach + 1


def _exchanges(workload: Workload) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Who writes and who reads each exchange, both (exchanges, layers).

    Maps that meet in one consumer, or one map with several consumers, are one exchange: it stays
    on chip only as a whole, or a consumer would look in both places.
    """
    groups: list[tuple[set[int], set[int]]] = []
    for reader, writers in enumerate(workload.feeds):
        if not writers:
            continue
        joined = (set(writers), {reader})
        apart = []
        for group in groups:
            if group[0] & joined[0]:
                joined = (joined[0] | group[0], joined[1] | group[1])
            else:
                apart.append(group)
        groups = [*apart, joined]
    writes = np.zeros((len(groups), len(workload)))
    reads = np.zeros((len(groups), len(workload)))
    for index, (writers_of, readers_of) in enumerate(groups):
        writes[index, list(writers_of)] = 1
        reads[index, list(readers_of)] = 1
    return writes, reads
