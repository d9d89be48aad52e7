"""The fine level knows what the mid level knows: it searches, so it costs no more."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hwmodel_layers import network
from hwmodel_layers import with_values
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from hwmodel import Accelerator
from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import VectorOperation
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel import preset_names

LAYERS = (
    LayerShape("first", 3, 16, 16, 16, 16, 16, 3, 3, padding=(1, 1)),
    LayerShape("dense", 16, 40, 14, 14, 14, 14, 3, 3, padding=(1, 1)),
    LayerShape("wide", 64, 64, 30, 30, 28, 28, 3, 3),
    LayerShape("strided", 24, 24, 28, 28, 14, 14, 3, 3, (2, 2), (1, 1)),
    LayerShape("dilated", 16, 16, 16, 16, 16, 16, 3, 3, padding=(2, 2), dilation=(2, 2)),
    LayerShape("depthwise", 32, 32, 16, 16, 16, 16, 3, 3, padding=(1, 1), groups=32),
    LayerShape("grouped", 32, 48, 12, 12, 12, 12, 3, 3, padding=(1, 1), groups=4),
    LayerShape("pointwise", 40, 96, 20, 20, 20, 20),
    LayerShape("linear", 256, 100),
    LayerShape("batch", 16, 16, 10, 10, 10, 10, 3, 3, padding=(1, 1), batch=4),
)
NETWORK = dataclasses.replace(
    network(*LAYERS),
    operations=(VectorOperation("add", 3, 196, reads=(2,)), VectorOperation("requantize", 1, 196)),
)
COMPRESSED = with_values(LayerStates.dense(NETWORK, 8), weight_density=0.5, activation_density=0.7)

every_preset = pytest.mark.parametrize("name", preset_names())


@every_preset
def test_the_best_mapping_costs_no_more_than_the_closed_form(name: str) -> None:
    accelerator = load_accelerator(name)
    mid = cost(NETWORK, COMPRESSED, accelerator)
    fine = cost(NETWORK, COMPRESSED, accelerator, "fine")
    assert np.all(fine.layer_energy_pj <= mid.layer_energy_pj * (1 + 1e-9))
    assert np.all(fine.dram_words <= mid.dram_words * (1 + 1e-9))
    np.testing.assert_allclose(fine.component_pj["mac"], mid.component_pj["mac"])
    assert set(fine.component_pj) == set(mid.component_pj)
    if "vector" in mid.component_pj:
        np.testing.assert_allclose(fine.component_pj["vector"], mid.component_pj["vector"])


@every_preset
def test_the_fine_report_adds_up(name: str) -> None:
    report = cost(NETWORK, COMPRESSED, load_accelerator(name), "fine")
    parts = sum(report.component_pj.values())
    np.testing.assert_allclose(report.layer_energy_pj, parts)
    np.testing.assert_allclose(report.energy_pj, parts.sum(axis=1))
    for memory in load_accelerator(name).memories:
        if memory.role == "register_file":  # one price for reads and writes, so words have one
            words = [report.traffic_words[memory.name, operand] for operand in memory.operands]
            energy = sum(words) * memory.read_energy_per_word
            np.testing.assert_allclose(report.component_pj["register_file"], energy)
    assert np.all((report.utilization > 0) & (report.utilization <= 1 + 1e-9))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_fused_multipliers_are_as_fast_as_at_the_mid_level(bits: int) -> None:
    layer = network(LayerShape("conv", 64, 64, 10, 10, 8, 8, 3, 3))
    fusible = load_accelerator("bitfusion-like")
    states = LayerStates.dense(layer, bits)
    levels = [cost(layer, states, fusible), cost(layer, states, fusible, "fine", "latency")]
    assert levels[1].utilization == pytest.approx(levels[0].utilization)


def on_axis(loop: str) -> dict[str, object]:
    return {"name": loop, "size": 8, "unroll": [loop]}


@pytest.mark.parametrize(
    "vector",
    [
        dict(size=9, unroll=["kernel_height", "kernel_width"]),
        dict(size=2, unroll=["kernel_height", "kernel_width"]),
        dict(size=3, unroll=["kernel_width"]),
        dict(size=3, unroll=["kernel_height"]),
        dict(size=8, unroll=["in_channels", "kernel_width"]),
        dict(size=6, unroll=["in_channels", "kernel_height"]),
        dict(size=16, unroll=["in_channels", "kernel_height", "kernel_width"]),
    ],
    ids=lambda vector: f"{vector['size']} {' '.join(vector['unroll'])}",
)
@pytest.mark.parametrize("axes", [["out_channels"], ["in_channels", "out_channels"]], ids=len)
def test_a_vector_takes_of_the_kernel_what_the_mapper_lays_on_it(
    vector: dict[str, object], axes: list[str]
) -> None:
    data = load_accelerator("nvdla-small").model_dump()
    loops = [on_axis(loop) for loop in axes]
    data["array"] = dict(dataflow="weight_stationary", axes=loops, vector=vector)
    data["memories"][0]["words"] = {"weight": 16, "input": 16, "output": 16}
    accelerator = Accelerator.model_validate(data)
    layers = network(*(LAYERS[index] for index in (0, 1, 5, 7)))
    states = LayerStates.dense(layers, 8)
    mid = cost(layers, states, accelerator)
    fine = cost(layers, states, accelerator, "fine", "latency")
    np.testing.assert_allclose(mid.utilization, fine.utilization)


@pytest.mark.parametrize(
    "at_most", [{}, {"out_height": 4}, {"out_height": 4, "out_width": 4}], ids=str
)
def test_an_axis_of_positions_takes_as_many_as_it_may(at_most: dict[str, int]) -> None:
    data = load_accelerator("nvdla-small").model_dump()
    cells = {"name": "cells", "size": 64, "unroll": ["out_height", "out_width"]}
    data["array"] = dict(dataflow="output_stationary", axes=[cells | {"at_most": at_most}])
    accelerator = Accelerator.model_validate(data)
    layers = network(LayerShape("wide", 4, 6, 16, 16, 9, 16, 3, 3, padding=(1, 1)))
    states = LayerStates.dense(layers, 8)
    mid = cost(layers, states, accelerator)
    fine = cost(layers, states, accelerator, "fine", "latency")
    np.testing.assert_allclose(mid.utilization, fine.utilization)


@pytest.mark.parametrize("of_kernel", [[], ["kernel_height"], ["kernel_width"]], ids=str)
def test_systolic_rows_take_of_the_kernel_what_the_mapper_lays_on_them(
    of_kernel: list[str],
) -> None:
    data = load_accelerator("systolic-16x16").model_dump()
    data["array"]["axes"][0]["unroll"] = ["in_channels", *of_kernel]
    accelerator = Accelerator.model_validate(data)
    layers = network(LAYERS[0], LAYERS[5], LAYERS[7])
    states = LayerStates.dense(layers, 8)
    mid = cost(layers, states, accelerator)
    fine = cost(layers, states, accelerator, "fine", "latency")
    np.testing.assert_allclose(mid.utilization, fine.utilization)


@pytest.mark.parametrize(
    "name", ["eyeriss-like", "nvdla-small", "systolic-16x16", "bitfusion-like"]
)
@settings(max_examples=5)
@given(
    channels=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    kept=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    side=st.integers(1, 20),
    bits=st.sampled_from((2, 4, 8)),
    density=st.floats(0.1, 1),
)
def test_fewer_bits_zeros_and_channels_never_cost_more_at_the_fine_level(
    name: str,
    channels: tuple[int, int],
    kept: tuple[float, float],
    side: int,
    bits: int,
    density: float,
) -> None:
    accelerator = load_accelerator(name)
    layer = network(LayerShape("conv", *channels, side + 2, side + 2, side, side, 3, 3))
    dense = LayerStates.dense(layer, 8)
    some = [max(1, int(count * share)) for count, share in zip(channels, kept, strict=True)]
    smaller = with_values(
        dense,
        in_channels=some[0],
        out_channels=some[1],
        weight_bits=bits,
        weight_density=density,
    )
    before, after = (cost(layer, states, accelerator, "fine") for states in (dense, smaller))
    assert after.energy_pj[0] <= before.energy_pj[0] * (1 + 1e-9)


@pytest.mark.parametrize("name", ["eyeriss-like", "nvdla-small", "bitfusion-like"])
@pytest.mark.parametrize("key", ["capacity_bytes", "bytes_per_cycle"])
def test_more_room_and_bandwidth_never_cost_more_at_the_fine_level(name: str, key: str) -> None:
    data = load_accelerator(name).model_dump()
    for memory in data["memories"]:
        if memory["role"] != "register_file" and memory[key]:
            memory[key] *= 3
    larger = Accelerator.model_validate(data)
    layers = network(LAYERS[1], LAYERS[2])
    states = LayerStates.dense(layers, 8)
    before = cost(layers, states, load_accelerator(name), "fine")
    after = cost(layers, states, larger, "fine")
    assert np.all(after.layer_energy_pj <= before.layer_energy_pj * (1 + 1e-9))


@pytest.mark.parametrize("name", ["eyeriss-like", "eyeriss", "systolic-16x16"])
def test_each_objective_is_best_at_its_own(name: str) -> None:
    accelerator = load_accelerator(name)
    layers = network(LAYERS[1], LAYERS[7])
    states = LayerStates.dense(layers, 8)
    energy, latency, edp = (
        cost(layers, states, accelerator, "fine", objective)
        for objective in ("energy", "latency", "edp")
    )
    for other in (latency, edp):
        assert np.all(energy.layer_energy_pj <= other.layer_energy_pj * (1 + 1e-9))
    for other in (energy, edp, cost(layers, states, accelerator)):
        assert np.all(latency.latency_cycles <= other.latency_cycles * (1 + 1e-9))
    for other in (energy, latency):
        product = other.layer_energy_pj * other.latency_cycles
        assert np.all(edp.layer_energy_pj * edp.latency_cycles <= product * (1 + 1e-9))
