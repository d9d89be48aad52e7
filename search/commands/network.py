"""``evaluate`` and ``cost``: one configuration of one network, without a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from search.commands._shared import Verbs
from search.commands._shared import add_json
from search.commands._shared import add_task
from search.commands._shared import add_verb
from search.commands._shared import print_json
from search.commands._shared import stdout_for_json
from search.commands._shared import task_spec

if TYPE_CHECKING:
    import pandas as pd

    from envs.config import CompressionConfig

TOTALS = "energy_pj latency_cycles macs effective_macs bops parameters weight_bytes dram_bytes"
"""Columns of the per-layer table that add up to the network's."""

SHOWN = {
    "energy_pj": "energy",
    "latency_cycles": "cycles",
    "utilization": "used",
    "macs": "MACs",
    "bops": "BOPs",
    "weight_bytes": "weights",
    "dram_bytes": "DRAM",
}
"""Columns on the terminal and their headers; CSV and JSON have all."""


def add_verbs(verbs: Verbs) -> None:
    """Declare ``evaluate`` and ``cost``."""
    evaluate = add_verb(verbs, "evaluate", _evaluate, "accuracy and cost of one configuration")
    cost = add_verb(verbs, "cost", _cost, "what the hardware model says of every layer")
    for parser in (evaluate, cost):
        add_task(parser)
        parser.add_argument("--config", type=Path, help="JSON file; the dense network without it")
        parser.add_argument("--level", choices=("coarse", "mid"), default="mid")
        add_json(parser)
    evaluate.add_argument("--accelerator", default="eyeriss-like", help="preset or YAML file")
    evaluate.add_argument(
        "--split", choices=("calibration", "search", "test", "all"), default="search"
    )
    cost.add_argument("--accelerator", required=True, help="preset or YAML file")
    cost.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV, too")


def _evaluate(args: argparse.Namespace) -> None:
    from hwmodel import load_accelerator

    config = _config(args)
    accelerator = load_accelerator(args.accelerator)
    from search.evaluate import evaluate_config

    with stdout_for_json(args.json):
        result = evaluate_config(task_spec(args), config, accelerator, args.level, args.split)
    if args.json:
        print_json(result)
        return
    width = max(map(len, result))
    for key, value in result.items():
        print(
            f"{key:<{width}}  {value:.6g}"
            if isinstance(value, float)
            else f"{key:<{width}}  {value}"
        )


def _cost(args: argparse.Namespace) -> None:
    from hwmodel import load_accelerator

    config = _config(args)
    accelerator = load_accelerator(args.accelerator)
    from search.evaluate import network_cost

    with stdout_for_json(args.json):
        report = network_cost(task_spec(args), accelerator, args.level, config)
    table = report.to_pandas()
    total = {name: float(table[name].sum(skipna=False)) for name in TOTALS.split()}
    if args.csv:
        _write_csv(table, args.csv)
    if args.json:
        heading = {"task": args.task, "accelerator": report.accelerator, "level": args.level}
        print_json({**heading, "total": total, "layers": table.to_dict("records")})
    else:
        _print_table(table, total)


def _config(args: argparse.Namespace) -> CompressionConfig | None:
    from envs.config import CompressionConfig

    return CompressionConfig.load(args.config) if args.config else None


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    from search.storage import write_error

    try:
        table.to_csv(path, index=False)
    except OSError as error:
        raise write_error("--csv", str(path), error) from error


def _print_table(table: pd.DataFrame, total: dict[str, float]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    known = {name: header for name, header in SHOWN.items() if table[name].notna().all()}
    view = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), show_footer=True)
    view.add_column("layer", "network", no_wrap=True)
    for name, header in known.items():
        view.add_column(header, _cell(name, total.get(name)), justify="right", no_wrap=True)
    for _, row in table.iterrows():
        view.add_row(row["layer"], *(_cell(name, row[name]) for name in known))
    Console(highlight=False).print(view)


def _cell(name: str, value: float | None) -> str:
    from search.table import scaled

    if value is None:
        return ""
    if name == "utilization":
        return f"{100 * value:.0f} %"
    if name == "energy_pj":
        return f"{scaled(value * 1e-12)}J"
    return f"{scaled(value)}B" if name.endswith("bytes") else scaled(value).strip()
