"""How well accuracy is predicted before it is measured, along the front.

    python benchmarks/predictor.py --task cifar10-resnet20 --configurations 150 --fitted 100

Configurations are allocations along the predicted front, a few layers of each moved by a step or
two, so that they lie where a search looks. All are measured on the search split. Prints the rank
correlation with the points lost of

- the change of the outputs that the option table adds up from single layers, known before anything
  is measured;
- the change of the outputs that the configuration has on calibration images, of which the sum is an
  estimate, and the Kullback-Leibler divergence of its predictions, which could be summed instead;
- the predictor fitted to ``--fitted`` configurations, for the others, on average over random
  choices of them;

and the share of those others within the fitted predictor's 90 % intervals, noise of the measurement
included: all of it, and that part alone which configurations do not share. The predictor is fitted
and judged on the same images, so the luck of these that all configurations share is in both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from envs.config import CompressionConfig
from envs.config import uniform
from envs.episode import start_choice
from envs.evaluator import Evaluator
from envs.output_change import output_change
from envs.predictor import AccuracyPredictor
from envs.predictor import noise_points
from envs.problem import CompressionProblem
from envs.setup import Menu
from envs.setup import prepare_evaluator
from envs.setup import prepare_problem
from envs.space import ACTIVATION_BITS
from envs.space import METHOD
from envs.space import SPARSITY
from envs.tasks import TaskSpec
from hwmodel import load_accelerator
from search.estimates import common_share
from search.measurements import Measurements
from search.measurements import Reference
from search.predicted_front import FRONT_PRICES
from search.predicted_front import Front

RATIOS = (0.38, 0.62)
"""Energies over that of dense INT8 between which configurations lie."""
IMAGES = 1024
SPLITS = 30
"""Of the configurations into those that the predictor knows and those that it foretells."""
NINETY_PERCENT = 1.645
"""Standard deviations on either side of the middle."""


def near_front(problem: CompressionProblem, reference: Reference, count: int) -> NDArray[np.int64]:
    """Configurations near the predicted front, (count, layers, 4)."""
    front = Front(problem, reference).allocate(Measurements(problem, reference), FRONT_PRICES)
    ratio = problem.cost(front).energy_pj / reference.cost
    front = front[(ratio > RATIOS[0]) & (ratio < RATIOS[1])]
    rng = np.random.default_rng(0)
    choices = front[rng.integers(len(front), size=count)]
    for choice in choices:
        for layer in rng.choice(len(choice), len(choice) // 4, replace=False):
            first = SPARSITY if choice[layer, METHOD] else SPARSITY + 1
            column = rng.integers(first, ACTIVATION_BITS + 1)
            moved = choice[layer, column] + rng.choice([-2, -1, 1, 2])
            choice[layer, column] = np.clip(moved, 0, problem.space.sizes[column] - 1)
    return problem.space.canonical(choices)


def moved(evaluator: Evaluator, configs: list[CompressionConfig]) -> NDArray[np.float64]:
    """Change of the outputs, and divergence, on calibration images, (configs, 2)."""

    def outputs(config: CompressionConfig) -> torch.Tensor:
        return evaluator.calibration_outputs(evaluator.compressor.compress(config), IMAGES)

    dense = outputs(uniform(evaluator.compressor.network.names, 32))
    rows = []
    for config in configs:
        compressed = outputs(config)
        before, after = dense.log_softmax(1), compressed.log_softmax(1)
        divergence = (before.exp() * (before - after)).sum(1).mean()
        rows.append((output_change(compressed, dense), float(divergence)))
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--accelerator", default="eyeriss-like")
    parser.add_argument("--configurations", type=int, default=150)
    parser.add_argument("--fitted", type=int, default=100)
    parser.add_argument("--database", type=Path, help="folder of an option database")
    args = parser.parse_args()
    torch.set_num_threads(1)
    evaluator = prepare_evaluator(
        TaskSpec(args.task, args.data, args.weights).load(), args.database
    )
    problem = prepare_problem(evaluator, load_accelerator(args.accelerator), Menu())
    space, chance = problem.space, evaluator.task.chance
    reference = evaluator.evaluate(uniform(space.layers, 32), "search")
    dense, images = reference.accuracy, reference.images
    int8_pj = float(problem.cost(start_choice(space)[None]).energy_pj[0])
    front_reference = Reference(dense, chance, int8_pj, (1.0,), images)
    choices = near_front(problem, front_reference, args.configurations)
    configs = [space.config(choice) for choice in choices]
    results = [evaluator.evaluate(config, "search") for config in configs]
    accuracy = np.array([result.accuracy for result in results])
    lost = 100 * (dense - accuracy)
    print(f"{len(configs)} configurations lose {np.quantile(lost, (0, 0.25, 0.5, 0.75, 1))} points")

    predictor = AccuracyPredictor(problem.table, dense, chance, images)
    measured = moved(evaluator, configs)
    for name, guess in (
        ("output change, added up from single layers", predictor.accuracy_drop(choices)),
        ("output change, measured on calibration images", measured[:, 0]),
        ("divergence, measured on calibration images", measured[:, 1]),
    ):
        print(f"{name:48} rank correlation {spearmanr(guess, lost).statistic:.3f}")
    blocks = np.array([result.block_accuracies for result in results])
    block_losses = 100 * (np.array(reference.block_accuracies) - blocks)
    rng, splits = np.random.default_rng(0), []
    for _ in range(SPLITS):
        order = rng.permutation(len(choices))
        known, rest = order[: args.fitted], order[args.fitted :]
        predictor.fit(choices[known], accuracy[known])
        splits.append(judged(predictor, choices, block_losses, lost, known, rest, images))
    correlation, inside, inside_own = np.mean(splits, axis=0)
    others = len(choices) - args.fitted
    print(f"fitted to {args.fitted}, the other {others}: rank correlation {correlation:.3f}")
    print(f"within the 90 % intervals, with all noise: {100 * inside:.1f} %")
    print(f"within the 90 % intervals, with noise of their own: {100 * inside_own:.1f} %")


def judged(
    predictor: AccuracyPredictor,
    choices: NDArray[np.int64],
    block_losses: NDArray[np.float64],
    lost: NDArray[np.float64],
    known: NDArray[np.int64],
    rest: NDArray[np.int64],
    images: int,
) -> tuple[float, float, float]:
    """Rank correlation of ``rest``, and the shares of it within the 90 % intervals.

    Args:
        predictor: Fitted to ``known``.
        choices: All, (choices, layers, 4).
        block_losses: Points lost on every block of images, (choices, blocks).
        lost: Points lost, (choices,).
        known, rest: Indices of choices.
        images: That losses were measured on.
    """
    middle = predictor.accuracy_drop(choices[rest])
    low, high = (
        predictor.optimistic_drop(choices[rest], sign * NINETY_PERCENT) for sign in (1, -1)
    )
    losses = block_losses[known]
    growth = 1 + np.maximum(predictor.accuracy_drop(choices), 0.0)
    luck = np.mean(losses.var(axis=1, ddof=1) / losses.shape[1] / growth[known])
    own = np.sqrt((1 - common_share(losses)) * luck * growth[rest])
    inside = []
    for noise in (noise_points(images), own):
        spread = NINETY_PERCENT * noise
        below, above = np.hypot(middle - low, spread), np.hypot(high - middle, spread)
        inside.append(
            float(np.mean((middle - below <= lost[rest]) & (lost[rest] <= middle + above)))
        )
    return float(spearmanr(middle, lost[rest]).statistic), inside[0], inside[1]


if __name__ == "__main__":
    main()
