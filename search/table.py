"""The result table, for people: the same cells on the terminal and in the HTML page."""

from __future__ import annotations

import math
from typing import Literal

from rich import box
from rich.table import Table

from envs.preference import ENERGY
from search.front import smallest_provable_drop
from search.goals import OF_INT8
from search.report import Entry
from search.report import Report

_ACCURACY = ("configuration", "acc. %", "loss")
_COSTS = ("energy", "/ INT8", "/ FP16", "cycles", "BOPs", "model")

MISSING = "–"  # noqa: RUF001 (an en dash is meant)


def headers(report: Report) -> list[str]:
    """Of the columns; accuracy under attack is one where it was measured."""
    attacked = ["attacked %"] if report.attack else []
    return [*_ACCURACY, *attacked, *(["cost"] if _is_weighted(report) else []), *_COSTS]


def cells(report: Report, entry: Entry) -> list[str]:
    """One row under :func:`headers`; what is not known yet is a dash."""
    return [
        entry.name or entry.config_hash,
        _fixed(entry.accuracy, 2, 100),
        _fixed(entry.accuracy_drop, 2),
        *([_fixed(entry.robust_accuracy, 2, 100)] if report.attack else []),
        *([_fixed(entry.cost_ratio_int8, 3)] if _is_weighted(report) else []),
        _scaled(entry.energy_pj, "J", 1e-12),
        _fixed(entry.energy_ratio_int8, 3),
        _fixed(entry.energy_ratio_fp16, 3),
        _scaled(entry.latency_cycles),
        _scaled(entry.bops),
        _scaled(entry.model_bytes, "B"),
    ]


def cost_name(report: Report) -> str:
    """What is minimized: ``energy``, or ``cost`` where the run has a preference."""
    return "cost" if _is_weighted(report) else "energy"


def _is_weighted(report: Report) -> bool:
    return report.preference != ENERGY


def terminal_table(report: Report) -> Table:
    """Baselines, then what was found; accuracies on the test split."""
    title = (
        f"{report.task} on {report.accelerator} (level {report.level}), "
        f"{report.evaluations} evaluations, test split"
    )
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0)
    )
    for header in headers(report):
        justify: Literal["left", "right"] = "left" if header == _ACCURACY[0] else "right"
        table.add_column(header, justify=justify, no_wrap=True)
    for entry in report.baselines:
        table.add_row(*cells(report, entry))
    table.add_section()
    for entry in report.best:
        table.add_row(*cells(report, entry), style="bold")
    return table


def notes(report: Report) -> list[str]:
    """What the table alone does not tell."""
    lines = []
    if report.limits.given:
        lines.append(f"The best hold {report.limits}.")
    if _is_weighted(report):
        lines.append(f"cost: {report.preference}, over what dense INT8 takes.")
    if report.attack is not None:
        attack = report.attack
        steps = f", {attack.steps} steps" if attack.method == "pgd" else ""
        lines.append(
            f"attacked %: accuracy on {attack.images} images of the split (all, if it has fewer) "
            f"under {attack.method}{steps}, epsilon {attack.epsilon:g}."
        )
    if not report.best and not report.unreached:
        lines.append("No configuration reaches a goal yet.")
    if report.unreached:
        lines.append(f"No configuration for sure: {', '.join(report.unreached)}.")
    energies = [entry.energy_ratio_int8 for entry in report.front]
    if any(name.endswith(OF_INT8) for name in report.unreached) and any(energies):
        lines.append(f"The least energy found is {min(filter(None, energies)):.3f}{OF_INT8}.")
    baselines = {entry.config_hash: entry.name for entry in report.baselines}
    same = [
        f"{item.name} is {baselines[item.config_hash]}"
        for item in report.best
        if item.config_hash in baselines
    ]
    if same:
        lines.append(f"{', '.join(same)}: nothing cheaper is known for sure to lose no more.")
    unverified = [item.name for item in report.best if not item.verified]
    if unverified:
        lines.append(
            f"Not yet evaluated on the test split: {', '.join(unverified)}. What they lose on the "
            "search split, joulecut status tells."
        )
    limits = [item.max_accuracy_drop for item in report.best if item.max_accuracy_drop is not None]
    if report.search_images:
        lines += provable_note(min(limits, default=math.inf), report.search_images)
    missed = [
        item.name
        for item in report.best
        if item.accuracy_drop is not None
        and item.max_accuracy_drop is not None
        and item.accuracy_drop > item.max_accuracy_drop + 1e-9
    ]
    if missed:
        lines.append(f"Loses more on the test split than it is meant to: {', '.join(missed)}.")
    return lines + _recalibration_notes(report)


def provable_note(limit: float, images: int) -> list[str]:
    """What is to be said of a limit on a loss, in points, that so many images cannot prove."""
    provable = smallest_provable_drop(images)
    if limit >= provable:
        return []
    return [
        f"The search split's {images} images cannot show that less than {provable:.2g} points are "
        "lost: a pick at a lower limit may lose that much."
    ]


def _recalibration_notes(report: Report) -> list[str]:
    """What the picks lose from another calibration sample; nothing where that was not tried."""
    lines = []
    drops = [item.recalibrated_accuracy_drop for item in report.best]
    if any(drop is not None for drop in drops):
        *others, last = (_fixed(drop, 2) for drop in drops)
        listed = f"{', '.join(others)} and {last}" if others else last
        lines.append(f"Compressed from another calibration sample, the best lose {listed} points.")
    failed: dict[str, list[str]] = {}
    for item in report.best:
        if item.recalibration_error:
            failed.setdefault(item.recalibration_error.splitlines()[0], []).append(item.name)
    for error, names in failed.items():
        listed = ", ".join(names)
        lines.append(f"Not measured from another calibration sample: {listed} ({error}).")
    return lines


def scaled(value: float) -> str:
    """Three significant digits with an SI prefix: ``1.23 M``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    for factor, prefix in ((1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value / 1e-12:.3g} p" if value else "0 "


def _scaled(value: float | None, unit: str = "", factor: float = 1.0) -> str:
    return MISSING if value is None else f"{scaled(value * factor)}{unit}"


def _fixed(value: float | None, digits: int, factor: float = 1.0) -> str:
    return MISSING if value is None else f"{value * factor:.{digits}f}"
