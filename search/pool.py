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
MAX_AT_ONCE = 8
"""Short evaluations that an evaluator is given together."""
_SECONDS_AT_ONCE = 0.05
"""How long these may take: what passes between two calls is then a small part of it."""
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,  # it answered, and its node died before the answer was read
)
"""What Ray raises where an actor is gone, rather than what it did wrong."""
_MAX_FAILED_STARTS = 8
"""Evaluators in a row that may die before they are ready."""


class Worker(Protocol):
    """What evaluates in an actor's process; see :class:`search.evaluation.EvaluationWorker`."""

    def evaluate_all(self, requests: Sequence[Request], *, again: bool) -> list[Evaluation]: ...

    def record_failure(self, request: Request, error: str) -> Evaluation: ...


class _Evaluator:
    """The process of one evaluator; errors of a constructor would reach the caller as text."""

    def __init__(self, make_worker: Callable[[Permit], Worker]) -> None:
        self._make_worker = make_worker

    def prepare(self, permit: Permit) -> None:
        self._worker = self._make_worker(permit)

    def evaluate_all(self, requests: Sequence[Request], again: bool) -> list[Evaluation]:
        return self._worker.evaluate_all(requests, again=again)

    def record_failure(self, request: Request, error: str) -> list[Evaluation]:
        return [self._worker.record_failure(request, error)]


_EvaluatorActor: Any = ray.remote(_Evaluator)


@dataclass
class _Task:
    """One request, and what became of the actors that were at it."""

    request: Request
    again: bool
    timeouts: int = 0
    losses: int = 0
    failure: str | None = None

    @property
    def is_new(self) -> bool:
        return self.timeouts + self.losses == 0


@dataclass
class _Job:
    """Tasks that an actor is at, one after the other."""

    tasks: list[_Task]
    actor: Any
    started: float
    deadline: float


