"""Trials that have searched verify what they found, each configuration once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ledger_rows import baselines
from ledger_rows import evaluation

from envs.config import CompressionConfig
from envs.config import uniform
from hwmodel import InputError
from search.board import BoardActor
from search.goals import Goals
from search.ledger import RECALIBRATED
from search.ledger import Evaluation
from search.ledger import Ledger
from search.requests import Request
from search.verification import not_recalibrated
from search.verification import recalibrate
from search.verification import require_verified
from search.verification import unverified
from search.verification import verify

TARGETS = (1.0,)


def config(bits: int) -> CompressionConfig:
    return uniform(["layer"], bits)


class StubPool:
    """Evaluates at once; ``left`` are rows that it was still at."""

    def __init__(self, left: Sequence[Evaluation] = ()) -> None:
        self.left = list(left)
        self.asked: list[int] = []

    def evaluate(self, requests: Sequence[Request], *, again: bool) -> Iterator[Evaluation]:
        assert again
        self.asked.append(len(requests))
        yield from self.left
        self.left.clear()
        for request in requests:
            row = evaluation(0, split=request.split)
            yield replace(row, config_hash=request.config.hash)


@pytest.mark.usefixtures("local_ray")
def test_trials_that_end_together_share_the_work() -> None:
    requests = [Request(config(bits), "test", "finalist") for bits in (2, 3, 4, 5, 6)]
    left = evaluation(7)
    board: Any = BoardActor.remote({"test": {config(2).hash: 0.5}})
    pools: list[Any] = [StubPool([left]), StubPool()]
    trials = [verify(requests, seed, board, pool, 1) for seed, pool in enumerate(pools)]
    rows = [next(trials[turn % 2]) for turn in range(5)]
    assert [list(trial) for trial in trials] == [[], []]
    hashes = sorted(row.config_hash for row in rows if row.split == "test")
    assert hashes == sorted(config(bits).hash for bits in (3, 4, 5, 6))
    # What an evaluator was at when the time was up is known, and on its own split.
    assert ray.get(board.claim.remote([left.config_hash], 0)) == [left.accuracy]
    assert ray.get(board.claim.remote([left.config_hash], 0, "test")) == ["granted"]
    ray.kill(board)


@pytest.mark.usefixtures("local_ray")
def test_one_trial_recalibrates_and_gathers_statistics_once() -> None:
    requests = [Request(config(bits), RECALIBRATED, "finalist") for bits in (2, 3, 4, 5)]
    board: Any = BoardActor.remote({"test": {config(2).hash: 0.5}, RECALIBRATED: {}})
    pools: list[Any] = [StubPool(), StubPool()]
    trials = [recalibrate(requests, seed, board, pool) for seed, pool in enumerate(pools)]
    rows = [next(trials[0])]
    assert list(trials[1]) == []  # though the first has not ended
    rows += trials[0]
    assert pools[0].asked == [1, 3]
    assert [row.config_hash for row in rows] == [request.config.hash for request in requests]
    assert {row.split for row in rows} == {RECALIBRATED}
    assert list(recalibrate(requests, 1, board, pools[1])) == []
    ray.kill(board)


def test_picks_are_recalibrated_once_and_may_fail(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    rows = [
        replace(row, config=json.dumps(config(bits).to_json()), config_hash=config(bits).hash)
        for bits, row in (
            *zip((32, 16, 8), baselines(), strict=False),
            (5, evaluation(5, energy_pj=3.0)),
            (4, evaluation(4, energy_pj=2.0)),
            (3, evaluation(3, energy_pj=1.0, accuracy=0.85)),
        )
    ]
    ledger.append([*rows, *(replace(row, split="test") for row in rows)])
    goals = Goals((1.0, 2.0, 8.0))  # the first two have the same pick
    wanted = [Request(config(bits), RECALIBRATED, "finalist") for bits in (4, 3)]
    assert not_recalibrated(ledger, goals) == wanted
    ledger.append([replace(rows[4], split=RECALIBRATED)])
    assert not_recalibrated(ledger, goals) == wanted[1:]
    ledger.append([replace(rows[5], split=RECALIBRATED, accuracy=None, error="no images")])
    assert not_recalibrated(ledger, goals) == wanted[1:]
    require_verified(ledger, goals)
    ledger.append([replace(rows[5], split=RECALIBRATED)])
    assert not_recalibrated(ledger, goals) == []
    assert unverified(ledger, goals) == []


def test_what_failed_on_the_test_split_is_asked_for_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    text = json.dumps(config(4).to_json())
    found = evaluation(1, config=text, config_hash=config(4).hash, energy_pj=1.0)
    measured = [
        replace(row, config=json.dumps(config(bits).to_json()), config_hash=config(bits).hash)
        for bits, row in zip((32, 16, 8), baselines(), strict=False)
    ]
    ledger.append([*measured, found, *(replace(row, split="test") for row in measured)])
    require_verified(ledger, Goals(TARGETS))
    assert unverified(ledger, Goals(TARGETS)) == [Request(config(4), "test", "finalist")]
    ledger.append([replace(found, split="test", accuracy=None, error="out of memory")])
    assert unverified(ledger, Goals(TARGETS)) == [Request(config(4), "test", "finalist")]
    with pytest.raises(InputError, match=f"{config(4).hash} on the test split: 'out of memory'"):
        require_verified(ledger, Goals(TARGETS))
    ledger.append([replace(found, split="test")])
    assert unverified(ledger, Goals(TARGETS)) == []
    require_verified(ledger, Goals(TARGETS))
