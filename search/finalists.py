"""Which configurations of a run are verified, and their per-layer tables."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from envs.config import CompressionConfig
from hwmodel import CostReport
from search.baselines import BASELINES
from search.baselines import DENSE_FP32
from search.baselines import DENSE_INT8
from search.front import accuracy_drop
from search.front import baseline
from search.front import cost_ratios
from search.front import distinct
from search.front import holds_limits
from search.front import non_dominated
from search.goals import Goals
from search.ledger import MEASURED
from search.ledger import Ledger
from search.picks import picks
from search.run_directory import RunDirectory
from search.spec import Spec
from search.storage import write_error

if TYPE_CHECKING:
    from search.evaluation import EvaluationWorker

FRONT_POINTS = 8
"""Points of the front that are verified next to the picks, spread over it."""
_FRONT_LOSS = 10.0
"""Points of accuracy lost up to which the front is of interest."""


def picked_hashes(rows: pd.DataFrame, goals: Goals) -> list[str]:
    """Hashes of the configurations taken for the goals of a run, each once."""
    return list(dict.fromkeys(picked.row["config_hash"] for picked in picks(rows, goals)))


def picked_configs(ledger: Ledger, goals: Goals) -> list[CompressionConfig]:
    """The configurations taken for the goals of a run, each once."""
    hashes = picked_hashes(ledger.read(MEASURED), goals)
    texts = ledger.configs(hashes)
    return [CompressionConfig.from_json(json.loads(texts[key])) for key in hashes]


def finalists(ledger: Ledger, goals: Goals) -> list[tuple[CompressionConfig, str]]:
    """Baselines, picks and a spread of the front, with the names of the baselines."""
    rows = ledger.read(MEASURED)
    reference = baseline(rows, DENSE_FP32, "search")
    assert reference is not None
    chosen = dict.fromkeys(picked_hashes(rows, goals), "")
    search = distinct(rows, "search")
    search = search[holds_limits(search, goals.limits)]
    drops = accuracy_drop(search, reference)
    cost = cost_ratios(search, baseline(rows, DENSE_INT8, "search"), goals.preference)
    front = [int(i) for i in non_dominated(search, reference, cost) if drops[i] <= _FRONT_LOSS]
    spread = np.linspace(0, len(front) - 1, min(FRONT_POINTS, len(front))).round().astype(int)
    for index in spread:
        chosen[search.iloc[front[index]]["config_hash"]] = ""
    for name in BASELINES:
        row = baseline(rows, name, "search")
        if row is not None:
            chosen[row["config_hash"]] = name
    configs = ledger.configs(chosen)
    return [
        (CompressionConfig.from_json(json.loads(configs[key])), name)
        for key, name in chosen.items()
    ]


def write_layer_tables(run: RunDirectory, spec: Spec, worker: EvaluationWorker) -> None:
    """Write ``report/layers-<hash>.parquet`` for every pick: what it decides and costs."""
    for config in picked_configs(run.ledger, spec.goals):
        states = worker.states(config)
        table = layer_table(config, worker.price_states(states))
        table["weight_density"] = states.weight_density[0]
        table["in_channels"] = states.in_channels[0].astype(int)
        table["out_channels"] = states.out_channels[0].astype(int)
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        name = f"layers-{config.hash}.parquet"
        try:
            run.report.write_patiently(name, buffer.getvalue())
        except OSError as error:
            raise write_error("report", run.report.location, error) from error


def layer_table(config: CompressionConfig, report: CostReport) -> pd.DataFrame:
    """Decision and cost of every layer, one row each."""
    costs = report.to_pandas()[["layer", "energy_pj", "latency_cycles", "macs"]]
    decisions = pd.DataFrame(
        [{"layer": name, **vars(decision)} for name, decision in config.layers.items()]
    )
    return decisions.merge(costs, on="layer")
