"""What a run found, from its ledger alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from envs.attack import Attack
from envs.limits import CostLimits
from envs.preference import CostFunction
from envs.preference import Preference
from hwmodel.errors import InputError
from search.baselines import BASELINES
from search.baselines import DENSE_FP16
from search.baselines import DENSE_FP32
from search.baselines import DENSE_INT8
from search.front import accuracy_drop
from search.front import baseline
from search.front import cost_ratios
from search.front import distinct
from search.front import holds_limits
from search.front import hypervolume
from search.front import non_dominated
from search.front import relative_to
from search.goals import Goals
from search.ledger import MEASURED
from search.ledger import RECALIBRATED
from search.picks import picks
from search.picks import unreached
from search.run_directory import RunDirectory
from search.timing import Timing
from search.timing import timing


@dataclass(frozen=True)
class Entry:
    """One configuration. Accuracies are None until the test split has been evaluated.

    Attributes:
        name: Name of the baseline; empty for what a search found.
        config_hash: Its hash.
        accuracy: On the test split, 0..1.
        accuracy_drop: Points lost against dense FP32 on the test split.
        search_accuracy_drop: Points lost on the search split, which the search optimized.
        robust_accuracy: Under the run's attack on the test split, 0..1; None without one.
        search_robust_accuracy: The same on the search split.
        energy_pj: Energy of one inference; it and the other costs are None for a baseline that
            is wider than what the accelerator takes.
        energy_ratio_int8, energy_ratio_fp16: That over dense INT8's and over dense FP16's; None
            until those have been evaluated.
        cost_ratio_int8: What the run minimized, over dense INT8's: ``energy_ratio_int8`` unless it
            has a preference.
        latency_cycles, bops, model_bytes: Further costs.
    """

    name: str
    config_hash: str
    accuracy: float | None
    accuracy_drop: float | None
    search_accuracy_drop: float | None
    robust_accuracy: float | None
    search_robust_accuracy: float | None
    energy_pj: float | None
    energy_ratio_int8: float | None
    energy_ratio_fp16: float | None
    cost_ratio_int8: float | None
    latency_cycles: float | None
    bops: float | None
    model_bytes: float | None


@dataclass(frozen=True)
class Pick(Entry):
    """The configuration taken for one goal, by the search split alone.

    Attributes:
        max_accuracy_drop: Points that may be lost; None where the goal is an energy.
        max_energy_ratio: Energy over that of dense INT8; None where the goal is a loss.
        search_drop_bound: Points that it loses at most on images like those of the search split,
            by the bound that it was picked by.
        verified: Whether it has been evaluated on the test split.
        recalibrated_accuracy: On the test split, 0..1, of the same configuration compressed from
            another sample of calibration data; None until that has been evaluated, and where the
            task has no other sample.
        recalibrated_accuracy_drop: Points lost so against dense FP32 on the test split.
        recalibration_error: Why there is no such accuracy, if it was tried.
    """

    max_accuracy_drop: float | None
    max_energy_ratio: float | None
    search_drop_bound: float
    verified: bool
    recalibrated_accuracy: float | None
    recalibrated_accuracy_drop: float | None
    recalibration_error: str | None


@dataclass(frozen=True)
class Report:
    """What a run found; :meth:`to_json` is documented in docs/cli.md.

    Attributes:
        level: Level of the hardware model that energies and cycles are of.
        attack: What robust accuracies are under; None where none were measured.
        limits: What picks and the front hold.
        preference: The costs that they are the least of, as weights of shares of dense INT8's.
        evaluations: Distinct configurations evaluated on the search split.
        search_images: Images of the search split; None before anything was evaluated.
        hypervolume: Of the search split, see ``search.front.hypervolume``; None without baselines.
        baselines: In the order of ``BASELINES``; those evaluated so far.
        best: For every goal that a configuration reaches.
        unreached: Names of the other goals; empty before the baselines were measured.
        front: Configurations of the search split that no other beats in cost, accuracy and, with
            an attack, robust accuracy; by ascending cost.
        points: Every evaluation of the search split, for the picture: columns ``name``,
            ``cost_ratio_int8`` and ``accuracy_drop`` (points).
        layers: Per-layer table by config hash, of the picks that have one.
        time: Where the time went.
    """

    run: str
    task: str
    accelerator: str
    level: str
    algorithm: str
    attack: Attack | None
    limits: CostLimits
    preference: Preference
    seeds: tuple[int, ...]
    budget: int
    evaluations: int
    search_images: int | None
    hypervolume: float | None
    baselines: list[Entry]
    best: list[Pick]
    unreached: list[str]
    front: list[Entry]
    points: pd.DataFrame = field(repr=False)
    layers: dict[str, pd.DataFrame] = field(repr=False)
    time: Timing

    def to_json(self) -> dict[str, Any]:
        """Plain data without the picture's ``points`` and ``layers``."""
        hidden = ("points", "layers")
        plain = {key: value for key, value in vars(self).items() if key not in hidden}
        lists = {key: [asdict(e) for e in plain[key]] for key in ("baselines", "best", "front")}
        stages = [{"stage": name, "seconds": time} for name, time in self.time.stages.items()]
        time = {**vars(self.time), "stages": stages}
        attack = None if self.attack is None else asdict(self.attack)
        return {
            **plain,
            **lists,
            "attack": attack,
            "limits": self.limits.given,
            "preference": self.preference.given,
            "seeds": list(self.seeds),
            "time": time,
        }


