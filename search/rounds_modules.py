"""The policy network for whole configurations: one encoder for all layers, and attention."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor
from torch import nn

from search.agents import cautious_logits
from search.policy_settings import HEADS

LAYER_VALUES = "layer_values"
"""Column of what each layer's part of a decision is expected to add to the score."""


class LayersModule(TorchRLModule, ValueFunctionAPI):
    """Encodes every layer alike, lets layers attend to each other, and decides about each.

    Nothing in it depends on how many layers there are, or on their order but for what the
    observation says of it: a policy plays networks of any length.
    """

    def setup(self) -> None:
        _, features = self.observation_space.shape
        sizes = [int(size) for size in self.action_space.nvec[:2]]
        self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(
            space=self.action_space, input_lens=self.action_space.nvec.tolist()
        )
        width, *_ = hidden = self.model_config["hidden"]
        self._encode = nn.Linear(features, width)
        self._blocks = nn.ModuleList(_Block(width) for _ in hidden)
        self._normalize = nn.LayerNorm(width)
        self._decide = nn.Linear(width, sum(sizes))
        self._value = nn.Linear(width, 1)
        with torch.no_grad():
            self._decide.weight.mul_(0.01)
            self._decide.bias.copy_(cautious_logits(self.model_config["agent"], sizes))
            self._value.weight.zero_()
            self._value.bias.zero_()

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Logits of all layers' actions, layer by layer, (batch, layers * sum of sizes)."""
        layers = self._encode(batch[Columns.OBS])
        for block in self._blocks:
            layers = block(layers)
        layers = self._normalize(layers)
        return {
            Columns.ACTION_DIST_INPUTS: self._decide(layers).flatten(1),
            LAYER_VALUES: self._value(layers).squeeze(-1),
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """What a decision is expected to add to the score, (batch,); RLlib's PPO asks for it."""
        return self._forward(batch)[LAYER_VALUES].sum(dim=-1)


class _Block(nn.Module):
    """Pre-norm self-attention and a small network, both added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, layers: Tensor) -> Tensor:
        batch, count, width = layers.shape
        joined = self.queries_keys_values(self.before_attention(layers))
        by_head = joined.view(batch, count, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*by_head)
        layers = layers + self.mix(attended.transpose(1, 2).reshape(batch, count, width))
        return layers + self.network(layers)
