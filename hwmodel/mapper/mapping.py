"""A mapping as its user sees it: loop nest, traffic, energy and cycles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hwmodel.mapper.prices import on_network
from hwmodel.mapper.prices import returned
from hwmodel.mapper.prices import returning
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import LOOPS
from hwmodel.mapper.problem import OPERANDS
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import SETS
from hwmodel.mapper.problem import WEIGHT
from hwmodel.mapper.problem import G
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import X
from hwmodel.mapper.problem import Y
from hwmodel.mapper.registers import Inner
from hwmodel.mapper.registers import values
from hwmodel.mapper.search import Found
from hwmodel.mapper.timing import transfers
from hwmodel.mapper.traffic import compute_cycles
from hwmodel.mapper.traffic import loads
from hwmodel.mapper.traffic import paced_cycles
from hwmodel.mapper.traffic import register_accesses
from hwmodel.mapper.traffic import register_energy
from hwmodel.mapper.traffic import total_values
from hwmodel.mapper.windows import Array


@dataclass(frozen=True)
class Mapping:
    """How a layer runs on an array.

    Attributes:
        nest: The loop nest from the outermost loop inwards, one line each.
        traffic_bits: Bits read and written by (memory, operand).
        energy: Energy by component, in the accelerator's unit; leakage and clock not included.
        cycles: Cycles, stalls included.
        compute_cycles: Cycles without stalls.
        utilization: Fraction of the multipliers at work while computing.
    """

    nest: tuple[str, ...]
    traffic_bits: dict[tuple[str, str], float]
    energy: dict[str, float]
    cycles: float
    compute_cycles: float
    utilization: float

    @property
    def total_energy(self) -> float:
        """Sum of all components."""
        return sum(self.energy.values())

    @property
    def stall_cycles(self) -> float:
        """Cycles in which the array waits for a memory."""
        return self.cycles - self.compute_cycles

    def __str__(self) -> str:
        return "\n".join(self.nest)


def mapping_of(problem: Problem, found: Found) -> Mapping:
    """The mapping that a search found, with everything counted."""
    inner, outer = found.inner, found.outer
    groups = problem.layer.sizes[G]
    near = outer.near
    far = [np.array([amount]) for amount in outer.far]
    dram, buffer = transfers(problem, near, far, found.past)
    outputs = total_values(problem.layer)[OUTPUT]
    out = near[OUTPUT]
    back = returned(problem, out, returning(problem, out.fetched, out.again, outputs))
    passed = [float(values[0]) * groups for values in on_network(problem, near, back)]
    stored = [0.0, 0.0, 0.0, 0.0]
    if problem.rules.fills:
        stored = [float(values[0]) * groups for values in (*(m.delivered for m in near), back)]
    held = problem.registers.bits
    traffic: dict[tuple[str, str], float] = {}
    energy = {"mac": problem.mac}
    energy["register_file"] = float(register_energy(problem, inner)[0]) + sum(
        stored[operand] * held[operand] * problem.registers.write[operand]
        for operand in (WEIGHT, INPUT)
    )
    energy["register_file"] += held[OUTPUT] * (
        stored[OUTPUT] * problem.registers.read[OUTPUT]
        + stored[-1] * problem.registers.write[OUTPUT]
    )
    network = problem.hop if problem.rules.network else (0.0, 0.0, 0.0)
    energy["array_network"] = sum(hop * one for hop, one in zip(passed, network, strict=True))
    stored[OUTPUT] += stored.pop()
    _count_registers(problem, inner, stored, traffic)
    for name, level, (reads, writes) in (
        ("buffer", problem.buffer, buffer),
        ("dram", problem.dram, dram),
    ):
        energy[name] = 0.0
        for operand in range(len(OPERANDS)):
            read, written = float(reads[operand][0]), float(writes[operand][0])
            energy[name] += read * level.read[operand] + written * level.write[operand]
            memory = level.names[operand]
            if memory is not None:
                traffic[memory, OPERANDS[operand]] = read + written
    energy["vector"] = problem.beside.vector_energy
    steps = compute_cycles(problem, inner)
    compute = float(paced_cycles(problem, steps, loads(problem, inner), near)[0])
    return Mapping(
        nest=_nest(problem, found),
        traffic_bits=traffic,
        energy=energy,
        cycles=outer.cycles,
        compute_cycles=compute,
        utilization=problem.layer.macs * problem.cycles_per_mac / (compute * _multipliers(problem)),
    )


def _multipliers(problem: Problem) -> int:
    count = problem.vector.size
    for axis in problem.axes:
        count *= axis.size
    return count


def _count_registers(
    problem: Problem, inner: Inner, stored: list[float], traffic: dict[tuple[str, str], float]
) -> None:
    level = problem.registers
    accesses = register_accesses(problem, inner)
    for operand in range(len(OPERANDS)):
        memory = level.names[operand]
        if memory is not None:
            values = float(accesses[operand][0]) + stored[operand]
            bits = values * level.bits[operand] + problem.flags[operand]
            traffic[memory, OPERANDS[operand]] = bits


def _nest(problem: Problem, found: Found) -> tuple[str, ...]:
    """Lines from the outermost loop inwards.

    A line ``NAME keeps ...`` stands above the loops that run on what a memory keeps.
    """
    inner, outer = found.inner, found.outer
    sizes = np.array(problem.layer.sizes, dtype=np.float64)
    axes, lanes, tile, base = (
        np.array([array[0] for array in extent])
        for extent in (inner.axes, inner.lanes, inner.tile, inner.base)
    )
    side_by_side = axes * lanes
    step = np.minimum(side_by_side * tile, sizes)
    current = np.minimum(side_by_side * base, sizes)

    upwards: list[str] = []
    _append(upwards, side_by_side, current)
    element = lanes * base
    for block in inner.order:
        _keep(upwards, problem, problem.registers.names[block], block, element)
        loops = list(SETS[block])
        grown = current.copy()
        grown[loops] = (outer.tile if block == inner.order[2] else step)[loops]
        _append(upwards, current, grown)
        element[loops] = (lanes * tile)[loops]
        current = grown
    for block in outer.order:
        if not found.past[block]:
            _keep(upwards, problem, problem.buffer.names[block], block, current)
        loops = list(SETS[block])
        grown = current.copy()
        grown[loops] = (sizes if block == outer.order[2] else outer.blocks)[loops]
        _append(upwards, current, grown)
        current = grown
    _append(upwards, current, sizes)
    lines = []
    depth = 0
    for line in reversed(upwards):
        lines.append("  " * depth + line)
        depth += line.startswith("for ")
    lines.append("  " * depth + _array_line(axes, lanes))
    return tuple(lines)


def _append(upwards: list[str], small: Array, large: Array) -> None:
    """Loops from one tile to a larger one, innermost first; a set's own order within a block."""
    order = [loop for block in SETS for loop in block] + [G]
    grown = large / small
    if not (large[Y].is_integer() and small[Y].is_integer()):  # positions that run on across rows
        grown[Y], grown[X] = grown[X] * grown[Y], 1
    for loop in order:
        count = math.ceil(grown[loop] * (1 - 1e-6))  # units may be fractions
        if count > 1:
            name = LOOPS[loop] if large[loop].is_integer() or loop != Y else "positions"
            upwards.append(f"for {name} in {count}")


def _keep(
    upwards: list[str], problem: Problem, memory: str | None, operand: int, extent: Array
) -> None:
    if memory is None:
        return
    held = values(problem.layer, operand, list(extent)) * extent[G]
    upwards.append(f"{memory} keeps {OPERANDS[operand]}: {held:.0f} values")


def _array_line(axes: Array, lanes: Array) -> str:
    units = [f"{LOOPS[loop]} {count:.3g}" for loop, count in enumerate(axes) if count != 1]
    inside = [f"{LOOPS[loop]} {count:.3g}" for loop, count in enumerate(lanes) if count != 1]
    line = "side by side: " + (" x ".join(units) or "nothing")
    return line + (f"; in each element {' x '.join(inside)}" if inside else "")
