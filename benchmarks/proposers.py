"""Compares algorithms at equal numbers of true evaluations, in this process and without Ray.

    python benchmarks/proposers.py --task cifar10-resnet20 --images 2000 --evaluations 60 \
        --algorithms dp dp+local ppo --seeds 0 1 --database runs/resnet20/database

Every algorithm knows the dense network at 8, 6, 5 and 4 bits, then proposes in twelve batches
what is measured on the first images of the search split. The hypervolume is the share of the
box (energy ratio to dense INT8 <= 1, loss <= 10 points) that is dominated; ratios are the best
measured at <= 0.5, 1 and 2 points, without the bound that a search's picks need.

At the end the front is measured on the whole search split, which decides what is best at 0.5, 1 and
2 points, and that on the test split.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from envs.config import CompressionConfig
from envs.config import uniform
from envs.episode import start_choice
from envs.evaluator import Evaluator
from envs.problem import CompressionProblem
from envs.setup import Menu
from envs.setup import prepare_evaluator
from envs.setup import prepare_problem
from envs.space import ACTIVATION_BITS
from envs.space import WEIGHT_BITS
from envs.space import SearchSpace
from envs.tasks import Task
from envs.tasks import TaskSpec
from hwmodel import load_accelerator
from search.front import hypervolume
from search.front import pareto_front
from search.measurements import Reference
from search.proposers import make_proposer
from search.storage import Storage
from search.trial import round_size

TARGETS = (0.5, 1.0, 2.0)
BASELINE_BITS = (8, 6, 5, 4)
FINALIST_DROP = 4.0
"""Points lost on the first images up to which the front is measured on all."""


def first_images(task: Task, images: int) -> Task:
    """The task with a search split of so many images, whole batches of it."""
    batches, count = [], 0
    for inputs, targets in task.search:
        if count >= images:
            break
        batches.append((inputs[: images - count], targets[: images - count]))
        count += len(batches[-1][1])
    return replace(task, search=batches)


def run(
    algorithm: str,
    seed: int,
    problem: CompressionProblem,
    evaluator: Evaluator,
    judge: Evaluator,
    evaluations: int,
) -> None:
    """One search, one line after every batch, and one for each pick of ``judge``."""
    space, start = problem.space, start_choice(problem.space)
    baselines = np.repeat(start[None], len(BASELINE_BITS), axis=0)
    for choice, bits in zip(baselines, BASELINE_BITS, strict=True):
        choice[:, WEIGHT_BITS] = space.weight_bits.index(bits)
        choice[:, ACTIVATION_BITS] = space.activation_bits.index(bits)
    baselines = space.canonical(baselines)
    int8_pj = float(problem.cost(start[None]).energy_pj[0])
    dense = evaluator.evaluate(uniform(space.layers, 32), "search")
    reference = Reference(dense.accuracy, evaluator.task.chance, int8_pj, TARGETS, dense.images)

    def measure(choices: NDArray[np.int64]) -> NDArray[np.float64]:
        configs = [space.config(choice) for choice in choices]
        return np.array([evaluator.evaluate(config, "search").accuracy for config in configs])

    with tempfile.TemporaryDirectory() as policies:
        proposer = make_proposer(algorithm, problem, reference, seed, Storage.at(policies))
        choices, accuracy = baselines, measure(baselines)
        proposer.learn(choices, accuracy)
        while (spent := len(choices) - len(baselines)) < evaluations:
            picked = proposer.propose(min(round_size(evaluations), evaluations - spent))
            if not len(picked):
                break
            reached = measure(picked)
            proposer.learn(picked, reached)
            choices, accuracy = np.append(choices, picked, 0), np.append(accuracy, reached)
            ratio = problem.cost(choices).energy_pj / int8_pj
            drop = 100 * (dense.accuracy - accuracy)
            best = " ".join(f"{ratio[drop <= target].min():.3f}" for target in TARGETS)
            count = len(choices) - len(baselines)
            volume = hypervolume(ratio, drop)
            print(f"{algorithm:12} {seed:4} {count:6} {volume:8.4f}   {best}", flush=True)
    report(f"{algorithm:12} {seed:4}", space, choices, ratio, drop, judge)


def report(
    name: str,
    space: SearchSpace,
    choices: NDArray[np.int64],
    ratio: NDArray[np.float64],
    drop: NDArray[np.float64],
    judge: Evaluator,
) -> None:
    """What is best at each target on the whole search split, and its loss on the test split."""
    front = pareto_front(ratio, drop)
    front = front[drop[front] < FINALIST_DROP]
    configs = [space.config(choice) for choice in choices[front]]
    lost = {split: accuracies_lost(judge, split, space.layers) for split in ("search", "test")}
    losses = [lost["search"](config) for config in configs]
    for target in TARGETS:
        index = next((index for index, loss in enumerate(losses) if loss <= target), None)
        if index is not None:
            on_test = lost["test"](configs[index])
            print(
                f"{name} at {target:3} points: ratio {ratio[front[index]]:.3f}, lost "
                f"{losses[index]:.2f} on the search split, {on_test:.2f} on the test split",
                flush=True,
            )


def accuracies_lost(
    evaluator: Evaluator, split: str, layers: Sequence[str]
) -> Callable[[CompressionConfig], float]:
    """Tells points of accuracy that a configuration loses on all of a split."""
    dense = evaluator.evaluate(uniform(layers, 32), split).accuracy
    return lambda config: 100 * (dense - evaluator.evaluate(config, split).accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--accelerator", default="eyeriss-like")
    parser.add_argument("--algorithms", nargs="+", default=["dp", "dp+local", "ppo", "random"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--database", type=Path, help="folder of an option database")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = TaskSpec(args.task, data=args.data, weights=args.weights).load()
    evaluator = prepare_evaluator(first_images(task, args.images), args.database)
    judge = Evaluator(task, evaluator.compressor)
    accelerator = load_accelerator(args.accelerator)
    problem = prepare_problem(evaluator, accelerator, Menu())
    print("algorithm    seed  evals   volume   least ratio at 0.5, 1, 2 points")
    for algorithm in args.algorithms:
        for seed in args.seeds:
            run(algorithm, seed, problem, evaluator, judge, args.evaluations)


if __name__ == "__main__":
    main()
