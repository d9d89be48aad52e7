"""What a log file gets instead of bars."""

from __future__ import annotations

import pytest

from search.progress import Progress


def test_without_a_terminal_every_stage_is_a_line_and_so_is_every_minute_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("search.progress.time.monotonic", lambda: clock[0])
    with Progress() as progress:
        progress.stage("loading the task")
        progress.stage("searching")
        progress.step("searching", 6, 300)
        clock[0] += 61
        progress.step("searching", 20, 300)
        progress.step("searching", 21, 300)
        clock[0] += 61
        progress.step("searching", 40, None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "loading the task",
        "searching",
        "searching: 20 of 300, 21 min left",
        "searching: 40",
    ]
