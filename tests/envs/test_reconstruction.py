from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from envs import reconstruction
from envs.least_squares import DAMPING
from envs.least_squares import inverse_diagonal
from envs.least_squares import inverse_factor
from envs.patterns import Elements
from envs.pruning import kept_count
from envs.quantization import round_weights
from envs.quantizer import Quantizer
from envs.reconstruction import bias_correction
from envs.reconstruction import output_error
from envs.reconstruction import reconstruct_masked
from envs.reconstruction import reconstruct_rounded
from envs.reconstruction import reconstruct_sparse
from envs.reconstruction import removal_error
from envs.scales import weight_scales

SEEDS = range(5)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(
    groups: int = 1, rows: int = 6, columns: int = 20, samples: int = 200, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Weights and the second moment of correlated inputs that are never negative."""
    mixed = normal(groups, samples, columns, seed=seed)
    mixed = mixed @ normal(groups, columns, columns, seed=seed + 100) / columns**0.5
    inputs = mixed.relu()
    return normal(groups, rows, columns, seed=seed + 200), inputs.mT @ inputs / samples


def damped(moment: Tensor, damping: float = DAMPING) -> Tensor:
    ridge = damping * moment.diagonal(dim1=1, dim2=2).mean(1)
    return moment.double() + ridge[:, None, None] * torch.eye(moment.shape[-1])


def column_by_column(row: Tensor, moment: Tensor, scale: float) -> Tensor:
    """Optimal Brain Surgeon with a fixed order of columns, as in its paper: one row, plain H^-1."""
    row, inverse = row.double().clone(), torch.linalg.inv(moment)
    result = torch.zeros_like(row)
    for column in range(len(row)):
        result[column] = scale * (row[column] / scale).round().clamp(-7, 7)
        pivot = inverse[column, column].clone()
        row -= (row[column] - result[column]) / pivot * inverse[column]
        inverse -= torch.outer(inverse[:, column], inverse[column]) / pivot
    return result.float()


def least_squares(row: Tensor, moment: Tensor, keep: Tensor) -> Tensor:
    """The best row with zeros outside ``keep``: the normal equations, float64."""
    result = torch.zeros(len(row), dtype=torch.float64)
    result[keep] = torch.linalg.solve(moment[keep][:, keep], (moment @ row.double())[keep])
    return result


def test_masked_is_the_least_squares_solution_of_every_row() -> None:
    weight, moment = layer(groups=2, rows=3, columns=8)
    keep = normal(1, 2, 3, 8, seed=9) > 0
    result = reconstruct_masked(weight, moment, keep)[0]
    for group in range(2):
        for row in range(3):
            expected = least_squares(weight[group, row], damped(moment)[group], keep[0, group, row])
            torch.testing.assert_close(result[group, row], expected.float(), atol=1e-3, rtol=1e-3)


def brain_surgeon(row: Tensor, moment: Tensor, kept: int) -> Tensor:
    """Optimal Brain Surgeon on one row: always the weight that is missed least, exact updates."""
    row, inverse, alive = row.double().clone(), torch.linalg.inv(moment), list(range(len(row)))
    while len(alive) > kept:
        gone = min(alive, key=lambda j: float(row[j] ** 2 / inverse[j, j]))
        row -= row[gone] / inverse[gone, gone] * inverse[:, gone]
        inverse -= torch.outer(inverse[:, gone], inverse[gone]) / inverse[gone, gone]
        alive.remove(gone)
        inverse[gone, gone] = 1
    row[[place for place in range(len(row)) if place not in alive]] = 0
    return row


@pytest.mark.parametrize("memory", [reconstruction._INVERSES_BYTES, 0])
def test_sparse_comes_close_to_the_best_of_all_masks_and_to_the_exact_surgeon(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With inverses for all rows and without."""
    monkeypatch.setattr(reconstruction, "_INVERSES_BYTES", memory)
    totals = {"best": 0.0, "surgeon": 0.0, "ours": 0.0}
    for seed in range(12):
        weight, moment = layer(rows=1, columns=8, seed=seed)
        row, full = weight[0, 0].double(), damped(moment)[0]

        def error(result: Tensor, row: Tensor = row, full: Tensor = full) -> float:
            return float((row - result.double()) @ full @ (row - result.double()))

        masks = torch.zeros(70, 8, dtype=torch.bool)
        for index, kept in enumerate(itertools.combinations(range(8), 4)):
            masks[index, list(kept)] = True
        totals["best"] += min(error(least_squares(row, full, mask)) for mask in masks)
        totals["surgeon"] += error(brain_surgeon(row, full, 4))
        totals["ours"] += error(reconstruct_sparse(weight, moment, [0.5])[0, 0, 0])
    assert totals["best"] <= totals["ours"] <= (1.0001 if memory else 1.15) * totals["surgeon"]


def test_rows_with_inverses_lose_the_weights_that_the_exact_surgeon_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One weight at a time and without exchanges, the very same are left."""
    monkeypatch.setattr(reconstruction, "_STAYS_EXACTLY", 0.999)
    monkeypatch.setattr(reconstruction, "_EXCHANGES", 0)
    for seed in SEEDS:
        weight, moment = layer(rows=1, columns=24, seed=seed)
        found = reconstruct_sparse(weight, moment, [0.5])[0, 0, 0]
        exact = brain_surgeon(weight[0, 0].double(), damped(moment)[0], 12)
        assert torch.equal(found != 0, exact != 0)
        torch.testing.assert_close(found, exact.float(), atol=1e-3, rtol=1e-3)


def test_pruned_rows_are_rounded_as_if_what_is_gone_had_never_been(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the sweeps."""
    monkeypatch.setattr(reconstruction, "_SWEEPS", 0)
    weight, moment = layer(rows=3, columns=16)
    sparse = reconstruct_sparse(weight, moment, [0.5])
    result, scales = reconstruct_rounded(sparse, moment, [4])
    order = moment[0].diagonal().argsort(descending=True)
    ordered = damped(moment)[0][order][:, order]
    for row in range(3):
        pruned, rounded = sparse[0, 0, row, order], result[0, 0, 0, row, order]
        left = pruned != 0
        expected = column_by_column(
            pruned[left], ordered[left][:, left], scales[0, 0, 0, row].item()
        )
        assert torch.allclose(rounded[left], expected, atol=1e-4)
        assert not rounded[~left].any()


def test_rounded_follows_optimal_brain_surgeon_in_order_of_power(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the sweeps."""
    monkeypatch.setattr(reconstruction, "_SWEEPS", 0)
    weight, moment = layer(rows=3, columns=8)
    result, scales = reconstruct_rounded(weight[None], moment, [4])
    order = moment[0].diagonal().argsort(descending=True)
    ordered = damped(moment)[0][order][:, order]
    for row in range(3):
        expected = column_by_column(weight[0, row, order], ordered, scales[0, 0, 0, row].item())
        assert torch.allclose(result[0, 0, 0, row, order], expected, atol=1e-4)


@pytest.mark.parametrize("quantizer", [Quantizer(), Quantizer(weight_symmetry="affine")])
def test_sweeps_come_close_to_the_best_of_all_integers(
    monkeypatch: pytest.MonkeyPatch, quantizer: Quantizer
) -> None:
    find_scales = partial(weight_scales, quantizer=quantizer)
    totals = dict.fromkeys(("best", 0, 1, 2), 0.0)
    for seed in range(12):
        weight, moment = layer(rows=1, columns=6, seed=seed)
        row, full = weight[0, 0].double(), damped(moment)[0]
        scale, low = find_scales(weight, 2)
        first = -1 if low is None else int(low)
        levels = range(first, first + (3 if low is None else 4))
        grid = torch.tensor(list(itertools.product(levels, repeat=6))) * scale.double()
        totals["best"] += float(((row - grid) @ full * (row - grid)).sum(1).min())
        before = torch.inf
        for sweeps in (0, 1, 2):
            monkeypatch.setattr(reconstruction, "_SWEEPS", sweeps)
            monkeypatch.setattr(reconstruction, "_BLOCK", 4)  # which must not matter
            found, _ = reconstruct_rounded(weight[None], moment, [2], find_scales=find_scales)
            change = row - found[0, 0, 0, 0].double()
            error = float(change @ full @ change)
            assert error <= before * (1 + 1e-6)
            before = error
            totals[sweeps] += error
    assert totals["best"] <= totals[2] <= 1.1 * totals["best"] < totals[0]


def test_removed_columns_are_made_up_for_as_well_as_least_squares_can() -> None:
    weight, moment = layer(groups=3, rows=4, columns=10)
    removed = torch.zeros(3, 10, dtype=torch.bool)
    for group, columns in enumerate([[9], [0, 4, 7], [2, 3]]):
        removed[group, columns] = True
    keep = ~removed[None, :, None].expand(1, 3, 4, 10)
    masked = reconstruct_masked(weight, moment, keep, removed_columns=removed)[0]
    sparse = reconstruct_sparse(weight, moment, [0.0], removed_columns=removed)[0]
    rounded, _ = reconstruct_rounded(sparse[None], moment, [8], removed_columns=removed)
    for group, full in enumerate(damped(moment)):
        gone, rest = removed[group], ~removed[group]
        move = torch.linalg.solve(full[rest][:, rest], full[rest][:, gone]).float()
        expected = torch.zeros(4, 10)
        expected[:, rest] = weight[group][:, rest] + weight[group][:, gone] @ move.T
        assert torch.allclose(masked[group], expected, atol=1e-4)
        assert torch.allclose(sparse[group], expected, atol=1e-4)
    assert not (rounded * removed[:, None]).any()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.87])
def test_sparsity_is_exact_over_the_layer(sparsity: float) -> None:
    weight, moment = layer(groups=3)
    removed = torch.zeros(3, 20, dtype=torch.bool)
    removed[0, :5] = True
    removed[2, 10:] = True
    left = weight.numel() - 6 * int(removed.sum())
    whole = reconstruct_sparse(weight, moment, [sparsity, 0.5])
    assert (whole[0] != 0).sum() == kept_count(weight.numel(), sparsity)
    thinned = reconstruct_sparse(weight, moment, [sparsity, 0.5], removed_columns=removed)
    assert (thinned[0] != 0).sum() == kept_count(left, sparsity)
    assert not (thinned[0] * removed[:, None]).any()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("groups", [1, 4])
def test_output_changes_less_than_by_masking_and_rounding(groups: int, seed: int) -> None:
    weight, moment = layer(groups, rows=8, columns=160, samples=300, seed=seed)

    def error(result: Tensor) -> float:
        return float(output_error((weight - result)[None], moment, weight))

    for sparsity in (0.0, 0.5, 0.8):
        everything = torch.ones_like(weight, dtype=torch.bool)
        keep = Elements().keep(weight.abs(), everything, 1 - sparsity)
        plain = weight * keep
        masked = reconstruct_masked(weight, moment, keep[None])
        sparse = reconstruct_sparse(weight, moment, [sparsity])
        assert error(masked[0]) <= error(plain)
        assert error(sparse[0]) <= error(masked[0])
        for bits in (2, 3, 4, 8):
            rounded, _ = reconstruct_rounded(sparse, moment, [bits])
            nearest = round_weights(plain, weight_scales(plain, bits)[0], bits)
            assert error(rounded[0, 0]) < error(nearest)


def test_rounded_values_lie_on_their_grid_and_zeros_stay_zero() -> None:
    weight, moment = layer(groups=2, columns=150)
    sparse = reconstruct_sparse(weight, moment, [0.3, 0.6])
    widths = [2, 3, 8, 16, 32]
    rounded, scales = reconstruct_rounded(sparse, moment, widths)
    assert rounded.shape == (2, 5, 2, 6, 150)
    assert scales.shape == (2, 5, 2, 6)
    for index, bits in enumerate(widths):
        values = rounded[:, index]
        assert torch.allclose(round_weights(values, scales[:, index], bits), values)
        assert not values[sparse == 0].any()
    assert torch.equal(rounded[:, -1], sparse)


def test_options_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = layer(groups=2)
    sparsities, widths = [0.0, 0.4, 0.8], [2, 4, 32]
    sparse = reconstruct_sparse(weight, moment, sparsities)
    masked = reconstruct_masked(weight, moment, sparse != 0)
    rounded, scales = reconstruct_rounded(sparse, moment, widths)
    for option, sparsity in enumerate(sparsities):
        assert torch.equal(reconstruct_sparse(weight, moment, [sparsity])[0], sparse[option])
        alone = reconstruct_masked(weight, moment, sparse[option, None] != 0)
        assert torch.equal(alone[0], masked[option])
        for index, bits in enumerate(widths):
            one, scale = reconstruct_rounded(sparse[option, None], moment, [bits])
            assert torch.equal(one[0, 0], rounded[option, index])
            assert torch.equal(scale[0, 0], scales[option, index])
    monkeypatch.setattr(reconstruction, "WORKING_BYTES", 1)
    assert torch.equal(reconstruct_sparse(weight, moment, sparsities), sparse)
    assert torch.equal(reconstruct_masked(weight, moment, sparse != 0), masked)
    assert torch.equal(reconstruct_rounded(sparse, moment, widths)[0], rounded)


def test_same_input_same_bits_and_inputs_are_left_alone() -> None:
    weight, moment = layer(columns=200)
    before = weight.clone(), moment.clone()

    def run() -> Tensor:
        sparse = reconstruct_sparse(weight, moment, [0.0, 0.5])
        return reconstruct_rounded(sparse, moment, [3, 32])[0]

    first = run()
    assert torch.equal(first, run())
    assert torch.equal(first[0, 1], weight)
    assert torch.equal(weight, before[0])
    assert torch.equal(moment, before[1])


@pytest.mark.parametrize(
    ("groups", "rows", "columns", "samples"),
    [(1, 1, 1, 10), (1, 6, 1, 10), (32, 1, 9, 50), (1, 4, 300, 20), (4, 2, 9, 1)],
    ids=["1x1", "one column", "depthwise", "more columns than samples", "one sample"],
)
@pytest.mark.parametrize("zero", ["nothing", "row", "inputs", "all inputs", "weights"])
def test_degenerate_layers(groups: int, rows: int, columns: int, samples: int, zero: str) -> None:
    weight, moment = layer(groups, rows, columns, samples)
    dead = slice(None) if zero == "all inputs" else slice(None, None, 2)
    if zero == "row":
        weight[:, 0] = 0
    elif zero in ("inputs", "all inputs"):
        moment[:, dead] = 0
        moment[:, :, dead] = 0
    elif zero == "weights":
        weight = torch.zeros_like(weight)
    sparse = reconstruct_sparse(weight, moment, [0.0, 0.5])
    rounded, scales = reconstruct_rounded(sparse, moment, [2, 4, 32])
    assert torch.isfinite(rounded).all()
    assert (scales > 0).all()
    assert (sparse[1] != 0).sum() <= kept_count(weight.numel(), 0.5)
    error = output_error((weight - rounded.flatten(0, 1)), moment, weight)
    assert torch.isfinite(error).all()
    if "inputs" in zero:
        assert not rounded[..., dead].any()
        assert error[2] == 0  # neither pruned nor rounded: weights of dead inputs do not matter


def test_damping_grows_until_a_broken_moment_can_be_factored() -> None:
    broken = torch.tensor([[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    factor = inverse_factor(broken)
    assert torch.isfinite(factor).all()
    assert torch.allclose(factor[1], torch.eye(2) / 1.01**0.5)  # the sound group keeps its damping


def test_inverse_factor_and_diagonal() -> None:
    _, moment = layer(groups=2)
    inverse = torch.linalg.inv(damped(moment)).float()
    factor = inverse_factor(moment)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.mT @ factor, inverse, rtol=1e-4, atol=1e-4)
    assert torch.allclose(inverse_diagonal(moment), inverse.diagonal(dim1=1, dim2=2), rtol=1e-4)


def test_removal_error_is_that_of_least_squares_without_the_columns() -> None:
    weight, moment = layer(groups=2, rows=4, columns=10)
    sets = torch.tensor([[0, 1], [4, 9], [13, 12]])
    errors = removal_error(weight, moment, sets)
    for columns, found in zip(sets, errors, strict=True):
        group = int(columns[0]) // 10
        removed = torch.zeros(2, 10, dtype=torch.bool)
        removed[group, columns % 10] = True
        left = reconstruct_sparse(weight, moment, [0.0], removed_columns=removed)[0]
        delta = (weight - left)[group].double()
        expected = torch.sum(delta @ damped(moment)[group] * delta)
        assert found == pytest.approx(float(expected), rel=1e-3)


def test_output_error_and_bias_correction_are_those_of_the_outputs() -> None:
    inputs = normal(2, 50, 9).relu()
    weight, compressed = normal(2, 3, 9, seed=1), normal(4, 2, 3, 9, seed=2)
    before, after = weight @ inputs.mT, compressed @ inputs.mT
    moment, mean = inputs.mT @ inputs / 50, inputs.mean(1)
    expected = (before - after).square().sum((1, 2, 3)) / before.square().sum()
    assert torch.allclose(output_error(weight - compressed, moment, weight), expected)
    corrected = after + bias_correction(weight, compressed, mean)[..., None]
    assert torch.allclose(corrected.mean(-1), before.mean(-1).expand(4, -1, -1), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    weight, moment = layer(groups=2, columns=150)
    sparse = reconstruct_sparse(weight, moment, [0.5])
    rounded, _ = reconstruct_rounded(sparse, moment, [4])
    cuda_sparse = reconstruct_sparse(weight.cuda(), moment.cuda(), [0.5])
    cuda_rounded, _ = reconstruct_rounded(sparse.cuda(), moment.cuda(), [4])
    same = torch.isclose(cuda_sparse.cpu(), sparse, atol=1e-4)
    assert same.float().mean() > 0.99
    errors = [
        float(output_error((weight - result)[None], moment, weight))
        for result in (rounded[0, 0], cuda_rounded[0, 0].cpu())
    ]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
