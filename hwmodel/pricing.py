"""The one entry to every cost model."""

from __future__ import annotations

from typing import Literal
from typing import get_args

import numpy as np

from hwmodel._shapes import shapes_of
from hwmodel.accelerator import Accelerator
from hwmodel.coarse import Demand
from hwmodel.coarse import demand_of
from hwmodel.errors import InputError
from hwmodel.fine import FineCost
from hwmodel.fine import map_layers
from hwmodel.mapper.solve import Counting
from hwmodel.mid import MidCost
from hwmodel.mid import price
from hwmodel.parts import Precision
from hwmodel.report import CostReport
from hwmodel.states import LayerStates
from hwmodel.workload import Workload

Level = Literal["coarse", "mid", "fine"]
Objective = Literal["energy", "latency", "edp"]


def cost(
    workload: Workload,
    states: LayerStates,
    accelerator: Accelerator,
    level: Level = "mid",
    objective: Objective = "energy",
    counting: Counting = "native",
) -> CostReport:
    """Price compressed versions of a network on an accelerator, all candidates at once.

    Args:
        workload: The dense network.
        states: What is left of every layer, for one or more candidates.
        accelerator: From :func:`hwmodel.load_accelerator`, or built in Python.
        level: ``coarse`` counts operations and storage; ``mid`` adds cycles, DRAM traffic and
            energy in closed form; ``fine`` searches the best mapping of every layer. The
            accelerator decides widths and weight format at all of them.
        objective: What the fine level minimizes; ``edp`` is energy times cycles, layer by layer.
        counting: Whose rules count accesses at the fine level: ours, or those of the mappers
            nn_dataflow and ZigZag, to compare with them. See docs/hardware-model.md.

    Raises:
        InputError: an unknown level, objective or counting, states of another workload, more
            channels than a layer has, an operand wider than the accelerator takes, or a layer
            that cannot be mapped.
    """
    for key, value, kind in (
        ("level", level, Level),
        ("objective", objective, Objective),
        ("counting", counting, Counting),
    ):
        if value not in get_args(kind):
            raise InputError(key, value, f"use one of {', '.join(get_args(kind))}")
    shapes = shapes_of(workload)
    demand = demand_of(shapes, states, accelerator)
    unknown = np.full_like(demand.macs, np.nan)
    priced: MidCost | FineCost | None = None
    if level == "mid":
        priced = price(shapes, demand, accelerator)
    elif level == "fine":
        priced = map_layers(workload, shapes, demand, accelerator, objective, counting)
    return CostReport(
        workload=workload.name,
        accelerator=accelerator.name,
        energy_unit=accelerator.energy_unit,
        layers=tuple(layer.name for layer in workload.layers),
        component_pj=priced.component_pj if priced else {},
        latency_cycles=priced.latency_cycles if priced else unknown,
        macs=demand.macs,
        effective_macs=demand.effective_macs,
        bops=demand.bops,
        bops_linear=demand.bops_linear,
        parameters=demand.parameters,
        weight_bytes=demand.weight_bytes,
        activation_bytes=demand.activation_bytes,
        arithmetic_intensity=demand.arithmetic_intensity,
        dram_bytes=priced.dram_bytes if priced else unknown,
        dram_words=priced.dram_words if priced else unknown,
        utilization=priced.utilization if priced else unknown,
        traffic_words=priced.traffic_words if priced else {},
        notes=_notes(states, demand, accelerator.precision),
        mappings=priced.mappings if isinstance(priced, FineCost) else None,
    )


def _notes(states: LayerStates, demand: Demand, precision: Precision) -> tuple[str, ...]:
    """Widths that the accelerator lacks, and what they became."""
    notes = []
    for name, supported in (
        ("weight_bits", precision.weight_bits),
        ("activation_bits", precision.activation_bits),
        ("output_bits", precision.activation_bits),
    ):
        asked = getattr(states, name)
        differs = asked != getattr(demand, name)
        if differs.any():
            # Counting is much faster than a set of what may be a hundred thousand values.
            counts = np.bincount(np.ceil(asked[differs]).astype(np.int64))
            widths = ", ".join(
                f"{width} to {min(each for each in supported if each >= width)}"
                for width in np.flatnonzero(counts).tolist()
            )
            notes.append(f"{name} rounded up to what the accelerator has: {widths}")
    return tuple(notes)
