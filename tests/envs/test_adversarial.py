"""Attacks: what is known of linear networks, bounds that are kept, gradients through roundings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch import nn

from envs.adversarial import StraightThrough
from envs.adversarial import ValueRange
from envs.adversarial import _slopes
from envs.adversarial import attacked
from envs.adversarial import differentiable
from envs.attack import Attack
from envs.attack import AttackMethod
from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import uniform
from envs.evaluator import Evaluator
from envs.quantization import ActivationRange
from envs.setup import calibrate
from envs.tasks.task import Task
from envs.tasks.task import batches
from envs.tasks.task import top1
from envs.trace import trace
from hwmodel.errors import InputError
from tests.envs.networks import NETWORKS
from tests.envs.networks import randomize

METHODS: tuple[AttackMethod, ...] = ("fgsm", "pgd")


def evaluator_of(network: nn.Module, inputs: Tensor, targets: Tensor | None = None) -> Evaluator:
    """Of a network on inputs that it labels itself, if nobody else does."""
    with torch.no_grad():
        targets = network(inputs).argmax(1) if targets is None else targets
    split = batches(inputs, targets, 100)
    task = Task("self", network.eval(), split, split, split[:1], chance=0.2)
    statistics = calibrate(trace(network, inputs[:2], "self"), split)
    traced = trace(network, inputs[:2], "self")
    return Evaluator(task, Compressor(traced, statistics, [inputs[:100]]))


@pytest.fixture(scope="module")
def residual() -> Evaluator:
    torch.manual_seed(0)
    network = randomize(NETWORKS["padded_residual"]())
    inputs = torch.randn(300, 3, 12, 12)
    with torch.no_grad():  # every class about as often
        network.head.weight /= network(inputs).std(0)[:, None]
        network.head.bias -= network(inputs).mean(0)
    return evaluator_of(network, inputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epsilon", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("sureness", [1, 1000])  # outputs of thousands leave softmax no slope
def test_of_a_linear_network_the_accuracy_under_attack_is_known(
    method: AttackMethod, epsilon: float, sureness: float
) -> None:
    # The worst change of a margin w.x + b by at most e in every value is e times the sum of |w|.
    torch.manual_seed(1)
    network = nn.Linear(12, 2)
    with torch.no_grad():
        network.weight *= sureness
        network.bias *= sureness
    inputs = torch.rand(700, 12)
    inputs[0], inputs[1] = 0, 1  # the range is from 0 to 1
    inputs[2:] = 0.2 + 0.6 * inputs[2:]  # and does not bind
    evaluator = evaluator_of(network, inputs)
    with torch.no_grad():
        margins = network(inputs[2:]).diff(dim=1).abs().flatten()
        worst = epsilon * (network.weight[1] - network.weight[0]).abs().sum()
    attack = Attack(method, epsilon, steps=20, images=len(inputs))
    found = evaluator.evaluate(
        uniform(evaluator.compressor.network.names, 32), "search", None, attack
    )
    assert found.robust_accuracy is not None
    held = int((margins > worst).sum())
    assert 0 < held < 698
    assert held <= round(found.robust_accuracy * 700) <= held + 2  # the two at the ends
    assert found.accuracy == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_changes_stay_within_the_bound_and_the_range(
    residual: Evaluator, method: AttackMethod
) -> None:
    inputs = torch.cat([inputs for inputs, _ in residual.task.search])
    targets = torch.cat([targets for _, targets in residual.task.search])
    compressed = residual.compressor.compress(uniform(residual.compressor.network.names, 4))
    network = differentiable(residual.compressor.network, compressed)
    allowed = ValueRange.of([inputs[:50]])
    changed = attacked(network, inputs, targets, torch.arange(300), allowed, Attack(method, 0.03))
    bound = 0.03 * (allowed.high - allowed.low)
    moved = (changed - inputs).abs()
    assert bool((moved <= bound + 1e-5).all())
    assert float((moved / bound).amax()) > 0.99
    outside = (inputs < allowed.low) | (inputs > allowed.high)
    left = ((changed < allowed.low - 1e-6) | (changed > allowed.high + 1e-6)) & ~outside
    assert bool(outside.any())
    assert not bool(left.any())


def test_attacks_find_what_noise_of_the_same_size_does_not(residual: Evaluator) -> None:
    names = residual.compressor.network.names
    inputs = torch.cat([inputs for inputs, _ in residual.task.search])
    targets = torch.cat([targets for _, targets in residual.task.search])
    for config in (uniform(names, 32), uniform(names, 6), pruned(residual)):
        reached = {
            method: residual.evaluate(config, "search", None, Attack(method, 0.01)).robust_accuracy
            for method in METHODS
        }
        span = ValueRange.of(inputs.split(100))
        noise = 0.01 * (span.high - span.low) * torch.empty_like(inputs).uniform_(-1, 1).sign()
        compressed = residual.compressor.compress(config)
        with torch.no_grad():
            outputs = differentiable(residual.compressor.network, compressed)(inputs + noise)
        noisy = top1(outputs, targets)
        assert reached["fgsm"] is not None
        assert reached["pgd"] is not None
        assert reached["pgd"] <= reached["fgsm"] + 0.02
        assert reached["fgsm"] < min(noisy, residual.evaluate(config, "search").accuracy) - 0.1


def pruned(evaluator: Evaluator) -> CompressionConfig:
    """Channels gone wherever they may, and weights elsewhere."""
    network = evaluator.compressor.network
    methods = [
        ("filter", "l2") if group >= 0 else ("element", "l1") for group in network.units.group
    ]
    return CompressionConfig(
        {
            name: LayerDecision(granularity, criterion, 0.25, 4, 4)  # type: ignore[arg-type]
            for name, (granularity, criterion) in zip(network.names, methods, strict=True)
        }
    )


def test_what_is_attacked_is_what_is_measured(residual: Evaluator) -> None:
    names = residual.compressor.network.names
    for config in (uniform(names, 32), uniform(names, 4), pruned(residual)):
        compressed = residual.compressor.compress(config)
        outputs, _ = residual.outputs(compressed, "search")
        inputs = torch.cat([inputs for inputs, _ in residual.task.search])
        with torch.no_grad():
            soft = differentiable(residual.compressor.network, compressed)(inputs)
        torch.testing.assert_close(soft, outputs, rtol=1e-3, atol=1e-3 * float(outputs.std()))


def test_gradients_of_the_dense_network_are_its_own(residual: Evaluator) -> None:
    inputs, targets = residual.task.search[0]  # type: ignore[index]
    names = residual.compressor.network.names
    compressed = residual.compressor.compress(uniform(names, 32))
    ours, own = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    for network, x in (
        (differentiable(residual.compressor.network, compressed), ours),
        (residual.task.network, own),
    ):
        nn.functional.cross_entropy(network(x), targets).backward()
    assert ours.grad is not None
    assert own.grad is not None
    torch.testing.assert_close(ours.grad, own.grad, rtol=1e-3, atol=1e-5)


def test_slopes_are_those_of_the_cross_entropy() -> None:
    outputs = torch.randn(6, 5, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(5, (6, 3))
    targets[0], targets[1, 0] = 255, -100
    kept = targets.where(targets < 5, -100)
    nn.functional.cross_entropy(outputs, kept, reduction="sum").backward()
    found, expected = _slopes(outputs.detach(), targets), outputs.grad
    assert expected is not None
    factors = expected.flatten(1).norm(dim=1) / found.flatten(1).norm(dim=1)
    assert not bool(found[0].any())
    torch.testing.assert_close(found[1:] * factors[1:, None, None], expected[1:])


def test_roundings_pass_gradients_but_where_they_clip() -> None:
    x = torch.tensor([-3.0, -0.4, 0.0, 0.1, 0.9, 7.5, 9.0], requires_grad=True)
    y = StraightThrough(ActivationRange(4, 0.5, 0, 15))(x)
    assert y.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0, 7.5, 7.5]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_an_attack_does_not_depend_on_the_parts(
    residual: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = uniform(residual.compressor.network.names, 32)
    attack = Attack("pgd", 0.01, steps=3, images=200)
    once = residual.evaluate(config, "search", None, attack).robust_accuracy
    other = Evaluator(residual.task, residual.compressor)
    other.evaluate(config, "search")
    assert other.halve_batches()
    again = other.evaluate(config, "search", None, attack).robust_accuracy
    assert once is not None
    assert again == pytest.approx(once, abs=1.5 / 200)  # last bits depend on the parts
    monkeypatch.setattr("envs.resident._RESIDENT_BYTES", 1000)
    all_images = Attack("pgd", 0.01, steps=3, images=10_000)
    read = Evaluator(residual.task, residual.compressor).evaluate(
        config, "search", None, all_images
    )
    kept = residual.evaluate(config, "search", None, all_images)
    # Rows are other images where a split is read in its own order, but their starts are as random.
    assert read.robust_accuracy == pytest.approx(kept.robust_accuracy, abs=0.02)


def test_pixels_that_do_not_count_do_not_matter() -> None:
    torch.manual_seed(3)
    network = nn.Conv2d(3, 4, 1)
    inputs, targets = torch.rand(5, 3, 6, 6), torch.randint(4, (5, 6, 6))
    allowed, attack = ValueRange.of([inputs]), Attack("fgsm", 0.1)
    targets[:, :3] = 255
    changed = attacked(network, inputs, targets, torch.arange(5), allowed, attack)
    assert torch.equal(changed[:, :, :3], inputs[:, :, :3])
    assert not torch.equal(changed[:, :, 3:], inputs[:, :, 3:])


@pytest.mark.parametrize("targets", [(40, 2), (40,)])
def test_what_does_not_give_scores_of_classes_is_refused(targets: tuple[int, ...]) -> None:
    inputs, labels = torch.rand(40, 4), torch.zeros(targets, dtype=torch.int64)
    network = nn.Linear(4, 3 if len(targets) > 1 else 1)  # of one class an attack changes nothing
    allowed, attack = ValueRange.of([inputs]), Attack("fgsm", 0.1)
    with pytest.raises(InputError, match="an attack needs scores"):
        attacked(network, inputs, labels, torch.arange(40), allowed, attack)


def test_probabilities_are_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    inputs, targets = torch.rand(9, 4), torch.zeros(9, dtype=torch.int64)
    allowed, attack = ValueRange.of([inputs]), Attack("fgsm", 0.1)
    with pytest.raises(InputError, match="leave the softmax out"):
        attacked(network, inputs, targets, torch.arange(9), allowed, attack)


def test_fgsm_takes_one_step() -> None:
    assert Attack("fgsm", 0.1, steps=7) == Attack("fgsm", 0.1)
    assert Attack("fgsm", 0.1).steps == 1


class Decided(nn.Module):
    """Says which class, not how much."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) > 0).float()


def test_a_network_without_gradients_is_refused_before_a_search() -> None:
    evaluator = evaluator_of(Decided(), torch.randn(40, 4))
    with pytest.raises(InputError, match="an attack needs outputs with a gradient"):
        evaluator.require_attackable()
    evaluator_of(nn.Linear(4, 3), torch.randn(40, 4)).require_attackable()


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "cw"), ("epsilon", 0.0), ("epsilon", float("nan")), ("epsilon", 1.5), ("steps", 0)],
)
def test_attacks_that_are_none_are_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        Attack(**{"method": "fgsm", "epsilon": 0.1, field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_black_pixels_do_not_hide_from_an_attack(method: AttackMethod) -> None:
    # Half of the values lie at the end of the grid, where a clipped value has no gradient.
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 4))
    evaluator = evaluator_of(network, torch.randn(400, 30).relu())
    names = evaluator.compressor.network.names
    reached = {
        bits: evaluator.evaluate(uniform(names, bits), "search", None, Attack(method, 0.06))
        for bits in (32, 8)
    }
    assert 0.2 < (reached[32].robust_accuracy or 0) < 0.9
    assert reached[8].robust_accuracy == pytest.approx(reached[32].robust_accuracy, abs=0.05)
