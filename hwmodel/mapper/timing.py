"""Cycles: computing, and the transfers that it has to wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel._loading import whole_input_first_cycles
from hwmodel.mapper.prices import Past
from hwmodel.mapper.prices import returning
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import WEIGHT
from hwmodel.mapper.problem import G
from hwmodel.mapper.problem import K
from hwmodel.mapper.problem import Level
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.traffic import Moves
from hwmodel.mapper.traffic import paced_cycles
from hwmodel.mapper.traffic import total_values
from hwmodel.mapper.windows import Array


@dataclass(frozen=True)
class Timing:
    """Cycles of inner halves.

    Attributes:
        compute: Cycles of the multipliers alone, (candidates,).
        loads: How often elements load what they keep, each value once, (candidates,).
        least: Least cycles of the array, however large the buffer's tile, (candidates,).
        matters: Whether cycles depend on more than that.
    """

    compute: Array
    loads: Array
    least: Array
    matters: bool

    def take(self, index: NDArray[np.int64]) -> Timing:
        """Some of the candidates."""
        return Timing(self.compute[index], self.loads[index], self.least[index], self.matters)

    def latency(
        self,
        problem: Problem,
        near: list[Moves],
        far: list[Array],
        past: Sequence[Past],
        twice: NDArray[np.bool_],
    ) -> Array:
        """Cycles with stalls, (candidates,).

        Transfers hide behind computing where a second tile of what changes fits the buffer;
        elsewhere the array waits for DRAM.
        """
        dram, buffer = transfers(problem, near, far, past)
        computing = paced_cycles(problem, self.compute, self.loads, near)
        outside = busy(problem.dram, *dram)
        if problem.waiting.whole_input_first:
            computing = _after_whole_input(problem, computing, dram[0])
        inside = np.maximum(_with_beside(problem, computing), busy(problem.buffer, *buffer))
        hidden = np.maximum(inside, outside)
        if problem.waiting.whole_input_first:  # what is not hidden is in there
            return hidden
        return np.where(twice, hidden, inside + outside)


def _with_beside(problem: Problem, computing: Array) -> Array:
    """Cycles of array and vector unit, start-up included."""
    cycles = computing + problem.startup_cycles
    beside = problem.beside
    if beside.overlaps:
        return np.maximum(cycles, beside.vector_cycles)
    return cycles + beside.vector_cycles


def _after_whole_input(problem: Problem, computing: Array, dram_reads: list[Array]) -> Array:
    """Cycles of an array that starts when its input and first weights are in the buffer."""
    layer, waiting = problem.layer, problem.waiting
    spaces = [bits for operands, bits in problem.buffer.spaces if INPUT in operands]
    bits_per_cycle = [
        min(port.bits_per_cycle for port in problem.dram.ports if port.reads and i in port.operands)
        for i in (WEIGHT, INPUT)
    ]
    return whole_input_first_cycles(
        computing,
        dram_reads[INPUT] / bits_per_cycle[INPUT],
        dram_reads[WEIGHT] / bits_per_cycle[WEIGHT],
        turns=np.ceil(np.array(layer.sizes[K]) / waiting.whole_input_first),
        groups=np.array(layer.sizes[G]),
        buffer_load=spaces[0] / bits_per_cycle[INPUT],
    )


Traffic = tuple[list[Array], list[Array]]
"""Bits read and bits written, by operand, of all groups."""


def transfers(
    problem: Problem, near: list[Moves], far: list[Array], past: Sequence[Past]
) -> tuple[Traffic, Traffic]:
    """Traffic of DRAM and of the buffer.

    Args:
        problem: The problem.
        near: What moves inside the buffer's tile.
        far: Values that cross DRAM into the buffer, and visits of partial sums to DRAM.
        past: 1 where an operand goes past the buffer, by operand.
    """
    dram, buffer = problem.dram, problem.buffer
    groups = problem.layer.sizes[G]
    outputs = total_values(problem.layer)[OUTPUT]
    dram_reads, dram_writes, reads, writes = [], [], [], []
    for operand in (WEIGHT, INPUT):
        direct = past[operand]
        crossing = np.where(direct, near[operand].fetched, far[operand])
        dram_reads.append(crossing * (groups * dram.bits[operand]))
        dram_writes.append(np.zeros_like(crossing))
        through = (1 - direct) * (groups * buffer.bits[operand])
        reads.append(near[operand].fetched * through)
        writes.append(far[operand] * through * (not problem.resident[operand]))
    beside = problem.beside
    dram_reads[INPUT] = dram_reads[INPUT] + beside.dram_reads
    reads[INPUT] = reads[INPUT] + beside.buffer_reads
    writes[INPUT] = writes[INPUT] + beside.buffer_writes
    direct = past[OUTPUT]
    visits = np.where(direct, near[OUTPUT].fetched, far[OUTPUT])
    spilled = visits - outputs
    refilled = returning(problem, visits, visits > outputs, outputs)
    final = groups * outputs * dram.final_bits
    dram_reads.append(refilled * (groups * dram.bits[OUTPUT]))
    dram_writes.append(spilled * (groups * dram.bits[OUTPUT]) + final)
    bits = (1 - direct) * (groups * buffer.bits[OUTPUT])
    finished = (1 - direct) * (groups * outputs * buffer.final_bits)
    inner = near[OUTPUT].fetched
    back = returning(problem, inner, near[OUTPUT].again, outputs)
    reads.append((back + spilled) * bits + finished * (not problem.resident[OUTPUT]))
    writes.append((inner - outputs + refilled) * bits + finished)
    return (dram_reads, dram_writes), (reads, writes)


def busy(level: Level, reads: list[Array], writes: list[Array]) -> Array:
    """Cycles of the slowest port of a level."""
    slowest: Array = np.zeros(1)
    for port in level.ports:
        bits: Array | float = 0.0
        for operand in port.operands:
            bits = bits + (reads[operand] if port.reads else 0.0)
            bits = bits + (writes[operand] if port.writes else 0.0)
        slowest = np.maximum(slowest, bits / port.bits_per_cycle)
    return slowest
