"""The learners: RLlib's PPO with one module per agent and a team reward."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from envs.accuracy import AccuracySource
from envs.compression_env import CompressionEnv
from envs.episode import AGENTS
from envs.episode import TARGETS
from envs.problem import CompressionProblem
from hwmodel.errors import InputError
from search.walks import WalkRunner
from search.walks import module_policy
from search.walks import walk

HIDDEN = (64, 64)
CAUTION = 1.0
"""Log-odds by which a new policy prefers a milder value of an action to the next harsher one."""
EPISODES_PER_ROUND = 32
"""Episodes between two updates of the policies."""
CHECKPOINT = "agents.pt"


class CautiousModule(DefaultPPOTorchRLModule):
    """PPO's module, whose new policy changes little: wide numbers, few weights removed.

    A network decided uniformly at random guesses; all that such episodes teach is that.
    """

    def setup(self) -> None:
        super().setup()
        output = [layer for layer in self.pi.modules() if isinstance(layer, torch.nn.Linear)][-1]
        with torch.no_grad():
            output.weight.mul_(0.01)
            first, second = (torch.arange(size) for size in self.action_space.nvec)
            if self.model_config["agent"] == "pruning":  # no method first, then low sparsities
                steps = [-first.clamp(max=1), -second]
            else:  # widths ascend
                steps = [first, second]
            output.bias.copy_(CAUTION * torch.cat(steps))


def build_ppo(
    problem: CompressionProblem,
    accuracy: AccuracySource,
    seed: int = 0,
    targets: tuple[float, float] = TARGETS,
) -> PPO:
    """PPO over one compression problem, in this process.

    Args:
        problem: The network, the accelerator and the space.
        accuracy: Judges configurations; see :func:`use_accuracy` to replace it later.
        seed: Of the networks' weights, the actions and the targets.
        targets: Range of accuracy-drop limits, in points, that episodes draw from.

    Raises:
        InputError: the targets are out of range, or nothing is to be decided.
    """
    # Small matrices: more threads only make the learner wait for them.
    torch.set_num_threads(1)
    env_config = {"problem": problem, "accuracy": accuracy, "targets": targets}
    CompressionEnv(env_config)  # RLlib hides what is wrong with these behind its own errors
    free = sum(name not in problem.space.pinned for name in problem.space.layers)
    network = DefaultModelConfig(fcnet_hiddens=list(HIDDEN), vf_share_layers=False)
    modules = {
        agent: RLModuleSpec(
            module_class=CautiousModule,
            model_config=asdict(network) | {"agent": agent},
        )
        for agent in AGENTS
    }
    batch = EPISODES_PER_ROUND * len(AGENTS) * free
    config = (
        PPOConfig()
        .environment(CompressionEnv, env_config=env_config)
        .env_runners(
            env_runner_cls=WalkRunner,
            num_env_runners=0,
            num_envs_per_env_runner=1,
            rollout_fragment_length="auto",
        )
        .learners(num_learners=0)
        .multi_agent(policies=set(AGENTS), policy_mapping_fn=lambda agent, episode, **_: agent)
        .rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=modules))
        .training(
            train_batch_size_per_learner=batch,
            minibatch_size=min(320, batch),
            num_epochs=10,
            lr=2e-3,
            gamma=1.0,
            lambda_=0.7,
            entropy_coeff=0.01,
            use_kl_loss=False,
            clip_param=0.3,
            vf_clip_param=100.0,
            grad_clip=1.0,
        )
        .debugging(seed=seed, log_level="ERROR")
    )
    algorithm = config.build_algo()
    with suppress(OSError):  # an empty folder of results in the user's home, which nobody fills
        Path(algorithm.logdir).rmdir()
    return algorithm


def use_accuracy(algorithm: PPO, accuracy: AccuracySource) -> None:
    """Judge the episodes to come by ``accuracy``: a predictor that has learnt more."""
    algorithm.env_runner.use(accuracy)


def train_episodes(algorithm: PPO, episodes: int) -> float:
    """Train for at least so many episodes.

    Returns:
        Mean return of the latest episodes: their score minus that of the start.
    """
    mean_return = 0.0
    for _ in range(0, episodes, EPISODES_PER_ROUND):
        result = algorithm.train()
        mean_return = float(result["env_runners"]["episode_return_mean"])
    return mean_return


def propose(
    algorithm: PPO, targets: NDArray[np.float64], rng: np.random.Generator | None
) -> NDArray[np.int64]:
    """Choices that the agents take at the given targets, all walks side by side.

    Args:
        algorithm: From :func:`build_ppo`.
        targets: Accepted accuracy drops in points, (candidates,).
        rng: Draws the actions; None takes the likeliest.

    Returns:
        Canonical choices, (candidates, layers, 4).
    """
    runner = algorithm.env_runner
    return walk(runner.game, targets, module_policy(runner.module), rng)


def save(algorithm: PPO, directory: Path) -> None:
    """Write what the agents learnt, and where their random numbers stand, to ``directory``."""
    learner = algorithm.learner_group._learner
    modules = {agent: learner.module[agent].unwrapped().state_dict() for agent in AGENTS}
    optimizers = {
        agent: [optimizer.state_dict() for _, optimizer in learner.get_optimizers_for_module(agent)]
        for agent in AGENTS
    }
    state = {
        "modules": modules,
        "optimizers": optimizers,
        "rng": algorithm.env_runner.rng.bit_generator.state,
    }
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{CHECKPOINT}"
    torch.save(state, partial)
    partial.replace(directory / CHECKPOINT)  # a kill leaves the old file or the new one


def restore(algorithm: PPO, directory: Path) -> None:
    """Continue from what :func:`save` wrote for the same problem.

    Raises:
        InputError: the file is missing, damaged, or belongs to another problem.
    """
    path = directory / CHECKPOINT
    learner = algorithm.learner_group._learner
    try:
        # Weights only: a run directory may come from someone else, and pickles run code.
        state = torch.load(path, weights_only=True)
        for agent in AGENTS:
            learner.module[agent].unwrapped().load_state_dict(state["modules"][agent])
            optimizers = learner.get_optimizers_for_module(agent)
            for (_, optimizer), values in zip(optimizers, state["optimizers"][agent], strict=True):
                optimizer.load_state_dict(values)
        algorithm.env_runner.rng.bit_generator.state = state["rng"]
    except Exception as error:  # torch and zipfile raise many kinds
        raise InputError("policies", str(path), f"use agents of this run ({error})") from None
    algorithm.env_runner_group.sync_weights(
        from_worker_or_learner_group=algorithm.learner_group, inference_only=True
    )
