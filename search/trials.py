"""What every Tune experiment of a run shares: where it keeps its files and how it fails."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.exceptions import RayTaskError

from hwmodel import InputError
from search.failure import RunError
from search.failure import keep_trace
from search.pool import input_error
from search.run_directory import RunDirectory
from search.storage import reason

BAD_INPUT = "bad_input"
"""Metric in which a trial reports bad input."""
FAILURE = "failure"
"""Metric in which a trial reports what broke it: one line, and the traceback."""


def run_config(run: RunDirectory, name: str, restarts: int) -> tune.RunConfig:
    """Configuration of one experiment.

    Tune's files are its own: what matters is in the ledger and the policies folder, so a
    resumed run starts a new experiment.

    Args:
        run: The run.
        name: Of the experiment.
        restarts: How often a trial is started again whose process or machine died.
    """
    return tune.RunConfig(
        name=f"{name}-{time.time_ns()}",
        storage_path=f"{run.storage.root}/tune",
        storage_filesystem=run.storage.filesystem,
        failure_config=tune.FailureConfig(max_failures=restarts),
        verbose=0,
    )


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
        line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        metrics[FAILURE] = (line, traceback.format_exc())


def raise_errors(run: RunDirectory, results: tune.ResultGrid) -> None:
    """Raise the first error of an experiment, as bad input where it is that.

    Raises:
        InputError: the first bad input.
        RunError: what else went wrong first; the traceback is in the run's ``errors`` folder.
    """
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
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise _run_error(run, lines[-1] if lines else reason(error), str(error))


def _run_error(run: RunDirectory, line: str, trace: str) -> RunError:
    kept = keep_trace(run.storage.child("errors"), trace)
    return RunError(f"a trial failed: {line}; traceback in {kept}")
