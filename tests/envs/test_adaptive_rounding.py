from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from envs.adaptive_rounding import round_adaptively
from envs.quantization import of_each
from envs.quantization import round_weights
from envs.quantizer import Quantizer
from envs.reconstruction import reconstruct_sparse
from envs.scales import weight_scales
from tests.envs.test_reconstruction import damped
from tests.envs.test_reconstruction import layer

QUANTIZERS = {
    "symmetric": Quantizer(),
    "affine": Quantizer(weight_symmetry="affine"),
    "shift": Quantizer(scale="power_of_two"),
}


def row_errors(weight: Tensor, result: Tensor, moment: Tensor) -> Tensor:
    change = (weight - result).double()
    return (change @ damped(moment) * change).sum(dim=-1)


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize(("groups", "rows", "columns"), [(1, 8, 30), (3, 4, 18), (16, 1, 9)])
def test_weights_go_up_or_down_and_no_row_is_worse_than_nearest(
    groups: int, rows: int, columns: int, quantizer: Quantizer
) -> None:
    find_scales = partial(weight_scales, quantizer=quantizer)
    weight, moment = layer(groups, rows, columns)
    options = reconstruct_sparse(weight, moment, [0.0, 0.5])
    rounded, scales = round_adaptively(options, moment, [2, 4], find_scales=find_scales)
    total = {"adapted": 0.0, "nearest": 0.0}
    for option, dense in enumerate(options):
        for index, bits in enumerate((2, 4)):
            found = rounded[option, index]
            scale, low = find_scales(options, bits)
            torch.testing.assert_close(scales[option, index], scale[option])
            low = None if low is None else low[option]
            nearest = round_weights(dense, scale[option], bits, low)
            torch.testing.assert_close(found, round_weights(found, scale[option], bits, low))
            step = of_each(scale[option], dense)
            within = (found - dense).abs() < step * (1 + 1e-4)
            assert (within | torch.isclose(found, nearest)).all()  # where clipped, both are the end
            assert not found[dense == 0].any()
            errors = [row_errors(dense, each, moment) for each in (found, nearest)]
            assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
            total["adapted"] += float(errors[0].sum())
            total["nearest"] += float(errors[1].sum())
    assert total["adapted"] < 0.8 * total["nearest"]


def test_it_comes_close_to_the_best_of_all_roundings_up_and_down() -> None:
    totals = {"best": 0.0, "adapted": 0.0, "nearest": 0.0}
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    for seed in range(6):
        weight, moment = layer(rows=3, columns=8, seed=seed)
        rounded, scales = round_adaptively(weight[None], moment, [3])
        nearest = round_weights(weight, scales[0, 0], 3)
        totals["adapted"] += float(row_errors(weight, rounded[0, 0], moment).sum())
        totals["nearest"] += float(row_errors(weight, nearest, moment).sum())
        for row, scale in zip(weight[0], scales[0, 0, 0], strict=True):
            every = ((row / scale).floor() + choices).clamp(-3, 3) * scale
            totals["best"] += float(
                row_errors(row.expand_as(every)[None], every[None], moment).min()
            )
    assert totals["best"] <= totals["adapted"] * (1 + 1e-6)
    assert totals["adapted"] < 1.2 * totals["best"] < totals["nearest"]


def test_same_bits_whatever_else_is_asked_for_and_in_inference_mode() -> None:
    weight, moment = layer(groups=2)
    sparse = reconstruct_sparse(weight, moment, [0.4, 0.8])
    rounded, _ = round_adaptively(sparse, moment, [2, 4])
    with torch.inference_mode():
        alone, _ = round_adaptively(sparse[1:], moment, [4])
    assert torch.equal(alone[0, 0], rounded[1, 1])


@pytest.mark.parametrize("zero", ["row", "inputs", "weights", "on the grid"])
def test_degenerate_layers(zero: str) -> None:
    weight, moment = layer(groups=2, rows=3, columns=10)
    if zero == "row":
        weight[:, 0] = 0
    elif zero == "inputs":
        moment[:, ::2] = 0
        moment[:, :, ::2] = 0
    elif zero == "weights":
        weight = torch.zeros_like(weight)
    else:
        weight = round_weights(weight, weight_scales(weight, 2)[0], 2)
    rounded, scales = round_adaptively(weight[None], moment, [2])
    assert torch.isfinite(rounded).all()
    assert (scales > 0).all()
    assert not rounded[0, 0][weight == 0].any()
    if zero == "inputs":
        assert not rounded[..., ::2].any()
