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
    """One axis of the array.

    Attributes:
        size: Units.
        limits: Loops (indices) that may lie on it, and the most units each takes.
        flat: Its loops may also lie on it as one, cut wherever the axis ends: 27 kernel values on
            16 units take two turns (im2col).
    """

    size: int
    limits: tuple[tuple[int, int], ...]
    flat: bool = False


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
        fills: Writing what reaches an element into its registers costs energy, and so does reading
            a partial sum that leaves. Else that is part of what the network costs.
        sliding: A window that moves along a row or column fetches what is new to it.
        bypass: Operands may go past the buffer.
        held_reads: A register read again in the next cycle is free (ZigZag).
        first_sums: The first visit of a partial sum reads it, too, if others follow (ZigZag).
        whole_elements: Words are those of a whole number of elements, where a last round that fills
            fewer makes their average a fraction (ZigZag).
        one_loop_per_axis: Any loop may lie on any axis, alone (ZigZag's automatic unrolling).
    """

    network: bool = True
    fills: bool = False
    sliding: bool = True
    bypass: bool = True
    held_reads: bool = False
    first_sums: bool = False
    whole_elements: bool = False
    one_loop_per_axis: bool = False


NATIVE = Rules()
ZIGZAG = Rules(
    network=False,
    fills=True,
    sliding=False,
    bypass=False,
    held_reads=True,
    first_sums=True,
    whole_elements=True,
    one_loop_per_axis=True,
)


@dataclass(frozen=True)
class Waiting:
    """What an array waits for when it computes.

    Attributes:
        operand: What its elements keep, and have to load.
        least_cycles: Of a load for all that it serves, hidden behind computing if that is as long.
        more_cycles: Of a load, hidden behind nothing: a systolic array fills and drains.
        whole_input_first: Computing starts when the buffer holds the input of a group and the
            weights of the first filters side by side: how many these are; 0 if it does not wait.
    """

    operand: int = WEIGHT
    least_cycles: float = 0.0
    more_cycles: float = 0.0
    whole_input_first: int = 0


@dataclass(frozen=True)
class Beside:
    """What happens behind a layer, however it is mapped.

    Attributes:
        dram_reads, buffer_reads: Bits of feature maps that are read once more.
        buffer_writes: Bits of outputs that are written to where the next layer reads its input.
        vector_energy, vector_cycles: Of the vector unit.
        overlaps: The vector unit works while the array does.
    """

    dram_reads: float = 0.0
    buffer_reads: float = 0.0
    buffer_writes: float = 0.0
    vector_energy: float = 0.0
    vector_cycles: float = 0.0
    overlaps: bool = True


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
        broadcast: One word on the network reaches all elements that want it, else each counts. Sums
            take ways of their own, and those of elements side by side are added before one stores
            them.
        whole_vectors: The lanes of an element read whole vectors of inputs, full or not, and their
            sum is stored whether or not zeros are gated.
        resident: The operand lives in the buffer, which has set its place aside: it neither crosses
            DRAM nor goes past the buffer.
        waiting, beside: What computing waits for, and what else happens.
        mac: Energy of all multiply-accumulates of the layer.
        active: Fraction of multiply-accumulates whose register accesses are not gated.
        flags: Bits that the registers read beside values, by operand: whether one is zero.
        cycles_per_mac: Cycles of one multiply-accumulate of an element.
        startup_cycles: Cycles of the array before and after all else.
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
    broadcast: bool = False
    whole_vectors: bool = False
    resident: tuple[bool, bool, bool] = (False, False, False)
    waiting: Waiting = Waiting()
    beside: Beside = Beside()
    active: float = 1.0
    flags: tuple[float, float, float] = (0.0, 0.0, 0.0)
    cycles_per_mac: float = 1.0
    startup_cycles: float = 0.0
    energy_per_cycle: float = 0.0
    objective: str = "energy"
    rules: Rules = NATIVE

    @property
    def flag_energy(self) -> float:
        """Energy of reading all flags."""
        return sum(bits * each for bits, each in zip(self.flags, self.registers.read, strict=True))

    def stays(self, operand: int) -> bool:
        """Whether elements keep an operand while loops run that do not concern it."""
        return self.registers.holds(operand) or operand == self.latched
