"""What every Tune experiment of a run shares: where it keeps its files and how it fails."""

from __future__ import annotations

import time
import traceback
import uuid
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.exceptions import RayTaskError

from hwmodel import InputError
from search.appending import GrowingFile
from search.events import EventLog
from search.events import one_line
from search.failure import RunError
from search.failure import keep_trace
from search.metrics import tensorboard_record
from search.pool import input_error
from search.run_directory import RunDirectory
from search.storage import Storage
from search.storage import patiently
from search.storage import reason

BAD_INPUT = "bad_input"
"""Metric in which a trial reports bad input."""
FAILURE = "failure"
"""Metric in which a trial reports what broke it: one line, and the traceback."""
METRICS = "metrics"
"""Metric in which a seed's trial reports its :class:`search.metrics.SeedMetrics`."""


class Reporter(tune.Callback):
    """Keeps what trials report: all in the log, the seeds' figures for TensorBoard, too.

    Args:
        run: Directory of the run; event files go to its folder ``tensorboard``.
        log: The driver's.
    """

    def __init__(self, run: Storage, log: EventLog) -> None:
        self._folder = run.child("tensorboard")
        self._log = log
        self._files: dict[str, GrowingFile] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its configuration, which nothing reads

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._log.write("trial started", trial=_name(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        if METRICS in result:
            metrics = result[METRICS]
            self._log.write("round", trial=_name(trial), **metrics)
            record = tensorboard_record(int(metrics["evaluations"]), metrics)
            self._event_file(_name(trial)).append(record)
        for kind in (BAD_INPUT, FAILURE):
            if kind in result:
                self._log.write("trial failed", trial=_name(trial), error=str(result[kind][0]))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._log.write("trial lost", trial=_name(trial), error=_cause(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._log.write("trial failed", trial=_name(trial), error=_cause(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._log.write("trial ended", trial=_name(trial))

    def close(self) -> None:
        """Write what is left."""
        for file in self._files.values():
            file.close()

    def _event_file(self, trial: str) -> GrowingFile:
        if trial not in self._files:
            # A resumed run begins another file of the same folder, which goes on with the curve.
            name = f"events.out.tfevents.{time.time_ns()}"
            self._files[trial] = GrowingFile(self._folder.child(trial), name)
        return self._files[trial]


def run_trials(
    run: RunDirectory,
    log: EventLog,
    name: str,
    trainable: Any,
    param_space: dict[str, Any],
    *,
    restarts: int,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    """Run one Tune experiment to its end.

    Tune's files are its own: what matters is in the ledger and the policies folder, so a
    resumed run starts a new experiment.

    Args:
        run: The run.
        log: The driver's.
        name: Of the experiment.
        trainable: What every trial runs.
        param_space: The trials' parameters.
        restarts: How often a trial is started again whose process or machine died.
        callbacks: Told what becomes of trials.

    Raises:
        InputError: the first bad input that a trial met.
        RunError: what else went wrong first; the traceback is in the run's ``errors`` folder.
    """
    # Trials ask for their trainable by its name, among those of all that drive experiments in the
    # processes of one job, as a batch does.
    unique = f"{name}-{uuid.uuid4().hex[:12]}"
    tune.register_trainable(unique, trainable)
    reporter = Reporter(run.storage, log)
    config = tune.RunConfig(
        name=unique,
        storage_path=f"{run.storage.root}/tune",
        storage_filesystem=run.storage.filesystem,
        failure_config=tune.FailureConfig(max_failures=restarts),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        callbacks=[reporter, *callbacks],
        verbose=0,
    )
    try:
        tuner = patiently(lambda: tune.Tuner(unique, param_space=param_space, run_config=config))
        results = tuner.fit()
    finally:
        reporter.close()
    _raise_errors(run, results)


@contextmanager
def reported_errors() -> Iterator[dict[str, Any]]:
    """Put what went wrong into the yielded metrics: a trial that raises is started again.

    That is right where a machine died, and only there.
    """
    metrics: dict[str, Any] = {}
    try:
        yield metrics
    except InputError as error:
        metrics[BAD_INPUT] = (error.field, str(error.value), error.allowed)
    except Exception as error:
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            raise
        metrics[FAILURE] = (one_line(error), traceback.format_exc())


def _raise_errors(run: RunDirectory, results: tune.ResultGrid) -> None:
    """Raise the first error of an experiment, as bad input where it is that."""
    metrics = [result.metrics or {} for result in results]
    for found in metrics:
        if found.get(BAD_INPUT) is not None:
            raise InputError(*found[BAD_INPUT])
    for found in metrics:
        if found.get(FAILURE) is not None:
            raise _run_error(run, *found[FAILURE])
    for error in results.errors:
        bad_input = input_error(error)
        if bad_input is not None:
            raise bad_input from error
    for error in results.errors:
        raise _run_error(run, _last_line(str(error)) or reason(error), str(error))


def _run_error(run: RunDirectory, line: str, trace: str) -> RunError:
    kept = keep_trace(run.storage.child("errors"), trace)
    return RunError(f"a trial failed: {line}; traceback in {kept}")


def _name(trial: Any) -> str:
    return f"seed-{trial.config['seed']}"


def _cause(trial: Any) -> str:
    """What a trial's process died of."""
    text = ""
    with suppress(OSError, TypeError):  # no such file, or none named
        text = Path(trial.error_file).read_text()
    return _last_line(text) or "unknown"


def _last_line(text: str) -> str:
    """The last line that says something; empty where none does."""
    lines = [line.strip() for line in text.splitlines()]
    return next(filter(None, reversed(lines)), "")
