"""Agents that learn by RLlib's PPO, one module per agent, with a team reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from envs.accuracy import AccuracySource
from envs.compression_env import CompressionEnv
from envs.episode import AGENTS
from envs.episode import TARGETS
from envs.problem import CompressionProblem
from search.agents import CAUTION
from search.agents import EPISODES_PER_ROUND
from search.agents import Agents
from search.agents import build
from search.agents import cautious_logits
from search.agents import in_process
from search.agents import two_modules
from search.policy_settings import DEFAULT_SETTINGS
from search.policy_settings import PolicySettings
from search.walks import ACTION_MASK
from search.walks import IMPOSSIBLE
from search.walks import EpisodeRunner

LEARNING_RATE = 3e-4
FEW_EPISODES: Mapping[str, Any] = {"lr": 5e-3, "num_epochs": 8, "lambda_": 1.0}
"""What differs where every episode takes a true evaluation: more is learnt from each, and since
all is paid at the end, decisions are judged by that and not by what is expected to come."""
FEW_EPISODES_CAUTION = 0.4
"""Caution of new policies there, which have no thousand episodes to get over it."""


class CautiousModule(DefaultPPOTorchRLModule):
    """PPO's module, whose new policy changes little; see :func:`cautious_logits`.

    Where a batch says which values were open, it learns from the logits that were drawn from.
    """

    def setup(self) -> None:
        super().setup()
        output = [layer for layer in self.pi.modules() if isinstance(layer, torch.nn.Linear)][-1]
        with torch.no_grad():
            output.weight.mul_(0.01)
            agent, caution = self.model_config["agent"], self.model_config["caution"]
            output.bias.copy_(cautious_logits(agent, self.action_space.nvec, caution))

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        output: dict[str, Any] = super()._forward_train(batch, **kwargs)
        logits = output[Columns.ACTION_DIST_INPUTS]
        output[Columns.ACTION_DIST_INPUTS] = open_logits(logits, batch)
        return output


def open_logits(logits: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
    """Logits that were drawn from where a batch says which values were open, else all of them."""
    if ACTION_MASK not in batch:
        return logits
    return logits.masked_fill(~batch[ACTION_MASK], IMPOSSIBLE)


def ppo_modules(
    sizes: NDArray[np.int64],
    limited: bool,
    caution: float = CAUTION,
    module: type[CautiousModule] = CautiousModule,
    settings: PolicySettings = DEFAULT_SETTINGS,
) -> MultiRLModuleSpec:
    """Both agents' networks, see ``search.learners.MakeModules``."""
    hidden = list(settings.hidden_of("ppo"))
    network = asdict(DefaultModelConfig(fcnet_hiddens=hidden, vf_share_layers=False))
    spaces = CompressionEnv.spaces(sizes, layers=1, limited=limited)
    return two_modules(module, spaces, network | {"caution": caution})


def ppo_agents(
    problem: CompressionProblem,
    accuracy: AccuracySource,
    seed: int = 0,
    targets: tuple[float, float] = TARGETS,
    settings: PolicySettings = DEFAULT_SETTINGS,
) -> Agents:
    """Agents that PPO trains on one compression problem, in this process.

    Args:
        problem: The network, the accelerator and the space.
        accuracy: Judges configurations; see :meth:`Agents.use` to replace it later.
        seed: Of the networks' weights, the actions and the targets.
        targets: Range of accuracy-drop limits, in points, that episodes draw from.
        settings: Of the networks and of exploration.

    Raises:
        InputError: the targets are out of range, or nothing is to be decided.
    """
    free = sum(name not in problem.space.pinned for name in problem.space.layers)
    batch = EPISODES_PER_ROUND * len(AGENTS) * free
    config = PPOConfig().training(
        train_batch_size_per_learner=batch,
        minibatch_size=min(320, batch),
        num_epochs=4,
        lr=LEARNING_RATE,
        gamma=1.0,
        lambda_=0.7,
        entropy_coeff=settings.entropy_coefficient,
        use_kl_loss=False,
        clip_param=0.3,
        vf_clip_param=100.0,
        grad_clip=1.0,
    )
    if not accuracy.is_cheap:
        config.training(**FEW_EPISODES)
    if settings.learning_rate is not None:
        config.training(lr=settings.learning_rate)
    caution = CAUTION if accuracy.is_cheap else FEW_EPISODES_CAUTION
    env_config = {"problem": problem, "accuracy": accuracy, "targets": targets}
    modules = ppo_modules(
        problem.space.sizes, bool(problem.limits.given), caution, settings=settings
    )
    return Agents(
        build(in_process(config, CompressionEnv, env_config, EpisodeRunner, modules, seed))
    )
