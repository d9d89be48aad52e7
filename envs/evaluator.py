"""From a configuration to its accuracy, as fast as the machine allows."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import nn

from envs import integer
from envs.adversarial import ValueRange
from envs.adversarial import attacked
from envs.adversarial import differentiable
from envs.attack import Attack
from envs.compression import CompressedNetwork
from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import uniform
from envs.early_stopping import AccuracyLimit
from envs.early_stopping import SequentialTest
from envs.lowering import lower
from envs.resident import Part
from envs.resident import ResidentData
from envs.resident import images_in_cache
from envs.tasks import Task
from envs.tasks.task import Predict
from envs.tasks.task import top1
from hwmodel import InputError

BLOCKS = 10
"""Consecutive parts of a split whose accuracies are recorded apart, to tell chance from loss."""


@dataclass(frozen=True)
class EvaluationResult:
    """What a configuration reaches on one split.

    Attributes:
        accuracy: The task's metric, 0..1; an estimate where not all images were looked at.
        block_accuracies: The metric on ``BLOCKS`` consecutive parts of the split; NaN where it
            is not defined on one; empty where not all images were looked at.
        images: Images looked at.
        seconds: Wall time, compression included.
        holds_limit: Whether the loss is within the limit that was asked about, if one was.
        robust_accuracy: The metric under attack, 0..1, if one was asked about.
    """

    accuracy: float
    block_accuracies: tuple[float, ...]
    images: int
    seconds: float
    holds_limit: bool | None = None
    robust_accuracy: float | None = None


class Evaluator:
    """Measures configurations of one task; deterministic on one device.

    Accuracy under attack is so on a CPU; on a GPU it is as far as PyTorch's gradients are.

    Args:
        task: Gives data and metric.
        compressor: Gives the network and its compressed weights.
        device: Where the network runs.
    """

    def __init__(self, task: Task, compressor: Compressor, device: str = "cpu") -> None:
        self.task = task
        self.compressor = compressor
        self.device = torch.device(device)
        images = images_in_cache(compressor.network.workload)
        self._data = ResidentData(task, self.device, images)
        self._dense: dict[str, tuple[float, Tensor]] = {}
        self._allowed: ValueRange | None = None

    def with_compressor(self, compressor: Compressor) -> Evaluator:
        """One that measures what another compressor makes of the same network, on the same data."""
        other = copy.copy(self)
        other.compressor = compressor
        return other

    def evaluate(
        self,
        config: CompressionConfig,
        split: str,
        limit: AccuracyLimit | None = None,
        attack: Attack | None = None,
    ) -> EvaluationResult:
        """Accuracy of one configuration on one split of the task.

        Args:
            config: The configuration.
            split: Name of the split.
            limit: Stop as soon as it is known whether this limit holds. Only where the metric is
                the accuracy of single images and the split is kept in memory; elsewhere all
                images are looked at.
            attack: Measure the metric under this attack too.

        Raises:
            InputError: the configuration does not fit the network, the split does not exist, the
                metric is not a finite number, or the network cannot be attacked.
        """
        start = time.perf_counter()
        compressed = self.compressor.compress(config)
        module = self._load(compressed)
        if limit is not None and self.task.metric is top1 and self._data.is_shuffled(split):
            accuracy, blocks, images, holds = self._until_known(module, split, limit)
        else:
            parts = self._data.parts(split)
            outputs, targets = self._run(module, parts, self.task.predict)
            accuracy, blocks = self._metric(outputs, targets), self._blocks(outputs, targets)
            images, holds = len(outputs), None
            if limit is not None:
                loss = self._dense_scores(split)[0] - accuracy
                holds = 100 * loss <= limit.drop_points + 1e-9
        robust = None if attack is None else self._under_attack(compressed, module, split, attack)
        seconds = time.perf_counter() - start
        return EvaluationResult(accuracy, blocks, images, seconds, holds, robust)

    def require_attackable(self) -> None:
        """Raise InputError unless the network has what an attack needs: scores with gradients."""
        compressed = self.compressor.compress(uniform(self.compressor.network.names, 32))
        network = differentiable(self.compressor.network, compressed)
        inputs, targets = next(iter(self.task.split("calibration")))
        probe = Attack("fgsm", epsilon=0.01)
        attacked(network, inputs[:1], targets[:1], torch.zeros(1), ValueRange.of([inputs]), probe)

    def outputs(self, compressed: CompressedNetwork, split: str) -> tuple[Tensor, Tensor]:
        """Outputs of a compressed network on a split, (images, ...), and the targets."""
        return self._run(self._load(compressed), self._data.parts(split))

    def calibration_outputs(self, compressed: CompressedNetwork, images: int) -> Tensor:
        """Outputs of a compressed network for some calibration images, (images, ...)."""
        module = self._load(compressed)
        outputs: list[Tensor] = []
        with torch.inference_mode(), _full_precision():
            for part in self._data.parts("calibration"):
                outputs.append(module(part.inputs[:images]).float().cpu())
                images -= len(outputs[-1])
                if images <= 0:
                    break
        return torch.cat(outputs)

    def halve_batches(self) -> bool:
        """After running out of memory: half as many images at once; False where that was one."""
        torch.cuda.empty_cache()  # nothing where there is no GPU
        return self._data.halve()

    def _load(self, compressed: CompressedNetwork) -> nn.Module:
        integers = self.device.type == "cpu" and integer.is_available()
        return lower(self.compressor.network, compressed, integers).to(self.device)

    def _run(
        self, module: nn.Module, parts: Iterable[Part], predict: Predict | None = None
    ) -> tuple[Tensor, Tensor]:
        """Outputs, or what is predicted from them, and targets of parts in the split's order."""
        outputs, targets, rows = [], [], []
        with torch.inference_mode(), _full_precision():
            for part in parts:
                given = module(part.inputs).float()
                outputs.append((given if predict is None else predict(given)).cpu())
                targets.append(part.targets)
                rows.append(part.rows)
        order = torch.cat(rows).argsort()
        return torch.cat(outputs)[order], torch.cat(targets)[order]

    def _under_attack(
        self, compressed: CompressedNetwork, module: nn.Module, split: str, attack: Attack
    ) -> float:
        """The metric on images that are made to mislead this very network."""
        network = differentiable(self.compressor.network, compressed).to(self.device)
        parts = self._attacked(network, self._range_of_inputs(), split, attack)
        return self._metric(*self._run(module, parts, self.task.predict))

    def _attacked(
        self, network: nn.Module, allowed: ValueRange, split: str, attack: Attack
    ) -> Iterator[Part]:
        """The first images of a split, changed."""
        left = attack.images
        for part in self._data.parts(split):
            targets, rows = part.targets[:left], part.rows[:left]
            with torch.inference_mode(False), torch.enable_grad():
                inputs = part.inputs[:left].clone()  # what inference mode made has no gradients
                changed = attacked(network, inputs, targets, rows, allowed, attack)
            yield Part(changed, targets, rows)
            left -= len(rows)
            if left <= 0:
                return

    def _range_of_inputs(self) -> ValueRange:
        if self._allowed is None:
            batches = (inputs for inputs, _ in self.task.split("calibration"))
            self._allowed = ValueRange.of(batches).to(self.device)
        return self._allowed

    def _until_known(
        self, module: nn.Module, split: str, limit: AccuracyLimit
    ) -> tuple[float, tuple[float, ...], int, bool]:
        """Accuracy, its blocks, images looked at, and whether the limit holds."""
        dense_accuracy, dense = self._dense_scores(split)
        test = SequentialTest(len(dense), limit.drop_points / 100, limit.error_rate)
        outputs, targets, rows = [], [], []
        with torch.inference_mode(), _full_precision():
            for part in self._data.parts(split):
                outputs.append(module(part.inputs).float().cpu())
                targets.append(part.targets)
                rows.append(part.rows)
                losses = dense[part.rows] - _scores(outputs[-1], part.targets)
                if test.update(losses.numpy()) is not None:
                    break
        assert test.verdict is not None
        if test.seen < len(dense):
            return dense_accuracy - test.sum / test.seen, (), test.seen, test.verdict
        order = torch.cat(rows).argsort()
        whole = torch.cat(outputs)[order], torch.cat(targets)[order]
        return self._metric(*whole), self._blocks(*whole), test.seen, test.verdict

    def _dense_scores(self, split: str) -> tuple[float, Tensor]:
        """Metric of the uncompressed network, and which images it gets right, (images,)."""
        if split not in self._dense:
            dense = self.compressor.compress(uniform(self.compressor.network.names, 32))
            parts = self._data.parts(split)
            outputs, targets = self._run(self._load(dense), parts, self.task.predict)
            scores = _scores(outputs, targets) if self.task.metric is top1 else torch.empty(0)
            self._dense[split] = self._metric(outputs, targets), scores
        return self._dense[split]

    def _metric(self, outputs: Tensor, targets: Tensor) -> float:
        value = float(self.task.metric(outputs, targets))
        if not math.isfinite(value):
            raise InputError(f"metric of {self.task.name}", value, "it must be a finite number")
        return value

    def _blocks(self, outputs: Tensor, targets: Tensor) -> tuple[float, ...]:
        """The metric on parts of a split; one on which it is not defined gives NaN."""
        parts = zip(outputs.chunk(BLOCKS), targets.chunk(BLOCKS), strict=True)
        return tuple(float(self.task.metric(*part)) for part in parts)


def _scores(outputs: Tensor, targets: Tensor) -> Tensor:
    """Which images are right: their part in :func:`envs.tasks.task.top1`, float64."""
    return (outputs.argmax(1) == targets).double()


def _full_precision() -> AbstractContextManager[None]:
    """Convolutions on a GPU in single precision, not TF32, and the same in every run."""
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that a device, or the host, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "allocate memory" in str(error)  # torch's CPU allocator raises a RuntimeError


def weights_hash(network: nn.Module) -> str:
    """Content hash of a network's parameters and buffers, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]
