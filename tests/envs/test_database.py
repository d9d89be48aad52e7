"""The option database: the same numbers as without it, kept, shared and bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from envs.config import INTEGER_BITS
from envs.database import OptionDatabase
from envs.evaluator import Evaluator
from envs.setup import Menu
from envs.setup import prepare_evaluator
from envs.setup import prepare_problem
from envs.space import NO_PRUNING
from envs.space import Method
from hwmodel import InputError
from hwmodel import load_accelerator
from tests.envs.test_removal import make_evaluator

MENU = Menu(
    methods=(
        NO_PRUNING,
        Method("element", "second_order"),
        Method("n:4", "l1"),
        Method("filter", "l2"),
    ),
    sparsities=(0.25, 0.5),
    weight_bits=(2, 8),
)


@pytest.fixture(scope="module")
def plain() -> Evaluator:
    return make_evaluator("inverted")


def with_database(evaluator: Evaluator, directory: Path) -> Evaluator:
    return prepare_evaluator(evaluator.task, directory)


@pytest.mark.parametrize("name", ["inverted", "shuffle", "sequence", "mlp"])
def test_weights_from_the_database_are_those_made_without_it(name: str, tmp_path: Path) -> None:
    plain = make_evaluator(name)
    stored = with_database(plain, tmp_path)
    space = MENU.space(plain.compressor.network)
    for layer in range(len(space.layers)):
        for method in space.methods[:-1]:
            source = stored.compressor.source(layer, space.repair)
            sparsities = [0.0] if method == NO_PRUNING else space.sparsities
            assert stored.compressor.database is not None
            stored.compressor.database.options(source, method, sparsities, space.weight_bits)
    for choice in space.sample(np.random.default_rng(0), 4):
        config = space.config(choice)
        pairs = zip(
            plain.compressor.compress(config).layers,
            stored.compressor.compress(config).layers,
            strict=True,
        )
        for expected, found in pairs:
            assert torch.equal(found.weight, expected.weight)
            assert torch.equal(found.bias, expected.bias)


def test_option_tables_are_the_same_with_and_without(plain: Evaluator, tmp_path: Path) -> None:
    accelerator = load_accelerator("eyeriss-like")
    stored = with_database(plain, tmp_path)
    expected = prepare_problem(plain, accelerator, MENU).table
    for table in (
        prepare_problem(stored, accelerator, MENU).table,
        prepare_problem(with_database(plain, tmp_path), accelerator, MENU).table,
    ):
        for name, values in vars(expected).items():
            np.testing.assert_array_equal(getattr(table, name), values)


def test_what_is_stored_is_not_made_again_and_new_widths_join(
    plain: Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = plain.compressor.source(0, "layerwise")
    method = Method("element", "l1")
    database = OptionDatabase(tmp_path)
    database.options(source, method, [0.5, 0.75], [4, 8])
    before = database.options(source, method, [0.5], [2])[0]
    monkeypatch.setattr("envs.database.pruned_rows", None)  # nothing is left to be pruned
    again = OptionDatabase(tmp_path)
    assert not again.lacks(source, method, [0.5], [2, 4, 8])
    assert again.lacks(source, method, [0.75], [2, 4, 8])
    options = again.options(source, method, [0.5], [4, 8])[0]
    assert list(options) == [2, 4, 8]
    assert torch.equal(options[2].integers, before[2].integers)
    assert len(list(tmp_path.iterdir())) == 2


def test_repair_and_layer_tell_options_apart(plain: Evaluator, tmp_path: Path) -> None:
    compressor, method = plain.compressor, Method("element", "l1")
    database = OptionDatabase(tmp_path)
    database.options(compressor.source(1, "layerwise"), method, [0.5], [4])
    assert not database.lacks(compressor.source(1, "aligned"), method, [0.5], [4])
    assert database.lacks(compressor.source(1, "none"), method, [0.5], [4])
    assert database.lacks(compressor.source(2, "layerwise"), method, [0.5], [4])


def test_a_damaged_file_is_made_again(plain: Evaluator, tmp_path: Path) -> None:
    source = plain.compressor.source(0, "layerwise")
    database = OptionDatabase(tmp_path)
    made = database.options(source, NO_PRUNING, [0.0], [4])[0][4]
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert database.weights(source, NO_PRUNING, 0.0, 4) is None
    assert torch.equal(
        database.options(source, NO_PRUNING, [0.0], [4])[0][4].integers, made.integers
    )
    assert database.weights(source, NO_PRUNING, 0.0, 4) is not None


def test_the_limit_bounds_the_folder_and_changes_no_weight(
    plain: Evaluator, tmp_path: Path
) -> None:
    source = plain.compressor.source(0, "layerwise")
    free = OptionDatabase(tmp_path / "free")
    expected = free.options(source, Method("element", "l1"), [0.5, 0.75], INTEGER_BITS)
    limit = free.size_bytes() * 3 // 4
    bounded = OptionDatabase(tmp_path / "bounded", limit)
    found = bounded.options(source, Method("element", "l1"), [0.5, 0.75], INTEGER_BITS)
    assert 0 < bounded.size_bytes() <= limit
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one[3].integers, other[3].integers)


def test_a_folder_that_cannot_be_written_is_named(plain: Evaluator, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    database = OptionDatabase(tmp_path / "file" / "folder")
    with pytest.raises(InputError, match=r"database.*cannot be written"):
        database.options(plain.compressor.source(0, "layerwise"), NO_PRUNING, [0.0], [4])
