"""Networks of the composite agent: an actor, and a Rainbow that reads the actor's features."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from ray.rllib.algorithms.dqn.dqn_catalog import DQNCatalog
from ray.rllib.algorithms.dqn.dqn_learner import ATOMS
from ray.rllib.algorithms.dqn.dqn_learner import QF_LOGITS
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS
from ray.rllib.algorithms.dqn.dqn_learner import QF_PROBS
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.sac.sac_catalog import SACCatalog
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.utils.numpy import MAX_LOG_NN_OUTPUT
from ray.rllib.utils.numpy import MIN_LOG_NN_OUTPUT

from envs.composite import AMOUNTS
from envs.composite import AMOUNTS_AGENT
from envs.composite import METHOD_AGENT

MILD = 0.8
"""What a new actor takes of each amount: little pruned, numbers wide; from -1 to 1."""
SPREAD = 0.5
"""Standard deviation of a new actor's actions, before they are squashed."""


class StateActionEncoder(torch.nn.Module):
    """Hidden layers of a critic, which reads observations and actions side by side.

    RLlib's own encodes both apart and then once more together: three times the layers, and
    where networks are small, three times the time.
    """

    def __init__(self, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = pairwise([inputs, *hidden])
        layers = [part for a, b in sizes for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        both = torch.cat([batch[Columns.OBS], batch[Columns.ACTIONS]], dim=1)
        return {ENCODER_OUT: self.layers(both)}


class ActorCatalog(SACCatalog):
    """Builds SAC's networks with critics of a single stream."""

    def _build_qf_encoder_continuous(self, framework: str) -> StateActionEncoder:
        inputs = self.observation_space.shape[0] + self.action_space.shape[0]
        return StateActionEncoder(inputs, self._model_config_dict["fcnet_hiddens"])


class Actor(DefaultSACTorchRLModule):
    """SAC's module, whose new policy changes little, and whose features others may read."""

    def setup(self) -> None:
        super().setup()
        output = [layer for layer in self.pi.modules() if isinstance(layer, torch.nn.Linear)][-1]
        with torch.no_grad():
            output.weight.mul_(0.01)
            mean = math.atanh(MILD) * torch.tensor([-1.0, 1.0, 1.0])
            output.bias.copy_(torch.cat([mean, torch.full((3,), math.log(SPREAD))]))

    def distribution(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of actions (batch, 3) before a tanh squashes them."""
        mean, log_std = self.pi(self.features(observations)).chunk(2, dim=1)
        return mean, log_std.clamp(MIN_LOG_NN_OUTPUT, MAX_LOG_NN_OUTPUT).exp()

    def features(self, observations: torch.Tensor) -> torch.Tensor:
        """Last hidden layer of the actor for its observations, (batch, numbers)."""
        hidden: torch.Tensor = self.pi_encoder({Columns.OBS: observations})[ENCODER_OUT]
        return hidden


class RainbowCatalog(DQNCatalog):
    """Builds networks that read the actor's features too, and value streams over all atoms."""

    def __init__(
        self,
        observation_space: gymnasium.spaces.Box,
        action_space: gymnasium.spaces.Discrete,
        model_config_dict: dict[str, Any],
    ) -> None:
        size = observation_space.shape[0] + model_config_dict["fcnet_hiddens"][-1]
        both = gymnasium.spaces.Box(-1.0, 1.0, (size,), np.float32)
        super().__init__(both, action_space, model_config_dict)
        self.vf_head_config = self._get_head_config(output_layer_dim=self.num_atoms)


class Rainbow(DefaultDQNTorchRLModule):
    """A dueling network of return distributions (Hessel et al., AAAI 2018, equation for p).

    RLlib's own adds one number to the logits of all atoms, which a softmax undoes: its value
    stream is idle where returns are distributions. Here that stream has a logit for every atom.
    Noisy layers, which RLlib does not have either, are left out: exploration is epsilon-greedy.
    """

    features: Callable[[torch.Tensor], torch.Tensor]
    """Of the actor; set by :class:`CompositeModule`."""

    def _qf_forward_helper(
        self, batch: dict[str, Any], encoder: Any, head: Any
    ) -> dict[str, torch.Tensor]:
        seen = batch[Columns.OBS]
        with torch.no_grad():
            features = self.features(seen[:, : -len(AMOUNTS)])
        both = torch.cat([seen, features], dim=1)
        hidden = encoder({Columns.OBS: both})[ENCODER_OUT]
        advantage = head["af"](hidden).view(len(seen), -1, self.num_atoms)
        value = head["vf"](hidden).view(len(seen), 1, self.num_atoms)
        logits = value + advantage - advantage.mean(dim=1, keepdim=True)
        probabilities = torch.softmax(logits, dim=-1)
        atoms = torch.linspace(self.v_min, self.v_max, self.num_atoms)
        return {
            ATOMS: atoms,
            QF_LOGITS: logits,
            QF_PROBS: probabilities,
            QF_PREDS: (probabilities * atoms).sum(dim=-1),
        }


class CompositeModule(MultiRLModule):
    """Both networks; the Rainbow reads what the actor makes of the same observation.

    The published agent's Rainbow reads the features of its continuous actor. They are computed
    when they are read, so those of replayed steps are never stale, and no gradient flows back.
    """

    def setup(self) -> None:
        super().setup()
        # A method, not a module: the actor's weights are not the Rainbow's to train or to save.
        self._rl_modules[METHOD_AGENT].features = self._rl_modules[AMOUNTS_AGENT].features
