"""Prune and round a layer so that its output changes least.

The output error of a layer is tr((W - W') H (W - W')^T), where H is the second moment of its
inputs. Pruning (:func:`reconstruct_sparse`, :func:`reconstruct_masked`) removes weights a few at a
time, each time those that Optimal Brain Surgeon would miss least, and in between lets the weights
that stay make up for them: conjugate gradients solve the least-squares problem on the kept weights
of all rows at once, with products by H alone and no inverse for every row. Where Optimal Brain
Compression (Frantar and Alistarh, 2022) removes one weight at a time exactly, and SparseGPT
(Frantar and Alistarh, 2023) fixes columns in a given order so that early ones cannot make up for
late ones, this ends at the least-squares optimum of its mask.

Rounding (:func:`reconstruct_rounded`) comes after, since scales that fit the pruned weights lose
less. Columns are fixed one after the other, and the columns still free make up for the error of
each (Frantar et al., GPTQ, 2023): with U the upper Cholesky factor of the damped inverse,
H^-1 = U^T U, fixing column j to q costs ((w_j - q) / U_jj)^2 and moves the columns k > j by
-(w_j - q) / U_jj * U_jk. Early columns cannot make up for late ones so; two sweeps follow in which
every weight in turn goes to the integer that is best for all others as they are.

Weights have shape (groups, rows, columns): rows are the output channels of a group, columns its
input channels times the kernel's positions. H is (groups, columns, columns), the mean of x x^T
over positions and images. Options, several compressed versions of one layer, come first and do
not depend on each other. Columns that are removed as a whole (``removed_columns``) are made up for
exactly, before anything else is removed. Weights of inputs that are always zero become zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.config import FLOAT_BITS
from envs.patterns import Elements
from envs.patterns import Pattern
from envs.quantization import of_each
from envs.quantization import round_weights
from envs.scales import FindScales
from envs.scales import weight_scales

DAMPING = 0.01
"""Added to the diagonal of H, as a fraction of the diagonal's mean."""

# Of the weights left, the fraction that stays each time; and the steps of conjugate gradients
# after each time and at the end. On ResNets, halving the fraction that goes, or doubling the
# steps, lowers the output error by a few percent more.
_STAYS = 0.9
_STEPS = 4
_LAST_STEPS = 16
_EXCHANGES = 4

_DAMPED_ALREADY = 1e-6
_ELEMENTS = Elements()

# Over all columns, after they have been rounded. On ResNet-20 at 4, 3 and 2 bits the output error
# falls by 2, 3 and 13 %, with half of the weights pruned by 5, 8 and 21 %; two more sweeps add 1 %.
_SWEEPS = 2

# Columns between two updates of everything behind them.
_BLOCK = 128
_WORKING_BYTES = 256 * 2**20


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

    A tenth of what is left goes at a time. A few exchanges follow: weights that are gone compete
    again, at the value that each would take alone.

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
    removed = _removed(second_moment, removed_columns)
    problem = _least_squares(weight, second_moment, removed, damping)
    candidates = ~removed[:, None].expand_as(weight)
    importance = _importance(problem, pattern.together(candidates))
    result = weight.new_empty(len(sparsities), *weight.shape)

    def kept(weights: Tensor, among: Tensor, density: float) -> Tensor:
        scores = weights * (weights @ importance)
        return among & pattern.keep(torch.where(among, scores, -1.0), candidates, density)

    left, keep, density = problem.target, candidates, 1.0
    for option in sorted(range(len(sparsities)), key=lambda option: sparsities[option]):
        goal = 1 - sparsities[option]
        while density * _STAYS > goal:
            density *= _STAYS
            keep = kept(left, keep, density)
            left = problem.solve(left, keep, _STEPS)
        best = problem.solve(left, kept(left, keep, goal), _STEPS)
        found, least = best, problem.error(best)
        for _ in range(_EXCHANGES):
            found = problem.solve(
                found, kept(found + problem.steps_alone(found), candidates, goal), _STEPS
            )
            error = problem.error(found)
            best, least = (found, error) if error < least else (best, least)
        result[option] = problem.solve(best, best != 0, _LAST_STEPS)
    return result


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
    removed = _removed(second_moment, removed_columns)
    problem = _least_squares(weight, second_moment, removed, damping)
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
    removed = _removed(second_moment, removed_columns)
    weights = _living(weights, second_moment) * ~removed[:, None]
    # Inputs with the most power first, while many columns are left to make up for the error
    # (GPTQ's "act order").
    power = second_moment.diagonal(dim1=1, dim2=2)
    order = _descending(torch.where(removed, torch.inf, power))
    moment = _in_order(order, second_moment)
    factor = inverse_factor(moment, damping)
    matrix = moment + _ridge(moment, damping)
    options = len(weights)
    result = weights.new_empty(options, len(bits), *weights.shape[1:])
    scales = []
    for part in _parts(weights):
        dense = _to_columns(weights[part], order)
        found = [find_scales(weights[part], width) for width in bits]
        scales.append(torch.stack([scale for scale, _ in found], dim=1))
        for index, (width, (scale, low)) in enumerate(zip(bits, found, strict=True)):
            steps = _of_columns(scale, weights[part], order)
            lows = None if low is None else _of_columns(low, weights[part], order)
            columns = dense.clone()
            for start, block, errors in _blocks(columns, factor):
                span = slice(start, start + block.shape[1])
                keep = dense[:, span] != 0
                low = None if lows is None else lows[:, span]
                _fix_block(block, errors, factor[:, span, span], keep, steps[:, span], width, low)
            if width not in FLOAT_BITS:
                _descend(columns, dense, matrix, steps, width, lows)
            result[part, index] = _from_columns(columns, order)
    return result, torch.cat(scales)


