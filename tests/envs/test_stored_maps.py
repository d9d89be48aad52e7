"""Maps that wait in memory: which they are, how wide they are, and who reads what was rounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn

from envs import integer
from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import uniform
from envs.lowering import lower
from envs.problem import output_bits
from envs.quantization import ActivationRange
from envs.quantization import quantize_activation
from envs.quantization import round_map
from envs.quantizer import Quantizer
from envs.removal import remove_channels
from envs.setup import calibrate
from envs.statistics import load_statistics
from envs.statistics import save_statistics
from envs.trace import TracedLayer
from envs.trace import trace
from hwmodel import LayerShape
from hwmodel import Workload
from tests.envs.networks import NETWORKS
from tests.envs.networks import randomize

PER_LAYER = Quantizer(activation_placement="per-layer")


def images(count: int = 64) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def compressor_of(network: nn.Module) -> Compressor:
    network = randomize(network)
    traced = trace(network, images(2), "network")
    batches = [(images(), torch.zeros(64, dtype=torch.int64))]
    return Compressor(traced, calibrate(traced, batches), [images()])


@pytest.fixture
def block() -> Compressor:
    torch.manual_seed(0)
    return compressor_of(NETWORKS["projected"]())


def outputs(compressor: Compressor, config: CompressionConfig) -> Tensor:
    """Of the channels that stay, in every way in which a compressed network can be run."""
    network, compressed = compressor.network, compressor.compress(config)
    with torch.inference_mode():
        exported: Tensor = remove_channels(network, compressed)(images())
        in_floats = lower(network, compressed, integers=False)(images())
        torch.testing.assert_close(in_floats, exported, rtol=1e-5, atol=1e-5)
        if integer.is_available():
            nearby = images().contiguous(memory_format=torch.channels_last)
            in_integers = lower(network, compressed, integers=True)(nearby)
            torch.testing.assert_close(in_integers, exported, rtol=1e-5, atol=1e-5)
    return exported


def activations(compressor: Compressor, bits: dict[str, int]) -> CompressionConfig:
    """Inputs of some layers rounded; nothing else, and nothing repaired."""
    names = compressor.network.names
    layers = {name: LayerDecision(activation_bits=bits.get(name, 32)) for name in names}
    return CompressionConfig(layers, repair="none")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("padded_residual", [(0, 1), (1, 2)]),
        ("dense", [(0, None), (1, None)]),
        ("inverted", [(0, 1), (2, None)]),
        ("attention", [(0, None), (2, 3)]),
        ("mlp", []),
    ],
)
def test_maps_that_are_read_again_are_found(
    name: str, expected: list[tuple[int, int | None]]
) -> None:
    network = trace(NETWORKS[name]().eval(), torch.randn(2, 3, 16, 16), name)
    assert [(stored.writer, stored.reader) for stored in network.maps] == expected


class Gated(nn.Module):
    """A gate in space, of what is largest at each place, which waits for a second use of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        largest, _ = x.max(dim=1, keepdim=True)
        gate = self.gate(torch.cat([largest, x.mean(dim=1, keepdim=True)], dim=1)).sigmoid()
        gated = x * gate + largest
        return self.head(gated.mean([2, 3]))


def test_operations_that_return_several_tensors_are_followed() -> None:
    torch.manual_seed(0)
    compressor = compressor_of(Gated())
    written = {stored.node.split("_")[0] for stored in compressor.network.maps}
    assert written == {"relu", "getitem"}
    dense = outputs(compressor, uniform(compressor.network.names, 32))
    rounded = outputs(compressor, replace(uniform(compressor.network.names, 6), repair="aligned"))
    torch.testing.assert_close(rounded, dense, rtol=0, atol=0.02)


def convolve(layer: TracedLayer, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.folded_weight, layer.bias, padding=layer.shape.padding)


def classify(layer: TracedLayer, total: Tensor, grid: ActivationRange) -> Tensor:
    read = quantize_activation(F.relu(total).mean([2, 3]), grid)
    return F.linear(read, layer.folded_weight, layer.bias)


BITS = {"first": 3, "second": 4, "shortcut": 3, "head": 5}


