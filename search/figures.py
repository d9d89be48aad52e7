"""Pictures of a report, drawn without a display."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hwmodel import CostReport
from search.front import pareto_front
from search.report import Entry
from search.report import Pick
from search.report import Report
from search.table import cost_name

INK, GRID, CLOUD = "#1f2933", "#e4e7eb", "#9fb3c8"
FRONT, BASELINE, PICK = "#0b7285", "#868e96", "#d9480f"
COMPONENTS = {
    "mac": "#0b7285",
    "register_file": "#3bc9db",
    "array_network": "#94d82d",
    "buffer": "#fab005",
    "dram": "#e8590c",
    "vector": "#845ef7",
    "clock": "#adb5bd",
    "leakage": "#495057",
}
LINES = ("#0b7285", "#d9480f", "#5f3dc4", "#2b8a3e", "#868e96", "#c2255c", "#e67700")
GRANULARITIES = {
    "none": "#ced4da",
    "element": "#1c7ed6",
    "kernel": "#5f3dc4",
    "filter": "#f08c00",
}
PATTERNS = ("#2b8a3e", "#c2255c", "#0b7285", "#94d82d", "#845ef7", "#495057")
"""Of blocks and runs, whose sizes are free."""

MAX_RATIO, MAX_LOSS = 1.05, 10.0
"""Edges of the picture of the front: the box of the hypervolume and dense INT8 in view. Picks that
lose more are in view, too."""


def front(report: Report) -> Figure:
    """Every evaluation on the search split, the front, the baselines and the picks."""
    figure = Figure(figsize=(8.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    points = report.points.dropna()
    axes.scatter(
        points["cost_ratio_int8"],
        points["accuracy_drop"],
        s=14,
        color=CLOUD,
        alpha=0.7,
        label="evaluated",
    )
    ratios, losses = (np.array(values) for values in _coordinates(report.front))
    best = pareto_front(ratios, losses)  # not those that are there for their robustness
    ratios, losses = ratios[best], losses[best]
    axes.step(ratios, losses, where="post", color=FRONT, linewidth=1.6, label="Pareto front")
    axes.scatter(
        *_coordinates(report.baselines),
        s=40,
        marker="s",
        color=BASELINE,
        zorder=3,
        label="baselines",
    )
    axes.scatter(
        *_coordinates(report.best), s=110, marker="*", color=PICK, zorder=4, label="best, for sure"
    )
    for entry in report.baselines:
        _label(axes, entry, entry.name, BASELINE)
    for config_hash, limits in _limits(report.best).items():
        entry = next(item for item in report.best if item.config_hash == config_hash)
        _label(axes, entry, f"best at {limits}", PICK, rotation=25)
    top = max([MAX_LOSS, *(1.1 * loss for loss in _coordinates(report.best)[1])])
    shown = [*_coordinates([*report.baselines, *report.best])[1], *losses]
    axes.set(xlim=(0, MAX_RATIO), ylim=(min([0.0, *shown]) - 0.4, top))
    outside = (points["cost_ratio_int8"] > MAX_RATIO) | (points["accuracy_drop"] > top)
    axes.annotate(
        f"{int(outside.sum())} of {len(points)} evaluations lie outside",
        (0, 1),
        (0, 4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8,
        color=INK,
    )
    axes.set_xlabel(f"{cost_name(report)} / dense INT8")
    axes.set_ylabel("accuracy loss on the search split, points")
    _legend(axes, columns=4)
    _plain(axes)
    return figure


def layers(table: pd.DataFrame) -> Figure:
    """One configuration, layer by layer: what is removed, the widths, the energy.

    Args:
        table: Columns ``layer``, ``granularity``, ``sparsity``, ``weight_bits``,
            ``activation_bits`` and ``energy_pj``; one row per layer in execution order.
    """
    figure = Figure(figsize=(max(8.4, 0.22 * len(table)), 6.0), layout="constrained")
    pruned, widths, energy = figure.subplots(3, 1, sharex=True)
    position = np.arange(len(table))
    for name, color in _granularity_colors(table["granularity"]).items():
        here = (table["granularity"] == name).to_numpy()
        pruned.bar(position[here], 100 * table["sparsity"][here], color=color, label=name)
    pruned.set(ylim=(0, 100), ylabel="removed, %")
    _legend(pruned, columns=6)
    widths.plot(position, table["weight_bits"], "o-", color=FRONT, markersize=4, label="weights")
    widths.plot(position, table["activation_bits"], "s--", color=PICK, markersize=4, label="inputs")
    widths.set(ylabel="bits", ylim=(0, None))
    _legend(widths, columns=2)
    energy.bar(position, table["energy_pj"] * 1e-6, color=FRONT)
    energy.set(ylabel="energy, µJ")
    energy.set_xticks(position, table["layer"], rotation=90, fontsize=7)
    for axes in (pruned, widths, energy):
        _plain(axes)
    return figure


def cost(report: CostReport) -> Figure:
    """What every layer of the first candidate costs: energy by component, and cycles."""
    figure = Figure(figsize=(max(8.4, 0.22 * len(report.layers)), 6.0), layout="constrained")
    energy, time = figure.subplots(2, 1, sharex=True)
    position, top = np.arange(len(report.layers)), np.zeros(len(report.layers))
    joules = report.energy_unit == "pJ"
    for name, values in report.component_pj.items():
        height = values[0] * 1e-6
        label = name.replace("_", " ")
        energy.bar(position, height, bottom=top, color=COMPONENTS[name], label=label)
        top = top + height
    energy.set(ylabel="energy, µJ" if joules else f"energy, million {report.energy_unit}")
    _legend(energy, columns=len(report.component_pj) or 1)
    time.bar(position, report.latency_cycles[0] * 1e-3, color=FRONT)
    time.set(ylabel="latency, thousand cycles")
    time.set_xticks(position, report.layers, rotation=90, fontsize=7)
    for axes in (energy, time):
        _plain(axes)
    return figure


def learning_curves(table: pd.DataFrame, title: str) -> Figure:
    """Hypervolume and least cost ratios over the number of evaluations, for each algorithm.

    Args:
        table: Rows of ``search.comparison.curves`` of one network and accelerator. Lines are
            means over seeds, bands reach from the worst seed to the best.
        title: What it is about.
    """
    names = map(str, table.columns)
    measures = [name for name in names if name == "hypervolume" or name.startswith("ratio_at_")]
    figure = Figure(figsize=(4.2 * len(measures), 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for number, (algorithm, group) in enumerate(table.groupby("algorithm", sort=False)):
            by_count = group.groupby("evaluations")[measure]
            color = LINES[number % len(LINES)]
            counts, mean = by_count.mean().index, by_count.mean()
            axes.plot(counts, mean, color=color, linewidth=1.6, label=str(algorithm))
            axes.fill_between(counts, by_count.min(), by_count.max(), color=color, alpha=0.15)
        target = measure.removeprefix("ratio_at_")
        name = measure if target == measure else f"cost / dense INT8 at {target} points"
        axes.set(xlabel="evaluations of a seed", ylabel=name)
        _plain(axes)
    _legend(panels[-1], columns=3)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element that can stand in an HTML page."""
    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    return text[text.index("<svg") :]  # without the XML prolog


