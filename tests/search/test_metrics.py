"""What a seed reports, and in what form TensorBoard and Prometheus get it."""

from __future__ import annotations

import struct
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import ray
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from ledger_rows import baselines
from ledger_rows import evaluation
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from hwmodel import InputError
from search.events import EventLog
from search.goals import Goals
from search.ledger import Evaluation
from search.metrics import SeedMetrics
from search.metrics import tensorboard_record
from search.picks import best_so_far
from search.ray_session import ray_session
from search.run_directory import RunDirectory
from search.spec import ResourceSection
from search.storage import Storage
from search.trials import Reporter
from search.trials import _raise_errors
from search.trials import reported_errors

TARGETS = (0.5, 5.0)


def metrics(evaluators: int = 2) -> SeedMetrics:
    seed = SeedMetrics("runs/1", 0, evaluators, Goals(TARGETS))
    seed.known(baselines())
    return seed


def test_rounds_tell_what_happened_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr("search.metrics.time.monotonic", lambda: next(clock))
    seed = metrics()
    seed.count("cache_hits", 3)
    seed.evaluated(evaluation(1, seconds=6.0), waiting=3)
    seed.evaluated(evaluation(2, seconds=4.0, accuracy=None, error="no images"), waiting=0)
    first = seed.end_round()
    assert (first["evaluations"], first["failed_evaluations"], first["cache_hits"]) == (2, 1, 3)
    assert first["evaluations_per_second"] == pytest.approx(0.2)
    assert first["busy_share"] == pytest.approx(0.5)  # 10 s of the 20 s that two were there
    assert first["queue_depth"] == 1.5
    second = seed.end_round()
    assert (second["evaluations"], second["evaluation_seconds"]) == (2, 10.0)
    assert (second["evaluations_per_second"], second["busy_share"]) == (0.0, 0.0)


rows = st.lists(
    st.builds(
        evaluation,
        st.integers(0, 999),
        accuracy=st.one_of(st.none(), st.floats(0.8, 0.92)),
        energy_pj=st.floats(1e6, 1e9),
        predicted_drop=st.one_of(st.none(), st.floats(0, 8)),
    ),
    max_size=12,
)


@settings(max_examples=15)
@given(st.lists(rows, max_size=3))
def test_the_best_of_all_rounds_is_that_of_the_status(rounds: list[list[Evaluation]]) -> None:
    seed, seen = metrics(), baselines()
    for found in rounds:
        new = {row.config_hash: row for row in found}
        new = [row for key, row in new.items() if key not in {row.config_hash for row in seen}]
        for row in new:
            seed.evaluated(row, waiting=0)
        seen += new
        reported = seed.end_round()
    expected = best_so_far(pd.DataFrame(seen), Goals(TARGETS))
    if rounds:
        for entry in expected:
            name = f"best_cost_ratio/{entry['max_accuracy_drop']:g}"
            assert reported[name] == entry["energy_ratio_int8"]


def read_records(content: bytes) -> list[Event]:
    found = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        data = content[12 : 12 + length]
        assert struct.unpack("<I", content[8:12]) == (masked_crc32c(content[:8]),)
        assert struct.unpack("<I", content[12 + length : 16 + length]) == (masked_crc32c(data),)
        found.append(Event.FromString(data))
        content = content[16 + length :]
    return found


def test_records_of_tensorboard() -> None:
    records = tensorboard_record(3, {"a": 0.5, "b/1": 2.0}) + tensorboard_record(4, {"a": 1.0})
    first, second = read_records(records)
    assert {value.tag: value.simple_value for value in first.summary.value} == {"a": 0.5, "b/1": 2}
    assert (first.step, second.step) == (3, 4)


def test_a_trials_rounds_are_in_its_event_file_and_in_the_log(tmp_path: Path) -> None:
    run = Storage.at(tmp_path)
    reporter = Reporter(run, EventLog(run, "driver"))
    trial = SimpleNamespace(trial_id="abc_00000", config={"seed": 1})
    for count in (0, 8):
        result = {"metrics": {"evaluations": count, "busy_share": 0.5}, "training_iteration": 1}
        reporter.on_trial_result(0, [trial], trial, result)
    (file,) = (tmp_path / "tensorboard" / "seed-1").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    assert [record.step for record in read_records(file.read_bytes())] == [0, 8]
    (log,) = (tmp_path / "log").iterdir()
    assert log.read_text().count('"event": "round"') == 2


class Results(list[Any]):
    """What Tune hands back."""

    errors: tuple[Exception, ...] = ()


def grid(error: Exception) -> Any:
    """Results of one trial in which something raised ``error``."""
    with reported_errors() as report:
        raise error
    return Results([SimpleNamespace(metrics=report)])


def test_what_breaks_a_trial_is_one_line_and_a_file(tmp_path: Path) -> None:
    run = RunDirectory(Storage.at(tmp_path))
    with pytest.raises(RuntimeError) as caught:
        _raise_errors(run, grid(ValueError("no images left")))
    message = str(caught.value)
    assert message.startswith("a trial failed: ValueError: no images left; traceback in ")
    trace = (tmp_path / "errors").glob("*.txt")
    assert "in grid" in next(trace).read_text()


def test_bad_input_of_a_trial_is_bad_input(tmp_path: Path) -> None:
    run = RunDirectory(Storage.at(tmp_path))
    with pytest.raises(InputError, match=r"weights: 'w\.pt' is not allowed"):
        _raise_errors(run, grid(InputError("weights", "w.pt", "they must fit")))


@pytest.mark.slow
def test_prometheus_gets_them_from_ray() -> None:
    pytest.importorskip("prometheus_client", reason="Ray exports metrics with ray[default] alone")
    with ray_session(ResourceSection(num_cpus=1)):
        seed = metrics()
        seed.evaluated(evaluation(1, seconds=6.0), waiting=3)
        seed.end_round()
        port = ray.nodes()[0]["MetricsExportPort"]
        found: dict[str, float] = {}
        while "ray_joulecut_best_cost_ratio" not in found:  # exported every ten seconds
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
            lines = [line for line in text.splitlines() if line.startswith("ray_joulecut_")]
            assert all('run="runs/1"' in line and 'seed="0"' in line for line in lines)
            found = {line.split("{")[0]: float(line.split()[-1]) for line in lines}
    assert found["ray_joulecut_evaluations_total"] == 1
    assert found["ray_joulecut_evaluation_seconds_total"] == 6.0
    assert found["ray_joulecut_queue_depth"] == 3
