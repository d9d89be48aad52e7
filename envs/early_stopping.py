"""Whether a network loses more accuracy than allowed, from as few images as prove it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel import InputError

_STAKES = np.geomspace(0.03, 0.9, 7)[:, None]
"""Fractions of the largest bet that cannot lose everything; the capital is spread evenly."""


@dataclass(frozen=True)
class AccuracyLimit:
    """The question that an evaluation may stop at.

    Attributes:
        drop_points: Accuracy that may be lost against the uncompressed network on the same
            split, in points (1 is one percent of the images), 0..100.
        error_rate: Probability of a wrong answer, at most, over the order of the images; 0..1,
            both exclusive.

    Raises:
        InputError: a value is out of its range.
    """

    drop_points: float
    error_rate: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.drop_points <= 100:
            raise InputError("drop_points", self.drop_points, "a number from 0 to 100")
        if not 0 < self.error_rate < 1:
            raise InputError("error_rate", self.error_rate, "a number between 0 and 1")


class SequentialTest:
    """Tests whether the mean of a finite population exceeds a limit, one value after the other.

    The values are drawn at random without replacement. Two gamblers bet on what comes next, one
    that the sum of the whole population exceeds the limit, one that it does not. Where such a
    claim is false, the gambler's capital is a supermartingale whose start is 1, and by Ville's
    inequality reaches ``1 / error_rate`` with a probability of at most ``error_rate``, whenever
    one looks. One of the claims is true, so this bounds all errors. (Waudby-Smith and Ramdas,
    "Confidence sequences for sampling without replacement", NeurIPS 2020; "Estimating means of
    bounded random variables by betting", JRSS B 2024, section 5.)

    Args:
        population: Number of values in all.
        limit: For the mean of all values, -1..1.
        error_rate: Probability of a wrong verdict, at most.
    """

    def __init__(self, population: int, limit: float, error_rate: float) -> None:
        self.population = population
        self.seen = 0
        self.sum = 0.0
        self.verdict: bool | None = None
        """True: the mean does not exceed the limit; None: not known yet."""
        # A little more than the limit, so that rounding cannot part a sum from its equal.
        self._total = (limit + 1e-9) * population
        self._needed = -np.log(error_rate)
        self._capital = np.zeros((2, len(_STAKES), 1))  # logarithms

    def update(self, values: NDArray[np.float64]) -> bool | None:
        """Take further values, each -1..1, and give the verdict, which stays once there is one."""
        if self.verdict is not None or not len(values):
            return self.verdict
        before = self.sum + np.concatenate([[0.0], np.cumsum(values)[:-1]])
        left = self.population - self.seen - np.arange(len(values))
        self.seen += len(values)
        self.sum += float(values.sum())
        # What the next value is on average if the whole sum is exactly at the limit.
        mean = (self._total - before) / left
        settled = np.flatnonzero(np.abs(mean) >= 1)  # no values can bring the sum over the limit
        count = settled[0] if len(settled) else len(values)
        surprise = values[:count] - mean[:count]
        above = np.log1p(_STAKES * surprise / (1 + mean[:count]))
        below = np.log1p(-_STAKES * surprise / (1 - mean[:count]))
        paths = self._capital + np.cumsum(np.stack([above, below]), axis=-1)
        wealth = np.logaddexp.reduce(paths, axis=1) - np.log(len(_STAKES))
        won = wealth >= self._needed
        first = [row.argmax() if row.any() else count for row in won]
        if min(first) < count:
            self.verdict = bool(first[1] < first[0])
        elif count < len(values):
            self.verdict = bool(mean[count] > 0)
        elif self.seen == self.population:
            self.verdict = bool(self.sum <= self._total)
        if count:
            self._capital = paths[..., -1:]
        return self.verdict
