from __future__ import annotations

import copy
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import nn

from envs.tasks import Split
from envs.tasks import Task
from envs.tasks import TaskSpec
from envs.tasks import cache_directory
from envs.tasks import digits
from envs.tasks import load_task
from envs.tasks import task_names
from envs.tasks import top1
from envs.tasks.task import calibration_rows
from hwmodel.errors import InputError


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOULECUT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_task("digits")


def whole(split: Split) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*split, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def accuracy(task: Task, split: str) -> float:
    inputs, targets = whole(task.split(split))
    with torch.no_grad():
        return task.metric(task.network(inputs), targets)


def test_top1_counts_the_rows_whose_maximum_is_at_the_target() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.7, 0.3]])
    assert top1(outputs, torch.tensor([1, 0, 0, 0])) == 0.75


def test_digits_network_is_accurate_and_ready_for_inference(task: Task) -> None:
    assert accuracy(task, "all") >= 0.98
    assert not task.network.training
    assert task.chance == 0.1


def test_digits_splits_are_disjoint_and_cover_the_data_in_equal_shares(task: Task) -> None:
    splits = [whole(task.split(name)) for name in ("calibration", "search", "test")]
    assert [len(targets) for _, targets in splits] == [897, 450, 450]
    images = {image.numpy().tobytes() for inputs, _ in splits for image in inputs}
    assert len(images) == 1797
    for _, targets in splits:
        counts = Counter(targets.tolist())
        assert all(abs(counts[label] / len(targets) - 0.1) < 0.01 for label in range(10))


def test_other_samples_for_calibration_have_other_images_where_there_are_enough() -> None:
    first = calibration_rows(100, 30)
    for seed in (1, 2):
        rows = calibration_rows(100, 30, seed)
        assert len(set(rows.tolist())) == 30
        assert not set(rows.tolist()) & set(first.tolist())
        assert torch.equal(rows, calibration_rows(100, 30, seed))
    assert not torch.equal(rows, calibration_rows(100, 30, 1))
    whole_rest = calibration_rows(60, 30, 1)
    assert sorted(whole_rest.tolist() + calibration_rows(60, 30).tolist()) == list(range(60))


@pytest.mark.parametrize("images", [30, 59, 7])
def test_too_few_images_are_drawn_from_with_replacement(images: int) -> None:
    rows = calibration_rows(images, 30, 1)
    assert len(rows) == len(calibration_rows(images, 30)) == min(images, 30)
    assert rows.min() >= 0 and rows.max() < images
    assert len(rows.unique()) < len(rows)


def test_digits_are_resampled_from_the_training_images(task: Task) -> None:
    assert task.fresh_calibration is not None
    images, labels = whole(task.calibration)
    pairs = zip(images, labels.tolist(), strict=True)
    label_of = {image.numpy().tobytes(): label for image, label in pairs}
    (again, targets), (same, _), (other, _) = (
        whole(task.fresh_calibration(seed)) for seed in (1, 1, 2)
    )
    assert again.shape == images.shape
    assert [label_of[image.numpy().tobytes()] for image in again] == targets.tolist()
    assert torch.equal(again, same) and not torch.equal(again, other)


def test_digits_network_has_weights_to_spare(task: Task) -> None:
    """Half the residual weights zero and the rest at 4 bits: more accurate than 95 %."""
    network = copy.deepcopy(task.network)
    for layer in (network.residual1[0], network.residual2[0]):
        weight = layer.weight.detach()
        pruned = torch.where(weight.abs() < weight.abs().median(), 0, weight)
        scale = pruned.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-9) / 7
        layer.weight.data = (pruned / scale).round() * scale
    assert accuracy(replace(task, network=network), "all") > 0.95


def test_splits_give_the_same_batches_at_every_reading(task: Task) -> None:
    split = task.split("all")
    first, second = whole(split), whole(split)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_all_is_the_search_split_then_the_test_split(task: Task) -> None:
    search, test = whole(task.split("search")), whole(task.split("test"))
    assert torch.equal(whole(task.split("all"))[1], torch.cat([search[1], test[1]]))


def test_training_is_reproducible_and_leaves_the_callers_random_state(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "EPOCHS", 2)
    images, labels = whole(task.calibration)
    threads = torch.get_num_threads()
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        network = digits.DigitsNet()
        torch.set_rng_state(before)
        digits.train(network, images, labels)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(network.state_dict())
    assert torch.get_num_threads() == threads
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_digits_trains_once_and_replaces_a_damaged_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def note(network: nn.Module, images: Tensor, labels: Tensor) -> None:
        trained.append(network)

    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path / "new" / "folder"))
    monkeypatch.setattr(digits, "train", note)
    first = load_task("digits").network.state_dict()
    second = load_task("digits").network.state_dict()
    assert len(trained) == 1
    assert all(torch.equal(first[key], second[key]) for key in first)

    (file,) = cache_directory().iterdir()  # nothing else is left behind
    file.write_bytes(file.read_bytes()[:100])
    load_task("digits")
    load_task("digits")
    assert len(trained) == 2


def test_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(digits, "train", lambda *_: None)
    with pytest.raises(InputError, match="JOULECUT_CACHE"):
        load_task("digits")


def test_spec_loads_the_same_task_after_pickling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path))
    file = tmp_path / "weights.pt"
    torch.save(task.network.state_dict(), file)
    spec = TaskSpec("digits", weights=str(file))
    assert TaskSpec(**spec.to_json()) == spec
    loaded = pickle.loads(pickle.dumps(spec)).load()
    for key, value in task.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[key], value)


def test_absolute_spec_does_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = TaskSpec("a/mine.py:make", data="images", weights="w.pt").absolute()
    assert spec.name == f"{tmp_path / 'a' / 'mine.py'}:make"
    assert (spec.data, spec.weights) == (str(tmp_path / "images"), str(tmp_path / "w.pt"))
    unchanged = TaskSpec("package.module:make", weights="random")
    assert unchanged.absolute() == unchanged


def test_task_names_lists_every_kind() -> None:
    names = [name for name, _ in task_names()]
    assert names[:3] == ["digits", "cifar10-resnet20", "cifar10-resnet32"]
    assert all(description for _, description in task_names())


@pytest.mark.parametrize("name", ["digit", "cifar10-resnet18", "", "mine:", ":make"])
def test_unknown_task_lists_what_is_known(name: str) -> None:
    with pytest.raises(InputError, match=r"task: .*digits, cifar10-resnet20.*torchvision:MODEL"):
        load_task(name)


def test_unknown_split_lists_what_is_known(task: Task) -> None:
    with pytest.raises(InputError, match=r"split: 'train'.*calibration, search, test, all"):
        task.split("train")


def test_data_for_a_task_that_brings_its_own_is_refused() -> None:
    with pytest.raises(InputError, match=r"data: '/data'.*digits brings its own"):
        load_task("digits", data="/data")
