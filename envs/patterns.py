"""What a layer's weights are removed in: single weights, blocks, kernels, N of every M.

Weights have shape (groups, rows, columns): rows are the output channels of a group, columns its
input channels times the kernel's positions. Blocks and runs lie along the input channels: columns
are counted position by position, all channels of one before the next, as in a matrix made from
feature maps whose channels come last. Columns of channels that are gone are not counted, since
hardware never sees them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from envs.config import BLOCK
from envs.config import RUN
from envs.pruning import kept_count
from envs.pruning import lowest
from hwmodel import LayerShape


class Pattern(Protocol):
    """What goes together, and what must stay."""

    @property
    def rows(self) -> int:
        """Neighbouring rows of which the same columns go together."""

    def keep(self, scores: Tensor, candidates: Tensor, density: float) -> Tensor:
        """Which weights stay: those with the highest scores.

        Args:
            scores: Shape (groups, rows, columns); -1 where a weight is gone already. Else their
                sum over what goes together is >= 0.
            candidates: Weights that ``density`` counts: whole columns, bool, shape of ``scores``.
            density: Fraction of the candidates that stay, 0 <= density <= 1. Of 0, only what must
                stay at any density does: N of every M.

        Returns:
            Bool, shape of ``scores``.
        """

    def together(self, candidates: Tensor) -> Tensor | None:
        """Number of the set of columns that each column goes with, (groups, columns).

        None where the weights of a row go one by one.
        """


class _OneByOne:
    rows = 1

    def together(self, candidates: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Elements(_OneByOne):
    """Single weights; exactly ``kept_count(candidates, 1 - density)`` of them stay."""

    def keep(self, scores: Tensor, candidates: Tensor, density: float) -> Tensor:
        kept = kept_count(int(candidates.sum()), 1 - density)
        return ~lowest(scores, scores.numel() - kept)


@dataclass(frozen=True)
class Blocks:
    """Blocks of ``rows`` output channels times ``columns`` input channels; smaller at the edges.

    Attributes:
        rows, columns: Size of a block.
        kernel: Positions of the layer's kernel.
    """

    rows: int
    columns: int
    kernel: int

    def together(self, candidates: Tensor) -> Tensor | None:
        if self.columns == 1:
            return None
        return _places(candidates, self.kernel) // self.columns

    def keep(self, scores: Tensor, candidates: Tensor, density: float) -> Tensor:
        place = _places(candidates, self.kernel) // self.columns
        row = torch.arange(scores.shape[1], device=scores.device) // self.rows
        cells = row[:, None] * (int(place.max()) + 1) + place[:, None]
        return _keep_cells(scores, candidates, density, cells)


@dataclass(frozen=True)
class Kernels:
    """All positions of one input channel in one filter.

    Attributes:
        kernel: Positions of the layer's kernel.
    """

    rows = 1
    kernel: int

    def together(self, candidates: Tensor) -> Tensor | None:
        groups, _, columns = candidates.shape
        channel = torch.arange(columns, device=candidates.device) // self.kernel
        return channel.expand(groups, -1)

    def keep(self, scores: Tensor, candidates: Tensor, density: float) -> Tensor:
        _, rows, columns = scores.shape
        cells = torch.arange(rows * columns // self.kernel, device=scores.device)
        cells = cells.repeat_interleave(self.kernel).view(1, rows, columns).expand_as(scores)
        return _keep_cells(scores, candidates, density, cells)


@dataclass(frozen=True)
class Runs(_OneByOne):
    """At most ``n`` of every ``m`` weights along the input channels (2:4 and the like).

    ``n * rest // m`` of a last run of ``rest < m`` stay; a layer with fewer than ``m`` columns is
    left alone. Before the density gets down to n / m, the lowest go first from anywhere.

    Attributes:
        n, m: 0 < n < m.
        kernel: Positions of the layer's kernel.
    """

    n: int
    m: int
    kernel: int

    def keep(self, scores: Tensor, candidates: Tensor, density: float) -> Tensor:
        stays = self._highest_of_runs(scores, candidates)
        if kept_count(self.m, 1 - density) <= self.n:
            return stays
        kept = kept_count(int(candidates.sum()), 1 - density)
        scores = torch.where(stays, torch.inf, scores)
        return ~lowest(scores, scores.numel() - kept)

    def _highest_of_runs(self, scores: Tensor, candidates: Tensor) -> Tensor:
        place = _places(candidates, self.kernel)
        living = candidates[:, 0].sum(dim=1, keepdim=True)
        runs = -(-scores.shape[2] // self.m)
        # Weights by place, (groups, rows, runs, m); places without one hold -inf.
        size = runs * self.m
        index = place.clamp_max(size)[:, None].expand_as(scores)
        table = scores.new_full((*scores.shape[:2], size + 1), -torch.inf)
        table.scatter_(2, index, torch.where(candidates, scores, -torch.inf))
        table = table[..., :-1].unflatten(2, (runs, self.m))
        rank = table.argsort(dim=3, descending=True, stable=True).argsort(dim=3)
        begins = torch.arange(runs, device=scores.device) * self.m
        rest = (living - begins).clamp(0, self.m)
        allowed = torch.where(living < self.m, rest, self.n * rest // self.m)
        stays = (rank < allowed[:, None, :, None]).flatten(2)
        stays = torch.cat([stays, torch.zeros_like(stays[..., :1])], dim=2)
        return stays.gather(2, index) & candidates


def pattern_of(granularity: str, sparsity: float, shape: LayerShape) -> Pattern:
    """The pattern that a granularity of ``config`` stands for, at one sparsity in one layer."""
    kernel = shape.kernel_height * shape.kernel_width
    if granularity == "kernel":
        return Kernels(kernel)
    if run := re.fullmatch(RUN, granularity):
        m = int(run[1])
        return Runs(kept_count(m, sparsity), m, kernel)
    if block := re.fullmatch(BLOCK, granularity):
        return Blocks(int(block[1]), int(block[2]), kernel)
    return Elements()


def _places(candidates: Tensor, kernel: int) -> Tensor:
    """Place of every column among the candidates, positions before channels, (groups, columns).

    Columns that are no candidates come behind all others.
    """
    alive = candidates[:, 0]
    groups, columns = alive.shape
    by_position = alive.view(groups, -1, kernel).transpose(1, 2).flatten(1)
    place = torch.where(by_position, by_position.cumsum(dim=1) - 1, columns)
    return place.view(groups, kernel, -1).transpose(1, 2).flatten(1)


def _keep_cells(scores: Tensor, candidates: Tensor, density: float, cells: Tensor) -> Tensor:
    """Keep the cells whose weights have the highest mean score; the rest as ``Pattern.keep``.

    The cell of every weight is numbered in each group from 0, shape of ``scores``.
    """
    groups, count = scores.shape[0], int(cells.max()) + 1
    cells = cells.flatten(1)
    size = scores.new_zeros(groups, count).scatter_add_(1, cells, candidates.flatten(1).to(scores))
    wanted = torch.where(candidates, scores, 0.0).flatten(1)
    mean = scores.new_zeros(groups, count).scatter_add_(1, cells, wanted) / size.clamp_min(1)
    mean = torch.where(size > 0, mean, -torch.inf)
    kept = kept_count(int((size > 0).sum()), 1 - density)
    return (~lowest(mean, mean.numel() - kept)).gather(1, cells).view_as(scores) & candidates
