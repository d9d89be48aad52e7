"""Where the time of a run went, by its log."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePath
from typing import Any

from search.storage import Storage


@dataclass(frozen=True)
class Timing:
    """Wall-clock time of a run, all its resumptions together.

    Attributes:
        stages: Seconds by stage, in the order in which they began first.
        evaluating_share: Of the time that evaluators were held in searches, that in which they were
            at work; None before the first round ended.
        learning_share: Of the time that trials took in searches, that in which they proposed and
            learned while no evaluator was at work; None before the first round ended.
    """

    stages: dict[str, float]
    evaluating_share: float | None
    learning_share: float | None


def timing(run: Storage) -> Timing:
    """Read the log of a run; a run without one took no time that is known."""
    stages: dict[str, float] = {}
    spent: defaultdict[str, float] = defaultdict(float)
    for events in _by_driver(run.child("log")):
        last: dict[str, dict[str, Any]] = {}  # figures of a trial add up until it is started again
        stage, since = None, None
        for event in events:
            now = datetime.fromisoformat(event["time"])
            if event["event"] == "round":
                last[event["trial"]] = event
            elif event["event"] == "trial started":
                _add(spent, last.pop(event["trial"], {}))
            if stage is not None and since is not None:
                stages[stage] += max(0.0, (now - since).total_seconds())
            if event["event"] == "stage":
                stage = event["stage"]
                stages.setdefault(stage, 0.0)
            since = now
        for figures in last.values():
            _add(spent, figures)
    return Timing(
        stages,
        _share(spent["evaluation_seconds"], spent["evaluator_seconds"]),
        _share(spent["learning_seconds"], spent["trial_seconds"]),
    )


def _by_driver(log: Storage) -> Iterator[list[dict[str, Any]]]:
    """Events of each process that drove the run, in order of time, the first process first."""
    files = defaultdict(list)
    for name in log.names():
        parts = PurePath(name).stem.split("-")
        if parts[0] == "driver":
            files["-".join(parts[:3])].append(name)
    for key in sorted(files):
        yield sorted(_events(log, files[key]), key=lambda event: str(event["time"]))


def _events(log: Storage, names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        with suppress(OSError):  # a report does without what cannot be read
            for line in log.read(name).splitlines():
                with suppress(ValueError):  # the last one, of a process that was killed
                    yield json.loads(line)


def _add(spent: defaultdict[str, float], figures: dict[str, Any]) -> None:
    for name in ("evaluation_seconds", "evaluator_seconds", "learning_seconds", "trial_seconds"):
        spent[name] += figures.get(name) or 0.0


def _share(part: float, whole: float) -> float | None:
    return min(1.0, part / whole) if whole > 0 else None