def inverse_factor(second_moment: Tensor, damping: float = DAMPING) -> Tensor:
    """Upper Cholesky factor U of the damped inverse, H^-1 = U^T U, float32.

    Args:
        second_moment: Shape (groups, columns, columns). Where it is still not positive definite
            after damping, the damping grows until it is.
        damping: See :data:`DAMPING`; > 0.

    Returns:
        Shape of ``second_moment``.
    """
    # With J the flip of all columns, J H J = L L^T gives H = R R^T for the upper triangular
    # R = J L J, hence U = R^-1: no inverse of H, which would square its condition.
    flipped = second_moment.double().flip(1, 2)
    diagonal = flipped.diagonal(dim1=1, dim2=2)
    power = diagonal.mean(dim=1, keepdim=True)
    ridge = torch.where(power > 0, damping * power, 1.0)
    diagonal += ridge
    lower, failed = torch.linalg.cholesky_ex(flipped)
    while failed.any():
        more = torch.where(failed[:, None] > 0, 9 * ridge, 0.0)
        diagonal += more
        ridge += more
        lower, failed = torch.linalg.cholesky_ex(flipped)
    identity = torch.eye(flipped.shape[-1], dtype=flipped.dtype, device=flipped.device)
    upper = torch.linalg.solve_triangular(lower.flip(1, 2), identity.expand_as(lower), upper=True)
    return upper.float()


