"""Writes a compressed network: configuration, weights on their grid, and the code to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from torch import fx

from envs.compression import CompressedLayer
from envs.compression import CompressedNetwork
from envs.compression import Compressor
from envs.compression import integer_weights
from envs.config import CompressionConfig
from envs.quantization import ActivationRange
from envs.removal import map_grids
from envs.removal import remove_channels
from envs.removal import sums_integers
from envs.setup import prepare_evaluator
from hwmodel import InputError
from search.baselines import DENSE_FP32
from search.front import accuracy_drop
from search.front import baseline
from search.front import distinct
from search.goals import Goal
from search.picks import Candidates
from search.run_directory import RunDirectory
from search.storage import local_database

_TEMPLATE = '''"""A compressed network. Needs torch and safetensors, nothing else.

    from network import load
    network = load()            # an nn.Module in evaluation mode
    outputs = network(inputs)   # inputs: float32, {shape}

Layers add up products of integers, which are exact in single precision, and scale the sums. Weights
are stored as integers and scales, with a weight's .block for the scales of every input channel
where these differ; layer by layer in layers.json.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import device
from torch import inf
from torch import nan


class CompressedNetwork(torch.nn.Module):
    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

{forward}


def load(directory=None):
    """Read ``weights.safetensors`` from a directory, by default this file's own."""
    directory = Path(__file__).parent if directory is None else Path(directory)
    stored = load_file(directory / "weights.safetensors")
    tensors = {{}}
    for name, tensor in stored.items():
        if name.endswith((".scale", ".block")):
            continue
        if name + ".scale" in stored:
            scale = stored[name + ".scale"]
            if name + ".block" in stored:  # of input channels, each block with its own scales
                scale = scale[:, stored[name + ".block"]]
            tensor = tensor.float() * scale.view(*scale.shape, *[1] * (tensor.ndim - scale.ndim))
        tensor = tensor.float() if name.startswith("weight_") else tensor
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        tensors[name] = tensor
    return CompressedNetwork(tensors).eval()
