"""What compression saves and what it cannot, on every accelerator."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hwmodel_layers import conv
from hwmodel_layers import network
from hwmodel_layers import with_values
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from hwmodel import Accelerator
from hwmodel import InputError
from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator
from hwmodel import preset_names
from hwmodel.report import COMPONENTS


def variant(name: str, **values: object) -> Accelerator:
    return Accelerator.model_validate(load_accelerator(name).model_dump() | values)


PRESETS = {name: load_accelerator(name) for name in preset_names()}
VARIANTS = {
    "eyeriss-like, maps on chip": variant("eyeriss-like", feature_maps_stay_on_chip=True),
    "nvdla-small, maps on chip": variant("nvdla-small", feature_maps_stay_on_chip=True),
    "nvdla-small, compressed buffer": variant(
        "nvdla-small",
        sparsity=dict(weight=dict(format="bitmask", compressed_in=["buffer", "dram"])),
    ),
}
ACCELERATORS = PRESETS | VARIANTS
every_accelerator = pytest.mark.parametrize("accelerator", ACCELERATORS.values(), ids=ACCELERATORS)
fields = [item.name for item in dataclasses.fields(LayerStates)]


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Two to four layers in a chain: dense, grouped, depthwise, 1x1, strided and linear ones."""
    channels = draw(st.integers(1, 40)) * 4
    layers = []
    for _ in range(draw(st.integers(2, 4))):
        kind = draw(st.sampled_from(["dense", "grouped", "depthwise", "linear"]))
        side = 1 if kind == "linear" else draw(st.integers(1, 40))
        kernel = 1 if kind == "linear" else draw(st.sampled_from([1, 3, 5, 13]))
        out_channels = channels if kind == "depthwise" else draw(st.integers(1, 40)) * 4
        groups = {"grouped": draw(st.sampled_from([2, 4])), "depthwise": channels}.get(kind, 1)
        layers.append(conv(channels, out_channels, side, kernel, groups))
        channels = out_channels
    return network(*layers)


@st.composite
def states_of(draw: st.DrawFn, workload: Workload) -> LayerStates:
    """Any state; grouped layers keep whole groups' worth, depthwise ones the same both sides."""
    columns = []
    for layer in workload.layers:
        kept_in = draw(st.integers(0, layer.in_channels // layer.groups)) * layer.groups
        kept_out = draw(st.integers(0, layer.out_channels // layer.groups)) * layer.groups
        if layer.is_depthwise:
            kept_in = kept_out = draw(st.integers(0, layer.in_channels))
        densities = draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))
        bits = draw(st.tuples(*[st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16])] * 3))
        columns.append([kept_in, kept_out, *densities, *bits])
    return LayerStates(*(row[np.newaxis] for row in np.array(columns, dtype=np.float64).T))


def candidate(states: LayerStates, index: int) -> LayerStates:
    return LayerStates(*(getattr(states, name)[index : index + 1] for name in fields))


def stack(several: list[LayerStates]) -> LayerStates:
    return LayerStates(*(np.concatenate([getattr(s, name) for s in several]) for name in fields))


def less(more: LayerStates, other: LayerStates) -> LayerStates:
    """The smaller of two states in every attribute."""
    return LayerStates(*(np.minimum(getattr(more, n), getattr(other, n)) for n in fields))


@every_accelerator
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_fewer_bits_zeros_and_channels_never_cost_more_energy(accelerator, data) -> None:
    workload = data.draw(workloads())
    more = data.draw(states_of(workload))
    fewer = less(more, data.draw(states_of(workload)))
    before = cost(workload, more, accelerator)
    after = cost(workload, fewer, accelerator)
    if accelerator.array.passes:  # mapped for least traffic, then for least time
        assert np.all(after.dram_bytes <= before.dram_bytes * (1 + 1e-12))
    else:
        assert after.energy_pj[0] <= before.energy_pj[0] * (1 + 1e-12)
    assert np.all(after.bops <= before.bops)
    assert np.all(after.weight_bytes <= before.weight_bytes)


@every_accelerator
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_batch_costs_what_its_candidates_cost(accelerator, data) -> None:
    workload = data.draw(workloads())
    batch = stack([data.draw(states_of(workload)) for _ in range(3)])
    together = cost(workload, batch, accelerator)
    for index in range(3):
        alone = cost(workload, candidate(batch, index), accelerator)
        np.testing.assert_array_equal(alone.layer_energy_pj[0], together.layer_energy_pj[index])
        np.testing.assert_array_equal(alone.latency_cycles[0], together.latency_cycles[index])
        np.testing.assert_array_equal(alone.dram_bytes[0], together.dram_bytes[index])


