"""Agents that decide about all layers at once and refine what they decided, trained by PPO."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from torch import Tensor

from envs.accuracy import AccuracySource
from envs.compression_env import RoundsEnv
from envs.episode import AGENTS
from envs.episode import TARGETS
from envs.episode import Episode
from envs.problem import CompressionProblem
from envs.rounds import ROUNDS
from envs.rounds import RoundsEpisode
from search.agents import Agents
from search.agents import build
from search.agents import in_process
from search.agents import two_modules
from search.policy_settings import DEFAULT_SETTINGS
from search.policy_settings import PolicySettings
from search.rounds_modules import LAYER_VALUES
from search.rounds_modules import LayersModule
from search.walks import EpisodeRunner
from search.walks import Turn

EPISODES_PER_UPDATE = 128
LEARNING_RATE = 5e-4
CREDIT = "credit"
"""Column of what each layer's part of a decision did add to the score."""


class RoundsRunner(EpisodeRunner):
    """Samples episodes of ``RoundsEnv`` with the credit of every layer."""

    def _add_columns(self, played: Episode, turns: list[Turn]) -> None:
        assert isinstance(played, RoundsEpisode)
        for turn, credit in zip(turns, played.credit, strict=True):
            turn.columns[CREDIT] = credit.astype(np.float32)


class LayerwiseLearner(PPOTorchLearner):
    """PPO's clipped objective for every layer's part of a decision, by that layer's own credit.

    A decision about 20 layers is 40 actions; with one advantage for all of them each drowns in
    what the others did. The advantage is the credit less what was expected of it. What a later
    round makes of it does not count: there everything is decided anew.
    """

    def compute_loss_for_module(
        self,
        *,
        module_id: str,
        config: PPOConfig,
        batch: dict[str, Tensor],
        fwd_out: dict[str, Tensor],
    ) -> Tensor:
        sizes = [int(size) for size in self.module[module_id].unwrapped().action_space.nvec[:2]]
        credit = batch[CREDIT]
        actions = batch[Columns.ACTIONS].view(*credit.shape, 2)
        now, entropy = _log_probability(fwd_out[Columns.ACTION_DIST_INPUTS], actions, sizes)
        before, _ = _log_probability(batch[Columns.ACTION_DIST_INPUTS], actions, sizes)
        counts = batch[Columns.LOSS_MASK][:, None].expand_as(credit)
        advantage = credit - batch[LAYER_VALUES]
        spread = advantage[counts].std().clamp(min=1e-4)
        advantage = (advantage - advantage[counts].mean()) / spread
        ratio = torch.exp(now - before)
        clipped = ratio.clamp(1 - config.clip_param, 1 + config.clip_param)
        surrogate = torch.minimum(advantage * ratio, advantage * clipped)
        value_error = ((fwd_out[LAYER_VALUES] - credit) / spread).square()
        loss = config.vf_loss_coeff * value_error - surrogate - config.entropy_coeff * entropy
        return loss[counts].mean()


def _log_probability(logits: Tensor, actions: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Of both actions of every layer together, and the entropy, (batch, layers) each.

    Args:
        logits: (batch, layers * sum of sizes).
        actions: (batch, layers, 2).
        sizes: Number of values of both actions.
    """
    total = torch.zeros(actions.shape[:2])
    entropy = torch.zeros(actions.shape[:2])
    parts = logits.view(*actions.shape[:2], sum(sizes)).split(sizes, dim=-1)
    for part, action in zip(parts, actions.long().unbind(-1), strict=True):
        log_probability = part.log_softmax(dim=-1)
        total = total + log_probability.gather(-1, action[..., None]).squeeze(-1)
        entropy = entropy - (log_probability.exp() * log_probability).sum(dim=-1)
    return total, entropy


def rounds_modules(
    sizes: NDArray[np.int64],
    limited: bool,
    layers: int = 1,
    settings: PolicySettings = DEFAULT_SETTINGS,
) -> MultiRLModuleSpec:
    """Both agents' networks, see ``search.learners.MakeModules``."""
    network = {"hidden": settings.hidden_of("ppo-rounds")}
    return two_modules(LayersModule, RoundsEnv.spaces(sizes, layers, limited), network)


def rounds_agents(
    problem: CompressionProblem,
    accuracy: AccuracySource,
    seed: int = 0,
    targets: tuple[float, float] = TARGETS,
    settings: PolicySettings = DEFAULT_SETTINGS,
) -> Agents:
    """Agents that play ``RoundsEnv`` on one compression problem, in this process.

    Args:
        problem: The network, the accelerator and the space.
        accuracy: Judges configurations, and must be cheap; see :meth:`Agents.use`.
        seed: Of the networks' weights, the actions and the targets.
        targets: Range of accuracy-drop limits, in points, that episodes draw from.
        settings: Of the networks and of exploration.

    Raises:
        InputError: the targets are out of range, or nothing is to be decided.
    """
    layers = sum(name not in problem.space.pinned for name in problem.space.layers)
    config = (
        PPOConfig()
        .learners(learner_class=LayerwiseLearner)
        .training(
            train_batch_size_per_learner=EPISODES_PER_UPDATE * len(AGENTS) * ROUNDS,
            minibatch_size=128,
            num_epochs=4,
            lr=settings.learning_rate or LEARNING_RATE,
            gamma=1.0,
            entropy_coeff=settings.entropy_coefficient,
            use_kl_loss=False,
            clip_param=0.3,
            vf_loss_coeff=0.5,
            grad_clip=1.0,
        )
    )
    env_config: dict[str, Any] = {"problem": problem, "accuracy": accuracy, "targets": targets}
    modules = rounds_modules(problem.space.sizes, bool(problem.limits.given), layers, settings)
    return Agents(
        build(in_process(config, RoundsEnv, env_config, RoundsRunner, modules, seed)),
        EPISODES_PER_UPDATE,
    )
