"""What a trial that starts, or starts again, knows from the ledger."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
from ledger_rows import evaluation

from envs.config import CompressionConfig
from envs.config import uniform
from envs.episode import start_choice
from search.baselines import DENSE_FP32
from search.baselines import DENSE_INT8
from search.goals import Goals
from search.ledger import Evaluation
from search.ledger import Ledger
from search.policy_settings import PolicySettings
from search.storage import Storage
from search.trial import TrialSetup
from search.trial import _resumed
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=1)
SPACE = PROBLEM.space
INT8 = SPACE.config(start_choice(SPACE))
FOUND = SPACE.config(np.where(np.arange(4) == 2, 0, start_choice(SPACE)))  # fewer weight bits


def row(number: int, config: CompressionConfig, **changes: Any) -> Evaluation:
    text = json.dumps(config.to_json())
    return evaluation(number, config_hash=config.hash, config=text, **changes)


def setup(folder: Path) -> TrialSetup:
    run = Storage.at(folder)
    return TrialSetup(
        problem=PROBLEM,
        worker=Mock(ledger=run.child("ledger")),
        algorithm="random",
        accuracy="predicted",
        policies=PolicySettings(),
        shares={0: 20},
        baselines={},
        chance=0.1,
        goals=Goals((1.0,)),
        evaluators=1,
        evaluator_cpus=1.0,
        evaluator_gpus=0.0,
        evaluation_timeout=None,
        recalibrates=False,
        run=run,
        permit=Mock(),
    )


def test_what_failed_before_it_was_measured_is_learnt_once(tmp_path: Path) -> None:
    dense = row(1, uniform(SPACE.layers, 32), role="baseline", name=DENSE_FP32, seed=-1)
    int8 = row(3, INT8, role="baseline", name=DENSE_INT8, seed=-1, accuracy=0.89)
    found = row(5, FOUND, accuracy=0.85)
    rows = [dense, int8, found]
    failed = [
        replace(item, time=item.time.replace(year=2024), accuracy=None, error="it hung")
        for item in rows
    ]
    Ledger(tmp_path / "ledger").append([*failed, *rows, row(6, FOUND, split="test")])
    metrics = Mock()
    seeker, spent = _resumed(0, setup(tmp_path), metrics, Mock())
    assert spent == 1
    assert seeker._known.accuracy.tolist() == [0.89, 0.85]  # FP32 is in no space
    (known,) = metrics.known.call_args.args
    assert [item.config_hash for item in known] == [item.config_hash for item in rows]
    assert all(item.accuracy is not None for item in known)
