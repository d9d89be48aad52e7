"""Which attack robustness is measured under; for those who pass it on, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal
from typing import get_args

from hwmodel.errors import InputError

AttackMethod = Literal["fgsm", "pgd"]


@dataclass(frozen=True)
class Attack:
    """Changes of the inputs that make a network err, no value by more than a bound.

    Attributes:
        method: ``fgsm``: one step of the size of the bound along the sign of the loss's gradient
            (Goodfellow et al., ICLR 2015, section 4). ``pgd``: from a random start within the bound
            many smaller steps, each brought back into it (Madry et al., ICLR 2018, section 2.1).
        epsilon: The bound, as a share of the range that the input's channel has in the calibration
            data, above 0 to 1. For images from black to white 1/255 is one step of a byte.
        steps: Of ``pgd``, each 2.5 * epsilon / steps long, as Madry et al. take them; ``fgsm``
            takes one, whatever is said.
        images: How many of a split are attacked; always the same ones.

    Raises:
        InputError: a value is not allowed.
    """

    method: AttackMethod
    epsilon: float
    steps: int = 10
    images: int = 1000

    def __post_init__(self) -> None:
        methods = get_args(AttackMethod)
        if self.method not in methods:
            raise InputError("method", self.method, f"use one of {', '.join(methods)}")
        if not (math.isfinite(self.epsilon) and 0 < self.epsilon <= 1):
            raise InputError("epsilon", self.epsilon, "use a share of the range, above 0 to 1")
        for name in ("steps", "images"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "use 1 or more")
        if self.method == "fgsm":
            object.__setattr__(self, "steps", 1)
