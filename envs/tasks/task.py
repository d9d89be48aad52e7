"""What a search needs to know of a network: the module, its data splits and its metric."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_path
from traceback import extract_tb
from typing import TypeAlias

import torch
from torch import Tensor
from torch import nn

from hwmodel.errors import InputError

Split: TypeAlias = Iterable[tuple[Tensor, Tensor]]
"""Batches that can be read again and again in the same order: (inputs, targets), where inputs are
float32 of shape (batch, ...) and targets int64 of shape (batch, ...)."""

Metric: TypeAlias = Callable[[Tensor, Tensor], float]
"""From the outputs and the targets of a whole split to a number from 0 (worst) to 1 (best)."""

Predict: TypeAlias = Callable[[Tensor], Tensor]
"""From outputs (images, ...) to the part of them, (images, ...), that a metric looks at."""

Draw: TypeAlias = Callable[[int], Split]
"""From a seed, 1 or more, to a split that is the same for the same seed."""

SPLITS = ("calibration", "search", "test", "all")


def top1(outputs: Tensor, targets: Tensor) -> float:
    """Fraction of the rows of ``outputs`` (images, classes) whose maximum is at the target."""
    return float((outputs.argmax(1) == targets).double().mean())


@dataclass(frozen=True)
class Task:
    """A trained network with the data and the metric that judge its compressed versions.

    Attributes:
        name: Name of the task, the same on every machine.
        network: In evaluation mode, on the CPU, float32.
        calibration: Labelled training data; compression may look at it as it likes.
        search: What a search measures its candidates on.
        test: What is reported; no decision may look at it.
        chance: Value of the metric that guessing reaches, 0..1.
        metric: Quality of a split's concatenated outputs, 0..1.
        predict: What the metric gets instead of the outputs, where those of a whole split are too
            large to be kept; None where they are not.
        fresh_calibration: Other samples of training data, as large as ``calibration`` and prepared
            alike, to tell how much of an accuracy is owed to that one sample. Nothing is read
            before one is drawn. None where there are no others.
    """

    name: str
    network: nn.Module
    calibration: Split
    search: Split
    test: Split
    chance: float
    metric: Metric = top1
    predict: Predict | None = None
    fresh_calibration: Draw | None = None

    def split(self, name: str) -> Split:
        """The split called ``name``; ``all`` is the search split followed by the test split.

        Raises:
            InputError: there is no such split.
        """
        if name not in SPLITS:
            raise InputError("split", name, f"use one of {', '.join(SPLITS)}")
        if name == "all":
            return _Chained((self.search, self.test))
        split: Split = getattr(self, name)
        return split

    def other_calibration(self, seed: int) -> Split:
        """The sample of ``fresh_calibration`` that belongs to a seed.

        Raises:
            InputError: the seed is below 1, or the task has no other samples, or not this one.
        """
        if seed < 1:
            raise InputError("calibration seed", seed, "use 1 or more")
        if self.fresh_calibration is None:
            allowed = f"task {self.name} has no other calibration data"
            raise InputError("calibration seed", seed, allowed)
        return self.fresh_calibration(seed)


@dataclass(frozen=True)
class _Chained:
    splits: tuple[Split, ...]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for split in self.splits:
            yield from split


def batches(inputs: Tensor, targets: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Views of the two tensors, ``batch_size`` rows each."""
    return list(zip(inputs.split(batch_size), targets.split(batch_size), strict=True))


def fixed_permutation(length: int) -> Tensor:
    """The same order of 0..length-1 on every machine."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(0))


def calibration_rows(length: int, size: int, seed: int = 0) -> Tensor:
    """Which of ``length`` training images a sample for calibration has, int64, (size or length,).

    Seed 0 is the first sample, at most all images once. Those of other seeds are drawn from what
    it leaves. Where that is too little they are drawn from all images with replacement (a
    bootstrap), and differ less from the first than other images would.
    """
    order = fixed_permutation(length)
    first, left = order[:size], order[size:]
    if seed == 0:
        return first
    generator = torch.Generator().manual_seed(seed)
    if len(left) < len(first):
        return torch.randint(length, (len(first),), generator=generator)
    return left[torch.randperm(len(left), generator=generator)[: len(first)]]


def summary(error: Exception) -> str:
    """Type and first line of an exception from code that is not ours, and where it was raised."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    places = [frame for frame in extract_tb(error.__traceback__) if _is_a_users(frame.filename)]
    return f"{text} ({places[-1].filename}:{places[-1].lineno})" if places else text


def _is_a_users(file: str) -> bool:
    """Whether a file of code is neither a library's nor ours."""
    ours = Path(__file__).resolve().parents[1]
    folders = [ours, *map(Path, (get_path("stdlib"), get_path("purelib"), get_path("platlib")))]
    path = Path(file).resolve()
    return path.is_file() and not any(path.is_relative_to(folder) for folder in folders)
