from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.least_squares import inverse_diagonal
from envs.pruning import geometric_median_filter_scores
from envs.pruning import keep_units
from envs.pruning import lowest
from envs.pruning import norm_filter_scores
from envs.pruning import second_order_scores
from envs.pruning import taylor_filter_scores


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_second_order_score_is_the_error_left_after_the_others_made_up_for_it() -> None:
    inputs = normal(100, 5) @ normal(5, 5, seed=1)
    moment = inputs.T @ inputs / 100
    weight = normal(1, 1, 5, seed=2)
    scores = second_order_scores(weight, inverse_diagonal(moment[None], damping=1e-6))
    for gone in range(5):
        rest = [column for column in range(5) if column != gone]
        target = inputs @ weight[0, 0]
        best = torch.linalg.lstsq(inputs[:, rest], target[:, None]).solution
        error = (inputs[:, rest] @ best - target[:, None]).square().mean()
        assert scores[0, 0, gone] == pytest.approx(error.item(), rel=1e-2)


@pytest.mark.parametrize("order", [1, 2])
def test_norms_ignore_the_scale_of_the_layer_and_average_to_one(order: int) -> None:
    weight = normal(2, 3, 9)
    scores = norm_filter_scores(weight, order)
    assert scores.shape == (6,)
    assert scores.mean() == pytest.approx(1)
    assert torch.allclose(scores, norm_filter_scores(7 * weight, order))
    norms = weight.flatten(0, 1).norm(p=order, dim=1)
    assert torch.equal(scores.argsort(), norms.argsort())
    assert torch.equal(norm_filter_scores(torch.zeros(1, 3, 9), order), torch.zeros(3))


def test_the_filter_in_the_middle_of_the_others_is_the_one_that_they_can_replace() -> None:
    scores = geometric_median_filter_scores(torch.tensor([[[9.0, 0], [5, 1], [5, 0], [1, 0]]]))
    assert scores.argmin() == 2


def test_taylor_is_the_squared_change_of_a_linear_loss() -> None:
    weight, slope = normal(1, 4, 9), normal(1, 4, 9, seed=1)
    scores = taylor_filter_scores(weight, slope[None])
    loss = (weight * slope).sum()
    for row in range(4):
        without = weight.clone()
        without[0, row] = 0
        assert scores[row] == pytest.approx(((without * slope).sum() - loss).item() ** 2, rel=1e-3)


def test_taylor_scores_of_opposite_batches_do_not_cancel() -> None:
    weight, slope = normal(1, 4, 9), normal(1, 4, 9, seed=1)
    opposite = taylor_filter_scores(weight, torch.stack([slope, -slope]))
    assert torch.allclose(opposite, taylor_filter_scores(weight, slope[None]))


def test_equal_scores_go_in_order() -> None:
    scores = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert torch.equal(lowest(scores, 2), torch.tensor([[True, False], [False, True]]))
    assert torch.equal(lowest(torch.full((3,), torch.inf), 1), torch.tensor([True, False, False]))


@given(
    units=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2)), min_size=1, max_size=30),
    sparsity=st.floats(0, 1, exclude_max=True),
)
def test_units_go_evenly_from_every_class(units: list[tuple[float, int]], sparsity: float) -> None:
    scores = torch.tensor([score for score, _ in units])
    signature = torch.tensor([number for _, number in units])
    keep = keep_units(scores, signature, sparsity)
    for number in signature.unique():
        members = signature == number
        size = int(members.sum())
        assert (members & keep).sum() == max(1, size - round(sparsity * size))
        if (members & ~keep).any():
            assert scores[members & keep].min() >= scores[members & ~keep].max()
