"""What a seed's search tells while it runs: numbers for Prometheus, and for TensorBoard."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pandas as pd
from ray.util import metrics as prometheus

from search.baselines import DENSE_FP32
from search.estimates import COMPARABLE_DROP
from search.front import smallest_provable_drop
from search.goals import Goals
from search.ledger import Evaluation
from search.picks import best_so_far

_COUNTERS = {
    "evaluations": "True evaluations that were recorded, failed ones included",
    "failed_evaluations": "Evaluations that were recorded with an error",
    "evaluation_seconds": "Time that evaluators spent in evaluations",
    "evaluator_seconds": "Time that evaluators were held",
    "learning_seconds": "Time that trials proposed and learned, while no evaluator was at work",
    "trial_seconds": "Time that trials took",
    "cache_hits": "Proposed configurations whose accuracy was known",
    "lost_evaluators": "Evaluators that died or did not answer in time",
}
_GAUGES = {
    "queue_depth": "Configurations that wait for an evaluator",
    "evaluations_per_second": "Rate over the last round",
    "busy_share": "Share of the last round that evaluators, and GPUs they hold, were at work",
}


class SeedMetrics:
    """What one seed has done so far.

    Ray exports the counts to Prometheus as they change, on machines with ``ray[default]``.

    Args:
        run: The run's directory, which tells its metrics from others'.
        seed: The seed.
        evaluators: How many it has.
        goals: At whose targets the least cost is reported.
    """

    def __init__(self, run: str, seed: int, evaluators: int, goals: Goals) -> None:
        tags = {"run": run, "seed": str(seed)}
        self._counters = {
            name: _tagged(prometheus.Counter, name, text, tags) for name, text in _COUNTERS.items()
        }
        self._gauges = {
            name: _tagged(prometheus.Gauge, name, text, tags) for name, text in _GAUGES.items()
        }
        text = "Least cost within a target's loss, over that of dense INT8"
        self._best = _tagged(prometheus.Gauge, "best_cost_ratio", text, tags, "target")
        self._evaluators = evaluators
        self._goals = goals
        self._dense: Evaluation | None = None
        self._rows: list[Evaluation] = []
        self._ratios: dict[str, float] = {}
        self._is_stale = False
        self._totals = dict.fromkeys(_COUNTERS, 0.0)
        self._at_round = dict(self._totals)
        self._depths: list[int] = []
        self._since = time.monotonic()

    def known(self, rows: Sequence[Evaluation]) -> None:
        """What the ledger has on the search split of the baselines and of the seed."""
        self._dense = next((row for row in rows if row.name == DENSE_FP32), None)
        self._rows = [_without_config(row) for row in rows if self._counts(row)]
        self._is_stale = True

    def count(self, name: str, amount: float = 1) -> None:
        """Add to one of the counts."""
        if amount > 0:
            self._totals[name] += amount
            self._counters[name].inc(amount)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Count the time of the block as that of proposing and learning."""
        start = time.monotonic()
        yield
        self.count("learning_seconds", time.monotonic() - start)

    def evaluated(self, row: Evaluation, waiting: int) -> None:
        """Take in an evaluation that ended while ``waiting`` others waited for an evaluator."""
        self.count("evaluations")
        self.count("evaluation_seconds", row.seconds)
        if row.error is not None:
            self.count("failed_evaluations")
        self._gauges["queue_depth"].set(waiting)
        self._depths.append(waiting)
        if self._counts(row):
            self._rows.append(_without_config(row))
            self._is_stale = True

    def end_round(self) -> dict[str, float]:
        """Figures of the time since the last round; counts are totals since the trial started."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self.count("trial_seconds", seconds)
        self.count("evaluator_seconds", seconds * self._evaluators)
        done = {name: total - self._at_round[name] for name, total in self._totals.items()}
        self._at_round = dict(self._totals)
        figures = {
            "queue_depth": sum(self._depths) / max(1, len(self._depths)),
            "evaluations_per_second": done["evaluations"] / seconds,
            "busy_share": min(1.0, done["evaluation_seconds"] / (seconds * self._evaluators)),
        }
        self._depths.clear()
        for name, value in figures.items():
            self._gauges[name].set(value)
        if self._is_stale:
            self._update_best()
        for target, ratio in self._ratios.items():
            self._best.set(ratio, {"target": target})
        ratios = {f"best_cost_ratio/{target}": ratio for target, ratio in self._ratios.items()}
        return self._totals | figures | ratios

    def _counts(self, row: Evaluation) -> bool:
        """False where a row neither can be best nor tells what others lose; this takes no time."""
        if row.role == "baseline":
            return True
        if self._dense is None or self._dense.accuracy is None or row.accuracy is None:
            return False
        if row.predicted_drop is not None and row.predicted_drop < COMPARABLE_DROP:
            return True
        drop = 100 * (self._dense.accuracy - row.accuracy)
        return drop <= max(*self._goals.targets, smallest_provable_drop(self._dense.images))

    def _update_best(self) -> None:
        """Best by target, as the status of the run has them."""
        best = best_so_far(pd.DataFrame(self._rows), self._goals) if self._rows else []
        self._ratios = {
            f"{entry['max_accuracy_drop']:g}": entry["cost_ratio_int8"]
            for entry in best
            if entry["max_accuracy_drop"] is not None
        }
        self._is_stale = False


def _without_config(row: Evaluation) -> Evaluation:
    """The row without its longest text, since thousands are kept."""
    return replace(row, config="")


def tensorboard_record(step: int, values: Mapping[str, float]) -> bytes:
    """Scalars of one step, as they are appended to an event file of TensorBoard.

    The format is that of TFRecord files: length, masked CRC-32C of the length, data, that of the
    data. Writers of whole files exist, but their errors, as of a full disk, are lost in threads.
    """
    # Comes with Ray Tune; not imported by those who write none.
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboardX.record_writer import masked_crc32c  # type: ignore[import-untyped]

    scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    event = Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    crcs = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + crcs[0] + data + crcs[1]


def _tagged(kind: Any, name: str, text: str, tags: dict[str, str], *more: str) -> Any:
    metric = kind(f"joulecut_{name}", text, tag_keys=(*tags, *more))
    metric.set_default_tags(tags)
    return metric
