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
from hwmodel.mid import price
from hwmodel.parts import Precision
from hwmodel.report import CostReport
from hwmodel.states import LayerStates
from hwmodel.workload import Workload

Level = Literal["coarse", "mid"]


def cost(
    workload: Workload, states: LayerStates, accelerator: Accelerator, level: Level = "mid"
) -> CostReport:
    """Price compressed versions of a network on an accelerator, all candidates at once.

    Args:
        workload: The dense network.
        states: What is left of every layer, for one or more candidates.
        accelerator: From :func:`hwmodel.load_accelerator`, or built in Python.
        level: ``coarse`` counts operations and storage; ``mid`` adds cycles, DRAM traffic and
            energy. The accelerator decides widths and weight format at both.

    Raises:
        InputError: an unknown level, states of another workload, more channels than a layer has,
            or an operand wider than the accelerator takes.
    """
    if level not in get_args(Level):
        raise InputError("level", level, f"use one of {', '.join(get_args(Level))}")
    shapes = shapes_of(workload)
    demand = demand_of(shapes, states, accelerator)
    unknown = np.full_like(demand.macs, np.nan)
    mid = price(shapes, demand, accelerator) if level == "mid" else None
    return CostReport(
        workload=workload.name,
        accelerator=accelerator.name,
        energy_unit=accelerator.energy_unit,
        layers=tuple(layer.name for layer in workload.layers),
        component_pj=mid.component_pj if mid else {},
        latency_cycles=mid.latency_cycles if mid else unknown,
        macs=demand.macs,
        effective_macs=demand.effective_macs,
        bops=demand.bops,
        bops_linear=demand.bops_linear,
        parameters=demand.parameters,
        weight_bytes=demand.weight_bytes,
        activation_bytes=demand.activation_bytes,
        arithmetic_intensity=demand.arithmetic_intensity,
        dram_bytes=mid.dram_bytes if mid else unknown,
        dram_words=mid.dram_words if mid else unknown,
        utilization=mid.utilization if mid else unknown,
        traffic_words=mid.traffic_words if mid else {},
        notes=_notes(states, demand, accelerator.precision),
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
