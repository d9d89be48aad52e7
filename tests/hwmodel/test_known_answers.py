"""Costs worked out by hand, and the references we can be exact or close on."""

from __future__ import annotations

import pytest
from hwmodel_layers import conv
from hwmodel_layers import network
from hwmodel_layers import with_values

from hwmodel import CostReport
from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel.parts import Array
from hwmodel.parts import Axis

EYERISS = load_accelerator("eyeriss-like")
NVDLA = load_accelerator("nvdla-small")
MAC_PJ = 0.85  # a 16-bit multiply-accumulate on eyeriss-like, the unit of its relative costs


def dense(layer: LayerShape, accelerator=EYERISS, bits: int = 16) -> CostReport:
    workload = network(layer)
    return cost(workload, LayerStates.dense(workload, bits), accelerator)


# Words of 16 bits, dense. Network: inputs C * kernel rows * output rows * row width, weights times
# the columns that hold them, and outputs * (chain * stacked sets) hops. Buffer: every word of
# every operand written once and read once. DRAM: every word once.
#
# kind       stacked  macs     inputs into PEs   weights     sums         buffer              DRAM
BY_HAND = {
    # 3 folds of 11 output rows; 4 sets of 3 rows stacked, 4 channels in turn: 16 in one pass
    "conv": (
        conv(16, 16, 32),
        16 * 16 * 9 * 1024,
        16 * 3 * 32 * 34 + 2304 * 11 + 16384 * 12,
        2 * (18496 + 2304 + 16384),
        18496 + 2304 + 16384,
    ),
    # 12 channels in turn, 3 sets stacked: 32 channels in one pass
    "1x1": (
        conv(32, 16, 8, kernel=1),
        32 * 16 * 64,
        32 * 8 * 8 + 512 * 8 + 1024 * 3,
        2 * (2048 + 512 + 1024),
        2048 + 512 + 1024,
    ),
    # nothing to stack: one input channel a group
    "depthwise": (
        conv(8, 8, 8, groups=8),
        8 * 9 * 64,
        8 * 3 * 8 * 10 + 72 * 8 + 512 * 3,
        2 * (800 + 72 + 512),
        800 + 72 + 512,
    ),
    # 8 channels a group: 4 in turn, 2 sets stacked
    "grouped": (
        conv(16, 8, 8, groups=2),
        8 * 8 * 9 * 64,
        16 * 3 * 8 * 10 + 576 * 8 + 512 * 6,
        2 * (1600 + 576 + 512),
        1600 + 576 + 512,
    ),
    # 3 rows and columns of 5, two apart: a row of 8 outputs reads 12 columns of 12
    "dilated": (
        LayerShape("conv", 16, 16, 12, 12, 8, 8, 3, 3, dilation=(2, 2)),
        16 * 16 * 9 * 64,
        16 * 3 * 8 * 12 + 2304 * 8 + 1024 * 12,
        2 * (2304 + 2304 + 1024),
        2304 + 2304 + 1024,
    ),
    # a row of 4 outputs reads 9 columns of 9
    "strided": (
        LayerShape("conv", 16, 16, 9, 9, 4, 4, 3, 3, stride=(2, 2)),
        16 * 16 * 9 * 16,
        16 * 3 * 4 * 9 + 2304 * 4 + 256 * 12,
        2 * (1296 + 2304 + 256),
        1296 + 2304 + 256,
    ),
    # weights serve all four images
    "batch": (
        LayerShape("fc", 64, 10, batch=4),
        4 * 640,
        4 * 64 + 640 + 4 * 10 * 6,
        2 * (4 * 64 + 640 + 4 * 10),
        4 * 64 + 640 + 4 * 10,
    ),
    # 12 channels in turn, 6 sets stacked: 64 channels in one pass
    "linear": (
        LayerShape("fc", 64, 10),
        640,
        64 + 640 + 10 * 6,
        2 * (64 + 640 + 10),
        64 + 640 + 10,
    ),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_dense_16_bit_energy_is_what_the_hand_computes(kind: str) -> None:
    layer, macs, network_words, buffer_words, dram_words = BY_HAND[kind]
    units = {name: pj.item() / MAC_PJ for name, pj in dense(layer).component_pj.items()}
    assert units["mac"] == pytest.approx(macs)
    # Four accesses of 16 bits (weight, input, sum in and out) and the two operands' zero flags.
    assert units["register_file"] == pytest.approx(macs * (4 + 2 / 16))
    assert units["array_network"] == pytest.approx(2 * network_words)
    assert units["buffer"] == pytest.approx(6 * buffer_words)
    assert units["dram"] == pytest.approx(200 * dram_words)


def test_partial_sums_of_a_second_pass_go_through_the_buffer() -> None:
    # 32 channels, 4 in turn in 4 stacked sets: two passes, so one write and one read more.
    words = dense(conv(32, 16, 8)).component_pj["buffer"].item() / (6 * MAC_PJ)
    assert words == pytest.approx(2 * (3200 + 4608 + 1024) + 2 * 1024)


def test_mac_array_energy_is_what_the_hand_computes() -> None:
    # 8 -> 8 channels, 3x3, 4x4 outputs, 8 bits: one vector and one cell each, 144 cycles, after the
    # start-up and two cycles for each of the 36 atoms of inputs and 80 of weights.
    report = dense(conv(8, 8, 4), NVDLA, bits=8)
    pj = {name: values.item() for name, values in report.component_pj.items()}
    macs = 8 * 8 * 9 * 16
    vectors, weights, sums = 144 * 64, 576 * 8, 8 * 16 * 9
    inputs, padded_weights, outputs = 36 * 8 * 8, 640 * 8, 16 * 8 * 8
    assert report.latency_cycles.item() == 144 + 127 + 2 * (36 + 80)
    assert report.utilization.item() == 1
    assert pj["mac"] == pytest.approx(macs * (0.2 + 34 * 0.003125))
    assert pj["register_file"] == pytest.approx((macs * 18 + sums * 68) * 0.86 / 16)
    assert pj["array_network"] == pytest.approx((vectors + weights) * 1.72 / 16)
    # Filled once with inputs and weights, then read; outputs go past it.
    assert pj["buffer"] == pytest.approx((vectors + 2 * weights + inputs) * 8.075 / 16)
    assert pj["dram"] == pytest.approx((inputs + padded_weights + outputs) * 8)


@pytest.mark.parametrize("dataflow", ["weight_stationary", "output_stationary"])
def test_loops_on_one_axis_share_its_multipliers(dataflow: str) -> None:
    shared = Axis(name="all", size=16, unroll=("in_channels", "out_channels", "out_width"))
    array = Array(dataflow=dataflow, axes=(shared,))
    nvdla = load_accelerator("nvdla-small").model_copy(update={"array": array})
    layer = conv(16, 32, 16)
    report = dense(layer, nvdla, bits=8)
    assert report.utilization[0, 0] == 1
    assert report.latency_cycles[0, 0] >= layer.macs / 16


def test_first_layer_of_the_mappers_is_37184_words_from_dram() -> None:
    # nn_dataflow, ZigZag, Interstellar and AccelForge agree, padded input counted as fetched.
    assert dense(conv(16, 16, 32)).dram_bytes.item() == 2 * 37184
    # Padding needs no fetching: 16 * (34 * 34 - 32 * 32) words fewer for the layer itself.
    padded = LayerShape("conv", 16, 16, 32, 32, 32, 32, 3, 3, padding=(1, 1))
    assert dense(padded).dram_bytes.item() == 2 * (37184 - 2112)


def test_first_layer_of_the_mappers_costs_what_they_say() -> None:
    # Four tools give 18.3 to 21.7 million MAC units.
    assert 18.3e6 < dense(conv(16, 16, 32)).energy_pj.item() / MAC_PJ < 21.7e6


# Layers given to two mappers on this array: K, C, output side, kernel; words each layer has to
# cross DRAM once and our ratio to them; cycles of nn_dataflow and our ratio to them; energy of the
# better of nn_dataflow and ZigZag in MAC units.
MAPPERS = [
    (16, 16, 32, 3, 37184, 1.0, 24576, 0.75, 19.807e6),  # we fold 32 output rows in 3, not 4
    (64, 64, 56, 3, 452864, 1.475, 688128, 1.0, 733.3e6),  # inputs twice; ZigZag's ratio is 1.90
    (256, 256, 14, 3, 705536, 1.093, 688128, 1.0, 741.6e6),  # sums of 100 KB: inputs twice
    (64, 64, 8, 3, 47360, 1.0, 24576, 1.0, 21.06e6),
    (64, 256, 56, 1, 1019904, 1.0, 308224, 1.0, 444.9e6),
    (16, 3, 32, 3, 20284, 1.0, 4608, 0.75, 6.536e6),
]


@pytest.mark.parametrize("row", MAPPERS)
def test_layers_of_the_mappers(row) -> None:
    k, c, side, kernel, words, word_ratio, cycles, cycle_ratio, units = row
    report = dense(conv(c, k, side, kernel))
    computing = report.macs.item() / (report.utilization.item() * EYERISS.array.multipliers)
    assert report.dram_bytes.item() / (2 * words) == pytest.approx(word_ratio, abs=0.001)
    assert computing / cycles == pytest.approx(cycle_ratio)
    # One mapping a layer in closed form: dearer than the best found by search, by up to 15 %.
    assert 1 < report.energy_pj.item() / MAC_PJ / units < 1.15


# Eyeriss chip, AlexNet, batch 4, processing milliseconds (JSSC 2017, table V).
ALEXNET = [
    (3, 96, 227, 55, 11, 4, 1, 16.5),
    (96, 256, 31, 27, 5, 1, 2, 39.2),
    (256, 384, 15, 13, 3, 1, 1, 21.8),
    (384, 384, 15, 13, 3, 1, 2, 16.0),
    (384, 256, 15, 13, 3, 1, 2, 10.0),
]


@pytest.mark.parametrize("row", ALEXNET)
def test_eyeriss_latency_is_close_to_the_chip(row) -> None:
    c, k, in_side, out_side, kernel, stride, groups, milliseconds = row
    shape = (in_side, in_side, out_side, out_side, kernel, kernel)
    layer = LayerShape("conv", c, k, *shape, stride=(stride, stride), groups=groups, batch=4)
    modelled = 1000 * dense(layer).latency_cycles.item() / EYERISS.clock_hz
    assert -0.17 < modelled / milliseconds - 1 < -0.03


def test_a_layer_larger_than_the_buffer_is_fetched_again() -> None:
    # 36,864 words of weights are two blocks of half the 55,296-word buffer: inputs cross twice.
    inputs, weights, outputs = 64 * 58 * 58, 36864, 64 * 56 * 56
    once = with_values(LayerStates.dense(network(conv(64, 64, 56))), weight_bits=8)
    assert dense(conv(64, 64, 56)).dram_bytes.item() == 2 * (2 * inputs + weights + outputs)
    report = cost(network(conv(64, 64, 56)), once, EYERISS)
    assert report.dram_bytes.item() == 2 * (inputs + weights / 2 + outputs)


def test_blocks_of_partial_sums_save_fetches_of_either_operand() -> None:
    # Half of the buffer is 27,648 words: weights are 14 blocks, inputs 4, sums 2. Two blocks of
    # sums let either operand cross twice; here the inputs are smaller, below the weights.
    inputs, weights, outputs = 320 * 18 * 18, 125 * 320 * 9, 125 * 256
    report = dense(conv(320, 125, 16))
    assert report.dram_bytes.item() == 2 * (2 * inputs + weights + outputs)
    inputs, weights, outputs = 1280 * 30 * 30, 64 * 1280 * 9, 64 * 28 * 28
    report = dense(conv(1280, 64, 28))
    assert report.dram_bytes.item() == 2 * (inputs + 2 * weights + outputs)


def test_coarse_counts_by_hand() -> None:
    workload = network(conv(16, 8, 8))
    states = LayerStates.dense(workload, 8)
    states = with_values(states, weight_density=0.5, weight_bits=4, out_channels=4)
    report = cost(workload, states, EYERISS, level="coarse")
    macs = 16 * 4 * 9 * 64
    assert report.macs.item() == macs
    assert report.effective_macs.item() == macs / 2
    assert report.total_bops.item() == macs / 2 * 4 * 8
    assert report.parameters.item() == 16 * 4 * 9 / 2
    assert report.model_bytes.item() == 16 * 4 * 9 * (4 * 0.5 + 1) / 8
    assert report.activation_bytes.item() == 16 * 100 + 4 * 64
