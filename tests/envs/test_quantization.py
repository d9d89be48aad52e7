from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.calibration import calibrate_activation
from envs.config import INTEGER_BITS
from envs.quantization import ActivationRange
from envs.quantization import integers_on_grid
from envs.quantization import quantize_activation
from envs.quantization import round_weights
from envs.quantization import short_scale
from envs.quantization import weight_limit
from envs.scales import weight_scales


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", INTEGER_BITS)
def test_weights_round_as_torch_rounds_them(bits: int) -> None:
    weight, limit = normal(6, 50), weight_limit(bits)
    scale = weight_scales(weight, bits)[0]
    expected = torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros(6, dtype=torch.int32), 0, -limit, limit
    )
    assert torch.allclose(round_weights(weight, scale, bits), expected)


@pytest.mark.parametrize("bits", INTEGER_BITS)
def test_integers_times_scale_are_the_rounded_weights(bits: int) -> None:
    weight = normal(2, 3, 20)
    scale = weight_scales(weight, bits)[0]
    rounded = round_weights(weight, scale, bits)
    integers = integers_on_grid(rounded, scale[..., None])
    assert integers.dtype == torch.int8
    assert integers.abs().max() <= 2 ** (bits - 1) - 1
    assert torch.equal(integers * scale[..., None], rounded)


@pytest.mark.parametrize("bits", INTEGER_BITS)
def test_scales_are_close_to_the_best_of_a_fine_grid(bits: int) -> None:
    weight, limit = normal(8, 300), weight_limit(bits)

    def error(scale: torch.Tensor) -> torch.Tensor:
        return (round_weights(weight, scale, bits) - weight).square().sum(1)

    full = weight.abs().amax(1) / limit
    best = torch.stack([error(full * clip) for clip in np.linspace(0.05, 1, 500)]).amin(0)
    found = error(weight_scales(weight, bits)[0])
    assert (found <= 1.0001 * error(full)).all()
    assert found.sum() <= 1.03 * best.sum()


def test_two_bits_are_ternary() -> None:
    weight = torch.tensor([[-1.0, 0.02, 1.0, -0.03, 1.0]])
    scale = weight_scales(weight, 2)[0]
    expected = torch.tensor([[-1.0, 0.0, 1.0, 0.0, 1.0]])
    assert torch.allclose(round_weights(weight, scale, 2), expected)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e30])
def test_scales_are_safe_for_rows_of_any_size(size: float) -> None:
    weight = torch.full((1, 4), size)
    for bits in INTEGER_BITS:
        scale = weight_scales(weight, bits)[0]
        assert scale > 0
        assert torch.isfinite(round_weights(weight, scale, bits)).all()
        if size == 0:
            assert scale == 1


def test_float_widths_are_ieee_and_have_no_scale() -> None:
    weight = normal(3, 10)
    scale = weight_scales(weight, 16)[0]
    assert torch.equal(scale, torch.ones(3))
    half = torch.from_numpy(weight.numpy().astype(np.float16).astype(np.float32))
    assert torch.equal(round_weights(weight, scale, 16), half)
    assert torch.equal(round_weights(weight, scale, 32), weight)
    assert torch.equal(quantize_activation(weight, calibrate_activation(weight[0], 16)), half)
    assert torch.equal(quantize_activation(weight, calibrate_activation(weight[0], 32)), weight)


@pytest.mark.parametrize("bits", INTEGER_BITS)
@pytest.mark.parametrize("signed", [False, True])
def test_activations_round_as_torch_rounds_them(bits: int, signed: bool) -> None:
    x = normal(40, 50)
    x = x if signed else x.relu()
    before = x.clone()
    found = calibrate_activation(x.flatten(), bits)
    expected = torch.fake_quantize_per_tensor_affine(x, found.scale, 0, found.low, found.high)
    assert torch.equal(quantize_activation(x, found), expected)
    assert torch.equal(x, before)


@given(
    values=st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=1, max_size=30),
    bits=st.sampled_from(INTEGER_BITS),
)
def test_any_range_holds_zero_and_all_its_integers(values: list[float], bits: int) -> None:
    sample = torch.tensor(values)
    found = calibrate_activation(sample, bits)
    assert found.low <= 0 <= found.high
    assert found.high - found.low == 2**bits - 1
    assert found.scale > 0
    if min(values) >= 0:
        assert found.low == 0
    assert quantize_activation(torch.zeros(1), found) == 0
    once = quantize_activation(sample, found)
    assert torch.isfinite(once).all()
    assert torch.equal(quantize_activation(once, found), once)


def squared_error(x: torch.Tensor, found: ActivationRange) -> float:
    return float((quantize_activation(x, found) - x).square().mean())


@pytest.mark.parametrize("shape", ["relu", "normal", "gelu", "heavy"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_calibration_is_close_to_the_best_range(shape: str, bits: int) -> None:
    x = normal(4000)
    x = {
        "relu": x.relu(),
        "normal": x,
        "gelu": torch.nn.functional.gelu(x),
        "heavy": (x**3).relu(),
    }[shape]
    steps = 2**bits - 1
    lows = [0] if x.min() >= 0 else range(-steps, 1, max(1, steps // 32))
    spans = np.geomspace(0.03, 1, 60) * float(x.max() - x.min())
    ranges = [
        ActivationRange(bits, float(span) / steps, low, low + steps)
        for span in spans
        for low in lows
    ]
    best = min(squared_error(x, candidate) for candidate in ranges)
    assert squared_error(x, calibrate_activation(x, bits)) <= 1.05 * best


def test_calibration_of_nothing_but_zeros() -> None:
    found = calibrate_activation(torch.zeros(5), 4)
    assert (found.low, found.high) == (0, 15)
    assert torch.equal(quantize_activation(torch.zeros(5), found), torch.zeros(5))


def test_negative_only_activations_use_the_whole_range_below_zero() -> None:
    found = calibrate_activation(-normal(100).abs(), 4)
    assert (found.low, found.high) == (-15, 0)


@given(st.floats(1e-30, 1e30), st.integers(-255, 255))
def test_products_of_short_scales_and_bytes_are_exact(scale: float, integer: int) -> None:
    given_scale = torch.tensor(scale, dtype=torch.float32)
    short = short_scale(given_scale)
    assert abs(short / given_scale - 1) <= 2**-16
    exact = integer * short.item()  # in double precision
    assert (short * integer).item() == exact
