"""Other ways to quantize than the default, in whole networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import integer
from envs.calibration import calibrate_activation
from envs.compression import CompressedLayer
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import uniform
from envs.database import OptionDatabase
from envs.evaluator import Evaluator
from envs.integer import IntegerSum
from envs.layer_compression import compressed_rows
from envs.lowering import lower
from envs.quantization import quantize_activation
from envs.quantization import weight_limit
from envs.quantizer import Quantizer
from envs.setup import Menu
from envs.setup import prepare_evaluator
from envs.statistics import load_statistics
from envs.statistics import save_statistics
from search.export import write_network
from tests.envs.networks import NETWORKS
from tests.envs.networks import randomize
from tests.envs.test_lowering import evaluator_of
from tests.envs.test_lowering import images
from tests.envs.test_lowering import needs_kernels
from tests.envs.test_lowering import run
from tests.envs.test_removal import evaluator_for
from tests.search.test_export import load_module

OTHERS = {
    "affine": Quantizer(weight_symmetry="affine"),
    "groups": Quantizer(weight_granularity="group:4", activation_symmetry="symmetric"),
    "shift": Quantizer(scale="power_of_two"),
    "plain shift": Quantizer(
        "max_abs", "symmetric", "per-layer", "max_abs", "symmetric", "tensor", "power_of_two"
    ),
    "shift of affine groups": Quantizer(
        "percentile:99.9", "affine", "fused", "percentile:99", "affine", "group:3", "power_of_two"
    ),
    "divergence": Quantizer("kl", "affine", "fused", "kl", "affine", "tensor"),
}
each_quantizer = pytest.mark.parametrize("quantizer", OTHERS.values(), ids=OTHERS)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return evaluator_of("inverted")


def steps(layer: CompressedLayer) -> Tensor:
    """Step of every weight's grid; 1 in channels of zeros."""
    assert layer.scale is not None
    scale = torch.where(layer.scale == 0, 1.0, layer.scale)
    return scale.view(*scale.shape, *[1] * (layer.weight.ndim - scale.ndim))


def is_power_of_two(x: Tensor) -> bool:
    return bool((torch.frexp(x).mantissa == 0.5).all())


