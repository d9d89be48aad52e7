"""``search``, ``resume`` and ``prepare``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING
from typing import Any

from hwmodel.errors import InputError
from search.commands._shared import Verbs
from search.commands._shared import add_json
from search.commands._shared import add_task
from search.commands._shared import add_verb
from search.commands._shared import check_spec
from search.commands._shared import print_json
from search.commands._shared import stdout_for_json
from search.commands.batches import add_retry
from search.commands.batches import go_on
from search.commands.batches import print_status

if TYPE_CHECKING:
    from search.report import Report
    from search.run_directory import RunDirectory
    from search.spec import Spec

FLAGS = {
    "task.name": "--task",
    "task.data": "--data",
    "task.weights": "--weights",
    "accelerator": "--accelerator",
    "level": "--level",
    "algorithm": "--algorithm",
    "accuracy": "--accuracy",
    "init_from": "--init-from",
    "seeds": "--seeds",
    "budget": "--budget",
    "time_budget": "--time-budget",
    "space.quantizer.activation_placement": "--quantizers",
    "targets": "--targets",
    "energy_targets": "--energy-targets",
    "limits": "--limits",
    "preference": "--preference",
    "resources.address": "--address",
    "resources.database": "--database",
    "output": "--output",
}
"""The flag that sets each field of a specification."""

_MOST_SEEDS = 10_000
"""What a count may stand for: none that is meant is larger, and a list of them is made."""


def add_verbs(verbs: Verbs) -> None:
    """Declare ``search``, ``resume`` and ``prepare``."""
    search = add_verb(verbs, "search", _search, "search for configurations of least energy")
    search.add_argument("spec", nargs="?", metavar="SPEC.yaml", help="flags override what it says")
    add_task(search, required=False)
    search.add_argument("--accelerator", help="preset or YAML file, see 'joulecut accelerators'")
    search.add_argument("--level", help="level of the hardware model, mid or fine")
    search.add_argument(
        "--algorithm",
        help="ppo, appo, ppo-rounds, composite, dp, dp+local, dp+fitted, uniform, random, "
        "optuna-tpe or optuna-nsga2",
    )
    search.add_argument("--accuracy", help="what policies learn from: predicted or measured")
    search.add_argument("--init-from", metavar="RUN", help="start from the policies of this run")
    search.add_argument("--seeds", type=_seeds, help="how many (2 means 0,1), or a list: 0,5,7")
    search.add_argument("--budget", type=int, help="distinct true evaluations, all seeds together")
    search.add_argument("--time-budget", help="stop after this long: 90s, 30m, 2h")
    search.add_argument(
        "--quantizers", help="where activations are rounded: fused (where written) or per-layer"
    )
    search.add_argument("--targets", type=_points, help="accuracy drops in points: 0.5,1,2")
    search.add_argument(
        "--energy-targets", type=_ratios, help="energies over that of dense INT8: 0.5,0.4"
    )
    search.add_argument(
        "--limits",
        type=_limits,
        help="what else an inference may cost at most: latency_cycles=300000,model_bytes=250000",
    )
    search.add_argument(
        "--preference",
        type=_weights,
        help="what to minimize instead of energy: latency_cycles=1, or weights of several costs: "
        "energy_pj=1,model_bytes=0.5",
    )
    search.add_argument("--address", help="a running Ray cluster; a local one is started else")
    search.add_argument("--database", help="option database to share: a path or URI")
    search.add_argument("--output", help="run directory: a path or URI")
    resume = add_verb(verbs, "resume", _resume, "go on with a run or batch that stopped")
    resume.add_argument("run", metavar="RUN", help="run or batch directory: a path or URI")
    add_retry(resume)
    prepare = add_verb(verbs, "prepare", _prepare, "build an option database ahead of searches")
    prepare.add_argument("spec", nargs="?", metavar="SPEC.yaml", help="flags override what it says")
    add_task(prepare, required=False)
    prepare.add_argument("--address", help="a running Ray cluster; a local one is started else")
    prepare.add_argument("--database", help="the database: a path or URI")
    add_json(prepare)


def _search(args: argparse.Namespace) -> None:
    from search.run_directory import RunDirectory
    from search.runner import run_search  # noqa: F401 (so that a new run is at work at once)

    spec = _spec(args).absolute()
    policies = check_spec(spec)
    spec.task_spec().load()
    run = RunDirectory.create(spec.output, spec, policies)
    try:
        _run(run, spec)
    except InputError:
        run.discard_if_unused()
        raise


def _prepare(args: argparse.Namespace) -> None:
    from search.preparation import prepare_database
    from search.progress import Progress

    # Neither matters here, but a specification has both.
    spec = _spec(args, {"accelerator": "eyeriss-like", "output": "unused"}).absolute()
    if spec.resources.database is None:
        raise InputError("--database", None, "name a folder or URI for the option database")
    with stdout_for_json(args.json), Progress() as progress:
        result = prepare_database(spec, spec.resources.database, progress)
    if args.json:
        print_json(result)
        return
    size, limit = (result[key] / 2**20 for key in ("database_bytes", "limit_bytes"))
    print(f"{result['task']}: {result['layers']} layers, {result['seconds']:.0f} s")
    print(f"{result['database']}: {size:.0f} MiB of at most {limit:.0f} MiB")
    if result["lacking"]:
        print(f"{result['lacking']} parts did not fit; searches compute them when they need them")


def _resume(args: argparse.Namespace) -> None:
    from search.batch_directory import BatchDirectory
    from search.batch_directory import is_batch
    from search.batch_status import batch_status
    from search.run_directory import RunDirectory
    from search.storage import Storage

    if is_batch(Storage.at(args.run)):
        batch = BatchDirectory.open(args.run)
        go_on(batch, args.retry_failed)
        print_status(batch_status(batch))
        return
    if args.retry_failed:
        raise InputError("--retry-failed", args.run, "only a batch has experiments that failed")
    run = RunDirectory.open(args.run)
    spec = run.spec()
    run.check_spec(spec)
    report = _final_report(run)
    if report is None:
        _run(run, spec)
        return
    from search.commands.results import print_report

    print_report(run, report)


def _final_report(run: RunDirectory) -> Report | None:
    """The report of a run that has nothing left to do; None of others."""
    from search.report import build_report

    with suppress(InputError):  # going on puts aside what is damaged
        if run.state() != "completed":
            return None
        report = build_report(run)
        shown = [*report.baselines, *report.best]
        is_verified = all(entry.accuracy is not None for entry in shown)
        is_verified &= not any(entry.recalibration_error for entry in report.best)
        if report.evaluations >= report.budget and is_verified:
            return report
    return None


def _run(run: RunDirectory, spec: Spec) -> None:
    from search.commands.results import print_report
    from search.report import build_report
    from search.runner import run_search
    from search.stopping import interrupted_by_sigterm
    from search.stopping import was_told_to_end

    try:
        with interrupted_by_sigterm():
            run_search(run, spec)
    except KeyboardInterrupt:
        print_report(run, build_report(run))
        print(f"stopped; go on with: joulecut resume {run.location}", file=sys.stderr)
        if not was_told_to_end():
            raise
    else:
        print_report(run, build_report(run))
        if message := run.message():
            print(message, file=sys.stderr)


def _spec(args: argparse.Namespace, defaults: Mapping[str, Any] | None = None) -> Spec:
    from search.spec import Spec
    from search.spec import read_yaml

    data = read_yaml(args.spec) if args.spec else {}
    if not isinstance(data, dict):
        raise InputError(args.spec, data, "use a mapping of the specification's keys")
    data = {**(defaults or {}), **data}
    given = _override(data, args)
    try:
        return Spec.from_mapping(data)
    except InputError as error:
        field = error.field.partition("[")[0]
        field = "task.name" if field == "task" and not args.spec else field
        if field in FLAGS and (field in given or not args.spec):
            raise InputError(FLAGS[field], error.value, error.allowed) from None
        raise


def _override(data: dict[str, Any], args: argparse.Namespace) -> set[str]:
    """Put the flags into ``data``; returns the fields that they set."""
    if args.task is not None or isinstance(data.get("task"), str):
        data["task"] = {"name": data["task"] if args.task is None else args.task}
    given = set()
    for field, flag in FLAGS.items():
        value = getattr(args, flag.removeprefix("--").replace("-", "_"), None)
        if value is not None:
            *sections, key = field.split(".")
            target = data
            for number, section in enumerate(sections, start=1):
                target = target.setdefault(section, {})
                if not isinstance(target, dict):
                    raise InputError(".".join(sections[:number]), target, "use a mapping")
            target[key] = value
            given.add(field)
    return given


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or (numbers == [0] and "," not in text):
        raise _refuse(text, "use how many (2 means 0,1), or a list such as 0,5,7 or 3,")
    if "," in text:
        return numbers
    if numbers[0] > _MOST_SEEDS:
        raise _refuse(text, f"use at most {_MOST_SEEDS} seeds, or a list such as 0,5,7 or 3,")
    return list(range(numbers[0]))


def _points(text: str) -> list[float]:
    return _numbers(text, "use points of accuracy such as 0.5,1,2")


def _ratios(text: str) -> list[float]:
    return _numbers(text, "use energies over that of dense INT8 such as 0.5,0.4")


def _limits(text: str) -> dict[str, float]:
    return _by_cost(text, "use costs and what they may be at most, such as latency_cycles=300000")


def _weights(text: str) -> dict[str, float]:
    return _by_cost(text, "use costs and their weights, such as energy_pj=1,latency_cycles=0.5")


def _by_cost(text: str, allowed: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise _refuse(text, allowed) from None


def _numbers(text: str, allowed: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise _refuse(text, allowed) from None


def _refuse(text: str, allowed: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r} is not allowed; {allowed}")
