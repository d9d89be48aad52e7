"""What an earlier run measured: when it counts, and what it is good for."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from ledger_rows import baselines
from ledger_rows import evaluation

from hwmodel.errors import InputError
from search.baselines import DENSE_FP32
from search.checkpoints import INITIAL_POLICIES
from search.earlier import ACCURACIES
from search.earlier import Accuracies
from search.earlier import accuracies_file
from search.earlier import earlier_accuracies
from search.front import baseline
from search.ledger import Evaluation
from search.measurements import Measurements
from search.storage import Storage
from tests.search.test_proposers import PROBLEM
from tests.search.test_proposers import REFERENCE
from tests.search.test_proposers import measure

CHOICES = PROBLEM.space.sample(np.random.default_rng(0), 6)
ELSEWHERE = PROBLEM.space.config(CHOICES[0])


def table(rows: list[Evaluation]) -> pd.DataFrame:
    return pd.DataFrame([vars(row) for row in rows])


def ledger() -> list[Evaluation]:
    """Baselines, what was measured, a failure, the test split, and another menu's decision."""
    configs = [PROBLEM.space.config(choice) for choice in CHOICES]
    found = [
        evaluation(
            number,
            config=json.dumps(config.to_json()),
            config_hash=config.hash,
            accuracy=accuracy,
        )
        for number, (config, accuracy) in enumerate(zip(configs, measure(CHOICES), strict=True))
    ]
    on_test = replace(found[0], split="test", accuracy=0.1)
    odd = {name: replace(each, weight_bits=16) for name, each in ELSEWHERE.layers.items()}
    other = replace(ELSEWHERE, layers=odd)
    kept = [replace(row, config=json.dumps(other.to_json())) for row in baselines()]
    failed = replace(found[-1], accuracy=None, block_accuracies=(), error="out of memory")
    return [*kept, *found[:-1], failed, on_test]


def folder(tmp_path: object, content: bytes) -> Storage:
    policies = Storage.at(str(tmp_path))
    initial = policies.child(INITIAL_POLICIES)
    initial.make()
    initial.write(ACCURACIES, content)
    return policies


def dense(**changes: object) -> pd.Series:
    row = baseline(table([replace(each, **changes) for each in baselines()]), DENSE_FP32, "search")
    assert row is not None
    return row


def test_what_was_measured_of_the_same_network_is_known(tmp_path: object) -> None:
    policies = folder(tmp_path, accuracies_file(table(ledger())))
    known = earlier_accuracies(policies, PROBLEM.space, dense())
    assert np.array_equal(known.choices, CHOICES[:-1])
    assert np.array_equal(known.accuracy, measure(CHOICES[:-1]))


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_hash": "v" * 16},
        {"images": 999},
        {"code_version": "2"},
        {"block_accuracies": (0.8, 1.0) * 5},
    ],
)
def test_another_network_or_other_images_tell_nothing(
    tmp_path: object, changes: dict[str, object]
) -> None:
    policies = folder(tmp_path, accuracies_file(table(ledger())))
    assert not len(earlier_accuracies(policies, PROBLEM.space, dense(**changes)).accuracy)


def test_nothing_is_known_where_nothing_was_kept(tmp_path: object) -> None:
    known = earlier_accuracies(Storage.at(str(tmp_path)), PROBLEM.space, dense())
    assert known.choices.shape == (0, *CHOICES.shape[1:])


def test_a_damaged_file_is_named(tmp_path: object) -> None:
    policies = folder(tmp_path, accuracies_file(table(ledger()))[:500])
    with pytest.raises(InputError, match=f"{ACCURACIES}.*damaged"):
        earlier_accuracies(policies, PROBLEM.space, dense())


def test_a_predictor_that_knows_them_errs_less() -> None:
    samples = PROBLEM.space.sample(np.random.default_rng(1), 80)
    mild = samples[measure(samples) > 0.4]
    known, unseen = mild[: len(mild) // 2], mild[len(mild) // 2 :]
    errors = []
    for earlier in (None, Accuracies(known, measure(known))):
        measurements = Measurements(PROBLEM, REFERENCE, earlier)
        measurements.fit()
        foretold = measurements.predictor.accuracy_drop(unseen)
        errors.append(np.abs(foretold - 100 * (0.9 - measure(unseen))).mean())
        assert not measurements.seen
    assert errors[1] < 0.7 * errors[0]
