"""From a configuration to the weights, biases and input grids of every layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from envs.config import FLOAT_BITS
from envs.config import INTEGER_BITS
from envs.config import CompressionConfig
from envs.config import Criterion
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import run_of
from envs.database import LayerSource
from envs.database import OptionDatabase
from envs.equalization import equalized_layer
from envs.layer_compression import compressed_rows
from envs.layer_compression import removed_columns
from envs.problem import output_bits
from envs.problem import with_outputs
from envs.problem import with_runs
from envs.pruning import geometric_median_filter_scores
from envs.pruning import keep_units
from envs.pruning import norm_filter_scores
from envs.pruning import random_scores
from envs.quantization import ActivationRange
from envs.quantization import integers_on_grid
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.reconstruction import bias_correction
from envs.reconstruction import removal_error
from envs.reconstruction_settings import DEFAULT_RECONSTRUCTION
from envs.reconstruction_settings import Reconstruction
from envs.scales import WeightGrid
from envs.sequential import Alignment
from envs.sequential import DenseSample
from envs.sequential import align_layers
from envs.sequential import compress_in_sequence
from envs.sequential import dense_outputs
from envs.sequential import sample_dense
from envs.space import NO_PRUNING
from envs.space import Method
from envs.statistics import InputRange
from envs.statistics import LayerStatistics
from envs.stored_maps import StoredMap
from envs.trace import TracedLayer
from envs.trace import TracedNetwork
from envs.units import is_removed
from hwmodel import InputError
from hwmodel import LayerStates

_CACHED_BYTES = 1 << 30


@dataclass(frozen=True)
class CompressedLayer:
    """One layer after compression, before anything is physically removed.

    Attributes:
        weight: Folded, on its grid, zeros where pruned, (out_channels, in_channels / groups, ...).
        bias: (out_channels,).
        scale: Step of the grid of every output channel, (out_channels,), or of every output and
            input channel, (out_channels, in_channels / groups); None for floats.
        input_range: Grid of the layer's input.
        input_density: Fraction of the input's values that are not zero on that grid.
        kept_in, kept_out: Channels that stay, bool, (in_channels,) and (out_channels,).
        decision: What was asked for.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    input_range: ActivationRange
    input_density: float
    kept_in: Tensor
    kept_out: Tensor
    decision: LayerDecision

    @property
    def density(self) -> float:
        """Non-zero fraction of the weights of the channels that stay."""
        groups = len(self.kept_in) // self.weight.shape[1]
        kept_columns = self.kept_in.view(groups, -1).sum(dim=1)
        kept_rows = self.kept_out.view(groups, -1).sum(dim=1)
        left = int((kept_columns * kept_rows).sum()) * self.weight[0, 0].numel()
        return float(self.weight.count_nonzero()) / left if left else 0.0

    def scale_of(self, kept_in: Tensor, kept_out: Tensor) -> Tensor | None:
        """The scale of some of the channels, given as masks of all of them."""
        if self.scale is None:
            return None
        scale = self.scale[kept_out]
        # Of a depthwise layer every input channel goes with its output channel.
        return scale[:, kept_in] if scale.ndim == 2 and scale.shape[1] == len(kept_in) else scale


@dataclass(frozen=True)
class CompressedNetwork:
    """A whole network after compression.

    Attributes:
        layers: Its layers.
        removed_units: Units of channels that are gone, bool, (units,).
        map_ranges: Grid of every stored map; of 32 bits for those that are not rounded.
    """

    layers: tuple[CompressedLayer, ...]
    removed_units: Tensor
    map_ranges: tuple[ActivationRange, ...]


