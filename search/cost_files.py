"""What ``cost --output`` writes."""

from __future__ import annotations

from hwmodel import CostReport
from search import figures
from search.storage import Storage
from search.storage import table_files
from search.storage import write_error


def write_cost(report: CostReport, location: str) -> None:
    """Write the table by layer (``cost.csv``, ``cost.parquet``) and its picture (``cost.png``).

    Args:
        report: The first candidate is written.
        location: A folder, made where it is missing: a path or a URI.

    Raises:
        InputError: it cannot be written.
    """
    files = table_files("cost", report.to_pandas())
    files["cost.png"] = figures.png(figures.cost(report))
    storage = Storage.at(location)
    try:
        storage.make()
        for name, content in files.items():
            storage.write(name, content)
    except OSError as error:
        raise write_error("--output", location, error) from error
