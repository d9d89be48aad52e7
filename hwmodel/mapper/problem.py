"""What the mapper is asked, in plain numbers: a layer's loops and the memories around an array."""

from __future__ import annotations

from dataclasses import dataclass

LOOPS = (
    "batch",
    "out_channels",
    "in_channels",
    "out_height",
    "out_width",
    "kernel_height",
    "kernel_width",
    "groups",
)
B, K, C, Y, X, R, S, G = range(8)
"""Index of each loop in every array of loop sizes. Channels are those of one group."""

OPERANDS = ("weight", "input", "output")
WEIGHT, INPUT, OUTPUT = range(3)

POSITIONS, FILTERS, REDUCTION = range(3)
SETS: tuple[tuple[int, ...], ...] = ((X, Y, B), (K,), (S, R, C))
"""The loops that change nothing for one operand: positions for weights, filters for inputs and the
reduction for outputs. They do not overlap, so a loop lets at most one operand stay. ``groups``
lets none. Each is listed in the order in which a tile grows."""


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        sizes: Iterations of every loop of ``LOOPS``.
        stride, dilation: (vertical, horizontal).
        input_size: Rows and columns of the input, without padding: padding is never fetched.
    """

    sizes: tuple[int, int, int, int, int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    input_size: tuple[int, int] = (1, 1)

    @property
    def macs(self) -> int:
        product = 1
        for size in self.sizes:
            product *= size
        return product


@dataclass(frozen=True)
class Axis:
    """One axis of the array: loops (indices) that may lie on it, and the most units each takes."""

    size: int
    limits: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Port:
    """A bandwidth, in bits a cycle.

    Attributes:
        operands: Whose traffic shares it.
        reads, writes: Which directions do.
    """

    operands: tuple[int, ...]
    bits_per_cycle: float
    reads: bool = True
    writes: bool = True


@dataclass(frozen=True)
class Level:
    """The memories of one rank: beside the multipliers, on chip, or outside.

    Tuples of three are by operand: weight, input, output.

    Attributes:
        names: Name of the memory that holds each operand; None without one.
        bits: Stored bits of a value; of an output, those of a partial sum.
        final_bits: Those of a finished output.
        read, write: Energy of one bit.
        spaces: Operands that share a memory, and its bits. Of registers: one element's.
        ports: Bandwidths. Of registers: one element's.
    """

    names: tuple[str | None, str | None, str | None]
    bits: tuple[float, float, float]
    final_bits: float
    read: tuple[float, float, float]
    write: tuple[float, float, float]
    spaces: tuple[tuple[tuple[int, ...], float], ...] = ()
    ports: tuple[Port, ...] = ()

    def holds(self, operand: int) -> bool:
        return self.names[operand] is not None


@dataclass(frozen=True)
class Rules:
    """How accesses are counted.

    Attributes:
        network: Words between buffer and elements cost array network energy.
        sliding: A window that moves along a row or column fetches what is new to it.
        bypass: Operands may go past the buffer.
        held_reads: A register read again in the next cycle is free (ZigZag).
        first_sums: The first visit of a partial sum reads it, too, if others follow (ZigZag).
        whole_elements: Words are those of a whole number of elements, where a last round that fills
            fewer makes their average a fraction (ZigZag).
        one_loop_per_axis: Any loop may lie on any axis, alone (ZigZag's automatic unrolling).
    """

    network: bool = True
    sliding: bool = True
    bypass: bool = True
    held_reads: bool = False
    first_sums: bool = False
    whole_elements: bool = False
    one_loop_per_axis: bool = False


NATIVE = Rules()
ZIGZAG = Rules(
    network=False,
    sliding=False,
    bypass=False,
    held_reads=True,
    first_sums=True,
    whole_elements=True,
    one_loop_per_axis=True,
)


@dataclass(frozen=True)
class Problem:
    """A layer on an array; equal problems have equal answers.

    Attributes:
        axes: Of the array.
        vector: Lanes of one element, whose products are added before anything is stored.
        row_stationary: Elements convolve kernel rows: kernel height lies on the array, kernel
            width inside an element.
        latched: The operand that the dataflow keeps in each element, registers or not; None if
            only registers do. Another operand without registers is fetched for every step.
        positions_per_weight: Outputs that a weight in an element serves before it is replaced;
            0 if all.
        registers, buffer, dram: Memories. The first two may hold only some operands or none.
        hop: Energy of one value on the array network, by operand; of outputs, a partial sum.
        mac: Energy of all multiply-accumulates of the layer.
        active: Fraction of multiply-accumulates whose register accesses are not gated.
        register_overhead: Energy of the registers beyond values, such as zero flags.
        cycles_per_mac: Cycles of one multiply-accumulate of an element.
        startup_cycles: Cycles of the layer before and after all else.
        energy_per_cycle: Leakage and clock.
        objective: ``energy``, ``latency`` or ``edp``.
    """

    layer: Layer
    axes: tuple[Axis, ...]
    vector: Axis
    row_stationary: bool
    latched: int | None
    positions_per_weight: int
    registers: Level
    buffer: Level
    dram: Level
    hop: tuple[float, float, float]
    mac: float
    active: float = 1.0
    register_overhead: float = 0.0
    cycles_per_mac: float = 1.0
    startup_cycles: float = 0.0
    energy_per_cycle: float = 0.0
    objective: str = "energy"
    rules: Rules = NATIVE

    def stays(self, operand: int) -> bool:
        """Whether elements keep an operand while loops run that do not concern it."""
        return self.registers.holds(operand) or operand == self.latched
