"""An accelerator as data: what a YAML file may say, and how one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from typing import Literal

from pydantic import Field
from pydantic import model_validator

from hwmodel.errors import InputError
from hwmodel.parts import OPERANDS
from hwmodel.parts import Array
from hwmodel.parts import ArrayNetwork
from hwmodel.parts import Mac
from hwmodel.parts import Memory
from hwmodel.parts import Name
from hwmodel.parts import Operand
from hwmodel.parts import Part
from hwmodel.parts import Positive
from hwmodel.parts import Precision
from hwmodel.parts import Sparsity
from hwmodel.parts import Static
from hwmodel.parts import VectorUnit
from hwmodel.plain_data import parse_yaml
from hwmodel.plain_data import validated

_RENAMED = {"nvdla-like": "nvdla-small"}
"""Names that presets had before."""

_OUTWARDS = ("register_file", "buffer", "dram")

_PACKED_IN: dict[str, tuple[tuple[str, Operand], ...]] = {
    "weight": (("buffer", "weight"), ("dram", "weight")),
    "input": (("buffer", "input"), ("dram", "input"), ("dram", "output")),
}
"""Where a format of ``sparsity`` counts: a buffer of outputs holds sums, which are not packed."""


class Accelerator(Part):
    """One accelerator. All sections are described in docs/accelerators.md.

    Attributes:
        name: Short name.
        describe: What it is, in a sentence or two.
        clock_hz: Clock of the array.
        energy_unit: Of every energy in the file and in its reports: ``pJ``, or ``MAC`` where only
            ratios to one multiply-accumulate are known.
        array: Multipliers and dataflow.
        mac: Energy of one multiply-accumulate.
        precision: Widths, and how fast each is.
        memories: From the multipliers outwards; at most one of a role for each operand.
        array_network: What moves words between the elements.
        vector_unit: Additions, pooling and requantization; null leaves them out.
        static: Leakage and clock; null leaves them out.
        sparsity: What zeros save.
        feature_maps_stay_on_chip: Maps that fit the buffer pass to the next layer without DRAM.
    """

    name: Name
    describe: str
    clock_hz: Positive
    energy_unit: Literal["pJ", "MAC"]
    array: Array
    mac: Mac
    precision: Precision
    memories: Annotated[tuple[Memory, ...], Field(strict=False, min_length=1)]
    array_network: ArrayNetwork | None = None
    vector_unit: VectorUnit | None = None
    static: Static | None = None
    sparsity: Sparsity
    feature_maps_stay_on_chip: bool = False

    @model_validator(mode="after")
    def _check_memories(self) -> Accelerator:
        names = [memory.name for memory in self.memories]
        for index, memory in enumerate(self.memories):
            field = f"memories[{index}]"
            if memory.name in names[:index]:
                raise InputError(f"{field}.name", memory.name, "names of memories must differ")
            inner = self.memories[max(index - 1, 0)].role
            if _OUTWARDS.index(memory.role) < _OUTWARDS.index(inner):
                raise InputError(f"{field}.role", memory.role, "list memories outwards")
            for operand in memory.operands:
                first = self.holding(memory.role, operand)
                if first and first is not memory:
                    allowed = f"{first.name} holds {operand!r}: one {memory.role} for each operand"
                    raise InputError(f"{field}.operands", memory.operands, allowed)
        for operand in OPERANDS:
            if not self.holding("dram", operand):
                allowed = f"a memory with role dram must hold {operand!r}"
                raise InputError("memories", names, allowed)
        return self

    @model_validator(mode="after")
    def _check_formats(self) -> Accelerator:
        for key, places in _PACKED_IN.items():
            held = [self.holding(role, operand) for role, operand in places]
            able = dict.fromkeys(memory.name for memory in held if memory)
            for name in getattr(self.sparsity, key).compressed_in:
                if name not in able:
                    allowed = f"of memories where the format counts use {', '.join(able)}"
                    raise InputError(f"sparsity.{key}.compressed_in", name, allowed)
        return self

    @model_validator(mode="after")
    def _check_dataflow(self) -> Accelerator:
        if self.array.dataflow == "row_stationary":
            for operand in OPERANDS:
                registers = self.holding("register_file", operand)
                if not (registers and registers.words):
                    allowed = f"row_stationary needs a register file with 'words' for {operand!r}"
                    raise InputError("memories", None, allowed)
        return self

    @model_validator(mode="after")
    def _check_waiting(self) -> Accelerator:
        buses = self.array_network.bytes_per_cycle if self.array_network else {}
        for operand in OPERANDS if self.array.passes else ():
            if operand not in buses:
                field = f"array_network.bytes_per_cycle.{operand}"
                raise InputError(field, None, "passes need the width of each operand's bus")
            if not self.holding("buffer", operand):
                allowed = f"passes need a buffer that holds {operand!r}"
                raise InputError("memories", None, allowed)
        if self.array.whole_input_first:
            for operand in ("input", "weight"):
                memory = self.dram(operand)
                if not (memory.bytes_per_cycle or memory.read_bytes_per_cycle):
                    field = f"memories.{memory.name}.bytes_per_cycle"
                    raise InputError(field, None, "whole_input_first needs a bandwidth to wait for")
            if not self.holding("buffer", "input"):
                allowed = "whole_input_first needs a buffer that holds 'input'"
                raise InputError("memories", None, allowed)
        return self

    @model_validator(mode="after")
    def _check_units(self) -> Accelerator:
        if self.static is not None and self.energy_unit != "pJ":
            allowed = "milliwatts need energy_unit pJ"
            raise InputError("static", self.static.model_dump(), allowed)
        return self

    def holding(self, role: str, operand: Operand) -> Memory | None:
        """The memory of a role that holds an operand."""
        held = (m for m in self.memories if m.role == role and operand in m.operands)
        return next(held, None)

    def dram(self, operand: Operand) -> Memory:
        """The memory with role ``dram`` that holds an operand."""
        memory = self.holding("dram", operand)
        assert memory is not None  # checked when the accelerator was made
        return memory

    def register_words(self, operand: Operand) -> int:
        """Values of an operand that one element's partitioned register file holds; 1 without."""
        registers = self.holding("register_file", operand)
        return registers.words[operand] if registers and registers.words else 1

    @property
    def buffer_bytes(self) -> int:
        """All buffers on chip together."""
        sizes = [sum(m.words.values()) * m.word_bits // 8 if m.words else m.capacity_bytes or 0
                 for m in self.memories if m.role == "buffer"]  # fmt: skip
        return sum(sizes)