def build_report(run: RunDirectory) -> Report:
    """Read the ledger of a live or finished run.

    Raises:
        InputError: a part of the ledger is damaged.
    """
    spec, rows = run.spec(), run.ledger.read(MEASURED)
    search = distinct(rows, "search")
    measure = _Measure(rows, spec.goals.preference)
    best = measure.picks(spec.goals)
    drops = measure.drops(search)
    ratios = measure.cost_ratios(search)
    holds = holds_limits(search, spec.goals.limits)
    return Report(
        run=run.location,
        task=spec.task.name,
        accelerator=spec.accelerator,
        level=spec.level,
        algorithm=spec.algorithm,
        attack=spec.attack,
        limits=spec.goals.limits,
        preference=spec.goals.preference,
        seeds=spec.seeds,
        budget=spec.budget,
        evaluations=len(search),
        search_images=measure.search_images,
        hypervolume=hypervolume(ratios[holds], drops[holds]) if measure.is_complete else None,
        baselines=measure.baselines(),
        best=best,
        unreached=unreached(rows, spec.goals, {item.name for item in best}),
        front=measure.front(search[holds]),
        points=pd.DataFrame(
            {"name": search["name"], "cost_ratio_int8": ratios, "accuracy_drop": drops}
        ),
        layers=_read_layers(run, [item.config_hash for item in best]),
        time=timing(run.storage),
    )


