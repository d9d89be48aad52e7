"""How algorithms compare at equal numbers of true evaluations: curves, and means over seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hwmodel import InputError
from search.baselines import DENSE_FP32
from search.baselines import DENSE_INT8
from search.front import accuracy_drop
from search.front import baseline
from search.front import cost_ratios
from search.front import distinct
from search.front import holds_limits
from search.front import hypervolume
from search.goals import Goal
from search.ledger import MEASURED
from search.picks import Candidates
from search.run_directory import RunDirectory
from search.spec import Spec
from search.storage import Storage
from search.storage import table_files
from search.storage import write_error

_NAMED = ["task", "accelerator", "minimized"]
CASE = [*_NAMED, "level", "problem"]
"""What is the same for the algorithms that are compared. ``problem`` is a hash of what these names
leave open: data and weights of the task, the space, the attack."""

_RESAMPLES = 2000
_INTERVAL = 0.95


def curves(runs: Iterable[RunDirectory]) -> pd.DataFrame:
    """What every seed of every run had reached after each of its evaluations.

    Returns:
        Columns ``task``, ``accelerator``, ``minimized`` (which cost), ``level``, ``problem`` (see
        :data:`CASE`), ``algorithm``, ``run``, ``seed``, ``evaluations`` (0: the baselines alone),
        ``hypervolume`` (share of the box cost ratio to dense INT8 <= 1, loss <= 10 points, that is
        dominated, on the search split) and, for every target of the runs, ``ratio_at_TARGET``:
        least measured cost ratio at that loss on the search split.

    Raises:
        InputError: there is no run with baselines.
    """
    found = [row for run in runs for row in _run_curves(run)]
    if not found:
        raise InputError("benchmark", "no run", "name runs or batches that have evaluations")
    return pd.DataFrame(found)


def summary(curves: pd.DataFrame, runs: Iterable[RunDirectory]) -> pd.DataFrame:
    """Algorithms side by side after as many evaluations as all seeds of a case have.

    Args:
        curves: Of the same runs, see :func:`curves`.
        runs: The runs.

    Returns:
        One row for each case and algorithm: ``seeds``, ``evaluations`` of a seed, and for every
        measure its mean over the seeds with the ends of the 95 % bootstrap interval of the mean
        (``MEASURE_low``, ``MEASURE_high``; NaN with one seed), and the seeds that have it
        (``MEASURE_seeds``). Measures are those of the
        curves, and for every target the pick of a seed: ``pick_ratio_at_TARGET``,
        ``pick_test_drop_at_TARGET`` (points lost on the test split) and
        ``pick_optimism_at_TARGET`` (how many more than on the search split). Picks are those
        of all of a seed's evaluations. A seed that holds no target has none, and one whose pick
        was not verified has no loss on the test split.
    """
    last = curves.groupby([*CASE, "run", "seed"])["evaluations"].transform("max")
    common = last.groupby([curves[key] for key in CASE]).transform("min")
    ends = curves[curves["evaluations"] == common]
    picks = pd.DataFrame([row for run in runs for row in _run_picks(run)])
    ends = ends.merge(picks, on=["run", "seed"], how="left")
    measures = [str(name) for name in ends if name == "hypervolume" or "_at_" in str(name)]
    measures.sort(key=lambda name: name.startswith("pick"))
    rows = []
    for case, group in ends.groupby([*CASE, "algorithm"], sort=False):
        row: dict[str, object] = dict(zip([*CASE, "algorithm"], tuple(case), strict=True))
        row |= {"seeds": len(group), "evaluations": int(group["evaluations"].iloc[0])}
        for measure in measures:
            values = group[measure].dropna().to_numpy(dtype=float)
            low, high = _bootstrap_interval(values)
            row |= {
                measure: values.mean() if len(values) else np.nan,
                f"{measure}_low": low,
                f"{measure}_high": high,
                f"{measure}_seeds": len(values),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def cases(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """What every case is called, and its rows of :func:`curves` or of :func:`summary`.

    Level and problem are told only where cases would be called the same without.
    """
    found = []
    for _, group in table.groupby(CASE, sort=False):
        first, alike, parts = group.iloc[0], table, []
        for column in CASE:
            if column in _NAMED:
                parts.append(str(first[column]))
            elif alike[column].nunique() > 1:
                parts.append(f"{column} {first[column]}")
            alike = alike[alike[column] == first[column]]
        found.append((", ".join(parts), group))
    return found


def write_comparison(runs: Sequence[RunDirectory], output: Storage) -> pd.DataFrame:
    """Write curves and summary as CSV and Parquet, and a picture of every case.

    Args:
        runs: The runs.
        output: Where to; made if it is missing.

    Returns:
        The summary.

    Raises:
        InputError: there is nothing to compare, or it cannot be written.
    """
    from search import figures  # matplotlib takes a while to import

    table = curves(runs)
    overview = summary(table, runs)
    files = {**table_files("curves", table), **table_files("summary", overview)}
    for number, (title, group) in enumerate(cases(table)):
        picture = figures.learning_curves(group, title)
        files[f"curves-{number}.png"] = figures.png(picture)
    try:
        output.make()
        for name, content in files.items():
            output.write(name, content)
    except OSError as error:
        raise write_error("output", output.location, error) from None
    return overview


def _run_curves(run: RunDirectory) -> list[dict[str, object]]:
    spec, rows = run.spec(), run.ledger.read(MEASURED)
    dense, int8 = (baseline(rows, name, "search") for name in (DENSE_FP32, DENSE_INT8))
    if dense is None or int8 is None:
        return []
    search = distinct(rows, "search")
    problem = _problem(spec)
    found = []
    for seed in spec.seeds:
        own = search[(search["seed"] == seed) | (search["seed"] == -1)]
        own = own.sort_values("seed", key=lambda seeds: seeds != -1, kind="stable")
        given = int((own["seed"] == -1).sum())
        drops = np.nan_to_num(accuracy_drop(own, dense), nan=np.inf)
        drops[~holds_limits(own, spec.goals.limits)] = np.inf
        ratios = cost_ratios(own, int8, spec.goals.preference)
        for count in range(given, len(own) + 1):
            row: dict[str, object] = {
                "task": spec.task.name,
                "accelerator": spec.accelerator,
                "minimized": str(spec.goals.preference),
                "level": spec.level,
                "problem": problem,
                "algorithm": _label(spec),
                "run": run.location,
                "seed": seed,
                "evaluations": count - given,
                "hypervolume": hypervolume(ratios[:count], drops[:count]),
            }
            for target in spec.targets:
                held = ratios[:count][drops[:count] <= target]
                row[f"ratio_at_{target:g}"] = held.min() if len(held) else np.nan
            found.append(row)
    return found


def _problem(spec: Spec) -> str:
    data = spec.to_json()
    asked = json.dumps([data["task"], data["space"], data["robustness"]], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:8]


def _label(spec: Spec) -> str:
    """The algorithm, and what makes it another one."""
    measured = f" ({spec.accuracy})" if spec.accuracy == "measured" else ""
    warm = " (warm)" if spec.init_from else ""
    limits = f", {spec.goals.limits}" if spec.goals.limits.given else ""
    settings = spec.policies.model_dump(mode="json") if spec.policies else {}
    policies = "".join(f", {name} {value}" for name, value in settings.items())
    return spec.algorithm + measured + warm + limits + policies


def _run_picks(run: RunDirectory) -> list[dict[str, object]]:
    spec, rows = run.spec(), run.ledger.read(MEASURED)
    dense, int8 = (baseline(rows, name, "search") for name in (DENSE_FP32, DENSE_INT8))
    dense_test = baseline(rows, DENSE_FP32, "test")
    if dense is None or int8 is None or dense_test is None:
        return [{"run": run.location, "seed": seed} for seed in spec.seeds]
    test = rows[(rows["split"] == "test") & rows["accuracy"].notna()]
    verified = test.drop_duplicates("config_hash").set_index("config_hash")["accuracy"]
    found = []
    for seed in spec.seeds:
        row: dict[str, object] = {"run": run.location, "seed": seed}
        own = Candidates(rows[rows["seed"].isin([seed, -1])], dense, int8, spec.goals)
        for target in spec.targets:
            picked = own.pick(Goal(max_accuracy_drop=target))
            ratio = lost = expected = np.nan
            if picked is not None:
                ratio = float(picked["cost_ratio"])
                expected = 100 * (dense["accuracy"] - picked["accuracy"])
                if picked["config_hash"] in verified:
                    lost = 100 * (dense_test["accuracy"] - verified[picked["config_hash"]])
            row[f"pick_ratio_at_{target:g}"] = ratio
            row[f"pick_test_drop_at_{target:g}"] = lost
            row[f"pick_optimism_at_{target:g}"] = lost - expected
        found.append(row)
    return found


def _bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    draws = np.random.default_rng(0).choice(values, size=(_RESAMPLES, len(values)))
    edges = (1 - _INTERVAL) / 2, (1 + _INTERVAL) / 2
    low, high = np.quantile(draws.mean(axis=1), edges)
    return float(low), float(high)
