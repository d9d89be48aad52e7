from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor
from torch import nn

from envs.trace import TracedNetwork
from envs.trace import trace
from hwmodel import InputError
from tests.envs.networks import NETWORKS
from tests.envs.networks import randomize


def traced(name: str) -> tuple[nn.Module, TracedNetwork]:
    torch.manual_seed(0)
    network = randomize(NETWORKS[name]())
    return network, trace(network, torch.randn(1, 3, 16, 16), name)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_folded_graph_computes_what_the_network_computes(name: str) -> None:
    network, result = traced(name)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(result.graph_module(x), network(x), rtol=1e-4, atol=1e-5)


def test_shapes_macs_and_feeds_of_a_residual_network() -> None:
    _, result = traced("padded_residual")
    assert result.names == ("stem.0", "down.0", "last.0", "head")
    stem, down, last, head = result.workload.layers
    assert (stem.in_channels, stem.out_channels, stem.out_height) == (3, 8, 16)
    assert (down.stride, down.padding, down.out_width) == ((2, 2), (1, 1), 8)
    assert last.macs == 16 * 16 * 9 * 8 * 8
    assert (head.macs, head.weights) == (80, 80)
    assert result.workload.feeds == ((), (0,), (0, 1), (0, 1, 2))


def test_images_merged_into_the_batch_are_all_counted() -> None:
    network = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)).eval()
    first, second = trace(network, torch.randn(2, 6, 3, 8, 8), "video").workload.layers
    assert (first.batch, second.batch) == (6, 6)
    assert first.macs == 6 * 7_776


def test_channels_of_a_padded_shortcut_are_coupled_where_they_meet() -> None:
    _, result = traced("padded_residual")
    units = result.units
    assert units.group == (0, 0, 0, -1)
    stem, down, last, _ = (set(unit.tolist()) for unit in units.out_units)
    assert down == last and stem < down
    assert torch.equal(units.out_units[0], units.out_units[1][4:12])
    assert len(units.signature.unique()) == 2


def test_concatenated_layers_are_not_coupled() -> None:
    _, result = traced("dense")
    assert result.units.group == (0, 1, 2, -1)
    assert [len(unit) for unit in result.units.in_units] == [3, 6, 10, 14]


def test_a_depthwise_layer_is_removed_with_what_feeds_it_and_with_its_gate() -> None:
    _, result = traced("inverted")
    groups = dict(zip(result.names, result.units.group, strict=True))
    coupled = {groups[name] for name in ("expand.0", "depthwise.0", "excite")}
    assert len(coupled) == 1
    assert groups["stem.0"] == groups["project"] != groups["expand.0"]
    assert groups["squeeze"] not in (-1, groups["expand.0"], groups["stem.0"])


def test_grouped_and_shuffled_channels_stay() -> None:
    _, result = traced("shuffle")
    assert result.units.group == (-1, -1, -1, 0, -1)


def test_channels_pass_gates_slopes_maxima_and_what_is_written_in_place() -> None:
    _, result = traced("gated")
    assert result.units.group == (0, 0, 1, -1)
    targets = {str(node.target) for node in result.graph_module.graph.nodes}
    assert {"aten.hardswish.default", "aten.sigmoid.default"} <= targets


def on_parts(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    left += right.relu_()
    torch.unbind(x, 1)[0].mul_(0.5)
    return x


def of_another_dtype(x: Tensor) -> Tensor:
    mask = x.clone().gt_(0)
    return (1 - mask) * x.mul_(torch.full((1,), 0.3, dtype=torch.float64))


def under_a_context(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return x * 2


def by_a_branch(x: Tensor) -> Tensor:
    doubled: Tensor = torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y * 3, (x,))
    return doubled


class Between(nn.Module):
    """Two layers with something between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.second = nn.Conv2d(3, 4, 3), function, nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.function(self.first(x)))
        return y


@pytest.mark.parametrize("function", [on_parts, of_another_dtype, under_a_context, by_a_branch])
def test_what_cannot_be_made_functional_stays_as_it_is(
    function: Callable[[Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    network, x = Between(function).eval(), torch.randn(2, 3, 8, 8)
    result = trace(network, x, "between")
    assert result.names == ("first", "second")
    with torch.no_grad():
        torch.testing.assert_close(result.graph_module(x), network(x))


class MaskedBias(nn.Module):
    """Weights that are computed from others, with writes in place, as of position biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.inner, self.outer = nn.Linear(4, 6), nn.Linear(2, 8), nn.Linear(8, 6)
        self.register_buffer("places", torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.layer.bias.clone()
        bias[2:4].zero_()
        by_place = self.outer(nn.functional.relu_(self.inner(self.places)))
        return nn.functional.linear(x, self.layer.weight, bias) + by_place


def test_what_depends_on_parameters_alone_is_no_layer() -> None:
    torch.manual_seed(0)
    network, x = MaskedBias(), torch.randn(3, 5, 4)
    bias = network.layer.bias.clone()
    result = trace(network, x, "masked bias")
    assert result.names == ("layer",)
    torch.testing.assert_close(result.graph_module(x), network(x))
    assert torch.equal(network.layer.bias, bias)


def test_attention_projections_are_layers_and_keep_their_channels() -> None:
    _, result = traced("attention")
    groups = dict(zip(result.names, result.units.group, strict=True))
    assert groups["attention.in_proj_weight"] == -1
    assert groups["up"] >= 0
    assert result.workload.layers[1].out_width == 16  # tokens


def test_torchvision_networks_are_traced() -> None:
    for name, layers in (("resnet18", 21), ("mobilenet_v2", 53)):
        network = randomize(torchvision.models.get_model(name, weights=None))
        result = trace(network, torch.randn(1, 3, 64, 64), name)
        assert len(result.layers) == layers
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(result.graph_module(x), network(x), rtol=1e-3, atol=1e-4)


class _Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(3, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x).mean((2, 3))


class _DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x[:, :2]


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class _ReadElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.layer.weight


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 4), nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) @ self.factor


