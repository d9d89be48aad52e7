"""The best mapping by the rules of nn_dataflow, to compare with that tool.

nn_dataflow (Gao et al., ASPLOS 2019; stanford-mast/nn_dataflow, BSD-3) maps a layer to a
row-stationary array by ``MapStrategyEyeriss`` and blocks three loops, input channels, output
channels and batch, at two levels, by ``LoopBlockingScheme``. Its rules:

- A set of kernel rows by output rows is folded and repeated over the array. Output rows that are
  folded join the batch.
- A multiply-accumulate takes four register accesses. A register file holds kernel rows and input
  windows of its tile, one partial sum for each output channel, and shares its words freely.
- The words that cross the array network are those that all elements receive or give away.
- Buffer and DRAM count each word that is read or written on its way inwards or outwards; filling
  the buffer is free. Whatever is not reused in the buffer may go past it.
- Cycles are those of the array, or of DRAM if it has a bandwidth.
- Padding is fetched. Groups are layers of their own; dilation only widens the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError
from hwmodel.mapper.mapping import Mapping
from hwmodel.mapper.problem import INPUT
from hwmodel.mapper.problem import OPERANDS
from hwmodel.mapper.problem import OUTPUT
from hwmodel.mapper.problem import WEIGHT
from hwmodel.mapper.problem import B
from hwmodel.mapper.problem import C
from hwmodel.mapper.problem import G
from hwmodel.mapper.problem import K
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import R
from hwmodel.mapper.problem import S
from hwmodel.mapper.problem import X
from hwmodel.mapper.problem import Y
from hwmodel.mapper.windows import Array

BLOCKED = ("in_channels", "out_channels", "batch")
UNRELATED = {WEIGHT: 2, INPUT: 1, OUTPUT: 0}
"""The loop of ``BLOCKED`` that each operand does not depend on."""


@dataclass(frozen=True)
class _Pass:
    """One pass of the array, repeated for all iterations of the blocked loops.

    Attributes:
        loops: Iterations of ``BLOCKED``.
        cycles: Of one pass.
        registers, buffer: Words of each operand that one pass holds in an element and in all.
        outside, inside, network: Words of each operand that cross DRAM, leave the buffer and
            reach elements, if each is fetched once.
        line: What lies side by side.
    """

    loops: tuple[int, int, int]
    cycles: int
    registers: tuple[float, float, float]
    buffer: tuple[float, float, float]
    outside: tuple[float, float, float]
    inside: tuple[float, float, float]
    network: tuple[float, float, float]
    line: str


@dataclass(frozen=True)
class _Blocked:
    """Blockings of one pass, arrays over them; (blockings, operands) where it says so.

    Attributes:
        factors: (blockings, levels, loops), from outside the buffer inwards.
        innermost: Innermost loop outside the buffer, and in it, (blockings, 2).
        stored: Which operands the buffer holds.
        dram, buffer, network: Words of every operand.
    """

    factors: Array
    innermost: NDArray[np.int64]
    stored: NDArray[np.bool_]
    dram: Array
    buffer: Array
    network: Array


def find_row_stationary(problem: Problem) -> Mapping:
    """The best mapping that nn_dataflow knows.

    Raises:
        InputError: the array is not row-stationary with two axes, or nothing fits.
    """
    if not problem.row_stationary or len(problem.axes) != 2:
        raise InputError("counting", "nn_dataflow", "it knows only row-stationary arrays, 2 axes")
    best: tuple[tuple[float, float], Mapping] | None = None
    for one in _passes(problem):
        blocked = _blockings(problem, one)
        if not len(blocked.factors):
            continue
        mapping, key = _least(problem, one, blocked)
        if best is None or key < best[0]:
            best = (key, mapping)
    if best is None:
        raise InputError("counting", "nn_dataflow", "no blocking of this layer fits the memories")
    return best[1]


def _passes(problem: Problem) -> list[_Pass]:
    """Passes of fewest iterations (``MapStrategyEyeriss``)."""
    n = problem.layer.sizes
    height, width = (axis.size for axis in problem.axes)
    down, across = problem.layer.stride
    fold_h, repeat_h = -(-n[R] // height), max(height // n[R], 1)
    fold_w, repeat_w = -(-n[Y] // width), max(width // n[Y], 1)
    stacked = min(repeat_h, fold_w)
    fold_w, repeat_h = -(-fold_w // stacked), repeat_h // stacked
    set_size = -(-n[R] // fold_h) * -(-n[Y] // fold_w)
    rows_in = (n[R] - 1) * problem.layer.dilation[0] + 1
    columns = (n[X] - 1) * across + (n[S] - 1) * problem.layer.dilation[1] + 1

    def rows(outputs: float) -> float:
        return (outputs - 1) * down + rows_in

    passes: list[_Pass] = []
    fewest = math.inf
    for channels, filters in _splits(repeat_h):
        inputs, outputs = min(channels, n[C]), min(filters * repeat_w, n[K])
        loops = (-(-n[C] // inputs), -(-n[K] // outputs), n[B] * fold_w)
        if math.prod(loops) > fewest:
            continue
        fewest = math.prod(loops)
        kernel, images = n[R] * n[S], n[B] * fold_w
        weights = float(n[C] * n[K] * kernel)
        maps_in = n[C] * images * rows(n[Y] / fold_w) * columns
        maps_out = float(n[K] * n[B] * n[Y] * n[X])
        sets = set_size * fold_h
        passes.append(
            _Pass(
                loops=loops,
                cycles=fold_h * n[S] * n[X],
                registers=(n[S], n[S], 1),
                buffer=(
                    kernel * inputs * outputs,
                    rows(-(-n[Y] // fold_w)) * columns * inputs,
                    -(-n[Y] // fold_w) * n[X] * outputs,
                ),
                outside=(weights, maps_in, maps_out),
                inside=(weights, maps_in * fold_h, maps_out * fold_h),
                network=(
                    float(n[S] * sets * n[C] * n[K]),
                    columns * sets * inputs * outputs * images * (n[C] / inputs),
                    float(n[X] * sets) * inputs * outputs * images * (n[K] / outputs),
                ),
                line=(
                    f"side by side: kernel_height {-(-n[R] // fold_h)} x out_height "
                    f"{-(-n[Y] // fold_w)} x in_channels {inputs} x out_channels {outputs}"
                ),
            )
        )
    return passes


def _splits(value: int) -> list[tuple[int, int]]:
    return [(first, value // first) for first in range(1, value + 1) if value % first == 0]


def _factors(value: int) -> list[tuple[int, int, int]]:
    return [
        (outer, middle, rest // middle)
        for outer, rest in _splits(value)
        for middle, _ in _splits(rest)
    ]


def _blockings(problem: Problem, one: _Pass) -> _Blocked:
    """All blockings that fit (``LoopBlockingScheme``)."""
    lists = [np.array(_factors(count), dtype=np.float64) for count in one.loops]
    grid = np.indices([len(factors) for factors in lists] + [3, 3]).reshape(5, -1)
    factors = np.stack([lists[loop][grid[loop]] for loop in range(3)], axis=2)
    innermost = grid[3:].T
    registers = _held(factors[:, 2], one.registers)
    fits = registers.sum(axis=1) <= _register_words(problem)
    factors, innermost = factors[fits], innermost[fits]

    outer, inner = _fetches(factors, innermost)
    tile = _held(factors[:, 1] * factors[:, 2], one.buffer)
    bits = np.array(problem.buffer.bits)
    capacity = problem.buffer.spaces[0][1] if problem.buffer.spaces else math.inf
    same = np.array(one.inside) == np.array(one.outside)
    # Past the buffer goes what is fetched from it no more often than into it.
    past = (outer >= inner) & same
    variants = []
    for stored in (~past, np.ones_like(past)):
        fits = (tile * stored * bits).sum(axis=1) <= capacity
        inside = np.array(one.inside) * inner * stored
        variants.append(
            _Blocked(
                factors[fits],
                innermost[fits],
                stored[fits],
                (np.array(one.outside) * outer)[fits],
                inside[fits],
                (np.array(one.network) * inner)[fits],
            )
        )
    names = ("factors", "innermost", "stored", "dram", "buffer", "network")
    return _Blocked(
        *(np.concatenate([getattr(variant, name) for variant in variants]) for name in names)
    )


def _held(factors: Array, words: tuple[float, float, float]) -> Array:
    """Words of every operand in a tile of the blocked loops, (blockings, operands)."""
    channels, filters, images = factors.T
    return np.stack([channels * filters, channels * images, filters * images], axis=1) * np.array(
        words
    )


def _register_words(problem: Problem) -> float:
    words = 0.0
    for operands, bits in problem.registers.spaces:
        words += bits / max(problem.registers.bits[operand] for operand in operands)
    return words


def _fetches(factors: Array, innermost: NDArray[np.int64]) -> tuple[Array, Array]:
    """How often every operand is fetched into the buffer, and into the registers."""
    count = len(factors)
    into = [np.ones((count, 3)), np.ones((count, 3))]
    for operand, unrelated in UNRELATED.items():
        related = [loop for loop in range(3) if loop != unrelated]
        before = np.ones(count)
        fetched = np.ones(count)
        for level in range(2):
            here = factors[:, level]
            changes = (here[:, related] > 1).any(axis=1)
            inside = innermost[:, level] == unrelated
            times = before * np.where(inside, 1.0, here[:, unrelated])
            fetched = np.where(changes, times, fetched)
            before = before * here[:, unrelated]
            into[level][:, operand] = 2 * fetched - 1 if operand == OUTPUT else fetched
    return into[0], into[1]


def _least(problem: Problem, one: _Pass, blocked: _Blocked) -> tuple[Mapping, tuple[float, float]]:
    """The best blocking as a mapping, and what it was judged by."""
    groups = problem.layer.sizes[G]
    macs = problem.layer.macs
    registers = problem.registers
    accesses = [macs, macs, 2 * macs]
    register_energy = problem.flag_energy + problem.active * sum(
        count * bits * (read if operand != OUTPUT else (read + write) / 2)
        for operand, (count, bits, read, write) in enumerate(
            zip(accesses, registers.bits, registers.read, registers.write, strict=True)
        )
    )
    network = blocked.network * np.array(problem.hop) * groups
    buffer = blocked.buffer * _access(problem, "buffer") * groups
    dram = blocked.dram * _access(problem, "dram") * groups
    energy = problem.mac + register_energy + (network + buffer + dram).sum(axis=1)
    compute = one.cycles * math.prod(one.loops) * groups * problem.cycles_per_mac
    bits = blocked.dram * np.array(problem.dram.bits) * groups
    cycles = np.full(len(energy), float(compute))
    for port in problem.dram.ports:
        cycles = np.maximum(cycles, bits[:, list(port.operands)].sum(axis=1) / port.bits_per_cycle)
    keys = {
        "energy": (energy, cycles),
        "latency": (cycles, energy),
        "edp": (energy * cycles, energy),
    }[problem.objective]
    best = int(np.lexsort(keys[::-1])[0])
    traffic: dict[tuple[str, str], float] = {}
    for operand, name in enumerate(OPERANDS):
        for level, words in (
            (problem.registers, np.broadcast_to(accesses[operand] * problem.active, len(energy))),
            (problem.buffer, blocked.buffer[:, operand] * groups),
            (problem.dram, blocked.dram[:, operand] * groups),
        ):
            memory = level.names[operand]
            if memory is not None:
                traffic[memory, name] = float(words[best] * level.bits[operand])
    mapping = Mapping(
        nest=_nest(problem, one, blocked, best),
        traffic_bits=traffic,
        energy={
            "mac": problem.mac,
            "register_file": register_energy,
            "array_network": float(network[best].sum()),
            "buffer": float(buffer[best].sum()),
            "dram": float(dram[best].sum()),
        },
        cycles=float(cycles[best]) + problem.startup_cycles,
        compute_cycles=float(compute),
        utilization=macs * problem.cycles_per_mac / (compute * _elements(problem)),
    )
    return mapping, (float(keys[0][best]), float(keys[1][best]))


def _access(problem: Problem, role: str) -> Array:
    """Energy of one word of every operand; of outputs, the mean of reading and writing."""
    level = problem.buffer if role == "buffer" else problem.dram
    prices = [level.bits[operand] * level.read[operand] for operand in (WEIGHT, INPUT)]
    both = (level.read[OUTPUT] + level.write[OUTPUT]) / 2
    return np.array([*prices, level.bits[OUTPUT] * both])


def _elements(problem: Problem) -> int:
    return math.prod(axis.size for axis in problem.axes)


def _nest(problem: Problem, one: _Pass, blocked: _Blocked, best: int) -> tuple[str, ...]:
    lines: list[str] = []
    depth = 0

    def loops(level: int, innermost: int | None) -> None:
        nonlocal depth
        order = [loop for loop in range(3) if loop != innermost]
        for loop in order + ([innermost] if innermost is not None else []):
            count = int(blocked.factors[best, level, loop])
            if count > 1:
                lines.append("  " * depth + f"for {BLOCKED[loop]} in {count}")
                depth += 1

    if problem.layer.sizes[G] > 1:
        lines.append(f"for groups in {problem.layer.sizes[G]}")
        depth = 1
    loops(0, int(blocked.innermost[best, 0]))
    kept = [name for name, stored in zip(OPERANDS, blocked.stored[best], strict=True) if stored]
    if kept:
        lines.append("  " * depth + f"{problem.buffer.names[0]} keeps {', '.join(kept)}")
    loops(1, int(blocked.innermost[best, 1]))
    lines.append("  " * depth + f"{problem.registers.names[0]} keeps kernel rows and windows")
    loops(2, None)
    return (*lines, "  " * depth + one.line)
