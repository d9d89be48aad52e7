"""How integers stand for weights and activations: one setting for a whole network."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from functools import cached_property

from envs.settings import check_values
from envs.settings import non_defaults
from hwmodel.errors import InputError

_RANGE = r"mse|max_abs|kl|percentile:(?:9\d(?:\.\d+)?|100)"
_RANGES = "mse, max_abs, kl or a percentile from 90 to 100, such as percentile:99.9"
_SYMMETRY = ("affine|symmetric", "affine or symmetric")

_ALLOWED = {
    "activation_range": (_RANGE, _RANGES),
    "activation_symmetry": _SYMMETRY,
    "activation_placement": (r"fused|per-layer", "fused or per-layer"),
    "weight_range": (_RANGE, _RANGES),
    "weight_symmetry": _SYMMETRY,
    "weight_granularity": (r"tensor|channel|group:[1-9]\d{0,5}", "tensor, channel or group:N"),
    "scale": ("float|power_of_two", "float or power_of_two"),
}
"""Pattern and description of every field's values."""


@dataclass(frozen=True)
class Quantizer:
    """How integers stand for the weights and the inputs of all layers.

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
        activation_placement: Where activations are rounded. ``fused``: once, where a map is
            written, behind the layer and the operations that are computed with it (activation,
            addition of a shortcut); all that read it from memory read what was rounded.
            ``per-layer``: at each layer's input; additions read what was never rounded.
        weight_range: Which weights the integers span, out of those that share a scale: the same
            as for activations, ``kl`` only for whole tensors.
        weight_symmetry: The same as for activations, but that ``symmetric`` weights have their zero
            in the middle even where none is negative.
        weight_granularity: Which weights of a layer share a scale: all (``tensor``), those of an
            output channel (``channel``), or those of N neighbouring input channels of an output
            channel (``group:N``).
        scale: ``power_of_two`` rounds all scales up to powers of two, after batch norms are folded,
            so that an accelerator rescales by shifting; ``float`` leaves them as they are.

    Raises:
        InputError: a value is none of these.
    """

    activation_range: str = "mse"
    activation_symmetry: str = "affine"
    activation_placement: str = "fused"
    weight_range: str = "mse"
    weight_symmetry: str = "symmetric"
    weight_granularity: str = "channel"
    scale: str = "float"

    def __post_init__(self) -> None:
        check_values(self, _ALLOWED)
        if self.weight_range == "kl" and self.weight_granularity != "tensor":
            allowed = (
                "fewer weights than a tensor's have no distribution: use weight_granularity tensor"
            )
            raise InputError("weight_range", "kl", allowed)

    def to_json(self) -> dict[str, str]:
        """The fields that differ from their defaults."""
        return non_defaults(self)

    @cached_property
    def of_activations(self) -> Quantizer:
        """The same as far as it decides about grids of activations; all else by default."""
        return replace(
            Quantizer(),
            activation_range=self.activation_range,
            activation_symmetry=self.activation_symmetry,
            scale=self.scale,
        )

    @cached_property
    def of_weights(self) -> Quantizer:
        """The same as far as it decides about weights; all else by default."""
        return replace(
            Quantizer(),
            weight_range=self.weight_range,
            weight_symmetry=self.weight_symmetry,
            weight_granularity=self.weight_granularity,
            scale=self.scale,
        )

    @property
    def group_size(self) -> int | None:
        """N of ``group:N``; None for other granularities."""
        kind, _, size = self.weight_granularity.partition(":")
        return int(size) if kind == "group" else None

    @property
    def rounds_maps(self) -> bool:
        return self.activation_placement == "fused"

    @property
    def power_of_two(self) -> bool:
        return self.scale == "power_of_two"


DEFAULT_QUANTIZER = Quantizer()


def percentile(range_: str) -> float | None:
    """P / 100 of ``percentile:P``; None for other ranges."""
    kind, _, value = range_.partition(":")
    return float(value) / 100 if kind == "percentile" else None
