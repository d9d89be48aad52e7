"""torchvision's segmentation networks on Cityscapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Subset
from torchvision.datasets import Cityscapes
from torchvision.transforms.functional import normalize
from torchvision.transforms.functional import pil_to_tensor

from envs.tasks.segmentation import IGNORED
from envs.tasks.segmentation import MeanIoU
from envs.tasks.segmentation import class_map
from envs.tasks.task import Split
from envs.tasks.task import Task
from envs.tasks.task import calibration_rows
from envs.tasks.task import fixed_permutation
from envs.tasks.task import summary
from envs.tasks.torchvision_models import require_model
from envs.tasks.weights import load_weights
from envs.tasks.weights import read_weights
from hwmodel.errors import InputError

SIZE = 512, 1024
"""Height and width of the images that networks see: half of what the cameras gave."""
CALIBRATION_IMAGES = 128
BATCH_SIZE = 4

# Of ImageNet, as all backbones of torchvision expect them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_TRAIN_IDS = torch.full((256,), IGNORED, dtype=torch.int64)
for _label in Cityscapes.classes:
    if 0 <= _label.train_id < IGNORED:
        _TRAIN_IDS[_label.id] = _label.train_id
CLASSES = int(_TRAIN_IDS[_TRAIN_IDS != IGNORED].max()) + 1


def load(model: str, data: str | None, weights: str | None = None) -> Task:
    """A segmentation network of torchvision on the 19 classes of Cityscapes, judged by mIoU.

    Half of ``val``, in a fixed random order, is the search split, the other half the test split;
    calibration takes up to 128 images of ``train``. All images are 512 x 1024.

    Args:
        model: Name in ``torchvision.models.segmentation``.
        data: Folder with ``leftImg8bit/`` and ``gtFine/``.
        weights: ``random``, or see :func:`read_weights`; an auxiliary classifier in it is left out.

    Raises:
        InputError: no such network; folders or weights are missing, damaged or do not fit.
    """
    name = f"cityscapes:{model}"
    _require_known(model)
    if data is None:
        raise InputError("data", data, "use a folder that has leftImg8bit/ and gtFine/")
    if weights is None:
        allowed = f"use a checkpoint's path, hub:OWNER/REPO:ENTRY, or random: {model} on Cityscapes"
        raise InputError("weights", weights, f"{allowed} has no published weights")
    train, held_out = (_split(data, split) for split in ("train", "val"))
    if len(held_out) < 2:
        raise InputError("data", data, "val needs two images or more, to be split")
    order = fixed_permutation(len(held_out)).tolist()
    half = len(order) // 2

    def calibration(seed: int = 0) -> Split:
        rows = calibration_rows(len(train), CALIBRATION_IMAGES, seed)
        return DataLoader(Subset(train, rows.tolist()), BATCH_SIZE)

    return Task(
        name=name,
        network=_network(model, weights).eval(),
        calibration=calibration(),
        search=DataLoader(Subset(held_out, order[:half]), BATCH_SIZE),
        test=DataLoader(Subset(held_out, order[half:]), BATCH_SIZE),
        chance=1 / (2 * CLASSES - 1),  # mIoU of uniform guesses at classes that are as frequent
        metric=MeanIoU(CLASSES),
        predict=class_map,
        fresh_calibration=calibration,
    )


def architecture(model: str) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and one image.

    Raises:
        InputError: no such network.
    """
    _require_known(model)
    return _network(model, "random").eval(), torch.zeros(1, 3, *SIZE)


def _require_known(model: str) -> None:
    require_model(
        "cityscapes:", model, torchvision.models.segmentation, "deeplabv3_resnet50", "segmentation"
    )


class Logits(nn.Module):
    """A segmentation network of torchvision that returns one tensor, (images, classes, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)["out"]
        return logits


def _network(model: str, weights: str) -> nn.Module:
    network = torchvision.models.get_model(
        model, weights=None, weights_backbone=None, num_classes=CLASSES
    )
    if weights != "random":
        load_weights(network, _without_auxiliary(read_weights(weights)), weights)
    return Logits(network)


def _without_auxiliary(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Only training looks at what the auxiliary classifier says."""
    return {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}


def _split(data: str, split: str) -> Cityscapes:
    try:
        return Cityscapes(data, split, target_type="semantic", transforms=_prepare)
    except (OSError, RuntimeError) as error:
        allowed = f"use a folder with leftImg8bit/{split} and gtFine/{split} ({summary(error)})"
        raise InputError("data", str(Path(data)), allowed) from None


def _prepare(image: Image.Image, labels: Image.Image) -> tuple[Tensor, Tensor]:
    """Image (3, height, width) and class of every pixel, (height, width)."""
    height, width = SIZE
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = pil_to_tensor(image).float() / 255
    ids = np.array(labels.resize((width, height), Image.Resampling.NEAREST))
    return normalize(pixels, _MEAN, _STD), _TRAIN_IDS[torch.from_numpy(ids).long()]
