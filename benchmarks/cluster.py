"""What a cluster adds to a true evaluation, and how many evaluators a trial keeps busy.

    python benchmarks/cluster.py overhead --evaluations 10000
    python benchmarks/cluster.py ledger --rows 1000 10000 100000
    python benchmarks/cluster.py scaling --evaluators 1 8 64 256
    python benchmarks/cluster.py workers --task cifar10-resnet20 --evaluations 40

``overhead`` sends evaluations that do nothing through what a trial uses: a board, a pool of two
evaluators, metrics, a log, and a ledger whose files another process, the driver, merges meanwhile.
``ledger`` fills a ledger row by row, times what is asked of it at each size, and tells the memory
of the process after that and at most, the board's included. ``scaling`` has evaluators that wait
instead of compute, on four simulated nodes, eight of them in a process for the memory's sake: its
efficiency is the time that they waited over the time that they were there to wait. The processor
time of the trial for each evaluation tells how many it could keep busy on a machine without other
work. ``workers`` measures true evaluations a second with one evaluator and with two, each with a
processor and a thread of its own, alternately: the same random configurations each time, which
these evaluators have not seen, from an option database that is filled first, as in a search.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from datetime import timezone
from functools import partial
from pathlib import Path
from typing import Any

import ray

ROOT = Path(__file__).parents[1]
NODES = 4
PER_PROCESS = 8
_WARM_UP = 4
"""Evaluations of each pool before any is timed."""
CONFIG = "x" * 2000
"""As long as the text of a configuration of twenty layers."""


def row(number: int) -> Any:
    """A ledger row of configuration ``number``."""
    from search.ledger import Evaluation

    return Evaluation(
        config_hash=f"{number:016x}",
        config=CONFIG,
        task="none",
        weights_hash="0" * 16,
        split="search",
        role="search",
        name="",
        accuracy=0.9,
        block_accuracies=(0.9,) * 10,
        images=5000,
        robust_accuracy=None,
        energy_pj=1e6,
        latency_cycles=1e5,
        bops=1e7,
        model_bytes=1e4,
        dram_bytes=1e5,
        accelerator="none",
        seconds=0.0,
        seed=0,
        algorithm="random",
        host="here",
        time=datetime.now(timezone.utc),
        code_version="0",
    )


class Nothing:
    """Records rows, and does nothing for them."""

    def __init__(self, folder: str, permit: Any) -> None:
        from search.ledger import Ledger

        self._ledger = Ledger(folder)
        self._permit = permit

    def evaluate_all(self, requests: list[int], *, again: bool) -> Any:
        rows = [row(request) for request in requests]
        self._permit.require()
        self._ledger.append(rows)
        return rows

    def record_failure(self, request: Any, error: str) -> Any:
        raise AssertionError(error)


class Waiting:
    """Waits, and answers with the numbers of the requests."""

    def __init__(self, seconds: float, permit: Any) -> None:
        self._seconds = seconds

    def evaluate_all(self, requests: list[int], *, again: bool) -> list[int]:
        time.sleep(self._seconds * len(requests))
        return requests

    def record_failure(self, request: Any, error: str) -> Any:
        raise AssertionError(error)


def memory_mb(process: int | None = None) -> float:
    """Resident memory of a process, by default this one."""
    pages = int(Path(f"/proc/{process or 'self'}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def merge(folder: str, stop: Any) -> None:
    """What the driver does while trials, in processes of their own, evaluate."""
    from search.events import EventLog
    from search.runner import _merging
    from search.storage import Storage

    log = EventLog(Storage.at(f"{folder}-log"), "driver")
    with _merging(Storage.at(folder), log):
        stop.wait()
    log.close()


@contextmanager
def driver(folder: str) -> Iterator[int]:
    """The process that merges a ledger's files meanwhile; yields its id."""
    spawned = multiprocessing.get_context("spawn")
    stop = spawned.Event()
    process = spawned.Process(target=merge, args=(folder, stop))
    process.start()
    assert process.pid is not None
    try:
        yield process.pid
    finally:
        stop.set()
        process.join()


def local_ray() -> None:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )


