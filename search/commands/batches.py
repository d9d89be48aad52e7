"""``batch``: many searches on one cluster."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING
from typing import Any

from search.commands._shared import Verbs
from search.commands._shared import add_json
from search.commands._shared import add_verb
from search.commands._shared import print_json
from search.commands._shared import print_table

if TYPE_CHECKING:
    from search.batch_directory import BatchDirectory
    from search.batch_spec import Experiment


def add_verbs(verbs: Verbs) -> None:
    """Declare ``batch``."""
    batch = add_verb(verbs, "batch", _batch, "run, resume or extend a batch of searches")
    batch.add_argument("file", metavar="EXPERIMENTS.yaml")
    batch.add_argument("--address", help="a running Ray cluster; a local one is started else")
    batch.add_argument("--output", help="batch directory: a path or URI")
    add_retry(batch)
    add_json(batch)


def add_retry(parser: argparse.ArgumentParser) -> None:
    """The option ``--retry-failed``."""
    parser.add_argument(
        "--retry-failed", action="store_true", help="also run the experiments that failed"
    )


def go_on(batch: BatchDirectory, retry_failed: bool) -> None:
    """Run what is left of a batch, until the end or a signal."""
    from search.batch import run_batch
    from search.stopping import Terminated
    from search.stopping import interrupted_by_sigterm

    try:
        with interrupted_by_sigterm():
            run_batch(batch, retry_failed=retry_failed)
    except KeyboardInterrupt as stop:
        print(f"stopped; go on with: joulecut resume {batch.location}", file=sys.stderr)
        if not isinstance(stop, Terminated):
            raise


def print_status(status: dict[str, Any]) -> None:
    """Print a batch's status for people."""
    from rich.table import Table

    counts = ", ".join(f"{count} {state}" for state, count in status["counts"].items())
    print(f"{status['batch']}: {status['state']} {status['message']}".rstrip())
    print(f"{len(status['experiments'])} experiments: {counts}")
    line = f"{status['evaluations']} of {status['budget']} evaluations"
    if status["eta_seconds"] is not None:
        line += f", {status['evaluations_per_hour']:.0f} an hour"
        line += f", about {status['eta_seconds'] / 3600:.1f} hours left"
    print(line)
    if status["utilization"] is not None:
        print(f"{100 * status['utilization']:.0f} % of the slots busy while experiments waited")
    print(f"{status['evaluation_hours']:.2f} evaluation hours, {status['gpu_hours']:.2f} GPU hours")
    table = Table("experiment", "state", "evaluations", "best / INT8", "message", box=None)
    for entry in status["experiments"]:
        ratios = [best["energy_ratio_int8"] for best in entry["best"]]
        best = " ".join("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios)
        done = f"{entry['evaluations']} of {entry['budget']}"
        table.add_row(entry["name"], entry["state"], done, best, entry["message"])
    print_table(table)


def _batch(args: argparse.Namespace) -> None:
    from search.batch_directory import BatchDirectory
    from search.batch_status import batch_status

    batch = BatchDirectory.write(_spec(args))
    go_on(batch, args.retry_failed)
    status = batch_status(batch)
    if args.json:
        print_json(status)
    else:
        print_status(status)


def _spec(args: argparse.Namespace) -> Any:
    from hwmodel.errors import InputError
    from search.batch_spec import BatchSpec
    from search.spec import read_yaml

    data = read_yaml(args.file)
    if not isinstance(data, dict):
        raise InputError(args.file, data, "use a mapping of the batch's keys")
    if args.output is not None:
        data["output"] = args.output
    if args.address is not None:
        resources = data.setdefault("resources", {})
        if not isinstance(resources, dict):
            raise InputError("resources", resources, "use a mapping")
        resources["address"] = args.address
    spec = BatchSpec.from_mapping(data)
    _check(spec.all())
    return spec


def _check(experiments: list[Experiment]) -> None:
    """Refuse what can be known to fail, before there is a batch directory."""
    from hwmodel import load_accelerator
    from search.optuna_proposer import require_optuna

    tasks = {}
    for experiment in experiments:
        load_accelerator(experiment.spec.accelerator)
        if experiment.spec.algorithm.startswith("optuna"):
            require_optuna()
        task = experiment.spec.task_spec()
        tasks[str(task)] = task
    for task in tasks.values():
        task.load()
