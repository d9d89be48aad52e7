"""What to remove: scores of weights and of output channels, and the masks they lead to.

A layer's weights have shape (groups, rows, columns): rows are the output channels of a group,
columns its input channels times the kernel's positions. They are the raw weights: folding a batch
norm into them rescales the rows and ruins the order of the scores across rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude_scores(weight: Tensor) -> Tensor:
    """L1: |w|, shape of ``weight``."""
    return weight.abs()


def random_scores(weight: Tensor) -> Tensor:
    """The control: scores from a fixed seed, 0..1, shape of ``weight``."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(weight.shape, generator=generator).to(weight)


def second_order_scores(weight: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """Squared change of the layer's output if one weight goes and the others make up for it.

    Optimal Brain Surgeon: w^2 / diag(H^-1), per position and up to the damping of H.

    Args:
        weight: Shape (groups, rows, columns).
        inverse_diagonal: diag(H^-1), (groups, columns); see ``least_squares.inverse_diagonal``.

    Returns:
        Shape of ``weight``.
    """
    return weight.square() / inverse_diagonal[:, None, :]


def norm_filter_scores(weight: Tensor, order: int) -> Tensor:
    """L1 or L2 norm of each output channel over the mean norm of the layer, (groups * rows,).

    The mean of a layer's scores is 1, so that the scores of coupled layers can be averaged.
    """
    return _over_mean(weight.flatten(0, 1).norm(p=order, dim=1))


def geometric_median_filter_scores(weight: Tensor) -> Tensor:
    """Summed distance of each output channel to all others, over its mean, (groups * rows,).

    He et al., Filter Pruning via Geometric Median, CVPR 2019: the channel next to the others'
    median is the one that they can replace.
    """
    rows = weight.flatten(0, 1)
    return _over_mean(torch.cdist(rows, rows).sum(dim=1))


def _over_mean(scores: Tensor) -> Tensor:
    return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)


def taylor_filter_scores(weight: Tensor, gradients: Tensor) -> Tensor:
    """Squared first-order change of the loss if an output channel goes, (sum of w * dL/dw)^2.

    Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019. In units of
    the squared loss: the scores of coupled layers can be added as they are. The gradients must be
    taken with fixed batch-norm statistics, as the sum is zero where the batch's own are used.

    Args:
        weight: Shape (groups, rows, columns).
        gradients: One gradient per batch, shape (batches, groups, rows, columns). Their signs
            differ from batch to batch, so they are squared first and averaged then.

    Returns:
        Shape (groups * rows,).
    """
    return (weight * gradients).sum(dim=-1).square().mean(dim=0).flatten()


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` lowest of all scores, shape of ``scores``; of equal ones the first."""
    flat = scores.flatten()
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view_as(scores)


def kept_count(total: int, sparsity: float) -> int:
    """How many of ``total`` weights are kept."""
    return round((1 - sparsity) * total)


def keep_units(scores: Tensor, signature: Tensor, sparsity: float) -> Tensor:
    """Mask of the output channels to keep, the same fraction of every class.

    Args:
        scores: Shape (units,).
        signature: Integer class of each unit, shape (units,). Classes are thinned alike where
            the structure needs it, such as the groups of a grouped convolution.
        sparsity: 0 <= sparsity < 1; ``round(sparsity * size)`` of each class are removed, but
            never the last one.

    Returns:
        Bool, shape (units,).
    """
    keep = torch.ones_like(scores, dtype=torch.bool)
    for value in signature.unique():
        members = (signature == value).nonzero().flatten()
        size = len(members)
        removed = lowest(scores[members], min(round(sparsity * size), size - 1))
        keep[members[removed]] = False
    return keep
