"""Weights from files and from torch.hub, and putting them into a network, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch import nn

from envs.tasks.task import summary
from hwmodel.errors import InputError


def read_weights(source: str) -> dict[str, Tensor]:
    """Read a state dict from a file or from torch.hub.

    Args:
        source: Path of a ``.safetensors`` file, path of a torch file (a state dict, or a dict that
            has one under ``state_dict``; names may start with ``module.``), or
            ``hub:OWNER/REPO:ENTRY``, which downloads and runs that repository's code.

    Raises:
        InputError: the file is missing or damaged or holds more than tensors; the hub fails.
    """
    if source.startswith("hub:"):
        return _from_hub(source)
    path = Path(source)
    if not path.is_file():
        raise InputError("weights", source, "use a file that exists, or hub:OWNER/REPO:ENTRY")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            # weights_only: a pickle from elsewhere could otherwise run any code.
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError("weights", source, f"not a safetensors file ({error})") from None
    except Exception as error:  # of many kinds where torch's unpickler reads what is no checkpoint
        allowed = "use a .safetensors file or a torch file that holds tensors only"
        raise InputError("weights", source, f"{allowed} ({type(error).__name__})") from error
    return _state_dict(source, content)


def load_weights(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put ``state`` into ``network``; nothing changes unless all of it fits.

    Raises:
        InputError: a tensor is missing, unknown, of another shape or not finite; names the first.
    """
    expected = network.state_dict()
    for key, tensor in expected.items():
        if key.endswith("num_batches_tracked"):  # old checkpoints lack it; inference ignores it
            continue
        if key not in state:
            raise InputError("weights", source, f"it lacks {key!r} of shape {_shape(tensor)}")
        if state[key].shape != tensor.shape:
            allowed = f"{key!r} has shape {_shape(state[key])}, the network needs {_shape(tensor)}"
            raise InputError("weights", source, allowed)
        if not torch.isfinite(state[key]).all():
            raise InputError("weights", source, f"{key!r} holds values that are not finite")
    for key in state:
        if key not in expected:
            raise InputError("weights", source, f"the network has no {key!r}")
    network.load_state_dict(dict(state))


def _from_hub(source: str) -> dict[str, Tensor]:
    repository, _, entry = source.removeprefix("hub:").rpartition(":")
    if repository.count("/") != 1 or not entry:
        raise InputError("weights", source, "use hub:OWNER/REPO:ENTRY")
    try:
        network = torch.hub.load(repository, entry, pretrained=True, trust_repo=True, verbose=False)
    except Exception as error:  # the repository's own code can raise anything
        raise InputError("weights", source, f"torch.hub: {summary(error)}") from error
    return _state_dict(source, network)


def _state_dict(source: str, content: Any) -> dict[str, Tensor]:
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise InputError("weights", source, "use a state dict, tensors by parameter name")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            allowed = f"use a state dict; {key!r} is a {type(value).__name__}, not a tensor"
            raise InputError("weights", source, allowed)
    return {key.removeprefix("module."): value for key, value in content.items()}


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
