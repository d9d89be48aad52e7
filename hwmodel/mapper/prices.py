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
        hop: One value on the array network.
        deliver: Storing a weight or input in one element; taking a sum from one.
        give_back: Storing a partial sum in one element again.
        finish: Writing a finished output, (2,).
        cross: DRAM to buffer of a weight or input.
        spill, refill: A partial sum from buffer to DRAM, and back.
    """

    fetch: Array
    leave: Array
    come_back: Array
    hop: tuple[float, float, float]
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
    out_again = 0.0 if problem.resident[OUTPUT] else buffer.read[OUTPUT]
    through = buffer.final_bits * (out_again + buffer.write[OUTPUT])
    filled = [0.0 if stays else bits * each for stays, bits, each
              in zip(problem.resident, buffer.bits, buffer.write, strict=True)]  # fmt: skip
    kept = registers.bits if problem.rules.fills else (0.0, 0.0, 0.0)
    return Prices(
        fetch=fetch,
        leave=sums * np.array([buffer.write[OUTPUT], dram.write[OUTPUT]]),
        come_back=sums * np.array([buffer.read[OUTPUT], dram.read[OUTPUT]]),
        hop=hop,
        deliver=(
            kept[WEIGHT] * registers.write[WEIGHT],
            kept[INPUT] * registers.write[INPUT],
            kept[OUTPUT] * registers.read[OUTPUT],
        ),
        give_back=kept[OUTPUT] * registers.write[OUTPUT],
        finish=np.array([finish + through, finish]),
        cross=(
            dram.bits[WEIGHT] * dram.read[WEIGHT] + filled[WEIGHT],
            dram.bits[INPUT] * dram.read[INPUT] + filled[INPUT],
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
    to_elements = returned(problem, out, back)
    energy = (out.fetched - outputs) * price.leave[route] + back * price.come_back[route]
    energy = energy + out.delivered * price.deliver[OUTPUT] + to_elements * price.give_back
    energy = energy + outputs * price.finish[route]
    for operand in (WEIGHT, INPUT):
        move = moves[operand]
        energy = energy + move.fetched * price.fetch[past[operand], operand]
        energy = energy + move.delivered * price.deliver[operand]
    for values, hop in zip(on_network(problem, moves, to_elements), price.hop, strict=True):
        energy = energy + values * hop
    return energy


def returned(problem: Problem, sums: Moves, back: Array) -> Array:
    """Partial sums that elements take back, of those that come back from the next memory."""
    return back * (sums.delivered / sums.fetched) if problem.rules.first_sums else back


def on_network(problem: Problem, moves: list[Moves], to_elements: Array) -> list[Array]:
    """Values of every operand that cost a hop on the array network."""
    weights, inputs, sums = moves
    if problem.broadcast:
        return [weights.fetched, inputs.fetched, 0.0 * sums.fetched]
    # Sums come back through a row-stationary array; others are added at its edge.
    back = to_elements if problem.row_stationary else 0.0
    return [weights.delivered, inputs.delivered, sums.delivered + back]
