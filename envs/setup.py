"""From a task and an accelerator to everything that a search needs, computed once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from envs.compression import Compressor
from envs.config import LayerDecision
from envs.config import Repair
from envs.database import OptionDatabase
from envs.equalization import equalize
from envs.evaluator import Evaluator
from envs.evaluator import weights_hash
from envs.files import write_whole
from envs.layer_compression import COMPRESSION_VERSION
from envs.options import OptionTable
from envs.problem import CompressionProblem
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.reconstruction_settings import DEFAULT_RECONSTRUCTION
from envs.reconstruction_settings import Reconstruction
from envs.space import DEFAULT_METHODS
from envs.space import Method
from envs.space import SearchSpace
from envs.statistics import STATISTICS_VERSION
from envs.statistics import LayerStatistics
from envs.statistics import collect_statistics
from envs.statistics import load_statistics
from envs.statistics import save_statistics
from envs.tabulate import TABLE_VERSION
from envs.tabulate import Progress
from envs.tabulate import build_option_table
from envs.tasks import Split
from envs.tasks import Task
from envs.trace import TracedNetwork
from envs.trace import trace
from hwmodel import Accelerator
from hwmodel import InputError
from hwmodel.pricing import Level


@dataclass(frozen=True)
class Menu:
    """What may be decided, before the network is known.

    Attributes:
        methods: Ways to prune; the first is ``NO_PRUNING``.
        sparsities, weight_bits, activation_bits: Ascending.
        pinned: Fixed decisions by layer name; ``first`` and ``last`` stand for those layers.
        repair, quantizer, reconstruction: See ``CompressionConfig``.
    """

    methods: tuple[Method, ...] = DEFAULT_METHODS
    sparsities: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    activation_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    pinned: Mapping[str, LayerDecision] | None = None
    repair: Repair = "aligned"
    quantizer: Quantizer = DEFAULT_QUANTIZER
    reconstruction: Reconstruction = DEFAULT_RECONSTRUCTION

    def space(self, network: TracedNetwork) -> SearchSpace:
        """The search space of a network.

        Raises:
            InputError: a pinned layer does not exist, is named twice, or would remove channels.
        """
        names = network.names
        pinned = {}
        for key, decision in (self.pinned or {}).items():
            name = {"first": names[0], "last": names[-1]}.get(key, key)
            if name not in names:
                allowed = f"use first, last or one of {', '.join(names)}"
                raise InputError(f"space.pinned.{key}", key, allowed)
            if name in pinned:
                allowed = f"{name} is pinned already: give each layer one decision"
                raise InputError(f"space.pinned.{key}", key, allowed)
            if decision.granularity == "filter":
                allowed = "a pinned layer keeps its channels: use 'none' or 'element'"
                raise InputError(f"space.pinned.{key}.granularity", "filter", allowed)
            pinned[name] = decision
        groups = network.units.group
        bound = {group for name, group in zip(names, groups, strict=True) if name in pinned}
        return SearchSpace(
            layers=names,
            methods=self.methods,
            sparsities=self.sparsities,
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            channel_group=tuple(-1 if group in bound else group for group in groups),
            pinned=pinned,
            repair=self.repair,
            quantizer=self.quantizer,
            reconstruction=self.reconstruction,
        )


def trace_task(task: Task) -> TracedNetwork:
    """Trace a task's network on its own calibration inputs."""
    inputs, _ = next(iter(task.calibration))
    return trace(task.network, inputs, task.name)


