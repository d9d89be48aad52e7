"""What narrow operands and zeros save where the hardware has something for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hwmodel_layers import conv
from hwmodel_layers import network
from hwmodel_layers import with_values
from hypothesis import given
from hypothesis import strategies as st

from hwmodel import Accelerator
from hwmodel import InputError
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel.compression import DENSE
from hwmodel.compression import skipping_share
from hwmodel.compression import stored_bits
from hwmodel.parts import OperandSparsity

LAYER = network(conv(64, 64, 14))
NVDLA = load_accelerator("nvdla-small")
NVDLA = NVDLA.model_copy(  # which waits for nothing
    update={
        "array": NVDLA.array.model_copy(update={"whole_input_first": False, "startup_cycles": 0.0})
    }
)


def with_sparsity(**operands: object) -> Accelerator:
    return Accelerator.model_validate(NVDLA.model_dump() | {"sparsity": operands})


def with_precision(**precision: object) -> Accelerator:
    widths = dict(weight_bits=[2, 4, 8, 16], activation_bits=[2, 4, 8, 16], accumulator_bits=32)
    return Accelerator.model_validate(NVDLA.model_dump() | {"precision": widths | precision})


def cycles(accelerator: Accelerator, **values: float) -> float:
    """Cycles of the array; DRAM is fast enough not to hide them."""
    memories = tuple(m.model_copy(update={"bytes_per_cycle": None}) for m in accelerator.memories)
    fast = accelerator.model_copy(update={"memories": memories})
    states = with_values(LayerStates.dense(LAYER, 8), **values)
    return cost(LAYER, states, fast).latency_cycles.item()


DENSE_CYCLES = 8 * 8 * 9 * 14 * 14
"""8 vectors of input channels, 8 groups of filters, 9 kernel positions, 14x14 outputs."""


@pytest.mark.parametrize(
    ("precision", "weight", "activation", "expected"),
    [
        (dict(style="bit_parallel"), 4, 4, 1),
        (dict(style="bit_serial", serial=["weight"]), 4, 8, 4),  # Stripes
        (dict(style="bit_serial", serial=["weight", "input"]), 4, 2, 8),  # Loom
        (dict(style="bit_serial", serial=["input"]), 4, 3, 4),  # rounded up to 4
        # 16 bricks of 2x2 bits (BitFusion): 1 product of 8x8 bits, 4 of 4x4 in a lane
        (dict(style="fusible", bricks=16, brick_bits=2), 8, 8, 1),
        (dict(style="fusible", bricks=16, brick_bits=2), 4, 4, 1 / 4),
        (dict(style="fusible", bricks=16, brick_bits=2), 8, 2, 1 / 4),
        (dict(style="fusible", bricks=16, brick_bits=2), 2, 2, 1 / 8),  # 16, but 64 channels fill 8
        (dict(style="fusible", bricks=16, brick_bits=2), 16, 16, 4),
        (dict(style="fusible", bricks=16, brick_bits=2), 16, 2, 1 / 2),
    ],
)
def test_cycles_of_precision_styles(
    precision: dict, weight: int, activation: int, expected: float
) -> None:
    accelerator = with_precision(**precision)
    taken = cycles(accelerator, weight_bits=weight, activation_bits=activation)
    assert taken == DENSE_CYCLES * expected


def test_gating_saves_energy_and_skipping_also_time() -> None:
    skips = {
        zeros: with_sparsity(weight=dict(zeros=zeros), **window)
        for zeros, window in (
            ("none", {}),
            ("gating", {}),
            ("skipping", dict(lanes=1, window=64)),
        )
    }
    states = with_values(LayerStates.dense(LAYER, 8), weight_density=0.25)
    mac = {z: cost(LAYER, states, a).component_pj["mac"].item() for z, a in skips.items()}
    assert mac["gating"] == mac["skipping"] == mac["none"] / 4
    taken = {z: cycles(a, weight_density=0.25) for z, a in skips.items()}
    assert taken == {"none": DENSE_CYCLES, "gating": DENSE_CYCLES, "skipping": DENSE_CYCLES / 4}


def test_skipping_both_operands_leaves_the_products_of_two_numbers_that_are_not_zero() -> None:
    both = with_sparsity(
        weight=dict(zeros="skipping"), input=dict(zeros="skipping"), lanes=1, window=64
    )
    taken = cycles(both, weight_density=0.5, activation_density=0.5)
    assert taken == DENSE_CYCLES / 4


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("lanes", "window"), [(8, 16), (16, 64), (256, 32)])
def test_lanes_that_wait_take_the_slowest_of_them(density: float, lanes: int, window: int) -> None:
    draws = np.random.default_rng(0).binomial(window, density, (4000, lanes))
    drawn = draws.max(axis=1).mean() / window
    assert skipping_share(np.array(density), lanes, window) == pytest.approx(drawn, rel=0.1)


@given(
    densities=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    lanes=st.integers(1, 10_000),
    window=st.integers(1, 10_000),
)
def test_skipping_is_never_slower_with_more_zeros_nor_than_not_skipping(
    densities: tuple[float, float], lanes: int, window: int
) -> None:
    fewer, more = skipping_share(np.array(sorted(densities)), lanes, window)
    assert 0 <= fewer <= more * (1 + 1e-12)
    assert min(densities) * (1 - 1e-12) <= fewer and more <= 1


PATTERNS = dict(zeros="n_m", patterns=[(2, 4), (1, 4)])


@pytest.mark.parametrize(
    ("n", "m", "expected"),
    [
        (2, 4, 1 / 2),
        (1, 4, 1 / 4),
        (3, 4, 1),  # fits no pattern
        (1, 2, 1 / 2),  # one of two is two of four
        (2, 8, 1),  # all two may be in one half
        (1, 1, 1),
    ],
)
def test_patterns_save_what_the_hardware_has(n: int, m: int, expected: float) -> None:
    hardware = with_sparsity(weight=PATTERNS)
    states = with_values(LayerStates.dense(LAYER, 8), weight_n=n, weight_m=m, weight_density=n / m)
    dense = cost(LAYER, LayerStates.dense(LAYER, 8), hardware).component_pj["mac"]
    assert cost(LAYER, states, hardware).component_pj["mac"] == dense * expected
    taken = cycles(hardware, weight_n=n, weight_m=m, weight_density=n / m)
    assert taken == DENSE_CYCLES * expected
    # The same zeros without a pattern save nothing here.
    assert cycles(hardware, weight_density=n / m) == DENSE_CYCLES


def test_patterns_are_stored_with_the_place_of_each_value() -> None:
    hardware = with_sparsity(weight=PATTERNS | dict(format="n_m", compressed_in=["dram"]))
    states = with_values(LayerStates.dense(LAYER, 8), weight_n=2, weight_m=4, weight_density=0.5)
    weights = 64 * 64 * 9
    assert cost(LAYER, states, hardware).model_bytes.item() == weights / 2 * (8 + 2) / 8


def bits(format_: str, density: float, width: float = 16, **fields: object) -> float:
    zeros = OperandSparsity.model_validate(dict(format=format_, compressed_in=["dram"]) | fields)
    return stored_bits(np.array(width), np.array(density), zeros, DENSE).item()


def test_run_length_bits_are_those_of_eyeriss() -> None:
    # 5 bits of run before each value of 16; runs longer than 31 need an entry with a zero value.
    assert bits("run_length", 0.5, run_bits=5) == pytest.approx(0.5 * 21, rel=1e-6)
    assert bits("run_length", 0.0, run_bits=5) == pytest.approx(21 / 32, rel=1e-6)
    assert bits("run_length", 1.0, run_bits=5) == 16  # dense is smaller
    values = np.random.default_rng(0).random(200_000) < 0.05
    entries, run = 0, 0
    for value in values:
        if value or run == 31:
            entries, run = entries + 1, 0
        else:
            run += 1
    assert bits("run_length", 0.05, run_bits=5) == pytest.approx(
        entries * 21 / values.size, rel=0.02
    )


@pytest.mark.parametrize("format_", ["bitmask", "run_length"])
@given(densities=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_formats_never_need_more_than_dense_nor_more_for_more_zeros(
    format_: str, densities: tuple[float, float]
) -> None:
    fields = dict(run_bits=5) if format_ == "run_length" else {}
    fewer, more = (bits(format_, density, **fields) for density in sorted(densities))
    assert fewer <= more * (1 + 1e-9) <= 16 * (1 + 1e-9)


def test_compressed_maps_cross_dram_smaller_and_are_unpacked_in_the_buffer() -> None:
    packed = with_sparsity(input=dict(format="bitmask", compressed_in=["dram"]))
    states = with_values(LayerStates.dense(LAYER, 8), activation_density=0.5, output_density=0.25)
    report, dense = cost(LAYER, states, packed), cost(LAYER, states, with_sparsity())
    words, all_words = report.traffic_words, dense.traffic_words
    assert words["dram", "input"] / all_words["dram", "input"] == (0.5 * 8 + 1) / 8
    assert words["dram", "output"] / all_words["dram", "output"] == (0.25 * 8 + 1) / 8
    np.testing.assert_array_equal(words["buffer", "input"], all_words["buffer", "input"])


def test_a_map_is_read_as_wide_as_it_was_written() -> None:
    accelerator, (layer,) = load_accelerator("eyeriss-like"), LAYER.layers
    layers = tuple(dataclasses.replace(layer, name=name) for name in ("first", "narrow", "wide"))
    fork = Workload("fork", layers, feeds=((), (0,), (0,)))
    dense = LayerStates.dense(fork, 8)
    narrow = dataclasses.replace(dense, activation_bits=np.array([[8.0, 3, 8]]))
    before, after = cost(fork, dense, accelerator), cost(fork, narrow, accelerator)
    for operand in ("input", "output"):
        moved, all_moved = (each.traffic_words["dram", operand] for each in (after, before))
        np.testing.assert_array_equal(moved, all_moved)
    assert after.component_pj["mac"][0, 1] < before.component_pj["mac"][0, 1]
    asked = dataclasses.replace(narrow, output_bits=np.array([[3.0, 8, 8]]))
    moved = cost(fork, asked, accelerator).traffic_words["dram", "input"]
    np.testing.assert_allclose(moved / before.traffic_words["dram", "input"], [[1, 3 / 8, 1]])


def test_a_map_is_read_with_the_zeros_that_it_was_written_with() -> None:
    accelerator, (layer,) = load_accelerator("eyeriss"), LAYER.layers
    layers = tuple(dataclasses.replace(layer, name=name) for name in ("first", "narrow", "wide"))
    fork = Workload("fork", layers, feeds=((), (0,), (0,)))
    states = dataclasses.replace(
        LayerStates.dense(fork, 16),
        activation_bits=np.array([[16.0, 2, 16]]),
        activation_density=np.array([[1.0, 0.1, 0.5]]),
        output_density=np.array([[0.5, 1, 1]]),
    )
    _, narrow, wide = cost(fork, states, accelerator).traffic_words["dram", "input"][0]
    assert narrow == wide


def test_leakage_and_clock_run_as_long_as_the_layer() -> None:
    eyeriss = load_accelerator("eyeriss")
    report = cost(LAYER, LayerStates.dense(LAYER, 16), eyeriss)
    seconds = report.latency_cycles.item() / 200e6
    assert report.component_pj["leakage"].item() == pytest.approx(30e-3 * seconds * 1e12)
    assert report.component_pj["clock"].item() == pytest.approx(108e-3 * seconds * 1e12)


@pytest.mark.parametrize("memory", ["buffer", "dram"])
def test_latency_is_that_of_the_slowest_memory(memory: str) -> None:
    states = LayerStates.dense(LAYER, 8)
    words = cost(LAYER, states, NVDLA).traffic_words
    moved = 2 * sum(moved for (name, _), moved in words.items() if name == memory).item()
    slow = NVDLA.model_copy(
        update={
            "memories": tuple(
                m.model_copy(update={"bytes_per_cycle": 0.01}) if m.name == memory else m
                for m in NVDLA.memories
            )
        }
    )
    assert cost(LAYER, states, slow).latency_cycles.item() == pytest.approx(moved / 0.01)


def test_bit_operations_by_both_conventions() -> None:
    states = with_values(
        LayerStates.dense(LAYER, 8), weight_bits=4, activation_bits=6, weight_density=0.5
    )
    report = cost(LAYER, states, NVDLA, level="coarse")
    macs = 64 * 64 * 9 * 14 * 14
    assert report.bops.item() == macs / 2 * 4 * 6
    assert report.bops_linear.item() == macs / 2 * 6
    stored = report.weight_bytes + report.activation_bytes
    assert report.arithmetic_intensity.item() == pytest.approx(macs / stored.item())


@pytest.mark.parametrize(
    "values",
    [
        dict(weight_bits=0),
        dict(activation_bits=33),
        dict(output_bits=float("nan")),
        dict(weight_density=1.1),
        dict(activation_density=-0.1),
        dict(output_density=float("nan")),
        dict(in_channels=-1),
        dict(weight_n=0),
        dict(weight_n=3, weight_m=2),
        dict(weight_n=2, weight_m=4),  # its density is 1
    ],
)
def test_states_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(InputError) as caught:
        with_values(LayerStates.dense(LAYER, 8), **values)
    assert caught.value.field.removeprefix("states.") in values
    assert "\n" not in str(caught.value)


def test_fields_left_out_are_dense() -> None:
    states = LayerStates.dense(LAYER, 8)
    given_all = dataclasses.replace(
        states,
        output_density=np.ones((1, 1)),
        weight_n=np.ones((1, 1)),
        weight_m=np.ones((1, 1)),
    )
    assert cost(LAYER, given_all, NVDLA).energy_pj == cost(LAYER, states, NVDLA).energy_pj
