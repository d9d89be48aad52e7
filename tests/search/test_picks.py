from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_rows import baselines
from ledger_rows import evaluation

from envs.limits import NO_LIMITS
from envs.limits import CostLimits
from envs.preference import ENERGY
from envs.preference import Preference
from search.baselines import DENSE_INT8
from search.front import accuracy_drop
from search.front import drop_upper_bound
from search.goals import Goal
from search.goals import Goals
from search.ledger import COLUMNS
from search.ledger import Evaluation
from search.picks import Candidates
from search.picks import picks


def frame(rows: list[Evaluation]) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows], columns=list(COLUMNS))


def pick(
    rows: pd.DataFrame,
    goal: Goal,
    limits: CostLimits = NO_LIMITS,
    preference: Preference = ENERGY,
) -> pd.Series | None:
    candidates = Candidates.of(rows, Goals((1.0,), limits, preference=preference))
    assert candidates is not None
    return candidates.pick(goal)


def rows_for_pick() -> pd.DataFrame:
    return frame(
        [
            *baselines(),
            evaluation(1, accuracy=0.899, energy_pj=40e6),  # bound 0.1 + 2.33 * 0.1
            evaluation(2, accuracy=0.893, energy_pj=30e6),  # bound 0.7 + 2.33 * 0.26
            evaluation(3, accuracy=0.85, energy_pj=10e6),
            evaluation(4, accuracy=None, energy_pj=1e6, error="failed"),
            evaluation(5, accuracy=0.9, energy_pj=1e6, split="test"),
        ]
    )


def test_of_what_costs_the_same_the_smaller_model_is_taken() -> None:
    large, small = (evaluation(number, accuracy=0.899, energy_pj=4e7) for number in (1, 2))
    rows = frame([*baselines(), large, replace(small, model_bytes=large.model_bytes / 2)])
    best = pick(rows, Goal(max_accuracy_drop=0.5))
    assert best is not None
    assert int(best["config_hash"], 16) == 2


@pytest.mark.parametrize(
    ("weights", "number", "ratio"),
    [
        ({"energy_pj": 1.0}, 1, 0.4),
        ({"latency_cycles": 1.0}, 2, 0.3),
        ({"energy_pj": 0.7, "latency_cycles": 0.3}, 1, 0.7 * 0.4 + 0.3 * 0.8),
        ({"energy_pj": 0.3, "latency_cycles": 0.7}, 2, 0.3 * 0.9 + 0.7 * 0.3),
    ],
)
def test_a_pick_is_the_least_of_what_is_preferred(weights, number: int, ratio: float) -> None:
    int8 = next(row for row in baselines() if row.name == DENSE_INT8)
    shares = {1: (0.4, 0.8), 2: (0.9, 0.3)}  # of dense INT8's energy and cycles
    found = [
        evaluation(
            number,
            accuracy=0.899,
            energy_pj=energy * int8.energy_pj,
            latency_cycles=cycles * int8.latency_cycles,
        )
        for number, (energy, cycles) in shares.items()
    ]
    rows = frame([*baselines(), *found])
    best = pick(rows, Goal(max_accuracy_drop=0.5), preference=Preference(**weights))
    assert best is not None
    assert int(best["config_hash"], 16) == number
    assert best["cost_ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("limit", "number"),
    [(0.2, 1002), (0.25, 1002), (0.5, 1), (1.0, 1), (1.4, 2), (5.0, 2), (6.7, 3)],
)
def test_pick_is_the_cheapest_whose_bound_holds(limit: float, number: int) -> None:
    rows = rows_for_pick()
    picked = pick(rows, Goal(max_accuracy_drop=limit))
    assert picked is not None
    assert picked["config_hash"] == f"{number:016x}"


def test_a_pick_holds_the_limits_of_its_other_costs() -> None:
    rows = rows_for_pick()
    rows["model_bytes"] = 3000.0
    rows.loc[rows["config_hash"] == f"{2:016x}", "model_bytes"] = np.nan

    def picked(limits: CostLimits) -> object:
        found = pick(rows, Goal(max_accuracy_drop=1.4), limits)
        return None if found is None else int(found["config_hash"], 16)

    assert picked(CostLimits()) == 2
    assert picked(CostLimits(model_bytes=3000.0)) == 1
    assert picked(CostLimits(model_bytes=2999.0)) is None


def test_nothing_holds_an_impossible_limit() -> None:
    dense, _, int8, *_ = baselines()
    rows = frame([dense, int8, evaluation(1, accuracy=0.5, energy_pj=1e6)])
    rows.loc[0, "energy_pj"] = np.nan  # too wide for the accelerator
    rows.loc[1, "accuracy"] = 0.5
    assert pick(rows, Goal(max_accuracy_drop=1.0)) is None


