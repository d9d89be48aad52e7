"""CIFAR-10 with the classic residual networks and their public checkpoints."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from envs.tasks.resnet import CifarResNet
from envs.tasks.task import Split
from envs.tasks.task import Task
from envs.tasks.task import batches
from envs.tasks.task import calibration_rows
from envs.tasks.task import summary
from envs.tasks.weights import load_weights
from envs.tasks.weights import read_weights
from hwmodel.errors import InputError
from hwmodel.files import cache_directory

# Trained by Y. Idelbayev; the end of a file's name is the start of its SHA-256.
CHECKPOINTS = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
CHECKPOINT_FILES = {
    20: "resnet20-12fca82f.th",
    32: "resnet32-d509ac18.th",
    44: "resnet44-014dd654.th",
    56: "resnet56-4bfd9763.th",
}
MEAN = (0.485, 0.456, 0.406)  # of the inputs scaled to 0..1: what the checkpoints were trained with
STD = (0.229, 0.224, 0.225)
SEARCH_IMAGES = 5000
CALIBRATION_IMAGES = 1024
CROP_PADDING = 4
BATCH_SIZE = 250


def load(depth: int, data: str | None = None, weights: str | None = None) -> Task:
    """A residual network on CIFAR-10; search and test split halve the official test images.

    Args:
        depth: One of :data:`CHECKPOINT_FILES`.
        data: Folder that holds ``cifar-10-batches-py``; by default it is downloaded to the cache.
        weights: See :func:`read_weights`; by default the public checkpoint is downloaded.

    Raises:
        InputError: the data or the weights are missing, damaged or do not fit.
    """
    network = CifarResNet(depth)
    if weights is None:
        weights = CHECKPOINTS + CHECKPOINT_FILES[depth]
        state = _download(CHECKPOINT_FILES[depth])
    else:
        state = read_weights(weights)
    load_weights(network, state, weights)
    images, labels = _images(data, train=False)
    held_out = batches(_normalize(images), labels, BATCH_SIZE)
    return Task(
        name=f"cifar10-resnet{depth}",
        network=network.eval(),
        calibration=_calibration(data),
        search=held_out[: SEARCH_IMAGES // BATCH_SIZE],
        test=held_out[SEARCH_IMAGES // BATCH_SIZE :],
        chance=0.1,
        fresh_calibration=partial(_calibration, data),
    )


def architecture(depth: int) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and one image; ``depth`` as in :func:`load`."""
    return CifarResNet(depth).eval(), torch.zeros(1, 3, 32, 32)


def _images(data: str | None, *, train: bool) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32), uint8, and labels (count,), int64."""
    from torchvision.datasets import CIFAR10  # seconds that other tasks' workers save

    root = cache_directory() / "data" if data is None else Path(data)
    try:
        # stdout is the caller's: it may be one JSON document.
        with contextlib.redirect_stdout(sys.stderr):
            dataset = CIFAR10(root=root, train=train, download=data is None)
    except (OSError, RuntimeError) as error:
        allowed = "use a folder that holds torchvision's cifar-10-batches-py, whole"
        if data is None:
            allowed = f"the download failed ({summary(error)}); give the folder of the data"
        raise InputError("data", str(root), allowed) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
    return images, torch.tensor(dataset.targets)


def _normalize(images: Tensor) -> Tensor:
    mean = torch.tensor(MEAN)[:, None, None]
    std = torch.tensor(STD)[:, None, None]
    return ((images.float() / 255 - mean) / std).contiguous()


def _calibration(data: str | None, seed: int = 0) -> Split:
    """Some training images, cropped and flipped at random as in training.

    Statistics of plain training images differ from those the batch norms were trained with.
    """
    images, labels = _images(data, train=True)
    rows = calibration_rows(len(images), CALIBRATION_IMAGES, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    padded = F.pad(images[rows], (CROP_PADDING,) * 4)
    corners = torch.randint(0, 2 * CROP_PADDING + 1, (len(rows), 2), generator=generator).tolist()
    flips = torch.rand(len(rows), generator=generator) < 0.5
    crops = torch.stack(
        [
            image[:, top : top + 32, left : left + 32]
            for image, (top, left) in zip(padded, corners, strict=True)
        ]
    )
    crops[flips] = crops[flips].flip(-1)
    return batches(_normalize(crops), labels[rows], BATCH_SIZE)


def _download(file: str) -> dict[str, Tensor]:
    """Read a public checkpoint, which is downloaded into the cache and its hash checked first."""
    path = cache_directory() / "weights" / file
    if not path.exists():
        hash_prefix = path.stem.rpartition("-")[2]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(CHECKPOINTS + file, str(path), hash_prefix)
        except (OSError, RuntimeError) as error:
            allowed = f"the download failed ({summary(error)}); give the path of a checkpoint"
            raise InputError("weights", CHECKPOINTS + file, allowed) from error
    return read_weights(str(path))
