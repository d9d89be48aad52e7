"""Loading accelerators: presets, files of one's own, and every way to get one wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hwmodel_layers import conv
from hwmodel_layers import network
from hwmodel_layers import with_values

from hwmodel import InputError
from hwmodel import LayerStates
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel import preset_names
from hwmodel.plain_data import parse_yaml


def preset_data(name: str = "eyeriss-like") -> dict:
    return load_accelerator(name).model_dump(mode="json")


def save(folder: Path, data: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_presets_are_named_after_their_files() -> None:
    assert {"eyeriss-like", "nvdla-small", "systolic-16x16"} <= set(preset_names())
    for name in preset_names():
        assert load_accelerator(name).name == name


def test_presets_are_the_published_arrays() -> None:
    eyeriss = load_accelerator("eyeriss-like")
    nvdla = load_accelerator("nvdla-small")
    assert (eyeriss.array.multipliers, eyeriss.buffer_bytes) == (168, 108 * 1024)
    assert (nvdla.array.multipliers, nvdla.buffer_bytes) == (64, 128 * 1024)
    assert nvdla.array.units("in_channels") == nvdla.array.units("out_channels") == 8


def test_eyeriss_costs_have_the_ratios_of_isca_2016() -> None:
    eyeriss = load_accelerator("eyeriss-like")
    mac = eyeriss.mac
    unit = 256 * mac.multiplier_per_bit_product + 16 * mac.adder_per_bit
    registers, buffer, dram = eyeriss.memories
    assert registers.read_energy_per_word == pytest.approx(1 * unit)
    assert eyeriss.array_network.energy_per_word == pytest.approx(2 * unit)
    assert buffer.read_energy_per_word == pytest.approx(6 * unit)
    assert dram.write_energy_per_word == pytest.approx(200 * unit)


@pytest.mark.parametrize("name", ["eyeriss-like", "nvdla-small"])
def test_a_saved_accelerator_loads_again(name: str, tmp_path: Path) -> None:
    path = save(tmp_path, preset_data(name))
    assert load_accelerator(path) == load_accelerator(name)
    assert load_accelerator(str(path)) == load_accelerator(name)


def part_of(data: dict, path: str) -> tuple[dict | list, str | int]:
    """The container of a path such as ``memories[1].name``, and the last key."""
    keys: list[str | int] = [
        int(key) if key.isdigit() else key for key in re.findall(r"[a-z_]+|\d+", path)
    ]
    for key in keys[:-1]:
        data = data[key]
    return data, keys[-1]


def test_a_misspelt_key_is_answered_by_the_right_one(tmp_path: Path) -> None:
    data = preset_data("eyeriss-like")
    data["clock"] = data.pop("clock_hz")
    with pytest.raises(InputError, match=r"^clock: .*did you mean clock_hz\?"):
        load_accelerator(save(tmp_path, data))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", ""),
        ("volume", 3),
        ("clock_hz", float("nan")),
        ("clock_hz", float("inf")),
        ("clock_hz", "2e8"),
        ("memories[1].read_energy_per_word", 1e308),
        ("memories[1].word_bits", 10**400),
        ("energy_unit", "nJ"),
        ("array.dataflow", "systolic"),
        ("array.depth", 3),
        ("array.axes[0].size", 0),
        ("array.axes[0].size", 12.5),
        ("array.axes[0].unroll", []),
        ("array.axes[0].unroll", ["channels"]),
        ("array.axes[0].at_most", {"out_channels": 13}),
        ("array.axes[0].at_most", {"batch": 2}),
        ("array.axes", []),
        ("array.vector.unroll", ["out_channels"]),
        ("array.vector.size", 4),
        ("mac.adder_per_bit", -1.0),
        ("precision.weight_bits", []),
        ("precision.weight_bits", [8, 4]),
        ("precision.activation_bits", 8),
        ("precision.accumulator_bits", 65),
        ("precision.style", "bit_serial"),
        ("precision.style", "fusible"),
        ("precision.serial", ["weight"]),
        ("precision.bricks", 16),
        ("memories", []),
        ("memories[0].words", {"weight": 225, "input": 12}),
        ("memories[0].words", None),
        ("memories[2].role", "register_file"),
        ("memories[2].name", "buffer"),
        ("memories[1].capacity_bytes", 0),
        ("memories[1].capacity_bytes", 1),
        ("memories[1].capacity_bytes", "108 KB"),
        ("memories[1].capacity_bytes", True),
        ("memories[1].capacity_bytes", None),
        ("memories[1].feature_atom_bytes", 8),
        ("memories[2].operands", []),
        ("memories[2].operands", ["weight", "input"]),
        ("memories[2].bytes_per_cycle", 0),
        ("memories[2].feature_atom_bytes", -8),
        ("memories[2].read_energy_per_word", -1.0),
        ("memories[2].read_energy_per_word", float("nan")),
        ("array_network.energy_per_word", float("nan")),
        ("sparsity.weight.format", "csr"),
        ("sparsity.weight.format", "dense"),
        ("sparsity.weight.zeros", True),
        ("sparsity.weight.compressed_in", ["disk"]),
        ("static", {"leakage_mw": -1.0}),
    ],
)
def test_a_wrong_value_is_named_by_its_path(path: str, value: object, tmp_path: Path) -> None:
    data = preset_data()
    part, key = part_of(data, path)
    part[key] = value
    with pytest.raises(InputError) as caught:
        load_accelerator(save(tmp_path, data))
    # Where fields contradict each other, either of them, in the same section, is named.
    section = path.rpartition(".")[0]
    named = caught.value.field
    assert named.startswith(section) or path.startswith(named)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("array.axes[1].unroll", ["out_height", "out_channels", "out_height"]),
        ("array.vector.unroll", ["in_channels", "kernel_width", "in_channels"]),
        ("precision.serial", ["weight", "input", "weight"]),
        ("memories[2].operands", ["weight", "output", "weight", "input"]),
    ],
)
def test_a_list_names_nothing_twice(path: str, names: list[str], tmp_path: Path) -> None:
    data = preset_data()
    part, key = part_of(data, path)
    part[key] = names
    with pytest.raises(InputError) as caught:
        load_accelerator(save(tmp_path, data))
    assert caught.value.field == f"{path}[2]"
    assert caught.value.value == names[2]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_second_memory_of_a_role_for_one_operand_is_refused(index: int, tmp_path: Path) -> None:
    # The array would read one of them and be tiled for the other, and one would be free.
    data = preset_data()
    second = data["memories"][index] | {"name": "second", "operands": ["input"]}
    if second["words"]:
        second["words"] = {"input": 12}
    data["memories"].insert(index + 1, second)
    with pytest.raises(InputError) as caught:
        load_accelerator(save(tmp_path, data))
    assert caught.value.field == f"memories[{index + 1}].operands"
    assert f"one {second['role']} for each operand" in str(caught.value)


LAYER = network(conv(16, 16, 14))
DENSITIES = ("weight_density", "activation_density", "output_density")


def packed(operand: str, memory: str, folder: Path) -> Path:
    """An accelerator with a buffer for each operand and a DRAM of outputs, one format in one."""
    data = preset_data("bitfusion-like")
    dram = data["memories"][-1]
    data["memories"].append(dram | {"name": "results", "operands": ["output"]})
    dram["operands"] = ["weight", "input"]
    data["sparsity"] = {operand: {"format": "bitmask", "compressed_in": [memory]}}
    return save(folder, data)


@pytest.mark.parametrize(
    ("operand", "memory"),
    [
        ("weight", "weight_buffer"),
        ("weight", "dram"),
        ("input", "input_buffer"),
        ("input", "dram"),
        ("input", "results"),
    ],
)
def test_zeros_packed_anywhere_save_energy(operand: str, memory: str, tmp_path: Path) -> None:
    sparse = with_values(LayerStates.dense(LAYER, 8), **dict.fromkeys(DENSITIES, 0.25))
    packs = load_accelerator(packed(operand, memory, tmp_path))
    plain = load_accelerator("bitfusion-like")
    assert cost(LAYER, sparse, packs).energy_pj < cost(LAYER, sparse, plain).energy_pj


@pytest.mark.parametrize(
    ("operand", "memory", "allowed"),
    [
        ("weight", "disk", "weight_buffer, dram"),
        ("weight", "weight_registers", "weight_buffer, dram"),
        ("weight", "input_buffer", "weight_buffer, dram"),
        ("input", "weight_buffer", "input_buffer, dram, results"),
        ("input", "output_buffer", "input_buffer, dram, results"),  # which holds partial sums
    ],
)
def test_zeros_packed_where_it_saves_nothing_are_refused(
    operand: str, memory: str, allowed: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"use {allowed} \(in ") as caught:
        load_accelerator(packed(operand, memory, tmp_path))
    assert caught.value.field == f"sparsity.{operand}.compressed_in"


def axis(name: str, *loops: str, **options: object) -> dict:
    return {"name": name, "size": 16, "unroll": list(loops), **options}


def output_stationary(*axes: dict) -> dict:
    return {"dataflow": "output_stationary", "interconnect": "systolic", "axes": list(axes)}


ROWS, COLUMNS = axis("rows", "kernel_height", "in_channels"), axis("columns", "out_height")
DOWN, ACROSS = axis("down", "in_channels", "kernel_width"), axis("across", "out_channels")


@pytest.mark.parametrize(
    ("name", "values", "field"),
    [
        ("eyeriss-like", {"axes": [axis("all", "kernel_height", "out_height")]}, "axes[0].unroll"),
        ("eyeriss-like", {"axes": [ROWS]}, "axes"),
        ("eyeriss-like", {"axes": [ROWS, COLUMNS, COLUMNS | {"name": "more"}]}, "axes"),
        ("eyeriss-like", {"axes": [ROWS, COLUMNS, axis("more", "groups")]}, "axes[2].unroll"),
        ("eyeriss-like", {"axes": [ROWS | {"at_most": {"kernel_height": 3}}, COLUMNS]},
         "axes[0].at_most"),
        ("eyeriss-like", {"vector": {"size": 4, "unroll": ["in_channels"]}}, "vector.size"),
        ("systolic-16x16", {"axes": [axis("all", "in_channels", "out_channels")]},
         "axes[0].unroll"),
        ("systolic-16x16", {"axes": [DOWN, ACROSS, axis("more", "batch")]}, "axes[2].unroll"),
        ("systolic-16x16", {"axes": [DOWN | {"at_most": {"kernel_width": 1}}, ACROSS]},
         "axes[0].at_most"),
        ("systolic-16x16", {"vector": {"size": 4, "unroll": ["kernel_width"]}}, "vector.size"),
        ("systolic-16x16", output_stationary(DOWN, ACROSS), "axes"),
        ("systolic-16x16", output_stationary(axis("all", "out_width", "out_channels")),
         "axes[0].unroll"),
    ],
)  # fmt: skip
def test_rows_and_columns_have_a_loop_each_and_nothing_beside_them(
    name: str, values: dict, field: str, tmp_path: Path
) -> None:
    # Whatever else such an array had would be idle, or counted twice, in its closed form.
    data = preset_data(name)
    data["array"] |= values
    with pytest.raises(InputError) as caught:
        load_accelerator(save(tmp_path, data))
    assert caught.value.field == f"array.{field}"
    assert "\n" not in str(caught.value)


def test_milliwatts_are_refused_where_energies_are_relative(tmp_path: Path) -> None:
    data = preset_data() | {"energy_unit": "MAC", "static": {"leakage_mw": 1.0}}
    with pytest.raises(InputError, match=r"static: .*energy_unit pJ"):
        load_accelerator(save(tmp_path, data))


@pytest.mark.parametrize(
    "path", ["memories", "memories[2].word_bits", "array.axes[1].size", "precision.weight_bits"]
)
def test_a_missing_field_is_named_by_its_path(path: str, tmp_path: Path) -> None:
    data = preset_data()
    part, key = part_of(data, path)
    del part[key]
    with pytest.raises(InputError) as caught:
        load_accelerator(save(tmp_path, data))
    assert caught.value.field == path


@pytest.mark.parametrize(
    "text", ["name: [", "- 1\n- 2", "", "!!python/object:os.system {}", "a: 2001-99-99"]
)
def test_what_is_no_mapping_in_yaml_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_accelerator(path)


MERGED_BUFFERS = """\
first: &first {role: buffer, word_bits: 16}
deeper:
  second: {of: &second {<<: *first, word_bits: 32}}
  third: {<<: [*second, *first], word_bits: 64, name: third}
