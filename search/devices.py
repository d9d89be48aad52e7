"""The same network on several accelerators, as papers compare devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from hwmodel import Accelerator
from hwmodel import InputError
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel.pricing import Level
from search.cost_table import energy_text
from search.table import MISSING
from search.table import scaled


def compare_devices(
    workload: Workload,
    states: LayerStates,
    accelerators: Sequence[Accelerator],
    level: Level,
) -> list[dict[str, Any]]:
    """Price the first candidate on every accelerator.

    Returns:
        One mapping an accelerator, in the order given, with the fields that docs/cli.md lists.
        Ratios are to the first accelerator; those of energies in another unit are None.

    Raises:
        InputError: an accelerator cannot run the network; the field begins with its name.
    """
    rows: list[dict[str, Any]] = []
    for accelerator in accelerators:
        try:
            report = cost(workload, states, accelerator, level=level)
        except InputError as error:
            field = f"{accelerator.name}: {error.field}"
            raise InputError(field, error.value, error.allowed) from None
        energy, cycles = float(report.energy_pj[0]), float(report.total_latency_cycles[0])
        seconds = cycles / accelerator.clock_hz
        row: dict[str, Any] = {
            "accelerator": accelerator.name,
            "energy": energy,
            "energy_unit": report.energy_unit,
            "components": {name: float(e[0].sum()) for name, e in report.component_pj.items()},
            "cycles": cycles,
            "latency_seconds": seconds,
            "inferences_per_second": 1 / seconds,
            "power_watts": energy * 1e-12 / seconds if report.energy_unit == "pJ" else None,
            "edp": energy * seconds,
            "dram_bytes": float(report.dram_bytes[0].sum()),
            "notes": list(report.notes),
        }
        first = rows[0] if rows else row
        alike = row["energy_unit"] == first["energy_unit"]
        row["energy_ratio"] = energy / first["energy"] if alike else None
        row["latency_ratio"] = seconds / first["latency_seconds"]
        row["edp_ratio"] = row["edp"] / first["edp"] if alike else None
        rows.append(row)
    return rows


def device_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """The comparison for people: energy, time and their product, each also over the first's."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("accelerator", no_wrap=True)
    for header in (
        *("energy/inf.", "ratio", "latency", "ratio", "inf./s", "power", "EDP", "ratio"),
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        unit, power = row["energy_unit"], row["power_watts"]
        table.add_row(
            row["accelerator"],
            energy_text(row["energy"], unit),
            _ratio(row["energy_ratio"]),
            f"{scaled(row['latency_seconds'])}s",
            _ratio(row["latency_ratio"]),
            scaled(row["inferences_per_second"]).strip(),
            MISSING if power is None else f"{scaled(power)}W",
            f"{energy_text(row['edp'], unit)} s",
            _ratio(row["edp_ratio"]),
        )
    return table


def _ratio(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
