"""Other ways to quantize than the default: ranges and symmetry, alone and in whole networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from envs.calibration import calibrate_activation
from envs.config import INTEGER_BITS
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.quantization import ActivationRange
from envs.quantization import quantize_activation
from envs.quantizer import Quantizer
from envs.statistics import load_statistics
from envs.statistics import save_statistics
from hwmodel import InputError
from tests.envs.test_removal import make_evaluator

RANGES = ("mse", "max_abs", "kl", "percentile:99.5")
SYMMETRIES = ("affine", "symmetric")

QUANTIZERS = st.builds(
    Quantizer,
    activation_range=st.sampled_from(RANGES),
    activation_symmetry=st.sampled_from(SYMMETRIES),
)
SAMPLES = st.lists(st.floats(-(2.0**30), 2.0**30, width=32), min_size=1, max_size=40)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared_error(x: Tensor, grid: ActivationRange) -> float:
    return float((quantize_activation(x, grid) - x).square().mean())


@settings(max_examples=30, deadline=None)
@given(values=SAMPLES, bits=st.sampled_from(INTEGER_BITS), quantizer=QUANTIZERS)
def test_any_grid_holds_zero_and_what_is_on_it_stays(
    values: list[float], bits: int, quantizer: Quantizer
) -> None:
    sample = torch.tensor(values)
    grid = calibrate_activation(sample, bits, quantizer)
    assert grid.low <= 0 <= grid.high
    assert grid.high - grid.low == 2**bits - 1
    assert grid.scale > 0
    once = quantize_activation(sample, grid)
    assert torch.equal(quantize_activation(once, grid), once)
    levels = once / grid.scale
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(values=SAMPLES, bits=st.sampled_from(INTEGER_BITS), range_=st.sampled_from(RANGES))
def test_symmetric_zeros_lie_in_the_middle_or_at_the_end(
    values: list[float], bits: int, range_: str
) -> None:
    sample = torch.tensor(values)
    grid = calibrate_activation(sample, bits, Quantizer(range_, "symmetric"))
    negative = bool((sample < 0).any()) and float(sample.abs().max()) > 1e-30
    assert grid.low == (-(2 ** (bits - 1)) if negative else 0)


@pytest.mark.parametrize("quantizer", [Quantizer(r, s) for r in RANGES for s in SYMMETRIES])
@pytest.mark.parametrize("bits", [3, 8])
def test_inputs_round_as_torch_rounds_them(quantizer: Quantizer, bits: int) -> None:
    for x in (normal(2000), normal(2000).relu(), torch.nn.functional.gelu(normal(2000))):
        grid = calibrate_activation(x, bits, quantizer)
        expected = torch.fake_quantize_per_tensor_affine(
            x, grid.scale, -grid.low, 0, grid.high - grid.low
        )
        torch.testing.assert_close(quantize_activation(x, grid), expected)


@settings(max_examples=30, deadline=None)
@given(values=SAMPLES, bits=st.sampled_from(INTEGER_BITS), range_=st.sampled_from(RANGES))
def test_without_negative_values_there_is_one_symmetry(
    values: list[float], bits: int, range_: str
) -> None:
    sample = torch.tensor(values).abs()
    affine, symmetric = (Quantizer(range_, symmetry) for symmetry in SYMMETRIES)
    assert calibrate_activation(sample, bits, affine) == calibrate_activation(
        sample, bits, symmetric
    )


@pytest.mark.parametrize("bits", INTEGER_BITS)
@pytest.mark.parametrize("power", [1, 3])
def test_affine_is_better_than_symmetric_on_values_of_one_side(bits: int, power: int) -> None:
    x = -(normal(5000).abs() ** power)
    error = [
        squared_error(x, calibrate_activation(x, bits, Quantizer("mse", s))) for s in SYMMETRIES
    ]
    assert error[0] < 0.8 * error[1]


def test_ranges_are_what_their_names_say() -> None:
    x = normal(100_000)
    spans = {}
    for range_ in (*RANGES, "percentile:100", "percentile:90"):
        grid = calibrate_activation(x, 8, Quantizer(range_))
        spans[range_] = grid.scale * 255
    width = float(x.max() - x.min())
    assert spans["max_abs"] == pytest.approx(width, rel=1e-6)
    assert spans["percentile:100"] == pytest.approx(width, rel=1e-6)
    assert spans["percentile:90"] == pytest.approx(2 * 1.2816, rel=0.02)  # of the normal
    assert spans["percentile:99.5"] == pytest.approx(2 * 2.5758, rel=0.03)
    error = {r: squared_error(x, calibrate_activation(x, 4, Quantizer(r))) for r in RANGES}
    assert error["mse"] <= 1.001 * min(error.values())


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_divergence_clips_outliers_and_keeps_what_is_even(symmetry: str) -> None:
    even = torch.linspace(-1, 1, 20_001)
    quantizer = Quantizer("kl", symmetry)
    outlier = torch.cat([even, torch.tensor([-40.0, 40.0])])
    kept = calibrate_activation(even, 4, quantizer)
    clipped = calibrate_activation(outlier, 4, quantizer)
    assert 1.8 < kept.scale * 15 < 2.4
    assert clipped.scale * 15 < 8


def test_zeros_do_not_move_percentiles_and_divergence() -> None:
    x = normal(5000).abs()
    sparse = torch.cat([x, torch.zeros(100_000)])
    for range_ in ("kl", "percentile:99"):
        quantizer = Quantizer(range_)
        assert calibrate_activation(sparse, 4, quantizer) == calibrate_activation(x, 4, quantizer)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return make_evaluator("inverted")


def config_with(evaluator: Evaluator, quantizer: Quantizer) -> CompressionConfig:
    return replace(uniform(evaluator.compressor.network.names, 4), quantizer=quantizer)


def test_every_layer_reads_the_grid_that_was_asked_for(evaluator: Evaluator) -> None:
    compressor = evaluator.compressor
    for quantizer in (Quantizer("max_abs"), Quantizer("kl", "symmetric")):
        compressed = compressor.compress(config_with(evaluator, quantizer))
        for layer, statistics in zip(compressed.layers, compressor.statistics, strict=True):
            whole = quantizer.activation_range == "max_abs"
            seen = statistics.extremes if whole else statistics.sample
            assert layer.input_range == calibrate_activation(seen, 4, quantizer)
            rounded = quantize_activation(statistics.sample, layer.input_range)
            assert layer.input_density == pytest.approx(float((rounded != 0).float().mean()))
        densities = compressor.states(compressed).activation_density[0]
        assert densities.tolist() == [layer.input_density for layer in compressed.layers]


def test_the_extremes_are_those_of_all_images(evaluator: Evaluator) -> None:
    images = torch.cat([batch for batch, _ in evaluator.task.calibration])
    first = evaluator.compressor.statistics[0]
    assert first.extremes.tolist() == [float(images.min()), float(images.max())]


def test_statistics_survive_a_file(evaluator: Evaluator, tmp_path: Path) -> None:
    statistics = evaluator.compressor.statistics
    save_statistics(tmp_path / "file", statistics)
    for before, after in zip(statistics, load_statistics(tmp_path / "file"), strict=True):
        assert torch.equal(after.sample, before.sample)
        assert torch.equal(after.extremes, before.extremes)
        quantizer = Quantizer("percentile:99.9", "symmetric")
        assert after.input_range(4, quantizer) == before.input_range(4, quantizer)


@given(quantizer=QUANTIZERS)
def test_configurations_survive_json(quantizer: Quantizer) -> None:
    before = CompressionConfig({"a": LayerDecision()}, "none", quantizer)
    after = CompressionConfig.from_json(before.to_json())
    assert after == before
    assert after.hash == before.hash
    assert ("quantizer" in before.to_json()) == (quantizer != Quantizer())


def test_every_quantizer_has_its_own_hash() -> None:
    layers = {"a": LayerDecision()}
    quantizers = [Quantizer(r, s) for r in RANGES for s in SYMMETRIES]
    hashes = {CompressionConfig(layers, quantizer=quantizer).hash for quantizer in quantizers}
    assert len(hashes) == len(quantizers)


@pytest.mark.parametrize(
    ("quantizer", "field"),
    [
        ({"activation_range": "minmax"}, "config.quantizer.activation_range"),
        ({"activation_range": "percentile:101"}, "config.quantizer.activation_range"),
        ({"activation_range": 4}, "config.quantizer.activation_range"),
        ({"activation_symmetry": "both"}, "config.quantizer.activation_symmetry"),
        ({"range": "mse"}, "config.quantizer.range"),
        ("mse", "config.quantizer"),
    ],
)
def test_what_does_not_exist_is_refused(quantizer: object, field: str) -> None:
    with pytest.raises(InputError) as caught:
        CompressionConfig.from_json({"version": 1, "layers": {}, "quantizer": quantizer})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
