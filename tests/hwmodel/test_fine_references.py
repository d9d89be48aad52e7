"""Never worse than nn_dataflow or ZigZag on the array of ``eyeriss-relative``.

``data/mappers.csv``: six layers, as published with the array. ``data/mappers_more.csv``: others,
K and C of one group. nn_dataflow (commit 198a527, Python 3.11, sympy 1.14): ``MapStrategyEyeriss``
and ``gen_loopblocking`` for one layer without buffer bypass, goal ``e``, times groups. ZigZag
3.9.1: the stages of ``run_zigzag`` in benchmarks/hardware.py, the better of with and without its
hints for the unrolling. Empty where a tool refuses a layer or was not run.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hwmodel import CostReport
from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator

DATA = Path(__file__).parent / "data"
ROWS = [
    {"stride": "1", "groups": "1", **row}
    for name in ("mappers.csv", "mappers_more.csv")
    for row in csv.DictReader((DATA / name).open())
]


def name_of(row: dict[str, str]) -> str:
    return "-".join(row[key] for key in ("K", "C", "OFM", "F", "N", "stride", "groups"))


def workload_of(row: dict[str, str]) -> Workload:
    """A layer whose padding is part of its input: both tools count it as fetched."""
    out, channels, side, kernel, batch, stride, groups = (
        int(row[key]) for key in ("K", "C", "OFM", "F", "N", "stride", "groups")
    )
    inside = (side - 1) * stride + kernel
    layer = LayerShape(
        "layer", channels * groups, out * groups, inside, inside, side, side, kernel, kernel,
        (stride, stride), groups=groups, batch=batch,
    )  # fmt: skip
    return Workload("one", (layer,))


def fine(row: dict[str, str], **options: str) -> CostReport:
    workload = workload_of(row)
    states = LayerStates.dense(workload, bits=16)
    accelerator = load_accelerator("eyeriss-relative")
    return cost(workload, states, accelerator, "fine", **options)  # type: ignore[arg-type]


def needed_words(row: dict[str, str]) -> float:
    """Words that must cross DRAM. ZigZag's counts, rounded, are sometimes a little less."""
    layer = workload_of(row).layers[0]
    inputs = layer.in_channels * layer.in_height * layer.in_width
    outputs = layer.out_channels * layer.out_height * layer.out_width
    return layer.weights + layer.batch * (inputs + outputs)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_dram_words_are_not_above_the_better_tool(row: dict[str, str]) -> None:
    theirs = [float(row[key]) for key in ("nnd_dram_words", "zigzag_dram_words") if row[key]]
    assert fine(row).dram_words[0, 0] <= max(min(theirs), needed_words(row))


@pytest.mark.parametrize("row", [row for row in ROWS if row["nnd_total"]], ids=name_of)
def test_counted_like_nn_dataflow(row: dict[str, str]) -> None:
    ours = fine(row, counting="nn_dataflow")
    assert ours.energy_pj[0] <= float(row["nnd_total"])
    assert ours.latency_cycles[0, 0] == float(row["nnd_cycles"])
    fastest = fine(row, objective="latency")
    assert fastest.latency_cycles[0, 0] <= float(row["nnd_cycles"])


@pytest.mark.parametrize("row", [row for row in ROWS if row["zigzag_total"]], ids=name_of)
def test_counted_like_zigzag(row: dict[str, str]) -> None:
    assert fine(row, counting="zigzag").energy_pj[0] <= float(row["zigzag_total"])
