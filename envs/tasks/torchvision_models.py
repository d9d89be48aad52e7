"""Networks of torchvision by their names."""

from __future__ import annotations

import difflib
from types import ModuleType

import torchvision

from hwmodel.errors import InputError


def require_model(prefix: str, model: str, module: ModuleType, example: str, kind: str) -> None:
    """Refuse a network that torchvision does not have.

    Args:
        prefix: What comes before the network in the name of its task.
        model: Name of the network.
        module: The one of ``torchvision.models`` that has those that are meant.
        example: Name of a network that there is.
        kind: What its networks do.

    Raises:
        InputError: names the task and networks whose names are similar.
    """
    known = torchvision.models.list_models(module=module)
    if model not in known:
        similar = ", ".join(difflib.get_close_matches(model, known)) or example
        allowed = f"use a {kind} network of {module.__name__}, such as {similar}"
        raise InputError("task", f"{prefix}{model}", allowed)