@given(
    accuracies=st.lists(st.floats(0.5, 1.0), min_size=1, max_size=12),
    limits=st.tuples(st.floats(0.1, 20), st.floats(0.1, 20)),
)
def test_a_looser_limit_never_costs_more_energy(accuracies, limits) -> None:
    found = [evaluation(n, accuracy=a, energy_pj=1e6 * (1 + n)) for n, a in enumerate(accuracies)]
    rows = frame([*baselines(), *found])
    tight, loose = (pick(rows, Goal(max_accuracy_drop=limit)) for limit in sorted(limits))
    if tight is not None:
        assert loose is not None
        assert loose["energy_pj"] <= tight["energy_pj"]


@pytest.mark.parametrize("images", [32, 41, 450])
def test_on_a_small_split_a_configuration_without_loss_holds_a_limit_that_nothing_could_prove(
    images: int,
) -> None:
    lossless, lossy = evaluation(1, energy_pj=5e6), evaluation(2, accuracy=0.87, energy_pj=1e6)
    rows = frame([replace(row, images=images) for row in (*baselines(), lossless, lossy)])
    picked = pick(rows, Goal(max_accuracy_drop=0.1))
    assert picked is not None
    assert picked["config_hash"] == lossless.config_hash


def test_the_uncompressed_network_holds_every_limit_however_small_the_split() -> None:
    dense = replace(baselines()[0], images=8)
    one_lost = evaluation(1, images=8, accuracy=dense.accuracy - 1 / 8, energy_pj=1e6)
    int8 = replace(baselines()[2], images=8, accuracy=one_lost.accuracy)
    rows = frame([dense, int8, one_lost])
    picked = pick(rows, Goal(max_accuracy_drop=0.01))
    assert picked is not None
    assert picked["config_hash"] == dense.config_hash


def test_at_an_energy_the_least_bound_is_taken_not_the_least_loss() -> None:
    """Blocks that disagree make a small loss uncertain."""
    sure = evaluation(1, accuracy=0.893, energy_pj=40e6)
    lucky = evaluation(2, accuracy=0.894, energy_pj=40e6, block_accuracies=(0.994, 0.794) * 5)
    dear = evaluation(3, accuracy=0.9, energy_pj=60e6)
    rows = frame([*baselines(), sure, lucky, dear])
    int8_pj = baselines()[2].energy_pj
    picked = pick(rows, Goal(max_energy_ratio=50e6 / int8_pj))
    assert picked is not None
    assert picked["config_hash"] == sure.config_hash


def test_an_energy_that_nothing_is_below_has_no_pick() -> None:
    rows = rows_for_pick()
    assert pick(rows, Goal(max_energy_ratio=1e-3)) is None
    without_int8 = rows[rows["name"] != "dense INT8"]
    assert Candidates.of(without_int8, Goals((1.0,))) is None


@given(
    found=st.lists(st.tuples(st.floats(0.5, 1.0), st.floats(0.1, 1.0)), min_size=1, max_size=12),
    ratios=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)),
)
def test_more_energy_never_has_a_greater_bound(found, ratios) -> None:
    dense, _, int8, *_ = baselines()
    rows = frame(
        [
            dense,
            int8,
            *(
                evaluation(n, accuracy=accuracy, energy_pj=ratio * int8.energy_pj)
                for n, (accuracy, ratio) in enumerate(found)
            ),
        ]
    )
    tight, loose = (pick(rows, Goal(max_energy_ratio=ratio)) for ratio in sorted(ratios))
    if tight is not None:
        assert loose is not None
        assert tight["energy_pj"] <= min(ratios) * int8.energy_pj
        bounds = [
            max(drop_upper_bound(one, rows.iloc[0])[0], accuracy_drop(one, rows.iloc[0])[0])
            for one in (pd.DataFrame([tight]), pd.DataFrame([loose]))
        ]
        assert bounds[1] <= bounds[0]


def test_picks_come_in_the_order_of_the_goals_without_those_that_nothing_reaches() -> None:
    goals = Goals((0.5, 5.0), energy_targets=(1e-3, 1.0))
    found = picks(rows_for_pick(), goals)
    assert found[0].row["drop_bound"] == pytest.approx(0.1 + 2.33 * 0.1, abs=1e-3)
    names = [picked.goal.name for picked in found]
    assert names == ["best at 0.5", "best at 5", "best at 1 of INT8"]
    assert [int(picked.row["config_hash"], 16) for picked in found[:2]] == [1, 2]
