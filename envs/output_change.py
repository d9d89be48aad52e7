"""How far compression moves a network's outputs: what accuracy is lost by, without its noise.

The squared changes that single layers cause add up, as those of independent noise do, and the loss
of accuracy follows their sum more closely than a divergence of probabilities: on images that a
network was trained on it is sure of nearly all its predictions, so a divergence looks at few.
"""

from __future__ import annotations

import torch
from torch import Tensor


def output_change(outputs: Tensor, dense: Tensor) -> float:
    """Squared change of the outputs over their squared size; >= 0.

    What all classes of an image gain alike changes no prediction and does not count.

    Args:
        outputs: Of a compressed network, (images, classes, ...).
        dense: Of the uncompressed network for the same images.
    """
    change, size = (_among_classes(x).square().mean() for x in (outputs - dense, dense))
    return float(change / size.clamp_min(torch.finfo(size.dtype).tiny))


def _among_classes(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else x - x.mean(dim=1, keepdim=True)