@every_accelerator
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_report_adds_up(accelerator, data) -> None:
    workload = data.draw(workloads())
    report = cost(workload, data.draw(states_of(workload)), accelerator)
    assert tuple(report.component_pj)[:5] == COMPONENTS
    total = sum(pj.sum() for pj in report.component_pj.values())
    assert report.energy_pj[0] == pytest.approx(total)
    assert report.layer_energy_pj.sum() == pytest.approx(total)
    assert all(np.all(pj >= 0) for pj in report.component_pj.values())
    assert np.all((report.utilization >= 0) & (report.utilization <= 1))
    for memory in accelerator.memories:
        if memory.bytes_per_cycle and not memory.per_element:
            words = sum(report.traffic_words.get((memory.name, key), 0) for key in memory.operands)
            busy = words * memory.word_bits / 8 / memory.bytes_per_cycle
            assert np.all(report.latency_cycles >= busy * (1 - 1e-12))


def enlarged(accelerator: Accelerator, key: str, factor: int) -> Accelerator:
    """The same with a key of all its memories multiplied, where they state it."""
    data = accelerator.model_dump()
    for memory in data["memories"]:
        if memory[key] is not None and not memory["per_element"]:
            memory[key] *= factor
    return Accelerator.model_validate(data)


@every_accelerator
@pytest.mark.parametrize("key", ["capacity_bytes", "bytes_per_cycle"])
@settings(max_examples=8, deadline=None)
@given(data=st.data(), factor=st.integers(2, 9))
def test_bigger_buffers_and_more_bandwidth_never_cost_more(
    accelerator, key: str, data, factor: int
) -> None:
    workload = data.draw(workloads())
    states = data.draw(states_of(workload))
    before = cost(workload, states, accelerator)
    after = cost(workload, states, enlarged(accelerator, key, factor))
    if accelerator.array.passes:
        assert np.all(after.dram_bytes <= before.dram_bytes * (1 + 1e-12))
    else:
        assert after.energy_pj[0] <= before.energy_pj[0] * (1 + 1e-12)
    if key == "bytes_per_cycle":
        assert np.all(after.latency_cycles <= before.latency_cycles)


@every_accelerator
def test_a_pruned_layer_costs_what_a_smaller_one_does(accelerator) -> None:
    dense = network(conv(48, 64, 14), conv(64, 64, 14, groups=64), conv(64, 32, 14, kernel=1))
    small = network(conv(40, 24, 14), conv(24, 24, 14, groups=24), conv(24, 9, 14, kernel=1))
    kept = dataclasses.replace(
        LayerStates.dense(dense, 8),
        in_channels=np.array([[40.0, 24.0, 24.0]]),
        out_channels=np.array([[24.0, 24.0, 9.0]]),
    )
    pruned = cost(dense, kept, accelerator)
    rebuilt = cost(small, LayerStates.dense(small, 8), accelerator)
    np.testing.assert_allclose(pruned.layer_energy_pj, rebuilt.layer_energy_pj, rtol=1e-12)
    np.testing.assert_allclose(pruned.latency_cycles, rebuilt.latency_cycles, rtol=1e-12)


@every_accelerator
@pytest.mark.parametrize("side", ["in_channels", "out_channels"])
def test_a_layer_without_channels_costs_nothing(accelerator, side: str) -> None:
    workload = network(conv(16, 16, 8), conv(16, 16, 8, groups=16), LayerShape("fc", 16, 4))
    states = with_values(LayerStates.dense(workload), **{side: 0})
    report = cost(workload, states, accelerator)
    assert report.energy_pj[0] == 0
    assert report.total_latency_cycles[0] == 0
    assert report.dram_bytes.sum() == 0
    assert report.utilization.sum() == 0
    assert report.activation_bytes.sum() == 0


def priced(accelerator: Accelerator, **values: float):
    workload = network(conv(64, 64, 14))
    return cost(workload, with_values(LayerStates.dense(workload, 8), **values), accelerator)


