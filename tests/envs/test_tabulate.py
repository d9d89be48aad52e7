"""The option table's sensitivities: what single layers change adds up to what a network changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from envs.config import Repair
from envs.config import uniform
from envs.episode import start_choice
from envs.predictor import AccuracyPredictor
from envs.setup import Menu
from envs.space import ACTIVATION_BITS
from envs.space import WEIGHT_BITS
from envs.tabulate import build_option_table
from tests.envs.test_removal import make_evaluator


@pytest.mark.parametrize("repair", ["none", "layerwise"])
@pytest.mark.parametrize("name", ["padded_residual", "inverted", "attention"])
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
