"""The composite agent: SAC for amounts and a Rainbow for methods, in one algorithm of RLlib."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.sac import SAC
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS
from ray.rllib.utils.metrics import EPISODE_RETURN_MEAN
from ray.rllib.utils.metrics import TD_ERROR_KEY

from envs.accuracy import AccuracySource
from envs.composite import AMOUNTS_AGENT
from envs.composite import COMPOSITE_AGENTS
from envs.composite import METHOD_AGENT
from envs.compression_env import CompositeEnv
from envs.episode import TARGETS
from envs.problem import CompressionProblem
from search.agents import EPISODES_PER_ROUND
from search.agents import Agents
from search.agents import build
from search.agents import in_process
from search.composite_modules import Actor
from search.composite_modules import ActorCatalog
from search.composite_modules import CompositeModule
from search.composite_modules import Rainbow
from search.composite_modules import RainbowCatalog
from search.composite_walks import EPSILON
from search.composite_walks import CompositeRunner
from search.composite_walks import Walks
from search.composite_walks import demonstrate
from search.composite_walks import paid
from search.policy_settings import DEFAULT_SETTINGS
from search.policy_settings import PolicySettings
from search.replay import WalkReplay

LEARNING_RATE = 2e-3
BATCH = 256
"""Transitions of each agent in a gradient step."""
STEPS_PER_ROUND = 32
"""Gradient steps after every ``EPISODES_PER_ROUND`` walks."""
STEPS_PER_WALK = 16
"""Gradient steps after every walk that took a true evaluation."""
STEPS_PER_UPDATE = 8
"""Gradient steps between two moves of the target networks."""
TAU = 0.05
INITIAL_ALPHA = 0.02
N_STEPS = {AMOUNTS_AGENT: 1, METHOD_AGENT: 3}
"""Rewards that each agent adds up before it asks for a value."""
RAINBOW = {"double_q": True, "dueling": True, "num_atoms": 21, "v_min": -5.0, "v_max": 2.0}
"""Values are what the rest of a walk adds to the score: seldom more than halving energy thrice."""


class CompositeConfig(SACConfig):
    """SAC's configuration, with what the loss of DQN reads."""

    def __init__(self) -> None:
        super().__init__(algo_class=Composite)
        for name, value in RAINBOW.items():
            setattr(self, name, value)
        self.td_error_loss_fn = "huber"
        self.burn_in_len = 0
        self.settings = DEFAULT_SETTINGS