def _coordinates(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    known = [
        (entry.cost_ratio_int8, entry.search_accuracy_drop)
        for entry in entries
        if entry.cost_ratio_int8 is not None and entry.search_accuracy_drop is not None
    ]
    return [ratio for ratio, _ in known], [loss for _, loss in known]


def _limits(picks: Sequence[Pick]) -> dict[str, str]:
    """Limits by configuration: one configuration is often the best at several."""
    limits: dict[str, str] = {}
    for item in picks:
        text = item.name.removeprefix("best at ")
        known = limits.get(item.config_hash)
        limits[item.config_hash] = f"{known}, {text}" if known else text
    return limits


def _label(axes: Axes, entry: Entry, text: str, color: str, rotation: float = 0) -> None:
    ratio, loss = entry.cost_ratio_int8, entry.search_accuracy_drop
    if ratio is None or loss is None:
        return
    right = ratio > 0.9 * MAX_RATIO
    axes.annotate(
        text,
        (ratio, loss),
        (-6 if right else 6, 7),
        annotation_clip=True,  # of what lies outside, no label either
        textcoords="offset points",
        horizontalalignment="right" if right else "left",
        fontsize=8,
        color=color,
        rotation=rotation,  # picks may lie close to each other
        rotation_mode="anchor",
    )


def _granularity_colors(granularities: Iterable[str]) -> dict[str, str]:
    """A color for each granularity that there is, in the order of a legend."""
    there = set(granularities)
    patterns = dict(zip(sorted(there - GRANULARITIES.keys()), itertools.cycle(PATTERNS)))
    colors = GRANULARITIES | patterns
    return {name: color for name, color in colors.items() if name in there}


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, frameon=False, borderaxespad=0
    )


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
