from __future__ import annotations

import pytest
import torch
from torch import Tensor

from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import Criterion
from envs.config import LayerDecision
from envs.evaluator import Evaluator
from envs.removal import remove_channels
from envs.setup import calibrate
from envs.tasks import Task
from envs.trace import trace
from hwmodel import InputError
from tests.envs.networks import NETWORKS
from tests.envs.networks import randomize


def make_evaluator(name: str) -> Evaluator:
    """An evaluator of a network with random weights on random images."""
    torch.manual_seed(0)
    return evaluator_for(name, randomize(NETWORKS[name]()))


def evaluator_for(name: str, network: torch.nn.Module) -> Evaluator:
    """An evaluator of a network on random images."""
    batches = [(torch.randn(16, 3, 16, 16), torch.randint(5, (16,))) for _ in range(2)]
    task = Task(name, network, batches, batches, batches, chance=0.2)
    traced = trace(network, batches[0][0], name)
    images = [inputs for inputs, _ in batches]
    return Evaluator(task, Compressor(traced, calibrate(traced, batches), images))


def filter_config(evaluator: Evaluator, sparsity: float, criterion: Criterion) -> CompressionConfig:
    """Removes channels wherever they can be removed; 6-bit weights, 7-bit inputs."""
    network = evaluator.compressor.network
    removed = LayerDecision("filter", criterion, sparsity, 6, 7)
    kept = LayerDecision(weight_bits=6, activation_bits=7)
    groups = zip(network.names, network.units.group, strict=True)
    return CompressionConfig({name: removed if group >= 0 else kept for name, group in groups})


def tensors(module: torch.nn.Module) -> int:
    return sum(buffer.numel() for buffer in module.buffers())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("sparsity", "criterion"), [(0.3, "l2"), (0.6, "taylor")])
def test_removed_and_masked_channels_give_the_same_outputs(
    name: str, sparsity: float, criterion: Criterion
) -> None:
    evaluator = make_evaluator(name)
    compressed = evaluator.compressor.compress(filter_config(evaluator, sparsity, criterion))
    smaller = remove_channels(evaluator.compressor.network, compressed)
    inputs: Tensor = torch.cat([batch for batch, _ in evaluator.task.search])
    with torch.no_grad():
        torch.testing.assert_close(
            smaller(inputs), evaluator.outputs(compressed, "search")[0], rtol=1e-5, atol=1e-5
        )
    dense = evaluator.compressor.compress(filter_config(evaluator, 1e-9, criterion))
    larger = remove_channels(evaluator.compressor.network, dense)
    removable = max(evaluator.compressor.network.units.group) >= 0
    assert (tensors(smaller) < tensors(larger)) == removable


@pytest.mark.parametrize("name", NETWORKS)
def test_hardware_sees_the_shapes_of_the_smaller_network(name: str) -> None:
    evaluator = make_evaluator(name)
    compressor = evaluator.compressor
    compressed = compressor.compress(filter_config(evaluator, 0.5, "l2"))
    smaller = remove_channels(compressor.network, compressed)
    states = compressor.states(compressed)
    for index, layer in enumerate(compressor.network.layers):
        weight = getattr(smaller, f"weight_{index}")
        assert weight.shape[0] == states.out_channels[0, index]
        groups = int(states.in_channels[0, index]) // weight.shape[1]
        is_depthwise = layer.shape.is_depthwise
        assert groups == (states.in_channels[0, index] if is_depthwise else layer.shape.groups)
        nonzero = float(weight.count_nonzero()) / weight.numel()
        assert nonzero == pytest.approx(states.weight_density[0, index], abs=1e-6)


def test_sparsity_is_the_fraction_of_channels_removed_in_every_coupled_layer() -> None:
    evaluator = make_evaluator("padded_residual")
    compressor = evaluator.compressor
    states = compressor.states(compressor.compress(filter_config(evaluator, 0.25, "l2")))
    assert states.out_channels[0].tolist() == [6, 12, 12, 5]
    assert states.in_channels[0].tolist() == [3, 6, 12, 12]


def test_coupled_layers_must_decide_alike() -> None:
    evaluator = make_evaluator("padded_residual")
    layers = dict(filter_config(evaluator, 0.5, "l2").layers)
    layers["down.0"] = LayerDecision(weight_bits=8, activation_bits=8)
    with pytest.raises(InputError, match=r"down\.0.*together with those of stem\.0"):
        evaluator.compressor.compress(CompressionConfig(layers))


def test_output_channels_of_the_last_layer_must_stay() -> None:
    evaluator = make_evaluator("mlp")
    names = evaluator.compressor.network.names
    config = CompressionConfig({name: LayerDecision("filter", "l2", 0.5, 8, 8) for name in names})
    with pytest.raises(InputError, match="must stay"):
        evaluator.compressor.compress(config)
