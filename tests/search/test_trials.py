from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from search.board import Board
from search.board import BoardActor
from search.events import EventLog
from search.failure import RunError
from search.run_directory import RunDirectory
from search.storage import Storage
from search.trial import ClaimsReleased
from search.trial import claim
from search.trials import run_trials

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def run_one() -> Callable[..., None]:
    """Runs a Tune experiment of one trial; a closure, which workers get by value."""

    def run(folder: Path, trial: Callable[[dict[str, Any]], None], *callbacks: Any) -> None:
        storage = Storage.at(folder)
        with EventLog(storage, "driver") as log:
            run_trials(
                RunDirectory(storage),
                log,
                "search",
                tune.with_resources(trial, {"cpu": 1}),
                {"seed": tune.grid_search([0])},
                restarts=0,
                callbacks=callbacks,
            )

    return run


def test_experiments_of_one_job_do_not_run_each_others_trials(
    tmp_path: Path, run_one: Callable[..., None]
) -> None:
    def run(folder: Path) -> None:
        run_one(folder, lambda config: (folder / "was here").touch())

    busy = ray.remote(num_cpus=1)(Board).remote({})
    ray.get(busy.count.remote())
    folders = [tmp_path / name for name in ("one", "other")]
    running = []
    for folder in folders:
        folder.mkdir()
        running.append(ray.remote(num_cpus=0)(run).remote(folder))
    while not all(list(folder.glob("tune/search-*/tuner.pkl")) for folder in folders):
        assert not ray.wait(running, timeout=0.1)[0]
    ray.kill(busy)  # trials start when each experiment has registered its own
    ray.get(running)
    assert all((folder / "was here").exists() for folder in folders)


def test_a_trial_that_ends_badly_leaves_nothing_that_others_wait_for(
    tmp_path: Path, run_one: Callable[..., None]
) -> None:
    board = BoardActor.remote({})

    def trial(config: dict[str, Any]) -> None:
        ray.get(board.claim.remote(["first"], config["seed"]))
        os._exit(1)

    with pytest.raises(RunError):
        run_one(tmp_path, trial, ClaimsReleased(board))
    assert ray.get(board.claim.remote(["first"], 1)) == ["granted"]
    ray.kill(board)


def test_a_seed_waits_for_what_another_evaluates() -> None:
    board = BoardActor.remote({"search": {"known": 0.5}})
    first = ["known", "new"]
    assert claim(board, first, seed=0, deadline=math.inf) == [0.5, "granted"]
    assert claim(board, [*first, "more"], seed=1, deadline=math.inf)[1:] == ["pending", "granted"]
    recording = threading.Timer(1.0, lambda: board.record.remote({"search": {"new": 0.75}}))
    recording.start()
    assert claim(board, first, seed=1, deadline=math.inf) == [0.5, 0.75]
    recording.join()
    late = claim(board, ["more"], seed=0, deadline=time.monotonic() + 0.5)
    assert late == ["pending"]
    ray.kill(board)