def overhead(evaluations: int) -> None:
    from search.board import BoardActor
    from search.board import News
    from search.events import EventLog
    from search.events import evaluation_fields
    from search.goals import Goals
    from search.metrics import SeedMetrics
    from search.permit import grant
    from search.pool import EvaluatorPool
    from search.storage import Storage

    local_ray()
    with tempfile.TemporaryDirectory() as directory:
        folder = f"{directory}/ledger"
        board: Any = BoardActor.remote({})
        log = EventLog(Storage.at(directory), "seed-0")
        metrics = SeedMetrics(directory, 0, 2, Goals((0.5, 1.0, 2.0)))
        permit = grant(Storage.at(f"{directory}/permits"), "seed-0")
        make: Any = partial(Nothing, folder)
        pool: Any = EvaluatorPool(make, 2, 0.4, 0, permit)  # numbers stand for its requests
        list(pool.evaluate([10**9, 10**9 + 1]))
        batch = evaluations // 10
        print("evaluations   ms each   of them telling   trial MiB   driver MiB   files")
        with driver(folder) as merging:
            for first in range(0, evaluations, batch):
                start, telling = time.perf_counter(), 0.0
                news = News(board)
                numbers = range(first, first + batch)
                ray.get(board.claim.remote([f"{number:016x}" for number in numbers], 0))
                for result in pool.evaluate(list(numbers)):
                    news.add(result)
                    before = time.perf_counter()
                    log.write("evaluation", **evaluation_fields(result))
                    metrics.evaluated(result, pool.waiting)
                    telling += time.perf_counter() - before
                news.tell()
                before = time.perf_counter()
                metrics.end_round()
                telling += time.perf_counter() - before
                each = 1000 * (time.perf_counter() - start) / batch
                files = len(os.listdir(folder))
                done = first + batch
                told = 1000 * telling / batch
                print(
                    f"{done:11} {each:9.2f} {told:17.3f}"
                    f" {memory_mb():11.0f} {memory_mb(merging):12.0f} {files:7}",
                    flush=True,
                )
        pool.close()
        log.close()
    ray.shutdown()


def ledger(sizes: list[int]) -> None:
    from search.board import Board
    from search.ledger import MEASURED
    from search.ledger import Ledger

    with tempfile.TemporaryDirectory() as folder:
        writer, board, count = Ledger(folder), Board({}), 0
        template = row(0)
        print("rows      append+merge ms   board us   find s   read s   files   MiB   MiB at most")
        for size in sizes:
            start, first = time.perf_counter(), count
            while count < size:
                # In files of 64 rows: one by one takes the disk minutes.
                rows = [
                    dataclasses.replace(template, config_hash=f"{number:016x}")
                    for number in range(count, min(count + 64, size))
                ]
                writer.append(rows)
                count += len(rows)
                if count % 4096 < 64:
                    writer.merge()
            appended = 1000 * (time.perf_counter() - start) / (size - first)
            for number in range(first, size):
                board.record({"search": {f"{number:016x}": 0.9}})
            start = time.perf_counter()
            for number in range(1000):
                board.claim([f"{size + number:016x}", f"{number % size:016x}"], 0)
            asked = 1e6 * (time.perf_counter() - start) / 1000
            board.restart(0, {})
            start = time.perf_counter()
            assert Ledger(folder).find(f"{size // 2:016x}", "search") is not None
            found = time.perf_counter() - start
            start = time.perf_counter()
            assert len(Ledger(folder).read(MEASURED)) == size
            read = time.perf_counter() - start
            at_most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{size:7} {appended:16.3f} {asked:10.1f} {found:8.2f} {read:8.2f}"
                f" {len(os.listdir(folder)):7} {memory_mb():5.0f} {at_most:13.0f}",
                flush=True,
            )


