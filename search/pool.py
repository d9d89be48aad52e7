"""The evaluator actors of one trial: true evaluations, several at once, whatever dies."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol
from typing import TypeVar
from uuid import uuid4

import ray

from hwmodel.errors import InputError

if TYPE_CHECKING:
    from search.ledger import Evaluation
    from search.permit import Permit
    from search.requests import Request

T = TypeVar("T")

MAX_TIMEOUTS = 2
"""Evaluators that may fall silent over a configuration before it counts as failed."""
MAX_LOSSES = 4
"""Evaluators that may die with a configuration before it counts as failed; a node that dies takes
some with it through no fault of theirs."""
_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,  # it answered, and its node died before the answer was read
)
_MAX_FAILED_STARTS = 8
"""Evaluators in a row that may die before they are ready."""


class Worker(Protocol):
    """What evaluates in an actor's process; see :class:`search.evaluation.EvaluationWorker`."""

    def evaluate(self, request: Request, *, again: bool) -> Evaluation: ...

    def record_failure(self, request: Request, error: str) -> Evaluation: ...


class _Evaluator:
    """The process of one evaluator; errors of a constructor would reach the caller as text."""

    def __init__(self, make_worker: Callable[[Permit], Worker]) -> None:
        self._make_worker = make_worker

    def prepare(self, permit: Permit) -> None:
        self._worker = self._make_worker(permit)

    def evaluate(self, request: Request, again: bool) -> Evaluation:
        return self._worker.evaluate(request, again=again)

    def record_failure(self, request: Request, error: str) -> Evaluation:
        return self._worker.record_failure(request, error)


_EvaluatorActor: Any = ray.remote(_Evaluator)


@dataclass
class _Task:
    """One request, the actor that is at it, and what became of earlier ones."""

    request: Request
    again: bool
    timeouts: int = 0
    losses: int = 0
    failure: str | None = None
    actor: Any = None
    deadline: float = float("inf")