class CompositeLearner(SACTorchLearner):
    """Trains ``amounts`` by SAC's losses and ``method`` by DQN's."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        if module_id == AMOUNTS_AGENT:
            super().configure_optimizers_for_module(module_id, config)
            return
        parameters = self.get_parameters(self.module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.Adam(parameters),
            params=parameters,
            lr_or_lr_schedule=self.config.actor_lr,
        )

    def _get_target_entropy(self, module_id: str) -> float:
        # Not by RLlib's configuration, which drops every value that equals -1.
        target: float = self.config.settings.target_entropy
        return target

    def compute_loss_for_module(self, *, module_id: str, **kwargs: Any) -> torch.Tensor:
        learner = SACTorchLearner if module_id == AMOUNTS_AGENT else DQNTorchLearner
        loss: torch.Tensor = learner.compute_loss_for_module(self, module_id=module_id, **kwargs)
        return loss

    def compute_gradients(self, loss_per_module: dict[str, Any], **kwargs: Any) -> Any:
        # SAC takes the gradients of its losses one by one. No two of them share a parameter, so
        # those of their sum are the same, in one pass backward.
        self._temp_losses.clear()
        return TorchLearner.compute_gradients(self, loss_per_module, **kwargs)


class Composite(SAC):
    """Plays walks, keeps them, and updates both agents from what it kept."""

    walks: WalkReplay
    played = 0
    """Walks so far; exploration fades with them."""

    @classmethod
    def get_default_config(cls) -> CompositeConfig:
        return CompositeConfig()

    def setup(self, config: Any) -> None:
        super().setup(config)
        buffer = self.config.replay_buffer_config
        game = self.env_runner.game
        # Where all is paid at the end, that is what decisions are judged by.
        n_steps = N_STEPS if game.accuracy.is_cheap else dict.fromkeys(N_STEPS, len(game.layers))
        capacity = self.config.settings.replay_walks
        self.walks = WalkReplay(game, capacity, n_steps, buffer["alpha"], buffer["beta"])
        # Of one method there is nothing to learn, and RLlib compares values of several.
        has_choice = len(game.problem.space.methods) > 1
        self._learning = COMPOSITE_AGENTS if has_choice else (AMOUNTS_AGENT,)

    def training_step(self) -> None:
        walks = self.play(EPISODES_PER_ROUND)
        self.walks.add(walks)
        returns = float(walks.rewards.sum(axis=1).mean())
        self.metrics.log_value((ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN), returns, window=1)
        self.update(STEPS_PER_ROUND)
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True
        )

    def play(self, count: int, freedom: float = 1.0) -> Walks:
        """Explore at drawn targets.

        Args:
            count: Walks.
            freedom: What the share of blindly drawn methods and the spread of amounts are
                multiplied by.
        """
        runner, settings = self.env_runner, self.config.settings
        fading = max(0.0, 1.0 - self.played / settings.exploring_walks)
        epsilon = EPSILON + (settings.first_epsilon - EPSILON) * fading
        self.played += count
        walks: Walks = runner.play(
            runner.draw_targets(count), runner.rng, min(1.0, epsilon * freedom), freedom
        )
        return walks

    def update(self, steps: int) -> None:
        """Learn from what was kept by at least so many gradient steps."""
        for _ in range(0, steps, STEPS_PER_UPDATE):
            self._update()

    def _update(self) -> None:
        rng = self.env_runner.rng
        size = STEPS_PER_UPDATE * BATCH
        drawn = {agent: self.walks.sample(agent, size, rng) for agent in self._learning}
        batches = {agent: SampleBatch(columns) for agent, (_, columns) in drawn.items()}
        (results,) = self.learner_group.update(
            batch=MultiAgentBatch(batches, env_steps=size), minibatch_size=BATCH
        )
        for agent, (where, _) in drawn.items():
            errors = np.asarray(results[agent].pop(TD_ERROR_KEY).peek())
            self.walks.prioritize(agent, where, errors.reshape(-1))


class CompositeAgents(Agents):
    """The composite agent's checkpoint holds its replay and its temperature too."""

    def use(self, accuracy: AccuracySource) -> None:
        super().use(accuracy)
        self.algorithm.walks.appraise()

    def walk(self, count: int, freedom: float = 1.0) -> Walks:
        walks: Walks = self.algorithm.play(count, freedom)
        return walks

    def learn(self, walked: Iterable[tuple[Walks, NDArray[np.float64]]]) -> None:
        """Add walks to the replay once it is known what they lose, and train on all in it."""
        added = [paid(walks, drops) for walks, drops in walked]
        for walks in added:
            self.algorithm.walks.add(walks)
        self.algorithm.update(STEPS_PER_WALK * sum(len(walks.targets) for walks in added))
        self._share_weights()

    def imitate(
        self, choices: NDArray[np.int64], targets: NDArray[np.float64], epochs: int
    ) -> None:
        """Replay the walks that lead to given configurations beside their own, once in the replay
        whatever ``epochs`` says: both learn from anyone's walks.
        """
        self.algorithm.walks.add(demonstrate(self.algorithm.env_runner.game, choices, targets))

    def _state(self) -> dict[str, Any]:
        learner = self.algorithm.learner_group._learner
        return super()._state() | {
            "log_alpha": learner.curr_log_alpha[AMOUNTS_AGENT].detach(),
            "replay": self.algorithm.walks.state(),
            "played": self.algorithm.played,
            "torch_rng": torch.get_rng_state(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        learner = self.algorithm.learner_group._learner
        with torch.no_grad():
            learner.curr_log_alpha[AMOUNTS_AGENT].copy_(state["log_alpha"])
        self.algorithm.walks.load(state["replay"])
        self.algorithm.played = state["played"]
        torch.set_rng_state(state["torch_rng"])  # SAC draws actions while it learns


def composite_modules(
    sizes: NDArray[np.int64], limited: bool, settings: PolicySettings = DEFAULT_SETTINGS
) -> MultiRLModuleSpec:
    """Both agents' networks, see ``search.learners.MakeModules``."""
    observations, actions = CompositeEnv.spaces(sizes, layers=1, limited=limited)
    network = DefaultModelConfig(fcnet_hiddens=list(settings.hidden_of("composite")))
    actor = RLModuleSpec(
        Actor,
        observations[AMOUNTS_AGENT],
        actions[AMOUNTS_AGENT],
        model_config=asdict(network) | {"twin_q": True},
        catalog_class=ActorCatalog,
    )
    rainbow = RLModuleSpec(
        Rainbow,
        observations[METHOD_AGENT],
        actions[METHOD_AGENT],
        model_config=asdict(network) | RAINBOW | {"epsilon": EPSILON},
        catalog_class=RainbowCatalog,
    )
    return MultiRLModuleSpec(
        multi_rl_module_class=CompositeModule,
        rl_module_specs={AMOUNTS_AGENT: actor, METHOD_AGENT: rainbow},
    )


def composite_agents(
    problem: CompressionProblem,
    accuracy: AccuracySource,
    seed: int = 0,
    targets: tuple[float, float] = TARGETS,
    settings: PolicySettings = DEFAULT_SETTINGS,
) -> CompositeAgents:
    """The composite agent on one compression problem, in this process.

    Args:
        problem: The network, the accelerator and the space.
        accuracy: Judges configurations; see :meth:`Agents.use` to replace it later.
        seed: Of the networks' weights, the actions and the targets.
        targets: Range of accuracy-drop limits, in points, that episodes draw from.
        settings: Of the networks, of exploration and of the replay.

    Raises:
        InputError: the targets are out of range, or nothing is to be decided.
    """
    learning_rate = settings.learning_rate or LEARNING_RATE
    config = (
        CompositeConfig()
        .learners(learner_class=CompositeLearner)
        .reporting(min_sample_timesteps_per_iteration=0, min_time_s_per_iteration=0)
        .training(
            gamma=1.0,
            tau=TAU,
            target_network_update_freq=0,
            actor_lr=learning_rate,
            critic_lr=learning_rate,
            alpha_lr=learning_rate,
            initial_alpha=INITIAL_ALPHA,
            replay_buffer_config={"no_local_replay_buffer": True},  # for ``Composite.walks``
        )
    )
    config.settings = settings
    env_config = {"problem": problem, "accuracy": accuracy, "targets": targets}
    modules = composite_modules(problem.space.sizes, bool(problem.limits.given), settings)
    return CompositeAgents(
        build(in_process(config, CompositeEnv, env_config, CompositeRunner, modules, seed))
    )
