"""``status``, ``report`` and ``export``: what a run has found."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from envs.preference import ENERGY
from hwmodel.errors import InputError
from search.commands._shared import Verbs
from search.commands._shared import add_json
from search.commands._shared import add_verb
from search.commands._shared import plain_console
from search.commands._shared import print_json
from search.commands._shared import print_state
from search.commands._shared import print_table
from search.goals import Goal

if TYPE_CHECKING:
    from search.report import Report
    from search.run_directory import RunDirectory


def add_verbs(verbs: Verbs) -> None:
    """Declare ``status``, ``report`` and ``export``."""
    status = add_verb(verbs, "status", _status, "progress of a live or dead run or batch")
    report = add_verb(verbs, "report", _report, "table, pictures and HTML page of a run")
    for parser in (status, report):
        parser.add_argument("run", metavar="RUN")
        add_json(parser)
    export = add_verb(verbs, "export", _export, "write the compressed network that was picked")
    export.add_argument("run", metavar="RUN")
    goal = export.add_mutually_exclusive_group(required=True)
    goal.add_argument("--max-accuracy-drop", type=float, help="points that may be lost")
    goal.add_argument(
        "--max-energy-ratio", type=float, help="energy over that of dense INT8 that may be taken"
    )
    export.add_argument("--output", required=True, metavar="DIR")


def print_report(run: RunDirectory, report: Report) -> None:
    """Print the table, what it does not tell, and where everything is."""
    from search.table import notes
    from search.table import terminal_table

    print_table(terminal_table(report))
    console = plain_console()
    files = [f"{run.report.location}/{name}" for name in run.report.names("report")]
    for line in [*notes(report), *files, run.ledger.location]:
        console.print(line, soft_wrap=True)


def _status(args: argparse.Namespace) -> None:
    from search.batch_directory import BatchDirectory
    from search.batch_directory import is_batch
    from search.batch_status import batch_status
    from search.commands.batches import print_status
    from search.run_directory import RunDirectory
    from search.storage import Storage

    if is_batch(Storage.at(args.run)):
        status = batch_status(BatchDirectory.open(args.run))
        (print_json if args.json else print_status)(status)
        return
    status = RunDirectory.open(args.run).status()
    if args.json:
        print_json(status)
        return
    print_state(status["run"], status)
    print(f"{status['evaluations']} of {status['budget']} evaluations, {status['ledger']}")
    for seed in status["seeds"]:
        print(f"seed {seed['seed']}: {seed['evaluations']} evaluations")
    name = "energy" if status["preference"] == ENERGY.given else "cost"
    for best in status["best"]:
        cost = f"{best['cost_ratio_int8']:.3f} of dense INT8's {name}"
        loss = f"{best['search_accuracy_drop']:.2f} points lost on the search split"
        print(f"{best['name']}: {cost}, {loss}, {best['config_hash']}")
    for name in status["unreached"]:
        print(f"{name}: no configuration for sure")


def _report(args: argparse.Namespace) -> None:
    from search.report import build_report
    from search.report_files import write_report
    from search.run_directory import RunDirectory

    run = RunDirectory.open(args.run)
    report = build_report(run)
    if args.json:
        print_json(report.to_json())
    else:
        write_report(run, report)
        print_report(run, report)


def _export(args: argparse.Namespace) -> None:
    from search.run_directory import RunDirectory

    goal = Goal(args.max_accuracy_drop, args.max_energy_ratio)
    _, value = goal.asked
    if not (math.isfinite(value) and value > 0):
        raise InputError(goal.flag, value, "use a number above 0")
    run = RunDirectory.open(args.run)
    from search.cost_table import energy_text
    from search.export import export  # torch: after what is cheap to check
    from search.table import provable_note

    result = export(run, goal, args.output)
    result["energy"] = energy_text(result.pop("energy_pj"), "pJ")
    for file in result.pop("files"):
        print(file)
    for key, value in result.items():
        text = "not measured yet" if value is None else value
        print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {text}")
    for line in provable_note(goal.max_accuracy_drop or math.inf, result["search_images"]):
        print(line)
