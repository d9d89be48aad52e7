"""One problem in, one mapping out, by the rules of a counting mode, found once."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from hwmodel.mapper.mapping import Mapping
from hwmodel.mapper.mapping import mapping_of
from hwmodel.mapper.nn_dataflow import find_row_stationary
from hwmodel.mapper.problem import ZIGZAG
from hwmodel.mapper.problem import Beside
from hwmodel.mapper.problem import Problem
from hwmodel.mapper.problem import Waiting
from hwmodel.mapper.search import search
from hwmodel.mapper.store import Store
from hwmodel.mapper.store import default_folder

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
    content = (counting, dataclasses.asdict(problem))
    return Store(Path(folder)).remembered(content, lambda: find(problem, counting))


def find(problem: Problem, counting: Counting) -> Mapping:
    """The best mapping of a layer, searched."""
    if counting == "nn_dataflow":
        return find_row_stationary(problem)
    if counting == "zigzag":  # which knows no more than the array and its memories
        problem = dataclasses.replace(
            problem,
            rules=ZIGZAG,
            broadcast=False,
            whole_vectors=False,
            waiting=Waiting(),
            beside=Beside(),
        )
    return mapping_of(problem, search(problem))