class EvaluatorPool:
    """Evaluator actors in the placement group of the trial that makes them.

    An actor that dies, with its node or alone, or that does not answer in time, is replaced and
    what it was at is given to another.

    Args:
        make_worker: Called in every actor, with the actor's permit to add to the ledger; what it
            returns evaluates.
        size: Number of actors.
        num_cpus, num_gpus: What each of them reserves; may be fractions.
        permit: The trial's, to make actors.
        timeout: Seconds after which an evaluation counts as hanging; None for no limit.
        notice: Told what becomes of actors: ``evaluator ready`` and ``evaluator lost``, the
            request that it was at, if any, and why it was lost.

    Attributes:
        waiting: Requests that no actor is at.
    """

    def __init__(
        self,
        make_worker: Callable[[Permit], Worker],
        size: int,
        num_cpus: float,
        num_gpus: float,
        permit: Permit,
        timeout: float | None = None,
        notice: Callable[[str, Request | None, str | None], None] = lambda *_: None,
    ) -> None:
        self._options = _EvaluatorActor.options(num_cpus=num_cpus, num_gpus=num_gpus)
        self._make_worker = make_worker
        self._permit = permit
        self._timeout = timeout
        self._notice = notice
        self.waiting = 0
        self._failed_starts = 0
        self._permits: dict[Any, Permit] = {}
        self._starting: dict[Future[None], Any] = {}
        self._free: list[Any] = []
        self._running: dict[Future[Evaluation], _Task] = {}
        # Asking Ray for what has ended takes time in proportion to what has not.
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        for _ in range(size):
            self._start()

    def evaluate(self, requests: Sequence[Request], *, again: bool = False) -> Iterator[Evaluation]:
        """Evaluate all requests; yields every row as soon as it is in the ledger.

        Args:
            requests: What to evaluate.
            again: Another trial may have been asked before and did not answer: what it may have
                recorded before it was lost is not evaluated again.

        Raises:
            InputError: the actors cannot be set up, or the ledger cannot be written.
        """
        waiting = deque(_Task(request, again) for request in requests)
        while waiting or self._running:
            self._hand_out(waiting)
            ended = self._next_ended()
            if ended in self._starting:
                self._started(ended)
            elif ended in self._running:  # and not what was given up
                task = self._running.pop(ended)
                row = self._finish(task, ended)
                if row is None:
                    waiting.appendleft(task)
                else:
                    self._hand_out(waiting)  # no evaluator waits for what is done with the row
                    self.waiting = len(waiting)
                    yield row
            for future in self._overdue():
                task = self._running.pop(future)
                self._notice("evaluator lost", task.request, f"no result in {self._timeout:g} s")
                self._replace(task.actor)
                task.timeouts += 1
                if task.timeouts == MAX_TIMEOUTS:
                    task.failure = f"no result in {self._timeout:g} s, {MAX_TIMEOUTS} times"
                waiting.appendleft(task)

    def close(self) -> None:
        """End the actors."""
        running = [task.actor for task in self._running.values()]
        for actor in [*self._starting.values(), *self._free, *running]:
            ray.kill(actor)

    def _start(self) -> None:
        permit = self._permit.grant_child(f"evaluator-{uuid4().hex}")
        actor = self._options.remote(self._make_worker)
        self._permits[actor] = permit
        self._starting[self._watched(actor.prepare.remote(permit))] = actor

    def _replace(self, actor: Any) -> None:
        self._permits.pop(actor).revoke()
        ray.kill(actor)
        self._start()

    def _hand_out(self, waiting: deque[_Task]) -> None:
        while waiting and self._free:
            self._submit(waiting.popleft(), self._free.pop())

    def _submit(self, task: _Task, actor: Any) -> None:
        task.actor = actor
        if self._timeout is not None:
            task.deadline = time.monotonic() + self._timeout
        if task.failure is not None:
            reference = actor.record_failure.remote(task.request, task.failure)
        else:
            again = task.again or task.losses + task.timeouts > 0
            reference = actor.evaluate.remote(task.request, again)
        self._running[self._watched(reference)] = task

    def _watched(self, reference: Any) -> Future[Any]:
        """A future of a reference, which is among the ended ones when it has."""
        future: Future[Any] = reference.future()
        future.add_done_callback(self._ended.put)
        return future

    def _next_ended(self) -> Future[Any] | None:
        """Waits for it; None where a deadline comes first."""
        first = min((task.deadline for task in self._running.values()), default=float("inf"))
        wait = None if first == float("inf") else max(0.0, first - time.monotonic())
        try:
            return self._ended.get(timeout=wait)
        except queue.Empty:
            return None

    def _overdue(self) -> list[Future[Evaluation]]:
        now = time.monotonic()
        return [future for future, task in self._running.items() if task.deadline <= now]

    def _started(self, future: Future[None]) -> None:
        actor = self._starting.pop(future)
        try:
            result_of(future)
        except _LOST as error:
            self._failed_starts += 1
            self._notice("evaluator lost", None, _reason(error))
            if self._failed_starts == _MAX_FAILED_STARTS:
                allowed = f"they die before they are ready ({_reason(error)})"
                raise InputError("resources.evaluators", self._failed_starts, allowed) from error
            self._replace(actor)
        else:
            self._failed_starts = 0
            self._notice("evaluator ready", None, None)
            self._free.append(actor)

    def _finish(self, task: _Task, future: Future[Evaluation]) -> Evaluation | None:
        """The row of an evaluation that ended; None where its actor is lost."""
        try:
            row = result_of(future)
        except _LOST as error:
            self._notice("evaluator lost", task.request, _reason(error))
            self._replace(task.actor)
            task.losses += 1
            if task.losses == MAX_LOSSES:
                task.failure = f"{MAX_LOSSES} evaluators died with it: {_reason(error)}"
            return None
        self._free.append(task.actor)
        return row


def result_of(future: Future[T]) -> T:
    """What the future of a reference holds; waits for it.

    Raises:
        InputError: it, or whatever failed because of one.
        RayError: the process that should have made it failed in another way, or is lost.
    """
    try:
        return future.result()
    except ray.exceptions.RayError as error:
        found = input_error(error)
        if found is not None:
            raise found from error
        raise


def _reason(error: BaseException) -> str:
    """What Ray says an actor died of, on one line, less where it was and its guesses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next((line for line in lines if "because" in line), None)
    return (cause or type(error).__name__).partition(". Some common causes")[0]


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError at the bottom of what Ray raised, if there is one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, InputError) and not isinstance(error, ray.exceptions.RayError):
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
