"""torchvision's classification networks on folders of images."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from envs.tasks.task import Split
from envs.tasks.task import Task
from envs.tasks.task import calibration_rows
from envs.tasks.task import fixed_permutation
from envs.tasks.task import summary
from envs.tasks.torchvision_models import require_model
from envs.tasks.weights import load_weights
from envs.tasks.weights import read_weights
from hwmodel.errors import InputError

CALIBRATION_IMAGES = 1024
BATCH_SIZE = 64


def load(model: str, data: str | None, weights: str | None = None) -> Task:
    """A classification network of torchvision with the images of a folder.

    Half of ``val/``, in a fixed random order, is the search split, the other half the test split;
    calibration takes up to 1,024 images of ``train/``. Images are prepared as for the network's
    published weights.

    Args:
        model: Name in ``torchvision.models``.
        data: Folder with ``train/CLASS/*`` and ``val/CLASS/*``.
        weights: ``random``, or see :func:`read_weights`; both take the number of classes from the
            folder. By default torchvision's ImageNet weights, for folders of all 1,000 classes.

    Raises:
        InputError: no such network; folders or weights are missing, damaged or do not fit.
    """
    _require_known(model)
    if data is None:
        raise InputError("data", data, "use a folder that has train/CLASS/ and val/CLASS/ images")
    transform = torchvision.models.get_model_weights(model).DEFAULT.transforms()
    train = _folder(Path(data) / "train", transform)
    held_out = _folder(Path(data) / "val", transform)
    if train.classes != held_out.classes:
        odd = sorted(set(train.classes) ^ set(held_out.classes))[0]
        raise InputError("data", data, f"class {odd!r} must be in both train/ and val/")
    if len(held_out) < 2:
        raise InputError("data", data, "val/ needs two images or more, to be split")
    order = fixed_permutation(len(held_out)).tolist()
    half = len(order) // 2

    def calibration(seed: int = 0) -> Split:
        rows = calibration_rows(len(train), CALIBRATION_IMAGES, seed)
        return DataLoader(Subset(train, rows.tolist()), BATCH_SIZE)

    return Task(
        name=f"torchvision:{model}",
        network=_network(model, weights, len(train.classes)).eval(),
        calibration=calibration(),
        search=DataLoader(Subset(held_out, order[:half]), BATCH_SIZE),
        test=DataLoader(Subset(held_out, order[half:]), BATCH_SIZE),
        chance=1 / len(train.classes),
        fresh_calibration=calibration,
    )


def architecture(model: str) -> tuple[nn.Module, Tensor]:
    """The network as for ImageNet, weights random, and one image of the size that it is meant for.

    Raises:
        InputError: no such network.
    """
    _require_known(model)
    published = torchvision.models.get_model_weights(model).DEFAULT
    network = _network(model, "random", len(published.meta["categories"]))
    (size,) = published.transforms().crop_size
    return network.eval(), torch.zeros(1, 3, size, size)


def _require_known(model: str) -> None:
    require_model(
        "torchvision:", model, torchvision.models, "resnet18, mobilenet_v2", "classification"
    )


def _network(model: str, weights: str | None, classes: int) -> nn.Module:
    if weights is not None:
        network: nn.Module = torchvision.models.get_model(model, weights=None, num_classes=classes)
        if weights != "random":
            load_weights(network, read_weights(weights), weights)
        return network
    published = torchvision.models.get_model_weights(model).DEFAULT
    expected = len(published.meta["categories"])
    if classes != expected:
        allowed = f"the published weights need folders of {expected} classes; give --weights"
        raise InputError("data", f"{classes} classes", allowed)
    try:
        network = torchvision.models.get_model(model, weights=published)
    except (OSError, RuntimeError) as error:
        allowed = f"the download failed ({summary(error)}); give a checkpoint's path, or random"
        raise InputError("weights", published.url, allowed) from error
    return network


def _folder(path: Path, transform: nn.Module) -> ImageFolder:
    try:
        return ImageFolder(str(path), transform=transform, loader=_read_image)
    except OSError as error:
        allowed = f"use a folder with one folder of images for each class ({summary(error)})"
        raise InputError("data", str(path), allowed) from None


def _read_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        allowed = f"use an image that can be read ({summary(error)})"
        raise InputError("data", path, allowed) from None
