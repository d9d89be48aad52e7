"""How repair prunes and rounds the weights of a layer: one setting for a whole network."""

from __future__ import annotations

from dataclasses import dataclass

from envs.settings import check_values
from envs.settings import non_defaults

_ALLOWED = {
    "pruning": ("approximate|exact", "approximate or exact"),
    "rounding": ("gptq|exact|adaround", "gptq, exact or adaround"),
}
"""Pattern and description of every field's values."""


@dataclass(frozen=True)
class Reconstruction:
    """How the weights left of a layer make up for those removed and rounded.

    Repair ``none`` knows none of this.

    Attributes:
        pruning: ``approximate``: by second order, a few weights at a time, see
            :mod:`envs.reconstruction`; ``exact``: Optimal Brain Compression as published, one
            weight of a row at a time, see :mod:`envs.exact_reconstruction`. Under other criteria
            the weights that stay are solved for by a few steps, or exactly.
        rounding: ``gptq``: column by column, then two sweeps of coordinate descent; ``exact``:
            Optimal Brain Compression, the weight of a row that loses least first; ``adaround``: up
            or down by an annealed relaxation, see :mod:`envs.adaptive_rounding`.

    Raises:
        InputError: a value is none of these.
    """

    pruning: str = "approximate"
    rounding: str = "gptq"

    def __post_init__(self) -> None:
        check_values(self, _ALLOWED)

    def to_json(self) -> dict[str, str]:
        """The fields that differ from their defaults."""
        return non_defaults(self)


DEFAULT_RECONSTRUCTION = Reconstruction()
