from __future__ import annotations

import hashlib
import os
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.tasks import Task
from envs.tasks import cifar
from envs.tasks import load_task
from envs.tasks.resnet import CifarResNet
from hwmodel.errors import InputError


@pytest.fixture(scope="module")
def root() -> Path:
    if not os.environ.get("JOULECUT_TEST_DATA"):
        pytest.skip("JOULECUT_TEST_DATA does not name a folder with CIFAR-10 and weights/")
    return Path(os.environ["JOULECUT_TEST_DATA"])


def load(root: Path, depth: int) -> Task:
    weights = root / "weights" / f"cifar10_resnet{depth}.safetensors"
    return load_task(f"cifar10-resnet{depth}", data=str(root), weights=str(weights))


@pytest.fixture(scope="module")
def resnet20(root: Path) -> Task:
    return load(root, 20)


@torch.no_grad()
def accuracy(task: Task, split: str, batches: int | None = None) -> float:
    chosen = list(task.split(split))[:batches]
    outputs = torch.cat([task.network(inputs) for inputs, _ in chosen])
    return task.metric(outputs, torch.cat([targets for _, targets in chosen]))


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_networks_have_the_published_number_of_parameters(depth: int, parameters: int) -> None:
    assert sum(p.numel() for p in CifarResNet(depth).parameters()) == parameters


def test_padded_shortcut_subsamples_pixels_and_centres_channels() -> None:
    shortcut = CifarResNet(20).layer2[0].shortcut
    features = torch.rand(1, 16, 8, 8)
    output = shortcut(features)
    assert output.shape == (1, 32, 4, 4)
    assert torch.equal(output[:, 8:24], features[:, :, ::2, ::2])
    assert not output[:, :8].any() and not output[:, 24:].any()


def test_checkpoint_is_accurate_on_500_images(resnet20: Task) -> None:
    assert accuracy(resnet20, "search", batches=2) > 0.85


def test_splits_have_the_sizes_and_are_the_halves_of_the_test_images(resnet20: Task) -> None:
    sizes = {
        name: sum(len(targets) for _, targets in resnet20.split(name))
        for name in ("calibration", "search", "test", "all")
    }
    assert sizes == {"calibration": 1024, "search": 5000, "test": 5000, "all": 10_000}
    first_labels = [3, 8, 8, 0, 6, 6, 1, 6]  # of CIFAR-10's test batch: cat, ship, ship, plane...
    assert next(iter(resnet20.search))[1][:8].tolist() == first_labels


def test_calibration_is_augmented_the_same_way_each_time(root: Path, resnet20: Task) -> None:
    again = load(root, 20)
    for (inputs, targets), (same, labels) in zip(
        resnet20.calibration, again.calibration, strict=True
    ):
        assert torch.equal(inputs, same) and torch.equal(targets, labels)
    black = -torch.tensor(cifar.MEAN) / torch.tensor(cifar.STD)
    borders = torch.cat([inputs for inputs, _ in resnet20.calibration])[:, :, 0, :]
    shifted = (borders - black[:, None]).abs().amax((1, 2)) < 1e-5
    assert 0.3 < shifted.float().mean() < 0.6  # 4 of 9 crops start above the image


def test_other_calibration_images_are_read_when_they_are_asked_for(
    root: Path, resnet20: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    images_of = cifar._images

    def images(*arguments: Any, train: bool) -> Any:
        read.append(train)
        return images_of(*arguments, train=train)

    monkeypatch.setattr(cifar, "_images", images)
    fresh = load(root, 20).fresh_calibration
    assert fresh is not None
    assert sorted(read) == [False, True]
    (first, _), (inputs, labels), (same, _) = (
        map(torch.cat, zip(*split, strict=True))
        for split in (resnet20.calibration, fresh(1), fresh(1))
    )
    assert read[2:] == [True, True]
    assert inputs.shape == first.shape and len(labels) == len(first)
    assert torch.equal(inputs, same) and not torch.equal(inputs, first)
    assert (inputs.mean((0, 2, 3)) - first.mean((0, 2, 3))).abs().max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "published"), [(20, 0.9173), (56, 0.9339)])
def test_dense_accuracy_on_all_test_images_is_the_published_one(
    root: Path, depth: int, published: float
) -> None:
    assert accuracy(load(root, depth), "all") == pytest.approx(published, abs=0.0005)


def save_random(folder: Path, depth: int) -> str:
    path = folder / "weights.pt"
    torch.save(CifarResNet(depth).state_dict(), path)
    return str(path)


def test_weights_of_another_depth_name_the_first_key_that_does_not_fit(tmp_path: Path) -> None:
    weights = save_random(tmp_path, 20)
    with pytest.raises(InputError, match=r"it lacks 'layer1.3.conv1.weight'"):
        load_task("cifar10-resnet32", data=str(tmp_path), weights=weights)


def test_folder_without_the_data_is_one_line(tmp_path: Path) -> None:
    weights = save_random(tmp_path, 20)
    with pytest.raises(InputError, match=r"data: .*cifar-10-batches-py"):
        load_task("cifar10-resnet20", data=str(tmp_path), weights=weights)


def offline(*_: Any, **__: Any) -> None:
    raise urllib.error.URLError("no network")


def test_failed_download_of_the_data_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", offline)
    with pytest.raises(InputError, match=r"data: .*the download failed.*no network"):
        load_task("cifar10-resnet20", weights=save_random(tmp_path, 20))


def test_failed_download_of_the_checkpoint_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"weights: .*resnet20-12fca82f.th.*no network"):
        load_task("cifar10-resnet20")


def test_downloaded_checkpoint_is_kept_and_its_hash_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOULECUT_CACHE", str(tmp_path / "cache"))
    served = tmp_path / "served"
    served.mkdir()
    weights = Path(save_random(served, 20))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar, "CHECKPOINTS", f"{served.as_uri()}/")

    good, bad = f"resnet20-{digest[:8]}.pt", "resnet20-00000000.pt"
    for name in (good, bad):
        (served / name).write_bytes(weights.read_bytes())
    monkeypatch.setitem(cifar.CHECKPOINT_FILES, 20, bad)
    with pytest.raises(InputError, match="invalid hash value"):
        load_task("cifar10-resnet20", data=str(tmp_path))

    monkeypatch.setitem(cifar.CHECKPOINT_FILES, 20, good)
    for _ in range(2):  # the second time without a server
        with pytest.raises(InputError, match="data"):  # the weights were fine
            load_task("cifar10-resnet20", data=str(tmp_path))
        (served / good).unlink(missing_ok=True)
