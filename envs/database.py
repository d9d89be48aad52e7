"""The option database: compressed versions of layers on disk, computed once for all evaluations.

One safetensors file holds one layer, pruned in one way to one sparsity and rounded to several
widths: integers, scales, and what they cost in output error. Its name is a hash of all that it is
made from, so any number of runs, networks and processes may share a folder: whoever lacks a file
writes it, and two who write the same one write the same numbers. Files are memory-mapped, so the
evaluators of a machine share their memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save
from torch import Tensor

from envs.config import Repair
from envs.files import write_whole
from envs.layer_compression import COMPRESSION_VERSION
from envs.layer_compression import pruned_rows
from envs.layer_compression import rounded_rows
from envs.quantization import integers_on_grid
from envs.quantization import of_each
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.reconstruction import output_error
from envs.reconstruction_settings import DEFAULT_RECONSTRUCTION
from envs.reconstruction_settings import Reconstruction
from envs.scales import WeightGrid
from envs.space import Method
from envs.statistics import LayerStatistics
from envs.trace import TracedLayer

DEFAULT_LIMIT_BYTES = 4 << 30
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Option:
    """One layer, pruned in one way and rounded to one width.

    Attributes:
        integers: Weights over their scales, int8, or int16 where these do not fit, (groups, rows,
            columns).
        scales: Step of every output channel's grid, (groups, rows), or of every block of its
            columns, (groups, rows, blocks).
        density: Non-zero fraction of the weights, float64, ().
        error: Squared change of the layer's output over its squared size, float64, ().
    """

    integers: Tensor
    scales: Tensor
    density: Tensor
    error: Tensor


@dataclass(frozen=True)
class LayerSource:
    """What all options of one layer are made from.

    Attributes:
        layer: The layer.
        statistics: Its statistics.
        repairs: Whether the weights left make up for those removed and rounded.
        quantizer: How weights are rounded; what it says of activations is the default.
        reconstruction: How repair prunes and rounds; the default without repair.
    """

    layer: TracedLayer
    statistics: LayerStatistics
    repairs: bool
    quantizer: Quantizer = DEFAULT_QUANTIZER
    reconstruction: Reconstruction = DEFAULT_RECONSTRUCTION

    @cached_property
    def content(self) -> str:
        """Hash of all of it."""
        digest = hashlib.sha256(f"{COMPRESSION_VERSION} {self.repairs}".encode())
        digest.update(repr(replace(self.layer.shape, name="")).encode())
        for tensor in (self.layer.rows, self.statistics.second_moment):
            digest.update(tensor.contiguous().numpy().tobytes())
        if self.quantizer != DEFAULT_QUANTIZER:
            digest.update(repr(self.quantizer.to_json()).encode())
            digest.update(self.grid.fold.numpy().tobytes())
        if self.reconstruction != DEFAULT_RECONSTRUCTION:
            digest.update(repr(self.reconstruction.to_json()).encode())
        return digest.hexdigest()

    @cached_property
    def grid(self) -> WeightGrid:
        """What the scales may be."""
        return WeightGrid.of(self.layer, self.quantizer)


class OptionDatabase:
    """A folder of layer options.

    Args:
        directory: The folder; made when something is written.
        limit_bytes: Size of the folder beyond which nothing is added; what is lacking is then
            computed whenever it is asked for.
    """

    def __init__(self, directory: Path, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes
        self._bytes = self.size_bytes()

    def size_bytes(self) -> int:
        """Size of all files in the folder."""
        if not self.directory.is_dir():
            return 0
        return sum(path.stat().st_size for path in self.directory.glob(f"*{_SUFFIX}"))

    def weights(
        self, source: LayerSource, method: Method, sparsity: float, bits: int
    ) -> tuple[Tensor, Tensor] | None:
        """Weights and scales, if they are here.

        The very numbers that :func:`envs.layer_compression.compressed_rows` computes.
        """
        path = self._path(source, method, sparsity)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                integers = file.get_tensor(f"{bits}.integers")
                scales = source.grid.expand(file.get_tensor(f"{bits}.scales"), integers.shape[-1])
                return integers * of_each(scales, integers), source.grid.of_channels(scales)
        except SafetensorError:  # without this width, or damaged, which is as good as missing
            return None

    def options(
        self, source: LayerSource, method: Method, sparsities: Sequence[float], bits: Sequence[int]
    ) -> list[dict[int, Option]]:
        """By width, the options of one layer at several sparsities; what is lacking is made.

        Raises:
            InputError: the folder cannot be written.
        """
        found = [_read(self._path(source, method, sparsity)) for sparsity in sparsities]
        lacking = [index for index, options in enumerate(found) if not set(bits) <= set(options)]
        made = layer_options(source, method, [sparsities[index] for index in lacking], bits)
        for index, options in zip(lacking, made, strict=True):
            found[index] = {**found[index], **options}
            self._write(self._path(source, method, sparsities[index]), found[index])
        return found

    def lacks(
        self, source: LayerSource, method: Method, sparsities: Sequence[float], bits: Sequence[int]
    ) -> bool:
        """Whether some of these options are not here."""
        return any(
            not set(bits) <= _widths(self._path(source, method, sparsity))
            for sparsity in sparsities
        )

    def _path(self, source: LayerSource, method: Method, sparsity: float) -> Path:
        made_from = f"{source.content} {method} {float(sparsity)!r}"
        return self.directory / f"{hashlib.sha256(made_from.encode()).hexdigest()[:32]}{_SUFFIX}"

    def _write(self, path: Path, options: Mapping[int, Option]) -> None:
        tensors = {
            f"{bits}.{item.name}": getattr(option, item.name)
            for bits, option in options.items()
            for item in fields(option)
        }
        content = save(tensors)
        growth = len(content) - (path.stat().st_size if path.exists() else 0)
        if self._bytes + growth > self.limit_bytes:
            return
        write_whole(path, lambda partial: partial.write_bytes(content), "database")
        self._bytes += growth


def layer_options(
    source: LayerSource, method: Method, sparsities: Sequence[float], bits: Sequence[int]
) -> list[dict[int, Option]]:
    """Prune one layer in one way to several sparsities, and round each result to several widths.

    Args:
        source: The layer.
        method: How it is pruned.
        sparsities: Fractions removed.
        bits: Integer widths.

    Returns:
        Options by width, one set for each sparsity.
    """
    layer, statistics = source.layer, source.statistics
    repair: Repair = "layerwise" if source.repairs else "none"
    if not sparsities:
        return []
    made = []
    settings = source.reconstruction
    for pruned in pruned_rows(layer, statistics, *method, sparsities, None, repair, settings):
        # One by one, so that sums are taken in the same order as for one option alone.
        rounded, scales = rounded_rows(
            statistics, pruned[None], bits, None, repair, source.grid.find, settings
        )
        error = output_error(rounded[0] - layer.rows, statistics.second_moment, layer.rows)
        made.append(
            {
                width: Option(
                    integers=integers_on_grid(
                        rounded[0, index], of_each(scales[0, index], rounded[0, index])
                    ),
                    scales=source.grid.compact(scales[0, index]).contiguous().clone(),
                    density=(rounded[0, index] != 0).double().mean(),
                    error=error[index].double(),
                )
                for index, width in enumerate(bits)
            }
        )
    return made


def _read(path: Path) -> dict[int, Option]:
    """All options of a file by width; none where it is missing, or damaged."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return {}
    names = [item.name for item in fields(Option)]
    return {
        bits: Option(**{name: tensors[f"{bits}.{name}"] for name in names})
        for bits in sorted(_widths_of(tensors))
    }


def _widths(path: Path) -> set[int]:
    """Widths of the options of a file, by its header alone."""
    try:
        with safe_open(path, framework="pt") as file:
            return _widths_of(file.keys())
    except (OSError, SafetensorError):
        return set()


def _widths_of(keys: Iterable[str]) -> set[int]:
    return {int(key.partition(".")[0]) for key in keys}
