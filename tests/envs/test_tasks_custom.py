from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from envs.tasks import Task
from envs.tasks import TaskSpec
from envs.tasks import load_task
from hwmodel.errors import InputError

DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"
INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BATCHES = [(INPUTS, LABELS)]


def good() -> tuple[Any, ...]:
    return nn.Linear(4, 3), BATCHES, BATCHES, BATCHES


def load(monkeypatch: pytest.MonkeyPatch, result: object) -> Task:
    """Load a task whose function, in this module, returns ``result``."""
    monkeypatch.setattr(f"{__name__}.made", lambda: result, raising=False)
    return load_task(f"{__name__}:made")


def test_the_documented_example_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    definition, use = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("my_task.py").write_text(definition)
    exec(use, {})
    assert 0.9 < float(capsys.readouterr().out) <= 1
    task = TaskSpec("my_task.py:tumours").absolute().load()
    assert task.name == "my_task:tumours"
    assert task.chance == 0.5


def test_module_in_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    Path("tasks_of_mine.py").write_text(f"from {__name__} import good as make\n")
    assert load_task("tasks_of_mine:make").name == "tasks_of_mine:make"


def test_loaders_and_a_whole_task_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4)
    network = nn.Linear(4, 3).double().train()
    given = Task("mine", network, loader, loader, loader, chance=0.25)
    task = load(monkeypatch, given)
    assert (task.name, task.chance) == ("mine", 0.25)
    assert not task.network.training
    assert task.network.weight.dtype == torch.float32
    assert [len(targets) for _, targets in task.split("all")] == [4, 2, 4, 2]


def test_further_calibration_samples_are_drawn_and_checked_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []

    def draw(seed: int) -> Any:
        drawn.append(seed)
        return {1: BATCHES, 2: [(INPUTS, LABELS), (INPUTS, LABELS + 1)]}[seed]

    assert load(monkeypatch, good()).fresh_calibration is None
    given = Task("mine", *good(), chance=0.25, fresh_calibration=draw)
    fresh = load(monkeypatch, given).fresh_calibration
    assert drawn == []
    assert fresh is not None
    assert [len(targets) for _, targets in fresh(1)] == [6]
    with pytest.raises(InputError, match="fresh_calibration batch 1 label: 3"):
        list(fresh(2))
    with pytest.raises(InputError, match=r"fresh_calibration: 3 .*failed with KeyError"):
        fresh(3)
    for split, message in (([], "no batch"), (Shuffled(), "shuffle=False"), (None, "NoneType")):
        given = Task("mine", *good(), chance=0.25, fresh_calibration=lambda _, made=split: made)
        fresh = load(monkeypatch, given).fresh_calibration
        with pytest.raises(InputError, match=f"fresh_calibration: .*{message}"):
            fresh(1)


def test_weights_replace_those_of_the_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = nn.Linear(4, 3).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    monkeypatch.setattr(f"{__name__}.made", good, raising=False)
    task = load_task(f"{__name__}:made", weights=str(tmp_path / "weights.pt"))
    assert torch.equal(task.network.weight, weights["weight"])


