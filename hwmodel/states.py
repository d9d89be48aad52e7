"""What compression means to hardware: the state of every layer in a batch of candidates."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.workload import Workload


@dataclass(frozen=True)
class LayerStates:
    """Compressed states of all layers of one workload, for one or more candidates.

    Every attribute is an array of shape (candidates, layers); the last three may be left out.

    Attributes:
        in_channels, out_channels: Channels physically left, all groups together, from 0.
        weight_density: Fraction of non-zero weights among those of the channels left, 0..1.
        activation_density: Fraction of non-zero values in the layer's input, 0..1.
        weight_bits, activation_bits: Bits of the two operands of a multiplication, 1..32.
        output_bits: Bits at which the layer's output is written to memory, 1..32.
        output_density: Fraction of non-zero values in the output that is written; 1 if left out.
        weight_n, weight_m: At most N of every M weights along the input channels are not zero
            (2:4 and the like); 1:1, which says nothing, if left out.
    """

    in_channels: NDArray[np.float64]
    out_channels: NDArray[np.float64]
    weight_density: NDArray[np.float64]
    activation_density: NDArray[np.float64]
    weight_bits: NDArray[np.float64]
    activation_bits: NDArray[np.float64]
    output_bits: NDArray[np.float64]
    output_density: NDArray[np.float64] = None  # type: ignore[assignment]
    weight_n: NDArray[np.float64] = None  # type: ignore[assignment]
    weight_m: NDArray[np.float64] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        shape = self.weight_bits.shape
        for item in fields(self):
            if getattr(self, item.name) is None:
                object.__setattr__(self, item.name, np.broadcast_to(1.0, shape))
                continue
            values = getattr(self, item.name)
            if values.ndim != 2 or values.shape != shape:
                raise InputError(f"states.{item.name}", values.shape, f"use shape {shape}")
            low, high = _range(item.name)
            if not (values.min(initial=low) >= low and values.max(initial=low) <= high):
                bad = values[~((values >= low) & (values <= high))][0]  # NaN, too
                raise InputError(f"states.{item.name}", float(bad), f"use {low} to {high:g}")
        if (self.weight_n > self.weight_m).any() or (
            self.weight_density * self.weight_m > self.weight_n * (1 + 1e-9)
        ).any():
            allowed = "use N up to M, and a weight_density up to N / M"
            raise InputError("states.weight_n", float(self.weight_n.min()), allowed)

    def __len__(self) -> int:
        return self.weight_bits.shape[0]

    @classmethod
    def dense(cls, workload: Workload, bits: int = 16, candidates: int = 1) -> LayerStates:
        """The uncompressed network with every operand at ``bits``."""

        def full(values: list[float]) -> NDArray[np.float64]:
            return np.tile(np.asarray(values, dtype=np.float64), (candidates, 1))

        ones = full([1.0] * len(workload))
        return cls(
            in_channels=full([layer.in_channels for layer in workload.layers]),
            out_channels=full([layer.out_channels for layer in workload.layers]),
            weight_density=ones,
            activation_density=ones,
            weight_bits=ones * bits,
            activation_bits=ones * bits,
            output_bits=ones * bits,
        )


def _range(name: str) -> tuple[int, float]:
    if name.endswith("bits"):
        return 1, 32
    if name.endswith("density"):
        return 0, 1
    return (1, np.inf) if name.startswith("weight_") else (0, np.inf)
