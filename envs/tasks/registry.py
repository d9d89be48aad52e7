"""Tasks by name."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor
from torch import nn

from envs.tasks import cifar
from envs.tasks import custom
from envs.tasks.task import Task
from hwmodel.errors import InputError

CIFAR10_PREFIX = "cifar10-resnet"
TORCHVISION_PREFIX = "torchvision:"
CITYSCAPES_PREFIX = "cityscapes:"


def load_task(name: str, *, data: str | None = None, weights: str | None = None) -> Task:
    """Load a network with its data.

    Args:
        name: One of :func:`task_names`.
        data: Folder of the data: for CIFAR-10 the one that holds ``cifar-10-batches-py`` (by
            default it is downloaded), for torchvision's networks one with ``train/`` and ``val/``,
            for Cityscapes one with ``leftImg8bit/`` and ``gtFine/``.
        weights: A ``.safetensors`` or torch file or ``hub:OWNER/REPO:ENTRY`` instead of the task's
            own weights; for torchvision's networks, also on Cityscapes, ``random`` too.

    Raises:
        InputError: no such task; data or weights are missing, damaged or do not fit; a user's own
            task is not as it should be.
    """
    if name == "digits":
        _refuse_data(name, data)
        from envs.tasks import digits  # scikit-learn: a second that other tasks' workers save

        return digits.load(weights)
    if (family := _family(name)) is not None:
        module, network = family
        task: Task = module.load(network, data, weights)
        return task
    if all(name.rpartition(":")):
        _refuse_data(name, data)
        return custom.load(name, weights)
    raise InputError("task", name, f"use one of {', '.join(known for known, _ in task_names())}")


def architecture(name: str) -> tuple[nn.Module, Tensor] | None:
    """A named task's network with random weights, and a batch of its inputs, without any data.

    Args:
        name: As for :func:`load_task`.

    Returns:
        None where only the task itself tells.

    Raises:
        InputError: no such network.
    """
    if (family := _family(name)) is None:
        return None
    module, network = family
    built: tuple[nn.Module, Tensor] = module.architecture(network)
    return built


def _family(name: str) -> tuple[ModuleType, int | str] | None:
    """The module whose tasks differ by their network alone, and the network that a name asks for.

    None where a task is one of its kind.
    """
    if name in _cifar10_names():
        return cifar, int(name.removeprefix(CIFAR10_PREFIX))
    if name.startswith(TORCHVISION_PREFIX):
        from envs.tasks import imagefolder  # torchvision: seconds that other tasks' workers save

        return imagefolder, name.removeprefix(TORCHVISION_PREFIX)
    if name.startswith(CITYSCAPES_PREFIX):
        from envs.tasks import cityscapes

        return cityscapes, name.removeprefix(CITYSCAPES_PREFIX)
    return None


def task_names() -> list[tuple[str, str]]:
    """Every task's name and one line about it; capitals stand for what the user fills in."""
    return [
        ("digits", "small CNN on scikit-learn's handwritten digits, trained at first use"),
        *((name, f"{name[8:]} on CIFAR-10, public checkpoint") for name in _cifar10_names()),
        ("torchvision:MODEL", "any classification network of torchvision; data: train/ and val/"),
        ("cityscapes:MODEL", "any segmentation network of torchvision on Cityscapes"),
        ("MODULE:FUNCTION", "your own network, data and metric, from an importable module"),
        ("FILE.py:FUNCTION", "the same from a Python file"),
    ]


def _cifar10_names() -> list[str]:
    return [f"{CIFAR10_PREFIX}{depth}" for depth in cifar.CHECKPOINT_FILES]


def _refuse_data(name: str, data: str | None) -> None:
    if data is not None:
        raise InputError("data", data, f"leave it out: task {name} brings its own")
