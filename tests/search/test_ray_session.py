"""How much of a cluster a search takes."""

from __future__ import annotations

import pytest
import ray

from search.ray_session import evaluators_that_fit
from search.spec import ResourceSection


@pytest.mark.parametrize(
    ("there", "trials", "resources", "expected"),
    [
        ({"CPU": 2.0}, 1, {}, 2),
        ({"CPU": 2.0}, 2, {}, 1),
        ({"CPU": 1.0}, 4, {}, 1),
        ({"CPU": 64.0}, 2, {}, 39),
        ({"CPU": 64.0, "GPU": 2.0}, 2, {"evaluator_gpus": 0.25}, 4),
        ({"CPU": 64.0}, 2, {"evaluator_gpus": 0.25}, 1),  # until a machine with one joins
    ],
)
def test_evaluators_share_the_cluster_with_all_trials(
    there: dict[str, float],
    trials: int,
    resources: dict[str, float],
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert evaluators_that_fit(ResourceSection(**resources), trials) == expected
