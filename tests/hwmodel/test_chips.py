"""Against chips, RTL and simulators whose figures are published; sources are in ``data/``."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hwmodel_layers import network

from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel.accelerator import Accelerator

DATA = Path(__file__).parent / "data"


def rows_of(file: str) -> list[dict[str, str]]:
    lines = [line for line in (DATA / file).read_text().splitlines() if line[:1] != "#"]
    return list(csv.DictReader(lines))


SYSTOLIC = load_accelerator("systolic-16x16")


def output_stationary() -> Accelerator:
    data = SYSTOLIC.model_dump()
    data["array"]["dataflow"] = "output_stationary"
    data["array"]["axes"][0]["unroll"] = ["out_width"]
    return Accelerator.model_validate(data)


@pytest.mark.parametrize("row", rows_of("scalesim_16x16.csv"))
def test_systolic_products_take_the_cycles_of_scale_sim(row: dict[str, str]) -> None:
    accelerator = SYSTOLIC if row["dataflow"] == "weight_stationary" else output_stationary()
    positions, outputs, reduction = int(row["M"]), int(row["N"]), int(row["K"])
    product = network(
        LayerShape("product", reduction, outputs, in_width=positions, out_width=positions)
    )
    report = cost(product, LayerStates.dense(product, 8), accelerator)
    computing = report.macs / (report.utilization * accelerator.array.multipliers)
    assert computing.item() == pytest.approx(int(row["cycles"]) + 1)


def test_systolic_tile_fills_and_drains() -> None:
    # 16 channels times 9 kernel positions are 9 tiles of rows: each shifts its weights in (16),
    # streams 64 positions, and drains the far corner (16 + 16 - 2).
    layer = LayerShape("conv", 16, 16, 8, 8, 8, 8, 3, 3, padding=(1, 1))
    states = LayerStates.dense(network(layer), 8)
    assert cost(network(layer), states, SYSTOLIC).latency_cycles.item() == 9 * (16 + 64 + 30)


def test_depthwise_uses_one_column_of_a_systolic_array() -> None:
    layer = LayerShape("dw", 8, 8, 8, 8, 8, 8, 3, 3, padding=(1, 1), groups=8)
    report = cost(network(layer), LayerStates.dense(network(layer), 8), SYSTOLIC)
    assert report.latency_cycles.item() == 8 * (16 + 64 + 30)
    assert np.isclose(report.utilization.item(), 9 * 64 / (256 * 110))
