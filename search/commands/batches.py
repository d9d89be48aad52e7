"""``batch`` and ``benchmark``: many searches on one cluster, and what they show."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING
from typing import Any

from search.commands._shared import Verbs
from search.commands._shared import add_json
from search.commands._shared import add_verb
from search.commands._shared import check_spec
from search.commands._shared import print_json
from search.commands._shared import print_state
from search.commands._shared import print_table

if TYPE_CHECKING:
    import pandas as pd

    from search.batch_directory import BatchDirectory
    from search.run_directory import RunDirectory


def add_verbs(verbs: Verbs) -> None:
    """Declare ``batch`` and ``benchmark``."""
    batch = add_verb(verbs, "batch", _batch, "run, resume or extend a batch of searches")
    batch.add_argument("file", metavar="EXPERIMENTS.yaml")
    batch.add_argument("--address", help="a running Ray cluster; a local one is started else")
    batch.add_argument("--output", help="batch directory: a path or URI")
    add_retry(batch)
    add_json(batch)
    benchmark = add_verb(verbs, "benchmark", _benchmark, "compare algorithms at equal evaluations")
    benchmark.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="EXPERIMENTS.yaml (is run first), BATCH or RUN"
    )
    benchmark.add_argument("--output", required=True, help="where curves and tables go")
    benchmark.add_argument("--address", help="a running Ray cluster; a local one is started else")
    add_json(benchmark)


def add_retry(parser: argparse.ArgumentParser) -> None:
    """The option ``--retry-failed``."""
    parser.add_argument(
        "--retry-failed", action="store_true", help="also run the experiments that failed"
    )


def go_on(batch: BatchDirectory, retry_failed: bool) -> None:
    """Run what is left of a batch, until the end or a signal."""
    from search.batch import run_batch
    from search.stopping import interrupted_by_sigterm
    from search.stopping import was_told_to_end

    try:
        with interrupted_by_sigterm():
            run_batch(batch, retry_failed=retry_failed)
    except KeyboardInterrupt:
        print(f"stopped; go on with: joulecut resume {batch.location}", file=sys.stderr)
        if not was_told_to_end():
            raise


def print_status(status: dict[str, Any]) -> None:
    """Print a batch's status for people."""
    from rich.table import Table

    counts = ", ".join(f"{count} {state}" for state, count in status["counts"].items())
    print_state(status["batch"], status)
    print(f"{len(status['experiments'])} experiments: {counts}")
    line = f"{status['evaluations']} of {status['budget']} evaluations"
    if status["eta_seconds"] is not None:
        line += f", {status['evaluations_per_hour']:.0f} an hour"
        line += f", about {status['eta_seconds'] / 3600:.1f} hours left"
    print(line)
    if status["utilization"] is not None:
        print(f"{100 * status['utilization']:.0f} % of the slots reserved while experiments waited")
    print(f"{status['evaluation_hours']:.2f} evaluation hours, {status['gpu_hours']:.2f} GPU hours")
    table = Table("experiment", "state", "evaluations", "best at / INT8", "message", box=None)
    for entry in status["experiments"]:
        held = [best for best in entry["best"] if best["max_accuracy_drop"] is not None]
        best = ", ".join(
            f"{best['max_accuracy_drop']:g}: {best['cost_ratio_int8']:.3f}" for best in held
        )
        done = f"{entry['evaluations']} of {entry['budget']}"
        table.add_row(entry["name"], entry["state"], done, best, entry["message"])
    print_table(table)


def _batch(args: argparse.Namespace) -> None:
    from search.batch_directory import BatchDirectory
    from search.batch_status import batch_status

    batch = BatchDirectory.write(_spec(args.file, args.output, args.address))
    go_on(batch, args.retry_failed)
    status = batch_status(batch)
    if args.json:
        print_json(status)
    else:
        print_status(status)


def _benchmark(args: argparse.Namespace) -> None:
    from search.comparison import write_comparison
    from search.storage import Storage

    # A run that is named twice, or with its batch, is one.
    runs = {run.location: run for source in args.sources for run in _runs(source, args.address)}
    output = Storage.at(args.output)
    overview = write_comparison(list(runs.values()), output)
    if args.json:
        print_json({"output": output.location, "summary": overview.to_dict("records")})
    else:
        _print_comparison(overview)
        print(output.location)


def _runs(source: str, address: str | None) -> list[RunDirectory]:
    """The runs of a batch, of a file that describes one and is run first, or a run itself."""
    from pathlib import Path

    from search.batch_directory import BatchDirectory
    from search.batch_directory import is_batch
    from search.run_directory import RunDirectory
    from search.storage import Storage

    if Path(source).is_file():
        batch = BatchDirectory.write(_spec(source, None, address))
        go_on(batch, retry_failed=False)
    elif is_batch(Storage.at(source)):
        batch = BatchDirectory.open(source)
    else:
        return [RunDirectory.open(source)]
    return [batch.run(item)[0] for item in batch.experiments() if batch.has_begun(item)]


def _print_comparison(overview: pd.DataFrame) -> None:
    from rich.table import Table

    from search.comparison import cases

    for case, group in cases(overview):
        names = map(str, group.columns)
        shown = [name for name in names if name == "hypervolume" or "ratio_at_" in name]
        shown = [name for name in shown if not name.endswith(("_low", "_high", "_seeds"))]
        title = f"{case}: {group['evaluations'].iloc[0]} evaluations a seed"
        headers = ["algorithm", "seeds", *shown]
        table = Table(*headers, title=title, title_justify="left", box=None)
        for _, row in group.iterrows():
            cells = [_with_interval(row, name) for name in shown]
            table.add_row(row["algorithm"], str(row["seeds"]), *cells)
        print_table(table)


def _with_interval(row: pd.Series, measure: str) -> str:
    if math.isnan(row[measure]):
        return "-"
    text = f"{row[measure]:.3f}"
    if not math.isnan(row[f"{measure}_low"]):
        text += f" ({row[f'{measure}_low']:.3f}..{row[f'{measure}_high']:.3f})"
    known = row[f"{measure}_seeds"]
    return text if known == row["seeds"] else f"{text}, {known} of {row['seeds']} seeds"


def _spec(file: str, output: str | None, address: str | None) -> Any:
    from hwmodel.errors import InputError
    from search.batch_spec import BatchSpec
    from search.spec import read_yaml

    data = read_yaml(file)
    if not isinstance(data, dict):
        raise InputError(file, data, "use a mapping of the batch's keys")
    if output is not None:
        data["output"] = output
    if address is not None:
        resources = data.setdefault("resources", {})
        if not isinstance(resources, dict):
            raise InputError("resources", resources, "use a mapping")
        resources["address"] = address
    spec = BatchSpec.from_mapping(data)
    experiments = spec.all()
    for experiment in experiments:
        check_spec(experiment.spec)
    for task in dict.fromkeys(experiment.spec.task_spec() for experiment in experiments):
        task.load()
    return spec
