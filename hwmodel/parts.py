"""The parts of an accelerator: what each section of its YAML file may say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from typing import Literal

from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import model_validator

from hwmodel.errors import InputError

Count = Annotated[int, Field(ge=1, le=2**53)]  # what a float holds exactly
Positive = Annotated[float, Field(gt=0, le=1e30)]  # products of these are finite
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
Width = Annotated[int, Field(ge=1, le=64)]
Name = Annotated[str, Field(min_length=1)]
NOfM = Annotated[tuple[Count, Count], Field(strict=False)]
Widths = Annotated[tuple[Width, ...], Field(strict=False, min_length=1)]

Loop = Literal[
    "batch",
    "groups",
    "out_channels",
    "in_channels",
    "out_height",
    "out_width",
    "kernel_height",
    "kernel_width",
]
Loops = Annotated[tuple[Loop, ...], Field(strict=False)]
REDUCTIONS: tuple[Loop, ...] = ("in_channels", "kernel_height", "kernel_width")
"""Loops whose products add up to one output."""

Operand = Literal["weight", "input", "output"]
OPERANDS: tuple[Operand, ...] = ("weight", "input", "output")
Operands = Annotated[tuple[Operand, ...], Field(strict=False, min_length=1)]


def _check_once(key: str, names: Sequence[str]) -> None:
    """Refuse a list that names something twice, which would count twice."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"{key}[{index}]", name, "name each once")


