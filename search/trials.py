"""What every Tune experiment of a run shares: where it keeps its files and how it fails."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from search.pool import input_error
from search.run_directory import RunDirectory

_RETRIES = 2


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


def raise_errors(results: tune.ResultGrid) -> None:
    """Raise the first error of an experiment, as bad input where it is that."""
    for error in results.errors:
        found = input_error(error)
        if found is not None:
            raise found from error
    if results.errors:
        raise RuntimeError(f"a trial failed: {_cause(results.errors[0])}")


def _cause(error: Any) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
