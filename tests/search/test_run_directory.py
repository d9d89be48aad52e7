from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ledger_rows import baselines
from ledger_rows import evaluation
from pyarrow import fs
from test_spec import spec

from hwmodel import load_accelerator
from hwmodel.errors import InputError
from search.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", spec())


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_was_created_can_be_opened(run: RunDirectory) -> None:
    again = RunDirectory.open(run.location)
    assert again.spec() == spec()
    assert again.ledger.read().empty
    assert again.status()["evaluations"] == 0


def test_a_run_keeps_its_accelerator_and_goes_on_with_no_other(run: RunDirectory) -> None:
    accelerator = load_accelerator("eyeriss-like")
    run.require_accelerator(spec(), accelerator)
    run.require_accelerator(spec(), accelerator)
    faster = accelerator.model_copy(update={"clock_hz": 2 * accelerator.clock_hz})
    with pytest.raises(InputError, match=r"^accelerator: 'eyeriss-like' .*accelerator\.json"):
        run.require_accelerator(spec(), faster)


def test_a_run_can_live_behind_a_uri(tmp_path: Path) -> None:
    RunDirectory.create(f"file://{tmp_path}/run", spec())
    assert RunDirectory.open(tmp_path / "run").spec() == spec()


def test_a_run_can_live_in_an_object_store(tmp_path: Path) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())  # not local to the code
    run = RunDirectory.create((store, "bucket/run"), spec())
    assert pickle.loads(pickle.dumps(run.storage)).local is None
    with run.driving():
        run.ledger.append([evaluation(1)])
    status = RunDirectory.open((store, "bucket/run")).status()
    assert (status["state"], status["evaluations"]) == ("completed", 1)
    with pytest.raises(InputError, match="not empty"):
        RunDirectory.create((store, "bucket/run"), spec())


def test_create_takes_an_empty_directory(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, spec())
    assert (tmp_path / "run.json").exists()