def scaling(evaluators: list[int], seconds: float, rounds: int) -> None:
    from ray.cluster_utils import Cluster

    from search.permit import grant
    from search.pool import EvaluatorPool
    from search.pool import _EvaluatorActor
    from search.storage import Storage

    class SharedPool(EvaluatorPool):
        """Evaluators that share processes, which changes nothing for the pool."""

        def _start(self) -> None:
            if len(self._starting) % PER_PROCESS == 0:
                options = _EvaluatorActor.options(num_cpus=1, max_concurrency=PER_PROCESS)
                self._process = options.remote(self._make_worker)
            prepared = self._process.prepare.remote(self._permit)
            self._starting[self._watched(prepared)] = self._process

    options: dict[str, Any] = {"object_store_memory": 80 * 2**20}
    quiet = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
    head = {"num_cpus": 1, "_system_config": quiet, **options}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(NODES):
        cluster.add_node(num_cpus=-(-max(evaluators) // NODES // PER_PROCESS) + 1, **options)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    print("evaluators   evaluations   seconds   efficiency   CPU ms each")
    folder = tempfile.TemporaryDirectory()
    permit = grant(Storage.at(folder.name), "seed-0")
    try:
        for size in evaluators:
            make: Any = partial(Waiting, seconds)
            pool: Any = SharedPool(make, size, 1, 0, permit)  # numbers stand for its requests
            list(pool.evaluate(range(2 * size)))  # all of them started
            count = size * rounds
            start, processor = time.perf_counter(), time.process_time()
            assert sorted(pool.evaluate(range(count))) == list(range(count))
            wall = time.perf_counter() - start
            efficiency = count * seconds / (size * wall)
            each = 1000 * (time.process_time() - processor) / count
            print(f"{size:10} {count:13} {wall:9.1f} {efficiency:12.3f} {each:13.2f}", flush=True)
            pool.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
        folder.cleanup()


def workers(task: Any, evaluations: int) -> None:
    import numpy as np

    from envs.setup import Menu
    from envs.setup import prepare_evaluator
    from envs.space import NO_PRUNING
    from envs.space import Method
    from hwmodel import load_accelerator
    from search.evaluation import EvaluationWorker
    from search.permit import Permit
    from search.permit import grant
    from search.pool import EvaluatorPool
    from search.preparation import fill_database
    from search.requests import Request
    from search.requests import WorkerSpec
    from search.storage import Storage

    methods = (NO_PRUNING, Method.parse("element/l1"))
    menu = Menu(
        methods, (0.1, 0.2, 0.3, 0.4, 0.5), weight_bits=(4, 5, 6, 7, 8), activation_bits=(8,)
    )

    def evaluator(spec: WorkerSpec, permit: Permit) -> EvaluationWorker:
        return EvaluationWorker(spec, permit=permit, threads=1)

    local_ray()
    with tempfile.TemporaryDirectory() as directory:
        run = Storage.at(directory)
        database = run.child("database")
        compressor = prepare_evaluator(task.load(), Path(database.root)).compressor
        space = menu.space(compressor.network)
        fill_database(compressor, space, task, database)
        choices = space.sample(np.random.default_rng(0), _WARM_UP + evaluations)
        requests = [Request(space.config(choice), "search", "search") for choice in choices]
        accelerator = load_accelerator("eyeriss-like")
        spec = WorkerSpec(task, accelerator, "mid", database, run.child("ledger"))
        permits = run.child("permits")
        print("evaluators   evaluations   seconds   evaluations/s")
        for size in (1, 2, 1, 2):
            permit = grant(permits, "seed-0")
            pool = EvaluatorPool(partial(evaluator, spec), size, 1, 0, permit)
            list(pool.evaluate(requests[:_WARM_UP]))  # all of them at work
            start = time.perf_counter()
            list(pool.evaluate(requests[_WARM_UP:]))
            seconds = time.perf_counter() - start
            each = evaluations / seconds
            print(f"{size:10} {evaluations:13} {seconds:9.1f} {each:15.3f}", flush=True)
            pool.close()
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("overhead")
    verb.add_argument("--evaluations", type=int, default=10_000)
    verb = verbs.add_parser("ledger")
    verb.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    verb = verbs.add_parser("scaling")
    verb.add_argument("--evaluators", type=int, nargs="+", default=[1, 8, 64, 256])
    verb.add_argument("--seconds", type=float, default=5.0, help="that an evaluation waits")
    verb.add_argument("--rounds", type=int, default=5, help="evaluations of each evaluator")
    verb = verbs.add_parser("workers")
    verb.add_argument("--task", default="digits")
    verb.add_argument("--data")
    verb.add_argument("--weights")
    verb.add_argument("--evaluations", type=int, default=40)
    args = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'benchmarks'}"  # of the actors
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.verb == "overhead":
        overhead(args.evaluations)
    elif args.verb == "ledger":
        ledger(args.rows)
    elif args.verb == "workers":
        from envs.tasks import TaskSpec

        workers(TaskSpec(args.task, args.data, args.weights).absolute(), args.evaluations)
    else:
        scaling(args.evaluators, args.seconds, args.rounds)


if __name__ == "__main__":
    main()
