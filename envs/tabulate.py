"""Builds the option table: every option of every layer, tried alone on calibration statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.compression import CompressedNetwork
from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import uniform
from envs.database import Option
from envs.database import layer_options
from envs.evaluator import Evaluator
from envs.layer_compression import compressed_rows
from envs.layer_compression import removed_columns
from envs.least_squares import DAMPING
from envs.least_squares import ridge_of
from envs.options import OptionTable
from envs.output_change import output_change
from envs.problem import output_bits
from envs.quantizer import Quantizer
from envs.reconstruction import output_error
from envs.space import NO_PRUNING
from envs.space import Method
from envs.space import SearchSpace
from envs.units import is_removed

TABLE_VERSION = "3"
"""Changes whenever a table says something else of the same network."""
_PROBE_IMAGES = 256
_PROBE_BITS = 3
_LEAST_ERROR = 1e-9

Progress = Callable[[str, int, int], None]
"""Told (what is being done, steps done, steps in all)."""


def build_option_table(
    evaluator: Evaluator, space: SearchSpace, progress: Progress | None = None
) -> OptionTable:
    """Try every option of every layer alone.

    Densities and errors come from weights and calibration statistics; sensitivities from running
    the network on calibration images with one layer rounded.
    """
    compressor = evaluator.compressor
    layers = len(space.layers)
    shape = (layers, *space.sizes[:3])
    density, error = np.zeros(shape), np.zeros(shape)
    for index in range(layers):
        density[index], error[index] = _layer_options(compressor, space, index)
        if progress is not None:
            progress("compressing layers", index + 1, layers)
    kept_out, removed_in, column_density, filter_error = _filter_options(compressor, space)
    units = compressor.network.units
    leaders = np.array(
        [units.group.index(group) for group in range(max(units.group, default=-1) + 1)],
        dtype=np.int64,
    )
    for group, leader in enumerate(leaders):
        error[leader] += filter_error[group][:, :, None]
    return OptionTable(
        weight_density=density,
        column_density=column_density,
        activation_density=_menu(compressor, space, lambda entry: entry.density),
        weight_error=error,
        activation_error=_menu(compressor, space, lambda entry: entry.error),
        sensitivity=_sensitivity(evaluator, space, progress),
        kept_out=kept_out,
        removed_in=removed_in,
        dense_in=np.array(
            [layer.shape.in_channels for layer in compressor.network.layers], dtype=np.float64
        ),
        leaders=leaders,
    )


def _layer_options(
    compressor: Compressor, space: SearchSpace, index: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density and relative output error of one layer's options, each (M, S, W)."""
    density = np.zeros(tuple(space.sizes[:3]))
    error = np.zeros_like(density)
    pinned = space.pinned.get(space.layers[index])
    if pinned is not None:  # whatever index learners see, it is this decision
        layer, statistics = compressor.view(index, space.repair, pinned.activation_bits)
        rows, _ = compressed_rows(
            layer,
            statistics,
            pinned,
            None,
            space.repair,
            space.quantizer,
            space.reconstruction,
        )
        density[:] = float((rows != 0).double().mean())
        lost = output_error((rows - layer.rows)[None], statistics.second_moment, layer.rows)
        error[:] = float(lost[0])
        return density, error
    for number, method in enumerate(space.methods):
        if space.is_filter(number):  # what stays is rounded like an unpruned layer
            density[number], error[number] = density[0], error[0]
            continue
        sparsities, place = space.reached_sparsities(number)
        options = _options(compressor, space, index, method, sparsities)
        for values, name in ((density, "density"), (error, "error")):
            found = [
                [float(getattr(by[bits], name)) for bits in space.weight_bits] for by in options
            ]
            values[number] = np.array(found)[place]
    return density, error


def _options(
    compressor: Compressor,
    space: SearchSpace,
    index: int,
    method: Method,
    sparsities: Sequence[float],
) -> list[dict[int, Option]]:
    """Options of one layer that is pruned in one way, by width; one set for each sparsity."""
    source = compressor.source(index, space.repair, space.quantizer, space.reconstruction)
    make = layer_options if compressor.database is None else compressor.database.options
    return make(source, method, sparsities, space.weight_bits)


