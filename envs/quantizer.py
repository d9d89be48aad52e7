"""How integers stand for weights and activations: one setting for a whole network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from dataclasses import fields
from dataclasses import replace

from hwmodel.errors import InputError

_RANGE = r"mse|max_abs|kl|percentile:(?:[5-9]\d(?:\.\d+)?|100)"
_RANGES = "mse, max_abs, kl or a percentile from 50 to 100, such as percentile:99.9"

_ALLOWED = {
    "activation_range": (_RANGE, _RANGES),
    "activation_symmetry": ("affine|symmetric", "affine or symmetric"),
}
"""Pattern and description of every field's values."""


@dataclass(frozen=True)
class Quantizer:
    """How integers stand for the inputs of all layers.

    The widths are decisions of every layer; see ``LayerDecision``. 16 and 32 bits are floating
    point and know none of this.

    Attributes:
        activation_range: Which values an input's grid spans. ``mse``: those that minimize the
            squared rounding error; ``kl``: those that minimize the Kullback-Leibler divergence of
            the distribution after rounding from that before (Migacz, 8-bit inference with
            TensorRT, 2017); ``max_abs``: all that occurred; ``percentile:P``: all but the outer
            100 - P percent at each end, zeros not counted.
        activation_symmetry: ``affine`` grids have their zero wherever it suits the input;
            ``symmetric`` ones in the middle, or, for inputs without negative values, at the lower
            end.

    Raises:
        InputError: a value is none of these.
    """

    activation_range: str = "mse"
    activation_symmetry: str = "affine"

    def __post_init__(self) -> None:
        for name, (pattern, allowed) in _ALLOWED.items():
            value = getattr(self, name)
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise InputError(name, value, f"use {allowed}")

    def to_json(self) -> dict[str, str]:
        """The fields that differ from their defaults."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    @property
    def of_activations(self) -> Quantizer:
        """The same as far as it decides about activations; all else by default."""
        return replace(
            Quantizer(),
            activation_range=self.activation_range,
            activation_symmetry=self.activation_symmetry,
        )


DEFAULT_QUANTIZER = Quantizer()


def percentile(range_: str) -> float | None:
    """P / 100 of ``percentile:P``; None for other ranges."""
    kind, _, value = range_.partition(":")
    return float(value) / 100 if kind == "percentile" else None
