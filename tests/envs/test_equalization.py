"""Equalized inputs: nothing changes but what rounding loses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch import nn

from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.equalization import channel_exponents
from envs.equalization import equalize
from envs.equalization import equalized_layer
from envs.quantization import ActivationRange
from envs.quantization import ChannelExponents
from envs.quantization import quantize_activation
from envs.statistics import collect_statistics
from envs.trace import TracedNetwork
from envs.trace import trace

SPREAD = torch.logspace(-2, 0, 8)
"""Ranges of the channels."""


class Unequal(nn.Module):
    """A map of unequal channels that two layers read, and a flattened one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1, groups=4)
        self.last = nn.Linear(8 * 16, 5)
        with torch.no_grad():
            self.first.weight.mul_(SPREAD.view(-1, 1, 1, 1))
            self.first.bias.mul_(SPREAD)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        read = torch.relu(self.first(x))
        both = self.left(read) + self.right(read)
        outputs: Tensor = self.last(torch.relu(both).flatten(1))
        return outputs


def images() -> Tensor:
    return torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def compressor() -> Compressor:
    network: TracedNetwork = trace(Unequal(), images(), "unequal")
    batches = [(images(), torch.zeros(64))]
    return Compressor(network, equalize(network, collect_statistics(network, batches)), [images()])


def test_all_readers_of_a_map_divide_it_by_a_power_of_its_channels_sizes() -> None:
    first, left, right, last = compressor().statistics
    assert left.equalized is not None and right.equalized is not None
    assert left.equalized.divided == right.equalized.divided
    assert left.equalized.divided is not None
    found = left.equalized.divided.exponents
    assert found in (channel_exponents(left, 0.5), channel_exponents(left, 1.0))
    assert min(found) <= -2
    assert last.equalized is None  # features of a flattened map are no channels
    assert first.equalized is None or len(first.equalized.extremes[0]) == 3


def test_exponents_follow_the_root_mean_square_of_a_channel() -> None:
    statistics = compressor().statistics[1]
    with torch.no_grad():
        read = torch.relu(Unequal().first(images()))
    size = read.square().mean(dim=(0, 2, 3)).sqrt()
    wanted = (size / size.max()).log2()
    for power in (0.5, 1.0):
        exponents = torch.tensor(channel_exponents(statistics, power))
        assert torch.all((exponents - (power * wanted).clamp(-6)).abs() <= 0.7)  # of a sample


def test_equal_channels_are_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    read = torch.rand(64, 3, 4, 4)
    traced = trace(network, read, "equal")
    statistics = collect_statistics(traced, [(read, torch.zeros(64))])
    assert equalize(traced, statistics)[0].equalized is None


def test_an_equalized_layer_computes_the_same_to_the_last_bit() -> None:
    made = compressor()
    network = Unequal()
    with torch.no_grad():
        read = torch.relu(network.first(images()))
    for index, groups in ((1, 1), (2, 4)):
        layer, equalized = made.network.layers[index], made.statistics[index].equalized
        assert equalized is not None and equalized.divided is not None
        factors = torch.exp2(-torch.tensor(equalized.divided.exponents).float()).view(1, -1, 1, 1)
        weight = equalized_layer(layer, equalized.divided).weight
        plain = nn.functional.conv2d(read, layer.weight, groups=groups)
        assert torch.equal(nn.functional.conv2d(read * factors, weight, groups=groups), plain)


def test_the_statistics_are_those_of_the_divided_input() -> None:
    made = compressor()
    with torch.no_grad():
        read = torch.relu(Unequal().first(images()))
    statistics = made.statistics[2].equalized  # 1 x 1: every position is a column
    assert statistics is not None and statistics.divided is not None
    factors = torch.exp2(-torch.tensor(statistics.divided.exponents).float()).view(1, -1, 1, 1)
    columns = (read * factors).movedim(1, 0).reshape(4, 2, -1)
    moment = columns @ columns.mT / columns.shape[-1]
    torch.testing.assert_close(statistics.second_moment, moment)
    torch.testing.assert_close(statistics.mean, columns.mean(dim=2))
    extremes = (read * factors).movedim(1, 0).flatten(1).aminmax(dim=1)
    assert torch.equal(statistics.extremes, torch.stack(extremes))


def test_rounding_divides_every_channel_and_loses_less() -> None:
    divided = ChannelExponents((0, -3), axis=1)
    grid = ActivationRange(4, 0.5, 0, 15, divided)
    x = torch.tensor([[7.1, 0.3]])
    assert quantize_activation(x, grid).tolist() == [[7.0, 2.5]]
    assert grid.of_channels(torch.tensor([False, True])).divided == ChannelExponents((-3,), axis=1)

    made = compressor()
    plain = Compressor(
        made.network, tuple(replace(layer, equalized=None) for layer in made.statistics)
    )
    layers = dict.fromkeys(made.network.names, LayerDecision(weight_bits=8, activation_bits=4))
    with torch.no_grad():
        read = torch.relu(Unequal().first(images()))
        wanted = Unequal().left(read)

    def lost(compressor: Compressor) -> float:
        layer = compressor.compress(CompressionConfig(layers, "layerwise")).layers[1]
        rounded = quantize_activation(read, layer.input_range)
        reached = nn.functional.conv2d(rounded, layer.weight, layer.bias, padding=1)
        return float((reached - wanted).square().mean())

    assert lost(made) < 0.9 * lost(plain)


def test_layers_that_read_floats_are_left_alone() -> None:
    made = compressor()
    decision = LayerDecision(weight_bits=4, activation_bits=32)
    layers = dict.fromkeys(made.network.names, decision)
    compressed = made.compress(CompressionConfig(layers, "layerwise"))
    assert all(layer.input_range.divided is None for layer in compressed.layers)
