"""Runs a search: prepare, one Tune trial per seed, report."""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from envs.attack import Attack
from envs.config import CompressionConfig
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.layer_compression import COMPRESSION_VERSION
from envs.problem import CompressionProblem
from envs.setup import prepare_evaluator
from envs.setup import prepare_problem
from hwmodel import InputError
from hwmodel import load_accelerator
from hwmodel.pricing import Level
from search.baselines import BASELINES
from search.baselines import DENSE_INT8
from search.board import BoardActor
from search.board import accuracies
from search.evaluation import EvaluationWorker
from search.evaluation import supports
from search.evaluation import total_costs
from search.events import EventLog
from search.events import one_line
from search.failure import RunError
from search.failure import keep_trace
from search.finalists import write_layer_tables
from search.ledger import RECALIBRATED
from search.ledger import Ledger
from search.permit import Permit
from search.permit import grant
from search.preparation import fill_database
from search.preparation import share
from search.progress import Progress
from search.ray_session import evaluators_that_fit
from search.ray_session import on_this_node
from search.ray_session import ray_session
from search.reachable import require_energies
from search.reachable import require_reachable
from search.report import build_report
from search.requests import WorkerSpec
from search.run_directory import RunDirectory
from search.spec import Spec
from search.storage import Storage
from search.storage import local_database
from search.trial import ClaimsReleased
from search.trial import TrialSetup
from search.trial import round_size
from search.trial import search_trial
from search.trials import run_trials
from search.verification import not_recalibrated
from search.verification import require_verified
from search.verification import unverified

GUIDE_LEVEL: Level = "mid"
"""Level that learners see: they price thousands of candidates for each one that is evaluated."""

_RESTARTS = 20
"""Machines with its trainer that a trial may lose; evaluators that it loses are its own matter."""
_VERIFYING = "verifying on the test split"
_MERGE_SECONDS = 2.0
"""Between looks at whether the ledger has many small files."""


def run_search(
    run: RunDirectory, spec: Spec, shared: Any = None, trials: int | None = None
) -> None:
    """Spend what is left of a run's budget, verify the best, and write the report.

    Everything that was evaluated before, by this call or an earlier one, is read from the
    ledger. Ends early when the time budget is spent; what was found until then is verified.

    Args:
        run: The run.
        spec: Its specification.
        shared: Handle of the actor through which runs of a batch share what they measure, see
            :class:`search.sharing.Accuracies`; None for a run of its own.
        trials: Trials of all runs that share the cluster; those of this run alone if None.

    Raises:
        InputError: the task, the accelerator or the space is not as it should be, another driver
            works on the run, or something cannot be written.
        RunError: something else failed; the traceback is in the run's ``errors`` folder.
        KeyboardInterrupt: it was stopped. After this, and after a trial's RunError, the report is
            that of what was found so far; not after an InputError, which may be of the storage that
            the report goes to.
    """
    budget = spec.time_budget_seconds
    deadline = time.monotonic() + (math.inf if budget is None else budget)
    with (
        run.driving() as details,
        _errors_kept(run.storage.child("errors")),
        EventLog(run.storage, "driver") as log,
        Progress(lambda stage: log.write("stage", stage=stage)) as progress,
        _permit(run) as permit,
    ):
        _set_aside_damaged(run, log)
        accelerator = load_accelerator(spec.accelerator)
        run.require_accelerator(spec, accelerator)
        progress.stage("loading the task")
        task_spec = spec.task_spec()
        device = "cuda" if spec.resources.evaluator_gpus > 0 else "cpu"
        database = run.database(spec)
        evaluator = prepare_evaluator(task_spec.load(), local_database(database))
        share(database)
        if spec.attack is not None:
            _require_attackable(evaluator, spec.attack)
        worker_spec = WorkerSpec(
            task_spec,
            accelerator,
            spec.level,
            database,
            run.ledger.storage,
            device,
            shared,
            run.storage.child("errors"),
            spec.attack,
        )
        worker = EvaluationWorker(worker_spec, evaluator)
        _require_same_network(run, worker)
        with ray_session(spec.resources):
            progress.stage("preparing the options of every layer")
            menu = spec.space.to_menu()
            space = menu.space(evaluator.compressor.network)
            fill_database(evaluator.compressor, space, task_spec, database, progress.step)
            problem = prepare_problem(
                evaluator, accelerator, menu, level=GUIDE_LEVEL, progress=progress.step
            )
            problem = _with_goals(problem, spec, worker)
            share(database)
            evaluators = _evaluators(spec, trials or len(spec.seeds))
            try:
                is_late = _search(
                    run, log, spec, worker, problem, evaluators, permit, deadline, progress
                )
            except (KeyboardInterrupt, RunError):
                _write_results(run, spec, worker)
                raise
            _write_results(run, spec, worker)
        if run.evaluations() < spec.budget:
            details["message"] = "nothing new was left to propose"
            if is_late:
                details["message"] = f"{spec.time_budget} of search are spent; resume goes on"


