"""A task's data where the network runs, in parts of the size that runs fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.tasks import Task
from envs.tasks.task import fixed_permutation
from hwmodel import Workload

_RESIDENT_BYTES = 4 << 30

_CACHED_BYTES = 3 << 20
"""The largest feature map of a part: larger ones leave a core's cache between operations."""


@dataclass(frozen=True)
class Part:
    """Images of a split that run together.

    Attributes:
        inputs: Shape (images, ...), on the device; images of planes are channels last.
        targets: Shape (images, ...), on the CPU.
        rows: Where the images are in the split, int64, (images,).
    """

    inputs: Tensor
    targets: Tensor
    rows: Tensor


class ResidentData:
    """The splits of a task; those that fit are kept, in a random order that is always the same.

    Args:
        task: The task.
        device: Where the inputs go.
        images_at_once: Most images of a part, on a CPU; elsewhere a part is a batch of the task
            until :meth:`halve`.
    """

    def __init__(self, task: Task, device: torch.device, images_at_once: int) -> None:
        self._task = task
        self._device = device
        self._images_at_once = images_at_once if device.type == "cpu" else None
        self._largest = 0
        self._parts: dict[str, tuple[Part, ...] | None] = {}

    def parts(self, split: str) -> Iterator[Part]:
        """All parts of a split.

        Raises:
            InputError: there is no such split.
        """
        if split not in self._parts:
            self._parts[split] = self._load(split)
        parts = self._parts[split]
        yield from self._read(split) if parts is None else parts

    def is_shuffled(self, split: str) -> bool:
        """Whether the parts come in random order, which they do where the split fits."""
        if split not in self._parts:
            self._parts[split] = self._load(split)
        return self._parts[split] is not None

    def halve(self) -> bool:
        """Make parts of half the size from now on; False where they have one image already."""
        if self._largest <= 1:
            return False
        self._images_at_once = self._largest // 2
        self._largest = 0
        self._parts.clear()
        return True

    def _load(self, split: str) -> tuple[Part, ...] | None:
        batches: list[tuple[Tensor, Tensor]] = []
        size = 0
        for batch in self._task.split(split):
            size += batch[0].nbytes
            if size > _RESIDENT_BYTES:
                return None
            batches.append(batch)
        inputs = torch.cat([inputs for inputs, _ in batches])
        targets = torch.cat([targets for _, targets in batches])
        rows = fixed_permutation(len(inputs))
        size = self._part_size(len(inputs), len(batches[0][0]))
        return tuple(
            Part(self._place(inputs[chosen]), targets[chosen], chosen)
            for chosen in rows.split(size)
        )

    def _read(self, split: str) -> Iterator[Part]:
        first = 0
        for inputs, targets in self._task.split(split):
            rows = torch.arange(first, first + len(inputs))
            first += len(inputs)
            size = self._part_size(len(inputs), len(inputs))
            for part in zip(inputs.split(size), targets.split(size), rows.split(size), strict=True):
                yield Part(self._place(part[0]), *part[1:])

    def _part_size(self, images: int, batch: int) -> int:
        """Images of a part; all parts alike if possible, since each shape is prepared for."""
        most = min(batch if self._images_at_once is None else self._images_at_once, images)
        if self._images_at_once is not None:
            most = next((n for n in range(most, most // 2, -1) if images % n == 0), most)
        self._largest = max(self._largest, most)
        return most

    def _place(self, inputs: Tensor) -> Tensor:
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs.to(self._device)


def images_in_cache(workload: Workload) -> int:
    """Images whose largest feature map, in single precision, fits a core's cache."""
    largest = max(layer.largest_map for layer in workload.layers)
    return max(1, _CACHED_BYTES // (4 * largest))
