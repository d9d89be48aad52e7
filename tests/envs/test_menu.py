"""Every method of the menu, from its name to what the hardware sees."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import criteria
from envs.evaluator import Evaluator
from envs.setup import Menu
from envs.space import METHOD
from envs.space import NO_PRUNING
from envs.space import SPARSITY
from envs.space import Method
from envs.space import SearchSpace
from envs.tabulate import build_option_table
from hwmodel import InputError
from hwmodel import cost
from hwmodel import load_accelerator
from tests.envs.test_removal import make_evaluator

GRANULARITIES = ("element", "kernel", "1x4", "4x1", "2x2", "n:4", "n:8", "filter")


@cache
def evaluator_of(network: str) -> Evaluator:
    return make_evaluator(network)


def space_of(*names: str, sparsities: tuple[float, ...] = (0.25, 0.5, 0.7)) -> SearchSpace:
    methods = (NO_PRUNING, *(Method.parse(name) for name in names))
    return SearchSpace(("a", "b"), methods, sparsities, (4, 8), (4, 8), (-1, -1))


def test_a_layer_is_pinned_once() -> None:
    network = evaluator_of("padded_residual").compressor.network
    decision = LayerDecision(weight_bits=8, activation_bits=8)
    pinned = {network.names[0]: decision, "last": decision}
    assert set(Menu(pinned=pinned).space(network).pinned) == {network.names[0], network.names[-1]}
    with pytest.raises(InputError, match=r"space\.pinned\.first: .*pinned already"):
        Menu(pinned={**pinned, "first": decision}).space(network)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("network", ["inverted", "attention", "sequence"])
def test_every_granularity_prunes_networks_of_every_kind(granularity: str, network: str) -> None:
    evaluator = evaluator_of(network)
    traced = evaluator.compressor.network
    criterion = "reconstruction" if granularity == "filter" else "second_order"
    pruned = LayerDecision(granularity, criterion, 0.5, 8, 8)
    kept = LayerDecision(weight_bits=8, activation_bits=8)
    stays = [granularity == "filter" and group < 0 for group in traced.units.group]
    config = CompressionConfig(
        {name: kept if stay else pruned for name, stay in zip(traced.names, stays, strict=True)}
    )
    assert CompressionConfig.from_json(config.to_json()) == config
    compressed = evaluator.compressor.compress(config)
    outputs, _ = evaluator.outputs(compressed, "search")
    assert torch.isfinite(outputs).all()
    states = evaluator.compressor.states(compressed)
    report = cost(traced.workload, states, load_accelerator("eyeriss-like"))
    dense = evaluator.compressor.compress(CompressionConfig(dict.fromkeys(traced.names, kept)))
    before = cost(
        traced.workload, evaluator.compressor.states(dense), load_accelerator("eyeriss-like")
    )
    assert report.energy_pj[0] < before.energy_pj[0]


@pytest.mark.parametrize("criterion", criteria("filter"))
def test_every_criterion_removes_filters(criterion: str) -> None:
    compressor = evaluator_of("dense").compressor
    members, keep = compressor.kept_units(0, criterion, 0.5)  # type: ignore[arg-type]
    assert len(keep) == len(members)
    assert 0 < keep.sum() < len(members)


def test_reconstruction_removes_the_channel_that_its_reader_can_do_without() -> None:
    evaluator = evaluator_of("mlp")
    losses = {}
    names = evaluator.compressor.network.names
    dense = CompressionConfig(dict.fromkeys(names, LayerDecision()))
    before, _ = evaluator.outputs(evaluator.compressor.compress(dense), "calibration")
    for criterion in ("reconstruction", "random"):
        first = LayerDecision("filter", criterion, 0.5)  # type: ignore[arg-type]
        config = CompressionConfig({**dense.layers, names[0]: first})
        after, _ = evaluator.outputs(evaluator.compressor.compress(config), "calibration")
        losses[criterion] = float((after - before).square().mean())
    assert losses["reconstruction"] < losses["random"]


def test_the_table_knows_what_is_left_of_every_method() -> None:
    evaluator = evaluator_of("inverted")
    names = ("n:4/second_order", "kernel/second_order", "filter/reconstruction")
    methods = (NO_PRUNING, *(Method.parse(name) for name in names))
    menu = Menu(methods, sparsities=(0.25, 0.4, 0.5), weight_bits=(4, 8), activation_bits=(8,))
    space = menu.space(evaluator.compressor.network)
    table = build_option_table(evaluator, space)
    run = space.methods.index(Method("n:4", "second_order"))
    assert (table.weight_density[:, run, 1] == table.weight_density[:, run, 2]).all()
    assert table.weight_error[:, run, 0].sum() < table.weight_error[:, run, 2].sum()


def test_runs_are_told_to_the_hardware() -> None:
    compressor = evaluator_of("dense").compressor
    names = compressor.network.names
    decision = LayerDecision("n:4", "second_order", 0.5, 8, 8)
    states = compressor.states(
        compressor.compress(CompressionConfig(dict.fromkeys(names, decision)))
    )
    told = states.weight_m[0] == 4
    assert told.any()
    assert (states.weight_n[0][told] == 2).all()
    assert (states.weight_density[0][told] <= 0.5).all()


def test_a_sparsity_out_of_reach_becomes_the_nearest_one() -> None:
    space = space_of("n:4/second_order", "element/l1")
    choices = np.zeros((1, 2, 4), dtype=np.int64)
    choices[0, :, METHOD] = 1, 2
    choices[0, :, SPARSITY] = 2
    assert space.canonical(choices)[0, :, SPARSITY].tolist() == [1, 2]
    config = space.config(choices[0])
    assert config.layers["a"].sparsity == 0.5
    found = space.choice(config)
    assert found is not None
    assert (found == space.canonical(choices)[0]).all()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: LayerDecision("n:4", "l1", 0.3), "sparsity"),
        (lambda: LayerDecision("n:0", "l1", 0.5), "granularity"),
        (lambda: LayerDecision("1x1", "l1", 0.5), "granularity"),
        (lambda: LayerDecision("rows", "l1", 0.5), "granularity"),
        (lambda: LayerDecision(4, "l1", 0.5), "granularity"),  # type: ignore[arg-type]
        (lambda: LayerDecision("kernel", "taylor", 0.5), "criterion"),
        (lambda: Method.parse("kernel"), "method"),
        (lambda: Method.parse("n:4/l9"), "method"),
        (lambda: space_of("n:4/l1", sparsities=(0.1, 0.9)), "space.sparsities"),
    ],
)
def test_what_does_not_exist_is_refused(make, field: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.field == field


def test_configurations_of_before_keep_their_hash() -> None:
    layers = {"a": LayerDecision("element", "l1", 0.5, 4, 8), "b": LayerDecision()}
    assert CompressionConfig(layers, "layerwise").hash == "7d7d38cf0c579ef7"


@pytest.mark.parametrize("name", ["n:16/l1", "4x1/random", "filter/geometric_median", "none"])
def test_names_of_methods(name: str) -> None:
    assert str(Method.parse(name)) == name