class _TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


class _NamedOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.layer(x)}


@pytest.mark.parametrize(
    ("network", "shape", "named"),
    [
        (_Volumes(), (1, 3, 8, 8, 8), "conv_transpose3d (up.weight)"),
        (_DataDependent(), (1, 4), "torch.export cannot trace it"),
        (_Shared(), (1, 4), "'layer.weight' is not allowed; its weights may be used only once"),
        (
            _ReadElsewhere(),
            (1, 4),
            "'layer.weight' is not allowed; its weights may be used only once",
        ),
        (_Product(), (1, 4), "matmul (factor)"),
        (_TwoOutputs(), (1, 4), "one tensor"),
        (_NamedOutput(), (1, 4), "'dict' is not allowed; its forward must return one tensor"),
        (nn.Flatten(), (1, 4), "one layer at least"),
    ],
)
def test_what_cannot_be_traced_is_named(
    network: nn.Module, shape: tuple[int, ...], named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError) as error:
        trace(network, torch.randn(shape), "net")
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


class Pooled(nn.Module):
    """Two convolutions, their sum, pooling, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu()
        total = nn.functional.max_pool2d(first + self.second(first), 3, 2, 1)
        return self.last(total.mean((2, 3)))


class Merged(nn.Module):
    """A map and another one of half its size, made as large, that one layer reads together."""

    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.skip, self.down, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 2, 2), up
        self.merge, self.last = nn.Conv2d(16, 4, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        merged = self.merge(torch.cat([self.skip(x), self.up(self.down(x)).relu()], 1))
        return self.last(torch.cat([x, merged], 1))


@pytest.mark.parametrize(
    "up",
    [
        nn.ConvTranspose2d(8, 8, 2, 2),
        nn.ConvTranspose2d(8, 8, 3, 2, 1, 1),
        nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2)),
        nn.Upsample(scale_factor=2),
    ],
)
def test_layers_read_maps_by_their_values(up: nn.Module) -> None:
    workload = trace(Merged(up).eval(), torch.zeros(1, 3, 8, 8), "merged").workload
    writers, values = workload.sources[-2], workload.values_read[-2]
    assert writers == ((0, 2) if list(up.parameters()) else (0, 1))
    assert values == (8 * 64, 8 * 64)
    assert workload.values_read[-1] == (4 * 64,)  # the network's input has no writer


def test_what_is_pooled_or_split_is_read_for_less() -> None:
    def between(x: Tensor) -> Tensor:
        left, _ = x.chunk(2, 1)
        return torch.cat([nn.functional.max_pool2d(left, 2), left[..., :3, :3]], 1)

    workload = trace(Between(between).eval(), torch.zeros(1, 3, 8, 8), "parts").workload
    assert workload.values_read == ((), (36.0,))


@pytest.mark.parametrize(
    ("between", "priced"),
    [
        (nn.AvgPool2d(3, 1, 1), {"pool": 36 * 9}),
        (nn.AvgPool2d(2), {"pool": 36}),
        (nn.SELU(), {"activation": 36}),
        (nn.LogSigmoid(), {"activation": 36}),
        (
            nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
            {"activation": 36, "multiply": 36, "add": 36},
        ),
        (nn.GroupNorm(2, 4), {"multiply": 72, "add": 72}),
        (nn.LayerNorm(6), {"multiply": 72, "add": 72}),
        (nn.InstanceNorm2d(4, affine=True), {"multiply": 72, "add": 72}),
        (nn.Upsample(scale_factor=2), {}),
        (
            nn.Upsample(scale_factor=2, mode="bilinear"),
            {"multiply": 4 * 36 * 4, "add": 4 * 36 * 3},
        ),
    ],
    ids=str,
)
def test_what_is_done_to_the_values_of_a_map_is_priced(
    between: nn.Module, priced: dict[str, int]
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 5, 2)).eval()
    workload = trace(network, torch.zeros(1, 3, 8, 8), "between").workload
    found = {
        each.kind: each.operations
        for each in workload.operations
        if each.layer == 0 and each.kind != "requantize"
    }
    assert found == priced


def test_operations_between_layers_run_behind_the_last_one_they_depend_on() -> None:
    workload = trace(Pooled().eval(), torch.zeros(1, 3, 8, 8), "pooled").workload
    seen = [(each.kind, each.layer, each.operations, each.reads) for each in workload.operations]
    assert seen == [
        ("requantize", 0, 64, ()),
        ("activation", 0, 64, ()),
        ("requantize", 1, 64, ()),
        ("add", 1, 64, (0,)),
        ("pool", 1, 16 * 9, ()),
        ("pool", 1, 16, ()),
        ("requantize", 2, 1, ()),
    ]
    # The linear layer reads the sum, which the second convolution writes.
    assert workload.feeds == ((), (0,), (0, 1))
    assert workload.sources == ((), (0,), (1,))
