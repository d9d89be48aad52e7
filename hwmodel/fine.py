"""The fine level: the best mapping of every layer, searched.

Layers are looked up by content first: in this call, in this process (here), then in the folder that
processes share (``hwmodel.mapper.store``).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from hwmodel._best_pass import best_pass
from hwmodel._mapping_problem import Work
from hwmodel._mapping_problem import problem_of
from hwmodel._mapping_problem import work_table
from hwmodel._shapes import Shapes
from hwmodel._tiling import Crossing
from hwmodel._tiling import crossing_of
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.coarse import VectorWork
from hwmodel.coarse import vector_work
from hwmodel.mapper import Mapping
from hwmodel.mapper import solve
from hwmodel.mapper.solve import Counting
from hwmodel.mapper.store import Store
from hwmodel.mapper.store import default_folder
from hwmodel.report import COMPONENTS
from hwmodel.technology import Array
from hwmodel.technology import static_energy_per_cycle
from hwmodel.workload import Workload

Asked = TypeVar("Asked", Demand, Crossing, VectorWork)


@dataclass(frozen=True)
class FineCost:
    """What the fine level adds to the demand, (candidates, layers) each. See ``CostReport``."""

    component_pj: dict[str, Array]
    latency_cycles: Array
    dram_bytes: Array
    dram_words: Array
    utilization: Array
    traffic_words: dict[tuple[str, str], Array]
    mappings: tuple[tuple[Mapping | None, ...], ...]


def map_layers(
    workload: Workload,
    shapes: Shapes,
    demand: Demand,
    accelerator: Accelerator,
    objective: str,
    counting: Counting,
) -> FineCost:
    """Price every candidate and layer by the best mapping; None for layers that are gone.

    Layers priced before, in any candidate or call, are looked up.

    Raises:
        InputError: a layer fits no mapping.
    """
    crossing = crossing_of(shapes, demand, accelerator)
    vector = vector_work(shapes, demand)
    description = accelerator.model_dump_json()
    known = _known(shapes, description, objective, counting)
    columns = _Columns(accelerator)
    table = work_table(demand, crossing, vector)
    in_passes = accelerator.array.passes and counting == "native"

    def best(candidate: int, index: int) -> Mapping | None:
        work, layer = Work(table[candidate, index]), workload.layers[index]
        if not work["macs"]:
            return None
        if not in_passes:
            return solve(problem_of(layer, work, accelerator, objective), counting)
        at = np.s_[candidate : candidate + 1, index : index + 1]
        asked = (_only(demand, at), _only(crossing, at), _only(vector, at))
        content = [objective, description, dataclasses.asdict(layer), work.numbers]
        return Store(default_folder()).remembered(
            content, lambda: best_pass(workload, shapes, index, asked, accelerator, objective)
        )

    numbers = np.empty((*demand.macs.shape, columns.count))
    mappings = []
    for candidate, layers in enumerate(table):
        row: list[Mapping | None] = []
        for index, work in enumerate(layers):
            key = (index, work.tobytes())
            found = known.get(key)
            if found is None:
                mapping = best(candidate, index)
                if len(known) >= MOST_KNOWN:
                    known.clear()
                found = known[key] = (mapping, columns.of(mapping))
            row.append(found[0])
            numbers[candidate, index] = found[1]
        mappings.append(tuple(row))
    return columns.report(numbers, tuple(mappings))


def _only(source: Asked, at: tuple[slice, slice]) -> Asked:
    """One layer of one candidate, (1, 1); numbers that hold for all stay as they are."""
    arrays = {name: each[at] for name, each in vars(source).items() if isinstance(each, np.ndarray)}
    return dataclasses.replace(source, **arrays)


Known = dict[tuple[int, bytes], tuple[Mapping | None, Array]]
"""By layer and content: its mapping, and the numbers that the report takes from it."""

MOST_KNOWN = 100_000
"""Layers remembered for one network on one accelerator."""


@functools.lru_cache(maxsize=16)
def _known(shapes: Shapes, accelerator: str, objective: str, counting: Counting) -> Known:
    """What is known of one network on one accelerator, in this process."""
    return {}


class _Columns:
    """Where the numbers of a mapping stand in a row."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.static = static_energy_per_cycle(accelerator)
        self.word_bits = {memory.name: memory.word_bits for memory in accelerator.memories}
        self.dram = {memory.name for memory in accelerator.memories if memory.role == "dram"}
        self.traffic = [
            (memory.name, operand) for memory in accelerator.memories for operand in memory.operands
        ]
        self.components = COMPONENTS + (("vector",) if accelerator.vector_unit else ())
        self.first_traffic = len(self.components) + 2
        self.count = self.first_traffic + len(self.traffic)

    def of(self, mapping: Mapping | None) -> Array:
        """Energy of the components, cycles, utilization, and bits of all traffic."""
        if mapping is None:
            return np.zeros(self.count)
        return np.array(
            [mapping.energy.get(name, 0.0) for name in self.components]
            + [mapping.cycles, mapping.utilization]
            + [mapping.traffic_bits.get(key, 0.0) for key in self.traffic]
        )

    def report(self, numbers: Array, mappings: tuple[tuple[Mapping | None, ...], ...]) -> FineCost:
        """The report of all rows, (candidates, layers, columns)."""
        cycles = numbers[..., len(self.components)]
        components = {name: numbers[..., index] for index, name in enumerate(self.components)}
        components |= {name: cycles * per_cycle for name, per_cycle in self.static.items()}
        traffic = {}
        dram_bits, dram_words = np.zeros(cycles.shape), np.zeros(cycles.shape)
        for index, (memory, operand) in enumerate(self.traffic, start=self.first_traffic):
            bits = numbers[..., index]
            traffic[memory, str(operand)] = bits / self.word_bits[memory]
            if memory in self.dram:
                dram_bits += bits
                dram_words += bits / self.word_bits[memory]
        return FineCost(
            component_pj=components,
            latency_cycles=cycles,
            dram_bytes=dram_bits / 8,
            dram_words=dram_words,
            utilization=numbers[..., len(self.components) + 1],
            traffic_words=traffic,
            mappings=mappings,
        )
