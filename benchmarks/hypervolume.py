"""Compares searches at equal numbers of true evaluations: hypervolume of every seed, and means.

    python benchmarks/hypervolume.py runs/ppo runs/random

A seed's front is made of the baselines and of what that seed evaluated on the search split. The
hypervolume is the dominated share of the box (energy ratio to dense INT8 <= 1, loss <= 10 points).
"""

from __future__ import annotations

import sys

import pandas as pd

from search.baselines import DENSE_FP32
from search.baselines import DENSE_INT8
from search.front import accuracy_drop
from search.front import baseline
from search.front import hypervolume
from search.run_directory import RunDirectory


def seed_rows(path: str) -> list[dict[str, object]]:
    """One row for every seed of a run."""
    run = RunDirectory.open(path)
    rows = run.ledger.read()
    search = rows[rows["split"] == "search"]
    dense, int8 = (baseline(rows, name, "search") for name in (DENSE_FP32, DENSE_INT8))
    assert dense is not None and int8 is not None
    found = []
    for seed in run.spec().seeds:
        own = search[search["seed"].isin([-1, seed])]
        drops = accuracy_drop(own, dense)
        ratios = own["energy_pj"] / int8["energy_pj"]
        found.append(
            {
                "run": path,
                "algorithm": run.spec().algorithm,
                "seed": seed,
                "evaluations": int((own["seed"] == seed).sum()),
                "hypervolume": hypervolume(ratios, drops),
                "least_ratio_at_1_point": float(ratios[drops <= 1.0].min()),
            }
        )
    return found


def main() -> None:
    table = pd.DataFrame([row for path in sys.argv[1:] for row in seed_rows(path)])
    print(table.to_string(index=False, float_format="%.4f"))
    numbers = ["evaluations", "hypervolume", "least_ratio_at_1_point"]
    print(table.groupby("algorithm")[numbers].agg(["mean", "min", "max"]).to_string())


if __name__ == "__main__":
    main()
