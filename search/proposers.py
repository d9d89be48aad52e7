"""What proposes the next configurations to evaluate, and learns from what they reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.problem import CompressionProblem
from envs.space import SearchSpace
from search.earlier import Accuracies
from search.learners import LEARNERS
from search.learners import learner
from search.local_search import LocalSearchProposer
from search.measured_proposer import MeasuredPolicyProposer
from search.measurements import Measurements
from search.measurements import Reference
from search.policy_settings import DEFAULT_SETTINGS
from search.policy_settings import PolicySettings
from search.predicted_front import FRONT_PRICES
from search.predicted_front import Front
from search.proposals import propose_random
from search.storage import Storage


class Proposer(Protocol):
    """Proposes choices and learns what they reached."""

    def propose(self, count: int) -> NDArray[np.int64]:
        """At most ``count`` canonical choices not seen before, (choices, layers, 4)."""
        ...

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        """Take in measurements: choices (measurements, layers, 4), accuracy 0..1."""
        ...

    def save(self) -> None:
        """Keep what the ledger does not tell, so that a proposer made later goes on from here."""
        ...


class _LedgerProposer:
    """A proposer that knows nothing but the measurements, which are in the ledger."""

    def __init__(self, problem: CompressionProblem, reference: Reference) -> None:
        self._known = Measurements(problem, reference)

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        self._known.add(choices, accuracy)

    def save(self) -> None:
        """Nothing to keep."""


class RandomProposer(_LedgerProposer):
    """Uniformly random choices: the control that learning has to beat.

    Args:
        problem: Gives the space.
        reference: What measurements are compared to.
        seed: The same seed proposes the same sequence.
    """

    def __init__(self, problem: CompressionProblem, reference: Reference, seed: int) -> None:
        super().__init__(problem, reference)
        self._rng = np.random.default_rng(seed)

    def propose(self, count: int) -> NDArray[np.int64]:
        return propose_random(self._known.problem, count, self._known.seen, self._rng)


class UniformProposer(_LedgerProposer):
    """The same decision for every layer: what one would try by hand.

    Of all such choices, those that promise most after what was measured.
    """

    def __init__(self, problem: CompressionProblem, reference: Reference) -> None:
        super().__init__(problem, reference)
        self._candidates = _uniform_choices(problem.space)

    def propose(self, count: int) -> NDArray[np.int64]:
        self._known.fit()
        return self._known.select(self._candidates, count)


class AllocationProposer(_LedgerProposer):
    """Allocation over the option table, blind to how layers interact: one front, computed once.

    Args:
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
    """

    def __init__(self, problem: CompressionProblem, reference: Reference) -> None:
        super().__init__(problem, reference)
        self._front = Front(problem, reference)
        self._count = FRONT_PRICES
        self._candidates = self._front.allocate(self._known, self._count)

    def propose(self, count: int) -> NDArray[np.int64]:
        picked = self._known.select(self._candidates, count)
        while len(picked) < count and self._count < 16 * FRONT_PRICES:
            self._count *= 2
            self._candidates = self._front.allocate(self._known, self._count)
            picked = self._known.select(self._candidates, count)
        return picked


class FittedAllocationProposer(_LedgerProposer):
    """Allocation by sensitivities that measurements correct and draws vary.

    The front is allocated anew for the coefficients of the layers' damage that fit all that was
    measured, and for draws from what the measurements leave open (Thompson sampling), so that each
    batch tries what may be better. Where these give too little that is new, as where a cost knows
    few steps, random factors of growing spread vary the coefficients.

    Args:
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
        seed: Of the draws.
    """

    def __init__(self, problem: CompressionProblem, reference: Reference, seed: int) -> None:
        super().__init__(problem, reference)
        self._front = Front(problem, reference)
        self._seed = seed
        self._is_exhausted = False

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        super().learn(choices, accuracy)
        self._is_exhausted = False

    def propose(self, count: int) -> NDArray[np.int64]:
        if self._is_exhausted:  # who has learnt nothing would draw the same again
            return self._known.choices[:0]
        self._known.fit()
        # Seeded by what is known, so that a resumed search does not repeat its draws.
        rng = np.random.default_rng([self._seed, len(self._known.accuracy)])
        candidates = self._front.candidates(self._known, rng)
        picked = self._front.select(self._known, candidates, count, rng)
        self._is_exhausted = not len(picked)
        return picked


def _uniform_choices(space: SearchSpace) -> NDArray[np.int64]:
    """Every decision of the space, taken by all layers, (choices, layers, 4)."""
    decisions = np.stack(np.unravel_index(np.arange(space.sizes.prod()), tuple(space.sizes)), -1)
    everywhere = np.repeat(decisions[:, None], len(space.layers), axis=1)
    return np.unique(space.canonical(everywhere), axis=0)


def make_proposer(
    algorithm: str,
    problem: CompressionProblem,
    reference: Reference,
    seed: int,
    policies: Storage,
    accuracy: str = "predicted",
    settings: PolicySettings = DEFAULT_SETTINGS,
    earlier: Accuracies | None = None,
) -> Proposer:
    """The proposer that an algorithm of a specification stands for.

    Args:
        algorithm: See ``search.spec.Algorithm``.
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
        seed: The same seed draws the same.
        policies: Folder of what a run's seeds have learnt.
        accuracy: Which one policies learn from, see ``search.spec.Accuracy``.
        settings: Of learned policies.
        earlier: What an earlier run measured, for those that learn from a prediction.
    """
    if algorithm in LEARNERS:
        make_agents, _ = learner(algorithm, settings)
        if accuracy == "measured":
            return MeasuredPolicyProposer(problem, reference, seed, make_agents, policies)
        from search.policy_proposer import PolicyProposer

        return PolicyProposer(problem, reference, seed, make_agents, policies, earlier)
    if algorithm.startswith("optuna"):
        from search.optuna_proposer import OptunaProposer

        return OptunaProposer(problem, reference, seed, algorithm)
    makers: dict[str, Callable[[], Proposer]] = {
        "random": lambda: RandomProposer(problem, reference, seed),
        "uniform": lambda: UniformProposer(problem, reference),
        "dp": lambda: AllocationProposer(problem, reference),
        "dp+local": lambda: LocalSearchProposer(problem, reference, seed, policies),
        "dp+fitted": lambda: FittedAllocationProposer(problem, reference, seed),
    }
    return makers[algorithm]()
