"""The files of a report: tables, the picture of the front, one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from search import figures
from search import html
from search.report import Entry
from search.report import Pick
from search.report import Report
from search.run_directory import RunDirectory
from search.storage import table_files
from search.storage import write_error


def write_report(run: RunDirectory, report: Report, *, patiently: bool = False) -> list[str]:
    """Write tables (CSV and Parquet), front.png and report.html into RUN/report.

    Args:
        run: The run.
        report: What it found.
        patiently: Try again for a while what the storage refuses.

    Returns:
        Where the files are.

    Raises:
        InputError: they cannot be written.
    """
    stages = pd.DataFrame(report.time.stages.items(), columns=["stage", "seconds"])
    files = {
        **table_files("table", to_frame([*report.baselines, *report.best])),
        **table_files("front", to_frame(report.front)),
        **table_files("time", stages),
        "front.png": figures.png(figures.front(report)),
        "report.html": html.page(report).encode(),
    }
    write = run.report.write_patiently if patiently else run.report.write
    try:
        run.report.make()
        for name, content in files.items():
            write(name, content)
    except OSError as error:
        raise write_error("report", run.report.location, error) from error
    return [f"{run.report.location}/{name}" for name in files]


def to_frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row per entry; the columns of ``Pick`` are empty for others."""
    columns = list(Pick.__dataclass_fields__)
    return pd.DataFrame([asdict(entry) for entry in entries], columns=columns)
