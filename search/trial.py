"""One seed of a search: propose, evaluate, learn, until its share is spent; then verify."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import tune

from envs.config import CompressionConfig
from envs.problem import CompressionProblem
from search.baselines import DENSE_FP32
from search.board import Answer
from search.board import News
from search.board import accuracies
from search.board import accuracy
from search.earlier import earlier_accuracies
from search.events import EventLog
from search.events import evaluation_fields
from search.front import baseline
from search.front import distinct
from search.goals import Goals
from search.ledger import Evaluation
from search.ledger import Ledger
from search.ledger import evaluations
from search.measurements import Measurements
from search.measurements import Reference
from search.measurements import drops_that_hold
from search.metrics import SeedMetrics
from search.permit import Permit
from search.policy_settings import PolicySettings
from search.pool import EvaluatorPool
from search.pool import Worker
from search.proposers import Proposer
from search.proposers import make_proposer
from search.requests import Request
from search.requests import WorkerSpec
from search.requests import evaluation_error
from search.storage import Storage
from search.trials import METRICS
from search.trials import reported_errors
from search.verification import not_recalibrated
from search.verification import recalibrate
from search.verification import unverified
from search.verification import verify

_ROUNDS = 12
"""Times that a trial learns from its evaluations."""
_MIN_ROUND = 2
_FRUITLESS_ROUNDS = 50
"""Rounds without anything new after which a space counts as exhausted."""
_ENERGY_MARGIN = 0.99
"""Share of an energy target that is aimed at: what is expected may be a little below what is
measured."""
_WAIT_SECONDS = 0.2
"""Between looks at whether another trial has evaluated something."""


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a run share; small and picklable.

    Attributes:
        problem: What may be decided and how it is priced.
        worker: What evaluators evaluate.
        algorithm: What proposes configurations, see ``search.spec.Spec``.
        accuracy: What policies learn from, see ``search.spec.Accuracy``.
        policies: Settings of learned policies.
        shares: Evaluations of every seed.
        baselines: What accuracies are compared to, and is measured first, by name.
        chance: Accuracy of guessing, 0..1; failed evaluations count as that.
        goals: What is asked for.
        evaluators: Number of evaluator actors of a trial.
        evaluator_cpus, evaluator_gpus: What each reserves.
        evaluation_timeout: Seconds after which an evaluation counts as hanging; None for no limit.
        recalibrates: Whether the task has another sample of calibration data to check picks with.
        run: Directory of the run: learners' checkpoints and logs go there.
        permit: The driver's.
    """

    problem: CompressionProblem
    worker: WorkerSpec
    algorithm: str
    accuracy: str
    policies: PolicySettings
    shares: dict[int, int]
    baselines: dict[str, CompressionConfig]
    chance: float
    goals: Goals
    evaluators: int
    evaluator_cpus: float
    evaluator_gpus: float
    evaluation_timeout: float | None
    recalibrates: bool
    run: Storage
    permit: Permit


