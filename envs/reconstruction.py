"""Prune and round a layer so that its output changes least.

The output error of a layer is tr((W - W') H (W - W')^T), where H is the second moment of its
inputs. Pruning (:func:`reconstruct_sparse`) removes weights a few at a time, each time those that
Optimal Brain Surgeon would miss least, and in between lets the weights that stay make up for them.
Where inverses for all rows fit into memory this is Optimal Brain Compression (Frantar and Alistarh,
2022), two of a hundred weights at a time instead of one: what a weight is missed by, and what the
others do about it, are exact. In larger layers one inverse tells for all rows what a weight is
missed by at first, and conjugate gradients solve the least-squares problem on the kept weights of
all rows at once, with products by H alone. Either way the weights end at the least-squares optimum
of their mask (:func:`reconstruct_masked`). The same one weight at a time is in
:mod:`envs.exact_reconstruction`.

Rounding (:func:`reconstruct_rounded`) comes after, since scales that fit the pruned weights lose
less. Columns are fixed one after the other, and the columns still free make up for the error of
each (Frantar et al., GPTQ, 2023): with U the upper Cholesky factor of the damped inverse,
H^-1 = U^T U, fixing column j to q costs ((w_j - q) / U_jj)^2 and moves the columns k > j by
-(w_j - q) / U_jj * U_jk. In small layers each row has a factor of its own, of the weights that it
still has. Early columns cannot make up for late ones so; two sweeps follow in which every weight in
turn goes to the integer that is best for all others as they are.

Weights have shape (groups, rows, columns): rows are the output channels of a group, columns its
input channels times the kernel's positions. H is (groups, columns, columns), the mean of x x^T
over positions and images. Options, several compressed versions of one layer, come first and do
not depend on each other. Columns that are removed as a whole (``removed_columns``) are made up for
exactly, before anything else is removed. Weights that are 0 stay 0, and weights of inputs that are
always zero become 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.config import FLOAT_BITS
from envs.least_squares import DAMPED_ALREADY
from envs.least_squares import DAMPING
from envs.least_squares import WORKING_BYTES
from envs.least_squares import LeastSquares
from envs.least_squares import eliminate
from envs.least_squares import eliminate_zeros
from envs.least_squares import inverse_factor
from envs.least_squares import inverses_bytes
from envs.least_squares import least_squares
from envs.least_squares import living
from envs.least_squares import removed_mask
from envs.least_squares import ridge_of
from envs.patterns import Elements
from envs.patterns import Pattern
from envs.pruning import lowest
from envs.quantization import of_each
from envs.quantization import round_weights
from envs.scales import FindScales
from envs.scales import weight_scales

# Of the weights left, the fraction that stays each time, without and with inverses for all rows;
# and the steps of conjugate gradients after each time and at the end. On ResNets, halving the
# fraction that goes, or doubling the steps, lowers the output error by a few percent more.
_STAYS = 0.9
_STAYS_EXACTLY = 0.98
_STEPS = 4
_LAST_STEPS = 16
_EXCHANGES = 4

_ELEMENTS = Elements()

# Over all columns, after they have been rounded. On ResNet-20 at 4, 3 and 2 bits the output error
# falls by 2, 3 and 13 %, with half of the weights pruned by 5, 8 and 21 %; two more sweeps add 1 %.
_SWEEPS = 2

# Columns between two updates of everything behind them.
_BLOCK = 128
# Of layers whose rows have inverses of their own: when they are pruned, where the output error
# falls by half in small layers and by 5 % at the limit, and when they are rounded (20 and 4 %).
_INVERSES_BYTES = 128 * 2**20
_ROUNDED_INVERSES_BYTES = 16 * 2**20


def reconstruct_sparse(
    weight: Tensor,
    second_moment: Tensor,
    sparsities: Sequence[float],
    *,
    pattern: Pattern = _ELEMENTS,
    removed_columns: Tensor | None = None,
    damping: float = DAMPING,
) -> Tensor:
    """Remove weights, those whose removal can be made up for best.

    A few exchanges follow, which are kept if they help: weights that are gone compete again, at
    the value that each would take alone.

    Args:
        weight: Shape (groups, rows, columns).
        second_moment: Shape (groups, columns, columns).
        sparsities: Fraction removed by each option, 0 <= sparsity < 1, of the weights outside
            ``removed_columns``.
        pattern: What can be removed, and together with what else; single weights by default.
        removed_columns: Columns that go altogether, bool, (groups, columns).
        damping: See :data:`DAMPING`; > 0.

    Returns:
        Shape (options, groups, rows, columns).
    """
    removed = removed_mask(second_moment, removed_columns)
    problem = least_squares(weight, second_moment, removed, damping)
    candidates = ~removed[:, None].expand_as(weight)
    importance = _importance(problem, pattern.together(candidates))
    order = sorted(range(len(sparsities)), key=lambda option: sparsities[option])
    goals = [1 - sparsities[option] for option in order]
    starts = (
        _thin_exactly(problem, candidates, pattern, goals)
        if inverses_bytes(weight) <= _INVERSES_BYTES
        else _thin(problem, candidates, pattern, importance, goals)
    )
    result = weight.new_empty(len(sparsities), *weight.shape)
    for option, goal, best in zip(order, goals, starts, strict=True):
        found, least = best, problem.error(best)
        for _ in range(_EXCHANGES):
            moved = found + problem.steps_alone(found)
            keep = _kept(moved, candidates, candidates, pattern, importance, goal)
            found = problem.solve(found, keep, _STEPS)
            error = problem.error(found)
            best, least = (found, error) if error < least else (best, least)
        result[option] = problem.solve(best, best != 0, _LAST_STEPS)
    return result


def _thin(
    problem: LeastSquares,
    candidates: Tensor,
    pattern: Pattern,
    importance: Tensor,
    goals: Sequence[float],
) -> Iterator[Tensor]:
    """Remove a tenth of what is left at a time, and have the rest make up for it by a few steps.

    Args:
        problem: The target, and what errors are measured by.
        candidates: Weights that may stay, bool, (groups, rows, columns).
        pattern: What can be removed.
        importance: See :func:`_importance`.
        goals: Fractions that are to stay, descending.

    Yields:
        Weights of each goal, (groups, rows, columns).
    """
    left, keep, density = problem.target, candidates, 1.0
    if not bool(problem.filled.all()):
        left = problem.solve(left, keep, _LAST_STEPS)
    for goal in goals:
        while density * _STAYS > goal:
            density *= _STAYS
            keep = _kept(left, keep, candidates, pattern, importance, density)
            left = problem.solve(left, keep, _STEPS)
        last = _kept(left, keep, candidates, pattern, importance, goal)
        yield problem.solve(left, last, _STEPS)


def _kept(
    weights: Tensor,
    among: Tensor,
    candidates: Tensor,
    pattern: Pattern,
    importance: Tensor,
    density: float,
) -> Tensor:
    """Which of the weights ``among``, bool (groups, rows, columns), stay by their importance."""
    scores = torch.where(among, weights * (weights @ importance), -1.0)
    return among & pattern.keep(scores, candidates, density)


def _thin_exactly(
    problem: LeastSquares, candidates: Tensor, pattern: Pattern, goals: Sequence[float]
) -> Iterator[Tensor]:
    """As :func:`_thin`, with an inverse for every row: exact losses, and the rest at its optimum.

    Optimal Brain Compression (Frantar and Alistarh, 2022), a few weights of every row at a time.
    """
    rows = candidates.shape[1]
    factor = inverse_factor(problem.matrix, DAMPED_ALREADY)
    inverse = (factor.mT @ factor).repeat_interleave(rows, dim=0)
    weight = problem.target.flatten(0, 1).clone()
    eliminate_zeros(weight, inverse, problem.filled.flatten(0, 1))
    together = pattern.together(candidates)
    if together is not None:
        together = together[:, None].expand(-1, rows, -1).flatten(0, 1)
    keep, density = candidates, 1.0

    def going(density: float) -> tuple[Tensor, bool]:
        """What goes next so that ``density`` is left, and whether that is all.

        No more than twice the usual at once: N of every M ask for much of it at the end.
        """
        scores = torch.where(keep, _losses(weight, inverse, together).view_as(candidates), -1.0)
        gone = keep & ~pattern.keep(scores, candidates, density)
        most = 1 + int(2 * (1 - _STAYS_EXACTLY) * keep.sum())
        if together is not None or int(gone.sum()) <= most:
            return gone, True
        return gone & lowest(torch.where(gone, scores, torch.inf), most), False

    for goal in goals:
        while density * _STAYS_EXACTLY > goal:
            density *= _STAYS_EXACTLY
            gone, _ = going(density)
            eliminate(weight, inverse, gone.flatten(0, 1))
            keep = keep & ~gone
        gone, is_all = going(goal)
        while not is_all:
            eliminate(weight, inverse, gone.flatten(0, 1))
            keep = keep & ~gone
            gone, is_all = going(goal)
        yield problem.solve(weight.view_as(candidates), keep & ~gone, _LAST_STEPS)


def _losses(weight: Tensor, inverse: Tensor, together: Tensor | None) -> Tensor:
    """What removing each weight costs, (rows, columns); parts of a set add up to that of the set.

    Args:
        weight: Shape (rows, columns).
        inverse: Of the matrix of the weights that are left in every row, (rows, columns, columns).
        together: Number of the set of every weight, (rows, columns); None where all go alone.
    """
    if together is None:
        return weight.square() / inverse.diagonal(dim1=1, dim2=2)
    same = together[:, :, None] == together[:, None]
    return weight * torch.linalg.solve(inverse * same, weight)


def reconstruct_masked(
    weight: Tensor,
    second_moment: Tensor,
    keep: Tensor,
    *,
    removed_columns: Tensor | None = None,
    damping: float = DAMPING,
) -> Tensor:
    """Remove given weights.

    Args:
        weight: Shape (groups, rows, columns).
        second_moment: Shape (groups, columns, columns).
        keep: What each option keeps, bool, (options, groups, rows, columns).
        removed_columns: Columns that go as well, bool, (groups, columns).
        damping: See :data:`DAMPING`; > 0.

    Returns:
        Shape of ``keep``; zero wherever ``keep`` is false.
    """
    removed = removed_mask(second_moment, removed_columns)
    problem = least_squares(weight, second_moment, removed, damping)
    keep = keep & ~removed[:, None]
    return torch.stack([problem.solve(problem.target, mask, _LAST_STEPS) for mask in keep])


def reconstruct_rounded(
    weights: Tensor,
    second_moment: Tensor,
    bits: Sequence[int],
    *,
    removed_columns: Tensor | None = None,
    damping: float = DAMPING,
    find_scales: FindScales = weight_scales,
) -> tuple[Tensor, Tensor]:
    """Round weights that may be pruned already; zeros stay zero.

    Args:
        weights: Shape (options, groups, rows, columns).
        second_moment: Shape (groups, columns, columns).
        bits: Widths, 2 to 8, 16 or 32; every option is rounded to each of them.
        removed_columns: Columns that are zero in all options, bool, (groups, columns).
        damping: See :data:`DAMPING`; > 0.
        find_scales: Finds the scales.

    Returns:
        The rounded weights, (options, widths, groups, rows, columns), and their scales, (options,
        widths, groups, rows) or, where not all of a row share one, one for each weight.
    """
    removed = removed_mask(second_moment, removed_columns)
    weights = living(weights, second_moment) * ~removed[:, None]
    # Inputs with the most power first, while many columns are left to make up for the error
    # (GPTQ's "act order").
    power = second_moment.diagonal(dim1=1, dim2=2)
    order = _descending(torch.where(removed, torch.inf, power))
    moment = _in_order(order, second_moment)
    matrix = moment + ridge_of(moment, damping)
    options = len(weights)
    result = weights.new_empty(options, len(bits), *weights.shape[1:])
    scales = []
    own_bytes = inverses_bytes(weights[0])
    exactly = own_bytes <= _ROUNDED_INVERSES_BYTES
    factor = None if exactly else inverse_factor(moment, damping)
    # Of an option's weights, at the peak.
    working = 8 * weights[0].numel() * weights.element_size() + exactly * 6 * own_bytes
    for part in _parts(options, working):
        found = [find_scales(weights[part], width) for width in bits]
        scales.append(torch.stack([scale for scale, _ in found], dim=1))
        dense = _to_columns(weights[part], order)
        grids = [
            _Grid(
                _of_columns(scale, weights[part], order),
                width,
                None if low is None else _of_columns(low, weights[part], order),
            )
            for width, (scale, low) in zip(bits, found, strict=True)
        ]
        rounded = (
            _round_rows(dense, matrix, grids)
            if factor is None
            else _round_columns(dense, factor, matrix, grids)
        )
        for index, columns in enumerate(rounded):
            result[part, index] = _from_columns(columns, order)
    return result, torch.cat(scales)


@dataclass(frozen=True)
class _Grid:
    """The integers that weights in the shape of :func:`_to_columns` may become.

    Attributes:
        step: Scale of every weight.
        bits: Width of the weights.
        low: Least integer of every weight; None if they are symmetric.
    """

    step: Tensor
    bits: int
    low: Tensor | None

    def at(self, place: int | slice) -> _Grid:
        """Of some columns."""
        return _Grid(
            self.step[:, place], self.bits, None if self.low is None else self.low[:, place]
        )

    def by_row(self) -> _Grid:
        """In the shape of :func:`_by_row`."""
        return _Grid(_by_row(self.step), self.bits, None if self.low is None else _by_row(self.low))

    def round(self, weight: Tensor) -> Tensor:
        return round_weights(weight, self.step, self.bits, self.low)


def _round_columns(
    dense: Tensor, factor: Tensor, matrix: Tensor, grids: Sequence[_Grid]
) -> Iterator[Tensor]:
    """Round weights, (groups, columns, options, rows), to each of the grids.

    Args:
        dense: The weights; zeros stay zero.
        factor: See :func:`inverse_factor`, (groups, columns, columns).
        matrix: The damped second moment, (groups, columns, columns).
        grids: Of the weights.

    Yields:
        Shape of ``dense``.
    """
    keep = dense != 0
    for grid in grids:
        columns = dense.clone()
        for start, block, errors in _blocks(columns, factor):
            span = slice(start, start + block.shape[1])
            _fix_block(block, errors, factor[:, span, span], keep[:, span], grid.at(span))
        if grid.bits not in FLOAT_BITS:
            _descend(columns, dense, matrix, grid)
        yield columns


def _round_rows(dense: Tensor, matrix: Tensor, grids: Sequence[_Grid]) -> Iterator[Tensor]:
    """As :func:`_round_columns`, with a factor for every row: pruned weights make up for nothing.

    The factor of all rows moves a part of every error to weights that are gone, where it is lost.
    """
    columns, options, rows = dense.shape[1:]
    weight = _by_row(dense)
    keep = (weight != 0).flatten(1)
    own = matrix.repeat_interleave(rows, dim=0).repeat(options, 1, 1)
    own *= keep[:, :, None] & keep[:, None]
    own.diagonal(dim1=1, dim2=2).masked_fill_(~keep, 1.0)
    own_factor = inverse_factor(own, DAMPED_ALREADY)
    for rounded in _round_columns(weight, own_factor, own, [grid.by_row() for grid in grids]):
        by_row = rounded.view(options, len(dense), rows, columns)
        yield by_row.permute(1, 3, 0, 2)


def _by_row(columns: Tensor) -> Tensor:
    """(groups, columns, options, rows) with a group for each row: (.., columns, 1, 1)."""
    rows = columns.permute(2, 0, 3, 1).reshape(-1, columns.shape[1])
    return rows[:, :, None, None].contiguous()


def output_error(delta: Tensor, second_moment: Tensor, weight: Tensor) -> Tensor:
    """Squared error of the layer's output over the output's squared size, without the bias.

    Args:
        delta: Change of the weights, (options, groups, rows, columns).
        second_moment: Shape (groups, columns, columns).
        weight: Original weights, (groups, rows, columns).

    Returns:
        Shape (options,), >= 0.
    """
    size = torch.sum(weight @ second_moment * weight)
    # One at a time: the product needs as much memory as the weights of an option.
    error = torch.stack([torch.sum(change @ second_moment * change) for change in delta])
    return error.clamp_min(0) / size.clamp_min(torch.finfo(size.dtype).tiny)


def bias_correction(weight: Tensor, compressed: Tensor, mean: Tensor) -> Tensor:
    """What the bias must gain so that the mean output stays as it was, (W - W') E[x].

    Args:
        weight: Original weights, (groups, rows, columns).
        compressed: Shape (options, groups, rows, columns).
        mean: Mean of the inputs, (groups, columns).

    Returns:
        Shape (options, groups, rows).
    """
    return ((weight - compressed) @ mean[:, :, None]).squeeze(-1)


def removal_error(
    weight: Tensor, second_moment: Tensor, sets: Tensor, damping: float = DAMPING
) -> Tensor:
    """Squared change of the output if a set of columns goes and the others make up for it.

    Optimal Brain Surgeon for sets: tr(W_s [H^-1]_ss^-1 W_s^T).

    Args:
        weight: Shape (groups, rows, columns).
        second_moment: Shape (groups, columns, columns).
        sets: Columns of every set, int64, (sets, size), numbered through all groups.
        damping: See :data:`DAMPING`; > 0.

    Returns:
        Shape (sets,), >= 0.
    """
    columns = weight.shape[2]
    factor = inverse_factor(second_moment, damping)
    lost = []
    for part in sets.split(max(1, WORKING_BYTES // (4 * columns * sets.shape[1]))):
        group, place = part[:, :1] // columns, part % columns
        rows = factor.mT[group, place]  # (sets, size, columns): rows of U^T
        inner = torch.bmm(rows, rows.mT).double()
        gone = weight.mT[group, place].double()  # (sets, size, rows)
        lost.append((gone * torch.linalg.solve(inner, gone)).sum(dim=(1, 2)))
    return torch.cat(lost).clamp_min(0).to(weight)


def _importance(problem: LeastSquares, together: Tensor | None) -> Tensor:
    """Matrix M, (groups, columns, columns): a set of a row's weights is missed by w_s M_ss w_s^T.

    Optimal Brain Surgeon's [A^-1]_ss^-1 holds while all other weights can make up for the set,
    A_ss once none is left that could. What lies between is the first with its rows and columns
    scaled so that the diagonal becomes the geometric mean of both.
    """
    factor = inverse_factor(problem.matrix, DAMPED_ALREADY).double()
    inverse = factor.mT @ factor
    if together is None:
        surgeon = 1 / inverse.diagonal(dim1=1, dim2=2)
        return torch.diag_embed((surgeon * problem.power).sqrt()).to(problem.matrix)
    same = together[:, :, None] == together[:, None]
    sets = torch.linalg.inv(inverse * same)
    scale = (problem.power / sets.diagonal(dim1=1, dim2=2)).sqrt().sqrt()
    return (sets * scale[:, :, None] * scale[:, None]).to(problem.matrix)


def _blocks(columns: Tensor, factor: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Walk over blocks of ``columns``; what the caller leaves in the errors moves the rest.

    Args:
        columns: Weights in order, (groups, columns, options, rows); changed in place.
        factor: See :func:`inverse_factor`, in the same order.

    Yields:
        First column of the block, the block itself, and the room for its errors.
    """
    total = columns.shape[1]
    for start in range(0, total, _BLOCK):
        stop = min(start + _BLOCK, total)
        block = columns[:, start:stop]
        errors = torch.empty_like(block)
        yield start, block, errors
        if stop < total:
            rest = columns[:, stop:].view(len(columns), total - stop, -1)
            rest.baddbmm_(factor[:, start:stop, stop:].mT, errors.flatten(2), alpha=-1)


def _fix_block(block: Tensor, errors: Tensor, factor: Tensor, keep: Tensor, grid: _Grid) -> None:
    """Fix the columns of a block one after the other, in place.

    Args:
        block: Shape (groups, columns, options, rows).
        errors: Receives the change of each weight over the factor's diagonal, shape of ``block``.
        factor: The block's own part of the factor, (groups, columns, columns).
        keep: Bool, shape of ``block``.
        grid: Of the block.
    """
    for column in range(block.shape[1]):
        before = block[:, column]
        after = grid.at(column).round(before * keep[:, column])
        error = torch.sub(before, after, out=errors[:, column])
        error /= factor[:, column, column, None, None]
        before.copy_(after)
        coefficients = factor[:, column, column + 1 :, None, None]
        block[:, column + 1 :].addcmul_(coefficients, error[:, None], value=-1)


def _descend(columns: Tensor, target: Tensor, matrix: Tensor, grid: _Grid) -> None:
    """Coordinate descent over rounded weights, in place; never raises the output error.

    Args:
        columns: Rounded weights, (groups, columns, options, rows).
        target: What they were; zeros stay zero. Shape of ``columns``.
        matrix: The damped second moment, columns in the same order, (groups, columns, columns).
        grid: Of the weights.
    """
    keep = target != 0
    gradient = torch.bmm(matrix, (columns - target).flatten(2)).view_as(columns)
    for _ in range(_SWEEPS):
        for start in range(0, columns.shape[1], _BLOCK):
            span = slice(start, start + _BLOCK)
            block, near = columns[:, span], matrix[:, span, span]
            before, slope = block.clone(), gradient[:, span].clone()
            for column in range(block.shape[1]):
                weight, place = block[:, column], start + column
                alone = weight - slope[:, column] / near[:, column, column, None, None]
                best = grid.at(place).round(alone * keep[:, place])
                slope.addcmul_(near[:, :, column, None, None], (best - weight)[:, None])
                weight.copy_(best)
            change = (block - before).flatten(2)
            gradient += torch.bmm(matrix[:, :, span], change).view_as(columns)


def _descending(key: Tensor) -> Tensor:
    """Order of the columns by a key, (groups, columns); equal ones stay in order."""
    return key.argsort(dim=1, descending=True, stable=True)


def _in_order(order: Tensor, second_moment: Tensor) -> Tensor:
    rows = second_moment.gather(1, order[:, :, None].expand_as(second_moment))
    return rows.gather(2, order[:, None].expand_as(rows))


def _to_columns(weights: Tensor, order: Tensor) -> Tensor:
    """(options, groups, rows, columns) to (groups, columns in order, options, rows)."""
    columns = weights.permute(1, 3, 0, 2)
    return columns.gather(1, order[:, :, None, None].expand_as(columns))


def _of_columns(scale: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    """Scales of rows or weights as those of all weights, in the shape of :func:`_to_columns`."""
    return _to_columns(of_each(scale, weights).expand_as(weights), order)


def _from_columns(columns: Tensor, order: Tensor) -> Tensor:
    """Inverse of :func:`_to_columns`."""
    back = order.argsort(dim=1)[:, :, None, None]
    return columns.gather(1, back.expand_as(columns)).permute(2, 0, 3, 1)


def _parts(options: int, option_bytes: int) -> Iterator[slice]:
    """Slices of the options that fit the working memory."""
    size = max(1, WORKING_BYTES // option_bytes)
    for start in range(0, options, size):
        yield slice(start, start + size)
