"""``cost``, ``compare`` and ``accelerators --show``: what a user gets from the hardware model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from torchvision.models import get_model_weights

from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel import preset_names
from hwmodel import read_layers
from hwmodel.layers_csv import ALIASES
from hwmodel.layers_csv import COLUMNS
from search import figures
from search.cli import main
from search.cost_table import layer_rows
from search.cost_table import loop_nests

LAYERS = "K,C,OFM,F,N,nnd_dram_words\n16,16,32,3,1,37184\n64,64,8,3,1,47360\n"
EYERISS = "cost --layers {here}/layers.csv --accelerator eyeriss-like"
COMPARE = "compare --layers {here}/layers.csv --accelerators"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "layers.csv").write_text(LAYERS)
    return tmp_path


def run_json(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    assert main([*command.format(here=here).split(), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("model", ["mobilenet_v2", "alexnet"])
def test_a_network_of_torchvision_is_priced_without_data(
    model: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run_json(f"cost --task torchvision:{model} --accelerator nvdla-small", here, capsys)
    published = get_model_weights(model).DEFAULT.meta["_ops"]  # billions, to three digits
    assert data["total"]["macs"] == pytest.approx(1e9 * published, abs=0.5e6)


def test_a_network_of_cifar10_is_priced_without_data(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOULECUT_CACHE", str(here / "empty"))
    data = run_json("cost --task cifar10-resnet20 --accelerator nvdla-small", here, capsys)
    assert data["total"]["macs"] == 40_551_040
    assert not (here / "empty").exists()


def test_bare_layers_are_priced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workload, states = read_layers(here / "layers.csv")
    report = cost(workload, states, load_accelerator("eyeriss-like"))

    data = run_json(EYERISS, here, capsys)

    assert (data["file"], data["accelerator"]) == (str(here / "layers.csv"), "eyeriss-like")
    assert (data["level"], data["objective"], data["counting"]) == ("mid", "energy", "native")
    first = data["layers"][0]
    assert first["dram_words"] == 37184  # everything crosses once, the border included
    assert first["dram_bytes"] == 2 * 37184
    assert sum(first["words"]["dram"].values()) == 37184
    assert first["words"]["dram"]["weight"] == 16 * 16 * 9
    assert first["mapping"] is None
    assert [layer["cycles"] for layer in data["layers"]] == report.latency_cycles[0].tolist()
    assert data["energy_unit"] == "pJ"
    assert data["total"]["energy"] == pytest.approx(report.energy_pj[0])
    assert data["total"]["macs"] == 2 * 2359296


def test_bits_are_those_of_every_operand(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow, wide = (run_json(f"{EYERISS} --bits {bits}", here, capsys) for bits in (4, 8))
    assert wide["total"]["dram_bytes"] == 2 * narrow["total"]["dram_bytes"]


def test_the_coarse_level_says_what_it_knows(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run_json(f"{EYERISS} --level coarse", here, capsys)
    assert data["total"]["macs"] == 2 * 2359296
    assert data["total"]["energy"] is data["layers"][0]["cycles"] is None
    assert main(f"{EYERISS} --level coarse".format(here=here).split()) == 0
    out = capsys.readouterr().out
    assert "MACs" in out
    assert "energy" not in out


def test_the_fine_level_finds_a_mapping_for_every_layer(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{EYERISS} --level fine"
    data = run_json(command, here, capsys)
    assert [layer["dram_words"] for layer in data["layers"]] == [37184, 47360]  # each word once
    assert all(layer["mapping"] for layer in data["layers"])
    fast = run_json(f"{command} --objective latency", here, capsys)
    assert fast["total"]["cycles"] <= data["total"]["cycles"]
    assert fast["total"]["energy"] >= data["total"]["energy"]

    assert main(command.format(here=here).split()) == 0
    out = capsys.readouterr().out
    assert data["layers"][0]["mapping"] in out


def test_people_get_energy_by_component_and_traffic_by_operand(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(EYERISS.format(here=here).split()) == 0
    out = capsys.readouterr().out
    for word in ("layer0", "network", "register file", "cycles", "used", "dram", "weight", "µJ"):
        assert word in out
    assert "…" not in out  # nothing is cut where the terminal is narrow


def test_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = f" --csv {here}/table.csv --output {here}/new/out"
    assert main((EYERISS + flags).format(here=here).split()) == 0
    out = here / "new" / "out"
    assert sorted(path.name for path in out.iterdir()) == ["cost.csv", "cost.parquet", "cost.png"]
    table = pd.read_parquet(out / "cost.parquet")
    assert table["layer"].tolist() == ["layer0", "layer1"]
    pd.testing.assert_frame_equal(table, pd.read_csv(out / "cost.csv"), check_dtype=False)
    assert (here / "table.csv").read_bytes() == (out / "cost.csv").read_bytes()
    assert (out / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_mappings_are_told_once_for_neighbours_that_share_them(here: Path) -> None:
    report = cost(*read_layers(here / "layers.csv"), load_accelerator("eyeriss-like"))
    assert list(loop_nests(report)) == []
    same = dataclasses.replace(report, mappings=(("for k in 16", "for k in 16"),))
    assert list(loop_nests(same)) == ["layer0, layer1:\nfor k in 16"]
    each = dataclasses.replace(report, mappings=(("for k in 16", "for c in 64"),))
    assert len(list(loop_nests(each))) == 2
    assert [row["mapping"] for row in layer_rows(each)] == ["for k in 16", "for c in 64"]
    gone = dataclasses.replace(report, mappings=((None, "for c in 64"),))
    assert list(loop_nests(gone)) == ["layer1:\nfor c in 64"]
    assert [row["mapping"] for row in layer_rows(gone)] == [None, "for c in 64"]


@pytest.mark.parametrize("name", preset_names())
def test_bars_and_parts_add_up_to_the_energy(name: str, here: Path) -> None:
    report = cost(*read_layers(here / "layers.csv", bits=8), load_accelerator(name))
    for row in layer_rows(report):
        parts = {key: value for key, value in row.items() if key.endswith("_pj")}
        assert parts.pop("energy_pj") == row["energy"] == pytest.approx(sum(parts.values()))
    energy, cycles = figures.cost(report).axes
    heights = [bar.get_height() for bar in energy.patches]
    layers = len(report.layers)
    tops = np.reshape(heights, (-1, layers)).sum(axis=0)
    assert tops == pytest.approx(report.layer_energy_pj[0] * 1e-6)
    last = energy.patches[-layers:]
    assert [bar.get_y() + bar.get_height() for bar in last] == pytest.approx(tops)
    assert len(cycles.patches) == layers


def test_a_task_is_priced_with_its_configuration(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = Workload("net", (LayerShape("stem", 3, 8), LayerShape("head", 8, 10)), ((), (0,)))

    def network_states(task, config, dense_bits) -> tuple[Workload, LayerStates]:
        print("Downloading data ...")
        bits = dense_bits if config is None else config.layers["stem"].weight_bits
        return workload, LayerStates.dense(workload, bits)

    module = ModuleType("search.evaluate")
    module.network_states = network_states  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "search.evaluate", module)
    (here / "config.json").write_text('{"version": 1, "layers": {"stem": {"weight_bits": 4}}}')
    command = "cost --task digits --accelerator eyeriss-like"

    dense = run_json(command, here, capsys)
    packed = run_json(f"{command} --config {here}/config.json", here, capsys)

    assert dense["task"] == "digits"
    assert [layer["layer"] for layer in dense["layers"]] == ["stem", "head"]
    assert dense["total"]["weight_bytes"] == 3 * 8 + 8 * 10  # a byte each
    assert packed["total"]["weight_bytes"] == dense["total"]["weight_bytes"] / 2


def test_devices_are_compared(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accelerators", "--show", "nvdla-small"]) == 0
    own = capsys.readouterr().out.replace("name: nvdla-small", "name: mine")
    (here / "mine.yaml").write_text(own)

    names = f"eyeriss-like,nvdla-small,{here}/mine.yaml"
    rows = run_json(f"{COMPARE} {names}", here, capsys)["accelerators"]

    assert [row["accelerator"] for row in rows] == ["eyeriss-like", "nvdla-small", "mine"]
    eyeriss, nvdla, mine = rows
    assert {key: value for key, value in mine.items() if key != "accelerator"} == {
        key: value for key, value in nvdla.items() if key != "accelerator"
    }
    workload, states = read_layers(here / "layers.csv")
    for row in (eyeriss, nvdla):
        accelerator = load_accelerator(row["accelerator"])
        report = cost(workload, states, accelerator)
        seconds = report.total_latency_cycles[0] / accelerator.clock_hz
        joules = report.energy_pj[0] * 1e-12
        assert (
            row["energy"] == report.energy_pj[0] == pytest.approx(sum(row["components"].values()))
        )
        assert row["latency_seconds"] == pytest.approx(seconds)
        assert row["power_watts"] == pytest.approx(joules / seconds)
        assert row["edp"] == pytest.approx(report.energy_pj[0] * seconds)
    assert eyeriss["energy_ratio"] == eyeriss["latency_ratio"] == eyeriss["edp_ratio"] == 1
    assert nvdla["energy_ratio"] == pytest.approx(nvdla["energy"] / eyeriss["energy"])
    assert nvdla["edp_ratio"] == pytest.approx(nvdla["energy_ratio"] * nvdla["latency_ratio"])

    assert main(f"{COMPARE} eyeriss-like,nvdla-small".format(here=here).split()) == 0
    out = capsys.readouterr().out
    assert "nvdla-small" in out
    assert "inf./s" in out


def test_what_a_device_cannot_run_or_rounds_up_names_the_device(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = _yaml("eyeriss-like", capsys).replace("name: eyeriss-like", "name: narrow")
    (here / "narrow.yaml").write_text(narrow.replace("[2, 3, 4, 5, 6, 7, 8, 16, 32]", "[4, 8]"))
    command = f"{COMPARE} eyeriss-like,{here}/narrow.yaml"
    assert main(command.format(here=here).split()) == 2
    assert "narrow: states.weight_bits: 16.0" in capsys.readouterr().err
    wide, rounded = run_json(f"{command} --bits 5", here, capsys)["accelerators"]
    assert wide["notes"] == []
    assert any("5 to 8" in note for note in rounded["notes"])
    assert main(f"{command} --bits 5".format(here=here).split()) == 0
    assert "narrow: weight_bits rounded up" in capsys.readouterr().out


def test_energies_in_different_units_have_no_ratio(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _yaml("eyeriss-like", capsys).replace("energy_unit: pJ", "energy_unit: MAC")
    (here / "relative.yaml").write_text(text)
    names = f"eyeriss-like,{here}/relative.yaml"
    relative = run_json(f"{COMPARE} {names}", here, capsys)["accelerators"][1]
    assert relative["energy_unit"] == "MAC"
    assert relative["energy_ratio"] is relative["edp_ratio"] is relative["power_watts"] is None
    assert relative["latency_ratio"] == 1


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_shown_as_the_file_that_makes_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(_yaml(name, capsys))
    assert load_accelerator(path) == load_accelerator(name)

    assert main(["accelerators", "--show", name, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["name"] == name
    assert data["clock_hz"] == load_accelerator(name).clock_hz


def _yaml(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["accelerators", "--show", name]) == 0
    return capsys.readouterr().out


def test_the_manual_names_every_field_and_column(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    priced = run_json(EYERISS, here, capsys)
    compared = run_json(f"{COMPARE} eyeriss-like", here, capsys)
    assert set(priced["total"]) <= set(priced["layers"][0])
    named = [*priced, *priced["layers"][0], *compared, *compared["accelerators"][0], *ALIASES]
    # The columns of either axis are told once, with those of the kernel as the example.
    named += [name for name in COLUMNS if not name.endswith(("_height", "_width"))]
    assert [name for name in named if f"`{name}`" not in manual] == []


def test_bare_layers_need_neither_torch_nor_ray(here: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'matplotlib', 'sklearn'): sys.modules[name] = None\n"
        "from search.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for command in (EYERISS, f"{COMPARE} eyeriss-like,nvdla-small"):
        arguments = [*command.format(here=here).split(), "--json"]
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
        assert result.returncode == 0, result.stderr.decode()
        assert json.loads(result.stdout)["level"] == "mid"


BAD = {
    "neither task nor layers": ("cost --accelerator eyeriss-like", "--task: None", "--layers"),
    "layers and task": (f"{EYERISS} --task digits", "--task: 'digits'", "one of them"),
    "layers and config": (f"{EYERISS} --config c.json", "--config: 'c.json'", "one of them"),
    "layers and data": (f"{EYERISS} --data d", "--data: 'd'", "one of them"),
    "layers and weights": (f"{EYERISS} --weights w", "--weights: 'w'", "one of them"),
    "config without task": (
        "cost --accelerator eyeriss-like --config c.json",
        *("--task: None", "name a task"),
    ),
    "config and bits": (
        "cost --task digits --accelerator eyeriss-like --config c.json --bits 8",
        *("--bits: 8", "configuration"),
    ),
    "no bits": (f"{EYERISS} --bits 0", "--bits: 0", "1 to 32"),
    "many bits": (f"{EYERISS} --bits 64", "--bits: 64", "1 to 32"),
    "bits in words": (f"{EYERISS} --bits few", "--bits", "'few'"),
    "level": (f"{EYERISS} --level exact", "--level", "'fine'"),
    "objective": (f"{EYERISS} --objective area", "--objective", "'edp'"),
    "counting": (f"{EYERISS} --counting timeloop", "--counting", "'zigzag'"),
    "no accelerator": ("cost --layers {here}/layers.csv", "--accelerator", "required"),
    "unknown accelerator": (
        "cost --layers {here}/layers.csv --accelerator tpu",
        *("accelerator: 'tpu'", "nvdla-small"),
    ),
    "no such layers": (
        "cost --layers {here}/none.csv --accelerator eyeriss-like",
        *("none.csv", "No such file"),
    ),
    "bad layers": (
        "cost --layers {here}/bad.csv --accelerator eyeriss-like",
        *("bad.csv, line 2, K: '0'", "whole number from 1"),
    ),
    "csv below a file": (f"{EYERISS} --csv {{here}}/bad.csv/x", "--csv", "cannot be written"),
    "output below a file": (
        f"{EYERISS} --output {{here}}/bad.csv/x",
        *("--output", "Not a directory"),
    ),
    "compare: unknown": (
        f"{COMPARE} eyeriss-like,tpu",
        *("--accelerators[1]: 'tpu'", "nvdla-small"),
    ),
    "compare: broken": (f"{COMPARE} {{here}}/broken.yaml", "--accelerators[0].name", "required"),
    "compare: twice": (f"{COMPARE} nvdla-small,nvdla-small", "--accelerators", "once"),
    "compare: nothing": (f"{COMPARE} ,", "--accelerators: ','", "a,b,c"),
    "compare: coarse has no energy": (
        f"{COMPARE} nvdla-small --level coarse",
        *("--level", "'coarse'"),
    ),
    "compare: no network": ("compare --accelerators nvdla-small", "--task: None", "--layers"),
    "show: unknown": ("accelerators --show tpu", "accelerator: 'tpu'", "eyeriss-like"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_bad_input(case: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.csv").write_text("K,C\n0,1\n")
    (here / "broken.yaml").write_text("describe: nothing\n")
    command, *parts = case
    try:
        code = main(command.format(here=here).split())
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("joulecut: error: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err