def round_size(share: int) -> int:
    """Evaluations between two times that a trial learns, where it has not more evaluators."""
    return max(_MIN_ROUND, -(-share // _ROUNDS))


def search_trial(config: dict[str, Any], *, setup: TrialSetup, board: Any) -> None:
    """Tune trainable: runs one seed, ``config["seed"]``, on from where the ledger stands.

    Args:
        config: The trial's parameters.
        setup: What it shares with the others.
        board: Handle of the run's ``BoardActor``.
    """
    seed = config["seed"]
    name = f"seed-{seed}"
    with reported_errors() as report, EventLog(setup.run, name, trial=name) as log:
        metrics = SeedMetrics(setup.run.root, seed, setup.evaluators, setup.goals)
        pool = _pool(setup, setup.permit.grant_child(name), metrics, log)
        try:
            _measure_baselines(seed, setup, board, pool, metrics, log)
            with metrics.learning():
                seeker, spent = _resumed(seed, setup, metrics, log)
            run_seed(seed, setup, board, pool, seeker, spent, metrics, log)
            _verify(seed, setup, board, pool, log)
        finally:
            pool.close()
    if report:
        tune.report(report)


def _pool(setup: TrialSetup, permit: Permit, metrics: SeedMetrics, log: EventLog) -> EvaluatorPool:
    def notice(event: str, request: Request | None, error: str | None) -> None:
        if error is not None:
            metrics.count("lost_evaluators")
        config_hash = None if request is None else request.config.hash
        log.write(event, config_hash=config_hash, error=error)

    return EvaluatorPool(
        partial(_make_worker, setup.worker, max(1, int(setup.evaluator_cpus))),
        setup.evaluators,
        setup.evaluator_cpus,
        setup.evaluator_gpus,
        permit,
        setup.evaluation_timeout,
        notice,
    )


def _make_worker(spec: WorkerSpec, threads: int, permit: Permit) -> Worker:
    from search.evaluation import EvaluationWorker  # torch, which the trial's own process saves

    return EvaluationWorker(spec, permit=permit, threads=threads)


def _measure_baselines(
    seed: int,
    setup: TrialSetup,
    board: Any,
    pool: EvaluatorPool,
    metrics: SeedMetrics,
    log: EventLog,
) -> None:
    """Until the ledger has all baselines; trials that start together share them out.

    Raises:
        InputError: the evaluation of a baseline failed, without which nothing can be said.
    """
    # The ledger, not the board: a trial that died may have left a row that nobody announced.
    known = Ledger(setup.worker.ledger).read(("split", "config_hash", "accuracy", "role"))
    ray.get(board.restart.remote(seed, accuracies(known)))
    names = {config.hash: name for name, config in setup.baselines.items()}
    while True:
        answers = claim(board, list(names), seed, math.inf)
        granted = {key for key, answer in zip(names, answers, strict=True) if answer == "granted"}
        if not granted:
            return
        requests = [
            Request(setup.baselines[name], "search", "baseline", name)
            for key, name in names.items()
            if key in granted
        ]
        news = News(board)
        for row in pool.evaluate(requests, again=True):
            log.write("evaluation", **evaluation_fields(row))
            metrics.count("evaluation_seconds", row.seconds)
            failed = evaluation_error(row)
            if failed is not None:
                raise failed
            news.add(row)
        news.tell()


class Seeker:
    """What proposes, and beside it, whatever the algorithm, what foretells what that will lose.

    Args:
        proposer: Proposes.
        known: Has measured nothing yet.

    Attributes:
        proposer: Proposes.
    """

    def __init__(self, proposer: Proposer, known: Measurements) -> None:
        self.proposer = proposer
        self._known = known

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        """Take in measurements: choices (measurements, layers, 4), accuracy 0..1."""
        self.proposer.learn(choices, accuracy)
        self._known.add(choices, accuracy)

    def predicted_drops(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Points that choices are expected to lose, by all that was measured."""
        self._known.fit()
        return self._known.predictor.accuracy_drop(choices)


def _resumed(
    seed: int, setup: TrialSetup, metrics: SeedMetrics, log: EventLog
) -> tuple[Seeker, int]:
    """What knows all that the ledger has of the seed, and what was spent.

    The rows themselves, which may be many, are not kept.
    """
    rows = Ledger(setup.worker.ledger).read()
    dense = baseline(rows, DENSE_FP32, "search")
    assert dense is not None
    own = distinct(rows[rows["seed"].isin((-1, seed))], "search")
    baselines = own[own["role"] == "baseline"]
    reference = Reference(
        accuracy=float(dense["accuracy"]),
        chance=setup.chance,
        cost=1.0,  # the problem's objective is relative to dense INT8
        aims=drops_that_hold(setup.goals.targets, baselines, dense, sum(setup.shares.values())),
        images=int(dense["images"]),
        energy_aims=tuple(_ENERGY_MARGIN * ratio for ratio in setup.goals.energy_targets),
    )
    policies = setup.run.child("policies")
    earlier = earlier_accuracies(policies, setup.problem.space, dense)
    if len(earlier.accuracy):
        log.write("earlier", accuracies=len(earlier.accuracy))
    proposer = make_proposer(
        setup.algorithm,
        setup.problem,
        reference,
        seed,
        policies,
        setup.accuracy,
        setup.policies,
        earlier,
    )
    known = evaluations(own)
    metrics.known(known)
    seeker = Seeker(proposer, Measurements(setup.problem, reference, earlier))
    _learn(seeker, setup, _measured(setup, known))
    return seeker, int((own["seed"] == seed).sum())


def run_seed(
    seed: int,
    setup: TrialSetup,
    board: Any,
    pool: EvaluatorPool,
    seeker: Seeker,
    spent: int,
    metrics: SeedMetrics,
    log: EventLog,
) -> None:
    """Spend the rest of a seed's share of the budget."""
    proposer = seeker.proposer
    space = setup.problem.space
    deadline = time.monotonic() + ray.get(board.seconds_left.remote())
    share = setup.shares[seed]
    batch = max(setup.evaluators, round_size(share))
    fruitless = 0
    tune.report({METRICS: {**metrics.end_round(), "evaluations": spent}})
    while spent < share and fruitless < _FRUITLESS_ROUNDS and time.monotonic() < deadline:
        with metrics.learning():
            choices = proposer.propose(min(batch, share - spent))
            predicted = seeker.predicted_drops(choices)
        configs = [space.config(choice) for choice in choices]
        answers = claim(board, [config.hash for config in configs], seed, deadline)
        measured = {
            config.hash: answer
            for config, answer in zip(configs, answers, strict=True)
            if isinstance(answer, float)
        }
        metrics.count("cache_hits", len(measured))
        granted = [
            Request(config, "search", "search", "", seed, setup.algorithm, float(drop))
            for config, drop, answer in zip(configs, predicted, answers, strict=True)
            if answer == "granted"
        ]
        news = News(board)
        for row in pool.evaluate(granted, deadline=deadline):
            measured[row.config_hash] = accuracy(row)
            news.add(row)
            log.write("evaluation", **evaluation_fields(row))
            metrics.evaluated(row, pool.waiting)
            spent += 1
        news.tell()
        fruitless = 0 if granted else fruitless + 1
        pairs = zip(choices, configs, strict=True)
        found = [(choice, config.hash) for choice, config in pairs if config.hash in measured]
        with metrics.learning():
            _learn(seeker, setup, [(choice, measured[key]) for choice, key in found])
            proposer.save()
        if granted:
            tune.report({METRICS: {**metrics.end_round(), "evaluations": spent}})


def _verify(seed: int, setup: TrialSetup, board: Any, pool: EvaluatorPool, log: EventLog) -> None:
    """Evaluate on the test split what the other trials are not at.

    Baselines first, which need not wait for the others. Which configurations are finalists is known
    when all have searched; a trial that ends before others leaves these to them. Last the picks
    once more, from other calibration data; that may fail, and then the report says so.
    """

    def write(rows: Iterable[Evaluation]) -> None:
        for row in rows:
            log.write("evaluation", **evaluation_fields(row))

    ledger = Ledger(setup.worker.ledger)
    board.searched.remote(seed)
    items = setup.baselines.items()
    baselines = [Request(config, "test", "baseline", name) for name, config in items]
    write(verify(baselines, seed, board, pool, setup.evaluators))
    if ray.get(board.is_searching.remote()):
        return
    write(verify(unverified(ledger, setup.goals), seed, board, pool, setup.evaluators))
    if setup.recalibrates:
        write(recalibrate(not_recalibrated(ledger, setup.goals), seed, board, pool))


def claim(board: Any, hashes: list[str], seed: int, deadline: float) -> list[float | Answer]:
    """What the board answers; waits while others are at all of it that is not known.

    Args:
        board: Handle of the run's ``BoardActor``.
        hashes: Configurations to ask for.
        seed: Who asks.
        deadline: When to stop waiting, by the monotonic clock.
    """
    while True:
        answers: list[float | Answer] = ray.get(board.claim.remote(hashes, seed))
        if "granted" in answers or "pending" not in answers or time.monotonic() >= deadline:
            return answers
        time.sleep(_WAIT_SECONDS)


class ClaimsReleased(tune.Callback):
    """Frees what a trial had claimed that ended or was lost: others would wait for it.

    Args:
        board: Handle of the run's ``BoardActor``.
    """

    def __init__(self, board: Any) -> None:
        self._board = board

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._board.release.remote(trial.config["seed"])

    on_trial_error = on_trial_recover = on_trial_complete


def _measured(setup: TrialSetup, rows: list[Evaluation]) -> list[tuple[NDArray[np.int64], float]]:
    """Choices of the space among ledger rows, and what they reached; NaN where they failed."""
    space = setup.problem.space
    configs = [CompressionConfig.from_json(json.loads(row.config)) for row in rows]
    choices = [space.choice(config) for config in configs]
    pairs = zip(choices, rows, strict=True)
    return [(choice, accuracy(row)) for choice, row in pairs if choice is not None]


def _learn(
    seeker: Seeker, setup: TrialSetup, measured: list[tuple[NDArray[np.int64], float]]
) -> None:
    """Tell what was measured; failed evaluations count as guessing."""
    if measured:
        choices = np.stack([choice for choice, _ in measured])
        reached = np.array([accuracy for _, accuracy in measured])
        seeker.learn(choices, np.where(np.isnan(reached), setup.chance, reached))
