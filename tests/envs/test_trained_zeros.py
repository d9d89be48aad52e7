"""Weights that are zero in the trained network stay zero, whatever makes up for what."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn

from envs import reconstruction
from envs.config import CompressionConfig
from envs.config import Criterion
from envs.config import LayerDecision
from envs.config import Repair
from envs.episode import start_choice
from envs.evaluator import Evaluator
from envs.exact_reconstruction import prune_exactly
from envs.exact_reconstruction import solve_exactly
from envs.layer_compression import compressed_rows
from envs.layer_compression import pruned_rows
from envs.problem import CompressionProblem
from envs.quantizer import Quantizer
from envs.reconstruction import reconstruct_masked
from envs.reconstruction import reconstruct_sparse
from envs.reconstruction_settings import Reconstruction
from envs.setup import Menu
from envs.space import Method
from envs.tabulate import build_option_table
from hwmodel import load_accelerator
from tests.envs.test_reconstruction import damped
from tests.envs.test_reconstruction import layer as random_layer
from tests.envs.test_reconstruction import least_squares
from tests.envs.test_removal import evaluator_for

REPAIRS: tuple[Repair, ...] = ("none", "layerwise", "aligned", "sequential")
RECONSTRUCTIONS = (
    Reconstruction(),
    Reconstruction("exact", "exact"),
    Reconstruction(rounding="adaround"),
)
METHODS = tuple(
    map(
        Method.parse,
        ("none", "element/l1", "element/random", "element/second_order", "n:4/second_order",
         "4x1/second_order", "1x4/l1", "kernel/second_order"),
    )
)  # fmt: skip


@cache
def sparse_evaluator() -> Evaluator:
    """A transposed convolution with zeros in three of its phases, and a layer pruned before."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(12, 8, 3, 2, 1, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    with torch.no_grad():
        network[4].weight *= torch.rand(network[4].weight.shape) < 0.6
    return evaluator_for("sparse", network)


def is_filled_only_where(rows: Tensor, trained: Tensor) -> bool:
    return not bool(rows[(trained == 0).expand_as(rows)].any())


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("loses_inputs", [False, True])
@pytest.mark.parametrize("reconstructs", RECONSTRUCTIONS, ids=str)
def test_no_way_to_prune_and_to_round_fills_zeros(
    reconstructs: Reconstruction,
    loses_inputs: bool,
    is_large: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("envs.adaptive_rounding._STEPS", 20)
    if is_large:
        monkeypatch.setattr(reconstruction, "_INVERSES_BYTES", 0)
        monkeypatch.setattr(reconstruction, "_ROUNDED_INVERSES_BYTES", 0)
    compressor = sparse_evaluator().compressor
    for index, method in ((1, METHODS[0]), *((2, method) for method in METHODS)):
        layer, statistics = compressor.network.layers[index], compressor.statistics[index]
        columns = torch.zeros_like(layer.rows[:, 0], dtype=torch.bool)
        columns[:, : 2 * layer.rows.shape[-1] // layer.weight.shape[1]] = True
        removed = columns if loses_inputs else None
        sparsity = 0.0 if method.granularity == "none" else 0.5
        for quantizer in (Quantizer(), Quantizer(weight_symmetry="affine")):
            decision = LayerDecision(*method, sparsity, 4, 8)
            rows, _ = compressed_rows(
                layer, statistics, decision, removed, "layerwise", quantizer, reconstructs
            )
            assert is_filled_only_where(rows, layer.rows)
            assert rows.any()


@pytest.mark.parametrize("criterion", ["l1", "second_order"])
@pytest.mark.parametrize("settings", RECONSTRUCTIONS[:2], ids=str)
def test_zeros_are_the_first_that_go(criterion: Criterion, settings: Reconstruction) -> None:
    compressor = sparse_evaluator().compressor
    layer, statistics = compressor.network.layers[2], compressor.statistics[2]
    method = ("element", criterion)
    pruned = pruned_rows(layer, statistics, *method, [0.25, 0.75], None, "layerwise", settings)
    few, many = ((rows != 0).float().mean() for rows in pruned)
    assert few == (layer.rows != 0).float().mean()
    assert many == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("memory", [reconstruction._INVERSES_BYTES, 0])
def test_what_loses_columns_ends_at_the_best_weights_that_have_the_zeros(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "_INVERSES_BYTES", memory)
    weight, moment = random_layer(groups=2, rows=3, columns=10)
    weight[0, 0, 2:6] = weight[1, :, 7] = 0
    removed = torch.zeros(2, 10, dtype=torch.bool)
    removed[0, 4:], removed[1, :3] = True, True
    keep = (weight != 0) & ~removed[:, None]
    expected = torch.zeros_like(weight)
    for group, row in itertools.product(range(2), range(3)):
        expected[group, row] = least_squares(
            weight[group, row], damped(moment)[group], keep[group, row]
        )
    everything = torch.ones_like(keep)[None]
    for found in (
        reconstruct_masked(weight, moment, everything, removed_columns=removed),
        solve_exactly(weight, moment, everything, removed_columns=removed),
        reconstruct_sparse(weight, moment, [0.0], removed_columns=removed),
        prune_exactly(weight, moment, [0.0], removed_columns=removed),
    ):
        torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("repair", REPAIRS)
def test_networks_keep_their_zeros_and_the_table_foretells_them(repair: Repair) -> None:
    evaluator = sparse_evaluator()
    compressor = evaluator.compressor
    methods = tuple(map(Method.parse, ("none", "filter/l2")))
    menu = Menu(methods, (0.25, 0.5), weight_bits=(8,), activation_bits=(8,), repair=repair)
    space = menu.space(compressor.network)
    table = build_option_table(evaluator, space)
    problem = CompressionProblem(
        compressor.network.workload, load_accelerator("eyeriss-like"), space, table
    )
    choice = start_choice(space)
    choice[0, :2] = choice[1, :2] = 1
    choices = space.canonical(choice[None])
    config = replace(space.config(choices[0]), repair=repair)
    compressed = compressor.compress(config)
    for traced, layer in zip(compressor.network.layers, compressed.layers, strict=True):
        assert is_filled_only_where(layer.weight, traced.weight)
    left = compressor.states(compressed).weight_density[:, :3]  # the last has 40 weights
    np.testing.assert_allclose(problem.states(choices).weight_density[:, :3], left, rtol=0.02)
    assert left[0, 1] <= 9 / 16  # what a kernel of 3 fills at a stride of 2


def test_configurations_without_repair_have_the_zeros_too() -> None:
    compressor = sparse_evaluator().compressor
    layers = dict.fromkeys(compressor.network.names, LayerDecision(weight_bits=3))
    for layer, traced in zip(
        compressor.compress(CompressionConfig(layers, "none")).layers,
        compressor.network.layers,
        strict=True,
    ):
        assert is_filled_only_where(layer.weight, traced.weight)