def preset_names() -> tuple[str, ...]:
    """Names of the accelerators that come with the package, sorted."""
    return tuple(sorted(_presets()))


def preset_text(name: str) -> str:
    """The YAML file of a preset, comments and sources included: a start for one of your own.

    Raises:
        InputError: there is no such preset.
    """
    presets = _presets()
    if name not in presets:
        raise InputError("accelerator", name, f"use one of {', '.join(preset_names())}")
    return presets[name].read_text(encoding="utf-8")


def load_accelerator(name_or_path: str | Path) -> Accelerator:
    """Load a preset by name, or an accelerator of one's own from a YAML file.

    Args:
        name_or_path: One of :func:`preset_names`, or the path of a YAML file.

    Raises:
        InputError: no such preset or file, not YAML, or a field that is unknown, missing, of the
            wrong type or out of range; names the field's path.
    """
    presets = _presets()
    name = str(name_or_path)
    source = presets.get(_RENAMED.get(name, name), Path(name_or_path))
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the path
        allowed = f"use one of {', '.join(preset_names())} or a readable YAML file ({error})"
        raise InputError("accelerator", str(name_or_path), allowed) from None
    data = parse_yaml(text, name)
    try:
        return validated(Accelerator, "accelerator", data)
    except InputError as error:
        raise InputError(error.field, error.value, f"{error.allowed} (in {name})") from None


def _presets() -> dict[str, Path]:
    return {path.stem: path for path in (Path(__file__).parent / "accelerators").glob("*.yaml")}
