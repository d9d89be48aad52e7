"""Networks of torchvision, with random weights, go through every operator of the menu.

Every configuration mixes all granularities and criteria in one network, a different one in each
layer or group of coupled layers; four of them shift the mixture, each under another repair and
another quantizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
import torchvision
from torch import Tensor
from torch import nn
from torchvision.models.vision_transformer import EncoderBlock

from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import criteria
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.removal import remove_channels
from envs.setup import calibrate
from envs.tasks import Task
from envs.tasks.cityscapes import Logits
from envs.trace import trace
from hwmodel import cost
from hwmodel import load_accelerator
from tests.envs.networks import randomize

CLASSES = 6


class TransformerBlock(nn.Module):
    """A block of a vision transformer, between a patch embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 48, 8, 8)
        self.block = EncoderBlock(4, 48, 96, dropout=0.0, attention_dropout=0.0)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def segmentation() -> nn.Module:
    return Logits(
        torchvision.models.get_model(
            "deeplabv3_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=CLASSES
        )
    )


def classification(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=CLASSES)


SMALL = {"transformer_block": TransformerBlock, "mobilenet_v2": classification("mobilenet_v2")}
LARGE = {
    **{name: classification(name) for name in ("efficientnet_b0", "densenet121")},
    "resnext50_32x4d": classification("resnext50_32x4d"),
    "deeplabv3": segmentation,
}
NETWORKS = {**SMALL, **LARGE}

FILTERS = [LayerDecision("filter", criterion, 0.25, 6, 8) for criterion in criteria("filter")]
WEIGHTS = [
    LayerDecision(granularity, criterion, 0.5, 6, 8)
    for granularity, criterion in product(
        ("element", "n:4", "n:8", "1x4", "4x1", "2x2", "kernel"), criteria("element")
    )
]
TURNS: tuple[tuple[Repair, Quantizer], ...] = (
    ("none", Quantizer(weight_range="max_abs", activation_range="percentile:99.9")),
    ("layerwise", Quantizer(weight_granularity="tensor", activation_range="kl")),
    ("aligned", Quantizer(weight_symmetry="affine", scale="power_of_two")),
    ("sequential", DEFAULT_QUANTIZER),
)
LARGE_TURNS = (0, 1)
"""Those that they take: layers of thousands of inputs take minutes where they are repaired one
after the other."""


@cache
def evaluator_of(name: str) -> Evaluator:
    torch.manual_seed(0)
    network = randomize(NETWORKS[name]())
    shape = (16, 3, 64, 64)
    with torch.no_grad():
        target_shape = network(torch.randn(2, *shape[1:])).argmax(1).shape[1:]
    split = [(torch.randn(shape), torch.randint(CLASSES, (16, *target_shape))) for _ in range(2)]
    task = Task(name, network, split, split[:1], split[:1], 0.1, accuracy)
    traced = trace(network, split[0][0], name)
    images = [inputs for inputs, _ in split]
    return Evaluator(task, Compressor(traced, calibrate(traced, split), images))


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Of images or of pixels."""
    return float((outputs.argmax(1) == targets).double().mean())


def mixture(evaluator: Evaluator, turn: int) -> CompressionConfig:
    """Every second group of coupled layers loses filters, all other layers something else."""
    network = evaluator.compressor.network
    repair, quantizer = TURNS[turn]
    layers = {}
    for index, (name, group) in enumerate(zip(network.names, network.units.group, strict=True)):
        if group >= 0 and (group + turn) % 2 == 0:
            layers[name] = FILTERS[(group // 2 + turn) % len(FILTERS)]
        else:
            layers[name] = WEIGHTS[(index + 5 * turn) % len(WEIGHTS)]
    return CompressionConfig(layers, repair, quantizer)


@pytest.mark.parametrize(
    ("name", "turn"),
    [
        *product(SMALL, range(len(TURNS))),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in product(LARGE, LARGE_TURNS)),
    ],
)
def test_unseen_networks_go_through_every_operator(name: str, turn: int) -> None:
    evaluator = evaluator_of(name)
    network = evaluator.compressor.network
    config = mixture(evaluator, turn)
    compressed = evaluator.compressor.compress(config)
    for layer, decision in zip(compressed.layers, config.layers.values(), strict=True):
        assert torch.isfinite(layer.weight).all() and torch.isfinite(layer.bias).all()
        # Runs and blocks that do not fit a narrow layer may leave it denser than asked for.
        if decision.granularity == "element":
            assert layer.density <= 0.51
    outputs, _ = evaluator.outputs(compressed, "search")
    assert torch.isfinite(outputs).all()
    with torch.no_grad():
        smaller = remove_channels(network, compressed)(evaluator.task.search[0][0])  # type: ignore[index]
    torch.testing.assert_close(outputs, smaller, rtol=1e-3, atol=1e-3)
    assert 0 <= evaluator.evaluate(config, "search").accuracy <= 1

    accelerator = load_accelerator("eyeriss-like")
    # With the same repair, which removes weights that only ever see padding (dilated layers).
    dense = evaluator.compressor.compress(replace(uniform(network.names, 8), repair=config.repair))
    before, after = (
        cost(network.workload, evaluator.compressor.states(each), accelerator).energy_pj[0]
        for each in (dense, compressed)
    )
    assert after < 0.9 * before


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mobilenet_v2", "depthwise"),
        pytest.param("efficientnet_b0", "depthwise", marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", "grouped", marks=pytest.mark.slow),
    ],
)
def test_depthwise_and_grouped_layers_are_among_them(name: str, kind: str) -> None:
    shapes = [layer.shape for layer in evaluator_of(name).compressor.network.layers]
    found = [s.is_depthwise if kind == "depthwise" else s.groups > 1 for s in shapes]
    assert sum(found) > 5
