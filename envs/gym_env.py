"""The compression game for every other RL library: one agent, ``joulecut/Compression-v0``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from envs.accuracy import AccuracySource
from envs.env_arguments import check_action
from envs.env_arguments import choose_target
from envs.env_arguments import explained
from envs.env_arguments import outcome
from envs.env_arguments import read_game
from envs.episode import TARGETS
from envs.episode import Episode
from envs.observation import observation_size
from envs.problem import CompressionProblem


class GymCompressionEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.int64]]):
    """Find how to prune and quantize every layer of one network, one layer at each step.

    ## Description
    The game of ``CompressionEnv`` with one agent that takes the decisions of both: an episode
    walks through the layers in execution order and decides all about one layer at each step.

    ## Action Space
    ``MultiDiscrete([methods, sparsities, weight widths, activation widths])``: the columns of a
    choice, see ``SearchSpace``.

    ## Observation Space
    ``Box(-1, 1, (OBSERVATION_SIZE,), float32)``: what the ``pruning`` agent sees at the layer.

    ## Action Masking
    Where the problem has limits, ``info["action_mask"]`` is a bool array of the shape
    ``action_space.nvec``: whether ``mask[tuple(action)]`` leaves a way to hold them. Libraries that
    mask each of the four indices by itself may take ``mask.any(axis=...)`` over the others.

    ## Rewards
    The change of the score ``-ln(cost_ratio) - 2 ln(max(1, drop / target))`` with the layer's
    decisions; where accuracy is expensive, 0 until the last layer pays it all.

    ## Starting State
    Nothing pruned, every width at 8 bits (or the widest there is). The target is drawn
    log-uniformly, or given: ``reset(options={"target": points})``.

    ## Episode End
    Terminates after the last layer; never truncates. The last ``info`` holds ``choice``,
    ``cost_ratio``, ``accuracy_drop``, ``target`` and ``score``.

    ## Arguments
    With ``gymnasium.make("joulecut/Compression-v0", ...)``: ``task`` and ``accelerator`` prepare a
    task by name, or ``problem`` and ``accuracy`` are what is prepared; ``targets`` is the range of
    targets, (low, high) in points.

    ## Version History
    * v0: first version.

    Raises:
        InputError: an argument, an option or an action is missing or out of range.
        RuntimeError: something failed inside the environment; the message says what.
    """

    def __init__(
        self,
        task: str | None = None,
        accelerator: str | None = None,
        problem: CompressionProblem | None = None,
        accuracy: AccuracySource | None = None,
        targets: tuple[float, float] = TARGETS,
    ) -> None:
        arguments = {
            "task": task,
            "accelerator": accelerator,
            "problem": problem,
            "accuracy": accuracy,
            "targets": targets,
        }
        with explained():
            self.game, self.targets = read_game(arguments)
        problem = self.game.problem
        shape = (observation_size(bool(problem.limits.given)),)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, shape, np.float32)
        self.action_space = gymnasium.spaces.MultiDiscrete(problem.space.sizes)
        self._episode: Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; ``options`` may hold ``target``, in points."""
        super().reset(seed=seed)
        with explained():
            target = choose_target(self.np_random, self.targets, options)
            self._episode = Episode(self.game, np.array([target]))
            return self._episode.observe()[0], _info(self._episode)

    def step(
        self, action: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take both agents' decisions about the layer."""
        episode = self._episode
        if episode is None or episode.is_done:
            raise RuntimeError("call reset() before step()")
        with explained():
            row = check_action(self.action_space, action)[None]
            reward = float(episode.decide(row[:, :2])[0] + episode.decide(row[:, 2:])[0])
            return episode.observe()[0], reward, episode.is_done, False, _info(episode)


def _info(episode: Episode) -> dict[str, Any]:
    """The mask of the layer to decide about, or what came of the walk."""
    if episode.is_done:
        return outcome(episode)
    mask = episode.option_mask()
    return {} if mask is None else {"action_mask": mask[0]}
