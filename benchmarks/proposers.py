"""Compares algorithms at equal numbers of true evaluations, in this process and without Ray.

    python benchmarks/proposers.py --task cifar10-resnet20 --images 2000 --evaluations 60 \
        --algorithms dp dp+local dp+fitted ppo --seeds 0 1 --database runs/resnet20/database

Every algorithm knows the dense network at 8, 6, 5 and 4 bits, then proposes in twelve batches
what is measured on the first images of the search split. The hypervolume is the share of the
box (energy ratio to dense INT8 <= 1, loss <= 10 points) that is dominated; ratios are the best
measured at <= 0.5, 1 and 2 points, without the bound that a search's picks need; then how many
points the front has.

With ``--init-from`` policies start from those of a run's seed 0, and where that run is of the same
network its accuracies, by the same images, are known from the beginning.

Besides a search's algorithms there are "zero-shot", what the policies of ``--init-from`` do on this
problem before anything is learnt of it, and "ppo-separate": five searches that share the
evaluations, each with policies for one target alone (0.5, 1, 2, 4 and 8 points).

At the end the finalists are measured on the whole search split, which decides what is best at 0.5,
1 and 2 points, and that on the test split. They are the front by what was measured, and the front
by what a predictor that is fitted to all of it estimates, since on few images the first is one of
lucky configurations.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from envs.config import CompressionConfig
from envs.config import uniform
from envs.episode import TARGETS as EPISODE_TARGETS
from envs.episode import start_choice
from envs.evaluator import Evaluator
from envs.evaluator import weights_hash
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
from search.checkpoints import CHECKPOINT
from search.checkpoints import INITIAL_POLICIES
from search.earlier import Accuracies
from search.earlier import held_by
from search.front import distinct
from search.front import hypervolume
from search.front import pareto_front
from search.learners import learner
from search.ledger import Evaluation
from search.ledger import evaluations
from search.measurements import Measurements
from search.measurements import Reference
from search.policy_proposer import PolicyProposer
from search.proposers import Proposer
from search.proposers import make_proposer
from search.run_directory import RunDirectory
from search.storage import Storage
from search.trial import round_size

TARGETS = (0.5, 1.0, 2.0)
BASELINE_BITS = (8, 6, 5, 4)
ZERO_SHOT = "zero-shot"
SEPARATE = {"ppo-separate": "ppo"}
SEPARATE_TARGETS = (0.5, 1.0, 2.0, 4.0, 8.0)
FINALIST_DROP = 4.0
"""Points lost, as measured or estimated, up to which finalists are measured on all images."""


def first_images(task: Task, images: int) -> Task:
    """The task with a search split of so many images, whole batches of it."""
    batches, count = [], 0
    for inputs, targets in task.search:
        if count >= images:
            break
        batches.append((inputs[: images - count], targets[: images - count]))
        count += len(batches[-1][1])
    return replace(task, search=batches)


class Race:
    """One problem on which algorithms compete.

    Args:
        problem: What is decided and how it is priced.
        evaluator: Measures what is proposed.
        judge: Knows all of the search split and the test split.
        init_from: Directory of a run to start from, or None.
        learn_from: What policies learn from, see ``search.spec.Accuracy``.
    """

    def __init__(
        self,
        problem: CompressionProblem,
        evaluator: Evaluator,
        judge: Evaluator,
        init_from: str | None,
        learn_from: str,
    ) -> None:
        self.learn_from = learn_from
        space, start = problem.space, start_choice(problem.space)
        baselines = np.repeat(start[None], len(BASELINE_BITS), axis=0)
        for choice, bits in zip(baselines, BASELINE_BITS, strict=True):
            choice[:, WEIGHT_BITS] = space.weight_bits.index(bits)
            choice[:, ACTIVATION_BITS] = space.activation_bits.index(bits)
        dense = evaluator.evaluate(uniform(space.layers, 32), "search")
        self.problem, self.evaluator, self.judge = problem, evaluator, judge
        self.initial, self.earlier = None, None
        if init_from is not None:
            run = RunDirectory.open(init_from)
            policies = run.storage.child("policies").child("seed-0")
            self.initial = policies.read(CHECKPOINT)
            self.earlier = known_accuracies(run, evaluator, space, dense.images)
        self.int8_pj = float(problem.cost(start[None]).energy_pj[0])
        self.reference = Reference(
            dense.accuracy, evaluator.task.chance, self.int8_pj, TARGETS, dense.images
        )
        self.baselines = space.canonical(baselines)
        self.baseline_accuracy = self.measure(self.baselines)

    def measure(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Accuracies of choices on the first images of the search split, (choices,)."""
        configs = [self.problem.space.config(choice) for choice in choices]
        return np.array([self.evaluator.evaluate(config, "search").accuracy for config in configs])

    def run(self, algorithm: str, seed: int, evaluations: int) -> None:
        """One search, one line after every batch, and one for each pick of the judge."""
        name = f"{algorithm:14} {seed:4}"
        choices, accuracy = self.baselines, self.baseline_accuracy
        if algorithm == ZERO_SHOT:
            choices, accuracy = self._extend(name, choices, accuracy, self._zero_shot(evaluations))
        elif algorithm in SEPARATE:
            for target in SEPARATE_TARGETS:
                make = partial(_specialist, SEPARATE[algorithm], target)
                share = evaluations // len(SEPARATE_TARGETS)
                choices, accuracy = self._search(name, make, seed, share, choices, accuracy)
        else:
            make = partial(make_proposer, algorithm, accuracy=self.learn_from, earlier=self.earlier)
            choices, accuracy = self._search(name, make, seed, evaluations, choices, accuracy)
        ratio, drop = self._points(choices, accuracy)
        best = self._finalists(choices, accuracy, ratio, drop)
        report(name, self.problem.space, choices[best], ratio[best], self.judge)

    def _finalists(
        self,
        choices: NDArray[np.int64],
        accuracy: NDArray[np.float64],
        ratio: NDArray[np.float64],
        measured: NDArray[np.float64],
    ) -> list[int]:
        """Places of what is best as measured, or as estimated from that, cheapest first."""
        known = Measurements(self.problem, self.reference)
        known.add(choices, accuracy)
        known.fit()
        found = set[int]()
        for drop in (measured, known.estimated_drop):
            front = pareto_front(ratio, drop)
            found |= set(front[drop[front] < FINALIST_DROP].tolist())
        return sorted(found, key=lambda index: ratio[index])

    def _search(
        self,
        name: str,
        make: Callable[..., Proposer],
        seed: int,
        evaluations: int,
        choices: NDArray[np.int64],
        accuracy: NDArray[np.float64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What was measured before, which the proposer is not told, and what a proposer adds."""
        with tempfile.TemporaryDirectory() as folder:
            policies = Storage.at(folder)
            if self.initial is not None:
                initial = policies.child(INITIAL_POLICIES)
                initial.make()
                initial.write(CHECKPOINT, self.initial)
            proposer = make(self.problem, self.reference, seed, policies)
            proposer.learn(self.baselines, self.baseline_accuracy)
            spent = 0
            while spent < evaluations:
                picked = proposer.propose(min(round_size(evaluations), evaluations - spent))
                if not len(picked):
                    break
                spent += len(picked)
                choices, accuracy = self._extend(name, choices, accuracy, picked)
                proposer.learn(picked, accuracy[-len(picked) :])
        return choices, accuracy

    def _extend(
        self,
        name: str,
        choices: NDArray[np.int64],
        accuracy: NDArray[np.float64],
        picked: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Measure what was picked, and print what is reached with it."""
        choices = np.append(choices, picked, 0)
        accuracy = np.append(accuracy, self.measure(picked))
        ratio, drop = self._points(choices, accuracy)
        best = " ".join(f"{ratio[drop <= target].min():.3f}" for target in TARGETS)
        count, front = len(choices) - len(self.baselines), len(pareto_front(ratio, drop))
        volume = hypervolume(ratio, drop)
        print(f"{name} {count:6} {volume:8.4f}   {best} {front:6}", flush=True)
        return choices, accuracy

    def _points(
        self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energy ratios to dense INT8 and points lost, (choices,) each."""
        ratio = self.problem.cost(choices).energy_pj / self.int8_pj
        return ratio, 100 * (self.reference.accuracy - accuracy)

    def _zero_shot(self, count: int) -> NDArray[np.int64]:
        """What the initial policies do at once at so many targets, nothing measured or learnt."""
        if self.initial is None:
            raise SystemExit(f"{ZERO_SHOT} needs --init-from")
        make, _ = learner("ppo")
        agents = make(self.problem, Measurements(self.problem, self.reference).predictor, 0)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CHECKPOINT).write_bytes(self.initial)
            agents.start_from(Path(folder))
        choices = agents.propose(np.geomspace(*EPISODE_TARGETS, count), None)
        agents.stop()
        return np.unique(choices, axis=0)


def known_accuracies(
    run: RunDirectory, evaluator: Evaluator, space: SearchSpace, images: int
) -> Accuracies | None:
    """What a run of the same network measured, by the first images of the split alone."""
    rows = distinct(run.ledger.read(), "search")
    rows = rows[rows["accuracy"].notna()]
    if set(rows["weights_hash"]) != {weights_hash(evaluator.task.network)}:
        return None

    def accuracy(row: Evaluation) -> float:
        blocks = row.block_accuracies
        return float(np.mean(blocks[: len(blocks) * images // row.images]))

    return held_by(space, rows["config"], map(accuracy, evaluations(rows)))


class Specialist(PolicyProposer):
    """A search for one target alone: its policies are asked for nothing else, nor does it
    evaluate what is expected to lose less or more than its band of targets.
    """

    def propose(self, count: int) -> NDArray[np.int64]:
        return self._within(super().propose(count))

    def _candidates(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return self._within(super()._candidates(rng))

    def _within(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        drops, (low, high) = self._known.predictor.accuracy_drop(choices), self._targets
        return choices[(drops >= low) & (drops <= high)]


def _specialist(
    algorithm: str,
    target: float,
    problem: CompressionProblem,
    reference: Reference,
    seed: int,
    policies: Storage,
) -> Proposer:
    """One of ``SEPARATE_TARGETS``, whose bands lie side by side."""
    band = (target / math.sqrt(2), target * math.sqrt(2))
    make = partial(learner(algorithm)[0], targets=band)
    aimed = replace(reference, aims=(target,))
    return Specialist(problem, aimed, seed, make, policies, targets=band)


def report(
    name: str,
    space: SearchSpace,
    choices: NDArray[np.int64],
    ratio: NDArray[np.float64],
    judge: Evaluator,
) -> None:
    """What is best at each target on the whole search split, and its loss on the test split.

    Args:
        name: What the lines begin with.
        space: Of the choices.
        choices: Finalists, cheapest first, (finalists, layers, 4).
        ratio: What they cost over dense INT8, (finalists,).
        judge: Knows all images.
    """
    configs = [space.config(choice) for choice in choices]
    lost = {split: accuracies_lost(judge, split, space.layers) for split in ("search", "test")}
    losses = [lost["search"](config) for config in configs]
    for target in TARGETS:
        index = next((index for index, loss in enumerate(losses) if loss <= target), None)
        if index is not None:
            on_test = lost["test"](configs[index])
            print(
                f"{name} at {target:3} points: ratio {ratio[index]:.3f}, lost "
                f"{losses[index]:.2f} on the search split, {on_test:.2f} on the test split",
                flush=True,
            )


def accuracies_lost(
    evaluator: Evaluator, split: str, layers: Sequence[str]
) -> Callable[[CompressionConfig], float]:
    """Tells points of accuracy that a configuration loses on all of a split."""
    dense = evaluator.evaluate(uniform(list(layers), 32), split).accuracy
    return lambda config: 100 * (dense - evaluator.evaluate(config, split).accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="cifar10-resnet20")
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--accelerator", default="eyeriss-like")
    parser.add_argument("--algorithms", nargs="+", default=["dp+local", "dp+fitted", "ppo"])
    parser.add_argument("--accuracy", default="predicted", help="what policies learn from")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--database", type=Path, help="folder of an option database")
    parser.add_argument("--init-from", help="run whose policies (of seed 0) to start from")
    args = parser.parse_args()
    if args.accuracy == "measured" and {ZERO_SHOT, *SEPARATE} & set(args.algorithms):
        parser.error(f"{ZERO_SHOT} and {', '.join(SEPARATE)} know predicted accuracy alone")
    torch.set_num_threads(1)
    task = TaskSpec(args.task, data=args.data, weights=args.weights).load()
    evaluator = prepare_evaluator(first_images(task, args.images), args.database)
    judge = Evaluator(task, evaluator.compressor)
    accelerator = load_accelerator(args.accelerator)
    problem = prepare_problem(evaluator, accelerator, Menu())
    race = Race(problem, evaluator, judge, args.init_from, args.accuracy)
    print("algorithm      seed  evals   volume   least ratio at 0.5, 1, 2 points, front")
    for algorithm in args.algorithms:
        for seed in args.seeds:
            race.run(algorithm, seed, args.evaluations)


if __name__ == "__main__":
    main()
