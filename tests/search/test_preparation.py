"""The option database, made by processes that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from local_cluster import local_cluster

from envs.space import NO_PRUNING
from envs.tasks import TaskSpec
from search import preparation
from search.failure import RunError
from search.pool import MAX_LOSSES
from search.preparation import Work
from search.storage import Storage


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_cluster(1):
        yield


class FaultyMaker:
    """Marks layers as made; dies over layer 1 as often as the file ``deaths`` says."""

    def __init__(self, task: TaskSpec, database: Storage, space: Any) -> None:
        self.folder = Path(database.root)

    def make(self, item: Work) -> None:
        with (self.folder / f"{item.layer}").open("a") as file:
            file.write("x")
        deaths = int((self.folder / "deaths").read_text())
        if item.layer == 1 and len((self.folder / "1").read_text()) <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)


def make(folder: Path, monkeypatch: pytest.MonkeyPatch, deaths: int) -> list[int]:
    """Make three layers with two processes, of which one at a time has room."""
    (folder / "deaths").write_text(f"{deaths}")
    monkeypatch.setattr(preparation, "_MakerActor", ray.remote(FaultyMaker))
    work = [Work(layer, NO_PRUNING, (), 1.0) for layer in range(3)]
    told: list[int] = []
    preparation._make_on_cluster(
        work,
        SimpleNamespace(layers=("a", "b", "c")),  # type: ignore[arg-type]
        TaskSpec("digits"),
        Storage.at(folder),
        2,
        lambda stage, done, total: told.append(done),
    )
    return told


def test_what_a_process_dies_over_is_made_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(tmp_path, monkeypatch, deaths=1) == [1, 2, 3]
    made = {layer: (tmp_path / f"{layer}").read_text() for layer in range(3)}
    assert made == {0: "x", 1: "xx", 2: "x"}


@pytest.mark.slow
def test_what_no_process_survives_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"^{MAX_LOSSES} processes died over b, none: .*process has died"
    with pytest.raises(RunError, match=line) as caught:
        make(tmp_path, monkeypatch, deaths=99)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "1").read_text() == "x" * MAX_LOSSES
