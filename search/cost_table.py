"""What ``cost`` says of every layer: rows for programs, tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from hwmodel import CostReport
from search.table import scaled

ADDED = (
    *("energy_pj", "latency_cycles", "macs", "effective_macs", "bops", "bops_linear"),
    *("parameters", "weight_bytes", "dram_bytes", "dram_words"),
)
"""Columns of ``CostReport.to_pandas`` that add up to the network's."""

WORK = {
    "latency_cycles": "cycles",
    "utilization": "used",
    "macs": "MACs",
    "bops": "BOPs",
    "bops_linear": "linear BOPs",
    "arithmetic_intensity": "MACs/B",
    "weight_bytes": "weights",
    "activation_bytes": "maps",
    "dram_bytes": "DRAM",
}
"""Columns of the second table on the terminal and their headers; CSV and JSON have all."""


def layer_rows(report: CostReport) -> list[dict[str, Any]]:
    """One mapping a layer of the first candidate, with the fields that docs/cli.md lists."""
    rows = []
    for index, record in enumerate(report.to_pandas().to_dict("records")):
        row: dict[str, Any] = {str(name): value for name, value in record.items()}
        row["energy"] = row["energy_pj"]
        row["cycles"] = row["latency_cycles"]
        words: dict[str, dict[str, float]] = {}
        for memory, operand in report.traffic_words:
            words.setdefault(memory, {})[operand] = row.pop(f"{memory}_{operand}_words")
        row["words"] = words
        mapping = report.mappings[0][index] if report.mappings else None
        row["mapping"] = None if mapping is None else str(mapping)
        rows.append(row)
    return rows


def totals(report: CostReport) -> dict[str, float]:
    """Sums over the layers of the first candidate, by the names of the columns."""
    table = report.to_pandas()
    total = {name: float(table[name].sum(skipna=False)) for name in ADDED}
    return {**total, "energy": total["energy_pj"], "cycles": total["latency_cycles"]}


def tables(report: CostReport) -> Iterator[Table]:
    """Energy by component, work and time, and traffic by memory and operand; what is known."""
    if report.component_pj:
        energies = {"total": report.layer_energy_pj, **report.component_pj}
        yield _table(
            "energy",
            report,
            {
                name.replace("_", " "): [
                    energy_text(value, report.energy_unit) for value in _with_total(energy)
                ]
                for name, energy in energies.items()
            },
        )
    frame = report.to_pandas()
    known = {name: header for name, header in WORK.items() if frame[name].notna().all()}
    yield _table(
        "work and time",
        report,
        {header: _work_cells(name, frame[name].to_numpy()) for name, header in known.items()},
    )
    if report.traffic_words:
        yield _table(
            "words read and written",
            report,
            {
                f"{memory}\n{operand}": [scaled(value).strip() for value in _with_total(words)]
                for (memory, operand), words in report.traffic_words.items()
            },
        )


def loop_nests(report: CostReport) -> Iterator[str]:
    """The mappings of the first candidate as text, one for neighbours that share it.

    A layer that has lost all its channels has none.
    """
    if not report.mappings:
        return
    mapped = zip(report.layers, report.mappings[0], strict=True)
    named = [(name, str(mapping)) for name, mapping in mapped if mapping is not None]
    for nest, layers in groupby(named, key=lambda item: item[1]):
        yield f"{', '.join(name for name, _ in layers)}:\n{nest}"


def energy_text(value: float, unit: str) -> str:
    """An energy with an SI prefix; ``unit`` is the accelerator's."""
    return f"{scaled(value * 1e-12)}J" if unit == "pJ" else f"{scaled(value).strip()} {unit}"


def _with_total(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.append(values[0], values[0].sum())


def _work_cells(name: str, values: NDArray[np.float64]) -> list[str]:
    if name == "utilization":
        return [f"{100 * value:.0f} %" for value in values] + [""]
    if name == "arithmetic_intensity":
        return [f"{value:.3g}" for value in values] + [""]
    unit = "B" if name.endswith("bytes") else ""
    return [f"{scaled(value)}{unit}".strip() for value in (*values, values.sum())]


def _table(title: str, report: CostReport, columns: dict[str, list[str]]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), show_footer=True
    )
    table.add_column("layer", "network", no_wrap=True)
    for header, cells in columns.items():
        table.add_column(header, cells[-1], justify="right", no_wrap=True)
    for index, layer in enumerate(report.layers):
        table.add_row(layer, *(cells[index] for cells in columns.values()))
    return table
