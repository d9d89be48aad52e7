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

WIDTH = 64
HEADS = 4
BLOCKS = 1
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
        self._encode = nn.Linear(features, WIDTH)
        self._blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self._normalize = nn.LayerNorm(WIDTH)
        self._decide = nn.Linear(WIDTH, sum(sizes))
        self._value = nn.Linear(WIDTH, 1)
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

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH)
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, layers: Tensor) -> Tensor:
        batch, count, _ = layers.shape
        joined = self.queries_keys_values(self.before_attention(layers))
        by_head = joined.view(batch, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*by_head)
        layers = layers + self.mix(attended.transpose(1, 2).reshape(batch, count, WIDTH))
        return layers + self.network(layers)
