from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch import nn

from envs.tasks.weights import load_weights
from envs.tasks.weights import read_weights
from hwmodel.errors import InputError

State = dict[str, Tensor]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def parallel_checkpoint(state: State) -> dict[str, Any]:
    return {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 9}


@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("weights.safetensors", save_file),
        ("weights.pt", torch.save),
        ("weights.th", lambda state, path: torch.save(parallel_checkpoint(state), path)),
    ],
)
def test_every_kind_of_file_gives_the_same_weights(
    tmp_path: Path, file: str, write: Callable[[State, Path], None]
) -> None:
    source, target = network(), network()
    write(source.state_dict(), tmp_path / file)
    load_weights(target, read_weights(str(tmp_path / file)), file)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"weight": Payload()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="tensors only"):
        read_weights(str(tmp_path / "weights.pt"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("none.pt", None, "use a file that exists"),
        ("empty.pt", b"", "tensors only"),
        ("text.pt", b"hello", "tensors only"),
        ("spec.pt", b"task: digits\naccelerator: mine.yaml\n", "tensors only"),
        ("text.safetensors", b"hello", "not a safetensors file"),
        ("empty.safetensors", b"", "not a safetensors file"),
    ],
)
def test_files_that_hold_no_weights_are_one_line(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_weights(str(tmp_path / file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(2)])
def test_torch_files_without_a_state_dict_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="use a state dict"):
        read_weights(str(tmp_path / "weights.pt"))


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("3.weight"), r"it lacks '3.weight' of shape \(2, 4\)"),
        (lambda state: state | {"4.bias": torch.zeros(1)}, "the network has no '4.bias'"),
        (
            lambda state: state | {"3.weight": torch.zeros(10, 4)},
            r"'3.weight' has shape \(10, 4\), the network needs \(2, 4\)",
        ),
        (lambda state: state | {"3.bias": torch.full((2,), torch.nan)}, "'3.bias'.*not finite"),
    ],
)
def test_weights_that_do_not_fit_name_the_first_key_and_change_nothing(
    change: Callable[[State], State], message: str
) -> None:
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_weights(target, change(network().state_dict()), "weights.pt")
    assert all(torch.equal(target.state_dict()[key], before[key]) for key in before)


def test_checkpoints_from_before_num_batches_tracked_load() -> None:
    old = without("1.num_batches_tracked")(network().state_dict())
    target = network()
    load_weights(target, old, "old.pt")
    assert torch.equal(target[0].weight, old["0.weight"])


def test_hub_entries_give_their_state_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    source = network()

    def hub_load(repository: str, entry: str, **options: Any) -> nn.Module:
        assert (repository, entry, options["pretrained"]) == ("owner/repo", "resnet20", True)
        return source

    monkeypatch.setattr(torch.hub, "load", hub_load)
    assert torch.equal(read_weights("hub:owner/repo:resnet20")["0.weight"], source[0].weight)


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def hub_load(*_: Any, **__: Any) -> nn.Module:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torch.hub, "load", hub_load)
    with pytest.raises(InputError, match="OSError: no route"):
        read_weights("hub:owner/repo:resnet20")
    with pytest.raises(InputError, match="use hub:OWNER/REPO:ENTRY"):
        read_weights("hub:resnet20")
