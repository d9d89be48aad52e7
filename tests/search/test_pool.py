"""The evaluator actors of a trial, when they die, hang or cannot start."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ledger_rows import evaluation
from local_cluster import local_cluster

from hwmodel.errors import InputError
from search.ledger import Evaluation
from search.ledger import Ledger
from search.permit import Permit
from search.permit import grant
from search.pool import MAX_AT_ONCE
from search.pool import MAX_LOSSES
from search.pool import MAX_TIMEOUTS
from search.pool import EvaluatorPool
from search.storage import Storage


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster(2):
        yield


class FaultyWorker:
    """Evaluates numbers; a request is (number, fault, how often it happens)."""

    def __init__(self, folder: Path, permit: Permit) -> None:
        self.folder = folder
        self.ledger = Ledger(folder / "ledger")

    def evaluate_all(self, requests: Sequence[Any], *, again: bool) -> list[Evaluation]:
        with (self.folder / "together").open("a") as file:
            file.write(f"{len(requests)}\n")
        return [self.evaluate(request, again=again) for request in requests]

    def evaluate(self, request: Any, *, again: bool) -> Evaluation:
        number, fault, times = request
        if again and (found := self.ledger.find(f"{number:016x}", "search")):
            return found
        attempts = self.folder / f"{number}"
        with attempts.open("a") as file:
            file.write("x")
        happens = len(attempts.read_text()) <= times
        if happens and fault == "hangs":
            time.sleep(600)
        if happens and fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        row = evaluation(number)
        self.ledger.append([row])
        if happens and fault == "dies before it answers":
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    def record_failure(self, request: Any, error: str) -> Evaluation:
        row = evaluation(request[0], accuracy=None, error=error)
        self.ledger.append([row])
        return row


def make_pool(
    make_worker: Callable[[Permit], FaultyWorker], folder: Path, **options: Any
) -> EvaluatorPool:
    permit = grant(Storage.at(folder / "permits"), "seed-0")
    return EvaluatorPool(make_worker, 2, 0.1, 0, permit, **options)


def evaluate(folder: Path, requests: list[Any], **options: Any) -> list[Evaluation]:
    pool = make_pool(partial(FaultyWorker, folder), folder, **options)
    try:
        return list(pool.evaluate(requests))
    finally:
        pool.close()


def test_what_lost_evaluators_were_at_is_evaluated_once(tmp_path: Path) -> None:
    sound = [(number, "", 0) for number in range(6)]
    rows = evaluate(tmp_path, [(6, "dies", 1), (7, "dies before it answers", 1), *sound])
    assert sorted(int(row.config_hash, 16) for row in rows) == list(range(8))
    recorded = Ledger(tmp_path / "ledger").read()
    assert len(recorded) == recorded["config_hash"].nunique() == 8
    assert (tmp_path / "7").read_text() == "x"


def test_short_evaluations_go_together_and_what_dies_goes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.pool._SECONDS_AT_ONCE", 60.0)  # short on any machine
    pool = make_pool(partial(FaultyWorker, tmp_path), tmp_path, timeout=20.0)
    list(pool.evaluate([(number, "", 0) for number in range(8)]))  # how long they take
    faults = {20: "dies", 24: "dies before it answers"}
    requests = [(number, faults.get(number, ""), 1) for number in range(8, 40)]
    rows = list(pool.evaluate(requests))
    pool.close()
    assert sorted(int(row.config_hash, 16) for row in rows) == list(range(8, 40))
    together = [int(line) for line in (tmp_path / "together").read_text().split()]
    assert 1 < max(together) <= MAX_AT_ONCE
    recorded = Ledger(tmp_path / "ledger").read()
    assert len(recorded) == recorded["config_hash"].nunique() == 40
    attempts = {number: (tmp_path / str(number)).read_text() for number in range(40)}
    assert [number for number, marks in attempts.items() if marks == "xx"] == [20]


def test_what_ended_together_with_the_time_is_all_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.pool._SECONDS_AT_ONCE", 60.0)
    pool = make_pool(partial(FaultyWorker, tmp_path), tmp_path)
    list(pool.evaluate([(number, "", 0) for number in range(4)]))
    requests = [(number, "", 0) for number in range(4, 4000)]
    told = list(pool.evaluate(requests, deadline=time.monotonic() + 0.5))
    before = (tmp_path / "together").read_text()
    told += pool.evaluate([])  # what another evaluator was at when the time was up
    pool.close()
    assert 1 < len(told) < len(requests)
    assert (tmp_path / "together").read_text() in (before, before + before[-2:])  # nothing begun
    recorded = Ledger(tmp_path / "ledger").read()["config_hash"]
    assert {row.config_hash for row in told} == set(recorded) - {f"{n:016x}" for n in range(4)}


def test_an_evaluation_that_hangs_is_given_to_another_evaluator(tmp_path: Path) -> None:
    rows = evaluate(tmp_path, [(1, "hangs", 1), (2, "", 0)], timeout=1.5)
    assert {row.accuracy for row in rows} == {0.9}
    assert (tmp_path / "1").read_text() == "xx"


@pytest.mark.parametrize(
    ("fault", "times"),
    [("hangs", MAX_TIMEOUTS), pytest.param("dies", MAX_LOSSES, marks=pytest.mark.slow)],
)
def test_what_no_evaluator_survives_is_recorded_as_failed(
    tmp_path: Path, fault: str, times: int
) -> None:
    rows = evaluate(tmp_path, [(1, fault, 99), (2, "", 0)], timeout=3.0)
    failed, sound = sorted(rows, key=lambda row: row.config_hash)
    assert sound.accuracy == 0.9
    assert failed.accuracy is None
    assert failed.error is not None and "\n" not in failed.error
    assert {"hangs": "no result in 3 s", "dies": "process has died"}[fault] in failed.error
    assert (tmp_path / "1").read_text() == "x" * times
    recorded = Ledger(tmp_path / "ledger").read().set_index("config_hash")
    assert recorded.loc[failed.config_hash, "error"] == failed.error


def refuse(permit: Permit) -> FaultyWorker:
    raise InputError("weights", "w.pt", "they must fit")


def die(permit: Permit) -> FaultyWorker:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class PermittedWorker(FaultyWorker):
    """Records with its permit, and tells what that is called."""

    def __init__(self, folder: Path, permit: Permit) -> None:
        super().__init__(folder, permit)
        self.permit = permit

    def evaluate(self, request: Any, *, again: bool) -> Evaluation:
        with (self.folder / "asked").open("a") as file:
            file.write(f"{self.permit.name}\n")
        row = super().evaluate(request, again=again)
        self.permit.require()
        return row


def test_an_evaluator_that_is_given_up_loses_its_permit(tmp_path: Path) -> None:
    pool = make_pool(partial(PermittedWorker, tmp_path), tmp_path, timeout=1.5)
    list(pool.evaluate([(1, "hangs", 1)]))
    first, second = (tmp_path / "asked").read_text().split()
    left = {path.name for path in (tmp_path / "permits").iterdir()}
    assert second in left
    assert first not in left
    pool.close()


def test_a_trial_that_another_start_took_over_from_ends(tmp_path: Path) -> None:
    pool = make_pool(partial(PermittedWorker, tmp_path), tmp_path)
    list(pool.evaluate([(1, "", 0)]))
    grant(Storage.at(tmp_path / "permits"), "seed-0")
    with pytest.raises(InputError, match="somebody else has taken over"):
        list(pool.evaluate([(2, "", 0)]))
    with pytest.raises(InputError, match="has taken over"):
        list(pool.evaluate([(3, "dies", 1)]))
    pool.close()


def test_what_is_wrong_with_the_input_is_raised(tmp_path: Path) -> None:
    pool = make_pool(refuse, tmp_path)
    with pytest.raises(InputError, match=r"weights: 'w\.pt'"):
        list(pool.evaluate([(1, "", 0)]))


def test_evaluators_that_never_start_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.pool._MAX_FAILED_STARTS", 2)
    pool = make_pool(die, tmp_path)
    with pytest.raises(InputError, match="they die before they are ready"):
        list(pool.evaluate([(1, "", 0)]))
