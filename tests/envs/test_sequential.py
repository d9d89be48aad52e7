from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch

from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.removal import remove_channels
from envs.resident import images_in_cache
from envs.sequential import RunLayer
from envs.sequential import dense_outputs
from envs.sequential import walk_layers
from envs.statistics import outputs_at
from envs.statistics import patches_at
from envs.statistics import sample_positions
from hwmodel import InputError
from tests.envs.networks import NETWORKS
from tests.envs.test_removal import evaluator_for
from tests.envs.test_removal import filter_config
from tests.envs.test_removal import make_evaluator


@cache
def evaluator_of(name: str) -> Evaluator:
    return make_evaluator(name)


def output_change(evaluator: Evaluator, config: CompressionConfig) -> float:
    """Mean squared change of the outputs for the calibration images."""
    compressor = evaluator.compressor
    dense = compressor.compress(uniform(compressor.network.names, 32))
    before, _ = evaluator.outputs(dense, "calibration")
    after, _ = evaluator.outputs(compressor.compress(config), "calibration")
    return float((after - before).square().mean())


def test_activations_that_overflow_half_precision_are_one_line() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3), torch.nn.Flatten(),
        torch.nn.Linear(576, 5),
    )  # fmt: skip
    network[0].weight.data *= 1e6
    evaluator = evaluator_for("large", network)
    decision = LayerDecision(weight_bits=4, activation_bits=16)
    layers = dict.fromkeys(evaluator.compressor.network.names, decision)
    with pytest.raises(InputError, match="not finite"):
        evaluator.compressor.compress(CompressionConfig(layers, "sequential"))


