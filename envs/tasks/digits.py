"""The embedded default: scikit-learn's handwritten digits and a small network trained on them."""

from __future__ import annotations

import math
from functools import partial

import torch
from safetensors.torch import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch import nn
from torch.nn import functional as F

from envs.files import write_whole
from envs.tasks.task import Split
from envs.tasks.task import Task
from envs.tasks.task import batches
from envs.tasks.task import calibration_rows
from envs.tasks.weights import load_weights
from envs.tasks.weights import read_weights
from hwmodel.errors import InputError
from hwmodel.files import cache_directory

RECIPE = 1
"""Version of the network and its training; raise it whenever either changes."""

EPOCHS = 50
BATCH_SIZE = 64
CALIBRATION_BATCH_SIZE = 150
PEAK_LEARNING_RATE = 0.02
WEIGHT_DECAY = 1.0  # strong, so that weights nobody needs end near zero and can be pruned
HELD_OUT_IMAGES = 450  # in each of the search and the test split


class DigitsNet(nn.Module):
    """Six layers of the kinds compression must know: depthwise, pointwise, residual, linear.

    Input (batch, 1, 8, 8), output (batch, 10); 44 k parameters, 0.7 M MACs an image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv_bn(1, 24, kernel=3)
        self.depthwise = _conv_bn(24, 24, kernel=3, stride=2, groups=24)
        self.pointwise = _conv_bn(24, 48, kernel=1)
        self.residual1 = _conv_bn(48, 48, kernel=3)
        self.residual2 = _conv_bn(48, 48, kernel=3)
        self.classifier = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.stem(images))
        features = F.relu(self.depthwise(features))
        features = F.relu(self.pointwise(features))
        branch = self.residual2(F.relu(self.residual1(features)))
        features = F.relu(features + branch)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def load(weights: str | None = None) -> Task:
    """The digits task; its network is trained at first use and cached.

    Args:
        weights: Weights to use instead of the cached ones, see :func:`read_weights`.

    Raises:
        InputError: the weights do not fit; the cache directory cannot be written.
    """
    (images, labels), search, test = _splits()
    network = DigitsNet()
    if weights is None:
        _train_or_reuse(network, images, labels)
    else:
        load_weights(network, read_weights(weights), weights)
    return Task(
        name="digits",
        network=network.eval(),
        calibration=batches(images, labels, CALIBRATION_BATCH_SIZE),
        search=batches(*search, HELD_OUT_IMAGES),
        test=batches(*test, HELD_OUT_IMAGES),
        chance=0.1,
        fresh_calibration=partial(_resampled, images, labels),
    )


def train(network: DigitsNet, images: Tensor, labels: Tensor) -> None:
    """Train from a fixed seed, bit for bit the same on one machine; takes seconds.

    The caller's random state and number of threads are left as they were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on how threads divide them
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _run_epochs(network, images, labels)
    finally:
        torch.set_num_threads(threads)


def _run_epochs(network: DigitsNet, images: Tensor, labels: Tensor) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * math.ceil(len(images) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=steps
    )
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH_SIZE):
            loss = F.cross_entropy(network(_shift(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


def _shift(images: Tensor) -> Tensor:
    """Move every image by up to one pixel each way, zeros coming in: the augmentation."""
    padded = F.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (2, len(images), 1))
    rows = offsets[0] + torch.arange(8)
    columns = offsets[1] + torch.arange(8)
    image = torch.arange(len(images))[:, None, None]
    return padded[image, 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def _splits() -> tuple[tuple[Tensor, Tensor], ...]:
    """(images, labels) of training, search and test; each has the classes in equal shares."""
    pixels, classes = load_digits(return_X_y=True)
    labels = torch.from_numpy(classes).long()
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    train_rows, held_out = train_test_split(
        range(len(labels)), test_size=2 * HELD_OUT_IMAGES, stratify=labels, random_state=0
    )
    search, test = train_test_split(
        held_out, test_size=HELD_OUT_IMAGES, stratify=labels[held_out], random_state=0
    )
    return tuple((images[rows], labels[rows]) for rows in (train_rows, search, test))


def _resampled(images: Tensor, labels: Tensor, seed: int) -> Split:
    """As many training images drawn with replacement, since calibration has all of them."""
    rows = calibration_rows(len(images), len(images), seed)
    return batches(images[rows], labels[rows], CALIBRATION_BATCH_SIZE)


def _train_or_reuse(network: DigitsNet, images: Tensor, labels: Tensor) -> None:
    path = cache_directory() / f"digits-{RECIPE}.safetensors"
    if path.exists():
        try:
            load_weights(network, read_weights(str(path)), str(path))
            return
        except InputError:
            pass  # damaged: train again and replace it
    train(network, images, labels)
    content = save(network.state_dict())
    write_whole(path, lambda partial: partial.write_bytes(content), "JOULECUT_CACHE")


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
