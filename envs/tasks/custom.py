"""A user's own task: a function that returns network, splits and metric, checked as it is read."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from envs.tasks.checks import CheckedDraw
from envs.tasks.checks import CheckedMetric
from envs.tasks.checks import CheckedSplit
from envs.tasks.checks import check_batch
from envs.tasks.checks import checked_outputs
from envs.tasks.checks import first_batch
from envs.tasks.task import Task
from envs.tasks.task import summary
from envs.tasks.task import top1
from envs.tasks.weights import load_weights
from envs.tasks.weights import read_weights
from hwmodel.errors import InputError

OWN_SPLITS = ("calibration", "search", "test")
RESULT = "return a Task or (network, calibration, search, test) or the same and a metric"


def load(name: str, weights: str | None = None) -> Task:
    """Call the user's function and check what it returns.

    Args:
        name: ``module:function`` or ``path/to/file.py:function``. This code is run.
        weights: Weights to put into the network, see :func:`read_weights`.

    Raises:
        InputError: there is no such function, it raises, or what it returns is not a task. Later
            batches and metric values are checked as they come and raise the same.
    """
    task = _as_task(name, _call(name))
    if not isinstance(task.network, nn.Module):
        raise InputError("network", type(task.network).__name__, "use a torch.nn.Module")
    if not isinstance(task.chance, int | float) or not (
        math.isnan(task.chance) or 0 <= task.chance <= 1
    ):
        raise InputError("chance", task.chance, "use a number from 0 to 1")
    draw = task.fresh_calibration
    if draw is not None and not callable(draw):
        raise InputError("fresh_calibration", draw, "use a function of a seed, or leave it out")
    if weights is not None:
        load_weights(task.network, read_weights(weights), weights)
    network = task.network.cpu().float().eval()
    first = {split: first_batch(split, task.split(split)) for split in OWN_SPLITS}
    search_inputs, search_targets = first["search"]
    outputs = checked_outputs(network, search_inputs)
    classes = None
    if task.metric is top1:
        if outputs.ndim != 2:
            allowed = "top-1 needs outputs of shape (batch, classes); return a metric of your own"
            raise InputError("network output shape", tuple(outputs.shape), allowed)
        classes = outputs.shape[1]
    for split, (inputs, targets) in first.items():
        if inputs.shape[1:] != search_inputs.shape[1:]:
            allowed = f"use the shape of the search split, {tuple(search_inputs.shape[1:])}"
            raise InputError(f"{split} input shape", tuple(inputs.shape[1:]), allowed)
        check_batch(f"{split} batch 0", (inputs, targets), classes)
    metric = CheckedMetric(task.metric)
    metric(outputs if task.predict is None else task.predict(outputs), search_targets)
    return Task(
        name=task.name,
        network=network,
        calibration=CheckedSplit("calibration", task.calibration, classes),
        search=CheckedSplit("search", task.search, classes),
        test=CheckedSplit("test", task.test, classes),
        chance=1 / outputs.shape[1] if math.isnan(task.chance) else float(task.chance),
        metric=metric,
        predict=task.predict,
        fresh_calibration=None if draw is None else CheckedDraw(draw, classes),
    )


def _as_task(name: str, result: Any) -> Task:
    if isinstance(result, Task):
        return result
    if not isinstance(result, tuple | list) or len(result) not in (4, 5):
        raise InputError(name, type(result).__name__, RESULT)
    network, calibration, search, test, *rest = result
    metric = rest[0] if rest else top1
    if not callable(metric):
        raise InputError("metric", metric, "use a function of (outputs, targets)")
    module, _, function = name.rpartition(":")
    return Task(
        name=f"{Path(module).stem if module.endswith('.py') else module}:{function}",
        network=network,
        calibration=calibration,
        search=search,
        test=test,
        chance=math.nan,  # 1 / number of outputs, once that is known
        metric=metric,
    )


def _call(name: str) -> object:
    module_name, _, function_name = name.rpartition(":")
    try:
        if module_name.endswith(".py"):
            module = _import_file(Path(module_name))
        else:
            if os.getcwd() not in sys.path:  # an installed command does not search it
                sys.path.insert(0, os.getcwd())
            module = importlib.import_module(module_name)
    except InputError:
        raise
    except Exception as error:  # the user's code can raise anything
        raise InputError("task", name, f"import failed with {summary(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError("task", name, f"{module_name} has no function {function_name!r}")
    try:
        result: object = function()
    except InputError:
        raise
    except Exception as error:
        raise InputError("task", name, f"{function_name}() failed with {summary(error)}") from error
    return result


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError("task", str(path), "use a Python file that exists")
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # it may import what lies beside it, as a script may
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(f"joulecut_task_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # true of every .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pickling and dataclasses look classes up there
    spec.loader.exec_module(module)
    return module