def _filter_options(compressor: Compressor, space: SearchSpace) -> tuple[NDArray[np.float64], ...]:
    """What removing channels leaves and loses.

    Returns:
        Output channels left (L, M, S), input channels that each group's removal takes
        (L, G, M, S), what it makes of the density of rounded weights (L, G, M, S, W), and the
        error it adds to the outputs of the layers that read it (G, M, S).
    """
    network = compressor.network
    units = network.units
    groups = max(units.group, default=-1) + 1
    shape = (len(space.methods), len(space.sparsities))
    kept_out = np.zeros((len(network.layers), *shape))
    for index, layer in enumerate(network.layers):
        kept_out[index] = layer.shape.out_channels
    removed_in = np.zeros((len(network.layers), groups, *shape))
    density = np.ones((*removed_in.shape, len(space.weight_bits)))
    lost = np.zeros((groups, *shape))
    filters = [index for index in range(len(space.methods)) if space.is_filter(index)]
    reads = range(len(network.layers)) if filters else ()
    nonzero = [_nonzero_weights(compressor, space, index) for index in reads]
    for group, method, step in itertools.product(range(groups), filters, range(shape[1])):
        criterion = space.methods[method].criterion
        members, keep = compressor.kept_units(group, criterion, space.sparsities[step])
        gone = torch.zeros(len(units.unit_group), dtype=torch.bool)
        gone[members[~keep]] = True
        for index in range(len(network.layers)):
            kept_out[index, method, step] -= int(is_removed(units.out_units[index], gone).sum())
            taken = int(is_removed(units.in_units[index], gone).sum())
            removed_in[index, group, method, step] = taken
            if taken:
                columns = _columns_of(compressor, index, gone)
                lost[group, method, step] += _reading_error(compressor, space, index, columns)
                density[index, group, method, step] = _density_of(nonzero[index], ~columns)
    return kept_out, removed_in, density, lost


def _nonzero_weights(compressor: Compressor, space: SearchSpace, index: int) -> Tensor:
    """Share of rows whose rounded weight is not zero, (W, groups, columns), nothing pruned.

    Ones for pinned layers, which are as they are.
    """
    groups, _, columns = compressor.network.layers[index].rows.shape
    if space.layers[index] in space.pinned:
        return torch.ones(len(space.weight_bits), groups, columns, dtype=torch.float64)
    (by_width,) = _options(compressor, space, index, NO_PRUNING, [0.0])
    return torch.stack(
        [(by_width[bits].integers != 0).double().mean(dim=1) for bits in space.weight_bits]
    )


def _density_of(nonzero: Tensor, kept: Tensor) -> NDArray[np.float64]:
    """Density in the columns that are kept, (groups, columns), over that of all, (W,)."""
    if not bool(kept.any()):
        return np.ones(len(nonzero))
    everywhere = nonzero.mean(dim=(1, 2))
    ratio = nonzero[:, kept].mean(dim=1) / everywhere
    return np.asarray(torch.where(everywhere > 0, ratio, 1.0))


def _columns_of(compressor: Compressor, index: int, gone: Tensor) -> Tensor:
    """Columns of a layer's rows that go with these units, some of which it reads."""
    unit = compressor.network.units.in_units[index]
    columns = removed_columns(compressor.network.layers[index], ~is_removed(unit, gone))
    assert columns is not None
    return columns


def _reading_error(
    compressor: Compressor, space: SearchSpace, index: int, columns: Tensor
) -> float:
    """Relative output error of a layer that loses columns, after least squares if any."""
    layer = compressor.network.layers[index]
    rows, moment = layer.rows.double(), compressor.statistics[index].second_moment.double()
    total = torch.einsum("grc,gcd,grd->", rows, moment, rows)
    lost = torch.zeros((), dtype=torch.float64)
    damped = moment + ridge_of(moment, DAMPING)
    for group, mask in enumerate(columns):
        away, part = rows[group][:, mask], moment[group]
        inner = part[mask][:, mask]
        if space.repair != "none" and not bool(mask.all()):
            kept = damped[group][~mask][:, ~mask]
            cross = part[~mask][:, mask]
            inner = inner - cross.T @ torch.linalg.solve(kept, cross)
        lost += torch.einsum("rc,cd,rd->", away, inner, away)
    return float(lost.clamp_min(0) / total) if total > 0 else 0.0


def _menu(
    compressor: Compressor, space: SearchSpace, read: Callable[..., float]
) -> NDArray[np.float64]:
    """A fact about every layer's quantized input, (L, A); pinned layers have theirs everywhere."""
    rows = []
    for index, name in enumerate(space.layers):
        pinned = space.pinned.get(name)
        widths = (
            [pinned.activation_bits] * len(space.activation_bits)
            if pinned
            else space.activation_bits
        )
        ranges = (
            compressor.input_range(index, bits, space.repair, space.quantizer) for bits in widths
        )
        rows.append([read(entry) for entry in ranges])
    return np.array(rows, dtype=np.float64)


