"""What proposes the next configurations to evaluate: learned policies, or chance."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.predictor import AccuracyPredictor
from envs.problem import CompressionProblem
from search.evaluation import local_copy
from search.proposals import propose_random
from search.proposals import select
from search.storage import Storage
from search.storage import write_error

FIRST_EPISODES = 1024
"""Episodes against the predictor before anything but the baselines was measured."""
ROUND_EPISODES = 384
"""Episodes between two batches of true evaluations."""
CANDIDATES = 1024
"""Walks of the trained policies from which a batch is picked."""
TARGET_POINTS = (0.1, 12.0)
"""Range of accuracy-drop limits of those walks."""


class Proposer(Protocol):
    """Proposes choices and learns what they reached."""

    def propose(self, count: int) -> NDArray[np.int64]:
        """At most ``count`` canonical choices not seen before, (choices, layers, 4)."""
        ...

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        """Take in measurements: choices (measurements, layers, 4), accuracy 0..1."""
        ...

    def save(self) -> None:
        """Keep what was learned, so that a proposer made later goes on from here."""
        ...


class RandomProposer:
    """Uniformly random choices: the control that learning has to beat.

    Args:
        problem: Gives the space.
        seed: The same seed proposes the same sequence.
    """

    def __init__(self, problem: CompressionProblem, seed: int) -> None:
        self._problem = problem
        self._rng = np.random.default_rng(seed)
        self._seen: set[str] = set()

    def propose(self, count: int) -> NDArray[np.int64]:
        choices = propose_random(self._problem, count, self._seen, self._rng)
        self._seen.update(self._problem.space.config(choice).hash for choice in choices)
        return choices

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        self._seen.update(self._problem.space.config(choice).hash for choice in choices)

    def save(self) -> None:
        """Nothing is learned: what was measured is in the ledger."""


class PolicyProposer:
    """PPO agents that train against a predictor, which true evaluations keep honest.

    Args:
        problem: What is decided and how it is priced.
        reference: Accuracy of the uncompressed network on the search split, 0..1.
        chance: Accuracy of guessing.
        baseline_energy_pj: What energy ratios are relative to.
        seed: Of weights, actions, targets.
        policies: Folder where the agents are kept; read if there is something.
    """

    def __init__(
        self,
        problem: CompressionProblem,
        reference: float,
        chance: float,
        baseline_energy_pj: float,
        seed: int,
        policies: Storage,
    ) -> None:
        # RLlib takes seconds to import, and random search does not need it.
        from search import agents

        self._agents = agents
        self._problem = problem
        self._baseline_energy_pj = baseline_energy_pj
        self._policies = policies
        self._predictor = AccuracyPredictor(problem.table, reference, chance)
        self._reference = reference
        layers = len(problem.space.layers)
        self._choices = np.zeros((0, layers, 4), dtype=np.int64)
        self._accuracy = np.zeros(0)
        self._algorithm = agents.build_ppo(problem, self._predictor, seed)
        self._seed = seed
        self._episodes = FIRST_EPISODES
        if agents.CHECKPOINT in policies.names():
            with local_copy(policies) as directory:
                agents.restore(self._algorithm, directory)
            self._episodes = ROUND_EPISODES

    def propose(self, count: int) -> NDArray[np.int64]:
        self._agents.use_accuracy(self._algorithm, self._predictor)
        self._agents.train_episodes(self._algorithm, self._episodes)
        self._episodes = ROUND_EPISODES
        # Seeded by what is known, so that a resumed search does not repeat its draws.
        rng = np.random.default_rng([self._seed, len(self._accuracy)])
        low, high = np.log(TARGET_POINTS)
        targets = np.exp(rng.uniform(low, high, size=CANDIDATES))
        candidates = np.concatenate(
            [
                self._agents.propose(self._algorithm, targets, rng),
                self._agents.propose(self._algorithm, targets, None),
            ]
        )
        ratio = self._problem.cost(self._choices).energy_pj / self._baseline_energy_pj
        space = self._problem.space
        return select(
            self._problem,
            self._predictor,
            candidates,
            count,
            {space.config(choice).hash for choice in self._choices},
            ratio,
            100 * (self._reference - self._accuracy),
            self._baseline_energy_pj,
        )

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        self._choices = np.concatenate([self._choices, choices])
        self._accuracy = np.concatenate([self._accuracy, accuracy])
        self._predictor.fit(self._choices, self._accuracy)

    def save(self) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            self._agents.save(self._algorithm, Path(temporary))
            name = self._agents.CHECKPOINT
            try:
                self._policies.make()
                self._policies.write(name, (Path(temporary) / name).read_bytes())
            except OSError as error:
                raise write_error("policies", self._policies.location, error) from error
