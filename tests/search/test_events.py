"""The log of a run and the files that it grows in, on a local disk and in an object store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import evaluation
from pyarrow import fs

from search import appending
from search.appending import GrowingFile
from search.events import EventLog
from search.events import evaluation_fields
from search.storage import Storage


def remote(folder: Path) -> Storage:
    """A folder that is treated as an object store's: whole files alone."""
    return Storage.at((fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "run"))


def events(run: Path) -> list[dict[str, Any]]:
    lines = [
        line for file in sorted((run / "log").iterdir()) for line in file.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


def test_an_event_is_on_the_disk_at_once(tmp_path: Path) -> None:
    log = EventLog(Storage.at(tmp_path), "seed-3", trial="seed-3")
    log.write("evaluation", **evaluation_fields(evaluation(7, accuracy=None, error="no images")))
    (found,) = events(tmp_path)
    assert (found["event"], found["run"], found["trial"]) == (
        "evaluation",
        str(tmp_path),
        "seed-3",
    )
    assert (found["config_hash"], found["accuracy"]) == (f"{7:016x}", None)
    assert found["error"] == "no images"
    assert found["time"].endswith("+00:00")


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    EventLog(Storage.at(tmp_path), "driver").write("round", energy_pj=float("nan"))
    assert events(tmp_path)[0]["energy_pj"] is None


def test_a_process_says_why_it_ended(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), EventLog(Storage.at(tmp_path), "driver"):
        _ = 1 / 0
    started, ended = events(tmp_path)
    assert (started["event"], ended["event"]) == ("started", "ended")
    assert ended["error"] == "ZeroDivisionError: division by zero"


def test_processes_do_not_share_a_file(tmp_path: Path) -> None:
    for _ in range(2):
        EventLog(Storage.at(tmp_path), "seed-0").write("round")
    assert len(list((tmp_path / "log").iterdir())) == 2


def test_an_object_store_has_the_events_when_the_process_ends(tmp_path: Path) -> None:
    with EventLog(remote(tmp_path), "driver") as log:
        log.write("stage", stage="searching")
        assert not (tmp_path / "run").exists()
    assert [found["event"] for found in events(tmp_path / "run")] == ["started", "stage", "ended"]


def test_an_object_store_has_the_events_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appending, "UPLOAD_SECONDS", 0.01)
    log = EventLog(remote(tmp_path), "driver")
    log.write("stage", stage="searching")
    timer = log._file._timer
    if timer is not None:  # else it has run already
        timer.join()
    assert len(events(tmp_path / "run")) == 1


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_an_object_store_holds_the_same_bytes_in_parts(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(appending, "PART_BYTES", 16)
        file = GrowingFile(remote(folder), "name.txt")
        for piece in pieces:
            file.append(piece)
            file._upload()
        file.close()
    names = ["name.txt", *(f"name-{part}.txt" for part in range(1, len(pieces) + 1))]
    parts = [folder / "run" / name for name in names]
    found = [part.read_bytes() for part in parts if part.exists()]
    assert b"".join(found) == b"".join(pieces)
    assert all(len(part) < 16 + 20 for part in found)


@pytest.mark.parametrize("is_local", [True, False])
def test_what_the_storage_refuses_is_written_later(tmp_path: Path, is_local: bool) -> None:
    run = Storage.at(tmp_path / "run") if is_local else remote(tmp_path)
    (tmp_path / "run").touch()  # no folder can be made there
    log = EventLog(run, "driver")
    log.write("first")
    log._file._upload() if not is_local else None
    (tmp_path / "run").unlink()
    log.write("second")
    log._file.close()
    assert [found["event"] for found in events(tmp_path / "run")] == ["first", "second"]