def _sensitivity(
    evaluator: Evaluator, space: SearchSpace, progress: Progress | None
) -> NDArray[np.float64]:
    """Change of the network's outputs per unit of error in one layer, (L, 2)."""
    compressor = evaluator.compressor
    names, quantizer = space.layers, space.quantizer
    # Repairs that walk through the network rank the layers alike and take several times as long.
    repair: Repair = "none" if space.repair == "none" else "layerwise"
    dense_config = uniform(names, 32)
    reference = _probe(evaluator, compressor.compress(dense_config))
    result = np.zeros((len(names), 2))
    for index, name in enumerate(names):
        weights = LayerDecision(weight_bits=_PROBE_BITS, activation_bits=32)
        inputs = LayerDecision(weight_bits=32, activation_bits=_PROBE_BITS)
        for column, decision in enumerate((weights, inputs)):
            layers = {**dense_config.layers, name: decision}
            config = CompressionConfig(layers, repair, quantizer, space.reconstruction)
            compressed = compressor.compress(config)
            change = output_change(_probe(evaluator, compressed), reference)
            if decision is weights:
                error = _weight_error(compressor, compressed, index)
            else:
                error = compressor.input_range(index, _PROBE_BITS, repair, quantizer).error
            result[index, column] = change / max(error, _LEAST_ERROR)
        if progress is not None:
            progress("measuring sensitivities", index + 1, len(names))
    if quantizer.rounds_maps:
        _add_shared_maps(evaluator, repair, quantizer, reference, result)
    return result


def _add_shared_maps(
    evaluator: Evaluator,
    repair: Repair,
    quantizer: Quantizer,
    reference: Tensor,
    sensitivity: NDArray[np.float64],
) -> None:
    """Add what rounding maps does that no single layer's width decides.

    A map is as wide as the widest of the layers that read it, or a sum that it goes into, ask for.
    Where these are several, none of them alone narrows it. What its rounding changes beyond the
    roundings of the layers that read it is shared out among them equally: at equal widths the sum
    is then right.

    Args:
        evaluator: Runs the network.
        repair: Of the layers that were probed.
        quantizer: Of the same.
        reference: Outputs of the dense network.
        sensitivity: Of every layer's weights and inputs, (L, 2); inputs' are added to.
    """
    compressor = evaluator.compressor
    network = compressor.network
    names, count = network.names, len(network.layers)
    dense = compressor.compress(uniform(names, 32))
    rounded = compressor.map_ranges(
        replace(uniform(names, _PROBE_BITS), repair=repair, quantizer=quantizer)
    )
    one_is_wide = np.where(np.eye(count, dtype=bool), 32.0, 2.0)
    is_wide = output_bits(network.workload, one_is_wide) == 32
    entries = [
        compressor.input_range(index, _PROBE_BITS, repair, quantizer) for index in range(count)
    ]
    errors = np.maximum([entry.error for entry in entries], _LEAST_ERROR)
    for number, stored in enumerate(network.maps):
        deciding = np.flatnonzero(is_wide[:, stored.writer])
        if len(deciding) < 2:
            continue
        ranges = list(dense.map_ranges)
        ranges[number] = rounded[number]
        outputs = _probe(evaluator, replace(dense, map_ranges=tuple(ranges)))
        change = output_change(outputs, reference)
        reading = [index for index in range(count) if network.same_input[index] == stored.reader]
        known = float(np.sum(sensitivity[reading, 1] * errors[reading]))
        share = max(change - known, 0.0) / len(deciding)
        sensitivity[deciding, 1] += share / errors[deciding]


def _weight_error(compressor: Compressor, compressed: CompressedNetwork, index: int) -> float:
    """Relative output error of one layer's compressed weights, batch norm not folded in."""
    layer, weight = compressor.network.layers[index], compressed.layers[index].weight
    scale = layer.fold_scale.view(-1, *[1] * (weight.ndim - 1))
    rows = (weight / torch.where(scale == 0, 1.0, scale)).reshape(layer.rows.shape)
    moment = compressor.statistics[index].second_moment
    return float(output_error((rows - layer.rows)[None], moment, layer.rows)[0])


def _probe(evaluator: Evaluator, compressed: CompressedNetwork) -> Tensor:
    """Outputs for the first calibration images, (images, classes, ...)."""
    return evaluator.calibration_outputs(compressed, _PROBE_IMAGES)
