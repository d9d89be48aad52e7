"""Other ways to quantize than the default: ranges, symmetry and scales."""

from __future__ import annotations

import math

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
from envs.quantization import ActivationRange
from envs.quantization import integers_on_grid
from envs.quantization import power_of_two_above
from envs.quantization import power_of_two_near
from envs.quantization import quantize_activation
from envs.quantization import round_weights
from envs.quantizer import Quantizer
from envs.scales import weight_scales
from hwmodel import InputError

RANGES = ("mse", "max_abs", "kl", "percentile:99.5")
SYMMETRIES = ("affine", "symmetric")

QUANTIZERS = st.builds(
    Quantizer,
    activation_range=st.sampled_from(RANGES),
    activation_symmetry=st.sampled_from(SYMMETRIES),
    weight_range=st.sampled_from(["mse", "max_abs", "percentile:99"]),
    weight_symmetry=st.sampled_from(SYMMETRIES),
    weight_granularity=st.sampled_from(["tensor", "channel", "group:4"]),
    scale=st.sampled_from(["float", "power_of_two"]),
)
SAMPLES = st.lists(st.floats(-(2.0**30), 2.0**30, width=32), min_size=1, max_size=40)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared_error(x: Tensor, grid: ActivationRange) -> float:
    return float((quantize_activation(x, grid) - x).square().mean())


@settings(max_examples=15, deadline=None)
@given(values=SAMPLES, bits=st.sampled_from(INTEGER_BITS), quantizer=QUANTIZERS)
def test_any_grid_holds_zero_and_what_is_on_it_stays(
    values: list[float], bits: int, quantizer: Quantizer
) -> None:
    sample = torch.tensor(values)
    grid = calibrate_activation(sample, bits, quantizer)
    assert grid.low <= 0 <= grid.high
    assert grid.high - grid.low == 2**bits - 1
    assert grid.scale > 0
    if quantizer.power_of_two:
        assert math.frexp(grid.scale)[0] == 0.5
    once = quantize_activation(sample, grid)
    assert torch.equal(quantize_activation(once, grid), once)
    levels = once / grid.scale
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


@settings(max_examples=15, deadline=None)
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


@settings(max_examples=15, deadline=None)
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
    x = normal(30_000)
    spans = {}
    for range_ in (*RANGES, "percentile:100", "percentile:90"):
        grid = calibrate_activation(x, 8, Quantizer(range_))
        spans[range_] = grid.scale * 255
    width = float(x.max() - x.min())
    assert spans["max_abs"] == spans["percentile:100"]
    assert spans["max_abs"] == pytest.approx(width, rel=2**-16)  # scales have 16 bits
    assert spans["percentile:90"] == pytest.approx(2 * 1.2816, rel=0.02)  # of the normal
    assert spans["percentile:99.5"] == pytest.approx(2 * 2.5758, rel=0.03)
    error = {r: squared_error(x, calibrate_activation(x, 4, Quantizer(r))) for r in RANGES}
    assert error["mse"] <= 1.02 * min(error.values())


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_divergence_clips_outliers_and_keeps_what_is_even(symmetry: str) -> None:
    even = torch.linspace(-1, 1, 5_001)
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


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=20))
def test_powers_of_two_are_the_next_above_and_the_nearest(values: list[float]) -> None:
    x = torch.tensor(values)
    above, near = power_of_two_above(x), power_of_two_near(x)
    for power in (above, near):
        assert (torch.frexp(power).mantissa == 0.5).all()
    assert ((above >= x) & (above < 2 * x)).all()
    assert ((near / x).log2().abs() <= 0.5 + 1e-6).all()


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**30), 2.0**30, width=32), min_size=4, max_size=40),
    bits=st.sampled_from(INTEGER_BITS),
    quantizer=QUANTIZERS,
)
def test_weights_have_scales_of_any_kind(
    values: list[float], bits: int, quantizer: Quantizer
) -> None:
    weight = torch.tensor(values)[None]
    scale, low = weight_scales(weight, bits, quantizer)
    assert scale > 0
    rounded = round_weights(weight, scale, bits, low)
    assert torch.equal(round_weights(rounded, scale, bits, low), rounded)
    assert torch.equal(round_weights(torch.zeros(1, 1), scale, bits, low), torch.zeros(1, 1))
    assert (low is None) == (quantizer.weight_symmetry == "symmetric")
    if quantizer.power_of_two:
        assert torch.frexp(scale).mantissa == 0.5
    if quantizer.weight_range == "max_abs":
        slack = 0.5 if low is None else 1.0  # the zero of an affine grid is rounded, too
        assert ((weight - rounded).abs() <= scale * (slack + 1e-5)).all()


@pytest.mark.parametrize("bits", INTEGER_BITS)
def test_affine_weights_round_as_torch_rounds_them(bits: int) -> None:
    weight = normal(6, 50) + torch.arange(-3.0, 3.0)[:, None]
    scale, low = weight_scales(weight, bits, Quantizer(weight_symmetry="affine"))
    assert low is not None
    zeros = -low.to(torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, 0, 2**bits - 1)
    torch.testing.assert_close(round_weights(weight, scale, bits, low), expected)


@pytest.mark.parametrize("bits", INTEGER_BITS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_affine_is_better_on_weights_of_one_side(bits: int, sign: int) -> None:
    weight = sign * normal(8, 300).abs()
    error = {}
    for symmetry in SYMMETRIES:
        scale, low = weight_scales(weight, bits, Quantizer(weight_symmetry=symmetry))
        error[symmetry] = float((round_weights(weight, scale, bits, low) - weight).square().sum())
    assert error["affine"] < 0.7 * error["symmetric"]


@pytest.mark.parametrize(("end", "kind"), [(127, torch.int8), (255, torch.int16)])
def test_integers_take_as_many_bits_as_they_need(end: int, kind: torch.dtype) -> None:
    integers = integers_on_grid(torch.tensor([0.5 * end, -64.0]), torch.tensor(0.5))
    assert integers.dtype == kind
    assert integers.tolist() == [end, -128]


def test_percentiles_of_weights_leave_out_zeros_and_the_largest() -> None:
    weight = torch.cat([torch.zeros(900), torch.arange(1.0, 101.0)])[None]
    scale = weight_scales(weight, 8, Quantizer(weight_range="percentile:90"))[0]
    assert float(scale) * 127 == pytest.approx(90)


def test_divergence_clips_the_outliers_of_weights() -> None:
    quantizer = Quantizer(weight_range="kl", weight_granularity="tensor")
    even = torch.linspace(-1, 1, 5_001)
    outlier = torch.cat([even, torch.tensor([-40.0, 40.0])])
    kept, clipped = (float(weight_scales(x[None], 4, quantizer)[0]) * 7 for x in (even, outlier))
    assert 0.8 < kept < 1.1
    assert clipped < 20


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
        ({"weight_range": "kl"}, "config.quantizer.weight_range"),
        ({"weight_granularity": "group:0"}, "config.quantizer.weight_granularity"),
        ({"weight_granularity": "row"}, "config.quantizer.weight_granularity"),
        ({"scale": 2}, "config.quantizer.scale"),
        ({"range": "mse"}, "config.quantizer.range"),
        ("mse", "config.quantizer"),
    ],
)
def test_what_does_not_exist_is_refused(quantizer: object, field: str) -> None:
    with pytest.raises(InputError) as caught:
        CompressionConfig.from_json({"version": 1, "layers": {}, "quantizer": quantizer})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
