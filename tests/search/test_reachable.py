from __future__ import annotations

from dataclasses import replace

import pytest

from envs.episode import start_choice
from envs.limits import CostLimits
from hwmodel import InputError
from search.reachable import require_energies
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


def test_what_an_energy_is_refused_with_can_be_reached() -> None:
    int8_pj = float(PROBLEM.cost(start_choice(PROBLEM.space)[None]).energy_pj[0])
    with pytest.raises(InputError, match=r"energy_targets: 0\.01") as refused:
        require_energies(PROBLEM, (0.5, 0.01), int8_pj)
    least = float(refused.value.allowed.split(" takes ")[1].split()[0])
    require_energies(PROBLEM, (least + 0.001,), int8_pj)
    with pytest.raises(InputError):
        require_energies(PROBLEM, (0.95 * least,), int8_pj)
    require_energies(PROBLEM, (), int8_pj)


def test_no_limits_are_held() -> None:
    check(CostLimits())


def test_a_limit_is_named_as_the_user_gave_it() -> None:
    """At another level than the problem's, where costs are half."""
    with pytest.raises(InputError, match=r"limits\.bops: 2e-06"):
        require_reachable(replace(PROBLEM, limits=CostLimits(bops=1e-6)), CostLimits(bops=2e-6))
