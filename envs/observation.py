"""What the agents see: the same numbers for every layer of every network, all in [-1, 1]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.accuracy import AccuracySource
from envs.limits import LIMITED
from envs.predictor import AccuracyPredictor
from envs.prices import LayerPrices
from envs.problem import CompressionProblem
from envs.space import ACTIVATION_BITS
from envs.space import METHOD
from envs.space import SPARSITY
from envs.space import WEIGHT_BITS

PROBES = (
    "weight_bits narrowest",
    "weight_bits middle",
    "activation_bits narrowest",
    "activation_bits middle",
    "elements, middle sparsity",
    "elements, highest sparsity",
    "filters, middle sparsity",
    "filters, highest sparsity",
)
"""Single-layer changes whose damage and saving describe a layer."""

STATIC_NAMES = (
    "is an ordinary convolution",
    "is pointwise or linear",
    "is grouped",
    "is depthwise",
    "input channels",
    "output channels",
    "output pixels",
    "kernel size",
    "stride",
    "position",
    "share of MACs",
    "share of weights",
    "share of the cost",
    "may remove filters (leads its group)",
    "removes filters when its leader does",
    *(f"saving of probe: {probe}" for probe in PROBES),
)
DAMAGE_NAMES = tuple(f"damage of probe: {probe}" for probe in PROBES)
DECISION_NAMES = ("elements removed", "filters removed", "weight width", "activation width")
DYNAMIC_NAMES = (
    *(f"this layer: {name}" for name in DECISION_NAMES),
    *(f"previous layer: {name}" for name in DECISION_NAMES),
    "forced by the group's leader",
    "input channels left",
    "cost of the whole so far",
    "cost still undecided",
    "drop so far",
    "drop against target",
    "target",
)
OBSERVATION_NAMES = STATIC_NAMES + DAMAGE_NAMES + DYNAMIC_NAMES
"""Meaning of every number of an observation, in order; docs/environment.md explains them."""
LIMIT_NAMES = tuple(f"share of limit: {name}" for name in LIMITED)
"""What is seen besides where a problem has limits, at the end."""
OBSERVATION_SIZE = len(OBSERVATION_NAMES)
PROPOSAL_NAMES = (
    *STATIC_NAMES,
    *DAMAGE_NAMES,
    *(f"this layer: {name}" for name in DECISION_NAMES),
    "forced by the group's leader",
    "input channels left",
    "cost of this layer",
    "damage of this layer",
    "cost of the whole",
    "drop of the whole",
    "drop against target",
    "target",
    "decisions left",
)
"""Meaning of every number that is seen of one layer where all layers are decided at once."""
PROPOSAL_SIZE = len(PROPOSAL_NAMES)

NO_DAMAGE = 1e-4
"""Points below which damage is not told apart."""
_MOST_OF_LIMIT = 2.0
"""Shares of a limit above this are not told apart."""
_STATICS = len(STATIC_NAMES)
_DAMAGES = _STATICS + len(DAMAGE_NAMES)
_FOLLOWS = STATIC_NAMES.index("removes filters when its leader does")


def observation_size(limited: bool) -> int:
    """Length of an observation of a problem that has limits, or has none."""
    return OBSERVATION_SIZE + limited * len(LIMIT_NAMES)


def proposal_size(limited: bool) -> int:
    """As :func:`observation_size`, of one layer where all layers are decided at once."""
    return PROPOSAL_SIZE + limited * len(LIMIT_NAMES)


class Observer:
    """Turns the state of walks into observations.

    Args:
        problem: The network, the accelerator and the space.
        accuracy: Judges the damage of probes where it is cheap; else the option table does.
        prices: Of the same problem.
        start: Choice with which walks begin, shape (layers, 4).
    """

    def __init__(
        self,
        problem: CompressionProblem,
        accuracy: AccuracySource,
        prices: LayerPrices,
        start: NDArray[np.int64],
    ) -> None:
        space = problem.space
        self._limits = problem.limits
        self._dense_in = problem.table.dense_in
        self._channels = problem.table.channels
        self._is_filter = np.array([space.is_filter(index) for index in range(len(space.methods))])
        self._is_element = ~self._is_filter & (np.arange(len(space.methods)) > 0)
        self._sparsities = np.array(space.sparsities)
        self._weight_bits = np.minimum(np.array(space.weight_bits) / 8.0, 1.0)
        self._activation_bits = np.minimum(np.array(space.activation_bits) / 8.0, 1.0)

        probes, valid = _probe_choices(problem, start)
        flat = probes.reshape(-1, *start.shape)
        cheap = accuracy if accuracy.is_cheap else AccuracyPredictor(problem.table)
        damage = cheap.accuracy_drop(flat) - cheap.accuracy_drop(start[None])
        damage = np.where(valid, damage.reshape(valid.shape), 0.0)
        self._log_damage = _log_points(damage)
        start_cost = prices.layer_cost(start[None])[0]
        ratio = prices.layer_cost(flat).sum(axis=1).reshape(valid.shape) / start_cost.sum()
        saving = np.where(valid, np.clip(1.0 - ratio, 0.0, 1.0), 0.0)
        self._static = np.concatenate(
            [_layer_features(problem, start_cost), np.sqrt(saving)], axis=1
        )

    def __call__(
        self,
        layer: int,
        previous: int,
        choices: NDArray[np.int64],
        layer_cost: NDArray[np.float64],
        undecided: list[int],
        start_cost: float,
        drop: NDArray[np.float64],
        target: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Observations of walks that stand at the same layer.

        Args:
            layer: Layer to decide about.
            previous: Layer decided before it, or -1.
            choices: (candidates, layers, 4), canonical.
            layer_cost: Of ``choices``, by the problem's objective, (candidates, layers).
            undecided: Layers not decided yet, this one among them.
            start_cost: Of the start.
            drop: Predicted so far, in points, (candidates,); 0 where nobody knows.
            target: In points, (candidates,).

        Returns:
            Shape (candidates, OBSERVATION_SIZE), float32 in [-1, 1].
        """
        count = len(choices)
        seen = np.zeros((count, OBSERVATION_SIZE), dtype=np.float32)
        seen[:, :_STATICS] = self._static[layer]
        seen[:, _STATICS:_DAMAGES] = _against(self._log_damage[layer], target[:, None])
        dynamic = seen[:, _DAMAGES:]
        self._describe(choices[:, layer], dynamic[:, 0:4])
        if previous >= 0:
            self._describe(choices[:, previous], dynamic[:, 4:8])
        dynamic[:, 8] = self._static[layer, _FOLLOWS] * self._is_filter[choices[:, layer, METHOD]]
        kept_in, _ = self._channels(choices)
        dynamic[:, 9] = kept_in[:, layer] / self._dense_in[layer]
        dynamic[:, 10] = layer_cost.sum(axis=1) / start_cost
        dynamic[:, 11] = layer_cost[:, undecided].sum(axis=1) / start_cost
        dynamic[:, 12] = np.maximum(drop, 0.0) / 100.0
        dynamic[:, 13] = _against(_log_points(drop), target)
        dynamic[:, 14] = _target_feature(target)
        return np.clip(seen, -1.0, 1.0, out=seen)

    def proposal(
        self,
        layers: list[int],
        choices: NDArray[np.int64],
        layer_cost: NDArray[np.float64],
        start_cost: float,
        drop: NDArray[np.float64],
        layer_drop: NDArray[np.float64],
        target: NDArray[np.float64],
        turns_left: float,
    ) -> NDArray[np.float32]:
        """Observations of whole configurations.

        Args:
            layers: Layers that are seen.
            choices: (candidates, layers, 4), canonical.
            layer_cost: Of ``choices``, by the problem's objective, (candidates, layers).
            start_cost: Of the start.
            drop: Predicted, in points, (candidates,); 0 where nobody knows.
            layer_drop: What of it would be undone by undoing each of ``layers``, in points,
                (candidates, len(layers)); 0 where nobody knows.
            target: In points, (candidates,).
            turns_left: Share of the episode's turns that are still to come, this one among them.

        Returns:
            Shape (candidates, len(layers), PROPOSAL_SIZE), float32 in [-1, 1].
        """
        seen = np.zeros((len(choices), len(layers), PROPOSAL_SIZE), dtype=np.float32)
        seen[..., :_STATICS] = self._static[layers]
        seen[..., _STATICS:_DAMAGES] = _against(self._log_damage[layers], target[:, None, None])
        dynamic = seen[..., _DAMAGES:]
        rows = choices[:, layers]
        self._describe(rows, dynamic[..., 0:4])
        dynamic[..., 4] = self._static[layers, _FOLLOWS] * self._is_filter[rows[..., METHOD]]
        kept_in, _ = self._channels(choices)
        dynamic[..., 5] = (kept_in / self._dense_in)[:, layers]
        dynamic[..., 6] = np.sqrt(layer_cost[:, layers] / start_cost)
        dynamic[..., 7] = _against(_log_points(layer_drop), target[:, None])
        dynamic[..., 8] = layer_cost.sum(axis=1, keepdims=True) / start_cost
        dynamic[..., 9] = np.maximum(drop, 0.0)[:, None] / 100.0
        dynamic[..., 10] = _against(_log_points(drop), target)[:, None]
        dynamic[..., 11] = _target_feature(target)[:, None]
        dynamic[..., 12] = turns_left
        return np.clip(seen, -1.0, 1.0, out=seen)

    def with_limits(
        self, seen: NDArray[np.float32], usage: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Observations with the shares of the limits at their end; as they are without limits.

        Args:
            seen: (candidates, ..., numbers).
            usage: Shares of the limits, (candidates, limits).
        """
        if not self._limits.given:
            return seen
        shares = np.minimum(self._limits.by_name(usage) / _MOST_OF_LIMIT, 1.0)
        shares = shares.reshape(len(seen), *[1] * (seen.ndim - 2), shares.shape[-1])
        shares = np.broadcast_to(shares, (*seen.shape[:-1], shares.shape[-1]))
        return np.concatenate([seen, shares.astype(np.float32)], axis=-1)

    def _describe(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Write what has been decided for layers, ``rows`` (..., 4), into ``out``, (..., 4)."""
        sparsity = self._sparsities[rows[..., SPARSITY]]
        out[..., 0] = self._is_element[rows[..., METHOD]] * sparsity
        out[..., 1] = self._is_filter[rows[..., METHOD]] * sparsity
        out[..., 2] = self._weight_bits[rows[..., WEIGHT_BITS]]
        out[..., 3] = self._activation_bits[rows[..., ACTIVATION_BITS]]


def _log_points(drop: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(drop, NO_DAMAGE))


def _against(log_points: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points, given by their logarithm, against a target in points: 0 where they are equal."""
    return (log_points - np.log(target)) / 8.0


def _target_feature(target: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.log(target) - np.log(0.05)) / np.log(1000.0)


def _layer_features(
    problem: CompressionProblem, start_cost: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Everything known of the layers before the first decision, (layers, 15)."""
    space, shapes = problem.space, problem.workload.layers
    macs = np.array([shape.macs for shape in shapes], dtype=np.float64)
    weights = np.array([shape.weights for shape in shapes], dtype=np.float64)
    rows = []
    for index, shape in enumerate(shapes):
        pointwise = shape.kernel_height * shape.kernel_width == 1
        grouped = shape.groups > 1 and not shape.is_depthwise
        leader = space.leader(index)
        rows.append(
            [
                not (pointwise or grouped or shape.is_depthwise),
                pointwise and shape.groups == 1,
                grouped,
                shape.is_depthwise,
                np.log2(shape.in_channels) / 16.0,
                np.log2(shape.out_channels) / 16.0,
                np.log2(shape.out_height * shape.out_width) / 20.0,
                np.sqrt(shape.kernel_height * shape.kernel_width) / 11.0,
                max(shape.stride) / 4.0,
                index / max(len(shapes) - 1, 1),
                np.sqrt(macs[index] / macs.sum()),
                np.sqrt(weights[index] / weights.sum()),
                np.sqrt(start_cost[index] / start_cost.sum()),
                leader == index,
                leader not in (index, -1),
            ]
        )
    return np.array(rows, dtype=np.float64)


def _probe_choices(
    problem: CompressionProblem, start: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The start with one layer changed: (layers, probes, layers, 4), and which of them exist."""
    space, layers = problem.space, len(start)
    probes = np.broadcast_to(start, (layers, len(PROBES), layers, 4)).copy()
    valid = np.zeros((layers, len(PROBES)), dtype=np.bool_)
    middle_sparsity, highest_sparsity = len(space.sparsities) // 2, len(space.sparsities) - 1
    columns = ((WEIGHT_BITS, space.weight_bits), (ACTIVATION_BITS, space.activation_bits))
    for layer in range(layers):
        for first, (column, menu) in zip((0, 2), columns, strict=True):
            probes[layer, first, layer, column] = 0
            probes[layer, first + 1, layer, column] = len(menu) // 2
            valid[layer, first : first + 2] = True
        for first, filters in ((4, False), (6, True)):
            methods = [
                index for index in range(1, len(space.methods)) if space.is_filter(index) == filters
            ]
            if not methods or (filters and space.leader(layer) != layer):
                continue
            valid[layer, first : first + 2] = True
            for probe, sparsity in ((first, middle_sparsity), (first + 1, highest_sparsity)):
                errors = problem.table.weight_error[layer, methods, sparsity, -1]
                best = methods[int(np.argmin(errors))]
                probes[layer, probe, layer, :2] = best, sparsity
    canonical = space.canonical(probes.reshape(-1, layers, 4))
    return canonical.reshape(probes.shape), valid
