"""``cost`` and ``compare``: what the hardware model says, without running a network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hwmodel.errors import InputError
from search.commands._shared import Verbs
from search.commands._shared import add_json
from search.commands._shared import add_task
from search.commands._shared import add_verb
from search.commands._shared import print_json
from search.commands._shared import print_table
from search.commands._shared import stdout_for_json
from search.commands._shared import task_spec

if TYPE_CHECKING:
    from hwmodel import Accelerator
    from hwmodel import CostReport
    from hwmodel import LayerStates
    from hwmodel import Workload

TASK_BITS = 8
"""Width at which a network without a configuration is priced; bare layers have that of papers."""


def add_verbs(verbs: Verbs) -> None:
    """Declare ``cost`` and ``compare``."""
    cost = add_verb(verbs, "cost", _cost, "what the hardware model says of every layer")
    _add_network(cost)
    cost.add_argument("--accelerator", required=True, help="preset or YAML file")
    cost.add_argument("--level", choices=("coarse", "mid", "fine"), default="mid")
    cost.add_argument(
        "--objective",
        choices=("energy", "latency", "edp"),
        default="energy",
        help="what the mappings of level fine are the best of",
    )
    cost.add_argument(
        "--counting",
        choices=("native", "nn_dataflow", "zigzag"),
        default="native",
        help="whose rules count accesses at level fine",
    )
    cost.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV, too")
    cost.add_argument("--output", metavar="DIR", help="write table (CSV, Parquet) and picture, too")
    compare = add_verb(verbs, "compare", _compare, "the same network on several accelerators")
    _add_network(compare)
    compare.add_argument("--accelerators", required=True, help="presets or YAML files: a,b,c")
    compare.add_argument("--level", choices=("mid", "fine"), default="mid")
    for parser in (cost, compare):
        add_json(parser)


def _add_network(parser: argparse.ArgumentParser) -> None:
    add_task(parser, required=False)
    parser.add_argument("--config", type=Path, help="JSON file; the dense network without it")
    parser.add_argument("--layers", type=Path, metavar="CSV", help="bare layers instead of a task")
    parser.add_argument("--bits", type=int, help="width of all operands that nothing else says")


def _cost(args: argparse.Namespace) -> None:
    from hwmodel import cost
    from hwmodel import load_accelerator

    _check_network(args)
    accelerator = load_accelerator(args.accelerator)
    with stdout_for_json(args.json):
        workload, states = _network(args)
        report = cost(
            workload,
            states,
            accelerator,
            level=args.level,
            objective=args.objective,
            counting=args.counting,
        )
    if args.csv:
        _write_csv(report, args.csv)
    if args.output:
        from search.cost_files import write_cost

        write_cost(report, args.output)
    if args.json:
        _print_json(args, report)
    else:
        _print(args, report)


def _compare(args: argparse.Namespace) -> None:
    from search.devices import compare_devices
    from search.devices import device_table

    _check_network(args)
    accelerators = _accelerators(args.accelerators)
    with stdout_for_json(args.json):
        workload, states = _network(args)
        rows = compare_devices(workload, states, accelerators, args.level)
    if args.json:
        print_json({**_heading(args), "accelerators": rows})
    else:
        print_table(device_table(f"{workload.name}{_states(args)}, level {args.level}", rows))
        for row in rows:
            for note in row["notes"]:
                print(f"{row['accelerator']}: {note}")


def _check_network(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is loaded."""
    if args.bits is not None and not 1 <= args.bits <= 32:
        raise InputError("--bits", args.bits, "use 1 to 32")
    if args.layers is None:
        if args.task is None:
            raise InputError("--task", None, "name a task, or a CSV file with --layers")
        if args.config and args.bits is not None:
            raise InputError("--bits", args.bits, "the configuration says all widths")
        return
    for flag in ("task", "data", "weights", "config"):
        value = getattr(args, flag)
        if value is not None:
            raise InputError(f"--{flag}", str(value), "--layers needs no task: use one of them")


def _network(args: argparse.Namespace) -> tuple[Workload, LayerStates]:
    if args.layers is not None:
        from hwmodel.layers_csv import DEFAULT_BITS
        from hwmodel.layers_csv import read_layers

        return read_layers(args.layers, DEFAULT_BITS if args.bits is None else args.bits)
    from envs.config import CompressionConfig

    config = CompressionConfig.load(args.config) if args.config else None
    spec = task_spec(args)
    from search.evaluate import network_states

    return network_states(spec, config, TASK_BITS if args.bits is None else args.bits)


def _accelerators(text: str) -> list[Accelerator]:
    from hwmodel import load_accelerator

    names = [name.strip() for name in text.split(",")]
    if len(set(names)) != len(names) or "" in names:
        raise InputError("--accelerators", text, "use names or files once each: a,b,c")
    loaded = []
    for index, name in enumerate(names):
        try:
            loaded.append(load_accelerator(name))
        except InputError as error:
            field = f"--accelerators[{index}]"
            field = field if error.field == "accelerator" else f"{field}.{error.field}"
            raise InputError(field, error.value, error.allowed) from None
    return loaded


def _heading(args: argparse.Namespace) -> dict[str, str]:
    network = {"task": args.task} if args.layers is None else {"file": str(args.layers)}
    return {**network, "level": args.level}


def _print_json(args: argparse.Namespace, report: CostReport) -> None:
    from search.cost_table import layer_rows
    from search.cost_table import totals

    print_json(
        {
            **_heading(args),
            "accelerator": report.accelerator,
            "objective": args.objective,
            "counting": args.counting,
            "energy_unit": report.energy_unit,
            "notes": list(report.notes),
            "total": totals(report),
            "layers": layer_rows(report),
        }
    )


def _print(args: argparse.Namespace, report: CostReport) -> None:
    from search.cost_table import loop_nests
    from search.cost_table import tables

    print(f"{report.workload}{_states(args)} on {report.accelerator}, level {args.level}")
    for table in tables(report):
        print_table(table)
    for nest in loop_nests(report):
        print(f"{nest}\n")
    for note in report.notes:
        print(note)


def _states(args: argparse.Namespace) -> str:
    """What a network is priced as that no file says it of."""
    if args.layers is not None or args.config is not None:
        return ""
    return f" (dense, {args.bits or TASK_BITS} bits, no zeros counted)"


def _write_csv(report: CostReport, path: Path) -> None:
    from search.storage import write_error

    try:
        report.to_pandas().to_csv(path, index=False)
    except OSError as error:
        raise write_error("--csv", str(path), error) from error