"""


def test_yaml_merges_as_the_safe_loader_does() -> None:
    merged = parse_yaml(MERGED_BUFFERS, "mine.yaml")
    assert merged == yaml.safe_load(MERGED_BUFFERS)
    assert merged["deeper"]["third"] == {"role": "buffer", "word_bits": 64, "name": "third"}


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\na: 2", "line 2: 'a: 2'", "'a'"),
        ("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}\n", "line 2: 'b: {<<: *a, y: 1, y: 2}'", "'y'"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", "line 4: '<<: *a'", "'<<'"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text: str, line: str, key: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "mine.yaml")
    assert str(caught.value).startswith(f"mine.yaml, {line} is not allowed")
    assert f"{key} is there twice" in str(caught.value)


def test_unreadable_sources_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for source in ("eyeris", "", "a\0b", tmp_path, tmp_path / "absent.yaml", binary):
        with pytest.raises(InputError, match="eyeriss-like, "):
            load_accelerator(source)


@pytest.mark.parametrize(
    ("name", "section", "values", "field"),
    [
        ("nvdla-small", "array", dict(passes=True), "array.passes"),
        ("nvdla-small", "array", dict(startup_cycles=-1.0), "array.startup_cycles"),
        ("eyeriss", "array_network", dict(bytes_per_cycle={}), "bytes_per_cycle.weight"),
        ("eyeriss", "array_network", dict(bytes_per_cycle={"input": 0.0}), "bytes_per_cycle.input"),
    ],
)
def test_what_an_array_waits_for_must_be_stated(tmp_path, name, section, values, field) -> None:
    data = preset_data(name)
    data[section] |= values
    with pytest.raises(InputError) as caught:
        load_accelerator(save(tmp_path, data))
    assert caught.value.field.endswith(field)
