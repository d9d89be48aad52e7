"""Loading accelerators: presets, files of one's own, and every way to get one wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hwmodel import InputError
from hwmodel import load_accelerator
from hwmodel import preset_names
from hwmodel.accelerator import MacArray
from hwmodel.accelerator import RowStationaryArray


def preset_data(name: str = "eyeriss-like") -> dict:
    return load_accelerator(name).model_dump(mode="json")


def save(folder: Path, data: object) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_presets_are_named_after_their_files() -> None:
    assert preset_names() == ("eyeriss-like", "nvdla-like")
    for name in preset_names():
        assert load_accelerator(name).name == name


def test_presets_are_the_published_arrays() -> None:
    eyeriss = load_accelerator("eyeriss-like")
    nvdla = load_accelerator("nvdla-like")
    assert isinstance(eyeriss.array, RowStationaryArray)
    assert isinstance(nvdla.array, MacArray)
    assert (eyeriss.array.multipliers, eyeriss.buffer_bytes) == (168, 108 * 1024)
    assert (nvdla.array.multipliers, nvdla.buffer_bytes) == (64, 128 * 1024)


def test_eyeriss_costs_have_the_ratios_of_isca_2016() -> None:
    energy = load_accelerator("eyeriss-like").energy
    unit = 256 * energy.multiplier_pj_per_bit_product + 16 * energy.adder_pj_per_bit
    assert energy.register_file_pj_per_word == pytest.approx(1 * unit)
    assert energy.array_network_pj_per_word == pytest.approx(2 * unit)
    assert energy.buffer_pj_per_word == pytest.approx(6 * unit)
    assert energy.dram_pj_per_word == pytest.approx(200 * unit)


@pytest.mark.parametrize("name", ["eyeriss-like", "nvdla-like"])
def test_a_saved_accelerator_loads_again(name: str, tmp_path: Path) -> None:
    path = save(tmp_path, preset_data(name))
    assert load_accelerator(path) == load_accelerator(name)
    assert load_accelerator(str(path)) == load_accelerator(name)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("buffer_bytes", 0),
        ("buffer_bytes", "108 KB"),
        ("buffer_bytes", True),
        ("clock_hz", float("nan")),
        ("clock_hz", float("inf")),
        ("clock_hz", "2e8"),
        ("dram.bytes_per_cycle", 0),
        ("dram.feature_atom_bytes", -8),
        ("energy.dram_pj_per_word", -1.0),
        ("energy.register_file_pj_per_word", float("nan")),
        ("sparsity.weight_format", "csr"),
        ("sparsity.gate_zero_weights", "yes please"),
        ("array.rows", 0),
        ("array.rows", 12.5),
        ("array.dataflow", "systolic"),
        ("supported_bits", []),
        ("supported_bits", [8, 4]),
        ("supported_bits", 8),
        ("accumulator_bits", 65),
        ("name", ""),
        ("volume", 3),
        ("array.depth", 3),
    ],
)
def test_a_wrong_value_is_named_by_its_path(path: str, value: object, tmp_path: Path) -> None:
    data = preset_data()
    *parents, key = path.split(".")
    part = data
    for parent in parents:
        part = part[parent]
    part[key] = value
    with pytest.raises(InputError) as caught:
        load_accelerator(save(tmp_path, data))
    # An unknown dataflow is reported where the choice is: at the array.
    assert path.startswith(caught.value.field)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["buffer_bytes", "dram.bytes_per_cycle", "array.columns"])
def test_a_missing_field_is_named_by_its_path(path: str, tmp_path: Path) -> None:
    data = preset_data()
    *parents, key = path.split(".")
    part = data
    for parent in parents:
        part = part[parent]
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


def test_unreadable_sources_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for source in ("eyeriss", "", "a\0b", tmp_path, tmp_path / "absent.yaml", binary):
        with pytest.raises(InputError, match="eyeriss-like, nvdla-like"):
            load_accelerator(source)