class Compressor:
    """Compresses one network; the same configuration always gives the same weights.

    Args:
        network: Traced network.
        statistics: One entry for each of its layers.
        images: Batches of calibration images, for ``aligned`` and ``sequential`` repair.
        database: Where compressed layers may lie ready; None if there is none.
    """

    def __init__(
        self,
        network: TracedNetwork,
        statistics: tuple[LayerStatistics, ...],
        images: Sequence[Tensor] = (),
        database: OptionDatabase | None = None,
    ) -> None:
        self.network = network
        self.statistics = statistics
        self.images = images
        self.database = database
        self._cache: OrderedDict[tuple[object, ...], tuple[Tensor, Tensor, Tensor | None]]
        self._cache = OrderedDict()
        self._cached_bytes = 0
        self._inputs: dict[tuple[int, int, bool, Quantizer], InputRange] = {}
        self._written: dict[tuple[str, int, Quantizer], InputRange] = {}
        self._sources: dict[tuple[int, bool, bool, Quantizer, Reconstruction], LayerSource] = {}
        self._equalized: dict[int, TracedLayer] = {}
        self._dense_outputs: list[Tensor] | None = None
        self._dense_samples: list[DenseSample] | None = None
        self._latest: tuple[str, CompressedNetwork] | None = None

    def compress(self, config: CompressionConfig) -> CompressedNetwork:
        """Compress every layer; at once where it is the configuration of the last call.

        Raises:
            InputError: the configuration does not name the network's layers, or asks for a
                removal of channels that their coupling forbids.
        """
        check_config(self.network, config)
        if self._latest is None or self._latest[0] != config.hash:
            self._latest = config.hash, self._compress(config)
        return self._latest[1]

    def _compress(self, config: CompressionConfig) -> CompressedNetwork:
        removed = self.removed_units(config)
        units = self.network.units
        kept_in = [~is_removed(ids, removed) for ids in units.in_units]
        kept_out = [~is_removed(ids, removed) for ids in units.out_units]
        decisions = self._decisions(config)
        inputs = [
            self.input_range(index, decision.activation_bits, config.repair, config.quantizer)
            for index, decision in enumerate(decisions)
        ]
        ranges = [entry.range for entry in inputs]
        maps = self.map_ranges(config)
        if config.repair == "sequential":
            weights = self._sequential_weights(config, ranges, maps, kept_in, kept_out)
        else:
            weights = [
                self._weights(index, config, kept_in[index], kept_out[index])
                for index in range(len(decisions))
            ]
        if config.repair == "aligned":
            weights = self._aligned(weights, config, ranges, maps, kept_out)
        layers = tuple(
            CompressedLayer(
                *weights[index],
                inputs[index].range,
                inputs[index].density,
                kept_in[index],
                kept_out[index],
                decision,
            )
            for index, decision in enumerate(decisions)
        )
        return CompressedNetwork(layers, removed, maps)

    def states(self, compressed: CompressedNetwork) -> LayerStates:
        """What the hardware sees of a compressed network: one candidate."""
        layers = compressed.layers

        def row(values: list[float]) -> np.ndarray:
            return np.array([values], dtype=np.float64)

        activation_bits = row([layer.decision.activation_bits for layer in layers])
        runs = [run_of(layer.decision.granularity, layer.decision.sparsity) for layer in layers]
        states = with_runs(
            LayerStates(
                in_channels=row([int(layer.kept_in.sum()) for layer in layers]),
                out_channels=row([int(layer.kept_out.sum()) for layer in layers]),
                weight_density=row([layer.density for layer in layers]),
                activation_density=row([layer.input_density for layer in layers]),
                weight_bits=row([layer.decision.weight_bits for layer in layers]),
                activation_bits=activation_bits,
                output_bits=activation_bits,
            ),
            np.array(runs, dtype=np.float64),
        )
        return with_outputs(states, self.network.workload)

    def input_range(
        self, index: int, bits: int, repair: Repair, quantizer: Quantizer
    ) -> InputRange:
        """How the input of layer ``index`` is rounded to ``bits``; found once.

        Layers that read the same map round it alike.
        """
        index = self.network.same_input[index]
        key = index, bits, repair != "none", quantizer.of_activations
        if key not in self._inputs:
            _, statistics = self.view(index, repair, bits)
            self._inputs[key] = statistics.input_range(bits, quantizer)
        return self._inputs[key]

    def map_ranges(self, config: CompressionConfig) -> tuple[ActivationRange, ...]:
        """Grid of every stored map: that of the layers that read it, at the width it is written.

        Of 32 bits where a configuration rounds inputs of layers alone.
        """
        stored, quantizer = self.network.maps, config.quantizer
        if not quantizer.rounds_maps:
            return (ActivationRange(32),) * len(stored)
        asked = [decision.activation_bits for decision in self._decisions(config)]
        bits = output_bits(self.network.workload, np.array([asked], dtype=np.float64))[0]
        found = []
        for item in stored:
            width = int(bits[item.writer])
            if item.reader is not None:
                entry = self.input_range(item.reader, width, config.repair, quantizer)
            else:
                entry = self._written_range(item, width, quantizer.of_activations)
            found.append(entry.range)
        return tuple(found)

    def _written_range(self, stored: StoredMap, bits: int, quantizer: Quantizer) -> InputRange:
        """How a map that no layer reads as it is is rounded to ``bits``; found once."""
        key = stored.node, bits, quantizer
        if key not in self._written:
            statistics = self.statistics[stored.writer].written[stored.node]
            self._written[key] = statistics.input_range(bits, quantizer)
        return self._written[key]

    def view(
        self, index: int, repair: Repair, activation_bits: int
    ) -> tuple[TracedLayer, LayerStatistics]:
        """A layer and its statistics: equalized where it is repaired and reads integers."""
        layer, statistics = self.network.layers[index], self.statistics[index]
        equalized = statistics.equalized
        if repair == "none" or activation_bits in FLOAT_BITS or equalized is None:
            return layer, statistics
        if index not in self._equalized:
            assert equalized.divided is not None
            self._equalized[index] = equalized_layer(layer, equalized.divided)
        return self._equalized[index], equalized

    def removed_units(self, config: CompressionConfig) -> Tensor:
        """Units of channels that a configuration removes, bool, (units,)."""
        units = self.network.units
        removed = torch.zeros(len(units.unit_group), dtype=torch.bool)
        for group in range(max(units.group, default=-1) + 1):
            leader = self.network.layers[units.group.index(group)].name
            decision = config.layers[leader]
            if decision.granularity == "filter":
                members, keep = self.kept_units(group, decision.criterion, decision.sparsity)
                removed[members[~keep]] = True
        return removed

    def kept_units(
        self, group: int, criterion: Criterion, sparsity: float
    ) -> tuple[Tensor, Tensor]:
        """Units of a group, and which of them stay: int64 and bool, both (units of the group,)."""
        units = self.network.units
        members = (units.unit_group == group).nonzero().flatten()
        scores = torch.zeros(len(units.unit_group))
        if criterion == "reconstruction":
            for index in range(len(self.network.layers)):
                self._add_removal_errors(scores, index, group)
        elif criterion == "random":
            scores = random_scores(scores)
        else:
            for index in units.layers_of(group):
                scores.index_add_(0, units.out_units[index], self._filter_scores(index, criterion))
        return members, keep_units(scores[members], units.signature[members], sparsity)

    def _filter_scores(self, index: int, criterion: Criterion) -> Tensor:
        """Score of every output channel of one layer, (out_channels,)."""
        rows = self.network.layers[index].rows
        if criterion == "taylor":
            return self.statistics[index].taylor
        if criterion == "geometric_median":
            return geometric_median_filter_scores(rows)
        return norm_filter_scores(rows, order=1 if criterion == "l1" else 2)

    def _add_removal_errors(self, scores: Tensor, index: int, group: int) -> None:
        """Add to each unit of a group how much layer ``index``, which reads it, would lose.

        Relative to the layer's output, so that the errors of several readers can be added.
        """
        units, layer = self.network.units, self.network.layers[index]
        moment = self.statistics[index].second_moment
        read = units.in_units[index]
        wanted = read[(read >= 0) & (units.unit_group[read] == group)].unique().tolist()
        if not wanted:
            return
        size = torch.sum(layer.rows @ moment * layer.rows)
        kernel = layer.rows.shape[-1] * layer.shape.groups // len(read)
        of_size: dict[int, list[tuple[int, Tensor]]] = {}
        for unit in wanted:
            channels = (read == unit).nonzero()
            # A unit's channels in one group of the layer go together.
            columns = (channels * kernel + torch.arange(kernel)).flatten()
            of_group = columns // layer.rows.shape[-1]
            for number in of_group.unique():
                together = columns[of_group == number]
                of_size.setdefault(len(together), []).append((unit, together))
        for found in of_size.values():
            sets = torch.stack([columns for _, columns in found])
            lost = removal_error(layer.rows, moment, sets)
            gone = torch.tensor([unit for unit, _ in found])
            scores.index_add_(0, gone, lost / size.clamp_min(torch.finfo(size.dtype).tiny))

    def _weights(
        self,
        index: int,
        config: CompressionConfig,
        kept_in: Tensor,
        kept_out: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Folded weight, bias and scale of one layer; answered from memory where possible."""
        decision, repair = config.layers[self.network.names[index]], config.repair
        quantizer, reconstruction = config.quantizer.of_weights, config.reconstruction
        key = (
            index,
            decision.granularity,
            decision.criterion,
            decision.sparsity,
            decision.weight_bits,
            decision.activation_bits in FLOAT_BITS,
            repair,
            quantizer,
            reconstruction,
            kept_in.numpy().tobytes(),
            kept_out.numpy().tobytes(),
        )
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        layer, statistics = self.view(index, repair, decision.activation_bits)
        columns = removed_columns(layer, kept_in)
        found = self._from_database(index, config) if columns is None else None
        rows, scale = found or compressed_rows(
            layer, statistics, decision, columns, repair, quantizer, reconstruction
        )
        bias = layer.bias
        if repair != "none" and decision.weight_bits not in FLOAT_BITS:
            shift = bias_correction(layer.rows, rows[None], statistics.mean)[0].flatten()
            bias = bias + shift * layer.fold_scale
        weight, scale = folded(layer, rows, scale, decision.weight_bits, kept_out, quantizer)
        result = (weight, bias * kept_out, scale)
        self._remember(key, result)
        return result

    def source(
        self,
        index: int,
        repair: Repair,
        quantizer: Quantizer = DEFAULT_QUANTIZER,
        reconstruction: Reconstruction = DEFAULT_RECONSTRUCTION,
        activation_bits: int = INTEGER_BITS[-1],
    ) -> LayerSource:
        """What the options of one layer are made from, with or without repair.

        Args:
            index: Number of the layer.
            repair: How it is repaired.
            quantizer: How its weights are rounded.
            reconstruction: How repair prunes and rounds.
            activation_bits: Width of its input; all widths of integers give the same.
        """
        reads_floats, repairs = activation_bits in FLOAT_BITS, repair != "none"
        used = reconstruction if repairs else DEFAULT_RECONSTRUCTION
        key = index, repairs, reads_floats, quantizer.of_weights, used
        if key not in self._sources:
            layer, statistics = self.view(index, repair, activation_bits)
            self._sources[key] = LayerSource(layer, statistics, repairs, quantizer.of_weights, used)
        return self._sources[key]

    def _from_database(self, index: int, config: CompressionConfig) -> tuple[Tensor, Tensor] | None:
        if self.database is None:
            return None
        decision = config.layers[self.network.names[index]]
        method, sparsity = Method(decision.granularity, decision.criterion), decision.sparsity
        if method.granularity == "filter":  # the filters that stay are rounded like unpruned ones
            method, sparsity = NO_PRUNING, 0.0
        source = self.source(
            index,
            config.repair,
            config.quantizer,
            config.reconstruction,
            decision.activation_bits,
        )
        return self.database.weights(source, method, sparsity, decision.weight_bits)

    def _sequential_weights(
        self,
        config: CompressionConfig,
        ranges: Sequence[ActivationRange],
        maps: Sequence[ActivationRange],
        kept_in: Sequence[Tensor],
        kept_out: Sequence[Tensor],
    ) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Folded weight, bias and scale of every layer."""
        self._require_images("sequential")
        decisions, quantizer = self._decisions(config), config.quantizer
        views = [
            self.view(index, "sequential", decision.activation_bits)
            for index, decision in enumerate(decisions)
        ]
        found: list[tuple[Tensor, Tensor | None]] = []

        def compress_layer(index: int, target: Tensor, covariance: Tensor) -> Tensor:
            decision, traced = decisions[index], views[index][0]
            layer = replace(traced, weight=target.reshape(traced.weight.shape))
            statistics = replace(views[index][1], second_moment=covariance)
            columns = removed_columns(layer, kept_in[index])
            rows, scale = compressed_rows(
                layer,
                statistics,
                decision,
                columns,
                "layerwise",
                quantizer,
                config.reconstruction,
            )
            bits, kept = decision.weight_bits, kept_out[index]
            found.append(folded(layer, rows, scale, bits, kept, quantizer))
            return found[-1][0]

        if self._dense_samples is None:
            self._dense_samples = sample_dense(self.network, self.images)
        alignments = compress_in_sequence(
            self.network,
            [layer for layer, _ in views],
            self.images,
            ranges,
            maps,
            kept_out,
            compress_layer,
            self._dense_samples,
            self._quantizers(config),
        )
        return _with_alignments(found, decisions, alignments)

    def _aligned(
        self,
        weights: list[tuple[Tensor, Tensor, Tensor | None]],
        config: CompressionConfig,
        ranges: Sequence[ActivationRange],
        maps: Sequence[ActivationRange],
        kept_out: Sequence[Tensor],
    ) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """The same with gains and biases that fit the dense outputs."""
        self._require_images("aligned")
        if self._dense_outputs is None:
            self._dense_outputs = dense_outputs(self.network, self.images)
        layers = [(weight, bias) for weight, bias, _ in weights]
        alignments = align_layers(
            self.network,
            self.images,
            ranges,
            maps,
            kept_out,
            layers,
            self._dense_outputs,
            self._quantizers(config),
        )
        found = [(weight, scale) for weight, _, scale in weights]
        return _with_alignments(found, self._decisions(config), alignments)

    def _decisions(self, config: CompressionConfig) -> list[LayerDecision]:
        """Decision of every layer, in the network's order."""
        return [config.layers[name] for name in self.network.names]

    def _quantizers(self, config: CompressionConfig) -> list[Quantizer]:
        """What binds every layer's scales; the default where there are none."""
        return [
            DEFAULT_QUANTIZER if decision.weight_bits in FLOAT_BITS else config.quantizer
            for decision in self._decisions(config)
        ]

    def _require_images(self, repair: Repair) -> None:
        if not self.images:
            raise InputError("repair", repair, "it needs calibration images; use 'layerwise'")

    def _remember(
        self, key: tuple[object, ...], result: tuple[Tensor, Tensor, Tensor | None]
    ) -> None:
        self._cache[key] = result
        self._cached_bytes += result[0].nbytes
        while self._cached_bytes > _CACHED_BYTES and len(self._cache) > 1:
            _, (weight, _, _) = self._cache.popitem(last=False)
            self._cached_bytes -= weight.nbytes


def folded(
    layer: TracedLayer,
    rows: Tensor,
    scale: Tensor | None,
    bits: int,
    kept_out: Tensor,
    quantizer: Quantizer,
) -> tuple[Tensor, Tensor | None]:
    """Weights with the batch norm folded in, to the last bit what an export's reader computes.

    Args:
        layer: The layer.
        rows: Its compressed weights, (groups, rows, columns).
        scale: As :func:`compressed_rows` returns it.
        bits: Their width.
        kept_out: Output channels that stay, bool, (out_channels,).
        quantizer: See ``CompressionConfig``.

    Returns:
        Weights in the layer's own shape, and the scale after folding.
    """
    broadcast = [-1] + [1] * (layer.weight.ndim - 1)
    weight = rows.reshape(layer.weight.shape) * (layer.fold_scale * kept_out).view(broadcast)
    if scale is not None:
        scale = WeightGrid.of(layer, quantizer).fold_in(scale, layer.fold_scale.abs())
        weight = integer_weights(weight, scale).float() * spread(scale, weight)
    elif bits == 16:
        weight = weight.half().float()
    return weight, scale


def _with_alignments(
    weights: Sequence[tuple[Tensor, Tensor | None]],
    decisions: Sequence[LayerDecision],
    alignments: Sequence[Alignment],
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Weight, bias and scale of every layer, its output channels aligned."""
    return [
        _aligned_layer(weight, scale, decision.weight_bits, alignment)
        for (weight, scale), decision, alignment in zip(weights, decisions, alignments, strict=True)
    ]


def _aligned_layer(
    weight: Tensor, scale: Tensor | None, bits: int, alignment: Alignment
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight, bias and scale of a layer whose output channels are aligned; still on a grid."""
    if scale is None:
        weight = weight * spread(alignment.gain, weight)
        return weight.half().float() if bits == 16 else weight, alignment.bias, None
    integers = integer_weights(weight, scale).float()
    scale = scale * spread(alignment.gain, scale)
    return integers * spread(scale, weight), alignment.bias, scale


def integer_weights(weight: Tensor, scale: Tensor) -> Tensor:
    """Integers of weights that lie on a grid; see ``CompressedLayer`` for the scale."""
    return integers_on_grid(weight, spread(torch.where(scale == 0, 1.0, scale), weight))


def spread(scale: Tensor, weight: Tensor) -> Tensor:
    """Scales of the first dimensions of ``weight``, to multiply it with."""
    return scale.view(*scale.shape, *[1] * (weight.ndim - scale.ndim))


def check_config(network: TracedNetwork, config: CompressionConfig) -> None:
    """Raise InputError unless a configuration fits a network: its layers and their coupling."""
    names = set(network.names)
    for name in config.layers:
        if name not in names:
            raise InputError(f"layers.{name}", name, f"the network has {', '.join(network.names)}")
    for name in network.names:
        if name not in config.layers:
            raise InputError(f"layers.{name}", None, "the network has this layer: decide on it")
    group_numbers = network.units.group
    for index, name in enumerate(network.names):
        decision = config.layers[name]
        group = group_numbers[index]
        if group < 0 and decision.granularity == "filter":
            allowed = "its output channels must stay: remove weights only"
            raise InputError(f"layers.{name}.granularity", "filter", allowed)
        leader = network.names[group_numbers.index(group)]
        if group >= 0 and _removal(decision) != _removal(config.layers[leader]):
            allowed = f"its channels are removed together with those of {leader}: decide the same"
            raise InputError(f"layers.{name}", _removal(decision), allowed)


def _removal(decision: LayerDecision) -> tuple[str, float] | None:
    """What of a decision all layers of a channel group must share."""
    filters = decision.granularity == "filter"
    return (decision.criterion, decision.sparsity) if filters else None
