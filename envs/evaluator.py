"""From a configuration to its accuracy: one network skeleton whose weights are swapped in place."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import nn

from envs.compression import CompressedNetwork
from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.quantization import ActivationRange
from envs.quantization import quantize_activation
from envs.removal import remove_channels
from envs.tasks import Task
from hwmodel import InputError
from hwmodel import Workload

BLOCKS = 10
"""Consecutive parts of a split whose accuracies are recorded apart, to tell chance from loss."""

_RESIDENT_BYTES = 4 << 30

_CACHED_BYTES = 8 << 20
"""Feature maps of this size stay in a core's cache from one operation to the next."""
_FEWEST_IMAGES = 8


@dataclass(frozen=True)
class EvaluationResult:
    """What a configuration reaches on one split.

    Attributes:
        accuracy: The task's metric, 0..1.
        block_accuracies: The metric on ``BLOCKS`` consecutive parts of the split; NaN where it
            is not defined on one.
        images: Images looked at.
        seconds: Wall time, compression included.
    """

    accuracy: float
    block_accuracies: tuple[float, ...]
    images: int
    seconds: float


class QuantizedInput(nn.Module):
    """Rounds what passes to a grid that can be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.range = ActivationRange(bits=32)

    def forward(self, x: Tensor) -> Tensor:
        return quantize_activation(x, self.range)


class Evaluator:
    """Measures configurations of one task; deterministic on one device.

    Args:
        task: Gives data and metric.
        compressor: Gives the network and its compressed weights.
        device: Where the network runs.
    """

    def __init__(self, task: Task, compressor: Compressor, device: str = "cpu") -> None:
        self.task = task
        self.compressor = compressor
        self.device = torch.device(device)
        self._module = compressor.network.graph_module.to(self.device)
        self._inputs: list[QuantizedInput] = []
        for index in range(len(compressor.network.layers)):
            quantizer = QuantizedInput()
            setattr(self._module, f"input_{index}", quantizer)
            self._inputs.append(quantizer)
        self._resident: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._images_at_once = _images_at_once(compressor.network.workload)

    def evaluate(self, config: CompressionConfig, split: str) -> EvaluationResult:
        """Accuracy of one configuration on one split of the task.

        Raises:
            InputError: the configuration does not fit the network, the split does not exist, or
                the metric is not a finite number.
        """
        start = time.perf_counter()
        outputs, targets = self.outputs(self.compressor.compress(config), split)
        accuracy = self._metric(outputs, targets)
        parts = zip(outputs.chunk(BLOCKS), targets.chunk(BLOCKS), strict=True)
        # A metric may not be defined on a part of a split: that block is NaN.
        blocks = tuple(float(self.task.metric(*part)) for part in parts)
        return EvaluationResult(accuracy, blocks, len(outputs), time.perf_counter() - start)

    def outputs(self, compressed: CompressedNetwork, split: str) -> tuple[Tensor, Tensor]:
        """Outputs of a compressed network on a split, (images, ...), and the targets."""
        module = self._load(compressed)
        outputs, targets = [], []
        with torch.inference_mode():
            for inputs, labels in self._batches(split):
                outputs.append(module(inputs).float().cpu())
                targets.append(labels)
        return torch.cat(outputs), torch.cat(targets)

    def log_probabilities(self, compressed: CompressedNetwork, images: int) -> Tensor:
        """Log-softmax of the outputs for the first calibration images, (images, classes, ...)."""
        module = self._load(compressed)
        outputs: list[Tensor] = []
        with torch.inference_mode():
            for inputs, _ in self._batches("calibration"):
                outputs.append(module(inputs[:images]).float().cpu())
                images -= len(outputs[-1])
                if images <= 0:
                    break
        return torch.cat(outputs).log_softmax(dim=1)

    def _load(self, compressed: CompressedNetwork) -> nn.Module:
        """A module with the compressed weights: the skeleton, or a smaller one."""
        if bool(compressed.removed_units.any()):
            return self._smaller(compressed)
        for index, layer in enumerate(compressed.layers):
            weight = self._module.get_parameter(f"weight_{index}")
            if weight.ndim == 4 and not weight.is_contiguous(memory_format=torch.channels_last):
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
            weight.data.copy_(layer.weight)
            self._module.get_parameter(f"bias_{index}").data.copy_(layer.bias)
            self._inputs[index].range = layer.input_range
        return self._module

    def _smaller(self, compressed: CompressedNetwork) -> nn.Module:
        """The network without its removed channels: what an export runs, and faster."""
        module = remove_channels(self.compressor.network, compressed).to(self.device)
        for buffer in module.buffers():
            if buffer.ndim == 4:
                buffer.data = buffer.data.contiguous(memory_format=torch.channels_last)
        return module

    def _batches(self, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The split's batches on the device, kept there if all of them fit."""
        if split in self._resident:
            yield from self._resident[split]
            return
        kept: list[tuple[Tensor, Tensor]] | None = []
        size = 0
        for inputs, targets in self.task.split(split):
            inputs = inputs.to(self.device)
            if inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            size += inputs.nbytes
            parts = self._parts(inputs, targets)
            kept = None if kept is None or size > _RESIDENT_BYTES else [*kept, *parts]
            yield from parts
        if kept is not None:
            self._resident[split] = kept

    def _parts(self, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        if self.device.type != "cpu":
            return [(inputs, targets)]
        # Parts of equal size: a network may treat a batch of one differently.
        count = -(-len(inputs) // self._images_at_once)
        return list(zip(inputs.tensor_split(count), targets.tensor_split(count), strict=True))

    def _metric(self, outputs: Tensor, targets: Tensor) -> float:
        value = float(self.task.metric(outputs, targets))
        if not math.isfinite(value):
            raise InputError(f"metric of {self.task.name}", value, "it must be a finite number")
        return value


def _images_at_once(workload: Workload) -> int:
    """Images whose largest feature map fits a core's cache."""
    largest = max(
        max(
            layer.in_channels * layer.in_height * layer.in_width,
            layer.out_channels * layer.out_height * layer.out_width,
        )
        for layer in workload.layers
    )
    return max(_FEWEST_IMAGES, _CACHED_BYTES // (4 * largest))


def weights_hash(network: nn.Module) -> str:
    """Content hash of a network's parameters and buffers, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]
