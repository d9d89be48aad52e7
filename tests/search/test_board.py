"""Who evaluates what, and for how long."""

from __future__ import annotations

import math
import time

import pandas as pd
import pytest
from ledger_rows import evaluation

from search.board import Board
from search.board import accuracies


def test_a_configuration_is_granted_once() -> None:
    board = Board({"known": 0.5})
    assert board.claim(["known", "new"], seed=0) == [0.5, "granted"]
    assert board.claim(["new"], seed=1) == ["pending"]
    board.record({"new": 0.7})
    assert board.claim(["new"], seed=1) == [0.7]


def test_what_a_lost_trial_had_claimed_is_free_again() -> None:
    board = Board({})
    board.claim(["first", "second"], seed=0)
    board.restart(0, {"first": 0.5})
    assert board.claim(["first", "second"], seed=1) == [0.5, "granted"]


def test_what_a_trial_had_claimed_that_ended_is_free_again() -> None:
    board = Board({})
    board.claim(["first"], seed=0)
    board.claim(["second"], seed=1)
    board.release(0)
    assert board.claim(["first", "second"], seed=2) == ["granted", "pending"]


def test_a_clock_that_jumps_does_not_move_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board({}, seconds=60.0)
    for jump in (1e6, -1e6):
        now = time.time() + jump
        monkeypatch.setattr("time.time", lambda now=now: now)
        assert 0 < board.seconds_left() <= 60
    assert Board({}).seconds_left() == math.inf


def test_accuracies_are_those_of_the_search_split() -> None:
    """Baselines that failed are unknown, so that a resumed run measures them again."""
    rows = pd.DataFrame(
        [
            evaluation(1, accuracy=0.8),
            evaluation(2, accuracy=None),
            evaluation(3, split="test"),
            evaluation(4, accuracy=None, role="baseline"),
        ]
    )
    found = accuracies(rows)
    assert found.pop(f"{1:016x}") == 0.8
    (failed,) = found.values()
    assert math.isnan(failed)
