"""The metric of semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = 255
"""Class of pixels that do not count."""


def class_map(outputs: Tensor) -> Tensor:
    """Class of every pixel, (images, ...) of bytes, from logits (images, classes, ...)."""
    return outputs.argmax(1).to(torch.uint8)


@dataclass(frozen=True)
class MeanIoU:
    """Mean over classes of intersection over union, of all pixels together.

    Classes that neither the network nor the labels have do not count.

    Attributes:
        classes: Number of classes, at most 255.
    """

    classes: int

    def __call__(self, predicted: Tensor, targets: Tensor) -> float:
        """Of classes (images, ...) and targets (images, ...), where 255 is ignored; 0 to 1."""
        counts = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        for guess, target in zip(predicted, targets, strict=True):
            seen = target != IGNORED
            pairs = target[seen] * self.classes + guess[seen].long()
            counts += torch.bincount(pairs, minlength=self.classes**2).view_as(counts)
        shared = counts.diagonal().double()
        either = counts.sum(0) + counts.sum(1) - counts.diagonal()
        return float((shared[either > 0] / either[either > 0]).mean()) if either.any() else 0.0
