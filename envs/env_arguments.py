"""What the RLlib and the Gymnasium environment share: their arguments, checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.accuracy import AccuracySource
from envs.config import check_keys
from envs.episode import TARGETS
from envs.episode import Episode
from envs.episode import Game
from envs.episode import draw_target
from envs.problem import CompressionProblem
from hwmodel import load_accelerator
from hwmodel.errors import InputError

KEYS = {"problem", "accuracy", "task", "accelerator", "targets"}


def read_game(config: Mapping[str, Any]) -> tuple[Game, tuple[float, float]]:
    """The game and the range of targets that an environment's arguments ask for.

    Raises:
        InputError: a key is unknown or missing, or a value is out of range.
    """
    check_keys("env", config, required=set(), optional=KEYS)
    targets = _target_range(config.get("targets", TARGETS))
    given = {key for key, value in config.items() if value is not None} - {"targets"}
    if given == {"problem", "accuracy"}:
        return Game(config["problem"], config["accuracy"]), targets
    if given == {"task", "accelerator"}:
        return Game(*_prepare(config["task"], config["accelerator"])), targets
    allowed = "give either task and accelerator, or problem and accuracy"
    raise InputError("env", sorted(given), allowed)


def choose_target(
    rng: np.random.Generator, targets: tuple[float, float], options: Mapping[str, Any] | None
) -> float:
    """The target in ``options``, or one drawn from the range.

    Raises:
        InputError: an unknown option, or a target that is not a number above 0.
    """
    check_keys("options", options or {}, required=set(), optional={"target"})
    if not options or options.get("target") is None:
        return draw_target(rng, targets)
    return _points("options.target", options["target"])


def check_action(space: gymnasium.Space[Any], action: object) -> NDArray[Any]:
    """The action as an array of the space, which is MultiDiscrete, Discrete or a Box.

    Raises:
        InputError: the action does not lie in the space, or is missing.
    """
    values = np.asarray(action)
    if isinstance(space, gymnasium.spaces.Box):
        is_number = values.dtype.kind in "iuf" and values.shape == space.shape
        if not is_number or not np.all((values >= space.low) & (values <= space.high)):
            raise InputError("action", action, f"use {space.shape[0]} numbers from -1 to 1")
        return values.astype(np.float32)
    sizes = space.nvec if isinstance(space, gymnasium.spaces.MultiDiscrete) else space.n
    is_index = values.dtype.kind in "iu" and values.shape == space.shape
    if not is_index or not np.all((values >= 0) & (values < sizes)):
        raise InputError("action", action, f"use {np.size(sizes)} indices below {sizes}")
    return values.astype(np.int64)


def outcome(episode: Episode) -> dict[str, Any]:
    """What came of a single finished walk."""
    return {
        "choice": episode.choices[0],
        "cost_ratio": float(episode.cost_ratio[0]),
        "accuracy_drop": float(episode.accuracy_drop[0]),
        "target": float(episode.targets[0]),
        "score": float(episode.score[0]),
    }


@contextmanager
def explained() -> Iterator[None]:
    """Let failures reach the user with their text, which RLlib's own errors leave out.

    Raises:
        InputError: as it was.
        RuntimeError: anything else, with the type and the message of the original.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = f"the compression environment failed: {type(error).__name__}: {error}"
        raise RuntimeError(text) from error


@lru_cache(maxsize=4)
def _prepare(task: str, accelerator: str) -> tuple[CompressionProblem, AccuracySource]:
    """A task by name with measured accuracy; once, however many environments ask for it."""
    # Preparing a task needs torch; who brings a problem does not.
    from envs.measured import MeasuredAccuracy
    from envs.setup import Menu
    from envs.setup import prepare_evaluator
    from envs.setup import prepare_problem
    from envs.tasks import load_task

    chosen = load_accelerator(accelerator)
    evaluator = prepare_evaluator(load_task(task))
    problem = prepare_problem(evaluator, chosen, Menu())
    return problem, MeasuredAccuracy(evaluator, problem.space)


def _target_range(targets: object) -> tuple[float, float]:
    if not isinstance(targets, tuple | list) or len(targets) != 2:
        raise InputError("env.targets", targets, "use two accuracy drops in points: (low, high)")
    low, high = (_points("env.targets", value) for value in targets)
    if low > high:
        raise InputError("env.targets", targets, "use (low, high) with low <= high")
    return low, high


def _points(field: str, value: object) -> float:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 < float(value) < math.inf:  # type: ignore[arg-type]
        raise InputError(field, value, "use an accuracy drop in points, above 0")
    return float(value)  # type: ignore[arg-type]
