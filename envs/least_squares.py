"""A layer's weights as a least-squares problem: what is left makes up for what is gone.

The output error of a layer is tr((W - W') H (W - W')^T), where H is the second moment of its
inputs: every row, an output channel, is a least-squares problem of its own. Weights have shape
(groups, rows, columns), H is (groups, columns, columns); see :mod:`envs.reconstruction`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hwmodel import InputError

DAMPING = 0.01
"""Added to the diagonal of H, as a fraction of the diagonal's mean."""

DAMPED_ALREADY = 1e-6
"""Damping of matrices that have theirs."""

WORKING_BYTES = 256 * 2**20
# Of the normal equations of a row, for each of their entries: as they are and factored.
_SOLVING_BYTES = 24
# Columns; more take memory, fewer time.
_ELIMINATED_AT_ONCE = 32


@dataclass(frozen=True)
class LeastSquares:
    """tr((T - W) A (T - W)^T): the output error of weights W, up to a constant.

    Attributes:
        target: T, what W would be if nothing but whole columns had to go, (groups, rows, columns).
        matrix: A, the damped second moment, (groups, columns, columns); the identity in the
            columns that are gone.
        filled: Which weights were not 0 from the beginning, bool, shape of ``target``: all others
            stay 0, though T, which makes up for what is gone with them too, may not be.
    """

    target: Tensor
    matrix: Tensor
    filled: Tensor

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
        steps = torch.bmm(self.target - weight, self.matrix) / self.power[:, None]
        return steps * self.filled

    def solve(self, start: Tensor, keep: Tensor, steps: int) -> Tensor:
        """The best weights with zeros outside ``keep``, by conjugate gradients from ``start``.

        Preconditioned with the diagonal; every row is a problem of its own. Never worse than
        ``start`` with zeros outside ``keep``.
        """
        keep = keep & self.filled
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

    def optimum(self, keep: Tensor) -> Tensor:
        """The very best weights with zeros outside ``keep``, from the normal equations of each row.

        In parts that fit the working memory, however large the layer is.
        """
        keep = keep & self.filled
        groups, rows, columns = self.target.shape
        weight = torch.empty_like(self.target)
        reads = torch.bmm(self.target.double(), self.matrix.double()) * keep
        for part in row_parts(groups, rows, _SOLVING_BYTES * columns**2):
            own = self.of_rows(keep[:, part]).double()
            found = torch.linalg.solve(own, reads[:, part].flatten(0, 1))
            weight[:, part] = found.view(groups, -1, columns)
        return weight * keep

    def of_rows(self, keep: Tensor) -> Tensor:
        """A of the weights that each row keeps, the identity elsewhere.

        Args:
            keep: Some of the rows of all groups, bool, (groups, rows, columns).

        Returns:
            Shape (groups * rows, columns, columns).
        """
        own = self.matrix[:, None] * keep[..., None, :] * keep[..., None]
        own.diagonal(dim1=2, dim2=3).masked_fill_(~keep, 1.0)
        return own.flatten(0, 1)


def least_squares(
    weight: Tensor, second_moment: Tensor, removed: Tensor, damping: float
) -> LeastSquares:
    """The problem that is left when the removed columns, bool (groups, columns), are gone.

    Weights that are 0 stay so: the zeros of a network that is sparse already, or those that a
    transposed convolution has where its kernel is no multiple of its stride.
    """
    stays = ~removed.to(weight.device)
    matrix = second_moment + ridge_of(second_moment, damping)
    target = living(weight, second_moment)
    if bool(removed.any()):
        gone = torch.diag_embed(removed.to(matrix))
        reads = (target @ matrix) * stays[:, None]
        matrix = matrix * stays[:, :, None] * stays[:, None] + gone
        target = torch.linalg.solve(matrix.double(), reads.double().mT).mT.to(weight)
        target = living(target * stays[:, None], second_moment)
    return LeastSquares(target, matrix, weight != 0)


def rounding_problem(
    weights: Tensor, second_moment: Tensor, removed_columns: Tensor | None, damping: float
) -> tuple[Tensor, Tensor]:
    """What is to be rounded, and what errors are measured by.

    Args:
        weights: Shape (options, groups, rows, columns).
        second_moment: Shape (groups, columns, columns).
        removed_columns: Columns that are zero in all options, bool, (groups, columns).
        damping: See :data:`DAMPING`; > 0.

    Returns:
        The weights without those that no input reaches, and the damped second moment.
    """
    removed = removed_mask(second_moment, removed_columns)
    matrix = second_moment + ridge_of(second_moment, damping)
    return living(weights, second_moment) * ~removed[:, None], matrix


