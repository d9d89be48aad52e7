from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from envs.tasks import imagefolder
from envs.tasks import load_task
from hwmodel.errors import InputError

MODEL = "squeezenet1_1"  # the smallest


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes; train/ has 2 images of each, val/ has 4 of each, in one colour per image."""
    for part, images in (("train", 2), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(images):
                colour = (80 * label, 60 * index, 100 if part == "val" else 0)
                Image.new("RGB", (40, 30), colour).save(folder / f"{index}.png")
    return tmp_path


def test_splits_halve_val_and_take_the_networks_own_transform(data: Path) -> None:
    task = load_task(f"torchvision:{MODEL}", data=str(data), weights="random")
    (calibration,), (search,), (test,) = map(list, (task.calibration, task.search, task.test))
    assert calibration[0].shape == (6, 3, 224, 224)
    images = torch.cat([search[0], test[0]])
    assert len(search[0]) == len(test[0]) == 6
    assert len({image[:, 0, 0].numpy().tobytes() for image in images}) == 12
    assert task.network(search[0][:1]).shape == (1, 3)
    assert task.chance == pytest.approx(1 / 3)


@pytest.mark.parametrize(("most", "shared"), [(3, 0), (1024, 6)])
def test_other_calibration_images_are_those_not_yet_used_if_there_are_as_many(
    most: int, shared: int, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imagefolder, "CALIBRATION_IMAGES", most)
    task = load_task(f"torchvision:{MODEL}", data=str(data), weights="random")
    assert task.fresh_calibration is not None
    (first, _), (fresh, _) = next(iter(task.calibration)), next(iter(task.fresh_calibration(1)))
    assert fresh.shape == first.shape
    used = {image[:, 0, 0].numpy().tobytes() for image in first}
    assert sum(image[:, 0, 0].numpy().tobytes() in used for image in fresh) == shared


def test_weights_from_a_file_take_the_number_of_classes_from_the_folder(data: Path) -> None:
    network = torchvision.models.get_model(MODEL, num_classes=3)
    torch.save(network.state_dict(), data / "weights.pt")
    task = load_task(f"torchvision:{MODEL}", data=str(data), weights=str(data / "weights.pt"))
    for key, value in network.state_dict().items():
        assert torch.equal(task.network.state_dict()[key], value)


def test_published_weights_need_all_their_classes(data: Path) -> None:
    with pytest.raises(InputError, match=r"'3 classes'.*1000 classes"):
        load_task(f"torchvision:{MODEL}", data=str(data))


@pytest.mark.parametrize("model", ["resnet19", "fcn_resnet50", "r3d_18"])
def test_unknown_networks_and_those_for_other_tasks_are_refused(model: str) -> None:
    with pytest.raises(InputError, match=f"torchvision:{model}.*classification.*such as "):
        load_task(f"torchvision:{model}")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train", "train'.*one folder of images for each class"),
        ("val", "val'.*one folder of images for each class"),
        ("train/bee", "class 'bee' must be in both"),
    ],
)
def test_missing_folders_are_one_line(data: Path, missing: str, message: str) -> None:
    shutil.rmtree(data / missing)
    with pytest.raises(InputError, match=message):
        load_task(f"torchvision:{MODEL}", data=str(data), weights="random")


def test_no_folder_at_all_is_one_line() -> None:
    with pytest.raises(InputError, match=r"data: None.*train/CLASS/"):
        load_task(f"torchvision:{MODEL}", weights="random")


def test_damaged_image_names_its_file(data: Path) -> None:
    (data / "train" / "cat" / "1.png").write_bytes(b"not an image")
    task = load_task(f"torchvision:{MODEL}", data=str(data), weights="random")
    with pytest.raises(InputError, match=r"cat/1.png"):
        list(task.calibration)


def test_network_is_ready_for_inference(data: Path) -> None:
    task = load_task(f"torchvision:{MODEL}", data=str(data), weights="random")
    assert isinstance(task.network, nn.Module) and not task.network.training
