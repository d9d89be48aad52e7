"""The vocabulary that all parts share: one decision per layer, one configuration per network."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import fields
from pathlib import Path
from typing import Any
from typing import Literal
from typing import get_args

from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.reconstruction_settings import DEFAULT_RECONSTRUCTION
from envs.reconstruction_settings import Reconstruction
from envs.settings import read_settings
from hwmodel.errors import InputError

Granularity = str
"""What is removed: ``none``, ``element``, ``kernel`` (all positions of an input channel in one
filter), ``filter`` (output channels), blocks such as ``4x1`` (output times input channels), and
``n:4``, ``n:8`` and so on (N of every M weights along the input channels, N given by the
sparsity)."""

Criterion = Literal[
    "none", "l1", "l2", "taylor", "second_order", "geometric_median", "reconstruction", "random"
]
Repair = Literal["none", "layerwise", "aligned", "sequential"]

RUN = r"n:([1-9]\d{0,3})"
BLOCK = r"([1-9]\d{0,3})x([1-9]\d{0,3})"

_WEIGHT_CRITERIA: tuple[Criterion, ...] = ("l1", "second_order", "random")
_FILTER_CRITERIA: tuple[Criterion, ...] = (
    "l1", "l2", "taylor", "geometric_median", "reconstruction", "random",
)  # fmt: skip


def criteria(granularity: Granularity) -> tuple[Criterion, ...]:
    """The criteria that a granularity can rank by.

    Raises:
        InputError: there is no such granularity.
    """
    if granularity == "none":
        return ("none",)
    if granularity == "filter":
        return _FILTER_CRITERIA
    text = granularity if isinstance(granularity, str) else ""
    if text in ("element", "kernel"):
        return _WEIGHT_CRITERIA
    sizes = re.fullmatch(RUN, text) or re.fullmatch(BLOCK, text)
    if sizes is None or set(sizes.groups()) == {"1"}:
        allowed = "none, element, kernel, filter, a block such as 4x1 or 1x4, or n:4, n:8, n:16"
        raise InputError("granularity", granularity, f"use one of {allowed}")
    return _WEIGHT_CRITERIA


def run_length(granularity: Granularity) -> int | None:
    """M of ``n:M``; None for other granularities."""
    run = re.fullmatch(RUN, granularity)
    return int(run[1]) if run else None


def run_of(granularity: Granularity, sparsity: float) -> tuple[int, int]:
    """(N, M) of ``n:M`` at one sparsity; (1, 1), which says nothing, for other granularities."""
    m = run_length(granularity)
    return (1, 1) if m is None else (round((1 - sparsity) * m), m)


def fits(granularity: Granularity, sparsity: float) -> bool:
    """Whether a granularity can reach a sparsity: of ``n:M``, the multiples of 1 / M."""
    m = run_length(granularity)
    return m is None or abs(sparsity * m - round(sparsity * m)) < 1e-6


INTEGER_BITS = tuple(range(2, 9))
FLOAT_BITS = (16, 32)
"""Widths that mean IEEE floating point instead of integers: half and single precision."""

CONFIG_VERSION = 1

_SETTINGS = {"quantizer": Quantizer, "reconstruction": Reconstruction}
"""Of a whole configuration; what of them is the default is not written."""


@dataclass(frozen=True)
class LayerDecision:
    """What happens to one layer.

    Attributes:
        granularity: What is removed; see :data:`Granularity`.
        criterion: What ranks the candidates for removal; one of ``criteria(granularity)``.
        sparsity: Fraction removed, 0 <= sparsity < 1; 0 exactly when granularity is ``none``, and
            a multiple of 1 / M for ``n:M``.
        weight_bits: 2..8 for integers with a scale per output channel, 16 or 32 for floats.
        activation_bits: Bits of the layer's input, 2..8 for integers with one scale, 16 or 32.

    Raises:
        InputError: a value is outside these ranges.
    """

    granularity: Granularity = "none"
    criterion: Criterion = "none"
    sparsity: float = 0.0
    weight_bits: int = 32
    activation_bits: int = 32

    def __post_init__(self) -> None:
        check_choice("criterion", self.criterion, criteria(self.granularity))
        sparsity = self.sparsity
        if isinstance(sparsity, bool) or not isinstance(sparsity, int | float):
            raise InputError("sparsity", sparsity, "use a number with 0 <= sparsity < 1")
        if not (math.isfinite(sparsity) and 0 <= sparsity < 1):
            raise InputError("sparsity", sparsity, "use a number with 0 <= sparsity < 1")
        if (self.granularity == "none") != (sparsity == 0):
            allowed = "sparsity is 0 exactly when granularity is 'none'"
            raise InputError("sparsity", sparsity, allowed)
        if not fits(self.granularity, sparsity):
            allowed = f"{self.granularity} removes multiples of 1/{run_length(self.granularity)}"
            raise InputError("sparsity", sparsity, allowed)
        for key in ("weight_bits", "activation_bits"):
            check_bits(key, getattr(self, key))


@dataclass(frozen=True)
class CompressionConfig:
    """One decision for every layer of a network: the currency of joulecut.

    Attributes:
        layers: Decision by layer name, in execution order.
        repair: ``layerwise`` adjusts the weights left of each layer so that its output changes
            least (second-order reconstruction and bias correction, no labels), for the inputs of
            the dense network. ``aligned`` then gives every channel, layer after layer, the gain and
            the bias that bring its outputs closest to those of the dense network. ``sequential``
            adjusts the weights for the inputs that the compressed layers before give: it takes
            seconds for every configuration. ``none`` leaves weights as they are and rounds to
            nearest.
        quantizer: How integers stand for numbers, in all layers alike. What of it is the default
            is not written, so that older configurations keep their hash.
        reconstruction: How repair prunes and rounds; not used without repair. Written like the
            quantizer.
    """

    layers: Mapping[str, LayerDecision]
    repair: Repair = "aligned"
    quantizer: Quantizer = DEFAULT_QUANTIZER
    reconstruction: Reconstruction = DEFAULT_RECONSTRUCTION

    def __post_init__(self) -> None:
        check_choice("repair", self.repair, get_args(Repair))

    @property
    def hash(self) -> str:
        """Content hash, 16 hexadecimal digits; the order of layers does not matter."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        settings = {name: getattr(self, name).to_json() for name in _SETTINGS}
        return {
            "version": CONFIG_VERSION,
            "repair": self.repair,
            **{name: values for name, values in settings.items() if values},
            "layers": {name: asdict(decision) for name, decision in self.layers.items()},
        }

    @classmethod
    def from_json(cls, data: object) -> CompressionConfig:
        """Inverse of :meth:`to_json`.

        Raises:
            InputError: an unknown key, a missing key, or a value out of range; names its path.
        """
        if not isinstance(data, dict):
            raise InputError("config", type(data).__name__, "use a JSON object with key 'layers'")
        optional = {"repair", *_SETTINGS}
        check_keys("config", data, required={"version", "layers"}, optional=optional)
        if data["version"] != CONFIG_VERSION:
            raise InputError("config.version", data["version"], f"use {CONFIG_VERSION}")
        if not isinstance(data["layers"], dict):
            raise InputError("config.layers", data["layers"], "use an object, one entry per layer")
        known = {item.name for item in fields(LayerDecision)}
        layers = {}
        for name, values in data["layers"].items():
            path = f"layers.{name}"
            if not isinstance(values, dict):
                raise InputError(path, values, f"use an object with keys {sorted(known)}")
            check_keys(path, values, required=set(), optional=known)
            try:
                decision = LayerDecision(**values)
            except InputError as error:
                where = f"{path}.{error.field}"
                raise InputError(where, error.value, error.allowed) from None
            layers[name] = decision
        settings: dict[str, Any] = {}
        for name, kind in _SETTINGS.items():
            try:
                settings[name] = read_settings(kind, data.get(name, {}))
            except InputError as error:
                where = f"config.{name}.{error.field}".rstrip(".")
                raise InputError(where, error.value, error.allowed) from None
        return cls(layers, data.get("repair", "aligned"), **settings)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> CompressionConfig:
        """Read a configuration written by :meth:`save`.

        Raises:
            InputError: no such file, not JSON, or not a configuration.
        """
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("config", str(path), f"use a readable file ({error})") from None
        except json.JSONDecodeError as error:
            raise InputError("config", str(path), f"use valid JSON ({error})") from None
        return cls.from_json(data)


def uniform(layers: list[str] | tuple[str, ...], bits: int) -> CompressionConfig:
    """The dense network with every weight and activation at ``bits``."""
    return CompressionConfig(
        {name: LayerDecision(weight_bits=bits, activation_bits=bits) for name in layers}
    )


def check_choice(field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise InputError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(field, value, f"use one of {', '.join(map(str, allowed))}")


def check_bits(field: str, value: object) -> None:
    """Raise InputError unless ``value`` is a supported width."""
    if type(value) is not int or value not in INTEGER_BITS + FLOAT_BITS:
        raise InputError(field, value, "use 2 to 8 (integer) or 16 or 32 (floating point)")


def check_keys(
    field: str, data: Mapping[str, object], *, required: set[str], optional: set[str]
) -> None:
    """Raise InputError for a missing or an unknown key."""
    for key in data:
        if key not in required | optional:
            raise InputError(
                f"{field}.{key}", data[key], f"known keys: {sorted(required | optional)}"
            )
    for key in sorted(required - set(data)):
        raise InputError(f"{field}.{key}", None, "this key is required")