def _with_goals(
    problem: CompressionProblem, spec: Spec, worker: EvaluationWorker
) -> CompressionProblem:
    """The problem with limits and preference of a specification, as they are at its level.

    Raises:
        InputError: a limit or an energy is out of reach, or dense INT8 has none of what counts.
    """
    asked = limits = spec.goals.limits
    if limits.given and spec.level != problem.level:
        # Levels differ by more for some networks than for others: the strictest counts.
        configs = [baseline_config(worker, spec, bits) for bits in BASELINES.values()]
        pairs = [
            tuple(total_costs(worker.price(config, level)) for level in (problem.level, spec.level))
            for config in configs
            if supports(worker.spec.accelerator, config)
        ]
        limits = limits.scaled(
            {name: min(here[name] / there[name] for here, there in pairs) for name in limits.given}
        )
    int8_config = baseline_config(worker, spec, BASELINES[DENSE_INT8])
    dense_int8 = total_costs(worker.price(int8_config, problem.level))
    problem = replace(problem, limits=limits, objective=spec.goals.preference.over(dense_int8))
    require_reachable(problem, asked)
    require_energies(problem, spec.energy_targets, dense_int8["energy_pj"])
    return problem


def _write_results(run: RunDirectory, spec: Spec, worker: EvaluationWorker) -> None:
    from search.report_files import write_report  # matplotlib: a second that no start waits for

    write_layer_tables(run, spec, worker)
    write_report(run, build_report(run), patiently=True)


@contextmanager
def _errors_kept(errors: Storage) -> Iterator[None]:
    """Keep the traceback of what nobody expected to fail, and raise one line instead."""
    try:
        yield
    except (InputError, RunError):
        raise
    except Exception as error:
        kept = keep_trace(errors, traceback.format_exc())
        raise RunError(f"{one_line(error)}; traceback in {kept}") from error


@contextmanager
def _permit(run: RunDirectory) -> Iterator[Permit]:
    """This driver's; evaluators of earlier ones may record no more."""
    permit = grant(run.storage.child("permits"), "driver")
    yield permit
    with suppress(InputError, OSError):  # what is left is of no use, unless another has taken over
        permit.require()
        permit.storage.clear()


def _require_attackable(evaluator: Evaluator, attack: Attack) -> None:
    """Refuse an attack that the network does not allow before anything else is computed."""
    try:
        evaluator.require_attackable()
    except InputError as error:
        allowed = f"{error.allowed}; this network's outputs: {error.value}"
        raise InputError("robustness.attack", attack.method, allowed) from None


def _set_aside_damaged(run: RunDirectory, log: EventLog) -> None:
    """Move torn files of the ledger away, and say so: their configurations are evaluated again."""
    damaged = run.storage.child("damaged")
    for name in run.ledger.set_aside_damaged(damaged):
        kept = f"{damaged.location}/{name}"
        print(f"joulecut: warning: damaged ledger file moved to {kept}", file=sys.stderr)
        log.write("ledger file damaged", file=name)


def _require_same_network(run: RunDirectory, worker: EvaluationWorker) -> None:
    """Refuse to add to a ledger what other weights or other code would have measured otherwise."""
    rows = run.ledger.read(("weights_hash", "code_version"))
    for column, now in (
        ("weights_hash", worker.weights_hash),
        ("code_version", COMPRESSION_VERSION),
    ):
        for value in set(rows[column]) - {now}:
            allowed = f"the run was started with {value}; use another --output"
            raise InputError(column, now, allowed)


def baseline_config(worker: EvaluationWorker, spec: Spec, bits: int) -> CompressionConfig:
    """The unpruned network with all widths at ``bits``, repaired and rounded as in the search."""
    layers = uniform(worker.evaluator.compressor.network.names, bits).layers
    space = spec.space
    return CompressionConfig(layers, space.repair, space.quantizer, space.reconstruction)


def _evaluators(spec: Spec, trials: int) -> int:
    """Evaluators of each trial: as many as the specification says, or as fit beside ``trials``.

    More than a round asks for would make rounds longer, and the result depend on the machine.
    """
    needed = round_size(min(_shares(spec).values()))
    resources = spec.resources
    return resources.evaluators or min(needed, evaluators_that_fit(resources, trials))


