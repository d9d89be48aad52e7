"""Channels are removed as an independent tool does it: the dependency graph of Torch-Pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch_pruning
from torch import nn
from torchvision import models

from envs.compression import CompressedNetwork
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.removal import remove_channels
from envs.trace import TracedNetwork
from tests.envs.networks import NETWORKS
from tests.envs.networks import randomize
from tests.envs.test_removal import evaluator_for

LARGE: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: models.resnet18(num_classes=5),
    "mobilenet_v2": lambda: models.mobilenet_v2(num_classes=5),
}
SMALL = ("dense", "inverted", "shuffle", "sequence", "in_place", "mlp")
"""Not those that pad or split channels: Torch-Pruning 1.6 fails or leaves other shapes."""


def pruned(network: nn.Module, traced: TracedNetwork, compressed: CompressedNetwork) -> nn.Module:
    """A copy from which Torch-Pruning removes what leaders lose, and all that is coupled to it."""
    smaller = copy.deepcopy(network)
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(smaller, torch.randn(2, 3, 16, 16))
    groups = traced.units.group
    for group in range(max(groups) + 1):
        leader = groups.index(group)
        gone = (~compressed.layers[leader].kept_out).nonzero().flatten().tolist()
        layer = smaller.get_submodule(traced.names[leader])
        is_linear = isinstance(layer, nn.Linear)
        kind = "linear" if is_linear else "conv"
        remove = getattr(torch_pruning, f"prune_{kind}_out_channels")
        graph.get_pruning_group(layer, remove, gone).prune()
    return smaller.eval()


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_what_is_left_is_what_torch_pruning_leaves(name: str) -> None:
    torch.manual_seed(0)
    network = randomize({**NETWORKS, **LARGE}[name]())
    evaluator = evaluator_for(name, network)
    traced = evaluator.compressor.network
    decisions = (
        LayerDecision("filter", "l2", 0.4, 32, 32) if group >= 0 else LayerDecision()
        for group in traced.units.group
    )
    config = CompressionConfig(dict(zip(traced.names, decisions, strict=True)), "none")
    compressed = evaluator.compressor.compress(config)
    ours = remove_channels(traced, compressed)
    theirs = pruned(network, traced, compressed)
    for index, layer in enumerate(traced.names):
        weight = theirs.get_submodule(layer).weight
        assert getattr(ours, f"weight_{index}").shape == weight.shape, layer
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        wanted = theirs(images)
        torch.testing.assert_close(ours(images), wanted, rtol=1e-3, atol=1e-3 * wanted.std().item())
    assert sum(int((~layer.kept_out).sum()) for layer in compressed.layers) > 0
