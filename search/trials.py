"""What every Tune experiment of a run shares: where it keeps its files and how it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

from hwmodel import InputError
from search.pool import input_error
from search.run_directory import RunDirectory

_RETRIES = 2
BAD_INPUT = "bad_input"
"""Metric in which a trial reports bad input."""


def run_config(run: RunDirectory, name: str) -> tune.RunConfig:
    """Configuration of one experiment.

    Tune's files are its own: what matters is in the ledger and the policies folder, so a
    resumed run starts a new experiment.
    """
    return tune.RunConfig(
        name=f"{name}-{time.time_ns()}",
        storage_path=f"{run.storage.root}/tune",
        storage_filesystem=run.storage.filesystem,
        failure_config=tune.FailureConfig(max_failures=_RETRIES),
        verbose=0,
    )


@contextmanager
def reported_errors() -> Iterator[dict[str, Any]]:
    """Put bad input into the yielded metrics: a trial that raises is retried, and noisily."""
    metrics: dict[str, Any] = {}
    try:
        yield metrics
    except InputError as error:
        metrics[BAD_INPUT] = (error.field, str(error.value), error.allowed)


def raise_errors(results: tune.ResultGrid) -> None:
    """Raise the first error of an experiment, as bad input where it is that."""
    for result in results:
        if (result.metrics or {}).get(BAD_INPUT) is not None:
            raise InputError(*result.metrics[BAD_INPUT])
    for error in results.errors:
        found = input_error(error)
        if found is not None:
            raise found from error
    if results.errors:
        raise RuntimeError(f"a trial failed: {_cause(results.errors[0])}")


def _cause(error: Any) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
