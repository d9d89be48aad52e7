"""What happens between layers: additions and pooling, and feature maps that stay on chip."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hwmodel_layers import conv
from hwmodel_layers import network

from hwmodel import InputError
from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import VectorOperation
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel._shapes import shapes_of
from hwmodel.pricing import Level

THROUGH_DRAM = load_accelerator("systolic-16x16")
ON_CHIP = THROUGH_DRAM.model_copy(update={"feature_maps_stay_on_chip": True})
VECTOR = THROUGH_DRAM.vector_unit

both_levels = pytest.mark.parametrize("level", ["mid", "fine"])

MAP = 16 * 8 * 8
"""Values of every map of the block below, bytes at 8 bits."""


def residual_block(batch: int = 1) -> Workload:
    """A stem, two convolutions, and the sum of stem and second convolution into a last one."""
    layer = LayerShape("conv", 16, 16, 8, 8, 8, 8, 3, 3, padding=(1, 1), batch=batch)
    layers = tuple(dataclasses.replace(layer, name=f"layer{i}") for i in range(4))
    return Workload(
        "block",
        layers,
        feeds=((), (0,), (1,), (0, 2)),
        operations=(VectorOperation("add", 2, 64 * batch, reads=(0,)),),
        sources=((), (0,), (1,), (2,)),
    )


@both_levels
def test_an_addition_costs_its_operations_and_a_second_read_of_the_other_map(level: Level) -> None:
    block = residual_block()
    plain = dataclasses.replace(block, operations=())
    states = LayerStates.dense(block, 8)
    after, before = (
        cost(block, states, THROUGH_DRAM, level),
        cost(plain, states, THROUGH_DRAM, level),
    )
    assert VECTOR is not None
    assert after.component_pj["vector"].tolist() == [[0, 0, MAP * VECTOR.add_energy, 0]]
    assert (after.dram_bytes - before.dram_bytes).tolist() == [[0, 0, MAP, 0]]


@both_levels
def test_removed_channels_are_not_added(level: Level) -> None:
    block = residual_block()
    states = LayerStates.dense(block, 8)
    half = dataclasses.replace(
        states, in_channels=states.in_channels / 2, out_channels=states.out_channels / 2
    )
    energy = [
        cost(block, each, ON_CHIP, level).component_pj["vector"].sum() for each in (states, half)
    ]
    assert energy[1] == energy[0] / 2


@both_levels
def test_an_accelerator_without_a_vector_unit_leaves_them_out(level: Level) -> None:
    block = residual_block()
    plain = dataclasses.replace(block, operations=())
    without = THROUGH_DRAM.model_copy(update={"vector_unit": None})
    states = LayerStates.dense(block, 8)
    report = cost(block, states, without, level)
    assert "vector" not in report.component_pj
    np.testing.assert_array_equal(report.dram_bytes, cost(plain, states, without, level).dram_bytes)


@both_levels
def test_a_processor_does_one_after_the_other(level: Level) -> None:
    block = residual_block()
    mcu = load_accelerator("cortex-m")
    states = LayerStates.dense(block, 8)
    plain = cost(dataclasses.replace(block, operations=()), states, mcu, level)
    assert mcu.vector_unit is not None
    cycles = (cost(block, states, mcu, level).latency_cycles - plain.latency_cycles)[0]
    assert cycles.tolist() == [0, 0, MAP / mcu.vector_unit.operations_per_cycle, 0]


def with_scratchpad(bytes_: int):
    memories = tuple(
        memory.model_copy(update={"capacity_bytes": bytes_})
        if memory.name == "scratchpad"
        else memory
        for memory in ON_CHIP.memories
    )
    return ON_CHIP.model_copy(update={"memories": memories})


@both_levels
@pytest.mark.parametrize(
    ("maps", "with_addition", "kept"),
    # A chain needs room for two maps, what a layer reads and what it writes. The addition keeps
    # the stem's map alive beside those of layer 2.
    [(1, False, []), (2, False, [0, 1, 2]), (2, True, []), (3, True, [0, 1, 2])],
)
def test_maps_stay_if_all_that_is_live_with_them_fits(
    maps: int, with_addition: bool, kept: list[int], level: Level
) -> None:
    block = residual_block()
    if not with_addition:
        block = dataclasses.replace(block, operations=())
    states = LayerStates.dense(block, 8)
    half = with_scratchpad(2 * maps * MAP)  # the other half is for what streams
    written = [
        cost(block, states, each, level).traffic_words["dram", "output"][0]
        for each in (THROUGH_DRAM, half)
    ]
    assert np.flatnonzero(written[0] - written[1]).tolist() == kept


@both_levels
def test_a_kept_residual_map_is_read_from_the_buffer(level: Level) -> None:
    block = residual_block()
    states = LayerStates.dense(block, 8)
    roomy = with_scratchpad(2**20)
    plain = dataclasses.replace(block, operations=())
    words = {
        memory: cost(block, states, roomy, level).traffic_words[memory, "input"][0, 2]
        - cost(plain, states, roomy, level).traffic_words[memory, "input"][0, 2]
        for memory in ("scratchpad", "dram")
    }
    assert words == {"scratchpad": MAP / 2, "dram": 0}  # words of 16 bits


def test_smaller_maps_never_cost_others_their_place() -> None:
    block = residual_block()
    wide, narrow = LayerStates.dense(block, 16), LayerStates.dense(block, 8)
    for capacity in range(MAP, 16 * MAP, MAP):
        accelerator = with_scratchpad(capacity)
        dram = [cost(block, states, accelerator).dram_bytes for states in (wide, narrow)]
        assert np.all(dram[1] <= dram[0])


def concatenation(values_read: tuple[tuple[float, ...], ...] = ()) -> Workload:
    """Two layers, one of which writes maps of four times as many channels, and one that reads both.

    As where four channels of the second become one of larger maps on the way.
    """
    small = LayerShape("small", 3, 8, 16, 16, 16, 16)
    phases = LayerShape("phases", 3, 32, 8, 8, 8, 8)
    reader = LayerShape("reader", 16, 4, 16, 16, 16, 16)
    feeds = ((), (), (0, 1))
    return Workload("merged", (small, phases, reader), feeds, values_read=values_read)


def test_inputs_are_shared_out_by_the_values_read() -> None:
    map_values = 8 * 16 * 16
    told = shapes_of(concatenation(((), (), (map_values, map_values)))).share[:, 2]
    assert told.tolist() == [0.5, 0.5, 0]
    assert shapes_of(concatenation()).share[:, 2].tolist() == [0.2, 0.8, 0]  # by channels


def test_a_narrow_map_narrows_its_own_part_of_what_is_read() -> None:
    workload = concatenation(((), (), (1, 1)))
    wide = LayerStates.dense(workload, 16)
    narrow = dataclasses.replace(
        wide, output_bits=np.array([[16, 8, 16.0]]), activation_bits=np.array([[16, 16, 8.0]])
    )
    words = [
        cost(workload, states, THROUGH_DRAM).traffic_words["dram", "input"][0, 2]
        for states in (wide, narrow)
    ]
    assert words[1] == 0.75 * words[0]


def test_values_read_must_be_one_for_each_map() -> None:
    with pytest.raises(InputError, match="values_read"):
        concatenation(((), (), (1,)))


def test_operations_must_name_layers_of_the_network() -> None:
    layers = network(conv(8, 8, 8), conv(8, 8, 6)).layers
    for operation, field in (
        (VectorOperation("add", 2, 64), r"operations\[0\]\.layer"),
        (VectorOperation("add", 0, 64, reads=(1,)), r"operations\[0\]\.reads"),
    ):
        with pytest.raises(InputError, match=field):
            Workload("wrong", layers, operations=(operation,))
    with pytest.raises(InputError, match="sources"):
        Workload("wrong", layers, sources=((),))
