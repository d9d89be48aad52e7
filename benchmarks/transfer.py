"""How good policies are on a problem that they were not trained on, by option tables alone.

    python benchmarks/transfer.py --source cifar10-resnet20 eyeriss-like \
        --target cifar10-resnet20 nvdla-small --algorithm ppo --seeds 0 1 2 --database ~/options

Policies play the source for ``--source-episodes``. Then the target is played by those that start
from them ("warm") and by new ones ("cold"), against the predictor that a search has before it
measured anything; no configuration is truly evaluated. Printed for every number of episodes
played there: the mean score (docs/environment.md) of the likeliest walks at 0.5, 1 and 2 points,
and the hypervolume of as many drawn walks, at targets from 0.1 to 10 points, as ``--walks`` says
(share of the box energy ratio to dense INT8 <= 1, loss <= 10 points); both as predicted. "random"
are uniformly random configurations.
"""

from __future__ import annotations

import argparse
import tempfile
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
from search.composite import composite_agents
from search.front import hypervolume
from search.ppo import ppo_agents

TARGETS = (0.5, 1.0, 2.0)
EPISODES = (0, 128, 384, 1024)
"""Played on the target before each line."""
AGENTS = {"ppo": ppo_agents, "composite": composite_agents}


class Judge:
    """What configurations of one problem are worth, as predicted from its option table."""

    def __init__(self, problem: CompressionProblem, chance: float) -> None:
        self.problem = problem
        self.predictor = AccuracyPredictor(problem.table, chance=chance)
        self._start_pj = self.energy_pj(start_choice(problem.space)[None])

    def energy_pj(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.problem.cost(choices).energy_pj

    def score(self, choices: NDArray[np.int64], targets: NDArray[np.float64]) -> float:
        """Mean score of choices made for targets in points, (candidates,)."""
        drops = self.predictor.accuracy_drop(choices)
        return float(score(self.energy_pj(choices) / self._start_pj, drops, targets).mean())

    def hypervolume(self, choices: NDArray[np.int64]) -> float:
        drops = self.predictor.accuracy_drop(choices)
        return hypervolume(self.energy_pj(choices) / self._start_pj, drops)


def prepare(task: str, accelerator: str, database: Path | None) -> Judge:
    """The problem of a task on an accelerator, with the default menu."""
    evaluator = prepare_evaluator(TaskSpec(task).load(), database)
    problem = prepare_problem(evaluator, load_accelerator(accelerator), Menu())
    return Judge(problem, evaluator.task.chance)


def compare(
    algorithm: str, seed: int, source: Judge, target: Judge, episodes: int, walks: int
) -> None:
    """Train on the source, then play the target with and without what was learnt."""
    fixed, spread = np.array(TARGETS), np.geomspace(0.1, 10.0, walks)

    def show(name: str, played: int, best: NDArray[np.int64], drawn: NDArray[np.int64]) -> None:
        reached = f"{target.score(best, fixed):8.3f} {target.hypervolume(drawn):8.4f}"
        print(f"{algorithm:10} {seed:4} {name:7} {played:9} {reached}", flush=True)

    sample = target.problem.space.sample(np.random.default_rng(seed), walks)
    at_random = sample[: walks // len(fixed) * len(fixed)]
    value = target.score(at_random, np.resize(fixed, len(at_random)))
    reached = f"{value:8.3f} {target.hypervolume(sample):8.4f}"
    print(f"{algorithm:10} {seed:4} random  {'':9} {reached}", flush=True)
    make = AGENTS[algorithm]
    with tempfile.TemporaryDirectory() as temporary:
        learnt = make(source.problem, source.predictor, seed)
        learnt.train(episodes)
        learnt.save(Path(temporary))
        learnt.stop()
        for name in ("cold", "warm"):
            agents = make(target.problem, target.predictor, seed + 1000)
            if name == "warm":
                agents.start_from(Path(temporary))
            played = 0
            for until in EPISODES:
                agents.train(until - played)
                played = until
                rng = np.random.default_rng(seed)
                show(name, played, agents.propose(fixed, None), agents.propose(spread, rng))
            agents.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    pair = dict(nargs=2, metavar=("TASK", "ACCELERATOR"))
    parser.add_argument("--source", default=["cifar10-resnet20", "eyeriss-like"], **pair)
    parser.add_argument("--target", default=["cifar10-resnet20", "nvdla-small"], **pair)
    parser.add_argument("--algorithm", choices=sorted(AGENTS), default="ppo")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--source-episodes", type=int, default=2048)
    parser.add_argument("--walks", type=int, default=50)
    parser.add_argument("--database", type=Path, help="folder of an option database")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source, target = (prepare(*names, args.database) for names in (args.source, args.target))
    print("algorithm  seed policies episodes    score   volume")
    for seed in args.seeds:
        compare(args.algorithm, seed, source, target, args.source_episodes, args.walks)


if __name__ == "__main__":
    main()
