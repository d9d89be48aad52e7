from __future__ import annotations

import ast
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from envs.config import CompressionConfig
from envs.config import uniform
from envs.quantizer import Quantizer
from envs.setup import Menu
from hwmodel import InputError
from search.export import write_network
from tests.envs.networks import NETWORKS
from tests.envs.test_removal import make_evaluator


def imported_by(source: str) -> set[str]:
    """Packages that a module's source asks for."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named = [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in plain + named}


def test_an_exported_network_needs_torch_and_safetensors_alone(tmp_path: Path) -> None:
    evaluator = make_evaluator("inverted")
    write_network(evaluator.compressor, uniform(evaluator.compressor.network.names, 8), tmp_path)
    assert imported_by((tmp_path / "network.py").read_text()) == {"pathlib", "safetensors", "torch"}


def load_module(directory: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("network", directory / "network.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_exported_and_in_search_networks_agree(name: str, seed: int, tmp_path: Path) -> None:
    evaluator = make_evaluator(name)
    compressor = evaluator.compressor
    space = Menu().space(compressor.network)
    config = space.config(space.sample(np.random.default_rng(seed), 1)[0])
    write_network(compressor, config, tmp_path)
    exported = load_module(tmp_path).load()
    inputs = torch.cat([batch for batch, _ in evaluator.task.search])
    outputs, _ = evaluator.outputs(compressor.compress(config), "search")
    with torch.no_grad():
        torch.testing.assert_close(exported(inputs), outputs, rtol=1e-4, atol=1e-4)
    assert CompressionConfig.load(tmp_path / "config.json").hash == config.hash


def test_whoever_may_read_one_file_may_read_all(tmp_path: Path) -> None:
    compressor = make_evaluator("padded_residual").compressor
    write_network(compressor, uniform(compressor.network.names, 4), tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_weights_are_stored_as_integers_without_the_removed_channels(tmp_path: Path) -> None:
    evaluator = make_evaluator("padded_residual")
    names = evaluator.compressor.network.names
    layers = dict(uniform(names, 4).layers)
    data = {"version": 1, "layers": {}}
    for name, decision in layers.items():
        values = vars(decision)
        if name != "head":
            values = {**values, "granularity": "filter", "criterion": "l2", "sparsity": 0.5}
        data["layers"][name] = values  # type: ignore[index]
    write_network(evaluator.compressor, CompressionConfig.from_json(data), tmp_path)
    tensors = load_file(tmp_path / "weights.safetensors")
    assert tensors["weight_0"].dtype == torch.int8
    assert tuple(tensors["weight_1"].shape) == (8, 4, 3, 3)
    assert int(tensors["weight_1"].abs().max()) <= 7
    listed = json.loads((tmp_path / "layers.json").read_text())
    compressed = evaluator.compressor.compress(CompressionConfig.from_json(data)).layers
    for entry, layer in zip(listed, compressed, strict=True):
        integers, scale = tensors[entry["weight"]], tensors[entry["weight_scale"]].flatten()
        weight = integers.float() * scale.view(-1, *[1] * (integers.ndim - 1))
        kept = layer.weight[layer.kept_out][:, layer.kept_in]
        torch.testing.assert_close(weight, kept, rtol=1e-6, atol=1e-7)
    assert [(layer["in_channels"], layer["out_channels"]) for layer in listed] == [
        (3, 4),
        (4, 8),
        (8, 8),
        (8, 5),
    ]


def test_scales_of_groups_are_stored_with_what_they_belong_to(tmp_path: Path) -> None:
    compressor = make_evaluator("padded_residual").compressor
    config = uniform(compressor.network.names, 4)
    config = replace(config, quantizer=Quantizer(weight_granularity="group:2"))
    write_network(compressor, config, tmp_path)
    tensors = load_file(tmp_path / "weights.safetensors")
    listed = json.loads((tmp_path / "layers.json").read_text())
    for entry, layer in zip(listed, compressor.compress(config).layers, strict=True):
        integers, block = tensors[entry["weight"]], tensors[entry["weight"] + ".block"]
        assert len(block) == layer.weight.shape[1]
        assert int(block.max()) + 1 == -(-len(block) // 2)
        scales = tensors[entry["weight_scale"]].flatten(1)[block].T
        weight = integers * scales.view(*scales.shape, *[1] * (integers.ndim - 2))
        torch.testing.assert_close(weight, layer.weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [16, 32])
def test_floating_point_networks_are_exported(bits: int, tmp_path: Path) -> None:
    evaluator = make_evaluator("dense")
    config = uniform(evaluator.compressor.network.names, bits)
    write_network(evaluator.compressor, config, tmp_path)
    inputs = torch.cat([batch for batch, _ in evaluator.task.search])
    outputs, _ = evaluator.outputs(evaluator.compressor.compress(config), "search")
    with torch.no_grad():
        torch.testing.assert_close(
            load_module(tmp_path).load()(inputs), outputs, rtol=1e-4, atol=1e-4
        )


def test_a_directory_with_files_is_left_alone(tmp_path: Path) -> None:
    evaluator = make_evaluator("mlp")
    (tmp_path / "precious").write_text("keep")
    config = uniform(evaluator.compressor.network.names, 8)
    with pytest.raises(InputError, match="empty"):
        write_network(evaluator.compressor, config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
