"""Fast networks compute what exported ones compute."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import fx

from envs import integer
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.integer import IntegerLayer
from envs.lowering import lower
from envs.removal import remove_channels
from envs.setup import Menu
from tests.envs.networks import NETWORKS
from tests.envs.test_removal import make_evaluator

needs_kernels = pytest.mark.skipif(
    not integer.is_available(), reason="this CPU or PyTorch has no exact integer kernels"
)


@functools.cache
def evaluator_of(name: str) -> Evaluator:
    return make_evaluator(name)


def images(evaluator: Evaluator) -> Tensor:
    inputs = torch.cat([batch for batch, _ in evaluator.task.search])
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def run(module: fx.GraphModule, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        outputs: Tensor = module(inputs.clone())
    return outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_without_integers_it_is_an_export(name: str) -> None:
    evaluator = evaluator_of(name)
    network = evaluator.compressor.network
    space = Menu().space(network)
    for choice in space.sample(np.random.default_rng(3), 2):
        compressed = evaluator.compressor.compress(space.config(choice))
        exported = run(remove_channels(network, compressed), images(evaluator))
        lowered = run(lower(network, compressed, integers=False), images(evaluator))
        torch.testing.assert_close(lowered, exported, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("name", NETWORKS)
def test_with_integers_it_is_an_export_too(name: str) -> None:
    evaluator = evaluator_of(name)
    network = evaluator.compressor.network
    space = Menu(weight_bits=(4, 8), activation_bits=(8,)).space(network)
    for choice in space.sample(np.random.default_rng(3), 2):
        compressed = evaluator.compressor.compress(space.config(choice))
        exported = run(remove_channels(network, compressed), images(evaluator))
        lowered = run(lower(network, compressed, integers=True), images(evaluator))
        torch.testing.assert_close(lowered, exported, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_maps_between_integer_layers_are_bytes_and_sums_are_rectified_at_once() -> None:
    evaluator = evaluator_of("padded_residual")
    network = evaluator.compressor.network
    compressed = evaluator.compressor.compress(uniform(network.names, 8))
    lowered = lower(network, compressed, integers=True)
    layers = [module for module in lowered.modules() if isinstance(module, IntegerLayer)]
    assert len(layers) == len(network.layers)
    targets = [node.target for node in lowered.graph.nodes]
    assert torch.ops.aten._add_relu_.Tensor in targets
    assert torch.ops.aten.relu.default not in targets


@needs_kernels
def test_layers_in_floating_point_stay_so() -> None:
    evaluator = evaluator_of("inverted")
    network = evaluator.compressor.network
    compressed = evaluator.compressor.compress(uniform(network.names, 16))
    lowered = lower(network, compressed, integers=True)
    assert not any(isinstance(module, IntegerLayer) for module in lowered.modules())
    exported = run(remove_channels(network, compressed), images(evaluator))
    torch.testing.assert_close(run(lowered, images(evaluator)), exported, rtol=1e-5, atol=1e-5)


def test_inputs_and_weights_are_left_as_they_are() -> None:
    evaluator = evaluator_of("padded_residual")
    network = evaluator.compressor.network
    compressed = evaluator.compressor.compress(uniform(network.names, 8))
    inputs = images(evaluator)
    before = inputs.clone(), [layer.weight.clone() for layer in compressed.layers]
    for integers in {False, integer.is_available()}:
        module = lower(network, compressed, integers)
        with torch.inference_mode():
            first, second = module(inputs), module(inputs)
        assert torch.equal(first, second)
    assert torch.equal(inputs, before[0])
    for layer, weight in zip(compressed.layers, before[1], strict=True):
        assert torch.equal(layer.weight, weight)
