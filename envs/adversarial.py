"""Inputs changed a little so that a compressed network errs, with the network's own gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import fx
from torch import nn

from envs.attack import Attack
from envs.compression import CompressedNetwork
from envs.quantization import ActivationRange
from envs.quantization import in_steps
from envs.quantization import quantize_activation
from envs.quantization import undivided
from envs.removal import map_grids
from envs.removal import shrunk_graph
from envs.trace import TracedNetwork
from hwmodel.errors import InputError


class StraightThrough(nn.Module):
    """Rounds to a grid; gradients pass as if nothing were rounded, but not where it is clipped.

    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013.
    """

    def __init__(self, grid: ActivationRange) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        if self.grid.bits == 32:
            return x
        if self.grid.bits == 16:
            return x + (quantize_activation(x, self.grid) - x).detach()
        scaled = in_steps(x, self.grid)
        integers = scaled.detach().round().clamp_(self.grid.low, self.grid.high)
        # Values at an end of the grid pass too: zeros are at one, of images and after a ReLU.
        passed = scaled * ((scaled - integers).abs() <= 0.5)
        return (passed + (integers - passed).detach()) * self.grid.scale


class StraightThroughMap(StraightThrough):
    """The same for a map that others than layers read: what equalizes its channels is undone."""

    def forward(self, x: Tensor) -> Tensor:
        return undivided(super().forward(x), self.grid)


@dataclass(frozen=True)
class ValueRange:
    """Least and greatest values of inputs: one for each channel of images, or one for all.

    Attributes:
        low, high: Shapes that go with inputs (images, ...).
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> ValueRange:
        """Of batches (images, ...); those with four dimensions have channels in the second."""
        lows, highs = [], []
        for inputs in batches:
            axes = (0, 2, 3) if inputs.ndim == 4 else tuple(range(inputs.ndim))
            lows.append(inputs.amin(axes, keepdim=True))
            highs.append(inputs.amax(axes, keepdim=True))
        return cls(torch.stack(lows).amin(0), torch.stack(highs).amax(0))

    def to(self, device: torch.device) -> ValueRange:
        return ValueRange(self.low.to(device), self.high.to(device))


def differentiable(network: TracedNetwork, compressed: CompressedNetwork) -> fx.GraphModule:
    """A compressed network, channels removed, whose roundings let gradients pass."""
    removed = compressed.removed_units
    graph, tensors = shrunk_graph(network, compressed, removed)
    roundings = {
        f"input_{index}": StraightThrough(layer.input_range.of_channels(layer.kept_in))
        for index, layer in enumerate(compressed.layers)
    }
    maps = {
        f"map_{number}": StraightThroughMap(grid)
        for number, grid in enumerate(map_grids(network, compressed, removed))
    }
    return fx.GraphModule({**tensors, **roundings, **maps}, graph).eval()


def attacked(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor,
    allowed: ValueRange,
    attack: Attack,
) -> Tensor:
    """Inputs that a network is likelier to be wrong about.

    Args:
        network: With gradients, see :func:`differentiable`.
        inputs: Shape (images, ...).
        targets: Classes, int64, (images, ...); those that no output stands for do not count.
        rows: Numbers of the images, int64, (images,): an image's random start depends on its own
            alone.
        allowed: Range of the inputs, which they are not made to leave.
        attack: How they are changed.

    Returns:
        Shape of ``inputs``.

    Raises:
        InputError: the network's outputs are not classes' scores, (images, classes, ...).
    """
    bound = attack.epsilon * (allowed.high - allowed.low)
    low = torch.maximum(inputs - bound, torch.minimum(allowed.low, inputs))
    high = torch.minimum(inputs + bound, torch.maximum(allowed.high, inputs))
    if attack.method == "fgsm":
        step, steps, changed = bound, 1, inputs
    else:
        step, steps = bound * (2.5 / attack.steps), attack.steps
        start = inputs + bound * _random_offsets(inputs, rows)
        changed = start.clamp(low, high)
    for _ in range(steps):
        uphill = _gradient(network, changed, targets).sign()
        changed = (changed + step * uphill).clamp(low, high)
    return changed


def _random_offsets(inputs: Tensor, rows: Tensor) -> Tensor:
    """Numbers from -1 to 1, of the shape of the inputs, given by each image's own number."""
    generator = torch.Generator()
    each = [
        torch.rand(inputs.shape[1:], generator=generator.manual_seed(row)) for row in rows.tolist()
    ]
    return (2 * torch.stack(each) - 1).to(inputs.device)


def _gradient(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of the cross-entropy by the inputs, times a positive number for each image, (images, ...)."""
    inputs = inputs.detach().requires_grad_()
    outputs = network(inputs)
    shape = tuple(outputs.shape)
    if len(shape) < 2 or shape[1] < 2 or shape[:1] + shape[2:] != targets.shape:
        allowed = "an attack needs scores (images, classes, ...) of two or more classes"
        raise InputError("outputs", shape, allowed)
    if not outputs.requires_grad:
        raise InputError("outputs", str(outputs.dtype), "an attack needs outputs with a gradient")
    if _are_probabilities(outputs):
        allowed = "an attack needs scores: leave the softmax out, which flattens gradients"
        raise InputError("outputs", "probabilities", allowed)
    slopes = _slopes(outputs.detach(), targets.to(outputs.device)).to(outputs.dtype)
    (gradient,) = torch.autograd.grad(outputs, inputs, slopes)
    return gradient


def _are_probabilities(outputs: Tensor) -> bool:
    sums = outputs.detach().sum(1)
    return bool((outputs >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def _slopes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Gradient of each image's cross-entropy by its outputs, times a positive number.

    The number makes the largest probability of a wrong class one: the plain gradient of a network
    that is sure is rounded to zero, which is no defence.

    Args:
        outputs: Scores, (images, classes, ...).
        targets: Classes, (images, ...); those that no output stands for do not count.
    """
    counts = ((targets >= 0) & (targets < outputs.shape[1])).unsqueeze(1)
    right = torch.zeros_like(outputs, dtype=torch.bool)
    right.scatter_(1, targets.unsqueeze(1).where(counts, 0), True)
    wrong = outputs.double().log_softmax(1).masked_fill(right | ~counts, -torch.inf)
    largest = wrong.flatten(1).amax(1).clamp_min(torch.finfo(wrong.dtype).min)
    slopes = (wrong - largest.view(-1, *[1] * (wrong.ndim - 1))).exp()
    return slopes - right * slopes.sum(1, keepdim=True)
