"""The memories of an accelerator as the mapper's levels, plain numbers."""

from __future__ import annotations

import dataclasses

from hwmodel.accelerator import Accelerator
from hwmodel.mapper import problem as p
from hwmodel.parts import OPERANDS
from hwmodel.parts import Memory

LATCHED = {"row_stationary": None, "weight_stationary": p.WEIGHT, "output_stationary": p.OUTPUT}
"""What each dataflow keeps in an element."""


def registers(accelerator: Accelerator, bits: tuple[float, float, float], products: int) -> p.Level:
    """Registers of one element; a multiplier that fuses has operands for all its products."""
    found = level(accelerator, "register_file", bits, 0.0)
    spaces = [(operands, capacity * products) for operands, capacity in found.spaces]
    array = accelerator.array
    stays = LATCHED[array.dataflow]
    if array.interconnect == "systolic" and stays is not None:
        # Of the values of a systolic element one is at work; others are on their way in.
        one = products * bits[stays]
        spaces = [(operands, min(capacity, one) if operands == (stays,) else capacity)
                  for operands, capacity in spaces]  # fmt: skip
    return dataclasses.replace(found, spaces=tuple(spaces))


def buffer(
    accelerator: Accelerator, bits: tuple[float, float, float], outputs: float, live_bits: float
) -> p.Level:
    """The buffer, less the maps that stay in it."""
    found = level(accelerator, "buffer", bits, outputs)
    spaces = [
        (operands, capacity - live_bits if p.INPUT in operands else capacity)
        for operands, capacity in found.spaces
    ]
    return dataclasses.replace(found, spaces=tuple(spaces))


def level(
    accelerator: Accelerator, role: str, bits: tuple[float, float, float], final_bits: float
) -> p.Level:
    """The memories of a role, which hold values of so many bits."""
    memories = [accelerator.holding(role, operand) for operand in OPERANDS]

    def by_bit(key: str) -> tuple[float, float, float]:
        first, second, third = (
            getattr(memory, key) / memory.word_bits if memory else 0.0 for memory in memories
        )
        return first, second, third

    spaces: list[tuple[tuple[int, ...], float]] = []
    ports: list[p.Port] = []
    for memory in dict.fromkeys(memory.name for memory in memories if memory):
        operands = tuple(i for i, held in enumerate(memories) if held and held.name == memory)
        held = memories[operands[0]]
        assert held is not None
        if held.words is not None:
            spaces += [((i,), held.words[OPERANDS[i]] * bits[i]) for i in operands]
        elif held.capacity_bytes is not None:
            spaces.append((operands, 8.0 * held.capacity_bytes))
        ports += _ports(held, operands, 1 if role != "register_file" else 0)
    names = tuple(memory.name if memory else None for memory in memories)
    return p.Level(
        names=(names[0], names[1], names[2]),
        bits=bits,
        final_bits=final_bits,
        read=by_bit("read_energy_per_word"),
        write=by_bit("write_energy_per_word"),
        spaces=tuple(spaces) if role != "dram" else (),
        ports=tuple(ports),
    )


def _ports(memory: Memory, operands: tuple[int, ...], shared: int) -> list[p.Port]:
    if not shared:
        return []
    ports = []
    if memory.bytes_per_cycle is not None:
        ports.append(p.Port(operands, 8 * memory.bytes_per_cycle))
    if memory.read_bytes_per_cycle is not None:
        ports.append(p.Port(operands, 8 * memory.read_bytes_per_cycle, writes=False))
    if memory.write_bytes_per_cycle is not None:
        ports.append(p.Port(operands, 8 * memory.write_bytes_per_cycle, reads=False))
    return ports
