from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwmodel.errors import InputError
from search.local_search import STATE
from search.local_search import LocalSearchProposer
from search.measurements import Measurements
from search.predicted_front import FRONT_PRICES
from search.predicted_front import Front
from search.storage import Storage
from tests.search.test_proposers import PROBLEM
from tests.search.test_proposers import REFERENCE
from tests.search.test_proposers import START
from tests.search.test_proposers import measure
from tests.search.test_proposers import search
from tests.search.test_proposers import volume


def proposer_in(folder: Path) -> LocalSearchProposer:
    return LocalSearchProposer(PROBLEM, REFERENCE, 0, Storage.at(folder))


def test_it_begins_with_plain_allocation_and_finds_what_loses_less(tmp_path: Path) -> None:
    known = Measurements(PROBLEM, REFERENCE)
    plain = np.unique(Front(PROBLEM, REFERENCE).allocate(known, FRONT_PRICES), axis=0)
    proposer = proposer_in(tmp_path)
    found = search(proposer, batches=6, count=16)
    assert volume(found[: len(plain)]) > 0.98 * volume(plain)
    assert volume(found) > 1.005 * volume(plain)


def test_what_is_kept_for_a_budget_holds_it_and_never_loses_more(tmp_path: Path) -> None:
    proposer = proposer_in(tmp_path)
    proposer.learn(START, measure(START))
    ratios: dict[float, float] = {}
    reached = []
    for _ in range(5):
        choices = proposer.propose(16)
        proposer.learn(choices, measure(choices))
        cost = PROBLEM.cost(choices).energy_pj / REFERENCE.cost
        ratios.update(zip(measure(choices).tolist(), cost, strict=True))
        kept = [item.accuracy for item in proposer._incumbents]
        reached.append(kept)
    assert np.all(np.diff(reached, axis=0) >= 0)
    assert np.any(np.diff(reached[-2:], axis=0) > 0)
    for budget, accuracy in zip(proposer._budgets, kept, strict=True):
        assert ratios.get(accuracy, 0.0) <= budget * (1 + 1e-9)


def test_a_resumed_search_goes_on_from_its_coefficients(tmp_path: Path) -> None:
    whole = proposer_in(tmp_path)
    known = np.concatenate([START, search(whole, batches=2, count=24)])
    whole.save()
    resumed = proposer_in(tmp_path)
    resumed.learn(known, measure(known))
    forgetful = proposer_in(tmp_path / "elsewhere")
    forgetful.learn(known, measure(known))
    expected = whole.propose(12)
    assert np.array_equal(resumed.propose(12), expected)
    assert not np.array_equal(forgetful.propose(12), expected)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"[]", b'[{"accuracy": 1.0}]'])
def test_damaged_coefficients_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / STATE).write_bytes(content)
    with pytest.raises(InputError, match=STATE):
        proposer_in(tmp_path)


def test_what_another_seed_measured_is_remembered(tmp_path: Path) -> None:
    """A resumed search learns of it no more: the row in the ledger is the other seed's."""
    whole = proposer_in(tmp_path)
    search(whole, batches=1, count=16)
    whole.save()
    resumed = proposer_in(tmp_path)
    kept = [[item.accuracy for item in each._incumbents] for each in (whole, resumed)]
    assert kept[0] == kept[1]
    assert max(kept[1]) > 0


def test_a_round_that_taught_nothing_is_not_repeated(tmp_path: Path) -> None:
    proposer = proposer_in(tmp_path)
    proposer.learn(START, measure(START))
    assert not np.array_equal(proposer.propose(8), proposer.propose(8))
