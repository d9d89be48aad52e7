"""Segmentation: mIoU against a count by hand, and Cityscapes as torchvision reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from envs.compression import Compressor
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.setup import calibrate
from envs.tasks import cityscapes
from envs.tasks import load_task
from envs.tasks.segmentation import IGNORED
from envs.tasks.segmentation import MeanIoU
from envs.tasks.segmentation import class_map
from envs.tasks.task import Task
from envs.trace import trace
from hwmodel.errors import InputError

MODEL = "lraspp_mobilenet_v3_large"  # the smallest
ROAD, SKY, UNLABELED = 7, 23, 0  # ids in the label images
ROAD_CLASS, SKY_CLASS = 0, 10


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One image to calibrate on, four held out: road below sky, and a column without a label."""
    for split, count in (("train", 1), ("val", 4)):
        for number in range(count):
            stem = f"{split}_{number:06}_000019"
            labels = np.full((32, 64), ROAD, dtype=np.uint8)
            labels[: 8 * number + 4] = SKY
            labels[:, :2] = UNLABELED
            for folder, name, image in (
                ("leftImg8bit", f"{stem}_leftImg8bit.png", np.stack([labels] * 3, axis=-1)),
                ("gtFine", f"{stem}_gtFine_labelIds.png", labels),
            ):
                path = tmp_path / folder / split / "town"
                path.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("predicted", "targets", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1.0),
        ([0, 0, 1, 1], [0, 1, 1, 1], (1 / 2 + 2 / 3) / 2),
        ([0, 0, 2, 1], [0, 0, 1, 1], (1 + 1 / 2 + 0) / 3),  # 2 was predicted, so it counts
        ([0, 0, 1, 1], [0, 0, IGNORED, IGNORED], 1.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([0, 1, 2, 0], [IGNORED] * 4, 0.0),
    ],
)
def test_mean_iou(predicted: list[int], targets: list[int], expected: float) -> None:
    images = torch.tensor(predicted).view(2, 1, 2).byte(), torch.tensor(targets).view(2, 1, 2)
    assert MeanIoU(3)(*images) == pytest.approx(expected)


def test_the_metric_gets_class_maps_and_is_that_of_whole_outputs() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()
    split = [(torch.randn(4, 3, 8, 8), torch.randint(5, (4, 8, 8))) for _ in range(3)]
    iou = MeanIoU(5)
    kept = Task("maps", network, split, split, split, 0.1, iou, class_map)
    whole = replace(
        kept, metric=lambda outputs, targets: iou(class_map(outputs), targets), predict=None
    )
    traced = trace(network, split[0][0], "maps")
    images = [inputs for inputs, _ in split]
    compressor = Compressor(traced, calibrate(traced, split), images)
    results = [
        Evaluator(task, compressor).evaluate(uniform(traced.names, 4), "search")
        for task in (kept, whole)
    ]
    assert results[0].accuracy == results[1].accuracy > 0
    assert results[0].block_accuracies == results[1].block_accuracies


def test_cityscapes_is_read_with_the_classes_that_are_judged(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cityscapes, "SIZE", (32, 64))
    task = load_task(f"cityscapes:{MODEL}", data=str(data), weights="random")
    (inputs, targets), *others = list(task.search) + list(task.test)
    assert inputs.shape == (2, 3, 32, 64) and inputs.dtype == torch.float32
    assert sum(len(images) for images, _ in others) == 2
    assert set(targets.unique().tolist()) == {ROAD_CLASS, SKY_CLASS, IGNORED}
    assert (targets[:, :, :2] == IGNORED).all()
    with torch.no_grad():
        outputs = task.network(inputs)
    assert outputs.shape == (2, cityscapes.CLASSES, 32, 64)
    assert task.predict is not None
    assert 0 <= task.metric(task.predict(outputs), targets) <= 1
    right = torch.where(targets == IGNORED, ROAD_CLASS, targets).byte()
    assert task.metric(right, targets) == 1
    assert task.fresh_calibration is not None
    assert [images.shape for images, _ in task.fresh_calibration(1)] == [(1, 3, 32, 64)]


def test_weights_for_cityscapes_may_have_an_auxiliary_classifier(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cityscapes, "SIZE", (32, 64))
    network = load_task(f"cityscapes:{MODEL}", data=str(data), weights="random").network
    state = {key.removeprefix("network."): value for key, value in network.state_dict().items()}
    torch.save({**state, "aux_classifier.0.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    weights = str(tmp_path / "weights.pt")
    loaded = load_task(f"cityscapes:{MODEL}", data=str(data), weights=weights).network
    assert all(torch.equal(loaded.state_dict()[f"network.{key}"], state[key]) for key in state)


@pytest.mark.parametrize(
    ("model", "folder", "weights", "field"),
    [
        ("resnet18", "", "random", "task"),
        (MODEL, None, "random", "data"),
        (MODEL, "", None, "weights"),
        (MODEL, "nothing", "random", "data"),
    ],
)
def test_what_cityscapes_lacks_is_one_line(
    data: Path, model: str, folder: str | None, weights: str | None, field: str
) -> None:
    where = None if folder is None else str(data / folder)
    with pytest.raises(InputError) as caught:
        load_task(f"cityscapes:{model}", data=where, weights=weights)
    assert caught.value.field == field
    assert len(str(caught.value).splitlines()) == 1
