"""How fast policies learn a problem, with and without what another one taught, by option tables.

    python benchmarks/transfer.py --source cifar10-resnet20 eyeriss-like \
        --target cifar10-resnet20 nvdla-small --algorithm ppo --seeds 0 1 2 --database ~/options

Policies play the source for ``--source-episodes``. Then the target is played by those that start
from them ("warm"), by new ones ("cold"), and by new ones that imitate the allocations along the
predicted front first, as those of a search do ("shown"), against the predictor that a search has
before it measured anything; no configuration is truly evaluated. Printed for every number of
episodes played there: the seconds that learning took, imitation included, the mean score
(docs/environment.md) of the likeliest walks at 0.5, 1 and 2 points, and the hypervolume of as many
drawn walks, at targets from 0.1 to 10 points, as ``--walks`` says (share of the box energy ratio to
dense INT8 <= 1, loss <= 10 points); both as predicted. "random" are uniformly random
configurations, "front" is what is imitated.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from envs.episode import score
from envs.episode import start_choice
from envs.predictor import AccuracyPredictor
from envs.problem import CompressionProblem
from envs.setup import Menu
from envs.setup import prepare_evaluator
from envs.setup import prepare_problem
from envs.tasks import TaskSpec
from hwmodel import load_accelerator
from search.front import hypervolume
from search.learners import LEARNERS
from search.learners import learner
from search.measurements import Measurements
from search.measurements import Reference
from search.policy_proposer import FIRST_EPOCHS
from search.policy_proposer import TARGET_POINTS
from search.policy_settings import PolicySettings
from search.predicted_front import FRONT_PRICES
from search.predicted_front import Front

TARGETS = (0.5, 1.0, 2.0)
EPISODES = (0, 128, 384, 1024)
"""Played on the target before each line."""


class Judge:
    """What configurations of one problem are worth, as predicted from its option table."""

    def __init__(self, problem: CompressionProblem, chance: float) -> None:
        self.problem = problem
        self.predictor = AccuracyPredictor(problem.table, chance=chance)
        self._start_pj = float(self.energy_pj(start_choice(problem.space)[None])[0])

    def energy_pj(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.problem.cost(choices).energy_pj

    def score(self, choices: NDArray[np.int64], targets: NDArray[np.float64]) -> float:
        """Mean score of choices made for targets in points, (candidates,)."""
        drops = self.predictor.accuracy_drop(choices)
        return float(score(self.energy_pj(choices) / self._start_pj, drops, targets).mean())

    def front(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Allocations along the predicted front, and what they lose in points, up to 12."""
        reference = Reference(1.0, self.predictor.chance, self._start_pj, TARGETS)
        known = Measurements(self.problem, reference)
        found = Front(self.problem, reference).allocate(known, FRONT_PRICES)
        drops = self.predictor.accuracy_drop(found)
        asked = (drops >= TARGET_POINTS[0]) & (drops <= TARGET_POINTS[1])
        return found[asked], drops[asked]

    def hypervolume(self, choices: NDArray[np.int64]) -> float:
        drops = self.predictor.accuracy_drop(choices)
        return hypervolume(self.energy_pj(choices) / self._start_pj, drops)


def prepare(task: TaskSpec, accelerator: str, database: Path | None) -> Judge:
    """The problem of a task on an accelerator, with the default menu."""
    evaluator = prepare_evaluator(task.load(), database)
    problem = prepare_problem(evaluator, load_accelerator(accelerator), Menu())
    return Judge(problem, evaluator.task.chance)


def compare(
    algorithm: str,
    settings: PolicySettings,
    seed: int,
    source: Judge,
    target: Judge,
    episodes: int,
    walks: int,
) -> None:
    """Train on the source, then play the target with and without what was learnt."""
    fixed, spread = np.array(TARGETS), np.geomspace(0.1, 10.0, walks)

    def show(name: str, progress: str, value: float, found: NDArray[np.int64]) -> None:
        reached = f"{value:8.3f} {target.hypervolume(found):8.4f}"
        print(f"{algorithm:10} {seed:4} {name:7} {progress:>16} {reached}", flush=True)

    sample = target.problem.space.sample(np.random.default_rng(seed), walks)
    at_random = sample[: walks // len(fixed) * len(fixed)]
    show("random", "", target.score(at_random, np.resize(fixed, len(at_random))), sample)
    front, drops = target.front()
    show("front", "", max_score(target, front, fixed), front)
    make, _ = learner(algorithm, settings)
    with tempfile.TemporaryDirectory() as temporary:
        learnt = make(source.problem, source.predictor, seed)
        learnt.train(episodes)
        learnt.save(Path(temporary))
        learnt.stop()
        for name in ("cold", "shown", "warm"):
            agents = make(target.problem, target.predictor, seed + 1000)
            if name == "warm":
                agents.start_from(Path(temporary))
            played, seconds = 0, 0.0
            for until in EPISODES:
                start = time.perf_counter()
                if name == "shown" and not until:
                    agents.imitate(front, drops, FIRST_EPOCHS)
                agents.train(until - played)
                seconds += time.perf_counter() - start
                played = until
                drawn = agents.propose(spread, np.random.default_rng(seed))
                value = target.score(agents.propose(fixed, None), fixed)
                show(name, f"{played:9} {seconds:6.1f}", value, drawn)
            agents.stop()


def max_score(judge: Judge, choices: NDArray[np.int64], targets: NDArray[np.float64]) -> float:
    """Mean score over the targets of the choice that is best at each."""
    scores = [
        [judge.score(choice[None], np.array([target])) for choice in choices] for target in targets
    ]
    return float(np.max(scores, axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for role, accelerator in (("--source", "eyeriss-like"), ("--target", "nvdla-small")):
        default = ["cifar10-resnet20", accelerator]
        parser.add_argument(role, nargs=2, metavar=("TASK", "ACCELERATOR"), default=default)
    parser.add_argument("--data", help="folder of the data set of both")
    parser.add_argument("--source-weights", metavar="FILE")
    parser.add_argument("--target-weights", metavar="FILE")
    parser.add_argument("--algorithm", choices=LEARNERS, default="ppo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--source-episodes", type=int, default=2048)
    parser.add_argument(
        "--hidden", nargs="+", type=int, help="units of the networks' hidden layers"
    )
    parser.add_argument("--walks", type=int, default=50)
    parser.add_argument("--database", type=Path, help="folder of an option database")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source, target = (
        prepare(TaskSpec(task, data=args.data, weights=weights), accelerator, args.database)
        for (task, accelerator), weights in (
            (args.source, args.source_weights),
            (args.target, args.target_weights),
        )
    )
    print("algorithm  seed policies episodes seconds    score   volume")
    settings = PolicySettings(hidden=tuple(args.hidden) if args.hidden else None)
    episodes, walks = args.source_episodes, args.walks
    for seed in args.seeds:
        compare(args.algorithm, settings, seed, source, target, episodes, walks)


if __name__ == "__main__":
    main()