def eliminate(weight: Tensor, inverse: Tensor, gone: Tensor) -> None:
    """Remove weights, bool (rows, columns), and have all others make up for them, in place.

    With S the set that goes from a row: w -= H^-1[:, S] H^-1[S, S]^-1 w_S, and the same with the
    columns of H^-1 for its own; rows of fewer weights than others are filled up with none.
    """
    most = int(gone.sum(dim=1).max())
    if not most:
        return
    places = gone.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    real = gone.gather(1, places)
    columns = inverse.gather(2, places[:, None].expand(-1, inverse.shape[1], -1)) * real[:, None]
    inner = columns.gather(1, places[:, :, None].expand(-1, -1, most)) * real[:, :, None]
    inner += torch.diag_embed(torch.where(real, 0.0, 1.0))
    lower = torch.linalg.cholesky(inner)
    half = torch.linalg.solve_triangular(lower, columns.mT, upper=False)
    wanted = (weight.gather(1, places) * real)[:, :, None]
    wanted = torch.linalg.solve_triangular(lower, wanted, upper=False)
    weight -= (half.mT @ wanted).squeeze(-1)
    weight.masked_fill_(gone, 0.0)
    if most == 1:  # with the strides it has, the product takes several times as long
        half = half.clone(memory_format=torch.contiguous_format)
    inverse.baddbmm_(half.mT, half, alpha=-1)
    # Rows and columns of what is gone are zero now, up to rounding.
    inverse.diagonal(dim1=1, dim2=2).masked_fill_(gone, 1.0)


def eliminate_zeros(weight: Tensor, inverse: Tensor, filled: Tensor) -> None:
    """As :func:`eliminate`, of what is not ``filled``, bool (rows, columns), however much it is."""
    for columns in torch.arange(filled.shape[1], device=filled.device).split(_ELIMINATED_AT_ONCE):
        gone = torch.zeros_like(filled).index_copy_(1, columns, ~filled[:, columns])
        eliminate(weight, inverse, gone)


def inverse_factor(second_moment: Tensor, damping: float = DAMPING) -> Tensor:
    """Upper Cholesky factor U of the damped inverse, H^-1 = U^T U, float32.

    Args:
        second_moment: Shape (groups, columns, columns). Where it is still not positive definite
            after damping, the damping grows until it is.
        damping: See :data:`DAMPING`; > 0.

    Returns:
        Shape of ``second_moment``.

    Raises:
        InputError: a moment is not finite: no damping makes it positive definite.
    """
    if not bool(second_moment.isfinite().all()):
        allowed = "activations and their squares must be finite; above 65504 16 bits overflow"
        raise InputError("input of a layer", "not finite", allowed)
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


def inverses_bytes(weight: Tensor) -> int:
    """Memory of an inverse for every row of (groups, rows, columns)."""
    return weight.numel() * weight.shape[-1] * weight.element_size()


def row_parts(groups: int, rows: int, row_bytes: int, together: int = 1) -> Iterator[slice]:
    """Slices of the rows of all groups that fit the working memory.

    Args:
        groups: Groups, of all of which the same rows are taken.
        rows: Rows of a group.
        row_bytes: Memory that a row needs.
        together: Rows that are not parted: slices begin at multiples of it.
    """
    fitting = WORKING_BYTES // (groups * row_bytes) // together
    size = together * max(1, fitting)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def ridge_of(second_moment: Tensor, damping: float) -> Tensor:
    """What damping adds to a second moment, (groups, columns, columns)."""
    power = second_moment.diagonal(dim1=1, dim2=2)
    mean = power.mean(dim=1, keepdim=True)
    return torch.diag_embed(torch.where(mean > 0, damping * mean, 1.0).expand_as(power))


def living(weight: Tensor, second_moment: Tensor) -> Tensor:
    """The weights without those of inputs that are always zero."""
    return weight * (second_moment.diagonal(dim1=1, dim2=2) > 0)[:, None]


def removed_mask(second_moment: Tensor, removed_columns: Tensor | None) -> Tensor:
    """Removed columns as bool, (groups, columns), also where none are."""
    if removed_columns is None:
        return torch.zeros_like(second_moment[:, 0], dtype=torch.bool)
    return removed_columns
