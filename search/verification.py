"""Finalists and baselines on the test split, as Tune trials that share their actors."""

from __future__ import annotations

import faulthandler
from typing import Any

from ray import tune

from envs.config import CompressionConfig
from hwmodel import InputError
from search.evaluation import EvaluationWorker
from search.evaluation import Request
from search.evaluation import WorkerSpec
from search.events import EventLog
from search.events import evaluation_fields
from search.front import distinct
from search.run_directory import RunDirectory
from search.spec import Spec
from search.trials import EVALUATION
from search.trials import reported_errors
from search.trials import run_trials

_RESTARTS = 3
"""Processes that may die or fall silent over one configuration."""
_STDERR = 2


class Verification(tune.Trainable):
    """One evaluation on the test split; the worker is kept for the next one."""

    def setup(self, config: dict[str, Any], *, worker: WorkerSpec, timeout: float | None) -> None:
        self._spec = worker
        self._timeout = timeout
        self._worker: EvaluationWorker | None = None
        self._request: Request = config["request"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._request = new_config["request"]
        return True

    def step(self) -> dict[str, Any]:
        with reported_errors() as report:
            # Made here and not in setup, whose errors reach the driver as text alone.
            if self._worker is None:
                self._worker = EvaluationWorker(self._spec)
            if self._timeout is not None:  # Tune notices a process that ends, not one that hangs
                faulthandler.dump_traceback_later(self._timeout, exit=True, file=_STDERR)
            try:
                # Tune starts a trial again whose machine died, maybe after its row was recorded.
                row = self._worker.evaluate(self._request, again=True)
                report[EVALUATION] = evaluation_fields(row)
            finally:
                faulthandler.cancel_dump_traceback_later()
        return {**report, "done": True}


def verify(
    run: RunDirectory,
    log: EventLog,
    spec: Spec,
    worker: WorkerSpec,
    finalists: list[tuple[CompressionConfig, str]],
    at_once: int,
) -> None:
    """Evaluate on the test split what the ledger does not have there yet.

    Args:
        run: The run.
        log: The driver's.
        spec: Its specification.
        worker: What evaluates.
        finalists: Configurations, and the name of those that are baselines (else empty).
        at_once: Evaluations at a time.

    Raises:
        InputError: the ledger cannot be written, or an evaluation failed.
        RunError: a process died or hung every time.
    """
    rows = run.ledger.read(("split", "accuracy", "config_hash"))
    known = set(rows[(rows["split"] == "test") & rows["accuracy"].notna()]["config_hash"])
    requests = [
        Request(config, "test", "baseline" if name else "finalist", name)
        for config, name in finalists
        if config.hash not in known
    ]
    if not requests:
        return
    resources = spec.resources
    timeout = resources.evaluation_timeout_seconds
    bundle = {"cpu": max(resources.evaluator_cpus, 0.1), "gpu": resources.evaluator_gpus}
    trainable = tune.with_resources(
        tune.with_parameters(Verification, worker=worker, timeout=timeout),
        {k: v for k, v in bundle.items() if v},
    )
    run_trials(
        run,
        log,
        "verification",
        trainable,
        {"request": tune.grid_search(requests)},
        restarts=_RESTARTS,
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=at_once),
    )
    _require_verified(run, requests)


def _require_verified(run: RunDirectory, requests: list[Request]) -> None:
    rows = run.ledger.read(("split", "accuracy", "config_hash", "time", "error"))
    failed = distinct(rows, "test")
    failed = failed[failed["accuracy"].isna()]
    wanted = {request.config.hash for request in requests}
    for _, row in failed[failed["config_hash"].isin(wanted)].iterrows():
        field = f"evaluation of {row['config_hash']} on the test split"
        raise InputError(field, row["error"], "it must succeed")
