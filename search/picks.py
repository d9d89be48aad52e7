"""The configurations that a run's goals take, by the search split alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.baselines import DENSE_FP32
from search.baselines import DENSE_INT8
from search.front import accuracy_drop
from search.front import baseline
from search.front import cost_ratios
from search.front import distinct
from search.front import drop_upper_bound
from search.front import holds_limits
from search.front import smallest_provable_drop
from search.goals import Goal
from search.goals import Goals


@dataclass(frozen=True)
class Picked:
    """What is taken for a goal.

    Attributes:
        goal: The goal.
        row: Ledger row of the search split, with ``drop_bound``: points that it loses at most, and
            ``cost_ratio``: see :func:`search.front.cost_ratios`.
    """

    goal: Goal
    row: pd.Series


def picks(rows: pd.DataFrame, goals: Goals) -> list[Picked]:
    """What is taken for every goal; those that nothing reaches are left out.

    Args:
        rows: Ledger rows of any split and role; only the search split is looked at.
        goals: What is asked for.
    """
    candidates = Candidates.of(rows, goals)
    if candidates is None:
        return []
    found = ((goal, candidates.pick(goal)) for goal in goals.all)
    return [Picked(goal, row) for goal, row in found if row is not None]


class Candidates:
    """The configurations of a search split that hold the limits, and what they lose at most.

    Args:
        rows: Ledger rows of any split and role; only the search split is looked at.
        reference: Row of the uncompressed network on the search split.
        int8: Row of dense INT8 on the search split.
        goals: Their limits, and what of costs counts.
    """

    def __init__(
        self, rows: pd.DataFrame, reference: pd.Series, int8: pd.Series, goals: Goals
    ) -> None:
        found = distinct(rows, "search")
        cost = cost_ratios(found, int8, goals.preference)
        # What was measured counts too: a bound may lie below it.
        bound = np.maximum(drop_upper_bound(found, reference), accuracy_drop(found, reference))
        counts = holds_limits(found, goals.limits) & ~np.isnan(cost) & ~np.isnan(bound)
        self._rows = found.assign(drop_bound=bound, cost_ratio=cost)[counts]
        self._provable = smallest_provable_drop(int(reference["images"]))
        self._int8_pj = float(int8["energy_pj"])

    @classmethod
    def of(cls, rows: pd.DataFrame, goals: Goals) -> Candidates | None:
        """Those of a ledger; None before dense FP32 and INT8 were measured."""
        reference, int8 = (baseline(rows, name, "search") for name in (DENSE_FP32, DENSE_INT8))
        if reference is None or int8 is None:
            return None
        return cls(rows, reference, int8, goals)

    def pick(self, goal: Goal) -> pd.Series | None:
        """The configuration that is best for a goal; None where nothing reaches it.

        It holds a loss if :func:`search.front.drop_upper_bound` and what was measured do, and of
        those that take no more than an energy the one is best of which these are least. The
        cheapest of many candidates that just hold a loss is more often lucky than good, hence the
        bound. A loss below :func:`search.front.smallest_provable_drop` is taken as that: on so few
        images nothing could hold it, not even a configuration that loses none of them.
        """
        bound = self._rows["drop_bound"].to_numpy(dtype=float)
        if goal.max_accuracy_drop is not None:
            # Whatever the last digit of the bound of one that loses nothing.
            provable = max(goal.max_accuracy_drop, self._provable) + 1e-9
            return self._least(bound <= provable, "cost_ratio", "drop_bound", "model_bytes")
        if goal.max_energy_ratio is None:
            return None
        energy_pj = self._rows["energy_pj"].to_numpy(dtype=float)
        affordable = energy_pj <= goal.max_energy_ratio * self._int8_pj
        return self._least(affordable, "drop_bound", "energy_pj", "model_bytes")

    def _least(self, holds: NDArray[np.bool_], *columns: str) -> pd.Series | None:
        """Of the rows that hold that with the least of the columns, each where those before tie."""
        if not holds.any():
            return None
        found = self._rows[holds].sort_values(list(columns), kind="stable")
        return found.iloc[0]


def unreached(rows: pd.DataFrame, goals: Goals, reached: Collection[str]) -> list[str]:
    """Names of the goals besides those reached; none before the baselines were measured."""
    if any(baseline(rows, name, "search") is None for name in (DENSE_FP32, DENSE_INT8)):
        return []
    return [goal.name for goal in goals.all if goal.name not in reached]


def best_so_far(rows: pd.DataFrame, goals: Goals) -> list[dict[str, Any]]:
    """Best so far for every goal, as ``status`` has it; goals that nothing reaches are left out."""
    reference, int8 = (baseline(rows, name, "search") for name in (DENSE_FP32, DENSE_INT8))
    if reference is None or int8 is None:
        return []
    return [
        {
            "name": picked.goal.name,
            **asdict(picked.goal),
            "config_hash": picked.row["config_hash"],
            "search_accuracy_drop": float((reference["accuracy"] - picked.row["accuracy"]) * 100),
            "search_drop_bound": float(picked.row["drop_bound"]),
            "energy_pj": float(picked.row["energy_pj"]),
            "energy_ratio_int8": picked.row["energy_pj"] / int8["energy_pj"],
            "cost_ratio_int8": float(picked.row["cost_ratio"]),
        }
        for picked in picks(rows, goals)
    ]
