"""Runs the experiments of a batch, as many at a time as the cluster has room for."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import suppress
from functools import partial
from typing import Any

import ray

from envs.evaluator import EvaluationResult
from envs.layer_compression import COMPRESSION_VERSION
from hwmodel import InputError
from search.batch_directory import BatchDirectory
from search.batch_directory import network_key
from search.batch_spec import Experiment
from search.driving import BusyError
from search.failure import RunError
from search.failure import keep_trace
from search.ledger import evaluations
from search.progress import tell
from search.ray_session import on_this_node
from search.ray_session import ray_session
from search.ray_session import trial_resources
from search.runner import run_search
from search.sharing import AccuraciesActor
from search.sharing import Key
from search.spec import ResourceSection
from search.storage import reason

AHEAD = 2
"""Experiments started beyond what fits; where more than twice as many fit, half of those. They load
and prepare while others search, and what they wait for makes a cluster grow."""
_POLL_SECONDS = 1.0
_ORPHAN_SECONDS = 60.0
"""How long a process may live on that its dead machine has left behind."""
_MAX_LOSSES = 20
"""Times that an experiment may lose its process, or fail while a machine dies, before it is left
alone."""


def run_batch(batch: BatchDirectory, *, retry_failed: bool = False) -> None:
    """Run every experiment that is not complete.

    One that fails is recorded as failed in its own run directory, and the others go on.

    Args:
        batch: The batch.
        retry_failed: Also run those that failed before.

    Raises:
        InputError: another driver works on the batch, or there is no such cluster.
        KeyboardInterrupt: experiments are left as they are, to be resumed.
    """
    with batch.state.driving() as state:
        experiments = batch.experiments()
        done = {"completed"} if retry_failed else {"completed", "failed"}
        waiting = [item for item in experiments if batch.run_state(item)["state"] not in done]
        if not waiting:
            return
        resources = waiting[0].spec.resources
        with ray_session(resources), _sampled(resources, state) as usage:
            shared = AccuraciesActor.options(scheduling_strategy=on_this_node()).remote(
                _known(batch, experiments)
            )
            prepared: dict[str, str] = {}
            _note_prepared(batch, experiments, prepared)
            _run_all(batch, waiting, prepared, shared, usage, state)


def _run_all(
    batch: BatchDirectory,
    waiting: list[Experiment],
    prepared: dict[str, str],
    shared: Any,
    usage: _Usage,
    state: dict[str, Any],
) -> None:
    failures: dict[str, str] = {}  # of those whose run directory cannot say it
    state["failures"] = failures
    running: dict[Any, Experiment] = {}
    actors: dict[str, Any] = {}
    idle: list[Any] = []  # processes without an experiment: to start one takes long
    machines: dict[str, set[str]] = {}  # that were there when it started
    losses: dict[str, int] = {}
    while waiting or running:
        for experiment in _next(waiting, list(running.values()), prepared):
            waiting.remove(experiment)
            actor = idle.pop() if idle else _ExperimentActor.remote()
            actors[experiment.name] = actor
            machines[experiment.name] = _machines()
            patience = _ORPHAN_SECONDS if experiment.name in losses else 0.0
            running[actor.run.remote(batch, experiment, shared, patience)] = experiment
            tell(f"{experiment.name}: started")
        usage.is_waiting = bool(waiting)
        ended, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
        _note_prepared(batch, running.values(), prepared)  # those that have just ended, too
        for reference in ended:
            experiment = running.pop(reference)
            actor = actors.pop(experiment.name)
            try:
                message = ray.get(reference)
                # What a machine takes with it fails in many ways, not all of which say why.
                is_lost = message is not None and not machines[experiment.name] <= _machines()
            except ray.exceptions.RayError as error:
                message, is_lost = f"its processes die: {reason(error)}", True
            if message is None:
                idle.append(actor)
            else:
                with suppress(Exception):  # of an actor that died there is nothing left to kill
                    ray.kill(actor)
            if is_lost:
                losses[experiment.name] = losses.get(experiment.name, 0) + 1
                if losses[experiment.name] < _MAX_LOSSES:
                    waiting.insert(0, experiment)
                    tell(f"{experiment.name}: lost with its machine, waits to go on")
                    continue
            if message is not None and batch.run_state(experiment)["state"] != "failed":
                failures[experiment.name] = message
            outcome = "completed" if message is None else f"failed: {message}"
            tell(f"{experiment.name}: {outcome}; {len(waiting)} wait, {len(running)} run")


def _note_prepared(
    batch: BatchDirectory, experiments: Iterable[Experiment], prepared: dict[str, str]
) -> None:
    """Add the network's key, by name, of experiments that are prepared now and were not before.

    Each is a listing of a folder, maybe of an object store: ask for those alone that may change.
    """
    for item in experiments:
        if item.name not in prepared and batch.is_prepared(item):
            prepared[item.name] = network_key(item)


def _next(
    waiting: list[Experiment], running: list[Experiment], prepared: Mapping[str, str]
) -> list[Experiment]:
    """Experiments to start now: one at a time where they would prepare the same network.

    Args:
        waiting: Not started, or to be started again.
        running: At work.
        prepared: See :func:`_note_prepared`.
    """
    if not waiting:
        return []
    room = _room(waiting[0].spec.resources)
    free = room - len(running)
    # Not before: those ahead would take the processors from those that slots wait for.
    if free <= 0 and all(item.name in prepared for item in running):
        free += max(AHEAD, room // 2)
    ready = set(prepared.values())
    preparing = {network_key(item) for item in running} - ready
    found: list[Experiment] = []
    for experiment in waiting:
        if len(found) >= free:
            break
        key = network_key(experiment)
        if key in preparing:
            continue
        if key not in ready:
            preparing.add(key)
        found.append(experiment)
    return found


def _machines() -> set[str]:
    """Machines of the cluster that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _room(resources: ResourceSection) -> int:
    """Experiments whose trials the cluster has room for as it is; at least 1."""
    there, needed = ray.cluster_resources(), trial_resources(resources)
    room = [int(there.get(kind, 0.0) / amount + 1e-6) for kind, amount in needed.items() if amount]
    return max(1, min(room))


