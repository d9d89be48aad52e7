"""Upper limits on what an inference may cost besides energy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envs.preference import LAYER_COSTS
from hwmodel.errors import InputError
from hwmodel.report import CostReport


@dataclass(frozen=True)
class CostLimits:
    """What one inference may cost at most; None where there is no limit.

    Attributes:
        latency_cycles, bops, model_bytes, dram_bytes: As in the ledger; > 0.

    Raises:
        InputError: a limit is not above 0.
    """

    latency_cycles: float | None = None
    bops: float | None = None
    model_bytes: float | None = None
    dram_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.given.items():
            if not 0 < limit < float("inf"):
                raise InputError(name, limit, "a number above 0")

    def __str__(self) -> str:
        return ", ".join(f"{name} <= {limit:g}" for name, limit in self.given.items())

    @property
    def given(self) -> dict[str, float]:
        """The limits that there are, by name."""
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    def by_name(self, usage: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares of the limits, (..., limits), as those of ``LIMITED``: 0 where there is none."""
        shares = np.zeros((*usage.shape[:-1], len(LIMITED)))
        shares[..., [LIMITED.index(name) for name in self.given]] = usage
        return shares

    def layer_usage(self, report: CostReport) -> NDArray[np.float64]:
        """Share of each limit that a layer takes, (candidates, layers, limits)."""
        shares = [getattr(report, LAYER_COSTS[name]) / limit for name, limit in self.given.items()]
        return np.stack(shares, axis=-1) if shares else np.zeros((*report.macs.shape, 0))

    def usage(self, report: CostReport) -> NDArray[np.float64]:
        """Share of each limit that a network takes, (candidates, limits); above 1 is too much."""
        return self.layer_usage(report).sum(axis=1)

    def hold(self, report: CostReport) -> NDArray[np.bool_]:
        """Whether a network holds all limits, (candidates,)."""
        return np.asarray((self.usage(report) <= 1).all(axis=1))

    def scaled(self, factors: Mapping[str, float]) -> CostLimits:
        """The same where costs are ``factors`` of what they were."""
        return replace(self, **{name: x * factors[name] for name, x in self.given.items()})


NO_LIMITS = CostLimits()
LIMITED = tuple(asdict(NO_LIMITS))
"""Names of all limits that there may be, in the order of the attributes of ``CostLimits``."""


def excess(usage: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far limits are exceeded: the logarithms of what is above 1, added up.

    Args:
        usage: Shares of limits, (..., limits).
    """
    return np.log(np.maximum(usage, 1.0)).sum(axis=-1)
