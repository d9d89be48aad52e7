"""What the option table says of single layers, against whole networks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from envs.config import Repair
from envs.config import uniform
from envs.episode import start_choice
from envs.predictor import AccuracyPredictor
from envs.problem import CompressionProblem
from envs.quantizer import Quantizer
from envs.setup import Menu
from envs.space import ACTIVATION_BITS
from envs.space import SPARSITY
from envs.space import WEIGHT_BITS
from envs.space import Method
from envs.tabulate import build_option_table
from hwmodel import load_accelerator
from tests.envs.test_removal import evaluator_for
from tests.envs.test_removal import make_evaluator


@pytest.mark.parametrize("repair", ["none", "layerwise"])
@pytest.mark.parametrize("name", ["padded_residual", "inverted", "attention", "dense", "projected"])
def test_changes_of_single_layers_add_up(name: str, repair: Repair) -> None:
    evaluator = make_evaluator(name)
    menu = Menu(weight_bits=(3, 4, 6, 8), activation_bits=(3, 4, 6, 8), repair=repair)
    space = menu.space(evaluator.compressor.network)
    predictor = AccuracyPredictor(build_option_table(evaluator, space))
    rng = np.random.default_rng(0)
    choices = np.repeat(start_choice(space)[None], 24, axis=0)
    for column in (WEIGHT_BITS, ACTIVATION_BITS):
        lowest = rng.integers(0, 4, (24, 1))  # from hardly to much rounded configurations
        choices[..., column] = np.minimum(lowest + rng.integers(0, 2, choices.shape[:2]), 3)
    dense = evaluator.compressor.compress(uniform(space.layers, 32))
    before, _ = evaluator.outputs(dense, "calibration")
    changes = []
    for choice in choices:
        config = replace(space.config(choice), repair=repair)
        after, _ = evaluator.outputs(evaluator.compressor.compress(config), "calibration")
        change = (after - after.mean(1, keepdim=True)) - (before - before.mean(1, keepdim=True))
        changes.append(float(change.square().mean()))
    assert spearmanr(predictor.accuracy_drop(choices), changes).statistic > 0.9


@pytest.mark.parametrize("name", ["padded_residual", "dense"])
def test_inputs_count_for_more_where_additions_read_rounded_maps_too(name: str) -> None:
    evaluator = make_evaluator(name)
    damage = {}
    for placement in ("fused", "per-layer"):
        menu = Menu(quantizer=Quantizer(activation_placement=placement))
        table = build_option_table(evaluator, menu.space(evaluator.compressor.network))
        damage[placement] = (table.sensitivity[:, 1:] * table.activation_error).sum(axis=0)
    assert (damage["fused"] > 1.05 * damage["per-layer"]).all()


def test_the_channels_that_stay_are_denser_than_all() -> None:
    """Two thirds of the first layer's filters, and what reads them, are too small for 3 bits."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )
    with torch.no_grad():
        network[0].weight[::3] *= 20
        network[2].weight[:, ::3] *= 20
    evaluator = evaluator_for("uneven", network)
    widths = (2, 3, 4, 8)
    methods = tuple(map(Method.parse, ("none", "filter/l2")))
    menu = Menu(methods, (0.3, 0.5), weight_bits=widths, activation_bits=(8,))
    space = menu.space(evaluator.compressor.network)
    table = build_option_table(evaluator, space)
    problem = CompressionProblem(
        evaluator.compressor.network.workload, load_accelerator("eyeriss-like"), space, table
    )
    choices = []
    for first, reads, step, width in itertools.product((0, 1), (0, 1), range(2), range(4)):
        choice = start_choice(space)
        choice[0, : SPARSITY + 1] = first, step
        choice[1] = reads, step, width, 0
        choices.append(choice)
    found = space.canonical(np.array(choices))
    expected = problem.states(found).weight_density[:, 1]
    compressor = evaluator.compressor
    configs = [space.config(choice) for choice in found]
    left = [
        compressor.states(compressor.compress(config)).weight_density[0, 1] for config in configs
    ]
    np.testing.assert_allclose(expected, left, rtol=0.06)
    alone = table.weight_density[1][tuple(found[:, 1, :ACTIVATION_BITS].T)]
    assert np.max(np.abs(alone / left - 1)) > 0.15
