"""A compression problem without a network: a small residual network and made-up sensitivities.

Every number follows the trend of real tables (rounding errors fall by four with every bit, errors
grow faster than sparsity, a few layers are far more sensitive than the others), so learners can
be judged against a known truth in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.config import LayerDecision
from envs.options import OptionTable
from envs.problem import CompressionProblem
from envs.space import ACTIVATION_BITS
from envs.space import METHOD
from envs.space import NO_PRUNING
from envs.space import SPARSITY
from envs.space import WEIGHT_BITS
from envs.space import Method
from envs.space import SearchSpace
from hwmodel import LayerShape
from hwmodel import Workload
from hwmodel import load_accelerator

METHODS = (
    NO_PRUNING,
    Method("element", "l1"),
    Method("element", "second_order"),
    Method("filter", "l2"),
    Method("filter", "taylor"),
)
SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BITS = (2, 3, 4, 5, 6, 8)
METHOD_ERROR = np.array([0.0, 0.05, 0.01, 0.5, 0.4])
"""Relative size of each method's error at one sparsity."""


def residual_workload(blocks: int = 9) -> Workload:
    """A CIFAR-style residual network: a stem, ``blocks`` blocks of two layers, a classifier."""
    shapes = [LayerShape("stem", 3, 16, 32, 32, 32, 32, 3, 3, padding=(1, 1))]
    feeds: list[tuple[int, ...]] = [()]
    stream: tuple[int, ...] = (0,)  # layers whose sum the next block reads
    channels, size = 16, 32
    for block in range(blocks):
        grow = block > 0 and block % 3 == 0
        wide, small = (channels * 2, size // 2) if grow else (channels, size)
        stride = (2, 2) if grow else (1, 1)
        first = len(shapes)
        kernel, pad = (3, 3), (1, 1)
        for name, inputs, side, step in (("a", channels, size, stride), ("b", wide, small, (1, 1))):
            sizes = (side, side, small, small)
            shapes.append(
                LayerShape(f"block{block}.{name}", inputs, wide, *sizes, *kernel, step, pad)
            )
        feeds += [stream, (first,)]
        stream = (first + 1,) if grow else (*stream, first + 1)
        channels, size = wide, small
    shapes.append(LayerShape("classifier", channels, 10))
    feeds.append(stream)
    return Workload("synthetic", tuple(shapes), tuple(feeds))


def synthetic_problem(
    blocks: int = 9, seed: int = 0, pinned: dict[str, LayerDecision] | None = None
) -> CompressionProblem:
    """A problem of 2 * blocks + 2 layers; first layers of blocks remove filters, streams do too."""
    workload = residual_workload(blocks)
    space = SearchSpace(
        layers=tuple(layer.name for layer in workload.layers),
        methods=METHODS,
        sparsities=SPARSITIES,
        weight_bits=BITS,
        activation_bits=BITS,
        channel_group=_channel_groups(workload),
        pinned=pinned or {},
    )
    return CompressionProblem(
        workload=workload,
        accelerator=load_accelerator("eyeriss-like"),
        space=space,
        table=_option_table(workload, space, np.random.default_rng(seed)),
    )


def _channel_groups(workload: Workload) -> tuple[int, ...]:
    """Layers that are read together share a group; the classifier's outputs stay."""
    readers: dict[int, set[int]] = {}
    for producers in workload.feeds:
        for producer in producers:
            readers.setdefault(producer, set()).update(producers)
    groups: list[int] = []
    for layer in range(len(workload)):
        if layer not in readers:
            groups.append(-1)
            continue
        first = min(readers[layer])
        groups.append(groups[first] if first < layer else max(groups, default=-1) + 1)
    return tuple(groups)


def _option_table(workload: Workload, space: SearchSpace, rng: np.random.Generator) -> OptionTable:
    layers = len(workload)
    sparsity = np.array(space.sparsities)
    bits = np.array(space.weight_bits, dtype=np.float64)
    filters = np.array([method.granularity == "filter" for method in space.methods])
    elements = np.array([method.granularity == "element" for method in space.methods])
    noise = np.exp(rng.normal(0, 0.2, (layers, len(METHODS), len(sparsity))))
    pruning = METHOD_ERROR[:, None] * sparsity**3 / (1 - sparsity) * noise
    rounding = np.tile(0.35 * 4.0 ** -(bits - 1), (layers, 1))
    kept = 1 - elements[:, None] * sparsity
    dense_out = np.array([layer.out_channels for layer in workload.layers], dtype=np.float64)
    kept_fraction = 1 - filters[:, None] * sparsity
    leaders = [space.channel_group.index(g) for g in sorted(set(space.channel_group) - {-1})]
    kept_out = np.round(dense_out[:, None, None] * kept_fraction)
    removed_in = np.zeros((layers, len(leaders), len(METHODS), len(sparsity)))
    for layer, producers in enumerate(workload.feeds):
        for group in {space.channel_group[producer] for producer in producers}:
            removed_in[layer, group] = dense_out[leaders[group]] - kept_out[leaders[group]]
    return OptionTable(
        weight_density=np.broadcast_to(
            kept[None, :, :, None] * (1 - 0.5 / bits), (layers, *kept.shape, len(bits))
        ).copy(),
        column_density=np.ones((*removed_in.shape, len(bits))),
        activation_density=np.tile(0.6 - 0.1 / bits, (layers, 1)),
        weight_error=pruning[..., None] + rounding[:, None, None, :],
        activation_error=rounding * 0.7,
        sensitivity=np.exp(rng.normal(-1.8, 1.2, (layers, 2))),
        kept_out=kept_out,
        removed_in=removed_in,
        dense_in=np.array([layer.in_channels for layer in workload.layers], dtype=np.float64),
        leaders=np.array(leaders, dtype=np.int64),
    )


@dataclass(frozen=True)
class SyntheticAccuracy:
    """The truth of a synthetic problem: 90 % at best, 10 % by chance.

    Attributes:
        problem: Whose options are judged.
        is_cheap: As in ``AccuracySource``.
        scales: What one unit of each layer's weight and activation error really costs, relative
            to its sensitivity, (layers, 2).
    """

    problem: CompressionProblem
    is_cheap: bool = True
    scales: NDArray[np.float64] = field(default_factory=lambda: np.ones((1, 2)))

    def accuracy_drop(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        table = self.problem.table
        layer = np.arange(choices.shape[1])
        index = (choices[..., METHOD], choices[..., SPARSITY], choices[..., WEIGHT_BITS])
        weight = table.weight_error[(layer, *index)] * table.sensitivity[:, 0]
        activation = table.activation_error[layer, choices[..., ACTIVATION_BITS]]
        activation = activation * table.sensitivity[:, 1]
        damage = (weight * self.scales[:, 0] + activation * self.scales[:, 1]).sum(axis=1)
        return 80.0 * (1.0 - np.exp(-(damage**0.9)))


def without_pruning(problem: CompressionProblem) -> CompressionProblem:
    """The same with a menu of one method, which prunes nothing, and of one sparsity."""
    space, table = problem.space, problem.table
    return replace(
        problem,
        space=replace(space, methods=space.methods[:1], sparsities=space.sparsities[:1]),
        table=replace(
            table,
            weight_density=table.weight_density[:, :1, :1],
            column_density=table.column_density[:, :, :1, :1],
            weight_error=table.weight_error[:, :1, :1],
            kept_out=table.kept_out[:, :1, :1],
            removed_in=table.removed_in[:, :, :1, :1],
        ),
    )
