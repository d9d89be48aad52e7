"""What an inference is to cost as little of as possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.report import CostReport

LAYER_COSTS = {
    "energy_pj": "layer_energy_pj",
    "latency_cycles": "latency_cycles",
    "bops": "bops",
    "model_bytes": "weight_bytes",
    "dram_bytes": "dram_bytes",
}
"""By the name of a cost of a network, as in the ledger, the attribute of ``CostReport`` whose sum
over the layers it is."""


@dataclass(frozen=True)
class Preference:
    """How much each cost of an inference counts, each over that of a reference such as dense INT8.

    Attributes:
        energy_pj, latency_cycles, bops, model_bytes, dram_bytes: Weights; >= 0, one above 0.

    Raises:
        InputError: a weight is below 0 or not finite, or all are 0.
    """

    energy_pj: float = 0.0
    latency_cycles: float = 0.0
    bops: float = 0.0
    model_bytes: float = 0.0
    dram_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            if not 0 <= weight < float("inf"):
                raise InputError(name, weight, "a number of at least 0")
        if not self.given:
            raise InputError("preference", asdict(self), "one weight above 0")

    def __str__(self) -> str:
        if len(self.given) == 1:
            return next(iter(self.given))
        return " + ".join(f"{weight:.3g} {name}" for name, weight in self.given.items())

    @property
    def given(self) -> dict[str, float]:
        """The weights that are not 0, by name."""
        return {name: weight for name, weight in asdict(self).items() if weight > 0}

    def over(self, reference: Mapping[str, float]) -> CostFunction:
        """The weighted sum of costs over those of a reference.

        Raises:
            InputError: the reference has none of a cost that counts, or it is not known.
        """
        for name, weight in self.given.items():
            if not reference[name] > 0:  # True for NaN too
                allowed = "leave it out: dense INT8, whose costs count as 1, has none of it"
                raise InputError(f"preference.{name}", weight, allowed)
        return CostFunction(self.given, {name: float(reference[name]) for name in self.given})


@dataclass(frozen=True)
class CostFunction:
    """A weighted sum of costs, each over a reference.

    Attributes:
        weights: By name of the cost, see :data:`LAYER_COSTS`; > 0.
        reference: What each of them is divided by; > 0.
    """

    weights: Mapping[str, float]
    reference: Mapping[str, float]

    def layer_cost(self, report: CostReport) -> NDArray[np.float64]:
        """Cost of every layer, (candidates, layers)."""
        return self.cost_of({name: getattr(report, LAYER_COSTS[name]) for name in self.weights})

    def cost(self, report: CostReport) -> NDArray[np.float64]:
        """Cost of a network, (candidates,)."""
        return np.asarray(self.layer_cost(report).sum(axis=1))

    def cost_of(self, costs: Mapping[str, Any]) -> NDArray[np.float64]:
        """Cost of what has these costs, by name and all of one shape."""
        first, *others = (
            weight * (np.asarray(costs[name], dtype=float) / self.reference[name])
            for name, weight in self.weights.items()
        )
        return np.asarray(sum(others, first))


ENERGY = Preference(energy_pj=1.0)
ENERGY_PJ = ENERGY.over({"energy_pj": 1.0})
"""Energy as it is, in pJ."""
