"""Prune and round a layer by Optimal Brain Compression as published, one weight at a time.

Frantar and Alistarh, Optimal Brain Compression, 2022. Every row has an inverse of its own, of the
weights that are left, and after every weight that goes all others of the row make up for it.
Pruning (section 4, ExactOBS) takes from each row the weight, or the set of weights that go
together, with the least loss w_S^T [H^-1]_SS^-1 w_S, and goes on until nothing is left that may go.
The losses on the way tell how much each row loses at which sparsity: over all rows those removals
are made that lose least. Rounding (section 5, OBQ) fixes in each row the weight with the least
(round(w) - w)^2 / [H^-1]_pp next, or, where one has left the grid, that one at once.

Shapes are those of :mod:`envs.reconstruction`, whose functions need a fraction of the time: here
every weight costs an update of columns^2 numbers. Rows are worked on in parts that fit the working
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.least_squares import DAMPED_ALREADY
from envs.least_squares import DAMPING
from envs.least_squares import LeastSquares
from envs.least_squares import eliminate
from envs.least_squares import eliminate_zeros
from envs.least_squares import inverse_factor
from envs.least_squares import least_squares
from envs.least_squares import removed_mask
from envs.least_squares import rounding_problem
from envs.least_squares import row_parts
from envs.patterns import Elements
from envs.patterns import Pattern
from envs.quantization import of_each
from envs.quantization import round_weights
from envs.scales import FindScales
from envs.scales import weight_scales

_ELEMENTS = Elements()

# Of a row, for each entry of its inverse, at the peak: while it is updated, in single precision,
# and while it is found, in double precision.
_UPDATED_BYTES = 8
_INVERTED_BYTES = 48

# An error of more than half a step, up to rounding, is that of a weight outside its grid.
_OUTSIDE = 0.5 + 1e-4


def prune_exactly(
    weight: Tensor,
    second_moment: Tensor,
    sparsities: Sequence[float],
    *,
    pattern: Pattern = _ELEMENTS,
    removed_columns: Tensor | None = None,
    damping: float = DAMPING,
) -> Tensor:
    """As :func:`envs.reconstruction.reconstruct_sparse`, one weight of every row at a time."""
    removed = removed_mask(second_moment, removed_columns)
    problem = least_squares(weight, second_moment, removed, damping)
    candidates = ~removed[:, None].expand_as(weight)
    if not any(sparsities):
        best = problem.target if bool(problem.filled.all()) else problem.optimum(candidates)
        return best.expand(len(sparsities), -1, -1, -1).clone()
    places = _places(problem, candidates, pattern)
    keep = [candidates & pattern.keep(places, candidates, 1 - goal) for goal in sparsities]
    return torch.stack([problem.optimum(mask) for mask in keep])


def solve_exactly(
    weight: Tensor,
    second_moment: Tensor,
    keep: Tensor,
    *,
    removed_columns: Tensor | None = None,
    damping: float = DAMPING,
) -> Tensor:
    """As :func:`envs.reconstruction.reconstruct_masked`, by the normal equations of every row."""
    removed = removed_mask(second_moment, removed_columns)
    problem = least_squares(weight, second_moment, removed, damping)
    return torch.stack([problem.optimum(mask & ~removed[:, None]) for mask in keep])


def _places(problem: LeastSquares, candidates: Tensor, pattern: Pattern) -> Tensor:
    """When each weight goes, over all rows, if always the least loss is taken.

    A row's next removal is open only after those before it: what counts is the greatest loss so
    far.

    Returns:
        float64, (groups, rows, columns), the higher the later; -1 for weights that were no
        candidates.
    """
    groups, rows, columns = candidates.shape
    greatest = torch.empty_like(problem.target)
    step = torch.empty_like(candidates, dtype=torch.long)
    factor = inverse_factor(problem.matrix, DAMPED_ALREADY)
    inverse = factor.mT @ factor
    for part in row_parts(groups, rows, _UPDATED_BYTES * columns**2, pattern.rows):
        greatest[:, part], step[:, part] = _trace(
            problem.target[:, part],
            inverse,
            candidates[:, part],
            problem.filled[:, part],
            pattern,
        )
    order = step.flatten().argsort(stable=True)
    order = order[greatest.flatten()[order].argsort(stable=True)]
    places = torch.empty(len(order), dtype=torch.float64, device=order.device)
    places[order] = torch.arange(len(order), dtype=torch.float64, device=order.device)
    return torch.where(candidates, places.view_as(greatest), -1.0)


def _trace(
    target: Tensor, inverse: Tensor, candidates: Tensor, filled: Tensor, pattern: Pattern
) -> tuple[Tensor, Tensor]:
    """Remove all that may go of some rows, the least loss of every row first.

    Args:
        target: Shape (groups, rows, columns).
        inverse: Of the matrix of all columns, (groups, columns, columns).
        candidates: Shape of ``target``, bool.
        filled: See :class:`envs.least_squares.LeastSquares`; shape of ``target``.
        pattern: What may go, and what goes together.

    Returns:
        The greatest loss of a weight that had gone from a row when each did, and how many times
        something had gone before; infinite and the most for what stays. Shape of ``target``.
    """
    rows = target.shape[1]
    weight = target.flatten(0, 1).clone()
    inverses = inverse.repeat_interleave(rows, dim=0)
    eliminate_zeros(weight, inverses, filled.flatten(0, 1))
    cells = _Cells.of(pattern, candidates)
    alive = candidates
    greatest = torch.full_like(target, torch.inf)
    step = torch.full_like(target, target.shape[-1], dtype=torch.long)
    so_far = torch.zeros_like(target[..., :1])
    for number in range(target.shape[-1]):
        losses = torch.where(alive, cells.losses(weight, inverses).view_as(target), -1.0)
        may_go = alive & ~pattern.keep(losses, candidates, 0.0)
        gone, loss = cells.cheapest(losses, may_go)
        if not bool(gone.any()):
            break
        eliminate(weight, inverses, gone.flatten(0, 1))
        alive = alive & ~gone
        so_far = torch.maximum(so_far, loss)
        greatest = torch.where(gone, so_far, greatest)
        step = torch.where(gone, number, step)
    return greatest, step


@dataclass(frozen=True)
class _Cells:
    """What goes together: a set of columns in all rows of a stripe.

    Attributes:
        sets: Number of each column's set, (groups, columns).
        members: Columns of each set, (groups, sets, size); None where each goes alone.
        real: Which of them are no filling, bool, shape of ``members``.
        stripe: Number of each row's stripe, (rows,).
    """

    sets: Tensor
    members: Tensor | None
    real: Tensor | None
    stripe: Tensor

    @classmethod
    def of(cls, pattern: Pattern, candidates: Tensor) -> _Cells:
        groups, rows, columns = candidates.shape
        stripe = torch.arange(rows, device=candidates.device) // pattern.rows
        sets = pattern.together(candidates)
        if sets is None:
            alone = torch.arange(columns, device=candidates.device).expand(groups, -1)
            return cls(alone, None, None, stripe)
        counts = candidates[:, 0]
        place = ((sets[:, :, None] == sets[:, None]) & counts[:, None]).tril().sum(dim=2) - 1
        group, column = counts.nonzero(as_tuple=True)
        at = group, sets[group, column], place[group, column]
        shape = groups, int(sets.max()) + 1, int(place.max()) + 1
        members = torch.zeros(shape, dtype=torch.long, device=sets.device)
        members[at] = column
        real = torch.zeros_like(members, dtype=torch.bool)
        real[at] = True
        return cls(sets, members, real, stripe)

    def losses(self, weight: Tensor, inverse: Tensor) -> Tensor:
        """What removing each cell costs in each row; the parts of its weights add up to it.

        Args:
            weight: Shape (groups * rows, columns).
            inverse: Of the matrix of the weights that are left in every row, (groups * rows,
                columns, columns).

        Returns:
            Shape of ``weight``.
        """
        if self.members is None or self.real is None:
            return weight.square() / inverse.diagonal(dim1=1, dim2=2)
        rows = len(self.stripe)
        members, real = (x.repeat_interleave(rows, dim=0) for x in (self.members, self.real))
        row = torch.arange(len(weight), device=weight.device)[:, None, None]
        inner = inverse[row[..., None], members[..., None], members[..., None, :]]
        inner = inner * (real[..., None] & real[..., None, :])
        inner.diagonal(dim1=2, dim2=3).masked_fill_(~real, 1.0)
        wanted = weight[row, members] * real
        parts = wanted * torch.linalg.solve(inner, wanted)
        return torch.zeros_like(weight).scatter_add_(1, members.flatten(1), parts.flatten(1))

    def cheapest(self, losses: Tensor, may_go: Tensor) -> tuple[Tensor, Tensor]:
        """The cell of each stripe that is missed least, for each of its weights.

        Args:
            losses: See :meth:`losses`, (groups, rows, columns).
            may_go: Whole cells, bool, shape of ``losses``.

        Returns:
            Which weights these are, bool, shape of ``losses``; and the loss for each weight,
            (groups, rows, 1).
        """
        sets = int(self.sets.max()) + 1
        stripes = int(self.stripe[-1]) + 1
        cell = (self.stripe[:, None] * sets + self.sets[:, None]).flatten(1)
        lost = losses.new_zeros(len(losses), stripes * sets)
        count = torch.zeros_like(lost).scatter_add_(1, cell, may_go.flatten(1).to(lost))
        lost.scatter_add_(1, cell, torch.where(may_go, losses, 0.0).flatten(1))
        mean = torch.where(count > 0, lost / count.clamp_min(1), torch.inf)
        least, best = mean.view(-1, stripes, sets).min(dim=2)
        gone = may_go & (self.sets[:, None] == best[:, self.stripe, None])
        return gone, least[:, self.stripe, None]


def round_exactly(
    weights: Tensor,
    second_moment: Tensor,
    bits: Sequence[int],
    *,
    removed_columns: Tensor | None = None,
    damping: float = DAMPING,
    find_scales: FindScales = weight_scales,
) -> tuple[Tensor, Tensor]:
    """As :func:`envs.reconstruction.reconstruct_rounded`, one weight of every row at a time.

    Integer widths only.
    """
    weights, matrix = rounding_problem(weights, second_moment, removed_columns, damping)
    found = [find_scales(weights, width) for width in bits]
    result = weights.new_empty(len(weights), len(bits), *weights.shape[1:])
    groups, rows, columns = weights.shape[1:]
    for option, dense in enumerate(weights):
        problem = LeastSquares(dense, matrix, dense != 0)
        for part in row_parts(groups, rows, _INVERTED_BYTES * columns**2):
            row_weights = dense[:, part].flatten(0, 1)
            factor = inverse_factor(problem.of_rows(problem.filled[:, part]), DAMPED_ALREADY)
            inverse = factor.mT @ factor
            for index, (width, (scale, low)) in enumerate(zip(bits, found, strict=True)):
                step, lowest = (
                    None if x is None else of_each(x[option], dense)[:, part].flatten(0, 1)
                    for x in (scale, low)
                )
                assert step is not None
                rounded = _round_rows(row_weights, inverse.clone(), step, width, lowest)
                result[option, index, :, part] = rounded.view(groups, -1, columns)
    return result, torch.stack([scale for scale, _ in found], dim=1)


def _round_rows(
    weight: Tensor, inverse: Tensor, step: Tensor, bits: int, low: Tensor | None
) -> Tensor:
    """Fix one weight of every row after the other; those still free make up for the error.

    Args:
        weight: Shape (rows, columns); zeros stay zero.
        inverse: Of the matrix of each row's weights, (rows, columns, columns); changed.
        step: Scale of each weight, (rows, columns) or (rows, 1).
        bits: 2 to 8.
        low: Least integer of each weight; None if they are symmetric. Shape of ``step``.

    Returns:
        Shape of ``weight``.
    """
    free = weight != 0
    rounded = torch.zeros_like(weight)
    columns = torch.arange(weight.shape[1], device=weight.device)
    for _ in range(int(free.sum(dim=1).max())):
        nearest = round_weights(weight, step.expand_as(weight), bits, low)
        error = torch.where(free, weight - nearest, 0.0)
        loss = error.square() / inverse.diagonal(dim1=1, dim2=2)
        place = torch.where(free, loss, torch.inf).argmin(dim=1)
        outside, farthest = (error.abs() * (error.abs() > _OUTSIDE * step)).max(dim=1)
        place = torch.where(outside > 0, farthest, place)
        fixed = free & (columns == place[:, None])
        rounded = torch.where(fixed, nearest, rounded)
        # What is left to be removed of a weight that is fixed is its error.
        weight = torch.where(fixed, error, weight)
        eliminate(weight, inverse, fixed)
        free = free & ~fixed
    return rounded
