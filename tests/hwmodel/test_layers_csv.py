"""Bare layers in a CSV file: what the columns mean, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hwmodel import InputError
from hwmodel import LayerShape
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel import read_layers

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "net.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_columns_of_a_mapper_table(tmp_path: Path) -> None:
    path = written(
        tmp_path, "K,C,OFM,F,N,mac,nnd_cpu_s,spatial", "16,3,32,3,2,442368,0.05,K 8) (C 3)"
    )
    workload, states = read_layers(path)
    assert workload.name == "net"
    # The border is part of the input, so it is fetched: 34 = 32 + 3 - 1 on either side.
    assert workload.layers == (LayerShape("layer0", 3, 16, 34, 34, 32, 32, 3, 3, batch=2),)
    assert workload.layers[0].macs == 2 * 442368
    assert states.weight_bits == states.activation_bits == states.output_bits == 16
    assert states.weight_density == states.activation_density == 1


def test_the_long_form(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "name,in_channels,out_channels,height,width,kernel_height,kernel_width,stride,"
        "padding_height,padding_width,dilation,groups,batch,weight_bits,activation_bits,"
        "weight_density,density",
        "dw,8,8,20,30,5,3,2,4,0,2,8,4,4,6,0.25,0.5",
        "fc,64,10,,,,,,,,,,,,,,",
    )
    workload, states = read_layers(path, bits=8)
    # (20 + 2*4 - 9) // 2 + 1 = 10 rows; (30 - 5) // 2 + 1 = 13 columns.
    assert workload.layers == (
        LayerShape("dw", 8, 8, 20, 30, 10, 13, 5, 3, (2, 2), (4, 0), (2, 2), 8, 4),
        LayerShape("fc", 64, 10),
    )
    assert states.weight_bits.tolist() == [[4, 8]]
    assert states.activation_bits.tolist() == states.output_bits.tolist() == [[6, 8]]
    assert states.weight_density.tolist() == [[0.25, 1]]
    assert states.activation_density.tolist() == [[0.5, 1]]


def test_either_name_and_either_form_says_the_same(tmp_path: Path) -> None:
    texts = (
        ("K,C,OFM,F,stride,padding", "16,8,7,3,2,1"),
        ("layer,out_channels,in_channels,height,width,kernel,stride,padding", ",16,8,13,13,3,2,1"),
        ("\ufeffK, C, height, width, F, stride, padding", "", " 16.0, 8, 13, 13, 3, 2, 1", ""),
    )
    read = [read_layers(written(tmp_path, *text))[0] for text in texts]
    assert read[0] == read[1] == read[2]
    assert read[0].layers[0].out_height == 7


def test_layers_are_priced_each_alone(tmp_path: Path) -> None:
    header = "K,C,OFM,F,N"
    rows = ("16,16,32,3,1", "64,64,8,3,1")
    accelerator = load_accelerator("eyeriss-like")
    together = cost(*read_layers(written(tmp_path, header, *rows)), accelerator)
    for index, row in enumerate(rows):
        alone = cost(*read_layers(written(tmp_path, header, row)), accelerator)
        assert alone.energy_pj[0] == together.layer_energy_pj[0, index]


def test_pricing_a_file_needs_neither_torch_nor_ray_nor_pandas(tmp_path: Path) -> None:
    path = written(tmp_path, "K,C,OFM,F,N", "16,16,32,3,1")
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'pandas', 'matplotlib', 'rich'): sys.modules[name] = None\n"
        "from hwmodel import cost, load_accelerator, read_layers\n"
        f"workload, states = read_layers({str(path)!r})\n"
        "report = cost(workload, states, load_accelerator('eyeriss-like'))\n"
        "print(report.energy_pj[0], report.macs.sum())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    energy, macs = map(float, result.stdout.split())
    assert macs == 2359296
    assert np.isfinite(energy) and energy > macs


GOOD = "in_channels,out_channels,height,width,kernel,padding,density,bits"

BAD = {
    "no such file": (None, "layers", "No such file"),
    "empty": ("", "header", "in_channels"),
    "no rows": ("K,C,OFM,F,N\n", "layers", "a line for each layer"),
    "not text": ("\udcff\udcfe", "layers", "CSV"),
    "missing column": ("K,OFM,F,N\n1,1,1,1", "header", "in_channels (or C) is required"),
    "misspelt column": ("K,C,heigth,width\n1,1,1,1", "column: 'heigth'", "did you mean height?"),
    "column twice": ("K,C,out_channels\n1,1,1", "column: 'out_channels'", "once"),
    "both forms": ("K,C,OFM,width,height\n1,1,1,1,1", "column: 'OFM'", "height and width"),
    "height without width": ("K,C,height,F\n1,1,1,1", "line 2, width", "required"),
    "short line": ("K,C,OFM\n1,1,1\n1,1", "line 3: '1,1'", "3"),
    "no kernel": ("K,C,OFM,N\n1,1,1,1", "line 2, kernel: None", "required"),
    "no sides": ("K,C,F,N\n1,1,1,1", "line 2, height: None", "required"),
    "empty side": ("K,C,OFM,F\n1,1,,1", "line 2, OFM: None", "required"),
    "nothing given": ("K,C\n4,", "line 2, C: None", "required"),
    "name twice": ("name,K,C\na,1,1\na,2,2", "line 3, name: 'a'", "once"),
    "not a number": (f"{GOOD}\n1,1,9,9,three,0,1,8", "line 2, kernel: 'three'", "number"),
    "zero": (f"{GOOD}\n0,1,9,9,3,0,1,8", "line 2, in_channels: '0'", "from 1"),
    "half a channel": (f"{GOOD}\n1.5,1,9,9,3,0,1,8", "line 2, in_channels: '1.5'", "whole"),
    "NaN": (f"{GOOD}\n1,nan,9,9,3,0,1,8", "line 2, out_channels: 'nan'", "number"),
    "infinite": (f"{GOOD}\n1,1,inf,9,3,0,1,8", "line 2, height: 'inf'", "number"),
    "huge": (f"{GOOD}\n1,1,1e400,9,3,0,1,8", "line 2, height: '1e400'", "number"),
    "too large": (f"{GOOD}\n1,1,1e12,9,3,0,1,8", "line 2, height: '1e12'", "2147483647"),
    "negative padding": (f"{GOOD}\n1,1,9,9,3,-1,1,8", "line 2, padding: '-1'", "from 0"),
    "density above 1": (f"{GOOD}\n1,1,9,9,3,0,1.1,8", "line 2, density: '1.1'", "0 to 1"),
    "density below 0": (f"{GOOD}\n1,1,9,9,3,0,-0.1,8", "line 2, density: '-0.1'", "0 to 1"),
    "density NaN": (f"{GOOD}\n1,1,9,9,3,0,nan,8", "line 2, density: 'nan'", "number"),
    "no bits": (f"{GOOD}\n1,1,9,9,3,0,1,0", "line 2, bits: '0'", "1 to 32"),
    "large kernel": (f"{GOOD}\n1,1,9,9,12,1,1,8", "line 2, kernel: 12", "input of 9"),
    "padding beyond the input": ("K,C,OFM,F,padding\n1,1,1,1,1", "line 2, padding: 1", "nothing"),
    "groups": ("K,C,groups\n4,3,2", "line 2, C: 3", "multiple of groups=2"),
}


@pytest.mark.parametrize(("text", "field", "allowed"), BAD.values(), ids=BAD.keys())
def test_bad_files(tmp_path: Path, text: str | None, field: str, allowed: str) -> None:
    path = tmp_path / "net.csv"
    if text is not None:
        path.write_text(text, errors="surrogateescape")
    with pytest.raises(InputError) as caught:
        read_layers(path)
    line = str(caught.value)
    assert field in line
    assert allowed in line
    assert "\n" not in line
    assert line.count(field) == 1


@pytest.mark.parametrize("bits", [0, 33])
def test_bad_default_width(tmp_path: Path, bits: int) -> None:
    with pytest.raises(InputError, match=f"bits: {bits}"):
        read_layers(written(tmp_path, "K,C", "1,1"), bits=bits)
