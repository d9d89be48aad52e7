"""Learned policies as a proposer: trained on a predictor, their walks refined, the best picked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from envs.predictor import DropBound
from envs.problem import CompressionProblem
from search.checkpoints import keep
from search.checkpoints import take_up
from search.earlier import Accuracies
from search.measurements import Measurements
from search.measurements import Reference
from search.predicted_front import Front
from search.storage import Storage

if TYPE_CHECKING:
    from search.learners import MakeAgents

FIRST_EPISODES = 512
"""Episodes against the predictor before anything but the baselines was measured."""
ROUND_EPISODES = 256
"""Episodes between two batches of true evaluations."""
FIRST_EPOCHS = 60
"""Passes over the allocations that new policies imitate."""
ROUND_EPOCHS = 10
"""Passes over the allocations between two batches of true evaluations."""
CANDIDATES = 1024
"""Walks of the trained policies from which a batch is picked."""
TARGET_POINTS = (0.1, 12.0)
"""Range of accuracy-drop limits of those walks."""
REFINED = 48
"""Walks that are refined: as many as the predicted front has prices."""


class PolicyProposer:
    """Agents that train against a predictor, which true evaluations keep honest.

    They are paid by what a proposal may lose, not by what it is expected to, so that they gain
    nothing by what the predictor does not know. What is picked from their walks goes by what is
    expected.

    The agents first imitate the allocations of ``dp+fitted`` and the front of what was measured,
    then learn from what they do themselves. Their walks, the same walks after local search on the
    predictor, and the allocations are candidates alike; the expected growth of the front picks
    among them.

    Args:
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
        seed: Of the draws, and of the agents' weights, actions and targets.
        make_agents: Makes agents of a problem, a judge of accuracy and a seed.
        policies: Folder of a run's policies, see :func:`take_up`.
        earlier: What the predictor knows before anything is measured, besides the table.
        targets: Range of accuracy-drop limits, in points, that agents are asked for.
    """

    def __init__(
        self,
        problem: CompressionProblem,
        reference: Reference,
        seed: int,
        make_agents: MakeAgents,
        policies: Storage,
        earlier: Accuracies | None = None,
        targets: tuple[float, float] = TARGET_POINTS,
    ) -> None:
        self._targets = targets
        self._known = Measurements(problem, reference, earlier)
        self._front = Front(problem, reference)
        self._policies = policies
        self._bound = DropBound(self._known.predictor)
        self._agents = make_agents(problem, self._bound, seed)
        self._seed = seed
        self._episodes, self._epochs = FIRST_EPISODES, FIRST_EPOCHS
        if take_up(self._agents, policies, seed):
            self._episodes, self._epochs = ROUND_EPISODES, ROUND_EPOCHS

    def propose(self, count: int) -> NDArray[np.int64]:
        known = self._known
        known.fit()
        self._agents.use(self._bound)
        # Seeded by what is known, so that a resumed search does not repeat its draws.
        rng = np.random.default_rng([self._seed, len(known.accuracy)])
        return self._front.select(known, self._candidates(rng), count, rng)

    def _candidates(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """What trained agents and allocation would do, (candidates, layers, 4)."""
        known = self._known
        allocations = self._front.candidates(known, rng)
        self._imitate(allocations)
        self._agents.train(self._episodes)
        self._episodes, self._epochs = ROUND_EPISODES, ROUND_EPOCHS
        low, high = np.log(self._targets)
        targets = np.exp(rng.uniform(low, high, size=CANDIDATES))
        walks = np.concatenate(
            [
                self._agents.propose(targets, rng),
                self._agents.propose(targets, None),
            ]
        )
        best = known.select(walks, REFINED)
        refined = self._front.refine(known, best)
        return np.concatenate([walks, refined, allocations])

    def _imitate(self, allocations: NDArray[np.int64]) -> None:
        """Have the agents do what leads to the drops that they are asked for.

        That is what allocation does, and what turned out best of all that was measured.
        """
        measured, measured_drops = self._known.front()
        shown = np.concatenate([allocations, measured])
        drops = self._bound.accuracy_drop(shown)
        drops[len(allocations) :] += measured_drops - self._known.predictor.accuracy_drop(measured)
        low, high = self._targets
        asked = (drops >= low) & (drops <= high)
        if asked.any():
            self._agents.imitate(shown[asked], drops[asked], self._epochs)

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        self._known.add(choices, accuracy)

    def save(self) -> None:
        keep(self._agents, self._policies, self._seed)
