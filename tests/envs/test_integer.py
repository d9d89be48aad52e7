"""Integer layers against double precision, and roundings against those in floating point."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from torch.nn import functional as F

from envs import integer
from envs.integer import Geometry
from envs.integer import IntegerInput
from envs.integer import IntegerLayer
from envs.integer import IntegerSum
from envs.quantization import ActivationRange
from envs.quantization import quantize_activation

needs_kernels = pytest.mark.skipif(
    not integer.is_available(), reason="this CPU or PyTorch has no exact integer kernels"
)


@given(
    bits=st.integers(2, 8),
    scale=st.floats(0.0078125, 8.0, width=32),
    lowest=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("at_once", [True, False])
def test_codes_are_the_roundings_in_floating_point(
    at_once: bool, bits: int, scale: float, lowest: float, seed: int
) -> None:
    steps = 2**bits - 1
    low = -round(lowest * steps)
    grid = ActivationRange(bits, scale, low, low + steps)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 3, 4, 5, generator=generator) * scale * steps
    # Away from the middle between two codes, where single precision may go either way.
    values = torch.where((values / scale).frac().abs().sub(0.5).abs() < 1e-3, 0.0, values)
    rounding = IntegerInput(grid)
    rounding._round = integer._round_at_once if at_once else integer._round_in_steps
    codes = rounding(values)
    assert codes.dtype == torch.uint8
    torch.testing.assert_close((codes.float() + low) * scale, quantize_activation(values, grid))


@needs_kernels
@pytest.mark.parametrize("channels", [3, 13, 32])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolutions_are_exact(channels: int, depthwise: bool) -> None:
    generator = torch.Generator().manual_seed(channels)
    geometry = Geometry((2, 1), (1, 2), (1, 2), channels if depthwise else 1)
    outputs = channels if depthwise else 10
    shape = (outputs, 1 if depthwise else channels, 3, 3)
    weight = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    codes = torch.randint(0, 256, (5, channels, 9, 8), generator=generator, dtype=torch.uint8)
    scale, bias = torch.rand(outputs, generator=generator) + 0.1, torch.randn(outputs)
    grid = ActivationRange(8, 0.5, -100, 155)
    layer = IntegerLayer(weight, scale, bias, grid, geometry)
    steps = scale.double().view(-1, 1, 1, 1)
    expected = F.conv2d(
        (codes.double() - 100) * 0.5, weight.double() * steps, bias.double(),
        geometry.stride, geometry.padding, geometry.dilation, geometry.groups,
    )  # fmt: skip
    result = layer(codes.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("groups", [0, 1, 4])
def test_sums_of_integer_layers_are_exact(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    channels, outputs = 24, 12
    shape = (outputs, channels // groups, 3, 3) if groups else (outputs, channels)
    images = (5, channels, 7, 8) if groups else (5, channels)
    weight = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    codes = torch.randint(0, 256, images, generator=generator, dtype=torch.uint8)
    few = torch.rand(outputs, -(-shape[1] // 5), generator=generator) + 0.1
    scale = few.repeat_interleave(5, dim=1)[:, : shape[1]]
    bias = torch.randn(outputs, generator=generator)
    geometry = Geometry((2, 1), (1, 1), groups=groups) if groups else None
    layer = IntegerSum(weight, scale, bias, ActivationRange(8, 0.5, -100, 155), geometry)
    source = (codes.double() - 100) * 0.5
    spread = weight.double() * scale.double().view(*scale.shape, *[1] * (len(shape) - 2))
    if groups:
        expected = F.conv2d(source, spread, bias.double(), (2, 1), (1, 1), groups=groups)
        codes = codes.contiguous(memory_format=torch.channels_last)
    else:
        expected = F.linear(source, spread, bias.double())
    torch.testing.assert_close(layer(codes).double(), expected, rtol=1e-5, atol=1e-3)


@needs_kernels
def test_outputs_are_rectified_and_rounded_to_the_grid_of_their_reader() -> None:
    weight = torch.tensor([[1, 0], [0, 1], [1, 1], [-1, 0]], dtype=torch.int8)
    layer = IntegerLayer(weight, torch.ones(4), torch.zeros(4), ActivationRange(8, 1.0, 0, 255))
    codes = torch.tensor([[3, 200]], dtype=torch.uint8)
    assert layer(codes).tolist() == [[3, 200, 203, -3]]
    layer.rectify()
    assert layer(codes).tolist() == [[3, 200, 203, 0]]
    layer.round_output(ActivationRange(4, 2.0, 0, 15))
    assert layer(codes).tolist() == [[2, 15, 15, 0]]  # 1.5 is rounded to even


def test_weights_whose_sums_could_leave_int32_do_not_fit() -> None:
    assert integer.fits(torch.empty(1, 2**16))
    assert not integer.fits(torch.empty(1, 2**16 + 2**10))
