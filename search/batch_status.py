"""How far a batch is."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from typing import Any

import pandas as pd

from search.batch_directory import BatchDirectory
from search.batch_spec import Experiment
from search.front import distinct
from search.ledger import MEASURED
from search.ledger import Ledger
from search.picks import best_so_far

RATE_WINDOW = timedelta(minutes=10)
"""What the present rate of evaluations is taken from."""


def batch_status(batch: BatchDirectory) -> dict[str, Any]:
    """What ``joulecut status BATCH --json`` prints; see docs/cli.md.

    Raises:
        InputError: a state or a ledger is damaged; names it.
    """
    state = batch.state.read()
    is_running = state["state"] == "running"
    found = [_experiment(batch, item, state) for item in batch.experiments()]
    entries = [entry for entry, _ in found]
    since = datetime.now(timezone.utc) - RATE_WINDOW
    recent = sum(int((rows["time"] > since).sum()) for _, rows in found)
    per_hour = recent / (RATE_WINDOW.total_seconds() / 3600) if is_running else 0.0
    left = sum(
        entry["budget"] - entry["evaluations"]
        for entry in entries
        if entry["state"] not in ("completed", "failed")
    )
    return {
        "batch": batch.location,
        "state": state["state"],
        "message": state.get("message", ""),
        "counts": dict(Counter(entry["state"] for entry in entries)),
        "evaluations": sum(entry["evaluations"] for entry in entries),
        "budget": sum(entry["budget"] for entry in entries),
        "evaluations_per_hour": per_hour,
        "eta_seconds": 3600 * left / per_hour if per_hour > 0 else None,
        "utilization": state.get("utilization"),
        "evaluation_hours": sum(float(rows["seconds"].sum()) for _, rows in found) / 3600,
        "gpu_hours": sum(entry["gpu_hours"] for entry in entries),
        "experiments": entries,
        "driver": state.get("driver"),
        "heartbeat": state.get("heartbeat"),
    }


def _experiment(
    batch: BatchDirectory, experiment: Experiment, batch_state: dict[str, Any]
) -> tuple[dict[str, Any], pd.DataFrame]:
    state = batch.run_state(experiment)
    message = batch_state.get("failures", {}).get(experiment.name)
    if message is not None and state["state"] != "completed":
        state |= {"state": "failed", "message": message}
    storage = batch.run_storage(experiment)
    rows = Ledger(storage.child("ledger")).read(MEASURED)
    spec = experiment.spec
    entry = {
        "name": experiment.name,
        "run": storage.location,
        "priority": experiment.priority,
        "state": state["state"],
        "message": state.get("message", ""),
        "task": spec.task.name,
        "accelerator": spec.accelerator,
        "algorithm": spec.algorithm,
        "seeds": list(spec.seeds),
        "evaluations": len(distinct(rows, "search")),
        "budget": spec.budget,
        "gpu_hours": float(rows["seconds"].sum()) / 3600 * spec.resources.evaluator_gpus,
        "best": best_so_far(rows, spec.goals),
    }
    return entry, rows
