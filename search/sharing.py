"""What the runs of a batch measure, for all of them: one network, one configuration, once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import NamedTuple

import ray

from envs.attack import Attack
from envs.task_spec import TaskSpec

if TYPE_CHECKING:
    from envs.evaluator import EvaluationResult


class Key(NamedTuple):
    """What an accuracy depends on, while the code that compresses is the same.

    The task says which data calibrate and measure, and by which metric: the same weights may be
    asked for with others.
    """

    task: TaskSpec
    weights_hash: str
    split: str
    config_hash: str
    attack: Attack | None


PATIENCE_SECONDS = 60.0
"""Shortest wait for another's evaluation, which may have died with its machine."""


class Accuracies:
    """Results by :data:`Key`; a Ray actor whose calls may wait for each other.

    Args:
        known: Results of the batch's ledgers so far.
    """

    def __init__(self, known: Mapping[Key, EvaluationResult]) -> None:
        self._known = dict(known)
        self._claimed: dict[Key, asyncio.Event] = {}
        self._longest = 0.0

    async def claim(self, key: Key) -> EvaluationResult | None:
        """The result if there is one; waits while another evaluates it.

        Returns:
            None where the caller is to evaluate, and then to :meth:`record`.
        """
        while key not in self._known:
            if key not in self._claimed:
                self._claimed[key] = asyncio.Event()
                return None
            patience = max(PATIENCE_SECONDS, 3 * self._longest)
            try:
                await asyncio.wait_for(self._claimed[key].wait(), patience)
            except asyncio.TimeoutError:  # whoever had it is taken for dead
                return None
        return self._known[key]

    async def record(self, key: Key, result: EvaluationResult | None) -> None:
        """What a claim led to; None where the evaluation failed, and the next may try."""
        if result is not None:
            self._known[key] = result
            self._longest = max(self._longest, result.seconds)
        event = self._claimed.pop(key, None)
        if event is not None:
            event.set()


AccuraciesActor = ray.remote(num_cpus=0, max_concurrency=10_000)(Accuracies)