def inverse_diagonal(second_moment: Tensor, damping: float = DAMPING) -> Tensor:
    """diag(H^-1) of the damped second moment, (groups, columns)."""
    return inverse_factor(second_moment, damping).square().sum(dim=1)


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
    for part in sets.split(max(1, _WORKING_BYTES // (4 * columns * sets.shape[1]))):
        group, place = part[:, :1] // columns, part % columns
        rows = factor.mT[group, place]  # (sets, size, columns): rows of U^T
        inner = torch.bmm(rows, rows.mT).double()
        gone = weight.mT[group, place].double()  # (sets, size, rows)
        lost.append((gone * torch.linalg.solve(inner, gone)).sum(dim=(1, 2)))
    return torch.cat(lost).clamp_min(0).to(weight)


@dataclass(frozen=True)
class _LeastSquares:
    """tr((T - W) A (T - W)^T): the output error of weights W, up to a constant.

    Attributes:
        target: T, what W would be if nothing but whole columns had to go, (groups, rows, columns).
        matrix: A, the damped second moment, (groups, columns, columns); the identity in the
            columns that are gone.
    """

    target: Tensor
    matrix: Tensor

    @property
    def power(self) -> Tensor:
        """Diagonal of A, (groups, columns), > 0."""
        return self.matrix.diagonal(dim1=1, dim2=2)

    def error(self, weight: Tensor) -> float:
        """tr((T - W) A (T - W)^T)."""
        change = self.target - weight
        return float(torch.sum((change @ self.matrix) * change))

    def steps_alone(self, weight: Tensor) -> Tensor:
        """How far each weight would move if it alone were free, shape of ``weight``."""
        return torch.bmm(self.target - weight, self.matrix) / self.power[:, None]

    def solve(self, start: Tensor, keep: Tensor, steps: int) -> Tensor:
        """The best weights with zeros outside ``keep``, by conjugate gradients from ``start``.

        Preconditioned with the diagonal; every row is a problem of its own. Never worse than
        ``start`` with zeros outside ``keep``.
        """
        inverse = 1 / self.power[:, None]
        tiny = torch.finfo(start.dtype).tiny
        weight = start * keep
        residual = torch.bmm(self.target - weight, self.matrix) * keep
        direction = residual * inverse
        slope = (residual * direction).sum(dim=-1, keepdim=True)
        for _ in range(steps):
            image = torch.bmm(direction, self.matrix) * keep
            curvature = (direction * image).sum(dim=-1, keepdim=True)
            step = torch.where(curvature > tiny, slope / curvature.clamp_min(tiny), 0.0)
            weight = weight.addcmul(step, direction)
            residual = residual.addcmul(step, image, value=-1)
            scaled = residual * inverse
            before, slope = slope, (residual * scaled).sum(dim=-1, keepdim=True)
            direction = scaled.addcmul(slope / before.clamp_min(tiny), direction)
        return weight


def _importance(problem: _LeastSquares, together: Tensor | None) -> Tensor:
    """Matrix M, (groups, columns, columns): a set of a row's weights is missed by w_s M_ss w_s^T.

    Optimal Brain Surgeon's [A^-1]_ss^-1 holds while all other weights can make up for the set,
    A_ss once none is left that could. What lies between is the first with its rows and columns
    scaled so that the diagonal becomes the geometric mean of both.
    """
    factor = inverse_factor(problem.matrix, _DAMPED_ALREADY).double()
    inverse = factor.mT @ factor
    if together is None:
        surgeon = 1 / inverse.diagonal(dim1=1, dim2=2)
        return torch.diag_embed((surgeon * problem.power).sqrt()).to(problem.matrix)
    same = together[:, :, None] == together[:, None]
    sets = torch.linalg.inv(inverse * same)
    scale = (problem.power / sets.diagonal(dim1=1, dim2=2)).sqrt().sqrt()
    return (sets * scale[:, :, None] * scale[:, None]).to(problem.matrix)


def _least_squares(
    weight: Tensor, second_moment: Tensor, removed: Tensor, damping: float
) -> _LeastSquares:
    """The problem that is left when the removed columns, bool (groups, columns), are gone."""
    stays = ~removed.to(weight.device)
    matrix = second_moment + _ridge(second_moment, damping)
    target = _living(weight, second_moment)
    if bool(removed.any()):
        gone = torch.diag_embed(removed.to(matrix))
        reads = (target @ matrix) * stays[:, None]
        matrix = matrix * stays[:, :, None] * stays[:, None] + gone
        target = torch.linalg.solve(matrix.double(), reads.double().mT).mT.to(weight)
        target = _living(target * stays[:, None], second_moment)
    return _LeastSquares(target, matrix)


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


def _fix_block(
    block: Tensor,
    errors: Tensor,
    factor: Tensor,
    keep: Tensor,
    scale: Tensor,
    bits: int,
    low: Tensor | None,
) -> None:
    """Fix the columns of a block one after the other, in place.

    Args:
        block: Shape (groups, columns, options, rows).
        errors: Receives the change of each weight over the factor's diagonal, shape of ``block``.
        keep: Bool, shape of ``block``.
        factor: The block's own part of the factor, (groups, columns, columns).
        scale: Scales, shape of ``block``.
        bits: Width of the weights.
        low: Least integers, shape of ``block``; None if they are symmetric.
    """
    for column in range(block.shape[1]):
        before = block[:, column]
        least = None if low is None else low[:, column]
        after = round_weights(before * keep[:, column], scale[:, column], bits, least)
        error = torch.sub(before, after, out=errors[:, column])
        error /= factor[:, column, column, None, None]
        before.copy_(after)
        coefficients = factor[:, column, column + 1 :, None, None]
        block[:, column + 1 :].addcmul_(coefficients, error[:, None], value=-1)


def _descend(
    columns: Tensor,
    target: Tensor,
    matrix: Tensor,
    scale: Tensor,
    bits: int,
    lows: Tensor | None,
) -> None:
    """Coordinate descent over rounded weights, in place; never raises the output error.

    Args:
        columns: Rounded weights, (groups, columns, options, rows).
        target: What they were; zeros stay zero. Shape of ``columns``, as of the next two.
        matrix: The damped second moment, columns in the same order, (groups, columns, columns).
        scale: Scales.
        bits: Width of the weights.
        lows: Least integers; None if they are symmetric.
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
                least = None if lows is None else lows[:, place]
                alone = weight - slope[:, column] / near[:, column, column, None, None]
                best = round_weights(alone * keep[:, place], scale[:, place], bits, least)
                slope.addcmul_(near[:, :, column, None, None], (best - weight)[:, None])
                weight.copy_(best)
            change = (block - before).flatten(2)
            gradient += torch.bmm(matrix[:, :, span], change).view_as(columns)


def _ridge(second_moment: Tensor, damping: float) -> Tensor:
    """What damping adds to a second moment, (groups, columns, columns)."""
    power = second_moment.diagonal(dim1=1, dim2=2)
    mean = power.mean(dim=1, keepdim=True)
    return torch.diag_embed(torch.where(mean > 0, damping * mean, 1.0).expand_as(power))


def _living(weight: Tensor, second_moment: Tensor) -> Tensor:
    """The weights without those of inputs that are always zero."""
    return weight * (second_moment.diagonal(dim1=1, dim2=2) > 0)[:, None]


def _removed(second_moment: Tensor, removed_columns: Tensor | None) -> Tensor:
    if removed_columns is None:
        return torch.zeros_like(second_moment[:, 0], dtype=torch.bool)
    return removed_columns


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


def _parts(weights: Tensor) -> Iterator[slice]:
    """Slices of the options, (options, groups, rows, columns), that fit the working memory."""
    copies = 8  # of an option's weights, at the peak
    option_bytes = copies * weights[0].numel() * weights.element_size()
    size = max(1, _WORKING_BYTES // option_bytes)
    for start in range(0, len(weights), size):
        yield slice(start, start + size)
