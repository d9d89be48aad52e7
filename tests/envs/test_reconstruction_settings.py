"""The setting of repair on its way: configuration, whole networks, database."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import Repair
from envs.evaluator import Evaluator
from envs.layer_compression import compressed_rows
from envs.quantizer import Quantizer
from envs.reconstruction import output_error
from envs.reconstruction_settings import Reconstruction
from envs.setup import Menu
from envs.setup import prepare_evaluator
from envs.setup import prepare_problem
from envs.space import NO_PRUNING
from envs.space import Method
from hwmodel import InputError
from hwmodel import load_accelerator
from tests.envs.test_sequential import evaluator_of
from tests.envs.test_sequential import output_change

OTHERS = {
    "exact pruning": Reconstruction(pruning="exact"),
    "exact": Reconstruction("exact", "exact"),
    "adaround": Reconstruction(rounding="adaround"),
}
each_reconstruction = pytest.mark.parametrize("reconstruction", OTHERS.values(), ids=OTHERS)


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.adaptive_rounding._STEPS", 50)


@each_reconstruction
def test_configurations_survive_json_and_have_a_hash_of_their_own(
    reconstruction: Reconstruction,
) -> None:
    plain = CompressionConfig({"a": LayerDecision()})
    config = replace(plain, reconstruction=reconstruction)
    assert CompressionConfig.from_json(config.to_json()) == config
    assert config.hash != plain.hash


def test_the_default_is_not_told() -> None:
    config = CompressionConfig({"a": LayerDecision()}, reconstruction=Reconstruction())
    assert set(config.to_json()) == {"version", "repair", "layers"}
    told = {**config.to_json(), "reconstruction": {"pruning": "approximate", "rounding": "gptq"}}
    assert CompressionConfig.from_json(told).hash == config.hash


@pytest.mark.parametrize(
    ("reconstruction", "message"),
    [
        ({"pruning": "best"}, "config.reconstruction.pruning: 'best' is not allowed"),
        ({"pruning": True}, "config.reconstruction.pruning: True is not allowed"),
        ({"rounding": "nearest"}, "use gptq, exact or adaround"),
        ({"round": "exact"}, r"config.reconstruction.round: .*\['pruning', 'rounding'\]"),
        ("exact", "config.reconstruction: 'exact' is not allowed; use a mapping with keys"),
    ],
)
def test_what_does_not_exist_is_refused(reconstruction: object, message: str) -> None:
    data = {"version": 1, "layers": {}, "reconstruction": reconstruction}
    with pytest.raises(InputError, match=message) as caught:
        CompressionConfig.from_json(data)
    assert "\n" not in str(caught.value)


DECISION = LayerDecision("element", "second_order", 0.5, 3, 8)


@each_reconstruction
@pytest.mark.parametrize(
    ("name", "repair"),
    [
        ("inverted", "layerwise"),
        ("inverted", "aligned"),
        ("inverted", "sequential"),
        ("shuffle", "layerwise"),
    ],
)
def test_every_repair_uses_it_in_layers_of_every_kind(
    name: str, repair: Repair, reconstruction: Reconstruction
) -> None:
    """Dense, grouped and depthwise convolutions, linear layers."""
    evaluator = evaluator_of(name)
    compressor = evaluator.compressor
    plain = CompressionConfig(dict.fromkeys(compressor.network.names, DECISION), repair)
    config = replace(plain, reconstruction=reconstruction)
    default, found = compressor.compress(plain), compressor.compress(config)
    changed = 0
    for layer, other in zip(found.layers, default.layers, strict=True):
        assert layer.scale is not None
        scale = torch.where(layer.scale == 0, 1, layer.scale)
        integers = layer.weight / scale.view(-1, *[1] * (layer.weight.ndim - 1))
        torch.testing.assert_close(integers, integers.round(), atol=1e-3, rtol=0)
        assert layer.density <= 0.5 + 1 / layer.weight.numel()
        changed += not torch.equal(layer.weight, other.weight)
    assert changed
    unrepaired = replace(plain, repair="none")
    assert output_change(evaluator, config) < output_change(evaluator, unrepaired)


@each_reconstruction
def test_without_repair_it_is_not_used(reconstruction: Reconstruction) -> None:
    compressor = evaluator_of("inverted").compressor
    plain = CompressionConfig(dict.fromkeys(compressor.network.names, DECISION), "none")
    found = compressor.compress(replace(plain, reconstruction=reconstruction))
    for layer, other in zip(found.layers, compressor.compress(plain).layers, strict=True):
        assert torch.equal(layer.weight, other.weight)
    source = compressor.source(0, "none", reconstruction=reconstruction)
    assert source.content == compressor.source(0, "none").content


@each_reconstruction
@pytest.mark.parametrize("criterion", ["l1", "second_order"])
@pytest.mark.parametrize("granularity", ["n:4", "1x4", "kernel"])
def test_all_that_can_go_goes_and_outputs_change_less_than_without_repair(
    granularity: str, criterion: str, reconstruction: Reconstruction
) -> None:
    compressor = evaluator_of("padded_residual").compressor
    layer, statistics = compressor.network.layers[2], compressor.statistics[2]
    decision = LayerDecision(granularity, criterion, 0.5, 4, 8)  # type: ignore[arg-type]
    quantizer = Quantizer(weight_symmetry="affine", weight_granularity="group:4")
    errors = {}
    for repair in ("none", "layerwise"):
        rows, _ = compressed_rows(
            layer,
            statistics,
            decision,
            None,
            repair,
            quantizer,
            reconstruction,  # type: ignore[arg-type]
        )
        assert (rows != 0).float().mean() <= 0.5
        delta = (rows - layer.rows)[None]
        errors[repair] = float(output_error(delta, statistics.second_moment, layer.rows))
    assert errors["layerwise"] < errors["none"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """The same with a database."""
    task = evaluator_of("inverted").task
    return prepare_evaluator(task, tmp_path_factory.mktemp("database"))


@each_reconstruction
def test_a_database_keeps_them_apart_and_gives_what_is_made_without_it(
    stored: Evaluator, reconstruction: Reconstruction
) -> None:
    plain, compressor = evaluator_of("inverted"), stored.compressor
    assert compressor.database is not None
    config = replace(
        CompressionConfig(dict.fromkeys(compressor.network.names, DECISION), "layerwise"),
        reconstruction=reconstruction,
    )
    method = Method("element", "second_order")
    for index in range(len(config.layers)):
        source = compressor.source(index, "layerwise", reconstruction=reconstruction)
        assert compressor.database.lacks(source, method, [0.5], [3])
        compressor.database.options(source, method, [0.5], [2, 3])
        assert not compressor.database.lacks(source, method, [0.5], [3])
        default = compressor.source(index, "layerwise")
        assert compressor.database.lacks(default, method, [0.5], [3])
    pairs = zip(
        plain.compressor.compress(config).layers, compressor.compress(config).layers, strict=True
    )
    for made, read in pairs:
        assert torch.equal(made.weight, read.weight)
        assert torch.equal(made.bias, read.bias)


def test_a_menu_hands_it_to_configurations_and_option_tables() -> None:
    evaluator = evaluator_of("inverted")
    accelerator = load_accelerator("eyeriss-like")
    methods = (NO_PRUNING, Method("element", "second_order"))
    menu = Menu(methods, sparsities=(0.5,), weight_bits=(2,), activation_bits=(8,))
    other = replace(menu, reconstruction=Reconstruction("exact", "exact"))
    space = other.space(evaluator.compressor.network)
    config = space.config(np.zeros((len(space.layers), 4), dtype=np.int64))
    assert config.reconstruction == other.reconstruction
    assert space.choice(config) is not None
    assert space.choice(replace(config, reconstruction=Reconstruction())) is None
    tables = [prepare_problem(evaluator, accelerator, each).table for each in (menu, other)]
    assert (tables[0].weight_error != tables[1].weight_error).any()
