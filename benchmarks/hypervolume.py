"""Compares searches at equal numbers of true evaluations: hypervolume of every seed, and means.

    python benchmarks/hypervolume.py runs/ppo runs/random --evaluations 30

A seed's front is made of the baselines and of what that seed evaluated on the search split. The
hypervolume is the dominated share of the box (energy ratio to dense INT8 <= 1, loss <= 10 points).
With --evaluations only the first ones of every seed count, in the order of the ledger.
"""

from __future__ import annotations

import argparse

import pandas as pd

from search.baselines import DENSE_FP32
from search.baselines import DENSE_INT8
from search.front import accuracy_drop
from search.front import baseline
from search.front import hypervolume
from search.run_directory import RunDirectory


def seed_rows(path: str, evaluations: int | None) -> list[dict[str, object]]:
    """One row for every seed of a run, after so many of its evaluations, or all."""
    run = RunDirectory.open(path)
    rows = run.ledger.read()
    search = rows[rows["split"] == "search"]
    dense, int8 = (baseline(rows, name, "search") for name in (DENSE_FP32, DENSE_INT8))
    assert dense is not None and int8 is not None
    found = []
    for seed in run.spec().seeds:
        proposed = search[search["seed"] == seed][:evaluations]
        own = pd.concat([search[search["seed"] == -1], proposed])
        drops = accuracy_drop(own, dense)
        ratios = own["energy_pj"] / int8["energy_pj"]
        found.append(
            {
                "run": path,
                "algorithm": run.spec().algorithm,
                "seed": seed,
                "evaluations": len(proposed),
                "hypervolume": hypervolume(ratios, drops),
                "least_ratio_at_1_point": float(ratios[drops <= 1.0].min()),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--evaluations", type=int)
    args = parser.parse_args()
    table = pd.DataFrame([row for run in args.runs for row in seed_rows(run, args.evaluations)])
    print(table.to_string(index=False, float_format="%.4f"))
    numbers = ["evaluations", "hypervolume", "least_ratio_at_1_point"]
    print(table.groupby("algorithm")[numbers].agg(["mean", "min", "max"]).to_string())


if __name__ == "__main__":
    main()
