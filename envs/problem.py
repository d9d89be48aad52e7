"""A compression problem: one network, one accelerator, one search space, priced from a table."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from envs.config import run_of
from envs.limits import NO_LIMITS
from envs.limits import CostLimits
from envs.options import OptionTable
from envs.preference import ENERGY_PJ
from envs.preference import CostFunction
from envs.space import ACTIVATION_BITS
from envs.space import METHOD
from envs.space import SPARSITY
from envs.space import WEIGHT_BITS
from envs.space import SearchSpace
from hwmodel import Accelerator
from hwmodel import CostReport
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel.pricing import Level


@dataclass(frozen=True)
class CompressionProblem:
    """All that is needed to price a choice and to learn about it, without running the network.

    Small and picklable: this is what goes to the processes of a cluster.

    Attributes:
        workload: Layers, in the order of ``space.layers``.
        accelerator: What the network runs on.
        space: What may be decided.
        table: What each option of each layer does to weights and outputs.
        level: Level of the hardware model, see ``hwmodel.cost``.
        limits: What an inference may cost at most at that level, besides energy.
        objective: What it is to cost as little of as possible at that level; energy in pJ unless
            ``Preference.over`` made another.
    """

    workload: Workload
    accelerator: Accelerator
    space: SearchSpace
    table: OptionTable
    level: Level = "mid"
    limits: CostLimits = NO_LIMITS
    objective: CostFunction = ENERGY_PJ

    def cost(self, choices: NDArray[np.int64]) -> CostReport:
        """Price choices of shape (candidates, layers, 4), which must be canonical."""
        return cost(self.workload, self.states(choices), self.accelerator, level=self.level)

    def states(self, choices: NDArray[np.int64]) -> LayerStates:
        """What the hardware sees of choices of shape (candidates, layers, 4)."""
        method, sparsity = choices[..., METHOD], choices[..., SPARSITY]
        weight, activation = choices[..., WEIGHT_BITS], choices[..., ACTIVATION_BITS]
        layer = np.arange(len(self.space.layers))
        activation_bits = self._activation_bits[layer, activation]
        kept_in, kept_out = self.table.channels(choices)
        density = self.table.weight_density[layer, method, sparsity, weight]
        rounded = np.minimum(density * self.table.density_left(choices), 1.0)
        density = np.where(self._only_rounds[method], rounded, density)
        states = LayerStates(
            in_channels=kept_in,
            out_channels=kept_out,
            weight_density=density,
            activation_density=self.table.activation_density[layer, activation],
            weight_bits=self._weight_bits[layer, weight],
            activation_bits=activation_bits,
            output_bits=activation_bits,
        )
        return with_runs(with_outputs(states, self.workload), self._runs[method, sparsity])

    @cached_property
    def _only_rounds(self) -> NDArray[np.bool_]:
        """Whether a method leaves all weights of the channels that stay, (methods,)."""
        return np.array(
            [granularity in ("none", "filter") for granularity, _ in self.space.methods]
        )

    @cached_property
    def _runs(self) -> NDArray[np.float64]:
        """(N, M) by method and sparsity, (methods, sparsities, 2)."""
        space = self.space
        return np.array(
            [
                [run_of(granularity, space.sparsities[index]) for index in indices]
                for (granularity, _), indices in zip(
                    space.methods, space.nearest_sparsity, strict=True
                )
            ],
            dtype=np.float64,
        )

    @cached_property
    def _weight_bits(self) -> NDArray[np.float64]:
        return self._menu(self.space.weight_bits, "weight_bits")

    @cached_property
    def _activation_bits(self) -> NDArray[np.float64]:
        return self._menu(self.space.activation_bits, "activation_bits")

    def _menu(self, bits: tuple[int, ...], key: str) -> NDArray[np.float64]:
        """Width by layer and index, shape (layers, widths); pinned layers have theirs at all."""
        menu = np.tile(np.array(bits, dtype=np.float64), (len(self.space.layers), 1))
        for name, decision in self.space.pinned.items():
            menu[self.space.layers.index(name)] = getattr(decision, key)
        return menu


def with_runs(states: LayerStates, runs: NDArray[np.float64]) -> LayerStates:
    """States whose layers hold at most N of every M weights, where their densities do so, too.

    Args:
        states: Of layers without such runs.
        runs: (N, M) of every layer, (candidates or nothing, layers, 2). A layer that is too narrow
            for whole runs may be denser than N / M: it stays unstructured.
    """
    n, m = np.broadcast_to(runs, (*states.weight_density.shape, 2)).transpose(2, 0, 1)
    holds = states.weight_density * m <= n
    return replace(states, weight_n=np.where(holds, n, 1.0), weight_m=np.where(holds, m, 1.0))


def with_outputs(states: LayerStates, workload: Workload) -> LayerStates:
    """States whose outputs are written as those who read them ask: see :func:`output_bits`.

    A map has the zeros of the widest of the layers that ask for it; what no layer reads, none.
    """
    asking, is_read = _asking(workload)
    bits = states.activation_bits[:, asking]
    written = bits.max(axis=2)
    density = np.where(bits == written[..., None], states.activation_density[:, asking], 0.0)
    return replace(
        states,
        output_bits=written,
        output_density=np.where(is_read, density.max(axis=2), 1.0),
    )


def output_bits(workload: Workload, activation_bits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits at which every layer's output is written: the widest that layers that read it ask for.

    What no layer reads but an operation, such as the addition of a shortcut, is written as the
    result of that operation is; what only the network's output reads, at the layer's own input
    width.

    Args:
        workload: Gives which layers ask for which map.
        activation_bits: Bits of every layer's input, shape (candidates, layers).

    Returns:
        Shape (candidates, layers).
    """
    asking, _ = _asking(workload)
    return np.asarray(activation_bits[:, asking].max(axis=2))


@functools.lru_cache(maxsize=64)
def _asking(workload: Workload) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The layers that ask for every layer's output, the last repeated, (layers, most), and whether
    a layer reads it, (layers,).
    """
    read = {writer for writers in workload.maps_read for writer in writers}
    asking = [list(asked) or [layer] for layer, asked in enumerate(workload.width_asked_by)]
    most = max(map(len, asking))
    padded = [layers + layers[-1:] * (most - len(layers)) for layers in asking]
    return np.array(padded, dtype=np.intp), np.isin(np.arange(len(workload)), list(read))
