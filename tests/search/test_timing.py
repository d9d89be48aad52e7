from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.storage import Storage
from search.timing import timing


def write(folder: Path, name: str, *events: tuple[int, dict[str, Any]]) -> None:
    (folder / "log").mkdir(exist_ok=True)
    lines = [
        json.dumps({"time": f"2026-01-01T00:{second // 60:02}:{second % 60:02}+00:00", **event})
        for second, event in events
    ]
    (folder / "log" / name).write_text("\n".join(lines) + "\n")


def stage(name: str) -> dict[str, Any]:
    return {"event": "stage", "stage": name}


def end_round(trial: str, evaluating: float, learning: float, seconds: float) -> dict[str, Any]:
    return {
        "event": "round",
        "trial": trial,
        "evaluation_seconds": evaluating,
        "evaluator_seconds": 2 * seconds,
        "learning_seconds": learning,
        "trial_seconds": seconds,
    }


def test_a_run_without_a_log_tells_nothing(tmp_path: Path) -> None:
    found = timing(Storage.at(tmp_path))
    assert found.stages == {}
    assert found.evaluating_share is None
    assert found.learning_share is None


def test_a_stage_ends_with_the_next_or_with_the_last_event(tmp_path: Path) -> None:
    write(
        tmp_path,
        "driver-20260101T000000-aaaaaaaa.jsonl",
        (0, {"event": "started"}),
        (1, stage("loading")),
        (4, stage("searching")),
        (9, {"event": "evaluation"}),
        (14, {"event": "ended"}),
    )
    write(tmp_path, "seed-0-20260101T000000-aaaaaaaa.jsonl", (50, stage("not a driver's")))
    assert timing(Storage.at(tmp_path)).stages == {"loading": 3.0, "searching": 10.0}


def test_resumptions_add_up_and_parts_of_a_log_belong_together(tmp_path: Path) -> None:
    first, second = (f"driver-20260101T00{minute}00-aaaaaaaa" for minute in ("00", "10"))
    write(tmp_path, f"{first}.jsonl", (0, stage("loading")), (5, stage("searching")))
    write(tmp_path, f"{first}-1.jsonl", (25, {"event": "trial started", "trial": "seed-0"}))
    write(tmp_path, f"{second}.jsonl", (600, stage("loading")), (602, {"event": "ended"}))
    assert timing(Storage.at(tmp_path)).stages == {"loading": 7.0, "searching": 20.0}


def test_shares_are_those_of_all_trials_and_their_restarts(tmp_path: Path) -> None:
    write(
        tmp_path,
        "driver-20260101T000000-aaaaaaaa.jsonl",
        (0, stage("searching")),
        (1, {"event": "trial started", "trial": "seed-0"}),
        (5, end_round("seed-0", 2.0, 1.0, 4.0)),
        (9, end_round("seed-0", 6.0, 2.0, 8.0)),  # totals since the trial started
        (10, {"event": "trial lost", "trial": "seed-0"}),
        (11, {"event": "trial started", "trial": "seed-0"}),
        (13, end_round("seed-0", 0.0, 2.0, 2.0)),
        (14, end_round("seed-1", 10.0, 0.0, 10.0)),
    )
    found = timing(Storage.at(tmp_path))
    assert found.evaluating_share == pytest.approx(16 / 40)
    assert found.learning_share == pytest.approx(4 / 20)


def test_a_line_that_a_kill_cut_off_is_no_event(tmp_path: Path) -> None:
    name = "driver-20260101T000000-aaaaaaaa.jsonl"
    write(tmp_path, name, (0, stage("loading")), (2, stage("searching")))
    with (tmp_path / "log" / name).open("a") as file:
        file.write('{"time": "2026-01-01T00:09')
    assert timing(Storage.at(tmp_path)).stages == {"loading": 2.0, "searching": 0.0}