class Part(BaseModel):
    """Strict: no unknown keys, no coercion of strings or booleans, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Axis(Part):
    """One axis of the array.

    Attributes:
        name: For reports.
        size: Elements along it.
        unroll: Loops whose iterations may lie side by side on it.
        at_most: Units that one of these loops may take; others may take the whole axis.
    """

    name: Name
    size: Count
    unroll: Annotated[Loops, Field(min_length=1)]
    at_most: dict[Loop, Count] = {}

    @model_validator(mode="after")
    def _check_fits(self) -> Axis:
        _check_once("unroll", self.unroll)
        for loop, units in self.at_most.items():
            if loop not in self.unroll:
                raise InputError(f"at_most.{loop}", units, "name a loop that 'unroll' has")
            if units > self.size:
                raise InputError(f"at_most.{loop}", units, f"the axis has {self.size} elements")
        return self


class Vector(Part):
    """Multipliers of one element, whose products are added before anything is stored.

    Attributes:
        size: Multipliers.
        unroll: Loops that may lie on them; they must add up to one output.
    """

    size: Count = 1
    unroll: Loops = ()

    @model_validator(mode="after")
    def _check_adds(self) -> Vector:
        _check_once("unroll", self.unroll)
        for loop in self.unroll:
            if loop not in REDUCTIONS:
                raise InputError("unroll", loop, f"a vector adds up: use {', '.join(REDUCTIONS)}")
        if self.size > 1 and not self.unroll:
            raise InputError("unroll", (), f"{self.size} multipliers need a loop to lie on")
        return self


class Array(Part):
    """The multipliers and how operands reach them.

    Attributes:
        dataflow: ``row_stationary`` elements convolve one kernel row with one input row (Eyeriss);
            ``weight_stationary`` ones keep a weight for many outputs; ``output_stationary`` ones
            keep a sum until it is finished.
        interconnect: ``broadcast`` delivers an operand to all elements that want it in one cycle;
            ``systolic`` passes it from neighbour to neighbour, which costs fill and drain.
        axes: From slow to fast; none for a single element. ``row_stationary`` and ``systolic``
            arrays have two, rows and columns.
        vector: Multipliers inside one element; just one in arrays of two such axes.
        positions_per_weight_load: Output positions that a weight in an element serves before it
            is replaced; null if all of them. Weight-stationary broadcast arrays only.
        cycles_per_step: Cycles from one set of operands to the next; more than 1 where a processor
            also loads and loops.
        passes: A row-stationary array runs in the processing passes of the Eyeriss chip: sums of a
            block of filters and the inputs of a pass fill whole banks of the buffer, weights only
            pass through it, and every pass waits for its weights and first inputs. Mappings are
            those of least DRAM traffic. Without it a pass waits for nothing, and the mapping is
            one of least energy.
        min_positions_per_weight_load: Loading the weights of an element takes as many cycles as so
            many output positions, which fewer of them cannot hide. Weight-stationary broadcast
            arrays only.
        whole_input_first: Computing starts when the buffer holds the whole input (of a group) and
            the weights of the first output channels side by side.
        startup_cycles: Cycles of every layer before its first transfer and after its last product:
            launch, latency of the memory, depth of the pipeline.
    """

    dataflow: Literal["row_stationary", "weight_stationary", "output_stationary"]
    interconnect: Literal["broadcast", "systolic"] = "broadcast"
    axes: Annotated[tuple[Axis, ...], Field(strict=False)]
    vector: Vector = Vector()
    positions_per_weight_load: Count | None = None
    cycles_per_step: Positive = 1.0
    passes: bool = False
    min_positions_per_weight_load: Count = 1
    whole_input_first: bool = False
    startup_cycles: NonNegative = 0.0

    @model_validator(mode="after")
    def _check_dataflow(self) -> Array:
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names):
            raise InputError("axes", names, "names of axes must differ")
        if needed := self._needed_loops():
            self._check_two_axes(*needed)
        if self.passes and self.dataflow != "row_stationary":
            raise InputError("passes", True, "only row_stationary arrays run in passes")
        return self

    def _needed_loops(self) -> tuple[Loop, Loop] | None:
        """The loops along the two axes of a dataflow that is made for such arrays."""
        if self.dataflow == "row_stationary":
            return ("kernel_height", "out_height")
        if self.interconnect == "systolic":
            down: Loop = "in_channels" if self.dataflow == "weight_stationary" else "out_width"
            return (down, "out_channels")
        return None

    def _check_two_axes(self, down: Loop, across: Loop) -> None:
        """One axis for each of two loops, neither shared nor limited, and nothing else."""
        kind = self.dataflow if self.dataflow == "row_stationary" else f"systolic {self.dataflow}"
        allowed = f"{kind} needs one axis to unroll {down} and another to unroll {across}"
        names = [axis.name for axis in self.axes]
        for loop in (down, across):
            if not self.axes_of(loop):
                raise InputError("axes", names, f"{allowed}; none unrolls {loop}")
            if len(self.axes_of(loop)) > 1:
                raise InputError("axes", names, f"{allowed}; several unroll {loop}")
        for index, axis in enumerate(self.axes):
            if (down in axis.unroll) == (across in axis.unroll):  # both, or neither
                allowed = f"{allowed}, and no axis for both or without either"
                raise InputError(f"axes[{index}].unroll", axis.unroll, allowed)
            if axis.at_most:
                allowed = f"{kind} fills whole axes: leave it out, or make the axis smaller"
                raise InputError(f"axes[{index}].at_most", axis.at_most, allowed)
        if self.vector.size > 1:
            allowed = f"an element of {kind} has one multiplier: use 1"
            raise InputError("vector.size", self.vector.size, allowed)

    @property
    def elements(self) -> int:
        """Processing elements."""
        elements = 1
        for axis in self.axes:
            elements *= axis.size
        return elements

    @property
    def multipliers(self) -> int:
        """Multipliers, vectors included."""
        return self.elements * self.vector.size

    def axes_of(self, loop: Loop) -> list[Axis]:
        """The axes that a loop may be unrolled on."""
        return [axis for axis in self.axes if loop in axis.unroll]

    def units_on_axes(self, loop: Loop) -> int:
        """Iterations of a loop side by side on all axes that may hold it."""
        units = 1
        for axis in self.axes_of(loop):
            units *= axis.at_most.get(loop, axis.size)
        return units

    def units(self, loop: Loop) -> int:
        """Iterations of a loop side by side, on all axes and the vector that may hold it."""
        return self.units_on_axes(loop) * (self.vector.size if loop in self.vector.unroll else 1)


class Mac(Part):
    """Energy of one multiply-accumulate against the widths of what it handles.

    ``multiplier * weight_bits * activation_bits + operand * (weight_bits + activation_bits)
    + adder * accumulator_bits``

    Attributes:
        multiplier_per_bit_product: One cell of an array multiplier.
        operand_per_bit: What grows with an operand's width alone: its register, sign, wiring.
        adder_per_bit: One bit of the adder and of the register behind it.
    """

    multiplier_per_bit_product: NonNegative
    operand_per_bit: NonNegative = 0.0
    adder_per_bit: NonNegative = 0.0


class Precision(Part):
    """Which widths are computed, and how fast.

    Attributes:
        style: ``bit_parallel`` takes a cycle whatever the width; ``bit_serial`` as many cycles as
            the serial operands have bits (two serial operands multiply, as in Loom); ``fusible``
            composes multipliers of bricks (BitFusion).
        weight_bits, activation_bits: Ascending widths. Others are computed and stored at the next.
        accumulator_bits: Bits of a partial sum.
        serial: The serial operands of ``bit_serial``.
        bricks, brick_bits: A ``fusible`` multiplier has so many bricks, each of which multiplies
            ``brick_bits`` by ``brick_bits``: in a cycle it finishes
            ``bricks / (ceil(b_w / brick_bits) * ceil(b_a / brick_bits))`` products.
    """

    style: Literal["bit_parallel", "bit_serial", "fusible"]
    weight_bits: Widths
    activation_bits: Widths
    accumulator_bits: Width
    serial: Annotated[tuple[Literal["weight", "input"], ...], Field(strict=False)] = ()
    bricks: Count | None = None
    brick_bits: Count | None = None

    @model_validator(mode="after")
    def _check_style(self) -> Precision:
        _check_once("serial", self.serial)
        for key in ("weight_bits", "activation_bits"):
            bits = getattr(self, key)
            if list(bits) != sorted(set(bits)):
                raise InputError(key, bits, "use ascending widths")
        if (self.style == "bit_serial") != bool(self.serial):
            raise InputError("serial", self.serial, "name operands for bit_serial, and only there")
        for key in ("bricks", "brick_bits"):
            value = getattr(self, key)
            if (self.style == "fusible") != (value is not None):
                raise InputError(key, value, "give it for fusible, and only there")
        return self


class Memory(Part):
    """One level of the memory hierarchy.

    Attributes:
        name: For reports.
        role: ``register_file`` and accumulators beside the multipliers, ``buffer`` on chip,
            ``dram`` for whatever holds the whole network: DRAM, or flash.
        operands: What it holds.
        per_element: One in each element of the array, or one for all.
        capacity_bytes: Size, shared by its operands, which pack at their widths; of one of them
            where there are many. Null with ``words``, or if there is always enough.
        words: Size where each operand has a part of its own: values, whatever their width.
        bank_bytes: Operands that share it get whole banks of this size; null if any share.
        word_bits: Bits of an access, which the energies are for; fewer cost in proportion.
        read_energy_per_word, write_energy_per_word: In the accelerator's ``energy_unit``.
        bytes_per_cycle: Bandwidth of reads and writes together; null if it never limits.
        read_bytes_per_cycle, write_bytes_per_cycle: Bandwidth of each port.
        feature_atom_bytes: The channels of a pixel fill whole atoms; null packs them. DRAM only.
        weight_atom_bytes: The weights of a layer fill whole atoms; null packs them. DRAM only.
    """

    name: Name
    role: Literal["register_file", "buffer", "dram"]
    operands: Operands
    per_element: bool = False
    capacity_bytes: Count | None = None
    words: dict[Operand, Count] | None = None
    bank_bytes: Count | None = None
    word_bits: Count
    read_energy_per_word: NonNegative
    write_energy_per_word: NonNegative
    bytes_per_cycle: Positive | None = None
    read_bytes_per_cycle: Positive | None = None
    write_bytes_per_cycle: Positive | None = None
    feature_atom_bytes: Count | None = None
    weight_atom_bytes: Count | None = None

    @model_validator(mode="after")
    def _check_size(self) -> Memory:
        _check_once("operands", self.operands)
        if self.words is not None and set(self.words) != set(self.operands):
            raise InputError("words", self.words, f"give one size for each of {self.operands}")
        if self.words is not None and self.capacity_bytes is not None:
            raise InputError("capacity_bytes", self.capacity_bytes, "'words' already says it")
        if self.capacity_bytes is not None and self.capacity_bytes * 8 < self.word_bits:
            allowed = f"a word has {self.word_bits} bits: hold at least one"
            raise InputError("capacity_bytes", self.capacity_bytes, allowed)
        if self.role != "dram" and self.words is None and self.capacity_bytes is None:
            raise InputError("capacity_bytes", None, "give it, or 'words'")
        for key in ("feature_atom_bytes", "weight_atom_bytes"):
            if self.role != "dram" and getattr(self, key) is not None:
                raise InputError(key, getattr(self, key), "only memories with role dram have it")
        return self

    def capacity_bits(self, operand: Operand) -> float:
        """Bits that an operand may use, shared or its own; infinite if there is always enough."""
        if self.words is not None:
            return float(self.words[operand] * self.word_bits)
        return float("inf") if self.capacity_bytes is None else 8.0 * self.capacity_bytes


class ArrayNetwork(Part):
    """What moves words to and between the elements.

    Attributes:
        energy_per_word: Of one word delivered to, or passed on between, elements.
        word_bits: Bits of that word; fewer cost in proportion.
        bytes_per_cycle: Width of the bus between buffer and elements, for each operand, in either
            direction; an operand that is not there never waits.
    """

    energy_per_word: NonNegative
    word_bits: Count
    bytes_per_cycle: dict[Operand, Positive] = {}


class OperandSparsity(Part):
    """What zeros of one operand save.

    Attributes:
        zeros: ``none`` saves nothing. ``gating`` stops the multiplication and the register
            accesses behind it, and saves no cycles. ``skipping`` saves the cycles, too, as far as
            the lanes are balanced. ``n_m`` takes N of every M weights, in N/M of the cycles.
        patterns: The (N, M) that ``n_m`` takes, of weights along the input channels.
        format: How zeros are stored, per layer and only where that is smaller: ``dense`` all of
            them; ``bitmask`` one bit for each value; ``run_length`` their number before each
            value; ``n_m`` the place of N values in every M.
        run_bits: Bits of that number for ``run_length``.
        compressed_in: Names of the memories that hold this format, of the operand's buffer and
            DRAM and the DRAM of outputs; it is unpacked elsewhere.
    """

    zeros: Literal["none", "gating", "skipping", "n_m"] = "none"
    patterns: Annotated[tuple[NOfM, ...], Field(strict=False)] = ()
    format: Literal["dense", "bitmask", "run_length", "n_m"] = "dense"
    run_bits: Annotated[int, Field(ge=1, le=16)] | None = None
    compressed_in: Annotated[tuple[Name, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check_format(self) -> OperandSparsity:
        if (self.format == "dense") != (not self.compressed_in):
            allowed = "name memories for a compressed format, and only for one"
            raise InputError("compressed_in", self.compressed_in, allowed)
        if (self.format == "run_length") != (self.run_bits is not None):
            raise InputError("run_bits", self.run_bits, "give it for run_length, and only there")
        if ("n_m" in (self.zeros, self.format)) != bool(self.patterns):
            raise InputError("patterns", self.patterns, "give some for n_m, and only there")
        for index, (kept, group) in enumerate(self.patterns):
            if kept >= group:
                raise InputError(f"patterns[{index}]", (kept, group), "use N below M")
        return self


class Sparsity(Part):
    """What zeros save, by operand.

    Attributes:
        weight: Weights.
        input: Feature maps; their format is also that of outputs.
        lanes: Multipliers that wait for each other where zeros are skipped.
        window: Products that each of them gets before they do.
    """

    weight: OperandSparsity = OperandSparsity()
    input: OperandSparsity = OperandSparsity()
    lanes: Count | None = None
    window: Count | None = None

    @model_validator(mode="after")
    def _check_operands(self) -> Sparsity:
        if self.input.patterns:
            raise InputError("input.patterns", self.input.patterns, "only weights have patterns")
        skips = "skipping" in (self.weight.zeros, self.input.zeros)
        for key in ("lanes", "window"):
            value = getattr(self, key)
            if skips != (value is not None):
                raise InputError(key, value, "give it where zeros are skipped, and only there")
        return self


class Static(Part):
    """Power that is there whether or not anything moves.

    Attributes:
        leakage_mw: Leakage of the whole chip.
        clock_mw: Clock network of the whole chip while it runs.
    """

    leakage_mw: NonNegative = 0.0
    clock_mw: NonNegative = 0.0


class VectorUnit(Part):
    """What adds, pools and requantizes outputs on their way to memory.

    Attributes:
        add_energy: Of one addition or comparison, in the accelerator's ``energy_unit``.
        multiply_energy: Of one multiplication, also that of a requantization.
        operations_per_cycle: Throughput.
        overlaps: Works while the array does; else one after the other, as on a processor.
    """

    add_energy: NonNegative
    multiply_energy: NonNegative
    operations_per_cycle: Positive
    overlaps: bool = True
