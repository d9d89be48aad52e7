"""Batches: what experiments there are, where they are kept, and what happens to them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ledger_rows import baselines
from ledger_rows import evaluation

from envs.evaluator import EvaluationResult
from envs.layer_compression import COMPRESSION_VERSION
from envs.task_spec import TaskSpec
from hwmodel.errors import InputError
from search.batch import _known
from search.batch import _next
from search.batch import _note_prepared
from search.batch_directory import BatchDirectory
from search.batch_directory import network_key
from search.batch_spec import BatchSpec
from search.batch_spec import Experiment
from search.batch_status import batch_status
from search.cli import main
from search.sharing import Accuracies
from search.sharing import Key

GRID = {
    "task": ["digits", "cifar10-resnet20"],
    "accelerator": ["eyeriss-like", "nvdla-small"],
    "algorithm": ["ppo", "dp", "random"],
    "seeds": [[0], [1]],
}


def batch_spec(output: Path, **changes: Any) -> BatchSpec:
    return BatchSpec.from_mapping(
        {"output": str(output), "experiments": [{"grid": GRID}], **changes}
    )


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    experiments = batch_spec(tmp_path).all()
    assert len(experiments) == len({item.name for item in experiments}) == 24
    assert experiments[0].spec.task.name == "digits"
    assert experiments[-1].spec.seeds == (1,)
    assert len({network_key(item) for item in experiments}) == 2


def test_groups_override_what_all_have_and_start_by_priority(tmp_path: Path) -> None:
    groups = [
        {"grid": {"seeds": [[0], [1]]}},
        {"spec": {"budget": 40}, "priority": 5},
        {"grid": {"seeds": [[0]]}},  # the same again
    ]
    common = {"task": "digits", "accelerator": "eyeriss-like", "budget": 30}
    experiments = batch_spec(tmp_path, spec=common, experiments=groups).all()
    assert [(item.spec.budget, item.spec.seeds) for item in experiments] == [
        (40, (0,)),
        (30, (0,)),
        (30, (1,)),
    ]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"experiment": []}, "experiment"),
        ({"experiments": []}, "experiments"),
        ({"experiments": [{"grid": {"task": []}}]}, r"experiments\[0\].grid.task"),
        ({"experiments": [{"grid": {"budgets": [20]}}]}, r"experiments\[0\].grid.budgets"),
        ({"experiments": [{"grid": {"task": ["digits"]}}]}, r"experiments\[0\]: accelerator"),
        ({"spec": {"output": "elsewhere"}}, "spec.output"),
        ({"spec": {"budget": 3}}, r"experiments\[0\]: budget"),
        ({"resources": {"evaluators": 0}}, "resources.evaluators"),
    ],
)
def test_bad_batches_are_refused_by_their_field(
    tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InputError, match=f"^{field}: "):
        batch_spec(tmp_path, **change).all()


def test_bad_input_of_the_command_is_one_line_and_leaves_nothing(tmp_path: Path, capsys) -> None:
    path = tmp_path / "batch.yaml"
    path.write_text(json.dumps({"output": str(tmp_path / "out"), "experiments": [{}]}))
    assert main(["batch", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_batch_can_be_extended_and_not_reduced(tmp_path: Path) -> None:
    batch = BatchDirectory.write(batch_spec(tmp_path))
    first = batch.experiments()[0]
    batch.run(first)
    more = {**GRID, "seeds": [[0], [1], [2]]}
    BatchDirectory.write(batch_spec(tmp_path, experiments=[{"grid": more}]))
    assert len(BatchDirectory.open(tmp_path).experiments()) == 36
    fewer = {**GRID, "task": ["cifar10-resnet20"]}
    with pytest.raises(InputError, match=first.name):
        BatchDirectory.write(batch_spec(tmp_path, experiments=[{"grid": fewer}]))


def test_experiments_start_ahead_of_room_once_those_that_have_it_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.batch._room", lambda resources: 8)
    waiting: list[Experiment] = batch_spec(tmp_path / "batch").all()
    running: list[Experiment] = []
    prepared: dict[str, str] = {}

    def start() -> int:
        found = _next(waiting, running, prepared)
        running.extend(found)
        for item in found:
            waiting.remove(item)
        return len(found)

    def prepare() -> None:
        prepared.update({item.name: network_key(item) for item in running})

    assert (start(), start()) == (2, 0)  # the first of each network
    prepare()
    assert (start(), start()) == (6, 0)
    prepare()
    assert start() == 4
    running.pop(0)
    assert start() == 0
    prepare()
    assert start() == 1
    waiting.clear()
    assert start() == 0


def test_an_experiment_that_is_prepared_is_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = BatchDirectory.write(batch_spec(tmp_path))
    one, other, *_ = batch.experiments()
    looked: list[str] = []
    is_prepared = BatchDirectory.is_prepared

    def look(self: BatchDirectory, item: Experiment) -> bool:
        looked.append(item.name)
        return is_prepared(self, item)

    monkeypatch.setattr(BatchDirectory, "is_prepared", look)
    batch.run_storage(one).child("tune").child("search-1").make()
    prepared: dict[str, str] = {}
    for _ in range(2):
        _note_prepared(batch, [one, other], prepared)
    assert prepared == {one.name: network_key(one)}
    assert looked == [one.name, other.name, other.name]


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="it holds something else"):
        BatchDirectory.write(batch_spec(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_all_runs_share_one_database(tmp_path: Path) -> None:
    batch = BatchDirectory.write(batch_spec(tmp_path))
    for experiment in batch.experiments():
        run, spec = batch.run(experiment)
        assert run.database(spec).root == str(tmp_path / "database")


def test_a_creation_that_was_killed_is_made_again(tmp_path: Path) -> None:
    batch = BatchDirectory.write(batch_spec(tmp_path))
    experiment = batch.experiments()[0]
    run, _ = batch.run(experiment)
    Path(run.location, "run.json").unlink()
    assert batch.run_state(experiment)["state"] == "waiting"
    assert batch.run(experiment)[0].status()["evaluations"] == 0


def test_the_status_adds_up(tmp_path: Path, capsys) -> None:
    batch = BatchDirectory.write(batch_spec(tmp_path, resources={"evaluator_gpus": 0.25}))
    first, second, *_ = batch.experiments()
    run, _ = batch.run(first)
    run.ledger.append([*baselines(), evaluation(1, seconds=3600.0)])
    with pytest.raises(RuntimeError), batch.run(second)[0].driving():
        raise RuntimeError("no such thing")
    status = batch_status(batch)
    assert status["counts"] == {"interrupted": 1, "failed": 1, "waiting": 22}
    assert (status["evaluations"], status["budget"]) == (7, 24 * 300)
    assert status["gpu_hours"] == pytest.approx(0.25, rel=0.01)
    assert status["experiments"][1]["message"] == "RuntimeError: no such thing"

    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == status["counts"]
    assert main(["status", str(tmp_path)]) == 0
    assert "24 experiments" in capsys.readouterr().out


def test_the_status_tells_names_and_messages_as_they_are(tmp_path: Path, capsys) -> None:
    batch = BatchDirectory.write(batch_spec(tmp_path))
    message = "no layer [/conv], [bold] or :smile:"
    with pytest.raises(RuntimeError), batch.run(batch.experiments()[0])[0].driving():
        raise RuntimeError(message)
    assert main(["status", str(tmp_path)]) == 0
    assert f"RuntimeError: {message}" in capsys.readouterr().out


def test_the_manual_names_every_field_of_the_status(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    status = batch_status(BatchDirectory.write(batch_spec(tmp_path)))
    named = [*status, *status["experiments"][0]]
    assert [name for name in named if f"`{name}`" not in manual] == []


def test_the_manual_shows_a_batch_that_is_valid() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    example = manual.split("## `batch`")[1].split("```yaml\n")[1].split("```")[0]
    experiments = BatchSpec.from_mapping(yaml.safe_load(example)).all()
    assert len(experiments) == 34
    assert experiments[0].spec.task.name == "cifar10-resnet56"


def test_only_a_batch_has_failed_experiments(tmp_path: Path) -> None:
    run, _ = BatchDirectory.write(batch_spec(tmp_path)).run(batch_spec(tmp_path).all()[0])
    assert main(["resume", run.location, "--retry-failed"]) == 2


RESULT = EvaluationResult(0.9, (0.9,), 100, 1.0)
KEY = Key(TaskSpec("digits"), "w", "search", "c", None)


def test_a_batch_that_goes_on_knows_what_was_measured_of_the_same_data_by_the_same_code(
    tmp_path: Path,
) -> None:
    grid = {"task": [{"name": "digits", "data": str(tmp_path / name)} for name in ("a", "b")]}
    groups = [{"grid": grid, "spec": {"accelerator": "eyeriss-like"}}]
    batch = BatchDirectory.write(batch_spec(tmp_path / "batch", experiments=groups))
    tasks = [item.spec.task_spec() for item in batch.experiments()]
    for accuracy, experiment in zip((0.8, 0.9), batch.experiments(), strict=True):
        now = evaluation(1, accuracy=accuracy, code_version=COMPRESSION_VERSION)
        before = evaluation(2, code_version="0.1")
        batch.run(experiment)[0].ledger.append([now, before])
    known = _known(batch, batch.experiments())
    row = evaluation(1)
    assert {key: result.accuracy for key, result in known.items()} == {
        Key(task, row.weights_hash, "search", row.config_hash, None): accuracy
        for task, accuracy in zip(tasks, (0.8, 0.9), strict=True)
    }


def test_what_two_ask_for_is_evaluated_by_one() -> None:
    async def ask() -> list[EvaluationResult | None]:
        shared = Accuracies({})
        first = await shared.claim(KEY)
        second = asyncio.create_task(shared.claim(KEY))
        await asyncio.sleep(0)
        await shared.record(KEY, RESULT)
        return [first, await second, await shared.claim(KEY)]

    assert asyncio.run(ask()) == [None, RESULT, RESULT]


def test_a_failed_evaluation_is_left_to_the_next() -> None:
    async def ask() -> list[EvaluationResult | None]:
        shared = Accuracies({})
        await shared.claim(KEY)
        others = [asyncio.create_task(shared.claim(KEY)) for _ in range(2)]
        await asyncio.sleep(0)
        await shared.record(KEY, None)
        done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        await shared.record(KEY, RESULT)
        return [done.pop().result(), *[await other for other in others]]

    assert sorted(map(str, asyncio.run(ask()))) == sorted(map(str, [None, None, RESULT]))


def test_one_who_dies_over_an_evaluation_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> EvaluationResult | None:
        shared = Accuracies({})
        await shared.claim(KEY)
        return await shared.claim(KEY)

    monkeypatch.setattr("search.sharing.PATIENCE_SECONDS", 0.01)
    assert asyncio.run(ask()) is None
