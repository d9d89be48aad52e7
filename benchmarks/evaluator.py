"""Speed of the evaluator against the plain way, and what early stopping saves.

Run: ``python benchmarks/evaluator.py --data ROOT --weights FILE``, with torchvision's CIFAR-10 and
a checkpoint of ResNet-20. On one core; ``--device cuda`` runs both ways on a GPU.

The plain way is what one writes first: copy the network, set the compressed weights, round the
inputs of all layers in forward pre-hooks, run the split in single precision. Both ways get the
same compressed weights, whose making is timed apart. Speeds are ratios of times that alternate
config by config, so that what else runs on the machine meets both alike.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile

from envs import integer
from envs.compression import CompressedNetwork
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import uniform
from envs.early_stopping import AccuracyLimit
from envs.evaluator import Evaluator
from envs.quantization import ActivationRange
from envs.quantization import quantize_activation
from envs.quantization import round_map
from envs.setup import Menu
from envs.setup import prepare_evaluator
from envs.tasks import cifar

T = TypeVar("T")

DEPTH = 20
SPLIT = "search"
LIMIT = AccuracyLimit(drop_points=1.0)


def timed(function: Callable[[], T]) -> tuple[T, tuple[float, float]]:
    """Result, and the wall and CPU time that it took, in seconds."""
    start, cpu_start = time.perf_counter(), time.process_time()
    value = function()
    return value, (time.perf_counter() - start, time.process_time() - cpu_start)


def evaluate_plainly(
    evaluator: Evaluator, compressed: CompressedNetwork, batches: list[tuple[Tensor, Tensor]]
) -> float:
    """Accuracy: deep copy, masked weights, hooks that round, every image, single precision."""
    network = copy.deepcopy(evaluator.task.network).to(evaluator.device)
    modules = dict(network.named_modules())
    for traced, layer in zip(evaluator.compressor.network.layers, compressed.layers, strict=True):
        module = modules[traced.name]
        # The folded batch norm is taken out of the weights again: it runs as a layer of its own.
        fold = torch.where(traced.fold_scale == 0, 1.0, traced.fold_scale)
        weight = layer.weight / fold.view(-1, *[1] * (layer.weight.ndim - 1))
        module.weight.data.copy_(weight)
        shift = ((layer.bias - traced.bias) / fold).to(evaluator.device)
        bias = shift if module.bias is None else module.bias.data + shift
        module.bias = nn.Parameter(bias, requires_grad=False)
        module.register_forward_pre_hook(partial(round_input, layer.input_range))
    for stored, grid in zip(
        evaluator.compressor.network.maps, compressed.map_ranges, strict=True
    ):  # of these networks each is the input of a block, whose first layer reads it
        assert stored.reader is not None
        block = evaluator.compressor.network.names[stored.reader].rpartition(".")[0]
        modules[block].register_forward_pre_hook(partial(round_block_input, grid))
    correct = 0
    with torch.no_grad():
        for inputs, targets in batches:
            correct += int((network(inputs).argmax(1).cpu() == targets).sum())
    return correct / sum(len(targets) for _, targets in batches)


def round_input(grid: ActivationRange, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return quantize_activation(inputs[0], grid)


def round_block_input(grid: ActivationRange, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return round_map(inputs[0], grid)


def compare_speed(evaluator: Evaluator, configs: list[CompressionConfig]) -> None:
    batches = [
        (inputs.to(evaluator.device), targets) for inputs, targets in evaluator.task.split(SPLIT)
    ]
    compressor = evaluator.compressor
    evaluator.evaluate(configs[0], SPLIT)  # loads the data, prepares kernels
    times = []
    differences = []
    for config in configs:
        compressed, compression = timed(partial(compressor.compress, config))
        plain, plain_time = timed(partial(evaluate_plainly, evaluator, compressed, batches))
        result, time_ = timed(partial(evaluator.evaluate, config, SPLIT))
        times.append((plain_time, time_, compression))
        differences.append(100 * abs(result.accuracy - plain))
    mean = np.mean(times, axis=0)
    points = np.array(differences)
    print(f"{len(configs)} random configurations, {result.images} images, per configuration:")
    for name, (wall, cpu) in zip(("plain way", "evaluator", "compression"), mean, strict=True):
        print(f"{name:12}{wall:8.2f} s wall {cpu:8.2f} s CPU")
    wall, cpu = mean[0] / mean[1]
    print(f"{'ratio':12}{wall:8.1f}        {cpu:8.1f}        (compression is in neither)")
    print(
        f"accuracies differ by {points.mean():.3f} points on average, {points.max():.2f} at most,"
    )
    print(f"in {int((points > 0.1 + 1e-9).sum())} configurations by more than 0.1")


def show_profile(evaluator: Evaluator, config: CompressionConfig) -> None:
    activities = [ProfilerActivity.CPU]
    if evaluator.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        evaluator.evaluate(config, SPLIT)
    print("\nWhere the time of one evaluation goes")
    print(
        profiler.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40
        )
    )


def near_front(names: tuple[str, ...], rng: np.random.Generator) -> CompressionConfig:
    """A random configuration from harmless to hopeless: its strength is drawn first."""
    strength = rng.uniform(0, 0.6)
    layers = {}
    for name in names:
        sparsity = float(rng.uniform(0, strength))
        fewest = 8 - round(6 * strength)
        weight_bits, activation_bits = (int(b) for b in rng.integers(fewest, 9, size=2))
        layers[name] = LayerDecision("element", "l1", sparsity, weight_bits, activation_bits)
    return CompressionConfig(layers)


def compare_stopping(evaluator: Evaluator, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = evaluator.compressor.network.names
    dense = evaluator.evaluate(uniform(names, 32), SPLIT).accuracy
    rows = []
    for _ in range(count):
        config = near_front(names, rng)
        stopped = evaluator.evaluate(config, SPLIT, LIMIT)
        whole = evaluator.evaluate(config, SPLIT)
        drop = 100 * (dense - whole.accuracy)
        wrong = stopped.holds_limit != (drop <= LIMIT.drop_points + 1e-9)
        rows.append((drop, stopped.images, whole.images, wrong))
    drop, seen, images, wrong = np.array(rows).T
    print(f"\n{count} random configurations near the front, {LIMIT}")
    saved = images.sum() / seen.sum()
    print(f"images looked at: {seen.mean():.0f} of {images[0]:.0f}, {saved:.1f} times fewer")
    print(f"wrong verdicts: {int(wrong.sum())} ({100 * wrong.mean():.1f} %)")
    print(f"{'loss in points':>16} {'configurations':>16} {'images':>8} {'wrong':>6}")
    edges = (-100.0, 0.0, 0.5, 1.0, 2.0, 5.0, 20.0, 101.0)
    for low, high in pairwise(edges):
        chosen = (drop > low) & (drop <= high)
        if chosen.any():
            row = f"{chosen.sum():16d} {seen[chosen].mean():8.0f} {int(wrong[chosen].sum()):6d}"
            print(f"{low:7.1f} .. {high:5.1f} {row}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--weights", help="checkpoint of ResNet-20")
    parser.add_argument("--database", type=Path, help="folder of an option database")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--configs", type=int, default=64)
    parser.add_argument("--stopping", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = cifar.load(DEPTH, args.data, args.weights)
    evaluator = prepare_evaluator(task, args.database, args.device)
    space = Menu().space(evaluator.compressor.network)
    choices = space.sample(np.random.default_rng(args.seed), args.configs)
    configs = [space.config(choice) for choice in choices]
    print(f"device {evaluator.device}, integer arithmetic: {integer.is_available()}")
    if configs:
        compare_speed(evaluator, configs)
        show_profile(evaluator, configs[0])
    if args.stopping:
        compare_stopping(evaluator, args.stopping, args.seed)


if __name__ == "__main__":
    main()