def test_create_refuses_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="use resume or another --output"):
        RunDirectory.create(tmp_path, spec())
    assert content(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("existed", [True, False])
def test_a_creation_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    if existed:
        (tmp_path / "run").mkdir()

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        RunDirectory.create(tmp_path / "run", spec())
    assert (tmp_path / "run").exists() == existed
    assert content(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_create_in_a_directory_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        RunDirectory.create(tmp_path / "run", spec())


def test_another_specification_is_refused_by_its_field(run: RunDirectory) -> None:
    with pytest.raises(InputError, match=r"spec\.budget: 600 .*started with 300"):
        run.check_spec(spec(budget=600))


def test_a_run_cannot_forget_or_change_what_it_started_from(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", spec(init_from="/runs/0"), {"agents.pt": b"all"})
    assert (tmp_path / "run/policies/initial/agents.pt").read_bytes() == b"all"
    run.check_spec(spec(init_from="/runs/0"))
    for other in ("/runs/1", None):
        with pytest.raises(InputError, match=r"spec\.init_from: .*started with '/runs/0'"):
            run.check_spec(spec(init_from=other))


def test_a_run_goes_on_with_the_accuracy_that_its_policies_learnt_from(tmp_path: Path) -> None:
    for started, other in (("predicted", "measured"), ("measured", "predicted")):
        run = RunDirectory.create(tmp_path / started, spec(accuracy=started))
        run.check_spec(spec(accuracy=started))
        with pytest.raises(InputError, match=rf"spec\.accuracy: .*started with '{started}'"):
            run.check_spec(spec(accuracy=other))


def test_a_run_from_before_a_field_has_its_default(run: RunDirectory) -> None:
    path = Path(run.location) / "run.json"
    header = json.loads(path.read_text())
    for field in ("accuracy", "energy_targets"):
        del header["spec"][field]
    path.write_text(json.dumps(header))
    run.check_spec(spec())
    with pytest.raises(InputError, match=r"spec\.accuracy: 'measured' .*with 'predicted'"):
        run.check_spec(spec(accuracy="measured"))


def test_resources_and_time_may_change(run: RunDirectory) -> None:
    run.check_spec(spec(resources={"evaluators": 7}, time_budget="1h", output="moved"))


def test_status_counts_distinct_configurations_of_the_search_split(run: RunDirectory) -> None:
    run.ledger.append([*baselines(), *baselines("test")])
    run.ledger.append([evaluation(1), evaluation(1), evaluation(2, split="test")])
    status = RunDirectory.open(run.location).status()
    assert status["evaluations"] == 7
    assert status["seeds"] == [{"seed": 0, "evaluations": 1}]
    assert status["ledger"] == f"{run.location}/ledger"
    json.dumps(status)


def test_status_has_the_best_so_far(run: RunDirectory) -> None:
    run.ledger.append([*baselines(), evaluation(1, accuracy=0.9, energy_pj=20e6)])
    best = {item["max_accuracy_drop"]: item for item in run.status()["best"]}
    assert best[1.0]["config_hash"] == f"{1:016x}"
    assert best[1.0]["energy_ratio_int8"] == 0.25
    assert run.status()["unreached"] == []


def test_status_names_what_nothing_reaches(run: RunDirectory) -> None:
    assert run.status()["unreached"] == []  # nothing is known yet
    lossy = [replace(row, accuracy=0.85) for row in baselines() if row.name != "dense FP32"]
    dense = [replace(row, energy_pj=None) for row in baselines() if row.name == "dense FP32"]
    run.ledger.append([*dense, *lossy, evaluation(1, accuracy=0.89, energy_pj=20e6)])
    assert run.status()["unreached"] == ["best at 0.5", "best at 1"]


def test_states_of_a_run(run: RunDirectory) -> None:
    assert run.status()["state"] == "interrupted"
    with run.driving():
        assert run.status()["state"] == "running"
    assert run.status()["state"] == "completed"

    with pytest.raises(KeyboardInterrupt), run.driving():
        raise KeyboardInterrupt
    assert run.status()["state"] == "interrupted"

    with pytest.raises(RuntimeError), run.driving():
        raise RuntimeError("no more memory\nwith details")
    assert run.status()["state"] == "failed"
    assert run.status()["message"] == "RuntimeError: no more memory"


DRIVE = """
import sys, time
from search.run_directory import RunDirectory
with RunDirectory.open(sys.argv[1]).driving():
    print("driving", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def driver(run: RunDirectory):
    """Another process that drives the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVE, run.location], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "driving\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_driver_is_refused_until_the_first_is_dead(run: RunDirectory, driver) -> None:
    with pytest.raises(InputError, match=f"process {driver.pid} on "), run.driving():
        pytest.fail("two drivers")
    assert run.status()["state"] == "running"

    driver.send_signal(signal.SIGKILL)
    driver.wait()

    assert run.status()["state"] == "interrupted"
    with run.driving():
        assert run.status()["state"] == "running"


def test_a_process_with_the_number_of_a_dead_driver_is_not_the_driver(
    run: RunDirectory, driver
) -> None:
    state = Path(run.location, "state.json")
    data = json.loads(state.read_text())
    if data["driver"]["started"] is None:
        pytest.skip("this system does not tell when a process started")
    data["driver"]["started"] -= 1
    state.write_text(json.dumps(data))
    assert run.status()["state"] == "interrupted"


def test_a_driver_elsewhere_lives_as_long_as_its_heart_beats(run: RunDirectory) -> None:
    with run.driving():
        state = Path(run.location, "state.json")
        data = json.loads(state.read_text())
    data["driver"]["host"] = "elsewhere"
    state.write_text(json.dumps(data))
    assert run.status()["state"] == "running"
    data["heartbeat"] = "2020-01-01T00:00:00+00:00"
    state.write_text(json.dumps(data))
    assert run.status()["state"] == "interrupted"


@pytest.mark.parametrize("beats", [True, False])
def test_a_driver_elsewhere_is_watched_whatever_the_clocks_say(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    state = Path(run.location, "state.json")
    driver = {"pid": 7, "host": "elsewhere", "started": None}

    def beat(number: int) -> None:
        heartbeat = f"20{number}0-01-01T00:00:00+00:00"  # long ago, or far in the future
        state.write_text(json.dumps({"state": "running", "driver": driver, "heartbeat": heartbeat}))

    beat(9)
    monkeypatch.setattr("search.driving.WATCH_SECONDS", 0.2)
    monkeypatch.setattr("time.sleep", lambda seconds: beat(1) if beats else None)
    refused = pytest.raises(InputError, match="process 7 on elsewhere")
    with refused if beats else contextlib.nullcontext(), run.driving():
        assert run.status()["state"] == "running"


def test_every_truncation_of_the_header_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    header = Path(run.location, "run.json")
    whole = header.read_bytes()
    for length in range(0, len(whole) - 2, 37):
        header.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"run\.json"):
            RunDirectory.open(run.location)


def test_a_creation_killed_halfway_is_half_written(run: RunDirectory) -> None:
    Path(run.location, "run.json").unlink()
    with pytest.raises(InputError, match="half-written"):
        RunDirectory.open(run.location)


def test_a_run_without_evaluations_can_be_discarded(run: RunDirectory) -> None:
    run.discard_if_unused()
    assert not Path(run.location).exists()


def test_a_run_with_evaluations_is_kept(run: RunDirectory) -> None:
    run.ledger.append([evaluation(1)])
    run.discard_if_unused()
    assert len(RunDirectory.open(run.location).ledger.read()) == 1


def test_a_run_can_be_moved(run: RunDirectory, tmp_path: Path) -> None:
    run.ledger.append([evaluation(1)])
    shutil.move(run.location, tmp_path / "moved")
    assert len(RunDirectory.open(tmp_path / "moved").ledger.read()) == 1
