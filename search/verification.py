"""What is run on the test split, by the evaluators of the trials that have searched.

Finalists and baselines; and picks once more, compressed from another sample of calibration data.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import ray

from hwmodel import InputError
from search.board import News
from search.finalists import finalists
from search.finalists import picked_configs
from search.front import distinct
from search.goals import Goals
from search.ledger import RECALIBRATED
from search.ledger import Evaluation
from search.ledger import Ledger
from search.pool import EvaluatorPool
from search.requests import Request


def unverified(ledger: Ledger, goals: Goals) -> list[Request]:
    """Finalists and baselines that the ledger does not have on the test split.

    Args:
        ledger: Of a run whose baselines have been measured on the search split.
        goals: What the run was asked for.
    """
    known = _measured(ledger, "test")
    return [
        Request(config, "test", "baseline" if name else "finalist", name)
        for config, name in finalists(ledger, goals)
        if config.hash not in known
    ]


def not_recalibrated(ledger: Ledger, goals: Goals) -> list[Request]:
    """Picks that the ledger does not have compressed from another sample of calibration data.

    Args:
        ledger: Of a run whose task has such a sample.
        goals: What the run was asked for.
    """
    known = _measured(ledger, RECALIBRATED)
    return [
        Request(config, RECALIBRATED, "finalist")
        for config in picked_configs(ledger, goals)
        if config.hash not in known
    ]


def _measured(ledger: Ledger, split: str) -> set[str]:
    """Hashes of the configurations whose accuracy on a split is known."""
    rows = ledger.read(("split", "accuracy", "config_hash"))
    return set(rows[(rows["split"] == split) & rows["accuracy"].notna()]["config_hash"])


def verify(
    requests: Sequence[Request], seed: int, board: Any, pool: EvaluatorPool, at_once: int
) -> Iterator[Evaluation]:
    """Evaluate what no other trial has evaluated or is evaluating.

    Args:
        requests: On the test split.
        seed: Whose trial this is.
        board: Handle of the run's ``BoardActor``.
        pool: The trial's evaluators.
        at_once: Requests to claim at a time: trials that end together share the work.

    Yields:
        Every row as soon as it is in the ledger; those first that evaluators were still at.

    Raises:
        InputError: the ledger cannot be written.
    """
    for start in range(0, len(requests), at_once):
        granted = _claimed(requests[start : start + at_once], "test", seed, board)
        yield from _evaluated(granted, board, pool)


def recalibrate(
    requests: Sequence[Request], seed: int, board: Any, pool: EvaluatorPool
) -> Iterator[Evaluation]:
    """As :func:`verify`, of what :func:`not_recalibrated` gives; all by the trial that is first.

    One request comes before the others: its evaluator gathers the sample's statistics, and those
    of the others find them in the database.
    """
    granted = _claimed(requests, RECALIBRATED, seed, board)
    for part in (granted[:1], granted[1:]):
        yield from _evaluated(part, board, pool)


def _claimed(requests: Sequence[Request], split: str, seed: int, board: Any) -> list[Request]:
    hashes = [request.config.hash for request in requests]
    answers = ray.get(board.claim.remote(hashes, seed, split))
    pairs = zip(requests, answers, strict=True)
    return [request for request, answer in pairs if answer == "granted"]


def _evaluated(requests: list[Request], board: Any, pool: EvaluatorPool) -> Iterator[Evaluation]:
    news = News(board)
    for row in pool.evaluate(requests, again=True):
        news.add(row)
        yield row
    news.tell()


def require_verified(ledger: Ledger, goals: Goals) -> None:
    """Refuse a run of which a finalist or a baseline failed on the test split.

    Raises:
        InputError: names the configuration, and why it failed.
    """
    rows = ledger.read(("split", "accuracy", "config_hash", "time", "error"))
    failed = distinct(rows, "test")
    failed = failed[failed["accuracy"].isna()]
    if failed.empty:  # as nearly always: what is wanted takes reading all of the ledger
        return
    wanted = {request.config.hash for request in unverified(ledger, goals)}
    for _, row in failed[failed["config_hash"].isin(wanted)].iterrows():
        field = f"evaluation of {row['config_hash']} on the test split"
        raise InputError(field, row["error"], "it must succeed")
