"""What calibration images tell about every layer, gathered once for all configurations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from safetensors.torch import save
from torch import Tensor
from torch import nn

from envs.calibration import calibrate_activation
from envs.config import FLOAT_BITS
from envs.config import INTEGER_BITS
from envs.pruning import taylor_filter_scores
from envs.quantization import ActivationRange
from envs.quantization import ChannelExponents
from envs.quantization import quantize_activation
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.trace import TracedLayer
from envs.trace import TracedNetwork
from hwmodel import InputError

STATISTICS_VERSION = "4"
"""Changes whenever a file of statistics would hold something else."""

_SAMPLE_VALUES = 65_536
"""Values of a layer's input that clipping is calibrated on."""


@dataclass(frozen=True)
class InputRange:
    """How a layer's input is quantized at one width, and what that does to it.

    Attributes:
        range: Grid of values.
        density: Fraction of values that are not zero after rounding.
        error: Squared rounding error over squared size.
    """

    range: ActivationRange
    density: float
    error: float


@dataclass(frozen=True, kw_only=True)
class MapStatistics:
    """Statistics of the values of a feature map.

    Attributes:
        inputs: By width, 2..8, 16 and 32 bits, as the default ``Quantizer`` rounds.
        sample: Some of the values, (values,).
        extremes: Least and largest value of every channel over all calibration images,
            (2, channels), or of all together, (2, 1).
        divided: What the channels are divided by in all of this; None for the map as it is.
    """

    inputs: dict[int, InputRange]
    sample: Tensor
    extremes: Tensor
    divided: ChannelExponents | None = None

    def input_range(self, bits: int, quantizer: Quantizer) -> InputRange:
        """How a quantizer rounds the map to a width."""
        if quantizer.of_activations == DEFAULT_QUANTIZER or bits in FLOAT_BITS:
            return self.inputs[bits]
        whole = quantizer.activation_range == "max_abs"
        seen = self.extremes.flatten() if whole else self.sample
        found = input_range(self.sample, calibrate_activation(seen, bits, quantizer))
        return replace(found, range=replace(found.range, divided=self.divided))


@dataclass(frozen=True, kw_only=True)
class LayerStatistics(MapStatistics):
    """Statistics of one layer and of the map that it reads.

    Attributes:
        second_moment: Mean of x x^T over the positions of the unfolded input,
            (groups, columns, columns).
        mean: Mean of x, (groups, columns).
        taylor: First-order importance of every output channel, (out_channels,).
        sample_channels: Channels of the sample's values, int32, (values,).
        written: Of the maps that the layer writes and no layer reads as they are, by their names;
            see ``StoredMap``.
        equalized: The same of the equalized input, see :mod:`envs.equalization`; None where that
            changes nothing.
    """

    second_moment: Tensor
    mean: Tensor
    taylor: Tensor
    sample_channels: Tensor
    written: Mapping[str, MapStatistics] = field(default_factory=dict)
    equalized: LayerStatistics | None = None


