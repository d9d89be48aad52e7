"""Allocation for coefficients that a local search varies, as true evaluations tell."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.problem import CompressionProblem
from hwmodel.errors import InputError
from search.measurements import Measurements
from search.measurements import Reference
from search.predicted_front import FRONT_PRICES
from search.predicted_front import Front
from search.storage import Storage
from search.storage import write_error

STATE = "coefficients.json"
"""What a seed's search holds, in ``policies/seed-N``."""
_FIRST_COEFFICIENT = 0.5
_LEAST_COEFFICIENT = 1e-3
_CHANGED_SHARE = 0.1
"""Of the coefficients, that a neighbour draws anew."""
_PRICES_AROUND = 6
"""On either side of a budget's own price of damage, at which neighbours are allocated."""
_TRIES = 8
"""Neighbours looked at for each proposal: those that allocate what is known cost no evaluation."""


@dataclass
class _Incumbent:
    """The best coefficients that are known for one budget.

    Attributes:
        place: Of the budget, on the front of equal coefficients.
        coefficients: Of the damage of every layer's weights and input, 0..1, (2, layers).
        accuracy: That what they allocate reached, 0..1; below 0 before it was evaluated.
    """

    place: int
    coefficients: NDArray[np.float64]
    accuracy: float = -1.0


class LocalSearchProposer:
    """SPDY's search for coefficients of damage (Frantar and Alistarh, ICML 2022, section 3.3).

    Single-layer damage times a coefficient in [0, 1] of each layer is what is allocated by. Of the
    best coefficients known a tenth is drawn anew, and what these allocate is evaluated; they are
    kept if it loses no more. SPDY does so under one budget, and begins with the best of 100 random
    draws. Here all costs on the front of equal coefficients are budgets, in turn, and each begins
    with equal coefficients, so what plain allocation finds is found first.

    Args:
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
        seed: Of the draws.
        policies: Folder of what a run's seeds have learnt; this one's is in ``seed-N``.
    """

    def __init__(
        self, problem: CompressionProblem, reference: Reference, seed: int, policies: Storage
    ) -> None:
        self._known = Measurements(problem, reference)
        self._front = Front(problem, reference)
        self._budgets = self._known.priced(self._front.allocate(self._known, FRONT_PRICES))[0]
        self._seed, self._folder = seed, policies.child(f"seed-{seed}")
        self._reached: dict[str, float] = {}
        self._proposed = 0  # since something was learnt
        self._pending: dict[str, list[_Incumbent]] = {}
        equal = np.full((2, len(problem.space.layers)), _FIRST_COEFFICIENT)
        self._incumbents = self._restored() or [
            _Incumbent(place, equal) for place in range(FRONT_PRICES)
        ]

    def propose(self, count: int) -> NDArray[np.int64]:
        # Seeded by what is known, so that a resumed search does not repeat its draws.
        rng = np.random.default_rng([self._seed, len(self._known.accuracy), self._proposed])
        self._proposed += 1
        turns = np.resize(rng.permutation(FRONT_PRICES), _TRIES * count)
        picked: dict[str, NDArray[np.int64]] = {}
        for place in turns:
            if len(picked) == count:
                break
            neighbour = self._neighbour(self._incumbents[place], rng)
            choice = self._allocate(neighbour)
            if choice is None:
                continue
            config_hash = self._known.problem.space.config(choice).hash
            if config_hash in self._reached:
                self._keep_better(neighbour, self._reached[config_hash])
            else:
                self._pending.setdefault(config_hash, []).append(neighbour)
                picked[config_hash] = choice
        shape = (0, *self._known.choices.shape[1:])
        return np.stack(list(picked.values())) if picked else np.empty(shape, dtype=np.int64)

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        self._known.add(choices, accuracy)
        self._proposed = 0
        for choice, reached in zip(choices, accuracy, strict=True):
            config_hash = self._known.problem.space.config(choice).hash
            self._reached[config_hash] = float(reached)
            for neighbour in self._pending.pop(config_hash, []):
                self._keep_better(neighbour, float(reached))

    def save(self) -> None:
        """Write the coefficients, which the ledger does not tell.

        Raises:
            InputError: they cannot be written.
        """
        state = [
            {"coefficients": incumbent.coefficients.tolist(), "accuracy": incumbent.accuracy}
            for incumbent in self._incumbents
        ]
        try:
            self._folder.write_patiently(STATE, json.dumps(state).encode())
        except OSError as error:
            raise write_error("policies", self._folder.location, error) from error

    def _restored(self) -> list[_Incumbent]:
        """What :meth:`save` wrote, if it did."""
        if STATE not in self._folder.names():
            return []
        try:
            found = [
                _Incumbent(place, np.array(item["coefficients"]), float(item["accuracy"]))
                for place, item in enumerate(json.loads(self._folder.read(STATE)))
            ]
            shape = (FRONT_PRICES, 2, len(self._known.problem.space.layers))
            if np.shape([item.coefficients for item in found]) == shape:
                return found
        except (ValueError, KeyError, TypeError):
            pass
        where = f"{self._folder.location}/{STATE}"
        raise InputError("policies", where, "it is damaged; delete it")

    def _neighbour(self, incumbent: _Incumbent, rng: np.random.Generator) -> _Incumbent:
        """With some coefficients drawn anew; what was never evaluated is its own neighbour."""
        coefficients = incumbent.coefficients.copy()
        if incumbent.accuracy >= 0:
            count = max(1, round(_CHANGED_SHARE * coefficients.size))
            changed = rng.choice(coefficients.size, count, replace=False)
            coefficients.flat[changed] = rng.uniform(_LEAST_COEFFICIENT, 1.0, count)
        return _Incumbent(incumbent.place, coefficients)

    def _allocate(self, incumbent: _Incumbent) -> NDArray[np.int64] | None:
        """The choice of least weighed damage within the budget and all limits, (layers, 4)."""
        damage = self._known.predictor.layer_damage().scaled(
            *(incumbent.coefficients / _FIRST_COEFFICIENT)
        )
        near = slice(max(0, incumbent.place - _PRICES_AROUND), incumbent.place + _PRICES_AROUND + 1)
        front = self._front.of(damage, near)
        ratio, holds = self._known.priced(front)
        fits = holds & (ratio <= self._budgets[incumbent.place] * (1 + 1e-9))
        if not fits.any():
            return None
        best: NDArray[np.int64] = front[fits][damage.total(front[fits]).argmin()]
        return best

    def _keep_better(self, neighbour: _Incumbent, accuracy: float) -> None:
        """Let it take the place of the incumbent of its budget if it loses no more."""
        if accuracy >= self._incumbents[neighbour.place].accuracy:
            neighbour.accuracy = accuracy
            self._incumbents[neighbour.place] = neighbour
