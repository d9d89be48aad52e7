"""The fine level: the best mapping of every layer in a report."""

from __future__ import annotations

import numpy as np
import pytest

from hwmodel import CostReport
from hwmodel import InputError
from hwmodel import LayerShape
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel import load_accelerator


def one_layer(out: int, channels: int, side: int, kernel: int, batch: int = 1) -> Workload:
    """A layer whose padding is part of its input, as the reference counts it."""
    inside = side + kernel - 1
    layer = LayerShape(
        "layer", channels, out, inside, inside, side, side, kernel, kernel, batch=batch
    )
    return Workload("one", (layer,))


def fine(workload: Workload, accelerator: str = "eyeriss-relative", **options: str) -> CostReport:
    states = LayerStates.dense(workload, bits=16)
    return cost(workload, states, load_accelerator(accelerator), "fine", **options)  # type: ignore[arg-type]


def test_each_word_of_a_small_layer_crosses_dram_once() -> None:
    report = fine(one_layer(16, 16, 32, 3))
    assert report.dram_words[0, 0] == 37_184  # 2,304 weights, 18,496 inputs, 16,384 outputs


def test_components_sum_to_the_total_and_traffic_prices_them() -> None:
    report = fine(one_layer(64, 64, 8, 3))
    words = {key: float(value[0, 0]) for key, value in report.traffic_words.items()}
    price = {"register_file": 1.0, "buffer": 6.0, "dram": 200.0}
    for memory, energy in price.items():
        total = sum(count for (name, _), count in words.items() if name == memory)
        assert report.component_pj[memory][0, 0] == pytest.approx(total * energy)
    assert report.energy_pj[0] == pytest.approx(sum(c.sum() for c in report.component_pj.values()))


def test_a_batch_is_priced_as_one_by_one() -> None:
    workload = one_layer(16, 16, 8, 3)
    many = LayerStates.dense(workload, bits=8, candidates=3)
    many.out_channels[1] = 8
    many.weight_bits[2] = 4
    accelerator = load_accelerator("eyeriss-like")
    together = cost(workload, many, accelerator, "fine")
    for candidate in range(3):
        alone = LayerStates(
            *(getattr(many, name)[candidate : candidate + 1] for name in many.__dataclass_fields__)
        )
        report = cost(workload, alone, accelerator, "fine")
        np.testing.assert_array_equal(report.energy_pj, together.energy_pj[candidate])
        assert report.mappings is not None and together.mappings is not None
        assert str(report.mappings[0][0]) == str(together.mappings[candidate][0])


def test_the_mapping_reads_as_a_loop_nest() -> None:
    report = fine(one_layer(16, 16, 32, 3))
    assert report.mappings is not None
    nest = str(report.mappings[0][0])
    assert "keeps weight" in nest
    assert nest.splitlines()[-1].strip().startswith("side by side: ")


def test_a_layer_without_channels_costs_nothing() -> None:
    workload = one_layer(16, 16, 8, 3)
    states = LayerStates.dense(workload, bits=16)
    states.out_channels[:] = 0
    report = cost(workload, states, load_accelerator("eyeriss-relative"), "fine")
    assert report.energy_pj[0] == 0
    assert report.mappings == ((None,),)


@pytest.mark.parametrize("option", ["objective", "counting"])
def test_unknown_options_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=option):
        fine(one_layer(4, 4, 4, 1), **{option: "magic"})


def test_only_row_stationary_arrays_are_counted_like_nn_dataflow() -> None:
    with pytest.raises(InputError, match="row-stationary"):
        fine(one_layer(8, 8, 4, 1), "nvdla-like", counting="nn_dataflow")
