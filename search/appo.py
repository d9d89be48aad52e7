"""Agents that learn by RLlib's APPO, in one thread."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.appo import APPO
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.learner.utils import update_target_network
from ray.rllib.core.models.base import ACTOR
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS
from ray.rllib.utils.metrics import LEARNER_RESULTS
from ray.rllib.utils.schedules.scheduler import Scheduler

from envs.accuracy import AccuracySource
from envs.compression_env import CompressionEnv
from envs.episode import TARGETS
from envs.problem import CompressionProblem
from search.agents import EPISODES_PER_ROUND
from search.agents import Agents
from search.agents import build
from search.agents import in_process
from search.policy_settings import DEFAULT_SETTINGS
from search.policy_settings import PolicySettings
from search.ppo import CautiousModule
from search.ppo import open_logits
from search.ppo import ppo_modules
from search.walks import EpisodeRunner

MINIBATCH_EPISODES = 16
LEARNING_RATE = 1e-3


class TargetModule(CautiousModule, TargetNetworkAPI):
    """PPO's module, and its policy as it was when the update under way began.

    That policy is kept beside the module's weights, not among them: every update begins by copying
    it. So policies of PPO and APPO have the same weights.
    """

    def make_target_networks(self) -> None:
        self._target = [make_target_network(self.encoder), make_target_network(self.pi)]

    def get_target_network_pairs(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        return list(zip((self.encoder, self.pi), self._target, strict=True))

    def forward_target(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        encoder, policy = self._target
        logits = policy(encoder(batch)[ENCODER_OUT][ACTOR])
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: open_logits(logits, batch)}


class SynchronousLearner(APPOTorchLearner):
    """APPO's loss, in updates that are over when they return."""

    def build(self) -> None:
        TorchLearner.build(self)  # RLlib's APPO starts a thread here, in which all updates run
        agents = self.module.keys()
        self.entropy_coeff_schedulers_per_module = {
            agent: Scheduler(self.config.entropy_coeff, framework="torch") for agent in agents
        }
        self.curr_kl_coeffs_per_module = dict.fromkeys(agents, 0.0)
        for agent in agents:
            self.module[agent].unwrapped().make_target_networks()

    update = Learner.update

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        for agent in self.module.keys():  # noqa: SIM118 - RLlib's modules iterate otherwise
            for policy, target in self.module[agent].unwrapped().get_target_network_pairs():
                update_target_network(main_net=policy, target_net=target, tau=1.0)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        # RLlib's APPO counts steps here until its target networks are due.
        TorchLearner.after_gradient_based_update(self, timesteps=timesteps)


class SynchronousAPPO(APPO):
    """Plays, then updates, one after the other in this process: the same in every run."""

    def training_step(self) -> None:
        episodes = self.env_runner.sample(num_episodes=EPISODES_PER_ROUND)
        self.metrics.aggregate([self.env_runner.get_metrics()], key=ENV_RUNNER_RESULTS)
        results = self.learner_group.update(
            episodes=episodes,
            num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size,
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True
        )


def appo_modules(
    sizes: NDArray[np.int64], limited: bool, settings: PolicySettings = DEFAULT_SETTINGS
) -> MultiRLModuleSpec:
    """Both agents' networks, see ``search.learners.MakeModules``."""
    return ppo_modules(sizes, limited, module=TargetModule, settings=settings)


def appo_agents(
    problem: CompressionProblem,
    accuracy: AccuracySource,
    seed: int = 0,
    targets: tuple[float, float] = TARGETS,
    settings: PolicySettings = DEFAULT_SETTINGS,
) -> Agents:
    """Agents that APPO trains on one compression problem, in this process.

    Args:
        problem: The network, the accelerator and the space.
        accuracy: Judges configurations, and must be cheap; see :meth:`Agents.use`.
        seed: Of the networks' weights, the actions and the targets.
        targets: Range of accuracy-drop limits, in points, that episodes draw from.
        settings: Of the networks and of exploration.

    Raises:
        InputError: the targets are out of range, or nothing is to be decided.
    """
    free = sum(name not in problem.space.pinned for name in problem.space.layers)
    # V-trace cuts batches into trajectories as long as this: an agent's decisions and the step
    # that RLlib appends to them.
    trajectory = free + 1
    config = (
        APPOConfig(algo_class=SynchronousAPPO)
        .learners(learner_class=SynchronousLearner)
        .env_runners(rollout_fragment_length=trajectory)
        .reporting(min_sample_timesteps_per_iteration=0, min_time_s_per_iteration=0)
        .training(
            train_batch_size_per_learner=EPISODES_PER_ROUND * trajectory,
            minibatch_size=MINIBATCH_EPISODES * trajectory,
            num_epochs=8,
            lr=settings.learning_rate or LEARNING_RATE,
            gamma=1.0,
            entropy_coeff=settings.entropy_coefficient,
            use_kl_loss=False,
            clip_param=0.3,
            grad_clip=1.0,
        )
    )
    env_config = {"problem": problem, "accuracy": accuracy, "targets": targets}
    modules = appo_modules(problem.space.sizes, bool(problem.limits.given), settings)
    return Agents(
        build(in_process(config, CompressionEnv, env_config, EpisodeRunner, modules, seed))
    )