@each_quantizer
@pytest.mark.parametrize(
    "repair",
    [
        *(pytest.param(r, marks=pytest.mark.slow) for r in ("none", "layerwise")),
        "aligned",
        "sequential",
    ],
)
def test_scales_are_what_they_may_be_whatever_repairs(
    evaluator: Evaluator, quantizer: Quantizer, repair: Repair
) -> None:
    decision = LayerDecision("element", "l1", 0.3, 4, 6)
    names = evaluator.compressor.network.names
    config = CompressionConfig(dict.fromkeys(names, decision), repair, quantizer)
    for layer in evaluator.compressor.compress(config).layers:
        integers = layer.weight / steps(layer)
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
        low, high = integers.round().amin(), integers.round().amax()
        if quantizer.weight_symmetry == "symmetric":
            assert max(-low, high) <= weight_limit(4)
        if quantizer.weight_granularity == "tensor":
            assert high.clamp_min(0) - low.clamp_max(0) <= 15
        assert float((layer.weight == 0).float().mean()) >= 0.29
        assert layer.scale is not None
        if quantizer.power_of_two:
            assert is_power_of_two(steps(layer))
            assert is_power_of_two(torch.tensor(layer.input_range.scale))
        if quantizer.weight_granularity == "tensor":
            assert len(layer.scale.unique()) == 1
        size, channels = quantizer.group_size, layer.weight.shape[1]
        if size is not None and size < channels:
            assert layer.scale.shape == layer.weight.shape[:2]
            for start in range(0, channels, size):
                block = layer.scale[:, start : start + size]
                assert torch.equal(block, block[:, :1].expand_as(block))
        else:
            assert layer.scale.ndim == 1


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:4"])
@pytest.mark.parametrize("range_", ["mse", "max_abs", "percentile:95"])
def test_weights_round_as_torch_rounds_them(
    evaluator: Evaluator, granularity: str, range_: str
) -> None:
    quantizer = Quantizer(weight_range=range_, weight_granularity=granularity)
    layer = evaluator.compressor.network.layers[-2]
    statistics = evaluator.compressor.statistics[-2]
    decision = LayerDecision(weight_bits=4)
    rows, scale = compressed_rows(layer, statistics, decision, None, "none", quantizer)
    assert scale is not None
    if granularity == "channel":
        zeros = torch.zeros(len(scale), dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(layer.weight, scale, zeros, 0, -7, 7)
    else:  # torch has one scale for all, or one for each index of one axis
        spread = scale.view(*scale.shape, *[1] * (layer.weight.ndim - scale.ndim))
        pairs = zip(layer.weight.flatten(), spread.expand_as(layer.weight).flatten(), strict=True)
        values = [torch.fake_quantize_per_tensor_affine(w, float(s), 0, -7, 7) for w, s in pairs]
        expected = torch.stack(values).view_as(layer.weight)
    torch.testing.assert_close(rows.view_as(layer.weight), expected)


@needs_kernels
def test_affine_integers_beyond_8_bits_are_computed_in_floating_point(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = randomize(NETWORKS["mlp"]())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    evaluator = evaluator_for("positive", network)
    compressor = evaluator.compressor
    config = replace(uniform(compressor.network.names, 8), quantizer=OTHERS["affine"])
    compressed = compressor.compress(config)
    assert any((layer.weight / steps(layer)).max() > 200 for layer in compressed.layers)
    write_network(compressor, config, tmp_path)
    inputs = images(evaluator)
    with torch.no_grad():
        exported = load_module(tmp_path).load()(inputs)
    outputs, _ = evaluator.outputs(compressed, "search")
    torch.testing.assert_close(exported, outputs, rtol=1e-4, atol=1e-4)
    lowered = lower(compressor.network, compressed, integers=True)
    torch.testing.assert_close(run(lowered, inputs), outputs, rtol=1e-4, atol=1e-4)


def rounding_error(evaluator: Evaluator, quantizer: Quantizer) -> float:
    """Relative squared change of the folded weights of all layers at 4 bits, none repaired."""
    config = replace(uniform(evaluator.compressor.network.names, 4), repair="none")
    layers = evaluator.compressor.compress(replace(config, quantizer=quantizer)).layers
    dense = [layer.folded_weight for layer in evaluator.compressor.network.layers]
    pairs = zip(layers, dense, strict=True)
    return sum(float((a.weight - b).square().sum() / b.square().sum()) for a, b in pairs)


def test_the_fewer_weights_share_a_scale_the_less_they_change(evaluator: Evaluator) -> None:
    granularities = ("tensor", "channel", "group:8", "group:2")
    errors = [rounding_error(evaluator, Quantizer(weight_granularity=g)) for g in granularities]
    assert errors == sorted(errors, reverse=True)
    shift = [
        rounding_error(evaluator, Quantizer(weight_granularity=g, scale="power_of_two"))
        for g in granularities
    ]
    assert all(free < bound for free, bound in zip(errors, shift, strict=True))
    assert errors[1] < rounding_error(evaluator, Quantizer(weight_range="max_abs"))


@pytest.mark.parametrize("name", ["shift", "plain shift"])
def test_alignment_restores_means_where_gains_are_bound(name: str) -> None:
    evaluator = evaluator_of("mlp")
    compressor = evaluator.compressor
    names = compressor.network.names
    first = uniform(names, 32).layers | {names[0]: LayerDecision("element", "l1", 0.5, 3, 8)}
    found = compressor.compress(CompressionConfig(first, "aligned", OTHERS[name])).layers[0]
    inputs = torch.cat(list(compressor.images)).flatten(1)
    layer = compressor.network.layers[0]
    wanted = inputs @ layer.folded_weight.T + layer.bias
    reached = quantize_activation(inputs, found.input_range) @ found.weight.T + found.bias
    torch.testing.assert_close(reached.mean(0), wanted.mean(0), rtol=1e-3, atol=1e-4)


def sampled(evaluator: Evaluator, quantizer: Quantizer, seed: int) -> CompressionConfig:
    """A random configuration, channels removed among others."""
    menu = Menu(weight_bits=(4, 8), activation_bits=(8,), quantizer=quantizer)
    space = menu.space(evaluator.compressor.network)
    return space.config(space.sample(np.random.default_rng(seed), 1)[0])


@each_quantizer
@pytest.mark.parametrize(
    "name",
    ["inverted", *(pytest.param(n, marks=pytest.mark.slow) for n in ("shuffle", "attention"))],
)
def test_exported_and_fast_networks_compute_the_same(
    name: str, quantizer: Quantizer, tmp_path: Path
) -> None:
    evaluator = evaluator_of(name)
    compressor = evaluator.compressor
    config = sampled(evaluator, quantizer, 3)
    compressed = compressor.compress(config)
    inputs = images(evaluator)
    outputs, _ = evaluator.outputs(compressed, "search")
    write_network(compressor, config, tmp_path)
    with torch.no_grad():
        exported = load_module(tmp_path).load()(inputs)
    torch.testing.assert_close(exported, outputs, rtol=1e-4, atol=1e-4)
    assert CompressionConfig.load(tmp_path / "config.json") == config
    if integer.is_available():
        lowered = run(lower(compressor.network, compressed, integers=True), inputs)
        torch.testing.assert_close(lowered, exported, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_layers_with_scales_for_groups_are_sums_of_integer_layers() -> None:
    evaluator = evaluator_of("padded_residual")
    network = evaluator.compressor.network
    config = replace(uniform(network.names, 8), quantizer=OTHERS["groups"])
    lowered = lower(network, evaluator.compressor.compress(config), integers=True)
    sums = [module for module in lowered.modules() if isinstance(module, IntegerSum)]
    assert len(sums) == sum(layer.weight.shape[1] > 4 for layer in network.layers)


@pytest.fixture(scope="module")
def stored(evaluator: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """The same with a database."""
    return prepare_evaluator(evaluator.task, tmp_path_factory.mktemp("database"))


@each_quantizer
def test_weights_from_the_database_are_those_made_without_it(
    evaluator: Evaluator, stored: Evaluator, quantizer: Quantizer
) -> None:
    database = stored.compressor.database
    assert isinstance(database, OptionDatabase)
    config = sampled(evaluator, quantizer, 1)
    for index, decision in enumerate(config.layers.values()):
        method, sparsity = Menu().methods[0], 0.0
        if decision.granularity == "element":
            method, sparsity = Menu().methods[1], decision.sparsity
        source = stored.compressor.source(index, config.repair, quantizer)
        assert database.lacks(source, method, [sparsity], [decision.weight_bits])
        database.options(source, method, [sparsity], [decision.weight_bits])
        default = stored.compressor.source(index, config.repair)
        assert database.lacks(default, method, [sparsity], [decision.weight_bits])
    pairs = zip(
        evaluator.compressor.compress(config).layers,
        stored.compressor.compress(config).layers,
        strict=True,
    )
    for made, read in pairs:
        assert torch.equal(made.weight, read.weight)
        assert made.scale is not None and read.scale is not None
        assert torch.equal(made.scale, read.scale)


def config_with(evaluator: Evaluator, quantizer: Quantizer) -> CompressionConfig:
    return replace(uniform(evaluator.compressor.network.names, 4), quantizer=quantizer)


def test_every_layer_reads_the_grid_that_was_asked_for(evaluator: Evaluator) -> None:
    compressor = evaluator.compressor
    for quantizer in (Quantizer("max_abs"), Quantizer("kl", "symmetric")):
        compressed = compressor.compress(config_with(evaluator, quantizer))
        for index, layer in enumerate(compressed.layers):
            _, statistics = compressor.view(index, "layerwise", 4)
            whole = quantizer.activation_range == "max_abs"
            seen = statistics.extremes if whole else statistics.sample
            grid = calibrate_activation(seen, 4, quantizer)
            assert layer.input_range == replace(grid, divided=statistics.divided)
            rounded = quantize_activation(statistics.sample, grid)
            assert layer.input_density == pytest.approx(float((rounded != 0).float().mean()))
        densities = compressor.states(compressed).activation_density[0]
        assert densities.tolist() == [layer.input_density for layer in compressed.layers]


def test_the_extremes_are_those_of_all_images(evaluator: Evaluator) -> None:
    images = torch.cat([batch for batch, _ in evaluator.task.calibration])
    first = evaluator.compressor.statistics[0]
    by_channel = images.movedim(1, 0).flatten(1).aminmax(dim=1)
    assert torch.equal(first.extremes, torch.stack(by_channel))


def test_statistics_survive_a_file(evaluator: Evaluator, tmp_path: Path) -> None:
    statistics = evaluator.compressor.statistics
    save_statistics(tmp_path / "file", statistics)
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    loaded = load_statistics(tmp_path / "file", evaluator.compressor.network)
    assert any(layer.equalized is not None for layer in statistics)
    for before, after in zip(statistics, loaded, strict=True):
        assert torch.equal(after.sample, before.sample)
        assert torch.equal(after.extremes, before.extremes)
        quantizer = Quantizer("percentile:99.9", "symmetric")
        assert after.input_range(4, quantizer) == before.input_range(4, quantizer)
        assert (after.equalized is None) == (before.equalized is None)
        if after.equalized is not None and before.equalized is not None:
            assert after.equalized.inputs == before.equalized.inputs
            assert torch.equal(after.equalized.second_moment, before.equalized.second_moment)
