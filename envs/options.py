"""The option table: what each option of each layer leaves of its weights and does to its output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.space import METHOD
from envs.space import SPARSITY
from envs.space import WEIGHT_BITS


@dataclass(frozen=True)
class OptionTable:
    """Facts about single-layer options, indexed by the columns of a choice.

    L layers, M methods, S sparsities, W weight widths, A activation widths, G channel groups.

    Attributes:
        weight_density: Non-zero fraction of the weights left, (L, M, S, W); zeros that rounding
            makes are counted as zeros.
        column_density: What the removal of input channels by a group makes of that fraction where
            weights are only rounded: the channels that stay are those of large weights,
            (L, G, M, S, W); 1 where nothing is removed.
        activation_density: Non-zero fraction of the layer's quantized input, (L, A).
        weight_error: Squared error of the layer's output over its squared size when only its
            weights are replaced, (L, M, S, W). For a method that removes filters: the mean over
            the layers that read them, on the first layer of the group, plus the rounding error.
        activation_error: Squared rounding error of the layer's input over its squared size, (L, A).
        sensitivity: Squared change of the network's output, over its squared size, per unit of
            ``weight_error`` and of ``activation_error``, (L, 2), measured on calibration images
            with one layer replaced.
        kept_out: Output channels left if the layer's group uses a method and sparsity, (L, M, S);
            the dense number for methods that remove no filters.
        removed_in: Input channels that each channel group's removal takes from the layer,
            (L, G, M, S); 0 for methods that remove no filters.
        dense_in: Dense input channels, (L,).
        leaders: First layer of every channel group, (G,).
    """

    weight_density: NDArray[np.float64]
    column_density: NDArray[np.float64]
    activation_density: NDArray[np.float64]
    weight_error: NDArray[np.float64]
    activation_error: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    kept_out: NDArray[np.float64]
    removed_in: NDArray[np.float64]
    dense_in: NDArray[np.float64]
    leaders: NDArray[np.int64]

    def channels(
        self, choices: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Input and output channels left, each (candidates, layers), for canonical choices."""
        method, sparsity = choices[..., METHOD], choices[..., SPARSITY]
        layer = np.arange(choices.shape[-2])
        kept_out = self.kept_out[layer, method, sparsity]
        kept_in = np.broadcast_to(self.dense_in, kept_out.shape)
        if len(self.leaders):
            group, leads_method, leads_sparsity = self._leads(choices)
            removed = self.removed_in[:, group, leads_method, leads_sparsity]  # (L, candidates, G)
            kept_in = kept_in - removed.sum(axis=-1).T
        return kept_in, kept_out

    def density_left(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Density of rounded weights in the input channels left over that in all of them.

        Shape (candidates, layers), for canonical choices.
        """
        bits = choices[..., WEIGHT_BITS]
        left = np.ones(bits.shape)
        layer, group = self._reads
        if len(layer):
            _, leads_method, leads_sparsity = self._leads(choices)
            factors = self.column_density[
                layer, group, leads_method[:, group], leads_sparsity[:, group], bits[:, layer]
            ]
            first = np.flatnonzero(np.diff(layer, prepend=-1))
            left[:, layer[first]] = np.multiply.reduceat(factors, first, axis=1)
        return left

    @cached_property
    def _reads(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Layers and the groups whose channels they read, pair by pair, by ascending layer."""
        layer, group = np.nonzero(self.removed_in.any(axis=(2, 3)))
        return layer, group

    def _leads(
        self, choices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Groups, (groups,), and method and sparsity of their leaders, (candidates, groups)."""
        leads = choices[..., self.leaders, :]
        return np.arange(len(self.leaders)), leads[..., METHOD], leads[..., SPARSITY]
