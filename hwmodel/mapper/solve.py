"""One problem in, one mapping out, by the rules of a counting mode, found once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from hwmodel.mapper.mapping import Mapping
from hwmodel.mapper.mapping import mapping_of
from hwmodel.mapper.nn_dataflow import find_row_stationary
from hwmodel.mapper.problem import NATIVE
from hwmodel.mapper.problem import ZIGZAG
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.search import search
from hwmodel.mapper.store import Store
from hwmodel.mapper.store import default_folder
from hwmodel.mapper.store import key_of

Counting = Literal["native", "nn_dataflow", "zigzag"]


def solve(problem: Problem, counting: Counting = "native") -> Mapping:
    """The best mapping of a layer.

    Answers are kept in this process and in a folder (see ``store``).

    Raises:
        InputError: nothing fits the memories.
    """
    return _solved(problem, counting, default_folder().as_posix())


@functools.lru_cache(maxsize=65536)
def _solved(problem: Problem, counting: Counting, folder: str) -> Mapping:
    from pathlib import Path

    store = Store(Path(folder))
    key = key_of(problem, counting)
    known = store.get(key)
    if known is not None:
        return known
    mapping = find(problem, counting)
    store.put(key, mapping)
    return mapping


def find(problem: Problem, counting: Counting) -> Mapping:
    """The best mapping of a layer, searched."""
    if counting == "nn_dataflow":
        return find_row_stationary(problem)
    problem = dataclasses.replace(problem, rules=ZIGZAG if counting == "zigzag" else NATIVE)
    return mapping_of(problem, search(problem))
