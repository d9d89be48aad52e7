"""The search space: what may be decided for every layer, as small integers for learners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.config import CompressionConfig
from envs.config import Criterion
from envs.config import Granularity
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import criteria
from envs.config import fits
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.reconstruction_settings import DEFAULT_RECONSTRUCTION
from envs.reconstruction_settings import Reconstruction
from hwmodel.errors import InputError

METHOD, SPARSITY, WEIGHT_BITS, ACTIVATION_BITS = range(4)
"""Columns of a choice."""


class Method(NamedTuple):
    """A way to prune: what is removed and what ranks it."""

    granularity: Granularity
    criterion: Criterion

    def __str__(self) -> str:
        return "none" if self.granularity == "none" else f"{self.granularity}/{self.criterion}"

    @classmethod
    def parse(cls, name: str) -> Method:
        """The method called ``none`` or ``granularity/criterion``.

        Raises:
            InputError: there is no such method.
        """
        if name == "none":
            return NO_PRUNING
        granularity, _, criterion = name.partition("/")
        try:
            known = [f"{granularity}/{item}" for item in criteria(granularity)]
        except InputError as error:
            allowed = f"{error.allowed}, each with a criterion: filter/l2, n:4/second_order"
            raise InputError("method", name, allowed) from None
        if name not in known:
            raise InputError("method", name, f"use one of none, {', '.join(known)}")
        return cls(granularity, criterion)  # type: ignore[arg-type]


NO_PRUNING = Method("none", "none")

DEFAULT_METHODS = (
    NO_PRUNING,
    Method("element", "second_order"),
    Method("filter", "l2"),
    Method("filter", "taylor"),
)
"""What is searched unless a specification says otherwise: the best of each kind; see
docs/compression.md."""


@dataclass(frozen=True)
class SearchSpace:
    """Everything that may be decided, for one network.

    A *choice* is the integer form of a configuration: an int64 array of shape
    (layers, 4) whose columns index ``methods``, ``sparsities``, ``weight_bits`` and
    ``activation_bits``. Batches of choices have shape (candidates, layers, 4).

    Attributes:
        layers: Layer names in execution order.
        methods: Ways to prune; the first is always ``NO_PRUNING``.
        sparsities: Fractions removed, ascending, 0 < sparsity < 1.
        weight_bits, activation_bits: Widths, ascending.
        channel_group: For every layer, the number of the group of layers whose output channels
            can only be removed together, or -1 where output channels cannot be removed.
        pinned: Layers whose decision is fixed.
        repair, quantizer, reconstruction: Passed on to every configuration.
    """

    layers: tuple[str, ...]
    methods: tuple[Method, ...]
    sparsities: tuple[float, ...]
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    channel_group: tuple[int, ...]
    pinned: Mapping[str, LayerDecision] = field(default_factory=dict)
    repair: Repair = "aligned"
    quantizer: Quantizer = field(default=DEFAULT_QUANTIZER, repr=False)
    reconstruction: Reconstruction = field(default=DEFAULT_RECONSTRUCTION, repr=False)

    def __post_init__(self) -> None:
        if self.methods[:1] != (NO_PRUNING,):
            raise InputError("space.methods", self.methods, "the first must be none")
        for granularity, _ in self.methods[1:]:
            if not any(fits(granularity, sparsity) for sparsity in self.sparsities):
                allowed = f"{granularity} needs a sparsity that it can reach, such as 0.5"
                raise InputError("space.sparsities", self.sparsities, allowed)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of values of each column of a choice, shape (4,)."""
        menus = (self.methods, self.sparsities, self.weight_bits, self.activation_bits)
        return np.array([len(menu) for menu in menus])

    @cached_property
    def nearest_sparsity(self) -> NDArray[np.int64]:
        """Index of the sparsity that stands for each in each method, (methods, sparsities).

        The nearest that the granularity can reach; 0 where nothing is pruned.
        """
        sparsities = np.array(self.sparsities)
        distance = np.abs(sparsities[:, None] - sparsities)
        rows = [np.zeros(len(sparsities), dtype=np.int64)]
        for granularity, _ in self.methods[1:]:
            reached = np.array([fits(granularity, sparsity) for sparsity in self.sparsities])
            rows.append(np.where(reached, distance, np.inf).argmin(axis=1))
        return np.array(rows)

    def reached_sparsities(self, method: int) -> tuple[list[float], NDArray[np.int64]]:
        """Sparsities that a method can reach, and which of them stands for each of the menu.

        Returns:
            The sparsities, 0 alone where nothing is pruned, and indices into them, (sparsities,).
        """
        reached, place = np.unique(self.nearest_sparsity[method], return_inverse=True)
        if self.methods[method] == NO_PRUNING:
            return [0.0], place
        return [self.sparsities[step] for step in reached], place

    def leader(self, layer: int) -> int:
        """First layer of the group that layer ``layer`` removes channels with; -1 without one."""
        group = self.channel_group[layer]
        return -1 if group < 0 else self.channel_group.index(group)

    def is_filter(self, method: int) -> bool:
        return self.methods[method].granularity == "filter"

    def canonical(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The choices that really apply: same shape, (candidates, layers, 4) or (layers, 4).

        The first layer of a channel group decides about removing channels for the whole group;
        the others follow it, and remove none where it removes none. A layer whose output
        channels cannot be removed keeps them. The sparsity index of an unpruned layer is 0.
        Pinned layers take their decision.
        """
        choices = np.array(choices, dtype=np.int64)
        filters = np.array([method.granularity == "filter" for method in self.methods])
        for layer, name in enumerate(self.layers):
            here = choices[..., layer, :]
            if name in self.pinned:
                here[...] = self._pinned_choice(name)
                continue
            leader = self.leader(layer)
            if leader != layer:
                here[filters[here[..., METHOD]], METHOD] = 0
            if leader not in (layer, -1):
                first = choices[..., leader, :]
                follows = filters[first[..., METHOD]]
                here[follows, :2] = first[follows, :2]
            here[..., SPARSITY] = self.nearest_sparsity[here[..., METHOD], here[..., SPARSITY]]
        return choices

    def decision(self, choice: NDArray[np.int64]) -> LayerDecision:
        """The decision that one row of a choice, shape (4,), stands for."""
        method, sparsity, weight_bits, activation_bits = (int(value) for value in choice)
        granularity, criterion = self.methods[method]
        return LayerDecision(
            granularity=granularity,
            criterion=criterion,
            sparsity=self.sparsities[sparsity] if method else 0.0,
            weight_bits=self.weight_bits[weight_bits],
            activation_bits=self.activation_bits[activation_bits],
        )

    def config(self, choice: NDArray[np.int64]) -> CompressionConfig:
        """The configuration that a choice, shape (layers, 4), stands for after :meth:`canonical`.

        Pinned layers keep their decision even where it lies outside the menus.
        """
        rows = zip(self.layers, self.canonical(choice), strict=True)
        layers = {name: self.pinned.get(name) or self.decision(row) for name, row in rows}
        return CompressionConfig(layers, self.repair, self.quantizer, self.reconstruction)

    def choice(self, config: CompressionConfig) -> NDArray[np.int64] | None:
        """Inverse of :meth:`config`, shape (layers, 4); None where the space does not hold it."""
        rows = np.zeros((len(self.layers), 4), dtype=np.int64)
        for layer, name in enumerate(self.layers):
            decision = config.layers[name]
            if name in self.pinned:
                rows[layer] = self._pinned_choice(name)
                continue
            try:
                rows[layer] = self._row(decision)
            except ValueError:
                return None
        return rows if self.config(rows).hash == config.hash else None

    def sample(self, rng: np.random.Generator, candidates: int) -> NDArray[np.int64]:
        """Uniformly random choices, shape (candidates, layers, 4), canonical."""
        shape = (candidates, len(self.layers), 4)
        return self.canonical(rng.integers(0, self.sizes, size=shape))

    def _row(self, decision: LayerDecision) -> tuple[int, int, int, int]:
        method = Method(decision.granularity, decision.criterion)
        return (
            self.methods.index(method),
            self.sparsities.index(decision.sparsity) if decision.sparsity else 0,
            self.weight_bits.index(decision.weight_bits),
            self.activation_bits.index(decision.activation_bits),
        )

    def _pinned_choice(self, name: str) -> tuple[int, int, int, int]:
        """The nearest choice of a pinned layer: what learners see of it; its price is exact."""
        decision = self.pinned[name]
        method = Method(decision.granularity, decision.criterion)
        nearest = [
            int(np.argmin(np.abs(np.array(menu) - value)))
            for menu, value in (
                (self.sparsities, decision.sparsity),
                (self.weight_bits, decision.weight_bits),
                (self.activation_bits, decision.activation_bits),
            )
        ]
        known = method in self.methods
        return (
            self.methods.index(method) if known else 0,
            nearest[0] if known and decision.sparsity else 0,
            nearest[1],
            nearest[2],
        )
