"""The report as one HTML page that needs nothing else: no scripts, no other files."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from html import escape

import pandas as pd

from search import figures
from search.report import Pick
from search.report import Report
from search.table import cells
from search.table import cost_name
from search.table import headers
from search.table import notes
from search.timing import Timing

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.55 system-ui, sans-serif; color: #1f2933; background: #f7f8fa; margin: 0; }
main { max-width: 1040px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 0 0 .8rem; }
p { margin: .3rem 0; } .muted { color: #616e7c; }
section { background: #fff; border: 1px solid #e4e7eb; border-radius: 10px; padding: 1.4rem;
  margin-top: 1.4rem; overflow-x: auto; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2.2rem; margin: 1rem 0 0; }
dt { color: #616e7c; font-size: .82rem; } dd { margin: 0; font-size: 1.15rem; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid #e4e7eb; }
th { color: #616e7c; font-weight: 500; } tr.pick td { font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; } summary { cursor: pointer; color: #0b7285; }
"""


def page(report: Report) -> str:
    """The whole page."""
    title = escape(f"{report.task} on {report.accelerator}")
    sections = [
        f"<section><h2>Results</h2>{_results(report)}</section>",
        f"<section><h2>Pareto front</h2>{figures.svg(figures.front(report))}</section>",
        *(_pick(report, item) for item in report.best),
        f"<section><h2>On the front</h2>{_details('Configurations', _front(report))}</section>",
        f"<section><h2>Where the time went</h2>{_time(report.time)}</section>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>joulecut: {title}</title><style>{_STYLE}</style></head>\n<body><main>"
        f'<h1>{title}</h1><p class="muted">{escape(report.run)}</p>{_facts(report)}'
        f"{''.join(sections)}</main></body></html>\n"
    )


def _facts(report: Report) -> str:
    volume = "unknown" if report.hypervolume is None else f"{report.hypervolume:.3f}"
    facts = {
        "evaluations": f"{report.evaluations} of {report.budget}",
        "hardware model": f"level {report.level}",
        "algorithm": report.algorithm,
        "seeds": ", ".join(map(str, report.seeds)),
        f"hypervolume ({cost_name(report)} ≤ INT8, loss ≤ 10 points)": volume,
    }
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def _results(report: Report) -> str:
    rows = [(cells(report, entry), "") for entry in report.baselines]
    rows += [(cells(report, entry), "pick") for entry in report.best]
    lines = "".join(f"<p>{escape(line)}</p>" for line in notes(report))
    about = "Accuracies and loss are those of the test split; loss is against dense FP32."
    return f'{_table(headers(report), rows)}{lines}<p class="muted">{about}</p>'


def _pick(report: Report, item: Pick) -> str:
    heading = f"<h2>{escape(item.name[:1].upper() + item.name[1:])}, layer by layer</h2>"
    about = f'<p class="muted">Configuration {escape(item.config_hash)}</p>'
    table = report.layers.get(item.config_hash)
    if table is None:
        return f"<section>{heading}{about}<p>No per-layer table was written yet.</p></section>"
    picture = figures.svg(figures.layers(table))
    return f"<section>{heading}{about}{picture}{_details('Numbers', _layers(table))}</section>"


def _front(report: Report) -> str:
    names = headers(report)
    rows = []
    for entry in report.front:
        row = cells(report, entry)
        drop, robust = entry.search_accuracy_drop, entry.search_robust_accuracy
        searched = ["" if drop is None else f"{drop:.2f}"]
        if report.attack:
            searched.append("" if robust is None else f"{100 * robust:.2f}")
        rows.append(([*row[:3], *searched, *row[3:]], ""))
    searched = ["loss on the search split", "attacked % on the search split"]
    return _table([*names[:3], *searched[: 2 if report.attack else 1], *names[3:]], rows)


def _time(time: Timing) -> str:
    rows = [((stage, f"{seconds:.0f} s"), "") for stage, seconds in time.stages.items()]
    lines = [
        f"<p>{share:.0%} of the time that {what}.</p>"
        for what, share in (
            ("searches held evaluators, these were at work", time.evaluating_share),
            ("trials took, they proposed and learned", time.learning_share),
        )
        if share is not None
    ]
    return _table(("stage", "time"), rows) + "".join(lines)


def _layers(table: pd.DataFrame) -> str:
    rows = [[_text(value) for value in row] for row in table.itertuples(index=False)]
    return _table([name.replace("_", " ") for name in table.columns], ((row, "") for row in rows))


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(headers: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> str:
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "".join(
        f'<tr class="{kind}">{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>'
        for row, kind in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _details(label: str, content: str) -> str:
    return f"<details><summary>{escape(label)}</summary>{content}</details>"
