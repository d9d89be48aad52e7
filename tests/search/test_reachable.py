from __future__ import annotations

from dataclasses import replace

import pytest

from envs.limits import CostLimits
from hwmodel import InputError
from search.reachable import require_reachable
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=2)


def check(limits: CostLimits) -> None:
    require_reachable(replace(PROBLEM, limits=limits), limits)


def least(name: str) -> float:
    """What a limit that is out of reach is refused with."""
    with pytest.raises(InputError) as refused:
        check(CostLimits(**{name: 1e-3}))
    assert refused.value.field == f"limits.{name}"
    return float(refused.value.allowed.split()[-1])


@pytest.mark.parametrize("name", list(vars(CostLimits())))
def test_what_a_limit_is_refused_with_can_be_held(name: str) -> None:
    check(CostLimits(**{name: least(name)}))
    with pytest.raises(InputError):
        check(CostLimits(**{name: 0.9 * least(name)}))


def test_no_limits_are_held() -> None:
    check(CostLimits())


def test_a_limit_is_named_as_the_user_gave_it() -> None:
    """At another level than the problem's, where costs are half."""
    with pytest.raises(InputError, match=r"limits\.bops: 2e-06"):
        require_reachable(replace(PROBLEM, limits=CostLimits(bops=1e-6)), CostLimits(bops=2e-6))
