"""What an earlier run measured of the same network: accuracies do not depend on the accelerator."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envs.config import CompressionConfig
from envs.space import SearchSpace
from hwmodel.errors import InputError
from search.baselines import DENSE_FP32
from search.checkpoints import INITIAL_POLICIES
from search.front import baseline
from search.front import distinct
from search.storage import Storage

ACCURACIES = "accuracies.parquet"
"""In the folder ``INITIAL_POLICIES`` of a run's policies."""
_COLUMNS = [
    "name", "split", "config", "accuracy", "images", "block_accuracies", "weights_hash",
    "code_version",
]  # fmt: skip
_SAME = ("weights_hash", "code_version", "images")


@dataclass(frozen=True)
class Accuracies:
    """Measured choices.

    Attributes:
        choices: Canonical, (measurements, layers, 4).
        accuracy: 0..1, (measurements,).
    """

    choices: NDArray[np.int64]
    accuracy: NDArray[np.float64]


def held_by(space: SearchSpace, configs: Iterable[str], accuracy: Iterable[float]) -> Accuracies:
    """What a space holds of measured configurations, which are given as JSON text.

    Raises:
        ValueError, KeyError: a text is no configuration of the space's layers.
    """
    found = [space.choice(CompressionConfig.from_json(json.loads(text))) for text in configs]
    pairs = zip(found, accuracy, strict=True)
    held = [(choice, reached) for choice, reached in pairs if choice is not None]
    choices = np.zeros((len(held), len(space.layers), 4), dtype=np.int64)
    for place, (choice, _) in enumerate(held):
        choices[place] = choice
    return Accuracies(choices, np.array([reached for _, reached in held], dtype=float))


def accuracies_file(rows: pd.DataFrame) -> bytes:
    """What a ledger tells of accuracies on the search split, as a Parquet file."""
    measured = distinct(rows, "search")
    content = io.BytesIO()
    measured.loc[measured["accuracy"].notna(), _COLUMNS].to_parquet(content, index=False)
    return content.getvalue()


def earlier_accuracies(policies: Storage, space: SearchSpace, dense: pd.Series) -> Accuracies:
    """Accuracies that were kept when a run was made, as far as they are of the same network.

    They are of it if weights, images, the code that compresses, and the accuracies of the
    uncompressed network are those of this run.

    Args:
        policies: Folder of the run's policies.
        space: What it does not hold is left out.
        dense: Row of the uncompressed network on the search split, of this run.

    Raises:
        InputError: the file is damaged.
    """
    nothing = held_by(space, (), ())
    initial = policies.child(INITIAL_POLICIES)
    if ACCURACIES not in initial.names():
        return nothing
    try:
        rows = pd.read_parquet(io.BytesIO(initial.read(ACCURACIES)))
        before = baseline(rows, DENSE_FP32, "search")
        if before is None or not _is_same(before, dense):
            return nothing
        return held_by(space, rows["config"], rows["accuracy"])
    except (ValueError, KeyError) as error:
        where = f"{initial.location}/{ACCURACIES}"
        raise InputError("init_from", where, f"it is damaged ({error})") from None


def _is_same(before: pd.Series, dense: pd.Series) -> bool:
    return all(before[name] == dense[name] for name in _SAME) and np.array_equal(
        before["block_accuracies"], dense["block_accuracies"], equal_nan=True
    )