class EvaluatorPool:
    """Evaluator actors in the placement group of the trial that makes them.

    An actor that dies, with its node or alone, or that does not answer in time, is replaced and
    what it was at is given to another. Short evaluations go to an actor several at once.

    Args:
        make_worker: Called in every actor, with the actor's permit to add to the ledger; what it
            returns evaluates.
        size: Number of actors.
        num_cpus, num_gpus: What each of them reserves; may be fractions.
        permit: The trial's, to make actors.
        timeout: Seconds after which an evaluation, or several short ones, count as hanging; None
            for no limit.
        notice: Told what becomes of actors: ``evaluator ready`` and ``evaluator lost``, the
            (first) request that it was given, if any, and why it was lost.

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
        self._size = size
        self._permit = permit
        self._timeout = timeout
        self._notice = notice
        self.waiting = 0
        self._seconds = float("inf")
        self._failed_starts = 0
        self._permits: dict[Any, Permit] = {}
        self._starting: dict[Future[None], Any] = {}
        self._free: list[Any] = []
        self._running: dict[Future[list[Evaluation]], _Job] = {}
        # Asking Ray for what has ended takes time in proportion to what has not.
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        for _ in range(size):
            self._start()

    def evaluate(
        self, requests: Sequence[Request], *, again: bool = False, deadline: float = float("inf")
    ) -> Iterator[Evaluation]:
        """Evaluate all requests; yields every row as soon as it is in the ledger.

        Args:
            requests: What to evaluate.
            again: Another trial may have been asked before and did not answer: what it may have
                recorded before it was lost is not evaluated again.
            deadline: By the monotonic clock: nothing is begun after it, and what ends first after
                it is the last that is waited for.

        Raises:
            InputError: the actors cannot be set up, or the ledger cannot be written.
        """
        waiting = deque(_Task(request, again) for request in requests)
        while waiting or self._running:
            if time.monotonic() < deadline:
                self._hand_out(waiting)
            elif not self._running:
                return
            ended = self._next_ended()
            if ended in self._starting:
                self._started(ended)
            elif ended in self._running:  # and not what was given up
                job = self._running.pop(ended)
                rows = self._finish(job, ended)
                if rows is None:
                    waiting.extendleft(reversed(job.tasks))
                else:
                    is_last = time.monotonic() >= deadline
                    if not is_last:
                        self._hand_out(waiting)  # nobody waits for what is done with the rows
                    self.waiting = len(waiting)
                    yield from rows
                    if is_last:
                        return
            for future in self._overdue():
                job = self._running.pop(future)
                self._give_up(job, f"no result in {self._timeout:g} s")
                for task in job.tasks:
                    task.timeouts += 1
                    if task.timeouts == MAX_TIMEOUTS:
                        task.failure = f"no result in {self._timeout:g} s, {MAX_TIMEOUTS} times"
                waiting.extendleft(reversed(job.tasks))

    def close(self) -> None:
        """End the actors."""
        running = [job.actor for job in self._running.values()]
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
            self._submit(self._next_tasks(waiting), self._free.pop())

    def _next_tasks(self, waiting: deque[_Task]) -> list[_Task]:
        """Several, where these take little time and leave as many to every other actor."""
        tasks = [waiting.popleft()]
        if tasks[0].is_new:  # what may have cost an actor its life goes alone
            fair = (len(waiting) + 1) // self._size
            count = min(MAX_AT_ONCE, fair, _SECONDS_AT_ONCE // self._seconds)
            while len(tasks) < count and waiting[0].is_new:
                tasks.append(waiting.popleft())
        return tasks

    def _submit(self, tasks: list[_Task], actor: Any) -> None:
        first = tasks[0]
        if first.failure is not None:
            reference = actor.record_failure.remote(first.request, first.failure)
        else:
            again = first.again or not first.is_new
            reference = actor.evaluate_all.remote([task.request for task in tasks], again)
        started = time.monotonic()
        deadline = float("inf") if self._timeout is None else started + self._timeout
        self._running[self._watched(reference)] = _Job(tasks, actor, started, deadline)

    def _watched(self, reference: Any) -> Future[Any]:
        """A future of a reference, which is among the ended ones when it has."""
        future: Future[Any] = reference.future()
        future.add_done_callback(self._ended.put)
        return future

    def _next_ended(self) -> Future[Any] | None:
        """Waits for it; None where a deadline comes first."""
        first = min((job.deadline for job in self._running.values()), default=float("inf"))
        wait = None if first == float("inf") else max(0.0, first - time.monotonic())
        try:
            return self._ended.get(timeout=wait)
        except queue.Empty:
            return None

    def _overdue(self) -> list[Future[list[Evaluation]]]:
        now = time.monotonic()
        return [future for future, job in self._running.items() if job.deadline <= now]

    def _started(self, future: Future[None]) -> None:
        actor = self._starting.pop(future)
        try:
            result_of(future)
        except LOST as error:
            self._failed_starts += 1
            self._notice("evaluator lost", None, lost_to(error))
            if self._failed_starts == _MAX_FAILED_STARTS:
                allowed = f"they die before they are ready ({lost_to(error)})"
                raise InputError("resources.evaluators", self._failed_starts, allowed) from error
            self._replace(actor)
        else:
            self._failed_starts = 0
            self._notice("evaluator ready", None, None)
            self._free.append(actor)

    def _finish(self, job: _Job, future: Future[list[Evaluation]]) -> list[Evaluation] | None:
        """The rows of evaluations that ended; None where their actor is lost."""
        try:
            rows = result_of(future)
        except LOST as error:
            self._give_up(job, lost_to(error))
            for task in job.tasks:
                task.losses += 1
                if task.losses == MAX_LOSSES:
                    task.failure = f"{MAX_LOSSES} evaluators died with it: {lost_to(error)}"
            return None
        self._free.append(job.actor)
        if job.tasks[0].is_new and not job.tasks[0].again:  # else they may only have been looked up
            self._seconds = (time.monotonic() - job.started) / len(rows)
        return rows

    def _give_up(self, job: _Job, why: str) -> None:
        self._notice("evaluator lost", job.tasks[0].request, why)
        self._replace(job.actor)


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


def lost_to(error: BaseException) -> str:
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
