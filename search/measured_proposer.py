"""Learned policies as a proposer without a predictor: one true evaluation for every episode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from envs.accuracy import DeferredAccuracy
from envs.problem import CompressionProblem
from search.checkpoints import keep
from search.checkpoints import take_up
from search.measurements import Reference
from search.storage import Storage

if TYPE_CHECKING:
    from search.learners import MakeAgents
    from search.walks import Walked

FREEDOM = 1.25
"""Factor by which further walks are freer where the ones before led to what is known."""
ATTEMPTS = 16
"""Times that walks are played in a round; what was learnt hardly decides about the last ones."""


class MeasuredPolicyProposer:
    """Agents that learn from true evaluations alone, as they are published.

    Proposals are where walks of the agents end, at drawn targets. When they have been evaluated
    every walk is paid, and the agents train on these. A walk that ends where one has ended before
    is paid by what is known. Such walks cost nothing, so others are played besides, freer each
    time: agents that have settled go on exploring until nothing new is left.

    Args:
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
        seed: Of the agents' weights, actions and targets.
        make_agents: Makes agents of a problem, a judge of accuracy and a seed.
        policies: Folder of a run's policies, see :func:`take_up`.
    """

    def __init__(
        self,
        problem: CompressionProblem,
        reference: Reference,
        seed: int,
        make_agents: MakeAgents,
        policies: Storage,
    ) -> None:
        self._space = problem.space
        self._reference = reference
        self._seed = seed
        self._policies = policies
        self._agents = make_agents(problem, DeferredAccuracy(), seed)
        self._drops: dict[str, float] = {}  # points that configurations lose, by hash
        self._unpaid: list[Walked] = []
        take_up(self._agents, policies, seed)

    def propose(self, count: int) -> NDArray[np.int64]:
        self._unpaid = []
        new: dict[str, NDArray[np.int64]] = {}
        for attempt in range(ATTEMPTS):
            walked = self._agents.walk(count - len(new), FREEDOM**attempt)
            self._unpaid.append(walked)
            for key, choice in zip(self._hashes(walked.choices), walked.choices, strict=True):
                if key not in self._drops:
                    new.setdefault(key, choice)
            if len(new) == count:
                break
        if not new:
            self._learn_from_walks()
        return np.array(list(new.values()), dtype=np.int64).reshape(-1, len(self._space.layers), 4)

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        drops = 100 * (self._reference.accuracy - accuracy)
        self._drops.update(zip(self._hashes(choices), drops.tolist(), strict=True))
        self._learn_from_walks()

    def _learn_from_walks(self) -> None:
        """Pay walks, but those whose end another seed is evaluating, or was not in time."""
        walked = [(walks, self._drops_at(walks.choices)) for walks in self._unpaid]
        self._agents.learn(walked)
        self._unpaid = []

    def save(self) -> None:
        keep(self._agents, self._policies, self._seed)

    def _hashes(self, choices: NDArray[np.int64]) -> list[str]:
        return [self._space.config(choice).hash for choice in choices]

    def _drops_at(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points lost where it is known, else NaN, (choices,)."""
        return np.array([self._drops.get(key, np.nan) for key in self._hashes(choices)])
