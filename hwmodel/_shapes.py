"""The layers of a workload as arrays, so that all of them are priced at once."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from hwmodel.workload import LayerShape
from hwmodel.workload import VectorKind
from hwmodel.workload import Workload


@dataclass(frozen=True, eq=False)  # hashed by identity: a key for what derives from it
class Shapes:
    """Dense shapes, each of shape (layers,); ``pixels`` count all images of the batch.

    Attributes:
        input_row: Width of the input row that one row of outputs reads, with padding.
        row_stride, row_reach: Input rows from one row of outputs to the next, and that one reads.
        live: (layers, layers), 1 where the output of the second is in memory while the first
            runs: from when it is written until its last reader has it.
        share: (layers, layers), of the second one's input that comes from the first one's output;
            a column of zeros reads the network's input.
        rereads: (layers, layers), how often the first one's output is read for operations behind
            the second.
        additions, multiplications: Operations behind a layer, for each of its output channels.
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
    live: NDArray[np.float64]
    share: NDArray[np.float64]
    rereads: NDArray[np.float64]
    additions: NDArray[np.float64]
    multiplications: NDArray[np.float64]

    def only(self, index: int) -> Shapes:
        """One layer of them."""
        layer = slice(index, index + 1)
        return Shapes(**{item.name: getattr(self, item.name)[..., layer] for item in fields(self)})


@functools.lru_cache(maxsize=64)
def shapes_of(workload: Workload) -> Shapes:
    """The arrays of one workload, computed once."""
    layers = workload.layers

    def stack(values: list[int]) -> NDArray[np.float64]:
        return np.asarray(values, dtype=np.float64)

    share, rereads = _readers(workload)
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
        live=_live(share, rereads),
        share=share,
        rereads=rereads,
        additions=_operations(workload, ("add", "pool", "activation")),
        multiplications=_operations(workload, ("multiply", "requantize")),
    )


def _input_row(layer: LayerShape) -> int:
    reach = (layer.kernel_width - 1) * layer.dilation[1]
    return (layer.out_width - 1) * layer.stride[1] + reach + 1


def _readers(workload: Workload) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Who reads whose output, as its input and again; both (layers, layers)."""
    share = np.zeros((len(workload), len(workload)))
    reads = zip(workload.maps_read, workload.parts_read, strict=True)
    for reader, (writers, parts) in enumerate(reads):
        for writer, part in zip(writers, parts, strict=True):
            share[writer, reader] = part / sum(parts)
    rereads = np.zeros_like(share)
    for operation in workload.operations:
        for writer in operation.reads:
            rereads[writer, operation.layer] += 1
    return share, rereads


def _live(share: NDArray[np.float64], rereads: NDArray[np.float64]) -> NDArray[np.float64]:
    layers = len(share)
    live = np.eye(layers)
    for writer in range(layers):
        last = np.flatnonzero(share[writer] + rereads[writer]).max(initial=writer)
        live[writer : last + 1, writer] = 1
    return live


def _operations(workload: Workload, kinds: tuple[VectorKind, ...]) -> NDArray[np.float64]:
    operations = np.zeros(len(workload))
    for operation in workload.operations:
        if operation.kind in kinds:
            operations[operation.layer] += operation.operations
    return operations