def test_a_shortcut_reads_what_was_rounded(block: Compressor) -> None:
    stem, first, second, shortcut, head = block.network.layers
    config = activations(block, BITS)
    compressed = block.compress(config)
    _, of_first, of_second, of_shortcut, of_head = (
        layer.input_range for layer in compressed.layers
    )
    assert of_first == of_shortcut == compressed.map_ranges[0]
    waits = compressed.map_ranges[1]  # for the shortcut's layer, which runs last
    assert waits.bits == 5
    x = quantize_activation(F.relu(convolve(stem, images())), of_first)
    y = quantize_activation(F.relu(convolve(first, x)), of_second)
    total = quantize_activation(convolve(second, y), waits) + convolve(shortcut, x)
    expected = classify(head, total, of_head)
    torch.testing.assert_close(outputs(block, config), expected, rtol=1e-5, atol=1e-5)


def test_a_narrower_reader_rounds_what_was_rounded(block: Compressor) -> None:
    stem, first, second, shortcut, head = block.network.layers
    config = activations(block, {"first": 2, "shortcut": 5})
    compressed = block.compress(config)
    written, narrow = compressed.map_ranges[0], compressed.layers[1].input_range
    assert (written.bits, narrow.bits) == (5, 2)
    assert compressed.layers[3].input_range == written
    x = quantize_activation(F.relu(convolve(stem, images())), written)
    y = F.relu(convolve(first, quantize_activation(x, narrow)))
    total = convolve(second, y) + convolve(shortcut, x)
    expected = classify(head, total, ActivationRange(32))
    torch.testing.assert_close(outputs(block, config), expected, rtol=1e-5, atol=1e-5)


def test_additions_can_be_left_out_of_it(block: Compressor) -> None:
    stem, first, second, shortcut, head = block.network.layers
    config = replace(activations(block, BITS), quantizer=PER_LAYER)
    compressed = block.compress(config)
    assert {grid.bits for grid in compressed.map_ranges} == {32}
    _, of_first, of_second, of_shortcut, of_head = (
        layer.input_range for layer in compressed.layers
    )
    x = F.relu(convolve(stem, images()))
    y = quantize_activation(F.relu(convolve(first, quantize_activation(x, of_first))), of_second)
    total = convolve(second, y) + convolve(shortcut, quantize_activation(x, of_shortcut))
    expected = classify(head, total, of_head)
    torch.testing.assert_close(outputs(block, config), expected, rtol=1e-5, atol=1e-5)


def test_what_equalizes_the_layers_that_read_a_map_is_undone_for_others() -> None:
    torch.manual_seed(0)
    network = NETWORKS["padded_residual"]()
    with torch.no_grad():  # channels of very different sizes
        network.stem[1].weight.mul_(torch.logspace(-2, 1, 8))
        network.stem[1].bias.mul_(torch.logspace(-2, 1, 8))
    compressor = compressor_of(network)
    names = compressor.network.names
    config = replace(uniform(names, 4), repair="layerwise")
    grid = compressor.compress(config).map_ranges[0]
    assert grid.divided is not None
    x = torch.rand(4, 8, 6, 6)
    steps = grid.scale * torch.exp2(torch.tensor(grid.divided.exponents).float()).view(-1, 1, 1)
    codes = (x / steps).round().clamp(grid.low, grid.high)
    torch.testing.assert_close(round_map(x, grid), codes * steps, rtol=1e-6, atol=0)
    removing = LayerDecision("filter", "l2", 0.5, 4, 4)
    groups = compressor.network.units.group
    coupled = [name for name, group in zip(names, groups, strict=True) if group == 0]
    fewer = replace(config, layers={**config.layers, **dict.fromkeys(coupled, removing)})
    for each in (config, fewer):
        assert bool(outputs(compressor, each).isfinite().all())  # and alike in every way to run


def test_repairs_see_the_rounded_shortcut(block: Compressor) -> None:
    """The gains of the classifier fit what it really reads."""
    names = block.network.names
    layers = {name: LayerDecision(weight_bits=4, activation_bits=3) for name in names}
    dense = outputs(block, uniform(names, 32))
    for repair in ("aligned", "sequential"):
        config = CompressionConfig(layers, repair=repair)
        found = outputs(block, config)
        blind = block.compress(replace(config, quantizer=PER_LAYER))
        unaware = replace(block.compress(config), layers=blind.layers)
        with torch.inference_mode():
            others: Tensor = remove_channels(block.network, unaware)(images())
        assert (found - dense).square().mean() < (others - dense).square().mean()