def test_other_metrics_may_have_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per-pixel labels, as in segmentation."""
    batches = [(torch.randn(2, 3, 5, 5), torch.zeros(2, 5, 5, dtype=torch.int64))]
    result = nn.Conv2d(3, 4, 1), batches, batches, batches, lambda outputs, targets: 0.5
    task = load(monkeypatch, result)
    assert task.metric(torch.empty(0), torch.empty(0)) == 0.5
    assert task.chance == 0.25


class Shuffled:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)


class Failing:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise FileNotFoundError("images.npy")


def metric(value: Any) -> Callable[[Tensor, Tensor], Any]:
    return lambda outputs, targets: value


def with_batch(inputs: object, targets: object, split: int = 2) -> tuple[Any, ...]:
    result = list(good())
    result[split] = [(inputs, targets)]
    return tuple(result)


BAD_NETWORK = nn.Linear(4, 3)
nn.init.constant_(BAD_NETWORK.weight, torch.nan)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "NoneType.*return a Task or"),
        (good()[:3], "return a Task or"),
        (("net", *good()[1:]), "network: 'str'.*nn.Module"),
        ((*good(), "top1"), "metric: 'top1'.*function"),
        ((*good(), metric(float("nan"))), "metric: nan.*from 0"),
        ((*good(), metric(91.7)), "metric: 91.7.*from 0"),
        ((*good(), metric("high")), "metric.*ValueError"),
        ((nn.Linear(5, 3), *good()[1:]), r"search input shape: \(6, 4\).*network fails"),
        ((nn.Flatten(0), *good()[1:]), r"network output shape: \(24,\)"),
        ((nn.LSTM(4, 3), *good()[1:]), "network output: 'tuple'.*one tensor"),
        ((nn.Unflatten(1, (2, 2)), *good()[1:]), r"output shape: \(6, 2, 2\).*\(batch, classes\)"),
        ((BAD_NETWORK, *good()[1:]), "network output: 'not finite'"),
        ((nn.Linear(4, 3), [], BATCHES, BATCHES), "calibration: 'no batch'"),
        ((nn.Linear(4, 3), BATCHES, BATCHES, iter(BATCHES)), "test: 'list_iterator'.*only once"),
        ((nn.Linear(4, 3), BATCHES, Shuffled(), BATCHES), "search: .*shuffle=False"),
        ((nn.Linear(4, 3), BATCHES, Failing(), BATCHES), "search: .*images.npy"),
        ((nn.Linear(4, 3), None, BATCHES, BATCHES), "calibration: 'NoneType'"),
        ((nn.Linear(4, 3), [INPUTS], BATCHES, BATCHES), "calibration batch 0: 'Tensor'.*pairs"),
        (with_batch(INPUTS.numpy(), LABELS), "search batch 0 inputs: 'ndarray'.*float32 tensor"),
        (with_batch(INPUTS.double(), LABELS), "search batch 0 inputs: 'torch.float64'"),
        (with_batch(INPUTS, LABELS.float()), "search batch 0 targets: 'torch.float32'.*int64"),
        (with_batch(INPUTS, LABELS[:5]), "search batch 0 targets: 5.*as inputs, 6"),
        (with_batch(INPUTS[:0], LABELS[:0]), r"search batch 0 inputs shape: \(0, 4\).*one row"),
        (with_batch(INPUTS / 0, LABELS), "search batch 0 inputs: 'not finite'"),
        (with_batch(INPUTS, LABELS + 1), "search batch 0 label: 3.*from 0 to 2"),
        (with_batch(INPUTS, LABELS - 1, split=1), "calibration batch 0 label: -1.*from 0 to 2"),
        (with_batch(INPUTS, LABELS[:, None], split=3), r"test batch 0 targets shape: \(6, 1\)"),
        (with_batch(INPUTS[:, :3], LABELS, split=3), r"test input shape: \(3,\).*\(4,\)"),
        (replace(Task("t", *good(), chance=0.5), chance=2), "chance: 2"),
        (Task("t", *good(), 0.5, fresh_calibration=BATCHES), "fresh_calibration: .*function of a"),
    ],
)
def test_a_bad_task_is_one_line_that_names_what(
    monkeypatch: pytest.MonkeyPatch, result: object, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(monkeypatch, result)
    assert "\n" not in str(caught.value)


def test_bad_labels_and_metric_values_after_loading_are_caught_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = [(INPUTS, LABELS), (INPUTS, LABELS + 1)]
    task = load(monkeypatch, (nn.Linear(4, 3), BATCHES, batches, BATCHES))
    with pytest.raises(InputError, match="search batch 1 label: 3"):
        list(task.search)

    def mean(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).float().mean())

    task = load(monkeypatch, (*good(), mean))
    with pytest.raises(InputError, match="metric: nan"):
        task.metric(INPUTS[:0], LABELS[:0])


def test_custom_tasks_without_their_function_are_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import not_installed_here\n")
    failing = tmp_path / "failing.py"
    failing.write_text("def make():\n    raise RuntimeError('first\\nsecond')\n")
    for name, message in (
        ("no_such_module:make", "ModuleNotFoundError"),
        (f"{tmp_path}/none.py:make", "Python file that exists"),
        (f"{broken}:make", "not_installed_here"),
        (f"{failing}:other", "no function 'other'"),
        (f"{failing}:make", r"make\(\) failed with RuntimeError: first \(.*failing.py:2\)"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_task(name)
        assert "\n" not in str(caught.value)


def test_a_task_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "network_beside_the_task.py").write_text(
        "from tests.envs.test_tasks_custom import good\n"
    )
    (tmp_path / "task.py").write_text("from network_beside_the_task import good\n")
    assert isinstance(load_task(f"{tmp_path}/task.py:good").network, nn.Linear)


def test_data_for_a_task_that_brings_its_own_is_refused() -> None:
    with pytest.raises(InputError, match=r"data: 'folder'.*brings its own"):
        load_task(f"{__name__}:good", data="folder")
