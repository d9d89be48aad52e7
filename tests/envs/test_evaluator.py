"""Evaluations: every image once, in any order; early verdicts; exact results on demand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from envs.compression import Compressor
from envs.config import CompressionConfig
from envs.config import LayerDecision
from envs.config import uniform
from envs.early_stopping import AccuracyLimit
from envs.evaluator import Evaluator
from envs.resident import ResidentData
from envs.setup import calibrate
from envs.tasks.task import Task
from envs.tasks.task import batches
from envs.tasks.task import top1
from envs.trace import trace
from tests.envs.networks import NETWORKS
from tests.envs.networks import randomize

LIMIT = AccuracyLimit(drop_points=2.0)


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    """A network on images that it labels itself: it is always right unless compressed."""
    torch.manual_seed(0)
    network = randomize(NETWORKS["padded_residual"]())
    inputs = torch.randn(1200, 3, 12, 12)
    with torch.no_grad():
        outputs = network(inputs)
        # Every class about as often, or the most frequent one would survive any compression.
        network.head.weight /= outputs.std(0)[:, None]
        network.head.bias -= network(inputs).mean(0)
        targets = network(inputs).argmax(1)
    split = batches(inputs, targets, 100)
    task = Task("self", network, split[:1], split, split[:2], chance=0.2)
    traced = trace(network, inputs[:2], "self")
    statistics = calibrate(traced, split[:1])
    return Evaluator(task, Compressor(traced, statistics, [split[0][0]]))


def hopeless(evaluator: Evaluator) -> CompressionConfig:
    names = evaluator.compressor.network.names
    decision = LayerDecision("element", "l1", 0.9, 2, 2)
    return CompressionConfig(dict.fromkeys(names, decision))


def test_verdicts_come_early_and_are_those_of_all_images(evaluator: Evaluator) -> None:
    names = evaluator.compressor.network.names
    for config, holds in ((uniform(names, 32), True), (hopeless(evaluator), False)):
        stopped = evaluator.evaluate(config, "search", LIMIT)
        whole = evaluator.evaluate(config, "search")
        assert stopped.holds_limit is holds
        assert stopped.images < whole.images == 1200
        assert stopped.block_accuracies == ()
        assert (1 - whole.accuracy <= 0.02) is holds
        assert abs(stopped.accuracy - whole.accuracy) < 0.15
        assert whole.holds_limit is None


def test_metrics_that_are_no_mean_over_images_see_all_of_them(evaluator: Evaluator) -> None:
    task = replace(evaluator.task, metric=lambda outputs, targets: top1(outputs, targets))
    other = Evaluator(task, evaluator.compressor)
    for config, holds in ((uniform(task_names(other), 32), True), (hopeless(other), False)):
        result = other.evaluate(config, "search", LIMIT)
        assert (result.images, result.holds_limit) == (1200, holds)


def task_names(evaluator: Evaluator) -> list[str]:
    return list(evaluator.compressor.network.names)


@pytest.mark.parametrize("bits", [2, 3, 6, 8, 16])
def test_integers_give_what_an_export_gives(
    evaluator: Evaluator, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = uniform(task_names(evaluator), bits)
    outputs, targets = evaluator.outputs(evaluator.compressor.compress(config), "search")
    monkeypatch.setattr("envs.integer.is_available", lambda: False)
    exported, _ = evaluator.outputs(evaluator.compressor.compress(config), "search")
    assert torch.equal(outputs, exported)
    assert evaluator.evaluate(config, "search").accuracy == top1(outputs, targets)
    assert torch.equal(targets, torch.cat([labels for _, labels in evaluator.task.search]))


@pytest.mark.parametrize("images_at_once", [7, 100, 5000])
def test_parts_hold_every_image_once_in_an_order_that_stays(
    evaluator: Evaluator, images_at_once: int
) -> None:
    split = evaluator.task.search
    data = ResidentData(evaluator.task, torch.device("cpu"), images_at_once)
    parts = list(data.parts("search"))
    rows = torch.cat([part.rows for part in parts])
    assert torch.equal(rows.sort().values, torch.arange(1200))
    assert not torch.equal(rows, torch.arange(1200))
    inputs = torch.cat([inputs for inputs, _ in split])
    assert torch.equal(torch.cat([part.inputs for part in parts]), inputs[rows])
    again = torch.cat([part.rows for part in data.parts("search")])
    assert torch.equal(rows, again)
    assert max(len(part.rows) for part in parts) <= images_at_once


def test_a_split_too_large_to_keep_is_read_in_its_own_order(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("envs.resident._RESIDENT_BYTES", 1000)
    data = ResidentData(evaluator.task, torch.device("cpu"), 60)
    assert not data.is_shuffled("search")
    parts = list(data.parts("search"))
    assert torch.equal(torch.cat([part.rows for part in parts]), torch.arange(1200))
    assert {len(part.rows) for part in parts} == {50}
    other = Evaluator(evaluator.task, evaluator.compressor)
    result = other.evaluate(hopeless(evaluator), "search", LIMIT)
    assert (result.images, result.holds_limit) == (1200, False)
