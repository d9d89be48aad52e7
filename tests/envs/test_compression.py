from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.compression import compressed_rows
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.reconstruction import output_error
from hwmodel import InputError
from tests.envs.networks import NETWORKS
from tests.envs.test_removal import make_evaluator


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return make_evaluator("inverted")


def everywhere(evaluator: Evaluator, decision: LayerDecision, repair: Repair) -> CompressionConfig:
    names = evaluator.compressor.network.names
    return CompressionConfig(dict.fromkeys(names, decision), repair)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_uncompressed_network_computes_what_it_was_trained_to(name: str) -> None:
    evaluator = make_evaluator(name)
    names = evaluator.compressor.network.names
    outputs, _ = evaluator.outputs(evaluator.compressor.compress(uniform(names, 32)), "search")
    inputs = torch.cat([batch for batch, _ in evaluator.task.search])
    with torch.no_grad():
        expected = evaluator.task.network(inputs)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repair", ["none", "layerwise"])
@pytest.mark.parametrize("criterion", ["l1", "second_order"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_lie_on_a_grid_of_every_output_channel(
    evaluator: Evaluator, repair: Repair, criterion: str, bits: int
) -> None:
    decision = LayerDecision("element", criterion, 0.5, bits, 8)  # type: ignore[arg-type]
    compressed = evaluator.compressor.compress(everywhere(evaluator, decision, repair))
    for layer in compressed.layers:
        assert layer.scale is not None
        scale = torch.where(layer.scale == 0, 1, layer.scale)
        integers = layer.weight / scale.view(-1, *[1] * (layer.weight.ndim - 1))
        torch.testing.assert_close(integers, integers.round(), atol=1e-3, rtol=0)
        assert integers.round().abs().max() <= 2 ** (bits - 1) - 1
        assert layer.density <= 0.5 + 1 / layer.weight.numel()


def test_magnitude_ranks_weights_as_trained_not_as_folded(evaluator: Evaluator) -> None:
    network = evaluator.compressor.network
    decision = LayerDecision("element", "l1", 0.5, 32, 32)
    compressed = evaluator.compressor.compress(everywhere(evaluator, decision, "none"))
    layer = network.layers[1]
    threshold = layer.weight.abs().median()
    kept = compressed.layers[1].weight != 0
    assert torch.equal(kept, layer.weight.abs() > threshold)
    folded = layer.folded_weight.abs()
    assert not torch.equal(kept, folded > folded.median())


@pytest.mark.parametrize(("granularity", "criterion"), [("none", "none"), ("element", "l1")])
def test_repair_lowers_the_output_errors_of_a_network(
    evaluator: Evaluator, granularity: str, criterion: str
) -> None:
    sparsity = 0.5 if granularity == "element" else 0.0
    decision = LayerDecision(granularity, criterion, sparsity, 3, 8)  # type: ignore[arg-type]
    total = {"layerwise": 0.0, "none": 0.0}
    compressor = evaluator.compressor
    for layer, statistics in zip(compressor.network.layers, compressor.statistics, strict=True):
        for repair in total:
            rows, _ = compressed_rows(layer, statistics, decision, None, repair)  # type: ignore[arg-type]
            delta = (rows - layer.rows)[None]
            total[repair] += float(output_error(delta, statistics.second_moment, layer.rows))
    assert total["layerwise"] < 0.9 * total["none"]


def test_readers_of_removed_channels_make_up_for_them() -> None:
    evaluator = make_evaluator("mlp")
    compressor = evaluator.compressor
    dense = uniform(compressor.network.names, 32)
    removed = {**dense.layers, compressor.network.names[0]: LayerDecision("filter", "l2", 0.3)}
    outputs, _ = evaluator.outputs(compressor.compress(dense), "calibration")
    losses = []
    for repair in ("layerwise", "none"):
        config = CompressionConfig(removed, repair)  # type: ignore[arg-type]
        changed, _ = evaluator.outputs(compressor.compress(config), "calibration")
        losses.append(float((changed - outputs).square().mean()))
    assert losses[0] < losses[1]


def test_the_same_configuration_gives_the_same_result_in_any_order(evaluator: Evaluator) -> None:
    names = evaluator.compressor.network.names
    other = make_evaluator("inverted")
    first = evaluator.evaluate(uniform(names, 4), "search")
    evaluator.evaluate(uniform(names, 2), "search")
    other.evaluate(uniform(names, 3), "search")
    for again in (evaluator, other):
        result = again.evaluate(uniform(names, 4), "search")
        assert result.accuracy == first.accuracy
        assert result.block_accuracies == first.block_accuracies


def test_blocks_average_to_the_accuracy_of_the_split(evaluator: Evaluator) -> None:
    names = evaluator.compressor.network.names
    result = evaluator.evaluate(uniform(names, 8), "all")
    assert result.images == 64
    sizes = [len(part) for part in torch.arange(64).chunk(10)]
    mean = np.average(result.block_accuracies, weights=sizes)
    assert mean == pytest.approx(result.accuracy)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_configuration_of_another_network_is_refused(evaluator: Evaluator, change: str) -> None:
    layers = dict(uniform(evaluator.compressor.network.names, 8).layers)
    decision = layers.pop("head")
    if change == "unknown":
        layers = {**layers, "head": decision, "tail": decision}
    with pytest.raises(InputError, match="head" if change == "missing" else "tail"):
        evaluator.compressor.compress(CompressionConfig(layers))
