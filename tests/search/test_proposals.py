from __future__ import annotations

import numpy as np
import pytest

from envs.episode import start_choice
from envs.predictor import AccuracyPredictor
from search.front import hypervolume
from search.proposals import _Front
from search.proposals import linear_axis
from search.proposals import propose_random
from search.proposals import select
from tests.envs.synthetic import synthetic_problem

PROBLEM = synthetic_problem(blocks=2)
SPACE = PROBLEM.space
START = start_choice(SPACE)
BASELINE = float(PROBLEM.cost(START[None]).energy_pj[0])
PREDICTOR = AccuracyPredictor(PROBLEM.table, reference=0.9, chance=0.1)
NOTHING = np.empty(0)


def mild(count: int, seed: int = 0) -> np.ndarray:
    """Choices with a few layers changed a little."""
    rng = np.random.default_rng(seed)
    choices = np.repeat(START[None], count, axis=0)
    choices[..., 2:] -= rng.integers(0, 3, choices[..., 2:].shape)
    return SPACE.canonical(choices)


def hashes(choices: np.ndarray) -> list[str]:
    return [SPACE.config(choice).hash for choice in choices]


def pick(
    candidates: np.ndarray,
    count: int,
    seen: set[str] | None = None,
    aims: tuple[float, ...] = (0.5, 1.0),
    energy_aims: tuple[float, ...] = (),
) -> np.ndarray:
    arguments = (seen or set(), NOTHING, NOTHING, NOTHING, BASELINE, aims, energy_aims)
    return select(PROBLEM, PREDICTOR, candidates, count, *arguments)


def test_picks_are_distinct_candidates() -> None:
    candidates = mild(50)
    picked = pick(np.concatenate([candidates, candidates]), 20)
    assert len(picked) == len(set(hashes(picked))) == 20
    assert set(hashes(picked)) <= set(hashes(candidates))


def test_what_was_seen_is_not_picked_again() -> None:
    candidates = mild(10)
    seen = set(hashes(candidates[:6]))
    assert set(hashes(pick(candidates, 10, seen))) == set(hashes(candidates[6:]))


def test_the_first_pick_promises_most() -> None:
    candidates = mild(200)
    ratio = PROBLEM.cost(candidates).energy_pj / BASELINE
    drop = PREDICTOR.accuracy_drop(candidates)
    volumes = [hypervolume(r, d) for r, d in zip(ratio[:, None], drop[:, None], strict=True)]
    first = hashes(pick(candidates, 1))[0]
    assert hashes(candidates).index(first) in np.argsort(volumes)[-10:]


def test_a_pick_makes_its_neighbours_less_worth() -> None:
    """Several picks dominate more together than the singly best ones do."""
    candidates = mild(300)

    def volume(choices: np.ndarray) -> float:
        ratio = PROBLEM.cost(choices).energy_pj / BASELINE
        return hypervolume(ratio, PREDICTOR.accuracy_drop(choices))

    single = [volume(choice[None]) for choice in candidates]
    assert volume(pick(candidates, 8)) > volume(candidates[np.argsort(single)[-8:]])


@pytest.mark.parametrize("seed", range(5))
def test_gain_is_the_difference_of_hypervolumes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ratio, drop = rng.random(6) * 1.2, rng.random(6) * 12
    candidate_ratio, candidate_drop = rng.random(20) * 1.2, rng.random(20) * 12
    nodes = np.repeat(linear_axis(candidate_drop)[:, None], 7, axis=1)
    front = _Front(candidate_ratio, nodes, ratio, linear_axis(drop))
    before = hypervolume(ratio, drop)
    expected = [
        hypervolume(np.append(ratio, r), np.append(drop, d)) - before
        for r, d in zip(candidate_ratio, candidate_drop, strict=True)
    ]
    assert np.allclose(front.gain(), expected)


def test_the_uncertain_is_preferred_where_nothing_else_tells_them_apart() -> None:
    ratio = np.array([0.5, 0.5])
    certain, uncertain = np.full(7, 0.3), np.linspace(0.1, 0.5, 7)
    # Both are expected to only repeat what was measured.
    known = np.array([0.5]), np.array([0.3])
    front = _Front(ratio, np.array([certain, uncertain]), *known)
    assert front.gain()[0] == pytest.approx(0)
    assert front.gain()[1] > 0


def test_an_aim_draws_picks_to_the_cheapest_that_should_hold_it() -> None:
    candidates = mild(400)
    aim = float(np.quantile(PREDICTOR.accuracy_drop(candidates), 0.2))
    third = pick(candidates, 3, aims=(aim,))[2:]  # the third turn is the aims'
    holds = PREDICTOR.optimistic_drop(candidates, -1.0) <= aim
    dearest = np.quantile(PROBLEM.cost(candidates[holds]).energy_pj, 0.2)
    assert PREDICTOR.accuracy_drop(third)[0] <= aim
    assert PROBLEM.cost(third).energy_pj[0] <= dearest


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_an_energy_draws_picks_to_what_loses_least_below_it(share: float) -> None:
    candidates = mild(400)
    ratio = PROBLEM.cost(candidates).energy_pj / BASELINE
    energy = float(np.quantile(ratio, share))
    fourth = pick(candidates, 4, energy_aims=(energy,))[3:]  # the fourth turn is the energies'
    assert PROBLEM.cost(fourth).energy_pj[0] / BASELINE <= energy
    least = PREDICTOR.accuracy_drop(candidates[ratio <= energy])
    assert PREDICTOR.accuracy_drop(fourth)[0] <= np.quantile(least, 0.1)


def test_random_proposals_are_new_and_distinct() -> None:
    first = propose_random(PROBLEM, 10, set(), np.random.default_rng(0))
    again = propose_random(PROBLEM, 10, set(hashes(first)), np.random.default_rng(0))
    assert len(set(hashes(first)) | set(hashes(again))) == 20
    assert np.array_equal(first, SPACE.canonical(first))


def test_a_lucky_measurement_does_not_end_the_search_at_an_aim() -> None:
    """What seemed to lose so little, and is not expected to, leaves the aim to others."""
    candidates = mild(200)
    aim = float(np.median(PREDICTOR.accuracy_drop(candidates)))
    ratio = PROBLEM.cost(candidates).energy_pj / BASELINE
    holds = PREDICTOR.accuracy_drop(candidates) <= aim
    cheap, measured = np.array([0.9 * ratio[holds].min()]), np.array([0.5 * aim])

    def third(estimated: float) -> np.ndarray:
        arguments = (set(), cheap, measured, np.array([estimated]), BASELINE, (aim,))
        return select(PROBLEM, PREDICTOR, candidates, 3, *arguments)[2]

    assert PREDICTOR.accuracy_drop(third(2 * aim)[None])[0] <= 1.2 * aim
    assert not np.array_equal(third(2 * aim), third(0.5 * aim))
