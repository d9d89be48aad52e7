"""Inputs changed a little so that a compressed network errs, with the network's own gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch import fx
from torch import nn
from torch.nn import functional as F

from envs.attack import Attack
from envs.compression import CompressedNetwork
from envs.config import FLOAT_BITS
from envs.quantization import ActivationRange
from envs.quantization import activation_integers
from envs.quantization import inverse_steps
from envs.quantization import quantize_activation
from envs.removal import shrunk_graph
from envs.trace import TracedNetwork
from hwmodel.errors import InputError

_IGNORED = -100
"""What ``cross_entropy`` takes for a target that does not count."""


class StraightThrough(nn.Module):
    """Rounds to a grid; gradients pass as if nothing were rounded, but not where it is clipped.

    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013.
    """

    def __init__(self, grid: ActivationRange) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        if self.grid.bits in FLOAT_BITS:
            return x + (quantize_activation(x, self.grid) - x).detach()
        steps = inverse_steps(self.grid, x.ndim)
        steps = steps if isinstance(steps, float) else steps.to(x.device)
        scaled, integers = x * steps, activation_integers(x.detach(), self.grid)
        # Values at an end of the grid pass too: zeros are at one, of images and after a ReLU.
        passed = scaled * ((scaled - integers).abs() <= 0.5)
        return (passed + (integers - passed).detach()) * self.grid.scale


@dataclass(frozen=True)
class ValueRange:
    """Least and greatest values of inputs: one for each channel of images, or one for all.

    Attributes:
        low, high: Shapes that go with inputs (images, ...).
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> ValueRange:
        """Of inputs (images, ...); those with four dimensions have channels in the second."""
        axes = (0, 2, 3) if inputs.ndim == 4 else tuple(range(inputs.ndim))
        return cls(inputs.amin(axes, keepdim=True), inputs.amax(axes, keepdim=True))


def differentiable(network: TracedNetwork, compressed: CompressedNetwork) -> fx.GraphModule:
    """A compressed network, channels removed, whose roundings let gradients pass."""
    graph, tensors = shrunk_graph(network, compressed, compressed.removed_units)
    roundings = {
        f"input_{index}": StraightThrough(layer.input_range.of_channels(layer.kept_in))
        for index, layer in enumerate(compressed.layers)
    }
    return fx.GraphModule({**tensors, **roundings}, graph).eval()


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
        changed = torch.minimum(torch.maximum(start, low), high)
    for _ in range(steps):
        uphill = _gradient(network, changed, targets).sign()
        changed = torch.minimum(torch.maximum(changed + step * uphill, low), high)
    return changed


def _random_offsets(inputs: Tensor, rows: Tensor) -> Tensor:
    """Numbers from -1 to 1, of the shape of the inputs, given by each image's own number."""
    generator = torch.Generator()
    each = [
        torch.rand(inputs.shape[1:], generator=generator.manual_seed(row)) for row in rows.tolist()
    ]
    return (2 * torch.stack(each) - 1).to(inputs.device)


def _gradient(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of the loss by the inputs, (images, ...)."""
    inputs = inputs.detach().requires_grad_()
    outputs = network(inputs)
    if outputs.ndim < 2 or outputs.shape[:1] + outputs.shape[2:] != targets.shape:
        shape = tuple(outputs.shape)
        raise InputError("outputs", shape, "an attack needs scores (images, classes, ...)")
    counts = (targets >= 0) & (targets < outputs.shape[1])
    targets = targets.where(counts, _IGNORED).to(outputs.device)
    loss = F.cross_entropy(outputs, targets, ignore_index=_IGNORED, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, inputs)
    return gradient
