"""What proposes the next configurations to evaluate, and learns from what they reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envs.episode import start_choice
from envs.predictor import LayerDamage
from envs.problem import CompressionProblem
from envs.space import SearchSpace
from search.allocation import Allocator
from search.learners import LEARNERS
from search.learners import learner
from search.measured_proposer import MeasuredPolicyProposer
from search.measurements import Measurements
from search.measurements import Reference
from search.proposals import propose_random
from search.storage import Storage

DAMAGE_PRICES = (0.3, 300.0)
"""Range of the prices of damage at which allocations are made: costs from that of some ten
points lost to that of a tenth of a point."""
FRONT_PRICES = 48
"""Prices at which the predicted front is computed."""
POSTERIOR_DRAWS = 3
"""Damage tables drawn for each batch of refined allocations."""
_SPREADS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5)
"""Of the random factors that are tried in turn, in natural logarithms."""
_FIRST_TRIALS = 10
_TRIALS = 4
"""Prices of limits that are tried for the first and for every later front."""


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


class RefinedAllocationProposer(_LedgerProposer):
    """Allocation whose sensitivities are searched: measurements correct them, draws vary them.

    As in SPDY (Frantar and Alistarh, ICML 2022) the front is allocated anew for other
    coefficients of the layers' damage. Here they are the fitted ones and draws from what the
    measurements leave open (Thompson sampling), so that each batch tries what may be better. Where
    these give too little that is new, as where a cost knows few steps, random factors of growing
    spread vary the coefficients.

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
        picked = self._known.select(candidates, count)
        for spread in _SPREADS:
            if len(picked) == count:
                break
            candidates = np.concatenate([candidates, self._front.varied(self._known, rng, spread)])
            picked = self._known.select(candidates, count)
        self._is_exhausted = not len(picked)
        return picked


class Front:
    """Allocations along the predicted front.

    Args:
        problem: What is decided and how it is priced.
        reference: What costs are relative to.
    """

    def __init__(self, problem: CompressionProblem, reference: Reference) -> None:
        self._allocator = Allocator(problem, reference.cost)
        self._latest = np.repeat(start_choice(problem.space)[None], FRONT_PRICES, axis=0)
        self._limit_prices = np.zeros((FRONT_PRICES, len(problem.limits.given)))
        self._trials = _FIRST_TRIALS

    def allocate(self, known: Measurements, count: int) -> NDArray[np.int64]:
        """For each of ``count`` prices the best that the predictor knows, (count, layers, 4)."""
        damage = known.predictor.layer_damage()
        repeats = count // FRONT_PRICES
        start = np.repeat(self._latest, repeats, axis=0)  # of the nearest price
        limit_prices = np.repeat(self._limit_prices, repeats, axis=0)
        choices, limit_prices = self._allocator.front_within_limits(
            damage, _prices(count), start, limit_prices, self._trials
        )
        if count == FRONT_PRICES:  # the next front lies near
            self._latest, self._limit_prices, self._trials = choices, limit_prices, _TRIALS
        return choices

    def candidates(self, known: Measurements, rng: np.random.Generator) -> NDArray[np.int64]:
        """The front for the expected damage and for some drawn, (candidates, layers, 4)."""
        fronts = [self.allocate(known, FRONT_PRICES)]
        for _ in range(POSTERIOR_DRAWS):
            damage = known.predictor.layer_damage(rng)
            fronts.append(
                self._allocator.descend(
                    damage, _prices(FRONT_PRICES), self._latest, self._limit_prices
                )
            )
        return np.concatenate(fronts)

    def varied(
        self, known: Measurements, rng: np.random.Generator, spread: float
    ) -> NDArray[np.int64]:
        """The front for damage times random factors, apart for weights and input of every layer.

        Args:
            known: What was measured.
            rng: Draws the factors.
            spread: Standard deviation of their logarithms.

        Returns:
            Shape (candidates, layers, 4).
        """
        damage = known.predictor.layer_damage()
        of_weights, of_inputs = np.exp(spread * rng.standard_normal((2, len(damage.weight))))
        varied = LayerDamage(
            damage.weight * of_weights[:, None, None, None],
            damage.activation * of_inputs[:, None],
        )
        return self._allocator.descend(
            varied, _prices(FRONT_PRICES), self._latest, self._limit_prices
        )

    def refine(self, known: Measurements, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sweep once over the layers of each choice, (choices, layers, 4).

        The price of damage is the one at which the front of the latest :meth:`allocate` has the
        same predicted drop: the sweep moves toward the front, not along it.
        """
        drops = known.predictor.accuracy_drop(self._latest)  # falls while prices rise
        order = np.argsort(drops)
        reached = known.predictor.accuracy_drop(choices)
        price = np.interp(reached, drops[order], _prices(FRONT_PRICES)[order])
        nearest = order[np.searchsorted(drops[order], reached).clip(max=len(order) - 1)]
        damage, limit_prices = known.predictor.layer_damage(), self._limit_prices[nearest]
        return self._allocator.descend(damage, price, choices, limit_prices, sweeps=1)


def _prices(count: int) -> NDArray[np.float64]:
    return np.geomspace(*DAMAGE_PRICES, count)


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
) -> Proposer:
    """The proposer that an algorithm of a specification stands for.

    Args:
        algorithm: See ``search.spec.Algorithm``.
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
        seed: The same seed draws the same.
        policies: Folder of a run's learned policies, see :class:`PolicyProposer`.
        accuracy: Which one policies learn from, see ``search.spec.Accuracy``.
    """
    if algorithm in LEARNERS:
        make_agents, _ = learner(algorithm)
        if accuracy == "measured":
            return MeasuredPolicyProposer(problem, reference, seed, make_agents, policies)
        from search.policy_proposer import PolicyProposer

        return PolicyProposer(problem, reference, seed, make_agents, policies)
    if algorithm.startswith("optuna"):
        from search.optuna_proposer import OptunaProposer

        return OptunaProposer(problem, reference, seed, algorithm)
    makers: dict[str, Callable[[], Proposer]] = {
        "random": lambda: RandomProposer(problem, reference, seed),
        "uniform": lambda: UniformProposer(problem, reference),
        "dp": lambda: AllocationProposer(problem, reference),
        "dp+local": lambda: RefinedAllocationProposer(problem, reference, seed),
    }
    return makers[algorithm]()