'''


def export(run: RunDirectory, goal: Goal, directory: str | Path) -> dict[str, Any]:
    """Write the network of the configuration that a run picks for a goal.

    Args:
        run: A run with evaluations.
        goal: What is asked for; the search split alone judges, see ``search.picks``.
        directory: New or empty.

    Returns:
        The pick's hash, what it loses in points and at most by the bound that it was picked by,
        its energy, and what :func:`write_network` returns.

    Raises:
        InputError: nothing reaches the goal, or the directory cannot be used.
    """
    spec, rows = run.spec(), run.ledger.read()
    reference = baseline(rows, DENSE_FP32, "search")
    candidates = Candidates.of(rows, spec.goals)
    picked = None if candidates is None else candidates.pick(goal)
    if reference is None or picked is None:
        allowed = "no configuration of the run holds it for sure; allow more"
        raise InputError(goal.flag, goal.asked[1], allowed)
    config = CompressionConfig.from_json(json.loads(picked["config"]))
    directory_here = local_database(run.database(spec))
    evaluator = prepare_evaluator(spec.task_spec().load(), directory_here)
    return {
        "config_hash": config.hash,
        "search_accuracy_drop": float(100 * (reference["accuracy"] - picked["accuracy"])),
        "search_drop_bound": float(picked["drop_bound"]),
        "test_accuracy_drop": _test_drop(rows, config.hash),
        "search_images": int(reference["images"]),
        "energy_pj": float(picked["energy_pj"]),
        **write_network(evaluator.compressor, config, Path(directory)),
    }


def _test_drop(rows: pd.DataFrame, config_hash: str) -> float | None:
    """Points that a configuration loses on the test split; None where it was not run there."""
    dense, tested = baseline(rows, DENSE_FP32, "test"), distinct(rows, "test")
    found = tested[(tested["config_hash"] == config_hash) & tested["accuracy"].notna()]
    if dense is None or found.empty:
        return None
    return float(accuracy_drop(found, dense)[0])


def write_network(
    compressor: Compressor, config: CompressionConfig, directory: Path
) -> dict[str, Any]:
    """Write ``config.json``, ``weights.safetensors``, ``network.py``, ``layers.json`` and
    ``maps.json``.

    Args:
        compressor: Compresses the network that the configuration belongs to.
        config: The configuration.
        directory: Made if it does not exist; must be empty.

    Returns:
        The files' paths, and the bytes of the weights file.

    Raises:
        InputError: the directory holds something, or cannot be written.
    """
    compressed = compressor.compress(config)
    module = remove_channels(compressor.network, compressed)
    forward = _flat_code(module)
    tensors = _stored_tensors(module, compressed)
    shape = compressor.network.graph_module.graph.find_nodes(op="placeholder")[0].meta["shape"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise InputError("--output", str(directory), "use a new or an empty directory")
        config.save(directory / "config.json")
        # Not by save_file, whose files only their owner may read.
        (directory / "weights.safetensors").write_bytes(save(tensors))
        code = _TEMPLATE.format(forward=forward, shape=("batch", *shape[1:]))
        (directory / "network.py").write_text(code)
        layers = _layer_list(compressor, compressed)
        (directory / "layers.json").write_text(json.dumps(layers, indent=2) + "\n")
        maps = _map_list(compressor, compressed)
        (directory / "maps.json").write_text(json.dumps(maps, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise InputError("--output", str(directory), f"use a writable place ({error})") from None
    names = ("config.json", "weights.safetensors", "network.py", "layers.json", "maps.json")
    return {
        "files": [str(directory / name) for name in names],
        "weights_bytes": (directory / "weights.safetensors").stat().st_size,
    }


def _flat_code(module: fx.GraphModule) -> str:
    """Python source of ``forward``; constants get names without dots."""
    for node in module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if "." in name:
            value: Any = module
            for part in name.split("."):
                value = getattr(value, part)
            flat = name.replace(".", "_") + "_"
            if not hasattr(module, flat):
                module.register_buffer(flat, value.detach())
            node.target = flat
    module.recompile()
    return "\n".join(f"    {line}" if line else "" for line in module.code.strip().splitlines())


def _stored_tensors(module: fx.GraphModule, compressed: CompressedNetwork) -> dict[str, Tensor]:
    """What the graph reads; weights of integer layers as int8 and scales."""
    used = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    tensors = {name: getattr(module, name).detach().contiguous() for name in sorted(used)}
    for index, layer in enumerate(compressed.layers):
        name = f"weight_{index}"
        scale = layer.scale_of(layer.kept_in, layer.kept_out)
        if scale is None:
            if layer.decision.weight_bits == 16:
                tensors[name] = tensors[name].half()
            continue
        are_sums = sums_integers(layer)  # the graph reads integers, and their scales by themselves
        tensors[name] = integer_weights(tensors[name], torch.ones(1) if are_sums else scale)
        if scale.ndim == 2:
            scale, tensors[f"{name}.block"] = scale.unique_consecutive(dim=1, return_inverse=True)
        if not are_sums:
            tensors[f"{name}.scale"] = scale.contiguous()
    return tensors


def _scale_name(index: int, layer: CompressedLayer) -> str | None:
    """Where the scales of a layer's integer weights are stored; None where these are floats."""
    if layer.scale is None:
        return None
    return f"scale_{index}" if sums_integers(layer) else f"weight_{index}.scale"


def _grid(grid: ActivationRange) -> dict[str, Any]:
    """How activations are rounded, and by which powers of two channels are divided first, if so."""
    divided = grid.divided
    return {
        "bits": grid.bits,
        "scale": grid.scale,
        "exponents": None if divided is None else list(divided.exponents),
        "low": grid.low,
        "high": grid.high,
    }


def _map_list(compressor: Compressor, compressed: CompressedNetwork) -> list[dict[str, Any]]:
    """The maps that are rounded where they are written, not only where a layer reads them."""
    network = compressor.network
    grids = map_grids(network, compressed, compressed.removed_units)
    return [
        {"written_behind": network.names[stored.writer], "node": stored.node, **_grid(grid)}
        for stored, grid in zip(network.maps, grids, strict=True)
        if grid.bits != 32
    ]


def _of_input(layer: CompressedLayer) -> dict[str, Any]:
    grid = _grid(layer.input_range.of_channels(layer.kept_in))
    return {f"activation_{key}": value for key, value in grid.items()}


def _layer_list(compressor: Compressor, compressed: CompressedNetwork) -> list[dict[str, Any]]:
    return [
        {
            "name": traced.name,
            "weight": f"weight_{index}",
            "weight_scale": _scale_name(index, layer),
            "weight_bits": layer.decision.weight_bits,
            **_of_input(layer),
            "in_channels": int(layer.kept_in.sum()),
            "out_channels": int(layer.kept_out.sum()),
            "weight_density": layer.density,
        }
        for index, (traced, layer) in enumerate(
            zip(compressor.network.layers, compressed.layers, strict=True)
        )
    ]
