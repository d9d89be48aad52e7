"""The fine level of an array that runs in processing passes: the best of those worth trying.

Such an array runs nothing else, so the mapper's loop nests would promise what it cannot do.
"""

from __future__ import annotations

import numpy as np

from hwmodel._pass_mapping import pass_choices
from hwmodel._passes import activity_of
from hwmodel._passes import loop_nest
from hwmodel._shapes import Shapes
from hwmodel._tiling import Crossing
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.coarse import VectorWork
from hwmodel.mapper import Mapping
from hwmodel.mapper.buffers import key_of
from hwmodel.mid import price_activity
from hwmodel.technology import Array
from hwmodel.technology import static_energy_per_cycle
from hwmodel.workload import Workload


def best_pass(
    workload: Workload,
    shapes: Shapes,
    index: int,
    asked: tuple[Demand, Crossing, VectorWork],
    accelerator: Accelerator,
    objective: str,
) -> Mapping:
    """The best mapping of one layer of one candidate, of those with about the least DRAM traffic.

    Args:
        workload: The network.
        shapes: Its layers.
        index: Which of them.
        asked: What the candidate asks of that layer, (1, 1) each.
        accelerator: An array with passes.
        objective: ``energy``, ``latency`` or ``edp``.

    Raises:
        InputError: the inputs and sums of the smallest possible pass do not fit the buffer.
    """
    demand, crossing, vector = asked
    choices = pass_choices(shapes, demand, accelerator, index)
    sum_bits = accelerator.precision.accumulator_bits
    activity = activity_of(choices, shapes.only(index), demand, sum_bits)
    priced = price_activity(activity, demand, accelerator, crossing, vector)

    def column(values: Array) -> Array:
        return np.broadcast_to(values, activity.cycles.shape)[:, 0]

    energy = np.sum([column(each) for each in priced.component_pj.values()], axis=0)
    cycles = column(priced.latency_cycles)
    best = int(np.lexsort(key_of(objective, energy, cycles)[::-1])[0])
    word_bits = {memory.name: memory.word_bits for memory in accelerator.memories}
    static = static_energy_per_cycle(accelerator)
    return Mapping(
        nest=loop_nest(workload.layers[index], int(demand.groups.item()), choices, best),
        traffic_bits={
            (memory, operand): float(column(words)[best]) * word_bits[memory]
            for (memory, operand), words in priced.traffic_words.items()
        },
        energy={
            name: float(column(each)[best])
            for name, each in priced.component_pj.items()
            if name not in static
        },
        cycles=float(cycles[best]),
        compute_cycles=float(column(activity.cycles)[best]),
        utilization=float(column(priced.utilization)[best]),
    )