def calibrate(
    network: TracedNetwork, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[LayerStatistics, ...]:
    """Statistics of every layer, those of its equalized input among them.

    Args:
        network: Traced network.
        batches: (inputs, targets) of the calibration split; the targets are not looked at.
    """
    return equalize(network, collect_statistics(network, batches))


def prepare_evaluator(task: Task, directory: Path | None = None, device: str = "cpu") -> Evaluator:
    """An evaluator with calibration statistics.

    Args:
        task: The task.
        directory: Folder of the option database, see :class:`envs.database.OptionDatabase`; the
            statistics are read from it or left there, and compressed layers are looked up in it.
            Nothing is kept if None.
        device: Where the network runs.
    """
    network = trace_task(task)
    images, statistics = _calibrated(task, network, task.calibration, directory)
    database = None if directory is None else OptionDatabase(directory)
    return Evaluator(task, Compressor(network, statistics, images, database), device)


def recalibrated(evaluator: Evaluator, seed: int, directory: Path | None = None) -> Evaluator:
    """An evaluator that compresses from another sample of calibration data.

    Network and data are those of ``evaluator``. Layers are compressed when they are asked for and
    not kept: for the few configurations that are measured so, a database of them is not worth it.

    Args:
        evaluator: Of a task that has further samples.
        seed: Of the sample, 1 or more.
        directory: The sample's statistics are read from this folder or left there.

    Raises:
        InputError: the task has no such sample, or its statistics cannot be written.
    """
    task, network = evaluator.task, evaluator.compressor.network
    batches = task.other_calibration(seed)
    images, statistics = _calibrated(task, network, batches, directory)
    return evaluator.with_compressor(Compressor(network, statistics, images))


def _calibrated(
    task: Task, network: TracedNetwork, batches: Split, directory: Path | None
) -> tuple[list[Tensor], tuple[LayerStatistics, ...]]:
    """Images of a sample and their statistics, which are kept in ``directory`` if there is one."""
    images = [inputs for inputs, _ in batches]
    if directory is None:
        return images, calibrate(network, batches)
    path = directory / f"statistics-{_calibration_hash(task, images)}.safetensors"
    if path.exists():
        return images, load_statistics(path, network)
    statistics = calibrate(network, batches)
    write_whole(path, lambda partial: save_statistics(partial, statistics), "database")
    return images, statistics


def prepare_problem(
    evaluator: Evaluator,
    accelerator: Accelerator,
    menu: Menu,
    *,
    level: Level = "mid",
    progress: Progress | None = None,
) -> CompressionProblem:
    """The problem that learners see; its option table is kept in the evaluator's database."""
    compressor = evaluator.compressor
    space = menu.space(compressor.network)
    path = None
    if compressor.database is not None:
        path = compressor.database.directory / f"options-{_table_hash(compressor, space)}.npz"
    if path is not None and path.exists():
        table = _load_table(path)
    else:
        table = build_option_table(evaluator, space, progress)
        if path is not None:
            write_whole(path, lambda partial: _save_table(partial, table), "database")
    return CompressionProblem(compressor.network.workload, accelerator, space, table, level)


def _calibration_hash(task: Task, images: list[Tensor]) -> str:
    """Hash of what statistics are made from."""
    made_from = f"{COMPRESSION_VERSION} {STATISTICS_VERSION} {weights_hash(task.network)}"
    digest = hashlib.sha256(made_from.encode())
    for batch in images:
        digest.update(batch.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _table_hash(compressor: Compressor, space: SearchSpace) -> str:
    """Hash of what an option table is made from."""
    digest = hashlib.sha256(f"{TABLE_VERSION} {space!r}".encode())
    if space.quantizer != DEFAULT_QUANTIZER:
        digest.update(repr(space.quantizer.to_json()).encode())
    for index in range(len(space.layers)):
        source = compressor.source(index, space.repair, space.quantizer, space.reconstruction)
        digest.update(source.content.encode())
    return digest.hexdigest()[:32]


def _save_table(path: Path, table: OptionTable) -> None:
    with path.open("wb") as file:
        np.savez(file, **asdict(table))


def _load_table(path: Path) -> OptionTable:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return OptionTable(**{name: arrays[name] for name in arrays.files})
    except Exception as error:  # numpy and zipfile raise many kinds
        raise InputError("options", str(path), f"use an undamaged file ({error})") from None