class _Measure:
    """Turns ledger rows into entries, given the baselines among them and what of costs counts."""

    def __init__(self, rows: pd.DataFrame, preference: Preference) -> None:
        self.rows = rows
        self._preference = preference
        self._int8 = baseline(rows, DENSE_INT8, "search")
        self._cost = None if self._int8 is None else relative_to(self._int8, preference)
        self.search_reference = baseline(rows, DENSE_FP32, "search")
        self.test_reference = baseline(rows, DENSE_FP32, "test")
        self.int8_pj = _energy(rows, DENSE_INT8)
        self.fp16_pj = _energy(rows, DENSE_FP16)
        test = distinct(rows, "test").dropna(subset="accuracy")
        self._test = test.set_index("config_hash")
        again = distinct(rows, RECALIBRATED)
        self._recalibrated = dict(
            zip(
                again["config_hash"],
                zip(again["accuracy"], again["error"], strict=True),
                strict=True,
            )
        )

    @property
    def is_complete(self) -> bool:
        return self.search_reference is not None and self.int8_pj is not None

    @property
    def search_images(self) -> int | None:
        return None if self.search_reference is None else int(self.search_reference["images"])

    def drops(self, rows: pd.DataFrame) -> pd.Series:
        """Points lost on the search split; NaN where unknown."""
        if self.search_reference is None:
            return pd.Series(math.nan, index=rows.index)
        return pd.Series(accuracy_drop(rows, self.search_reference), index=rows.index)

    def cost_ratios(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """Costs over those of dense INT8, (rows,); NaN where unknown."""
        return cost_ratios(rows, self._int8, self._preference)

    def entry(self, row: pd.Series) -> Entry:
        return Entry(name=row["name"], **self._facts(row))

    def front(self, search: pd.DataFrame) -> list[Entry]:
        if self.search_reference is None:
            return []
        best = non_dominated(search, self.search_reference, self.cost_ratios(search))
        return [self.entry(search.iloc[i]) for i in best]

    def baselines(self) -> list[Entry]:
        found = (baseline(self.rows, name, "search") for name in BASELINES)
        return [self.entry(row) for row in found if row is not None]

    def picks(self, goals: Goals) -> list[Pick]:
        found = []
        for picked in picks(self.rows, goals):
            facts = self._facts(picked.row)
            pick = Pick(
                picked.goal.name,
                **facts,
                **self._from_other_calibration(picked.row["config_hash"]),
                **asdict(picked.goal),
                search_drop_bound=float(picked.row["drop_bound"]),
                verified=facts["accuracy"] is not None,
            )
            found.append(pick)
        return found

    def _from_other_calibration(self, config_hash: str) -> dict[str, Any]:
        measured, error = self._recalibrated.get(config_hash, (math.nan, None))
        accuracy = _known(measured)
        return {
            "recalibrated_accuracy": accuracy,
            "recalibrated_accuracy_drop": _drop(self.test_reference, accuracy),
            "recalibration_error": error if accuracy is None else None,
        }

    def _facts(self, row: pd.Series) -> dict[str, Any]:
        accuracy = robust = None
        if row["config_hash"] in self._test.index:
            tested = self._test.loc[row["config_hash"]]
            accuracy, robust = float(tested["accuracy"]), _known(tested["robust_accuracy"])
        return {
            "config_hash": row["config_hash"],
            "accuracy": accuracy,
            "accuracy_drop": _drop(self.test_reference, accuracy),
            "search_accuracy_drop": _drop(self.search_reference, row["accuracy"]),
            "robust_accuracy": robust,
            "search_robust_accuracy": _known(row["robust_accuracy"]),
            "energy_pj": _known(row["energy_pj"]),
            "energy_ratio_int8": _ratio(row["energy_pj"], self.int8_pj),
            "energy_ratio_fp16": _ratio(row["energy_pj"], self.fp16_pj),
            "cost_ratio_int8": None if self._cost is None else _known(_cost_of(row, self._cost)),
            "latency_cycles": _known(row["latency_cycles"]),
            "bops": _known(row["bops"]),
            "model_bytes": _known(row["model_bytes"]),
        }


def _read_layers(run: RunDirectory, hashes: Sequence[str]) -> dict[str, pd.DataFrame]:
    names = set(run.report.names("report"))
    layers = {}
    for config_hash in hashes:
        name = f"layers-{config_hash}.parquet"
        if name in names:
            try:
                table = pq.read_table(pa.BufferReader(run.report.read(name)))
            except (pa.ArrowException, OSError) as error:
                where = f"{run.report.location}/{name}"
                allowed = "it is not a whole Parquet file; remove it"
                raise InputError("report", where, allowed) from error
            layers[config_hash] = table.to_pandas()
    return layers


def _energy(rows: pd.DataFrame, name: str) -> float | None:
    row = baseline(rows, name, "search")
    return None if row is None else _known(row["energy_pj"])


def _cost_of(row: pd.Series, function: CostFunction) -> float:
    return float(function.cost_of({name: row[name] for name in function.weights}))


def _ratio(energy_pj: float, reference_pj: float | None) -> float | None:
    return None if reference_pj is None else _known(energy_pj / reference_pj)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _drop(reference: pd.Series | None, accuracy: float | None) -> float | None:
    if reference is None or accuracy is None or pd.isna(accuracy):
        return None
    return float((reference["accuracy"] - accuracy) * 100)
