"""Optimal Brain Compression as published, against loops over single rows in double precision."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from envs import least_squares
from envs.exact_reconstruction import prune_exactly
from envs.exact_reconstruction import round_exactly
from envs.exact_reconstruction import solve_exactly
from envs.patterns import Blocks
from envs.patterns import Elements
from envs.patterns import Kernels
from envs.patterns import Pattern
from envs.patterns import Runs
from envs.pruning import kept_count
from envs.quantization import round_weights
from envs.quantizer import Quantizer
from envs.reconstruction import reconstruct_masked
from envs.reconstruction import reconstruct_sparse
from envs.scales import weight_scales
from tests.envs.test_reconstruction import SEEDS
from tests.envs.test_reconstruction import brain_surgeon
from tests.envs.test_reconstruction import damped
from tests.envs.test_reconstruction import layer
from tests.envs.test_reconstruction import least_squares as best_row


def error(weight: Tensor, result: Tensor, moment: Tensor) -> float:
    change = (weight - result).double()
    return float((change @ damped(moment) * change).sum())


def surgeon_losses(row: Tensor, moment: Tensor) -> tuple[list[int], list[float]]:
    """Order in which Optimal Brain Surgeon empties a row, and the loss of each step."""
    row, inverse, alive = row.double().clone(), torch.linalg.inv(moment), list(range(len(row)))
    order, losses = [], []
    while alive:
        gone = min(alive, key=lambda j: float(row[j] ** 2 / inverse[j, j]))
        order.append(gone)
        losses.append(float(row[gone] ** 2 / inverse[gone, gone]))
        row -= row[gone] / inverse[gone, gone] * inverse[:, gone]
        inverse -= torch.outer(inverse[:, gone], inverse[gone]) / inverse[gone, gone]
        alive.remove(gone)
    return order, losses


def globally_least(weight: Tensor, moment: Tensor, removed: int) -> Tensor:
    """Mask that is left when ``removed`` times the open removal of least loss is made."""
    traces = [surgeon_losses(row, moment) for row in weight]
    keep = torch.ones_like(weight, dtype=torch.bool)
    done = [0] * len(weight)
    for _ in range(removed):
        open_rows = [row for row in range(len(weight)) if done[row] < weight.shape[1]]
        row = min(open_rows, key=lambda r: traces[r][1][done[r]])
        keep[row, traces[row][0][done[row]]] = False
        done[row] += 1
    return keep


@pytest.mark.parametrize("seed", SEEDS)
def test_a_row_loses_the_weights_that_optimal_brain_surgeon_takes(seed: int) -> None:
    weight, moment = layer(rows=1, columns=24, seed=seed)
    found = prune_exactly(weight, moment, [0.3, 0.5, 0.75])
    for result, kept in zip(found[:, 0, 0], (17, 12, 6), strict=True):
        exact = brain_surgeon(weight[0, 0].double(), damped(moment)[0], kept)
        assert torch.equal(result != 0, exact != 0)
        torch.testing.assert_close(result, exact.float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("working_bytes", [least_squares.WORKING_BYTES, 1])
def test_over_all_rows_the_removals_of_least_loss_are_made(
    working_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows at once, and one after the other."""
    monkeypatch.setattr(least_squares, "WORKING_BYTES", working_bytes)
    weight, moment = layer(rows=5, columns=12)
    weight[0, 1] *= 3  # so that rows lose different numbers of weights
    weight[0, 2] *= 0.2
    for result, sparsity in zip(prune_exactly(weight, moment, [0.4, 0.7]), (0.4, 0.7), strict=True):
        removed = 60 - kept_count(60, sparsity)
        keep = globally_least(weight[0], damped(moment)[0], removed)
        assert torch.equal(result[0] != 0, keep)
        assert len(set(keep.sum(dim=1).tolist())) > 1
        for row in range(5):
            expected = best_row(weight[0, row], damped(moment)[0], keep[row])
            torch.testing.assert_close(result[0, row], expected.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_of_every_four_are_chosen_one_by_one(seed: int) -> None:
    weight, moment = layer(rows=1, columns=16, seed=seed)
    row, inverse = weight[0, 0].double().clone(), torch.linalg.inv(damped(moment)[0])
    alive = set(range(16))
    while len(alive) > 8:
        full = [run for run in range(4) if len(alive & set(range(4 * run, 4 * run + 4))) > 2]
        allowed = [column for column in alive if column // 4 in full]
        gone = min(allowed, key=lambda j: float(row[j] ** 2 / inverse[j, j]))
        row -= row[gone] / inverse[gone, gone] * inverse[:, gone]
        inverse -= torch.outer(inverse[:, gone], inverse[gone]) / inverse[gone, gone]
        alive.remove(gone)
    found = prune_exactly(weight, moment, [0.5], pattern=Runs(2, 4, 1))[0, 0, 0]
    assert set(found.nonzero().flatten().tolist()) == alive


@pytest.mark.parametrize(
    ("pattern", "rows"), [(Blocks(1, 4, 1), 1), (Blocks(2, 1, 1), 2), (Blocks(2, 3, 1), 2)]
)
def test_blocks_go_in_the_order_of_their_losses(pattern: Pattern, rows: int) -> None:
    weight, moment = layer(rows=rows, columns=24)
    full = damped(moment)[0]
    columns = pattern.columns  # type: ignore[attr-defined]
    sets = torch.arange(24).view(-1, columns).tolist()
    alive = list(range(len(sets)))
    while len(alive) > len(sets) // 2:
        left = [column for block in alive for column in sets[block]]
        kept = torch.zeros(24, dtype=torch.bool)
        kept[left] = True
        now = torch.stack([best_row(row, full, kept) for row in weight[0]])
        inverse = torch.zeros(24, 24, dtype=torch.float64)
        inverse[kept[:, None] & kept] = torch.linalg.inv(full[kept][:, kept]).flatten()

        def loss(block: int, now: Tensor = now, inverse: Tensor = inverse) -> float:
            of_set = now[:, sets[block]]
            inner = inverse[sets[block]][:, sets[block]]
            return float((of_set @ torch.linalg.inv(inner) * of_set).sum())

        alive.remove(min(alive, key=loss))
    found = prune_exactly(weight, moment, [0.5], pattern=pattern)[0, 0]
    expected = torch.zeros(24, dtype=torch.bool)
    expected[[column for block in alive for column in sets[block]]] = True
    assert torch.equal(found != 0, expected.expand(rows, -1))


@pytest.mark.parametrize(
    "pattern", [Elements(), Runs(2, 4, 9), Blocks(1, 4, 9), Blocks(4, 1, 9), Kernels(9)], ids=repr
)
@pytest.mark.parametrize(
    ("groups", "rows", "channels"), [(1, 6, 8), (3, 5, 4), (8, 1, 1)], ids=["one", "some", "depth"]
)
def test_patterns_are_honoured_and_errors_are_those_of_the_best_or_less(
    pattern: Pattern, groups: int, rows: int, channels: int
) -> None:
    weight, moment = layer(groups, rows, 9 * channels)
    removed = torch.zeros(groups, 9 * channels, dtype=torch.bool)
    if channels > 1:
        removed[0, 9:18] = True
    candidates = ~removed[:, None].expand_as(weight)
    goal = prune_exactly(weight, moment, [0.5], pattern=pattern, removed_columns=removed)[0]
    scores = torch.where(candidates, weight.abs(), -1.0)
    keep = candidates & pattern.keep(scores, candidates, 0.5)
    # What is not zero is what the pattern itself would keep.
    scores = torch.where(candidates, (goal != 0).float(), -1.0)
    assert torch.equal(candidates & pattern.keep(scores, candidates, 0.5), goal != 0)
    magnitude = reconstruct_masked(weight, moment, keep[None], removed_columns=removed)[0]
    assert error(weight, goal, moment) <= error(weight, magnitude, moment) * (1 + 1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_no_worse_than_magnitude_and_close_to_the_approximation(sparsity: float, seed: int) -> None:
    weight, moment = layer(rows=8, columns=60, samples=300, seed=seed)
    everything = torch.ones_like(weight, dtype=torch.bool)
    keep = Elements().keep(weight.abs(), everything, 1 - sparsity)
    exact = error(weight, prune_exactly(weight, moment, [sparsity])[0], moment)
    solved = error(weight, solve_exactly(weight, moment, keep[None])[0], moment)
    masked = error(weight, reconstruct_masked(weight, moment, keep[None])[0], moment)
    sparse = error(weight, reconstruct_sparse(weight, moment, [sparsity])[0], moment)
    assert exact <= solved <= masked * (1 + 1e-6)
    assert exact == pytest.approx(sparse, rel=0.1)


def brain_quantizer(row: Tensor, moment: Tensor, scale: float, low: int, high: int) -> Tensor:
    """Optimal Brain Quantizer on one row: the least loss first, outliers at once."""
    left = row != 0
    free = left.nonzero().flatten().tolist()
    row, result = row.double().clone(), torch.zeros(len(row), dtype=torch.float64)
    inverse = torch.eye(len(row), dtype=torch.float64)
    inverse[left[:, None] & left] = torch.linalg.inv(moment[left][:, left]).flatten()
    while free:
        nearest = scale * (row / scale).round().clamp(low, high)
        away = (row - nearest).abs()
        outside = [column for column in free if away[column] > 0.5001 * scale]
        if outside:
            chosen = max(outside, key=lambda column: float(away[column]))
        else:
            chosen = min(free, key=lambda j: float(away[j] ** 2 / inverse[j, j]))
        result[chosen] = nearest[chosen]
        free.remove(chosen)
        change = (row[chosen] - nearest[chosen]) / inverse[chosen, chosen]
        for column in free:
            row[column] -= change * inverse[column, chosen]
        inverse = (
            inverse - torch.outer(inverse[:, chosen], inverse[chosen]) / inverse[chosen, chosen]
        )
    return result.float()


@pytest.mark.parametrize("working_bytes", [least_squares.WORKING_BYTES, 1])
@pytest.mark.parametrize("symmetry", ["symmetric", "affine"])
@pytest.mark.parametrize("bits", [2, 4])
def test_rounding_is_the_optimal_brain_quantizer(
    bits: int, symmetry: str, working_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of dense and of pruned rows, in which it never touches what is gone."""
    monkeypatch.setattr(least_squares, "WORKING_BYTES", working_bytes)
    find_scales = partial(weight_scales, quantizer=Quantizer(weight_symmetry=symmetry))
    weight, moment = layer(groups=2, rows=4, columns=14)
    options = torch.stack([weight, prune_exactly(weight, moment, [0.5])[0]])
    rounded, scales = round_exactly(options, moment, [bits, 8], find_scales=find_scales)
    assert scales.shape == (2, 2, 2, 4)
    scale, lows = find_scales(options, bits)
    for option, group, row in torch.cartesian_prod(*map(torch.arange, (2, 2, 4))).tolist():
        at = option, group, row
        low = 1 - 2 ** (bits - 1) if lows is None else int(lows[at])
        high = -low if lows is None else low + 2**bits - 1
        expected = brain_quantizer(options[at], damped(moment)[group], float(scale[at]), low, high)
        torch.testing.assert_close(rounded[option, 0, group, row], expected, atol=1e-5, rtol=0)
    assert not rounded[options[:, None].expand_as(rounded) == 0].any()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_output_changes_less_than_by_rounding_to_nearest(bits: int, seed: int) -> None:
    weight, moment = layer(groups=2, rows=8, columns=40, seed=seed)
    rounded, scales = round_exactly(weight[None], moment, [bits])
    nearest = round_weights(weight, scales[0, 0], bits)
    assert error(weight, rounded[0, 0], moment) < error(weight, nearest, moment)
    on_grid = round_weights(rounded[0, 0], scales[0, 0], bits)
    torch.testing.assert_close(rounded[0, 0], on_grid)


@pytest.mark.parametrize("zero", ["row", "inputs", "all inputs", "weights"])
def test_degenerate_layers(zero: str) -> None:
    weight, moment = layer(groups=2, rows=3, columns=10, samples=5)
    dead = slice(None) if zero == "all inputs" else slice(None, None, 2)
    if zero == "row":
        weight[:, 0] = 0
    elif zero == "weights":
        weight = torch.zeros_like(weight)
    else:
        moment[:, dead] = 0
        moment[:, :, dead] = 0
    sparse = prune_exactly(weight, moment, [0.0, 0.5])
    rounded, scales = round_exactly(sparse, moment, [2, 4])
    assert torch.isfinite(rounded).all()
    assert (scales > 0).all()
    assert (sparse[1] != 0).sum() <= kept_count(weight.numel(), 0.5)
    if "inputs" in zero:
        assert not rounded[..., dead].any()


def test_options_do_not_see_each_other() -> None:
    weight, moment = layer(groups=2)
    sparse = prune_exactly(weight, moment, [0.4, 0.8])
    assert torch.equal(prune_exactly(weight, moment, [0.8])[0], sparse[1])
    rounded, _ = round_exactly(sparse, moment, [2, 4])
    assert torch.equal(round_exactly(sparse[1:], moment, [4])[0][0, 0], rounded[1, 1])