def _search(
    run: RunDirectory,
    log: EventLog,
    spec: Spec,
    worker: EvaluationWorker,
    problem: CompressionProblem,
    evaluators: int,
    permit: Permit,
    deadline: float,
    progress: Progress,
) -> bool:
    """Run the seeds that have budget left as Tune trials, which verify what they found.

    All seeds, where none has and a baseline or a verification is missing.

    Returns:
        Whether the deadline ended the search.
    """
    known = ("split", "config_hash", "accuracy", "seed", "role")
    rows = run.ledger.read(known)
    shares = _shares(spec)
    searched = rows[rows["split"] == "search"].groupby("seed")["config_hash"].nunique()
    seeds = [seed for seed in spec.seeds if searched.get(seed, 0) < shares[seed]]
    left = deadline - time.monotonic()
    baselines = {name: baseline_config(worker, spec, bits) for name, bits in BASELINES.items()}
    measured = accuracies(rows)
    has_baselines = all(config.hash in measured["search"] for config in baselines.values())
    recalibrates = worker.evaluator.task.fresh_calibration is not None
    if has_baselines and (not seeds or left <= 0):
        missing = unverified(run.ledger, spec.goals)
        if recalibrates:
            missing += not_recalibrated(run.ledger, spec.goals)
        if not missing:
            return left <= 0
    seeds = seeds or list(spec.seeds)
    board = BoardActor.options(scheduling_strategy=on_this_node()).remote(measured, seeds, left)
    resources = spec.resources
    setup = TrialSetup(
        problem=problem,
        worker=replace(worker.spec, weights_hash=worker.weights_hash),
        algorithm=spec.algorithm,
        accuracy=spec.accuracy,
        policies=spec.policy_settings,
        shares=shares,
        baselines=baselines,
        chance=worker.evaluator.task.chance,
        goals=spec.goals,
        evaluators=evaluators,
        evaluator_cpus=resources.evaluator_cpus,
        evaluator_gpus=resources.evaluator_gpus,
        evaluation_timeout=resources.evaluation_timeout_seconds,
        recalibrates=recalibrates,
        run=run.storage,
        permit=permit,
    )
    evaluator_bundle = {"CPU": resources.evaluator_cpus, "GPU": resources.evaluator_gpus}
    bundles = [{"CPU": resources.trainer_cpus}] + [evaluator_bundle] * evaluators
    trainable = tune.with_resources(
        tune.with_parameters(search_trial, setup=setup, board=board),
        tune.PlacementGroupFactory(
            [{key: value for key, value in bundle.items() if value} for bundle in bundles]
        ),
    )
    searching = f"searching with {len(seeds)} of {len(spec.seeds)} seeds"
    progress.stage(searching)

    def look() -> None:
        if ray.get(board.is_searching.remote()):
            progress.step(searching, ray.get(board.count.remote()), spec.budget)
            return
        progress.stage(_VERIFYING)
        counts = [board.count.remote(split) for split in ("test", RECALIBRATED)]
        progress.step(_VERIFYING, sum(ray.get(counts)), None)

    with progress.following(look), _merging(run.ledger.storage, log):
        run_trials(
            run,
            log,
            "search",
            trainable,
            {"seed": tune.grid_search(seeds)},
            restarts=_RESTARTS,
            callbacks=[ClaimsReleased(board)],
        )
    require_verified(run.ledger, spec.goals)
    return bool(ray.get(board.is_late.remote()))


@contextmanager
def _merging(storage: Storage, log: EventLog) -> Iterator[None]:
    """Keep the number of a ledger's files small while trials write to it."""
    ledger, stopped = Ledger(storage), threading.Event()

    def merge() -> None:
        while not stopped.wait(_MERGE_SECONDS):
            start = time.monotonic()
            try:
                files = ledger.merge()
            except (InputError, OSError) as error:  # tried again; writers tell of full disks
                log.write("merge failed", error=one_line(error))
                continue
            if files:
                log.write("merge", files=files, seconds=time.monotonic() - start)

    thread = threading.Thread(target=merge, name="merging", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _shares(spec: Spec) -> dict[int, int]:
    """Evaluations of every seed: equal parts of what the baselines leave of the budget."""
    part, rest = divmod(spec.budget - len(BASELINES), len(spec.seeds))
    return {seed: part + (index < rest) for index, seed in enumerate(spec.seeds)}