def test_channels_that_leave_a_lane_partly_full_save_no_cycles_on_the_mac_array() -> None:
    nvdla = ACCELERATORS["nvdla-small"]
    cycles = {kept: priced(nvdla, out_channels=kept).latency_cycles.item() for kept in (64, 57, 56)}
    assert cycles[64] == cycles[57] > cycles[56]
    cycles = {kept: priced(nvdla, in_channels=kept).latency_cycles.item() for kept in (64, 57, 56)}
    assert cycles[64] == cycles[57] > cycles[56]
    # Their place in memory is fetched too: 14x14 inputs with 7 empty channels, but fewer weights.
    fetched = {kept: priced(nvdla, in_channels=kept).dram_bytes.item() for kept in (64, 57)}
    assert fetched[64] - fetched[57] == 7 * 64 * 9 // 128 * 128


def test_lane_waste_shows_in_utilization() -> None:
    nvdla = ACCELERATORS["nvdla-small"]
    assert priced(nvdla).utilization.item() == 1
    assert priced(nvdla, out_channels=57).utilization.item() == pytest.approx(57 / 64)


def test_depthwise_layers_use_one_multiplier_of_a_mac_array() -> None:
    workload = network(conv(16, 16, 8, groups=16))
    report = cost(workload, LayerStates.dense(workload, 8), ACCELERATORS["nvdla-small"])
    assert report.utilization.item() == pytest.approx(1 / 64)


def test_widths_that_the_array_lacks_save_nothing() -> None:
    narrow = dict(weight_bits=5, activation_bits=3, output_bits=2)
    nvdla = ACCELERATORS["nvdla-small"]
    assert priced(nvdla, **narrow).energy_pj == priced(nvdla).energy_pj
    eyeriss = ACCELERATORS["eyeriss-like"]
    assert priced(eyeriss, weight_bits=1).energy_pj == priced(eyeriss, weight_bits=2).energy_pj
    assert priced(eyeriss, **narrow).energy_pj < priced(eyeriss).energy_pj


def test_zero_gating_saves_multiplications_and_registers_but_no_traffic() -> None:
    eyeriss = ACCELERATORS["eyeriss-like"]
    dense = priced(eyeriss)
    sparse = priced(eyeriss, activation_density=0.5)
    both = priced(eyeriss, activation_density=0.5, weight_density=0.5)
    ratio = {k: (sparse.component_pj[k] / dense.component_pj[k]).item() for k in COMPONENTS}
    assert ratio["mac"] == pytest.approx(0.5)
    assert 0.5 < ratio["register_file"] < 0.53  # the zero flags are still read
    assert (ratio["array_network"], ratio["buffer"], ratio["dram"]) == (1, 1, 1)
    assert sparse.latency_cycles == dense.latency_cycles
    assert both.component_pj["mac"] / dense.component_pj["mac"] == pytest.approx(0.25)


def test_an_array_without_gating_saves_nothing_on_zeros_but_their_storage() -> None:
    plain = ACCELERATORS["nvdla-small, compressed buffer"]
    dense = priced(plain)
    sparse = priced(plain, weight_density=0.5, activation_density=0.5)
    assert sparse.component_pj["mac"] == dense.component_pj["mac"]
    assert sparse.component_pj["register_file"] == dense.component_pj["register_file"]
    assert sparse.component_pj["buffer"] < dense.component_pj["buffer"]
    assert sparse.component_pj["dram"] < dense.component_pj["dram"]


@pytest.mark.parametrize(("density", "stored"), [(1.0, 8), (0.9, 8), (0.875, 8), (0.5, 5)])
def test_the_compressed_format_is_used_only_where_it_pays(density: float, stored: float) -> None:
    report = priced(ACCELERATORS["eyeriss-like"], weight_density=density)
    assert report.weight_bytes.item() == 64 * 64 * 9 * stored / 8


def test_feature_maps_on_chip_do_not_cross_dram() -> None:
    workload = network(conv(8, 8, 8), conv(8, 8, 6), conv(8, 8, 4))
    states = LayerStates.dense(workload, 8)
    through = cost(workload, states, ACCELERATORS["eyeriss-like"])
    stays = cost(workload, states, ACCELERATORS["eyeriss-like, maps on chip"])
    saved = (through.dram_bytes - stays.dram_bytes)[0]
    # The network's own input and output still cross.
    assert saved.tolist() == [8 * 8 * 8, 8 * 64 + 8 * 36, 8 * 36]