def collect_statistics(
    network: TracedNetwork, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[LayerStatistics, ...]:
    """Run the dense network on calibration images and gather every layer's statistics.

    Args:
        network: Traced network.
        batches: (inputs, targets); the targets are not looked at.
    """
    gatherers = [_Gatherer(layer) for layer in network.layers]
    of_maps = {
        f"map_{number}": _MapGatherer()
        for number, stored in enumerate(network.maps)
        if stored.reader is None
    }
    of_layers = {f"input_{index}": gatherer for index, gatherer in enumerate(gatherers)}
    batches = list(batches)
    with _observing(network, {**of_layers, **of_maps}):
        for inputs, _ in batches:
            with torch.no_grad():
                network.graph_module(inputs)
    written: list[dict[str, MapStatistics]] = [{} for _ in network.layers]
    for number, stored in enumerate(network.maps):
        if stored.reader is None:
            written[stored.writer][stored.node] = of_maps[f"map_{number}"].result()
    scores = _taylor_scores(network, batches)
    return tuple(
        replace(gatherer.result(taylor), written=maps)
        for gatherer, taylor, maps in zip(gatherers, scores, written, strict=True)
    )


def divided(
    layer: TracedLayer,
    statistics: LayerStatistics,
    by: ChannelExponents,
    inputs: dict[int, InputRange] | None = None,
) -> LayerStatistics:
    """Statistics of an input whose channels are divided by powers of two.

    Args:
        layer: The layer that reads it.
        statistics: Of the input as it is.
        by: The powers.
        inputs: How it is rounded; found if None.
    """
    factors = by.factors
    sample = statistics.sample * factors[statistics.sample_channels.long()]
    return replace(
        statistics,
        second_moment=divided_moment(layer, statistics, by),
        mean=statistics.mean * _of_columns(layer, by),
        inputs=inputs or _usual_inputs(sample, by),
        sample=sample,
        extremes=statistics.extremes * factors,
        divided=by,
    )


def divided_moment(layer: TracedLayer, statistics: LayerStatistics, by: ChannelExponents) -> Tensor:
    """Second moment of an input whose channels are divided, (groups, columns, columns)."""
    factors = _of_columns(layer, by)
    return statistics.second_moment * factors[:, :, None] * factors[:, None, :]


def _of_columns(layer: TracedLayer, by: ChannelExponents) -> Tensor:
    """What the columns of an unfolded input are multiplied by, (groups, columns)."""
    factors = by.factors
    groups, in_per_group = layer.shape.groups, layer.weight.shape[1]
    kernel = layer.rows.shape[-1] // in_per_group
    return factors.view(groups, in_per_group).repeat_interleave(kernel, dim=1)


def _usual_inputs(sample: Tensor, by: ChannelExponents | None = None) -> dict[int, InputRange]:
    """How the default quantizer rounds an input to every width."""
    found = {bits: input_range(sample, ActivationRange(bits)) for bits in FLOAT_BITS}
    for bits in INTEGER_BITS:
        entry = input_range(sample, calibrate_activation(sample, bits))
        found[bits] = replace(entry, range=replace(entry.range, divided=by))
    return found


class _Gatherer(nn.Module):
    """Sees the inputs of one layer go by."""

    def __init__(self, layer: TracedLayer) -> None:
        super().__init__()
        self.layer = layer
        self.generator = torch.Generator().manual_seed(0)
        groups, _, columns = layer.rows.shape
        self.moment = torch.zeros(groups, columns, columns, dtype=torch.float64)
        self.sum = torch.zeros(groups, columns, dtype=torch.float64)
        self.positions = 0
        self.values: list[Tensor] = []
        self.channels: list[Tensor] = []
        self.extremes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        index = _sampled_places(x, self.generator)
        self.values.append(x.flatten()[index].clone())
        axis = self.layer.channel_axis % x.ndim
        self.channels.append(index // math.prod(x.shape[axis + 1 :]) % x.shape[axis])
        by_channel = x.movedim(axis, 0).flatten(1)
        self.extremes.append(torch.stack(by_channel.aminmax(dim=1)))
        patches = sample_patches(self.layer, x, self.generator)
        self.moment += torch.bmm(patches.transpose(1, 2), patches)
        self.sum += patches.sum(dim=1)
        self.positions += patches.shape[1]
        return x

    def result(self, taylor: Tensor) -> LayerStatistics:
        values = torch.cat(self.values)
        picked = torch.randperm(len(values), generator=self.generator)[:_SAMPLE_VALUES]
        sample = values[picked]
        extremes = torch.stack(self.extremes)
        extremes = torch.stack([extremes[:, 0].amin(0), extremes[:, 1].amax(0)])
        return LayerStatistics(
            second_moment=(self.moment / self.positions).float(),
            mean=(self.sum / self.positions).float(),
            taylor=taylor,
            inputs=_usual_inputs(sample),
            sample=sample,
            sample_channels=torch.cat(self.channels)[picked].int(),
            extremes=extremes,
        )


class _MapGatherer(nn.Module):
    """Sees a feature map go by."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)
        self.values: list[Tensor] = []
        self.extremes: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.values.append(x.flatten()[_sampled_places(x, self.generator)].clone())
        self.extremes.append(torch.stack(x.aminmax()))
        return x

    def result(self) -> MapStatistics:
        values, extremes = torch.cat(self.values), torch.stack(self.extremes)
        picked = torch.randperm(len(values), generator=self.generator)[:_SAMPLE_VALUES]
        sample = values[picked]
        ends = torch.stack([extremes[:, 0].amin(), extremes[:, 1].amax()])
        return MapStatistics(inputs=_usual_inputs(sample), sample=sample, extremes=ends[:, None])


def _sampled_places(x: Tensor, generator: torch.Generator) -> Tensor:
    """Where to look at a map: indices of its values, end to end."""
    count = min(x.numel(), max(1024, _SAMPLE_VALUES // 16))
    return torch.randint(x.numel(), (count,), generator=generator)


def sample_patches(layer: TracedLayer, x: Tensor, generator: torch.Generator) -> Tensor:
    """Columns of the unfolded input at random output positions, the same for a batch's images.

    Args:
        layer: Convolution or linear layer.
        x: Its input, (batch, channels, *spatial) or (batch, *tokens, features).
        generator: Chooses the positions.

    Returns:
        Shape (groups, batch * positions, columns).
    """
    return patches_at(layer, x, sample_positions(layer, x, generator, usual_positions(layer)))


def usual_positions(layer: TracedLayer) -> int:
    """Positions of an image to look at: over 1,000 images about 32 or more for each column."""
    return max(16, layer.rows.shape[-1] // 16)


def sample_positions(
    layer: TracedLayer, x: Tensor, generator: torch.Generator, most: int
) -> Tensor:
    """Random output positions of a layer that reads ``x``, ascending, int64, (positions,)."""
    shape = layer.shape
    is_linear = layer.weight.ndim == 2
    count = x[0].numel() // x.shape[-1] if is_linear else shape.out_height * shape.out_width
    return torch.randperm(count, generator=generator)[:most].sort().values


def patches_at(layer: TracedLayer, x: Tensor, positions: Tensor) -> Tensor:
    """Columns of the unfolded input at some positions, (groups, batch * positions, columns)."""
    shape = layer.shape
    groups, _, columns = layer.rows.shape
    if layer.weight.ndim == 2:
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return tokens[:, positions].reshape(1, -1, columns)
    planar = x if x.ndim == 4 else x.unsqueeze(2)
    vertical = _same_padding(layer, 0, planar.shape[2])
    horizontal = _same_padding(layer, 1, planar.shape[3])
    planar = F.pad(planar, (*horizontal, *vertical))
    width = planar.shape[3]
    corner = (positions // shape.out_width * shape.stride[0]) * width
    corner = corner + positions % shape.out_width * shape.stride[1]
    down = torch.arange(shape.kernel_height) * shape.dilation[0] * width
    right = torch.arange(shape.kernel_width) * shape.dilation[1]
    places = (corner[:, None] + (down[:, None] + right).flatten()).flatten().to(x.device)
    patches = planar.flatten(2).index_select(2, places)
    patches = patches.view(len(x), groups, -1, len(positions), columns // layer.weight.shape[1])
    return patches.permute(1, 0, 3, 2, 4).reshape(groups, -1, columns)


def outputs_at(layer: TracedLayer, y: Tensor, positions: Tensor) -> Tensor:
    """A layer's outputs at some positions, (groups, batch * positions, rows)."""
    groups, rows, _ = layer.rows.shape
    if layer.weight.ndim == 2:
        return y.reshape(y.shape[0], -1, rows)[:, positions].reshape(1, -1, rows)
    chosen = y.flatten(2)[..., positions].reshape(y.shape[0], groups, rows, -1)
    return chosen.permute(1, 0, 3, 2).reshape(groups, -1, rows)


def _same_padding(layer: TracedLayer, axis: int, size: int) -> tuple[int, int]:
    """Zeros (before, after) one axis; uneven for ``padding="same"`` with an even kernel."""
    shape = layer.shape
    kernel = (shape.kernel_height, shape.kernel_width)[axis]
    before = shape.padding[axis]
    needed = (
        ((shape.out_height, shape.out_width)[axis] - 1) * shape.stride[axis]
        + shape.dilation[axis] * (kernel - 1)
        + 1
        - size
    )
    if 0 <= needed < 2 * before and needed == 2 * before - 1 and shape.stride[axis] == 1:
        return before - 1, before
    return before, before


def input_range(sample: Tensor, chosen: ActivationRange) -> InputRange:
    """What rounding to a grid does to a sample of an input."""
    rounded = quantize_activation(sample, chosen)
    size = sample.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    return InputRange(
        range=chosen,
        density=float((rounded != 0).float().mean()),
        error=float((rounded - sample).square().sum() / size),
    )


@contextmanager
def _observing(network: TracedNetwork, observers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Exchange modules that maps pass, by their names."""
    module = network.graph_module
    before = {name: getattr(module, name) for name in observers}
    try:
        for name, observer in observers.items():
            setattr(module, name, observer)
        yield
    finally:
        for name, old in before.items():
            setattr(module, name, old)


def _taylor_scores(network: TracedNetwork, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """First-order scores of every layer's output channels, from the network's own predictions.

    The loss is the cross-entropy against the class that the network itself predicts, so that no
    labels are needed. w * dL/dw is the same before and after folding.
    """
    weights = [
        network.graph_module.get_parameter(f"weight_{index}")
        for index in range(len(network.layers))
    ]
    scores = [torch.zeros(len(weight)) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for inputs, _ in batches:
            outputs = network.graph_module(inputs)
            loss = F.cross_entropy(outputs, outputs.detach().argmax(dim=1))
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for score, weight, gradient in zip(scores, weights, gradients, strict=True):
                if gradient is None:  # the outputs do not depend on this layer
                    continue
                rows = weight.detach().flatten(1)[None]
                score += taylor_filter_scores(rows, gradient.flatten(1)[None, None])
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    return [score / len(batches) for score in scores]


_MAP_TENSORS = ("sample", "extremes")
_TENSORS = ("second_moment", "mean", "taylor", "sample_channels", *_MAP_TENSORS)


def save_statistics(path: Path, statistics: tuple[LayerStatistics, ...]) -> None:
    """Write statistics to a safetensors file; the ranges go into its metadata."""
    tensors = {}
    for index, layer in enumerate(statistics):
        for name in _TENSORS:
            tensors[f"{index}.{name}"] = getattr(layer, name).contiguous()
        for node, written in layer.written.items():
            for name in _MAP_TENSORS:
                tensors[f"{index}.{node}.{name}"] = getattr(written, name)
    entries = [
        {
            "inputs": _ranges(layer),
            "equalized": _ranges(layer.equalized),
            "written": {node: _ranges(written) for node, written in layer.written.items()},
        }
        for layer in statistics
    ]
    # Not by save_file, whose files only their owner may read: databases are shared.
    path.write_bytes(save(tensors, metadata={"layers": json.dumps(entries)}))


def _ranges(layer: MapStatistics | None) -> list[dict[str, Any]] | None:
    return None if layer is None else [asdict(entry) for entry in layer.inputs.values()]


def load_statistics(path: Path, network: TracedNetwork) -> tuple[LayerStatistics, ...]:
    """Inverse of :func:`save_statistics`.

    Args:
        path: The file.
        network: What the statistics are of.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import safe_open

    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            entries = json.loads(file.metadata()["layers"])
    except Exception as error:  # safetensors raises its own kinds
        raise InputError("statistics", str(path), f"use an undamaged file ({error})") from None
    layers = []
    for index, (entry, traced) in enumerate(zip(entries, network.layers, strict=True)):
        of_layer = {name: tensors[f"{index}.{name}"] for name in _TENSORS}
        written = {
            node: MapStatistics(
                inputs=_inputs(ranges),
                **{name: tensors[f"{index}.{node}.{name}"] for name in _MAP_TENSORS},
            )
            for node, ranges in entry["written"].items()
        }
        layer = LayerStatistics(inputs=_inputs(entry["inputs"]), written=written, **of_layer)
        if entry["equalized"] is not None:
            inputs = _inputs(entry["equalized"])
            by = inputs[INTEGER_BITS[0]].range.divided
            assert by is not None
            layer = replace(layer, equalized=divided(traced, layer, by, inputs))
        layers.append(layer)
    return tuple(layers)


def _inputs(entries: list[dict[str, Any]]) -> dict[int, InputRange]:
    """Inverse of :func:`_ranges`."""
    found = {}
    for entry in entries:
        grid = entry["range"]
        if grid["divided"] is not None:
            of_channels = grid["divided"]
            exponents = tuple(of_channels["exponents"])
            grid["divided"] = ChannelExponents(exponents, of_channels["axis"])
        found[grid["bits"]] = InputRange(ActivationRange(**grid), entry["density"], entry["error"])
    return found
