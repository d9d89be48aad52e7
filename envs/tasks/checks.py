"""Checks of a user's batches, metric and network, made as they are read and called."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.tasks.task import Draw
from envs.tasks.task import Metric
from envs.tasks.task import Split
from envs.tasks.task import summary
from hwmodel.errors import InputError


@dataclass(frozen=True)
class CheckedSplit:
    """The user's batches; one that is not as it should be raises InputError when it is reached.

    Attributes:
        name: Name of the split.
        batches: The user's.
        classes: Number of classes that targets must stay below; None if the metric is the user's.
    """

    name: str
    batches: Split
    classes: int | None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(self.batches):
            yield check_batch(f"{self.name} batch {index}", batch, self.classes)


@dataclass(frozen=True)
class CheckedDraw:
    """The user's further samples for calibration; one that is no split raises InputError.

    Attributes:
        draw: The user's.
        classes: As those of :class:`CheckedSplit`.
    """

    draw: Draw
    classes: int | None

    def __call__(self, seed: int) -> Split:
        try:
            split = self.draw(seed)
        except Exception as error:  # the user's code can raise anything
            allowed = f"drawing it failed with {summary(error)}"
            raise InputError("fresh_calibration", seed, allowed) from error
        first_batch("fresh_calibration", split)
        return CheckedSplit("fresh_calibration", split, self.classes)


@dataclass(frozen=True)
class CheckedMetric:
    """The user's metric; a value that is not a number from 0 to 1 raises InputError."""

    metric: Metric

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        try:
            value = float(self.metric(outputs, targets))
        except Exception as error:  # the user's code can raise anything
            allowed = f"the metric failed with {summary(error)}"
            raise InputError("metric", getattr(self.metric, "__name__", "?"), allowed) from error
        if not 0 <= value <= 1:  # False for NaN too
            raise InputError("metric", value, "return a number from 0 (worst) to 1 (best)")
        return value


def check_batch(where: str, batch: object, classes: int | None) -> tuple[Tensor, Tensor]:
    """The pair (inputs, targets) that ``batch`` is.

    Args:
        where: What an error calls the batch.
        batch: Whatever the user's split gave.
        classes: Number of classes that targets must stay below; None if the metric is the user's.

    Raises:
        InputError: it is no such pair, or its types, shapes or values are not as they should be.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(where, type(batch).__name__, "use pairs (inputs, targets)")
    inputs, targets = batch
    _check_tensor(f"{where} inputs", inputs, torch.float32)
    _check_tensor(f"{where} targets", targets, torch.int64)
    if len(inputs) != len(targets):
        allowed = f"use as many targets as inputs, {len(inputs)}"
        raise InputError(f"{where} targets", len(targets), allowed)
    if not torch.isfinite(inputs).all():
        raise InputError(f"{where} inputs", "not finite", "use finite values")
    if classes is not None:
        _check_labels(where, targets, classes)
    return inputs, targets


def first_batch(name: str, split: Any) -> tuple[Tensor, Tensor]:
    """The first batch of a user's split, which must be the same when the split is read again.

    Raises:
        InputError: there is none, it is not a pair of tensors, or it changes.
    """
    firsts = [check_batch(f"{name} batch 0", _first(name, split), None) for _ in range(2)]
    if not all(map(torch.equal, *firsts)):
        allowed = "use the same order and the same values at every reading (shuffle=False)"
        raise InputError(name, "a split that changes", allowed)
    return firsts[0]


def checked_outputs(network: Callable[[Tensor], object], inputs: Tensor) -> Tensor:
    """What the network makes of ``inputs``, shape (batch, ...).

    Raises:
        InputError: it fails, or gives no finite tensor with a row for each input.
    """
    try:
        with torch.no_grad():
            outputs = network(inputs)
    except Exception as error:  # the user's code can raise anything
        allowed = f"the network fails on this input with {summary(error)}"
        raise InputError("search input shape", tuple(inputs.shape), allowed) from error
    if not isinstance(outputs, Tensor):
        raise InputError("network output", type(outputs).__name__, "return one tensor")
    if outputs.ndim < 2 or len(outputs) != len(inputs):
        allowed = f"return shape ({len(inputs)}, ...), one row for each input"
        raise InputError("network output shape", tuple(outputs.shape), allowed)
    if not torch.isfinite(outputs).all():
        raise InputError("network output", "not finite", "use weights that give finite outputs")
    return outputs


def _first(name: str, split: Any) -> object:
    try:
        iterator = iter(split)
        if iterator is split:
            allowed = "use a list or a DataLoader: an iterator can be read only once"
            raise InputError(name, type(split).__name__, allowed)
        return next(iterator)
    except StopIteration:
        raise InputError(name, "no batch", "use one batch or more") from None
    except InputError:
        raise
    except Exception as error:  # the user's data set can raise anything
        allowed = f"reading it failed with {summary(error)}"
        raise InputError(name, type(split).__name__, allowed) from error


def _check_tensor(where: str, tensor: object, dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(where, type(tensor).__name__, f"use a {dtype} tensor")
    if tensor.dtype != dtype:
        raise InputError(where, str(tensor.dtype), f"use {dtype}")
    if tensor.ndim == 0 or len(tensor) == 0:
        allowed = "use shape (batch, ...), one row or more"
        raise InputError(f"{where} shape", tuple(tensor.shape), allowed)


def _check_labels(where: str, targets: Tensor, classes: int) -> None:
    if targets.ndim != 1:
        raise InputError(f"{where} targets shape", tuple(targets.shape), "use shape (batch,)")
    for label in (int(targets.min()), int(targets.max())):
        if not 0 <= label < classes:
            allowed = f"use labels from 0 to {classes - 1}, one for each output"
            raise InputError(f"{where} label", label, allowed)
