"""A worker: devices that run out of memory, accelerators with few widths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from envs.attack import Attack
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.evaluator import is_out_of_memory
from envs.setup import prepare_evaluator
from envs.tasks import Split
from envs.tasks import TaskSpec
from hwmodel import InputError
from hwmodel import load_accelerator
from search.evaluation import RECALIBRATION_SEED
from search.evaluation import EvaluationWorker
from search.ledger import RECALIBRATED
from search.ledger import Ledger
from search.permit import Permit
from search.permit import grant
from search.requests import Request
from search.requests import WorkerSpec
from search.storage import Storage

TASK = TaskSpec(f"{Path(__file__).parent}/faulty_task.py:task")


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return prepare_evaluator(TASK.load())


def limit_memory(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """Let networks run out of memory beyond so many images; returns what was tried."""
    load, tried = Evaluator._load, []

    def limited(self: Evaluator, *arguments: Any) -> Any:
        module = load(self, *arguments)

        def run(inputs: torch.Tensor) -> torch.Tensor:
            tried.append(len(inputs))
            if len(inputs) > images:
                raise torch.OutOfMemoryError("CUDA out of memory")
            outputs: torch.Tensor = module(inputs)
            return outputs

        return run

    monkeypatch.setattr(Evaluator, "_load", limited)
    return tried


def worker(
    evaluator: Evaluator,
    folder: Path,
    accelerator_name: str = "eyeriss-like",
    permit: Permit | None = None,
) -> EvaluationWorker:
    storage = Storage.at(folder)
    accelerator = load_accelerator(accelerator_name)
    database, ledger = storage.child("database"), storage.child("ledger")
    spec = WorkerSpec(TASK, accelerator, "mid", database, ledger, errors=storage.child("errors"))
    own = Evaluator(evaluator.task, evaluator.compressor)
    return EvaluationWorker(spec, own, permit=permit)


def test_a_task_that_gives_other_weights_in_another_process_is_refused(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    here = worker(evaluator, tmp_path)
    EvaluationWorker(replace(here.spec, weights_hash=here.weights_hash), evaluator)
    with pytest.raises(InputError, match=r"^task: .*other weights in another process"):
        EvaluationWorker(replace(here.spec, weights_hash="0" * 16), evaluator)


def test_a_baseline_too_wide_for_the_accelerator_has_no_price(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    config = uniform(evaluator.compressor.network.names, 32)
    only_16_bits = worker(evaluator, tmp_path, "eyeriss")
    row = only_16_bits.evaluate(Request(config, "search", "baseline", "dense FP32"))
    assert row.error is None
    assert row.accuracy is not None
    assert math.isnan(row.energy_pj)
    row = only_16_bits.evaluate(Request(config, "search", "search"))
    assert row.error is not None
    assert "this accelerator takes up to 16" in row.error
    priced = uniform(evaluator.compressor.network.names, 16)
    row = only_16_bits.evaluate(Request(priced, "search", "baseline", "dense FP16"))
    assert row.energy_pj > 0


class Shared:
    """What the runs of a batch share, in this process."""

    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}
        self.claim = SimpleNamespace(remote=lambda key: self.known.get(key))
        self.record = SimpleNamespace(remote=self.known.__setitem__)


def test_runs_of_a_batch_share_what_was_measured_of_the_same_data(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get", lambda value: value)
    measured = []
    evaluate = Evaluator.evaluate

    def counted(self: Evaluator, *arguments: Any, **options: Any) -> Any:
        measured.append(arguments)
        return evaluate(self, *arguments, **options)

    monkeypatch.setattr(Evaluator, "evaluate", counted)
    request = Request(uniform(evaluator.compressor.network.names, 8), "search", "search")
    own, shared = worker(evaluator, tmp_path), Shared()
    for task, expected in ((TASK, 1), (TASK, 1), (replace(TASK, data="elsewhere"), 2)):
        own.spec = replace(own.spec, task=task, shared=shared)
        own.evaluate(request)
        assert len(measured) == expected


def test_accuracy_under_attack_is_recorded_if_asked_for(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    config = uniform(evaluator.compressor.network.names, 8)
    plain = worker(evaluator, tmp_path / "plain")
    assert plain.evaluate(Request(config, "search", "search")).robust_accuracy is None
    own = worker(evaluator, tmp_path)
    own.spec = replace(own.spec, attack=Attack("fgsm", 0.05, images=100))
    row = own.evaluate(Request(config, "search", "search"))
    assert row.robust_accuracy is not None
    assert row.accuracy is not None
    assert row.robust_accuracy < row.accuracy
    assert Ledger(tmp_path / "ledger").find(config.hash, "search") == row


class Counted:
    """A split that counts how often it is read."""

    def __init__(self, split: Split) -> None:
        self.split, self.readings = split, 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.readings += 1
        return iter(self.split)


def test_picks_are_measured_from_another_calibration_sample(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    own = worker(evaluator, tmp_path)
    ((inputs, targets),) = own.evaluator.task.calibration
    drawn, test = [], Counted(own.evaluator.task.test)

    def draw(seed: int) -> Split:
        drawn.append(seed)
        rows = torch.randint(len(inputs), (len(inputs),), generator=torch.manual_seed(seed))
        return [(0.5 * inputs[rows], targets[rows])]  # so that something must change

    task = replace(own.evaluator.task, test=test, fresh_calibration=draw)
    own.evaluator = Evaluator(task, evaluator.compressor)
    configs = [uniform(evaluator.compressor.network.names, bits) for bits in (3, 4)]
    tested = [own.evaluate(Request(config, "test", "finalist")) for config in configs]
    assert drawn == []
    requests = [Request(config, RECALIBRATED, "finalist") for config in configs]
    rows = [own.evaluate(request) for request in requests]
    assert (drawn, test.readings) == ([RECALIBRATION_SEED], 1)

    (fresh,) = draw(RECALIBRATION_SEED)
    other = prepare_evaluator(replace(task, calibration=[fresh]))
    for config, row, before in zip(configs, rows, tested, strict=True):
        result = other.evaluate(config, "test")
        assert (row.split, row.role, row.images) == (RECALIBRATED, "finalist", result.images)
        assert (row.accuracy, row.block_accuracies) == (result.accuracy, result.block_accuracies)
        compressor = other.compressor
        states = compressor.states(compressor.compress(config))
        assert row.energy_pj == float(own.price_states(states).energy_pj[0]) != before.energy_pj
        assert own.evaluate(Request(config, "test", "finalist")).accuracy == before.accuracy
    (kept,) = (tmp_path / "database").iterdir()  # and no layers
    assert kept.name.startswith("statistics-")
    found = own.evaluate_all(requests, again=True)
    assert [row.time for row in found] == [row.time for row in rows]


def test_a_calibration_sample_that_cannot_be_had_is_an_error_in_the_ledger(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    config = uniform(evaluator.compressor.network.names, 4)
    own = worker(evaluator, tmp_path)
    row = own.evaluate(Request(config, RECALIBRATED, "finalist"))
    assert row.accuracy is None and math.isnan(row.energy_pj)
    assert row.error is not None and "has no other calibration data" in row.error
    assert own.evaluate(Request(config, "test", "finalist")).error is None


@pytest.mark.parametrize("level", ["driver", "trial", "evaluator"])
def test_who_was_given_up_records_nothing(level: str, evaluator: Evaluator, tmp_path: Path) -> None:
    permits = Storage.at(tmp_path / "permits")
    driver = grant(permits, "driver")
    trial = driver.grant_child("seed-0")
    permit = trial.grant_child("evaluator")
    own = worker(evaluator, tmp_path, permit=permit)
    names = evaluator.compressor.network.names
    own.evaluate(Request(uniform(names, 8), "search", "search"))
    if level == "driver":
        grant(permits, "driver")
    elif level == "trial":
        driver.grant_child("seed-0")
    else:
        permit.revoke()
    with pytest.raises(InputError, match="somebody else has taken over"):
        own.evaluate(Request(uniform(names, 6), "search", "search"))
    with pytest.raises(InputError, match="somebody else has taken over"):
        own.record_failure(Request(uniform(names, 6), "search", "search"), "it hung")
    assert len(Ledger(tmp_path / "ledger").read()) == 1


def test_what_is_asked_for_together_is_recorded_together(
    evaluator: Evaluator, tmp_path: Path
) -> None:
    own = worker(evaluator, tmp_path)
    names = evaluator.compressor.network.names
    requests = [Request(uniform(names, bits), "search", "search") for bits in (8, 6, 5)]
    known = own.evaluate(requests[1])
    rows = own.evaluate_all(requests, again=True)
    assert [row.config_hash for row in rows] == [request.config.hash for request in requests]
    assert rows[1].time == known.time
    recorded = Ledger(tmp_path / "ledger").read()
    assert list(recorded["config_hash"]) == [rows[index].config_hash for index in (1, 0, 2)]
    assert len(list((tmp_path / "ledger").iterdir())) == 2
    assert own.evaluate_all(requests[:2], again=False)[1].time > known.time


def test_nothing_is_granted_on_behalf_of_who_was_given_up(tmp_path: Path) -> None:
    permits = Storage.at(tmp_path)
    driver = grant(permits, "driver")
    trial = driver.grant_child("seed-0")
    grant(permits, "driver")
    with pytest.raises(InputError, match="somebody else has taken over"):
        trial.grant_child("evaluator")
    assert [path.name for path in tmp_path.iterdir() if "evaluator" in path.name] == []


def test_fewer_images_at_once_give_the_same_accuracy(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(uniform(evaluator.compressor.network.names, 6), "test", "finalist")
    whole = worker(evaluator, tmp_path).evaluate(request)
    tried = limit_memory(monkeypatch, images=50)
    small = worker(evaluator, tmp_path)
    row = small.evaluate(request)
    assert (row.accuracy, row.images, row.error) == (whole.accuracy, whole.images, None)
    failures = [images for images in tried if images > 50]
    assert failures == sorted(failures, reverse=True)
    tried.clear()
    small.evaluate(request)
    assert max(tried) <= 50  # it has learnt


def test_what_does_not_fit_one_image_at_a_time_is_recorded_as_failed(
    evaluator: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = limit_memory(monkeypatch, images=0)
    request = Request(uniform(evaluator.compressor.network.names, 6), "test", "finalist")
    row = worker(evaluator, tmp_path).evaluate(request)
    assert row.accuracy is None
    assert row.error is not None and "CUDA out of memory" in row.error
    assert tried[-1] == 1
    trace = tmp_path / "errors" / f"{row.config_hash}-test.txt"
    assert "in run\n" in trace.read_text()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