class _Experiment:
    """The process that drives one experiment."""

    def run(
        self, batch: BatchDirectory, experiment: Experiment, shared: Any, patience: float
    ) -> str | None:
        """Run it to its end; returns why it failed, None where it did not.

        Waits ``patience`` seconds for another driver of it to end.
        """
        try:
            run, spec = batch.run(experiment)
            trials = sum(len(item.spec.seeds) for item in batch.experiments())
            _when_free(patience, partial(run_search, run, spec, shared, trials))
        except (InputError, RunError) as error:
            return str(error)
        except Exception as error:  # must not end the others
            keep_trace(batch.run_storage(experiment).child("errors"), traceback.format_exc())
            return f"{type(error).__name__}: {reason(error)}"
        return None


_ExperimentActor: Any = ray.remote(num_cpus=0)(_Experiment)


def _when_free(patience: float, work: Callable[[], None]) -> None:
    """Do what another driver may be at, for which to end there are ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return work()
        except BusyError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _known(batch: BatchDirectory, experiments: list[Experiment]) -> dict[Key, EvaluationResult]:
    """What the ledgers of a batch hold already, as far as the code was the same."""
    found: dict[Key, EvaluationResult] = {}
    for experiment in experiments:
        if batch.run_state(experiment)["state"] == "waiting":
            continue
        run, spec = batch.run(experiment)
        task = spec.task_spec()
        with suppress(InputError):  # a damaged ledger is the matter of its own run
            for row in evaluations(run.ledger.read()):
                if row.accuracy is not None and row.code_version == COMPRESSION_VERSION:
                    key = Key(task, row.weights_hash, row.split, row.config_hash, spec.attack)
                    found[key] = EvaluationResult(
                        row.accuracy,
                        row.block_accuracies,
                        row.images,
                        row.seconds,
                        robust_accuracy=row.robust_accuracy,
                    )
    return found


class _Usage:
    """How much of the cluster was reserved while experiments waited, in slot-seconds."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._last = time.monotonic()
        self.is_waiting = False
        self.busy_seconds = 0.0
        self.slot_seconds = 0.0

    def sample(self) -> None:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        total = ray.cluster_resources().get(self._kind, 0.0)
        if self.is_waiting:
            free = ray.available_resources().get(self._kind, 0.0)
            self.busy_seconds += seconds * (total - free)
            self.slot_seconds += seconds * total


@contextmanager
def _sampled(resources: ResourceSection, state: dict[str, Any]) -> Iterator[_Usage]:
    """Measure GPU use (CPU use where experiments take none) into the batch's state."""
    kind = "GPU" if resources.evaluator_gpus > 0 else "CPU"
    usage, stopped = _Usage(kind), threading.Event()

    def run() -> None:
        while not stopped.wait(_POLL_SECONDS):
            usage.sample()
            if usage.slot_seconds > 0:
                state["utilization"] = usage.busy_seconds / usage.slot_seconds

    thread = threading.Thread(target=run, name="usage", daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stopped.set()
        thread.join()
