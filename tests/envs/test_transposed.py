from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn

from envs.trace import trace
from hwmodel import InputError
from tests.envs.networks import randomize

KERNEL_2 = {"kernel_size": 2, "stride": 2}
GEOMETRIES: list[dict[str, Any]] = [
    KERNEL_2,
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 1},
    {"kernel_size": (5, 2), "stride": (3, 1), "padding": (4, 0), "output_padding": (1, 0)},
    {"kernel_size": 2, "stride": 4},
    {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2, "output_padding": 1},
    {"kernel_size": 3, "stride": 2, "groups": 4},
    {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
]


def upsampler(normalized: bool = True, **geometry: Any) -> nn.Module:
    up = nn.ConvTranspose2d(4, 8, **geometry)
    norm = [nn.BatchNorm2d(8)] if normalized else []
    return randomize(nn.Sequential(nn.Conv2d(3, 4, 3), up, *norm, nn.ReLU(), nn.Conv2d(8, 2, 1)))


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_trace_computes_what_a_transposed_convolution_does(
    geometry: dict[str, Any], normalized: bool
) -> None:
    network = upsampler(normalized, **geometry)
    traced = trace(network, torch.randn(2, 3, 9, 7), "upsampler")
    assert traced.names == ("0", "1", "4" if normalized else "3")
    inputs = torch.randn(3, 3, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(
            traced.graph_module(inputs), network(inputs), rtol=1e-4, atol=1e-5
        )


def test_one_dimension_and_a_batch_norm_behind() -> None:
    up = nn.ConvTranspose1d(4, 6, 5, 2, padding=1, output_padding=1)
    network = nn.Sequential(nn.Conv1d(3, 4, 3), up, nn.BatchNorm1d(6), nn.Conv1d(6, 2, 1)).eval()
    inputs = torch.randn(2, 3, 11)
    with torch.no_grad():
        torch.testing.assert_close(
            trace(network, inputs, "one").graph_module(inputs), network(inputs)
        )


@pytest.mark.parametrize(
    "between", [[], [nn.BatchNorm2d(8)], [nn.BatchNorm2d(8), nn.ReLU()]], ids=len
)
def test_transposed_convolutions_in_a_row(between: list[nn.Module]) -> None:
    first, second = nn.ConvTranspose2d(3, 8, 2, stride=2), nn.ConvTranspose2d(8, 4, 3, padding=1)
    network = randomize(nn.Sequential(first, *between, second, nn.ConvTranspose2d(4, 2, 4, 2)))
    inputs = torch.randn(2, 3, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            trace(network, inputs, "decoder").graph_module(inputs), network(inputs)
        )


def test_what_is_priced_is_what_an_accelerator_multiplies() -> None:
    shape = trace(upsampler(**KERNEL_2), torch.randn(2, 3, 9, 7), "upsampler").workload.layers[1]
    assert (shape.out_channels, shape.kernel_height, shape.kernel_width) == (32, 1, 1)
    assert math.prod((shape.out_height, shape.out_width)) == 7 * 5
    assert shape.macs == 7 * 5 * 4 * 8 * 2 * 2


def test_all_phases_of_a_channel_are_removed_together() -> None:
    units = trace(upsampler(**GEOMETRIES[1]), torch.randn(2, 3, 9, 7), "upsampler").units
    assert units.group[1] >= 0
    assert torch.equal(units.out_units[1], units.out_units[1][::4].repeat_interleave(4))
    assert torch.equal(units.in_units[2], units.out_units[1][::4])


@pytest.mark.parametrize("multiplier", [1, 2])
def test_channels_of_a_depthwise_one_are_removed_with_what_feeds_it(multiplier: int) -> None:
    up = nn.ConvTranspose2d(4, 4 * multiplier, 4, 2, 1, groups=4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), up, nn.Conv2d(4 * multiplier, 2, 1)).eval()
    traced = trace(network, torch.randn(2, 3, 9, 7), "upsampler")
    assert traced.workload.layers[1].is_depthwise
    units = traced.units
    if multiplier > 1:  # a group of several filters stays whole
        assert units.group == (-1, -1, -1)
        return
    assert units.group == (0, 0, -1)
    assert torch.equal(units.out_units[1], units.out_units[0].repeat_interleave(4))
    assert torch.equal(units.in_units[1], units.out_units[0])
    assert torch.equal(units.in_units[2], units.out_units[0])


class Tied(nn.Module):
    """A decoder that reads its encoder's weights, or the same ones twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice, self.down = twice, nn.Conv2d(3, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        up = nn.functional.conv_transpose2d
        weight = self.down.weight
        return up(up(x, weight), weight) if self.twice else up(self.down(x), weight, stride=2)


@pytest.mark.parametrize("twice", [True, False])
def test_weights_that_something_else_reads_are_refused(twice: bool) -> None:
    with pytest.raises(InputError, match="its weights may be used only once"):
        trace(Tied(twice).eval(), torch.randn(2, 3, 8, 8), "tied")


def test_weights_that_depend_on_the_input_are_refused() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv_transpose2d(x, x[0].mean() * torch.ones(3, 2, 2, 2))

    with pytest.raises(InputError, match="its weights must be a parameter"):
        trace(Dynamic(), torch.randn(2, 3, 8, 8), "dynamic")


def test_space_becomes_channels_and_the_other_way_round() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.PixelUnshuffle(2), nn.Conv2d(32, 12, 1), nn.PixelShuffle(2),
        nn.Conv2d(3, 2, 1),
    ).eval()  # fmt: skip
    units = trace(network, torch.randn(2, 3, 8, 8), "shuffled").units
    assert units.group == (0, 1, -1)
    assert torch.equal(units.in_units[1], units.out_units[0].repeat_interleave(4))
    assert torch.equal(units.out_units[1], units.in_units[2].repeat_interleave(4))
