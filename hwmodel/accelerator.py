"""An accelerator as data: what a YAML file may say, and how one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from typing import Literal

import yaml
from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from pydantic import model_validator

from hwmodel.errors import InputError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Width = Annotated[int, Field(ge=1, le=64)]


class _Part(BaseModel):
    """Strict: no unknown keys, no coercion of strings or booleans, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RowStationaryArray(_Part):
    """Processing elements that each convolve one kernel row with one input row.

    Attributes:
        rows, columns: Size of the array.
        input_words, filter_words, partial_sum_words: Register file of one element.
    """

    dataflow: Literal["row_stationary"]
    rows: Count
    columns: Count
    input_words: Count
    filter_words: Count
    partial_sum_words: Count

    @property
    def multipliers(self) -> int:
        return self.rows * self.columns


class MacArray(_Part):
    """Cells that each take one output channel and add the products of a vector of input channels.

    Attributes:
        input_lanes: Input channels multiplied in a cycle by each cell.
        output_lanes: Cells, each with its own output channel.
        positions_per_weight_load: Output positions that one load of the weight registers serves.
    """

    dataflow: Literal["mac_array"]
    input_lanes: Count
    output_lanes: Count
    positions_per_weight_load: Count

    @property
    def multipliers(self) -> int:
        return self.input_lanes * self.output_lanes


class Dram(_Part):
    """External memory.

    Attributes:
        bytes_per_cycle: Bandwidth per cycle of the array's clock, reads and writes together.
        feature_atom_bytes: The channels of a pixel fill whole atoms; null packs them.
        weight_atom_bytes: The weights of a layer fill whole atoms; null packs them.
    """

    bytes_per_cycle: Positive
    feature_atom_bytes: Count | None
    weight_atom_bytes: Count | None


class Sparsity(_Part):
    """What zeros save.

    Attributes:
        gate_zero_weights, gate_zero_activations: A zero operand stops its multiplication and the
            register accesses behind it. No cycles, no traffic.
        weight_format: ``bitmask`` stores non-zero weights and one bit for each weight, per layer
            and only where that is smaller; ``dense`` stores all of them.
        compressed_in_buffer: The compressed format is also that of the buffer.
    """

    gate_zero_weights: bool
    gate_zero_activations: bool
    weight_format: Literal["dense", "bitmask"]
    compressed_in_buffer: bool


class Energy(_Part):
    """Unit energies in pJ; a word has 16 bits and narrower accesses cost in proportion.

    Attributes:
        multiplier_pj_per_bit_product, adder_pj_per_bit: One multiply-accumulate costs
            ``multiplier * weight_bits * activation_bits + adder * accumulator_bits``.
        register_file_pj_per_word: One access to a register file or an accumulator.
        array_network_pj_per_word: One word moved to or between the array's elements.
        buffer_pj_per_word: One access to the buffer.
        dram_pj_per_word: One access to external memory.
    """

    multiplier_pj_per_bit_product: Positive
    adder_pj_per_bit: Positive
    register_file_pj_per_word: Positive
    array_network_pj_per_word: Positive
    buffer_pj_per_word: Positive
    dram_pj_per_word: Positive


class Accelerator(_Part):
    """One accelerator.

    Attributes:
        name: Short name.
        describe: What it is, in a sentence or two.
        array: Multipliers and dataflow.
        accumulator_bits: Bits of a partial sum.
        supported_bits: Ascending operand widths. Others are computed and stored at the next one.
        buffer_bytes: On-chip buffer shared by weights, inputs and (row-stationary) partial sums.
        dram: External memory.
        clock_hz: Clock of the array.
        feature_maps_stay_on_chip: Maps that fit the buffer pass to the next layer without DRAM.
        sparsity: What zeros save.
        energy: Unit energies.
    """

    name: Annotated[str, Field(min_length=1)]
    describe: str
    array: Annotated[RowStationaryArray | MacArray, Field(discriminator="dataflow")]
    accumulator_bits: Width
    supported_bits: Annotated[tuple[Width, ...], Field(strict=False, min_length=1)]
    buffer_bytes: Count
    dram: Dram
    clock_hz: Positive
    feature_maps_stay_on_chip: bool
    sparsity: Sparsity
    energy: Energy

    @model_validator(mode="after")
    def _check_ascending(self) -> Accelerator:
        bits = self.supported_bits
        if list(bits) != sorted(set(bits)):
            raise InputError("supported_bits", bits, "use ascending widths")
        return self


def preset_names() -> tuple[str, ...]:
    """Names of the accelerators that come with the package, sorted."""
    return tuple(sorted(_presets()))


def load_accelerator(name_or_path: str | Path) -> Accelerator:
    """Load a preset by name, or an accelerator of one's own from a YAML file.

    Args:
        name_or_path: One of :func:`preset_names`, or the path of a YAML file.

    Raises:
        InputError: no such preset or file, not YAML, or a field that is unknown, missing, of the
            wrong type or out of range; names the field's path.
    """
    presets = _presets()
    source = presets.get(str(name_or_path), Path(name_or_path))
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the path
        allowed = f"use one of {', '.join(preset_names())} or a readable YAML file ({error})"
        raise InputError("accelerator", str(name_or_path), allowed) from None
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError("accelerator", str(name_or_path), f"use valid YAML ({error})") from None
    if not isinstance(data, dict):
        raise InputError("accelerator", str(name_or_path), "use a YAML mapping of fields")
    try:
        return Accelerator.model_validate(data)
    except ValidationError as error:
        raise _first_error(error) from None


def _presets() -> dict[str, Path]:
    return {path.stem: path for path in (Path(__file__).parent / "accelerators").glob("*.yaml")}


def _first_error(error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    # The location of a dataflow's field also holds the dataflow, which is no key of the file.
    keys = [str(key) for key in first["loc"] if key not in ("row_stationary", "mac_array")]
    value = None if first["type"] == "missing" else first["input"]
    return InputError(".".join(keys), value, first["msg"][0].lower() + first["msg"][1:])
