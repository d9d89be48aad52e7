"""The evaluator actors of one trial: true evaluations, several at once."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import ray
import torch

from hwmodel import InputError
from search.evaluation import EvaluationWorker
from search.evaluation import Request
from search.evaluation import WorkerSpec
from search.ledger import Evaluation


class _Worker:
    def __init__(self, spec: WorkerSpec, threads: int) -> None:
        self._spec = spec
        self._threads = threads
        self._worker: EvaluationWorker | None = None

    def evaluate(self, request: Request) -> Evaluation:
        # Made here and not in the constructor, whose errors reach the caller as text alone.
        if self._worker is None:
            torch.set_num_threads(self._threads)
            self._worker = EvaluationWorker(self._spec)
        return self._worker.evaluate(request)


_WorkerActor: Any = ray.remote(_Worker)


class EvaluatorPool:
    """Evaluator actors in the placement group of the trial that makes them.

    Args:
        spec: What they evaluate.
        size: Number of actors.
        num_cpus, num_gpus: What each of them reserves; may be fractions.
    """

    def __init__(self, spec: WorkerSpec, size: int, num_cpus: float, num_gpus: float) -> None:
        options = _WorkerActor.options(num_cpus=num_cpus, num_gpus=num_gpus)
        threads = max(1, int(num_cpus))
        self._actors = [options.remote(spec, threads) for _ in range(size)]

    def evaluate(self, requests: Sequence[Request]) -> Iterator[Evaluation]:
        """Evaluate all requests; yields every row as soon as it is in the ledger.

        Raises:
            InputError: an actor could not be set up, or the ledger cannot be written.
        """
        waiting = list(requests)
        running: dict[Any, Any] = {}
        for actor in self._actors[: len(waiting)]:
            running[actor.evaluate.remote(waiting.pop(0))] = actor
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor = running.pop(done)
            row = _result(done)
            if waiting:
                running[actor.evaluate.remote(waiting.pop(0))] = actor
            yield row

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)


def _result(reference: Any) -> Evaluation:
    try:
        row: Evaluation = ray.get(reference)
    except ray.exceptions.RayError as error:
        found = input_error(error)
        if found is not None:
            raise found from error
        raise
    return row


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError at the bottom of what Ray raised, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, InputError) and not isinstance(error, ray.exceptions.RayError):
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
