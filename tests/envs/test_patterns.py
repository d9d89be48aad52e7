from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from envs.patterns import Blocks
from envs.patterns import Elements
from envs.patterns import Kernels
from envs.patterns import Pattern
from envs.patterns import Runs
from envs.patterns import pattern_of
from envs.pruning import kept_count
from envs.reconstruction import output_error
from envs.reconstruction import reconstruct_masked
from envs.reconstruction import reconstruct_sparse
from hwmodel import LayerShape

KERNEL = 9


def scores_of(rows: int, channels: int, groups: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(groups, rows, channels * KERNEL, generator=generator)


def everything(scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def by_place(keep: Tensor) -> Tensor:
    """(groups, rows, columns) in the order that blocks and runs lie in."""
    return keep.unflatten(2, (-1, KERNEL)).transpose(2, 3).flatten(2)


@settings(deadline=None)
@given(
    values=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    sparsity=st.floats(0, 1, exclude_max=True),
)
def test_exactly_the_highest_elements_stay(values: list[int], sparsity: float) -> None:
    scores = torch.tensor(values, dtype=torch.float32).view(1, 1, -1)
    keep = Elements().keep(scores, everything(scores), 1 - sparsity)
    assert keep.sum() == kept_count(len(values), sparsity)
    if keep.any() and not keep.all():
        assert scores[keep].min() >= scores[~keep].max()


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 8), (1, 2)])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_no_run_keeps_more_than_n(n: int, m: int, channels: int) -> None:
    scores = scores_of(5, channels, groups=2)
    keep = by_place(Runs(n, m, KERNEL).keep(scores, everything(scores), n / m))
    placed = by_place(scores)
    whole = keep.shape[2] // m * m
    runs, values = (
        keep[..., :whole].unflatten(2, (-1, m)),
        placed[..., :whole].unflatten(2, (-1, m)),
    )
    assert (runs.sum(dim=-1) == n).all()
    lowest_kept = torch.where(runs, values, 2.0).amin(dim=-1)
    assert (lowest_kept >= torch.where(runs, -1.0, values).amax(dim=-1)).all()
    rest = keep.shape[2] - whole
    assert (keep[..., whole:].sum(dim=-1) == n * rest // m).all()


def test_a_layer_narrower_than_a_run_is_left_alone() -> None:
    scores = torch.rand(4, 1, 3)
    assert Runs(1, 4, kernel=3).keep(scores, everything(scores), 0.25).all()


def test_runs_close_up_over_channels_that_are_gone() -> None:
    scores, candidates = scores_of(3, 8), torch.ones(1, 3, 8 * KERNEL, dtype=torch.bool)
    candidates.unflatten(2, (8, KERNEL))[:, :, [0, 3, 4, 7]] = False
    keep = Runs(2, 4, KERNEL).keep(torch.where(candidates, scores, -1.0), candidates, 0.5)
    assert not (keep & ~candidates).any()
    left = keep.unflatten(2, (8, KERNEL))[:, :, [1, 2, 5, 6]]
    assert (left.sum(dim=2) == 2).all()


@pytest.mark.parametrize(
    ("pattern", "cells"),
    [
        (Kernels(KERNEL), lambda keep: keep.unflatten(2, (-1, KERNEL))),
        (Blocks(1, 4, KERNEL), lambda keep: by_place(keep).unflatten(2, (-1, 4))),
        (Blocks(4, 1, KERNEL), lambda keep: keep.unflatten(1, (-1, 4)).transpose(2, 3)),
    ],
    ids=["kernel", "1x4", "4x1"],
)
def test_cells_go_as_a_whole_the_lowest_first(pattern: Pattern, cells) -> None:
    scores = scores_of(8, 8)
    keep = pattern.keep(scores, everything(scores), 0.4)
    inside = cells(keep)
    assert torch.equal(inside.any(dim=-1), inside.all(dim=-1))
    assert inside.any(dim=-1).sum() == kept_count(inside[..., 0].numel(), 0.6)
    mean = cells(scores).mean(dim=-1)
    assert mean[inside.any(dim=-1)].min() >= mean[~inside.any(dim=-1)].max()


def test_blocks_at_the_edges_are_smaller() -> None:
    scores = scores_of(5, 3)
    keep = Blocks(4, 4, KERNEL).keep(scores, everything(scores), 0.5)
    assert kept_count(2 * 7, 0.5) == 7
    assert 0 < keep.sum() < keep.numel()


@pytest.mark.parametrize("granularity", ["element", "kernel", "1x4", "4x1", "n:4", "n:8"])
def test_reconstruction_within_a_pattern_beats_its_magnitude_mask(granularity: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 8, 8 * KERNEL, generator=generator)
    inputs = torch.randn(300, 8 * KERNEL, generator=generator)
    inputs = (inputs @ torch.randn(8 * KERNEL, 8 * KERNEL, generator=generator)).relu()
    moment = (inputs.T @ inputs / 300)[None]
    shape = LayerShape("layer", 8, 8, 8, 8, 8, 8, 3, 3, padding=(1, 1))
    pattern = pattern_of(granularity, 0.5, shape)
    sparse = reconstruct_sparse(weight, moment, [0.5], pattern=pattern)
    mask = pattern.keep(weight.abs(), everything(weight), 0.5)
    masked = reconstruct_masked(weight, moment, mask[None])
    assert torch.equal(pattern.keep(sparse[0].abs(), everything(weight), 0.5), sparse[0] != 0)
    error, other = (output_error(result - weight, moment, weight) for result in (sparse, masked))
    plain = output_error((weight * mask - weight)[None], moment, weight)
    assert error < other < plain
