"""What one moved value costs, with everything that moves along with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import WEIGHT
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.traffic import Moves
from hwmodel.mapper.windows import Array

Past = int | NDArray[np.int64]
"""1 where an operand goes past the buffer, 0 where it goes through it."""


@dataclass(frozen=True)
class Prices:
    """Energy of one value.

    Those in arrays are for values that go through the buffer (index 0) and past it (index 1).

    Attributes:
        fetch: Reading a weight or input for the elements, (2, operands).
        leave, come_back: A partial sum that the elements give away and take back, (2,).
        deliver: Bringing a weight or input to one element; one element giving a sum away.
        give_back: Bringing a partial sum back to one element.
        finish: Writing a finished output, (2,).
        cross: DRAM to buffer of a weight or input.
        spill, refill: A partial sum from buffer to DRAM, and back.
    """

    fetch: Array
    leave: Array
    come_back: Array
    deliver: tuple[float, float, float]
    give_back: float
    finish: Array
    cross: tuple[float, float]
    spill: float
    refill: float


def prices(problem: Problem) -> Prices:
    """Prices on one array."""
    registers, buffer, dram = problem.registers, problem.buffer, problem.dram
    hop = problem.hop if problem.rules.network else (0.0, 0.0, 0.0)
    fetch = np.array([level.bits for level in (buffer, dram)])
    fetch = fetch * np.array([level.read for level in (buffer, dram)])
    sums = np.array([level.bits[OUTPUT] for level in (buffer, dram)])
    finish = dram.final_bits * dram.write[OUTPUT]
    through = buffer.final_bits * (buffer.read[OUTPUT] + buffer.write[OUTPUT])
    kept = registers.bits
    return Prices(
        fetch=fetch,
        leave=sums * np.array([buffer.write[OUTPUT], dram.write[OUTPUT]]),
        come_back=sums * np.array([buffer.read[OUTPUT], dram.read[OUTPUT]]),
        deliver=(
            hop[WEIGHT] + kept[WEIGHT] * registers.write[WEIGHT],
            hop[INPUT] + kept[INPUT] * registers.write[INPUT],
            hop[OUTPUT] + kept[OUTPUT] * registers.read[OUTPUT],
        ),
        give_back=hop[OUTPUT] + kept[OUTPUT] * registers.write[OUTPUT],
        finish=np.array([finish + through, finish]),
        cross=(
            dram.bits[WEIGHT] * dram.read[WEIGHT] + buffer.bits[WEIGHT] * buffer.write[WEIGHT],
            dram.bits[INPUT] * dram.read[INPUT] + buffer.bits[INPUT] * buffer.write[INPUT],
        ),
        spill=sums[1] * dram.write[OUTPUT] + sums[0] * buffer.read[OUTPUT],
        refill=sums[1] * dram.read[OUTPUT] + sums[0] * buffer.write[OUTPUT],
    )


def returning(problem: Problem, visits: Array, again: NDArray[np.bool_], outputs: float) -> Array:
    """Partial sums that come back, of so many visits to the next memory outwards."""
    return np.where(again, visits, 0.0) if problem.rules.first_sums else visits - outputs


def inner_energy(
    problem: Problem, price: Prices, moves: list[Moves], past: Sequence[Past], outputs: float
) -> Array:
    """Energy of what moves inside the buffer's tile, of one group.

    Args:
        problem: The problem.
        price: Its prices.
        moves: By operand.
        past: 1 where an operand goes past the buffer, by operand.
        outputs: Outputs of the group.
    """
    out, route = moves[OUTPUT], past[OUTPUT]
    back = returning(problem, out.fetched, out.again, outputs)
    copies = out.delivered / out.fetched if problem.rules.first_sums else 1.0
    energy = (out.fetched - outputs) * price.leave[route] + back * price.come_back[route]
    energy = energy + out.delivered * price.deliver[OUTPUT] + back * copies * price.give_back
    energy = energy + outputs * price.finish[route]
    for operand in (WEIGHT, INPUT):
        move = moves[operand]
        energy = energy + move.fetched * price.fetch[past[operand], operand]
        energy = energy + move.delivered * price.deliver[operand]
    return energy
