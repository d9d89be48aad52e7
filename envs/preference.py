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
    """Weights of the costs of an inference: their weighted sum is to be small.

    Attributes:
        energy_pj, latency_cycles, bops, model_bytes, dram_bytes: Weight of each cost; >= 0, one of
            them above 0.

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
        return " + ".join(f"{weight:g} {name}" for name, weight in self.given.items())

    @property
    def given(self) -> dict[str, float]:
        """The weights that are not 0, by name."""
        return {name: weight for name, weight in asdict(self).items() if weight > 0}

    def layer_cost(self, report: CostReport) -> NDArray[np.float64]:
        """Weighted sum of the costs of every layer, (candidates, layers)."""
        return self.cost_of({name: getattr(report, LAYER_COSTS[name]) for name in self.given})

    def cost(self, report: CostReport) -> NDArray[np.float64]:
        """Weighted sum of the costs of a network, (candidates,)."""
        return np.asarray(self.layer_cost(report).sum(axis=1))

    def cost_of(self, costs: Mapping[str, Any]) -> NDArray[np.float64]:
        """Weighted sum of costs by name, all of one shape."""
        parts = [weight * np.asarray(costs[name], float) for name, weight in self.given.items()]
        return np.asarray(sum(parts[1:], parts[0]))

    def over(self, reference: Mapping[str, Any]) -> Preference:
        """The same weights of shares: of costs over those of a reference, all above 0.

        Raises:
            InputError: the reference has none of a cost that counts, or it is not known.
        """
        shares = {}
        for name, weight in self.given.items():
            if not reference[name] > 0:  # True for NaN too
                allowed = "leave it out: dense INT8, whose costs count as 1, has none of it"

                raise InputError(f"preference.{name}", weight, allowed)
            shares[name] = weight / float(reference[name])
        return Preference(**shares)


ENERGY = Preference(energy_pj=1.0)