@pytest.mark.parametrize("repair", ["aligned", "sequential"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_kind_are_repaired_layer_after_layer(name: str, repair: Repair) -> None:
    evaluator = evaluator_of(name)
    config = dataclasses.replace(filter_config(evaluator, 0.6, "l2"), repair=repair)
    compressed = evaluator.compressor.compress(config)
    masked, _ = evaluator.outputs(compressed, "calibration")
    assert torch.isfinite(masked).all()
    module = remove_channels(evaluator.compressor.network, compressed)
    inputs = torch.cat([batch for batch, _ in evaluator.task.calibration])
    torch.testing.assert_close(module(inputs), masked, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["projected", "views"])
def test_what_is_kept_of_the_dense_outputs_fits_its_room(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = evaluator_of(name).compressor.network
    images = [batch for batch, _ in evaluator_of(name).task.calibration]
    per_image = sum(outputs.nbytes for outputs in dense_outputs(network, images)) // 32
    monkeypatch.setattr("envs.sequential._WORKING_BYTES", 20 * per_image)
    assert sum(x.nbytes for x in dense_outputs(network, images)) == 20 * per_image


def test_images_merged_into_the_batch_take_their_room_in_the_cache() -> None:
    workload = evaluator_of("views").compressor.network.workload
    single = dataclasses.replace(
        workload, layers=tuple(dataclasses.replace(x, batch=1) for x in workload.layers)
    )
    assert images_in_cache(workload) == images_in_cache(single) // 2 == 768


@pytest.mark.parametrize("name", NETWORKS)
def test_patches_times_weights_are_the_outputs_at_the_same_places(name: str) -> None:
    network = evaluator_of(name).compressor.network
    generator = torch.Generator().manual_seed(0)

    def step(index: int, run: RunLayer, inputs: torch.Tensor) -> torch.Tensor:
        layer = network.layers[index]
        outputs = run(inputs, layer.weight, torch.zeros_like(layer.bias))
        places = sample_positions(layer, inputs, generator, 5)
        assert 1 <= len(places) <= 5
        assert len(places.unique()) == len(places)
        patches = patches_at(layer, inputs, places)
        torch.testing.assert_close(
            patches @ layer.rows.mT, outputs_at(layer, outputs, places), rtol=1e-4, atol=1e-5
        )
        return run(inputs, layer.folded_weight, layer.bias)

    inputs, _ = next(iter(evaluator_of(name).task.calibration))
    walk_layers(network, inputs, step)


@pytest.mark.parametrize("name", ["inverted", "padded_residual", "attention"])
def test_outputs_change_less_than_if_every_layer_is_repaired_alone(name: str) -> None:
    evaluator = evaluator_of(name)
    decision = LayerDecision("element", "second_order", 0.6, 3, 4)
    names = evaluator.compressor.network.names
    change: dict[Repair, float] = {}
    for repair in ("none", "layerwise", "aligned", "sequential"):
        config = CompressionConfig(dict.fromkeys(names, decision), repair)
        change[repair] = output_change(evaluator, config)
    assert change["aligned"] < change["layerwise"] < change["none"]
    assert change["sequential"] < change["layerwise"]


def test_alignment_gives_every_layer_the_outputs_of_least_squares() -> None:
    evaluator = evaluator_of("mlp")
    compressor = evaluator.compressor
    names = compressor.network.names
    first = uniform(names, 32).layers | {names[0]: LayerDecision("element", "l1", 0.7, 3, 32)}
    inputs = torch.cat(list(compressor.images)).flatten(1)
    layer = compressor.network.layers[0]
    wanted = inputs @ layer.folded_weight.T + layer.bias

    def outputs(repair: Repair) -> torch.Tensor:
        found = compressor.compress(CompressionConfig(first, repair)).layers[0]
        return inputs @ found.weight.T + found.bias

    plain, aligned = outputs("layerwise"), outputs("aligned")
    for channel in range(len(layer.bias)):
        design = torch.stack([plain[:, channel], torch.ones(len(inputs))], dim=1)
        best = torch.linalg.lstsq(design, wanted[:, channel, None]).solution
        torch.testing.assert_close(
            aligned[:, channel], (design @ best).squeeze(1), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", ["inverted", "padded_residual", "tokens"])
def test_alignment_restores_the_mean_of_every_output(name: str) -> None:
    evaluator = evaluator_of(name)
    names = evaluator.compressor.network.names
    means = {}
    for bits, repair in ((32, "layerwise"), (3, "layerwise"), (3, "aligned")):
        config = dataclasses.replace(uniform(names, bits), repair=repair)
        outputs, _ = evaluator.outputs(evaluator.compressor.compress(config), "calibration")
        means[bits, repair] = outputs.mean(dim=0)
    away = (means[3, "layerwise"] - means[32, "layerwise"]).abs().max()
    aligned = (means[3, "aligned"] - means[32, "layerwise"]).abs().max()
    assert aligned < 0.2 * away


@pytest.mark.parametrize("repair", ["aligned", "sequential"])
def test_an_uncompressed_network_is_left_as_it_is(repair: Repair) -> None:
    evaluator = evaluator_of("inverted")
    names = evaluator.compressor.network.names
    config = dataclasses.replace(uniform(names, 32), repair=repair)
    assert output_change(evaluator, config) < 1e-8


def test_weights_lie_on_their_grid_and_come_out_the_same_again() -> None:
    evaluator = evaluator_of("inverted")
    names = evaluator.compressor.network.names
    config = dataclasses.replace(uniform(names, 4), repair="sequential")
    first = evaluator.compressor.compress(config)
    evaluator.evaluate(uniform(names, 2), "search")
    again = evaluator.compressor.compress(config)
    for one, other in zip(first.layers, again.layers, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.bias, other.bias)
        assert one.scale is not None
        integers = one.weight / one.scale.view(-1, *[1] * (one.weight.ndim - 1))
        torch.testing.assert_close(integers, integers.round(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("repair", ["aligned", "sequential"])
def test_without_calibration_images_it_is_refused(repair: Repair) -> None:
    compressor = evaluator_of("mlp").compressor
    bare = Compressor(compressor.network, compressor.statistics)
    config = dataclasses.replace(uniform(compressor.network.names, 4), repair=repair)
    with pytest.raises(InputError, match="repair"):
        bare.compress(config)