def test_statistics_of_maps_are_kept(block: Compressor, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    save_statistics(path, block.statistics)
    other = Compressor(block.network, load_statistics(path, block.network), [images()])
    quantizer = Quantizer("max_abs", "symmetric")
    for config in (activations(block, BITS), replace(uniform(block.network.names, 4))):
        for each in (config, replace(config, quantizer=quantizer)):
            assert other.map_ranges(each) == block.map_ranges(each)


def test_maps_are_written_with_the_zeros_of_their_widest_reader(block: Compressor) -> None:
    states = block.states(block.compress(activations(block, {"first": 2, "shortcut": 5})))
    assert states.activation_density[0, 1] < states.activation_density[0, 3] < 1
    assert states.output_density[0].tolist() == [
        states.activation_density[0, 3],
        states.activation_density[0, 2],
        1.0,  # waits for the addition
        states.activation_density[0, 4],
        1.0,  # the network's output
    ]


def asked_by(name: str) -> dict[str, list[str]]:
    network = trace(NETWORKS[name]().eval(), torch.randn(2, 3, 16, 16), name)
    names = network.names
    pairs = zip(names, network.workload.asked_by, strict=True)
    return {layer: [names[index] for index in asking] for layer, asking in pairs}


def test_layers_that_read_a_map_or_the_sum_it_goes_into_say_how_wide_it_is() -> None:
    assert asked_by("projected") == {
        "stem": ["first", "shortcut"],
        "first": ["second"],
        "second": ["head"],  # waits for the shortcut's layer
        "shortcut": ["head"],
        "head": [],
    }
    gated = asked_by("inverted")  # the gate reads a small map; the large one goes on
    assert gated["depthwise.0"] == ["squeeze", "project"]
    assert gated["excite"] == ["project"]
    dense = asked_by("dense")  # all read the stem's map, with batch norms of their own
    assert dense["stem"] == ["conv1", "conv2", "head"]


def test_a_map_is_as_wide_as_the_widest_that_ask() -> None:
    layers = tuple(LayerShape(name, 4, 4, 8, 8, 8, 8) for name in "abc")
    workload = Workload("network", layers, ((), (0,), (1,)), asked_by=((1, 2), (2,), ()))
    bits = np.array([[8.0, 3, 5], [2.0, 7, 5]])
    assert output_bits(workload, bits).tolist() == [[5, 5, 5], [7, 5, 5]]


def test_without_asking_layers_it_is_the_widest_that_read() -> None:
    layers = tuple(LayerShape(name, 4, 4, 8, 8, 8, 8) for name in "abc")
    bits = np.array([[8.0, 3, 5]])
    assert output_bits(Workload("n", layers, ((), (0,), (0, 1))), bits).tolist() == [[5, 5, 5]]
    assert output_bits(Workload("n", layers), bits).tolist() == bits.tolist()


class AddedTwice(nn.Module):
    """A map that two additions read; both are at the ends of layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (
            nn.Conv2d(inputs, 16, 3, padding=1) for inputs in (3, 16, 16)
        )
        self.third, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(x + self.first(x))
        z = F.relu(x + self.second(y))
        return self.head(F.relu(self.third(z)).mean([2, 3]))


def test_bytes_that_another_addition_needs_are_not_written_over() -> None:
    torch.manual_seed(0)
    compressor = compressor_of(AddedTwice())
    for bits in (4, 8):
        config = replace(uniform(compressor.network.names, bits), repair="layerwise")
        outputs(compressor, config)  # alike in every way to run


class Positioned(nn.Module):
    """A layer that does not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place, self.head = nn.Linear(48, 8), nn.Linear(1, 8), nn.Linear(8, 5)
        self.register_buffer("places", torch.linspace(0, 1, 9)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.unfold(x, 4, stride=4).transpose(1, 2)
        return self.head((self.embed(tokens) + self.place(self.places)).mean(1))


def test_layers_may_depend_on_parameters_alone() -> None:
    torch.manual_seed(0)
    compressor = compressor_of(Positioned())
    outputs(compressor, replace(uniform(compressor.network.names, 6), repair="layerwise"))
