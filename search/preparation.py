"""Fills the option database before a search: as Ray work where there is enough of it."""

from __future__ import annotations

import time
from collections import Counter
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from envs.compression import Compressor
from envs.setup import prepare_evaluator
from envs.setup import prepare_problem
from envs.space import NO_PRUNING
from envs.space import Method
from envs.space import SearchSpace
from envs.tabulate import Progress
from envs.tasks import TaskSpec
from hwmodel import load_accelerator
from search.failure import RunError
from search.pool import LOST
from search.pool import MAX_LOSSES
from search.pool import lost_to
from search.pool import result_of
from search.progress import Progress as ProgressBars
from search.ray_session import ray_session
from search.spec import Spec
from search.storage import Storage
from search.storage import local_database
from search.storage import write_error

_FEW_OPERATIONS = 2e11
"""Multiplications, about a minute of one core, below which starting actors is not worth it."""


@dataclass(frozen=True)
class Work:
    """Options of one layer that the database lacks: one method, all sparsities and widths.

    Attributes:
        layer: Number of the layer.
        method: How it is pruned.
        sparsities: Fractions removed.
        operations: Multiplications, roughly.
    """

    layer: int
    method: Method
    sparsities: tuple[float, ...]
    operations: float


def fill_database(
    compressor: Compressor,
    space: SearchSpace,
    task: TaskSpec,
    database: Storage,
    progress: Progress | None = None,
) -> int:
    """Make every option of a space that a database lacks; needs Ray to be started.

    What is made is kept layer by layer, so that a later call goes on where this one was stopped.

    Args:
        compressor: Of the task's network, with the database of this machine.
        space: What may be decided.
        task: Where other processes get the network from.
        database: Where all processes find and leave options.
        progress: Told of every piece of work.

    Returns:
        Pieces of work done.

    Raises:
        InputError: the database cannot be written.
        RunError: processes died over the same layer again and again.
    """
    work = lacking(compressor, space)
    workers = min(len(work), int(ray.cluster_resources().get("CPU", 1)))
    if workers < 2 or sum(item.operations for item in work) < _FEW_OPERATIONS:
        for done, item in enumerate(work):
            _make(compressor, space, item)
            if progress is not None:
                progress("compressing layers", done + 1, len(work))
        share(database)
        return len(work)
    _make_on_cluster(work, space, task, database, workers, progress)
    local_database(database)
    return len(work)


def prepare_database(spec: Spec, location: str, progress: ProgressBars) -> dict[str, Any]:
    """Build the database of a specification's task and space ahead of its searches.

    Args:
        spec: Task, space and resources count.
        location: Path or URI of the database.
        progress: Shows how far it is.

    Returns:
        ``task``, ``database``, ``layers``, ``made`` (pieces of work done: one method of one
        layer), ``lacking`` (pieces that did not fit the limit), ``database_bytes``,
        ``limit_bytes`` and ``seconds``.

    Raises:
        InputError: the task or the space is not as it should be, or the database cannot be
            written.
        RunError: processes died over the same layer again and again.
    """
    start = time.perf_counter()
    database = Storage.at(location)
    progress.stage("gathering statistics")
    evaluator = prepare_evaluator(spec.task_spec().load(), local_database(database))
    share(database)
    compressor, menu = evaluator.compressor, spec.space.to_menu()
    space = menu.space(compressor.network)
    with ray_session(spec.resources):
        progress.stage("preparing the options of every layer")
        made = fill_database(compressor, space, spec.task_spec(), database, progress.step)
    prepare_problem(evaluator, load_accelerator(spec.accelerator), menu, progress=progress.step)
    share(database)
    assert compressor.database is not None
    return {
        "task": evaluator.task.name,
        "database": database.location,
        "layers": len(space.layers),
        "made": made,
        "lacking": len(lacking(compressor, space)),
        "database_bytes": compressor.database.size_bytes(),
        "limit_bytes": compressor.database.limit_bytes,
        "seconds": time.perf_counter() - start,
    }


def lacking(compressor: Compressor, space: SearchSpace) -> list[Work]:
    """What the database of a compressor lacks of a space, the largest pieces first."""
    assert compressor.database is not None
    found = []
    for layer, name in enumerate(space.layers):
        if name in space.pinned:
            continue
        source = compressor.source(layer, space.repair, space.quantizer, space.reconstruction)
        rows = source.layer.rows
        for number, method in enumerate(space.methods):
            if space.is_filter(number):
                continue
            sparsities, _ = space.reached_sparsities(number)
            if compressor.database.lacks(source, method, sparsities, space.weight_bits):
                steps = len(sparsities) * (len(space.weight_bits) + 20 * (method != NO_PRUNING))
                operations = float(rows.numel() * rows.shape[-1] * steps)
                found.append(Work(layer, method, tuple(sparsities), operations))
    return sorted(found, key=lambda item: -item.operations)


def _make(compressor: Compressor, space: SearchSpace, item: Work) -> None:
    assert compressor.database is not None
    source = compressor.source(item.layer, space.repair, space.quantizer, space.reconstruction)
    compressor.database.options(source, item.method, item.sparsities, space.weight_bits)


class _Maker:
    """Makes options in a process of its own."""

    def __init__(self, task: TaskSpec, database: Storage, space: SearchSpace) -> None:
        self._task, self._database, self._space = task, database, space
        self._compressor: Compressor | None = None

    def make(self, item: Work) -> None:
        # Made here and not in the constructor, whose errors reach the caller as text alone.
        if self._compressor is None:
            torch.set_num_threads(1)
            directory = local_database(self._database)
            self._compressor = prepare_evaluator(self._task.load(), directory).compressor
        _make(self._compressor, self._space, item)
        share(self._database)


_MakerActor: Any = ray.remote(_Maker)


def _make_on_cluster(
    work: Sequence[Work],
    space: SearchSpace,
    task: TaskSpec,
    database: Storage,
    workers: int,
    progress: Progress | None,
) -> None:
    waiting, losses, done = deque(work), Counter[Work](), 0
    running: dict[Any, tuple[Any, Work]] = {}

    def start(actor: Any) -> None:
        item = waiting.popleft()
        running[actor.make.remote(item)] = actor, item

    def new_actor() -> Any:
        return _MakerActor.options(num_cpus=1).remote(task, database, space)

    try:
        for _ in range(workers):
            start(new_actor())
        while running:
            (finished,), _ = ray.wait(list(running), num_returns=1)
            actor, item = running[finished]
            try:
                result_of(finished.future())
            except LOST as error:
                losses[item] += 1
                if losses[item] == MAX_LOSSES:
                    over = f"{MAX_LOSSES} processes died over {space.layers[item.layer]}"
                    raise RunError(f"{over}, {item.method}: {lost_to(error)}") from error
                waiting.appendleft(item)
                ray.kill(actor)
                start(new_actor())
            else:
                done += 1
                if progress is not None:
                    progress("compressing layers", done, len(work))
                if waiting:
                    start(actor)
                else:  # one that was started for what was lost may need its room
                    ray.kill(actor)
            del running[finished]
    finally:
        for actor, _ in running.values():
            ray.kill(actor)


def share(database: Storage) -> None:
    """Leave in a remote database what this machine has made for it.

    Raises:
        InputError: it cannot be written.
    """
    if database.local is not None:
        return
    here = Storage.at(local_database(database))
    try:
        database.make()
        for name in set(here.names("database")) - set(database.names("database")):
            if not name.startswith("."):
                database.write_patiently(name, here.read(name))
    except OSError as error:
        raise write_error("database", database.location, error) from None
