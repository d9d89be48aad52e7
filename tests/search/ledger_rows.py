"""Ledger rows for tests."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from datetime import timedelta
from datetime import timezone

from search.baselines import BASELINES
from search.ledger import Evaluation

ROW = Evaluation(
    config_hash="0" * 16,
    config="{}",
    task="digits",
    weights_hash="w" * 16,
    split="search",
    role="search",
    name="",
    accuracy=0.9,
    block_accuracies=(0.9,) * 10,
    images=1000,
    robust_accuracy=None,
    energy_pj=50e6,
    latency_cycles=1e5,
    bops=2e7,
    model_bytes=4e4,
    dram_bytes=9e4,
    accelerator="eyeriss-like",
    seconds=0.5,
    seed=0,
    algorithm="ppo",
    host="here",
    time=datetime(2025, 1, 1, tzinfo=timezone.utc),
    code_version="1",
)


def evaluation(number: int = 0, **changes: object) -> Evaluation:
    """Configuration ``number``; where the accuracy is given, all blocks have it."""
    accuracy = changes.get("accuracy", ROW.accuracy)
    defaults = {
        "config_hash": f"{number:016x}",
        "time": ROW.time + timedelta(seconds=number),
        "block_accuracies": () if accuracy is None else (accuracy,) * 10,
    }
    return dataclasses.replace(ROW, **{**defaults, **changes})


def baselines(split: str = "search") -> list[Evaluation]:
    """FP32, FP16 and INT8 at 90 %, then a point less each; energy in proportion to the bits."""
    rows = []
    for number, (name, bits) in enumerate(BASELINES.items()):
        rows.append(
            evaluation(
                1000 + number,
                name=name,
                role="baseline",
                seed=-1,
                split=split,
                accuracy=0.9 if bits >= 8 else 0.9 - (8 - bits) * 0.01,
                energy_pj=bits * 10e6,
            )
        )
    return rows
