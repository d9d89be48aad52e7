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
    board = Board({"search": {"known": 0.5}})
    assert board.claim(["known", "new"], seed=0) == [0.5, "granted"]
    assert board.claim(["new"], seed=1) == ["pending"]
    board.record({"search": {"new": 0.7}})
    assert board.claim(["new"], seed=1) == [0.7]


def test_what_a_lost_trial_had_claimed_is_free_again() -> None:
    board = Board({})
    board.claim(["first", "second"], seed=0)
    board.restart(0, {"search": {"first": 0.5}})
    assert board.claim(["first", "second"], seed=1) == [0.5, "granted"]


def test_what_a_trial_had_claimed_that_ended_is_free_again() -> None:
    board = Board({})
    board.claim(["first"], seed=0)
    board.claim(["second"], seed=1)
    board.release(0)
    assert board.claim(["first", "second"], seed=2) == ["granted", "pending"]


def test_splits_are_apart() -> None:
    board = Board({"search": {"known": 0.5}, "test": {"verified": 0.4}})
    assert board.claim(["known", "verified"], 0, "test") == ["granted", 0.4]
    board.record({"test": {"known": 0.6}})
    assert board.claim(["known"], 1) == [0.5]
    assert board.claim(["known"], 1, "test") == [0.6]
    assert (board.count(), board.count("test")) == (1, 2)


def test_a_search_is_late_only_if_a_trial_was_at_it_until_the_end() -> None:
    early, late = Board({}, [0, 1], seconds=60.0), Board({}, [0, 1], seconds=0.0)
    for board in (early, late):
        assert not board.is_late()
        board.searched(0)
    assert not early.is_late()
    assert late.is_late()


def test_seeds_search_until_each_has_said_that_it_has() -> None:
    board = Board({}, seeds=[3, 5])
    board.searched(3)
    board.restart(3, {})  # to verify
    assert board.is_searching()
    board.restart(5, {})
    assert board.is_searching()
    board.searched(5)
    assert not board.is_searching()


def test_a_clock_that_jumps_does_not_move_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board({}, seconds=60.0)
    for jump in (1e6, -1e6):
        now = time.time() + jump
        monkeypatch.setattr("time.time", lambda now=now: now)
        assert 0 < board.seconds_left() <= 60
    assert Board({}).seconds_left() == math.inf


def test_what_failed_and_a_run_cannot_do_without_is_unknown() -> None:
    """So that a resumed run measures it again."""
    rows = pd.DataFrame(
        [
            evaluation(1, accuracy=0.8),
            evaluation(2, accuracy=None),
            evaluation(3, split="test", accuracy=0.7),
            evaluation(5, split="test", accuracy=None),
            evaluation(4, accuracy=None, role="baseline"),
            evaluation(3, split="recalibrated", accuracy=0.6),
            evaluation(1, split="recalibrated", accuracy=None),
        ]
    )
    found = accuracies(rows)
    assert found["recalibrated"] == {f"{3:016x}": 0.6}
    assert found["test"] == {f"{3:016x}": 0.7}
    assert found["search"].pop(f"{1:016x}") == 0.8
    (failed,) = found["search"].values()
    assert math.isnan(failed)