def test_a_map_leaves_the_chip_if_one_of_its_readers_cannot_keep_it() -> None:
    small, large = conv(8, 8, 8), conv(8, 512, 32)
    layers = network(small, small, large).layers
    on_chip = ACCELERATORS["eyeriss-like, maps on chip"]
    branch = Workload("branch", layers, feeds=((), (0,), (0,)))
    through = cost(branch, LayerStates.dense(branch, 16), ACCELERATORS["eyeriss-like"])
    stays = cost(branch, LayerStates.dense(branch, 16), on_chip)
    np.testing.assert_array_equal(stays.dram_bytes, through.dram_bytes)


def test_a_coarse_report_has_no_energy_and_no_time() -> None:
    workload = network(conv(8, 8, 8))
    states = LayerStates.dense(workload, 8, candidates=2)
    coarse = cost(workload, states, ACCELERATORS["eyeriss-like"], level="coarse")
    mid = cost(workload, states, ACCELERATORS["eyeriss-like"])
    assert coarse.component_pj == {}
    for unknown in ("energy_pj", "total_latency_cycles", "dram_bytes", "utilization"):
        assert np.all(np.isnan(getattr(coarse, unknown)))
    for known in ("macs", "bops", "parameters", "weight_bytes", "activation_bytes"):
        np.testing.assert_array_equal(getattr(coarse, known), getattr(mid, known))


@every_accelerator
def test_traffic_by_memory_and_operand_adds_up(accelerator) -> None:
    workload = network(conv(16, 24, 8), conv(24, 24, 6, groups=24), conv(24, 8, 6, kernel=1))
    report = cost(workload, LayerStates.dense(workload, 8), accelerator)
    by_name = {memory.name: memory for memory in accelerator.memories}
    energy = {memory.role: np.zeros_like(report.macs) for memory in accelerator.memories}
    for (name, _operand), words in report.traffic_words.items():
        # As much for a read as for a write in all of them.
        energy[by_name[name].role] += words * by_name[name].read_energy_per_word
    for role, summed in energy.items():
        np.testing.assert_allclose(summed, report.component_pj[role])
    dram = [
        words for (name, _), words in report.traffic_words.items() if by_name[name].role == "dram"
    ]
    np.testing.assert_allclose(sum(dram), report.dram_words)


def test_notes_say_which_widths_were_rounded_up() -> None:
    report = priced(ACCELERATORS["nvdla-small"], weight_bits=5)
    assert report.notes == ("weight_bits rounded up to what the accelerator has: 5 to 8",)
    assert priced(ACCELERATORS["eyeriss-like"], weight_bits=5).notes == ()


def test_the_table_has_a_row_per_layer_and_the_parts_of_the_energy() -> None:
    workload = network(conv(8, 8, 8), conv(8, 8, 6))
    report = cost(workload, LayerStates.dense(workload, 8, 2), ACCELERATORS["nvdla-small"])
    table = report.to_pandas(candidate=1)
    assert table["layer"].tolist() == ["layer0", "layer1"]
    parts = table[[f"{name}_pj" for name in COMPONENTS]].sum(axis=1)
    np.testing.assert_allclose(parts, table["energy_pj"])
    assert table["energy_pj"].sum() == pytest.approx(report.energy_pj[1])
    with pytest.raises(InputError, match="candidate"):
        report.to_pandas(candidate=2)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (dict(weight_bits=32), "states.weight_bits"),
        (dict(activation_bits=17), "states.activation_bits"),
        (dict(out_channels=65), "states.out_channels"),
        (dict(in_channels=65), "states.in_channels"),
    ],
)
def test_states_beyond_layer_or_accelerator_are_refused(values: dict, field: str) -> None:
    narrow = variant(
        "eyeriss-like",
        precision=dict(
            style="bit_parallel",
            weight_bits=(8, 16),
            activation_bits=(8, 16),
            accumulator_bits=16,
        ),
    )
    with pytest.raises(InputError) as caught:
        priced(narrow, **values)
    assert caught.value.field == field


def test_states_of_another_workload_and_unknown_levels_are_refused() -> None:
    one, two = network(conv(8, 8, 8)), network(conv(8, 8, 8), conv(8, 8, 6))
    eyeriss = ACCELERATORS["eyeriss-like"]
    with pytest.raises(InputError, match="states"):
        cost(two, LayerStates.dense(one), eyeriss)
    with pytest.raises(InputError, match="level"):
        cost(one, LayerStates.dense(one), eyeriss, level="exact")
