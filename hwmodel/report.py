"""What a cost model answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hwmodel.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

COMPONENTS = ("mac", "register_file", "array_network", "buffer", "dram")
"""Where energy goes; ``vector``, ``leakage`` and ``clock`` follow where
the accelerator states them."""

_TABLE_COLUMNS = (
    "latency_cycles",
    "utilization",
    "macs",
    "effective_macs",
    "bops",
    "bops_linear",
    "parameters",
    "weight_bytes",
    "activation_bytes",
    "arithmetic_intensity",
    "dram_bytes",
    "dram_words",
)


@dataclass(frozen=True)
class CostReport:
    """Cost of one inference (of ``LayerShape.batch`` images) for every candidate and layer.

    The coarse level knows no energy and no time: ``component_pj`` is empty there, and every
    quantity it does not know is NaN, so that it cannot be mistaken for a free one.

    Attributes:
        workload, accelerator: Their names.
        energy_unit: Of every energy here, also where a name says ``pj``: ``pJ``, or ``MAC`` on an
            accelerator that only states ratios to one multiply-accumulate.
        layers: Layer names, in execution order.
        component_pj: Energy by component (see ``COMPONENTS``), (candidates, layers) each.
        latency_cycles: Cycles, the largest of three: computing, with the loads that it waits for
            and the start-up; the transfers of each buffer and DRAM with a bandwidth; the vector
            unit, which is added to computing where it does not overlap. The fine level adds
            transfers that nothing hides. (candidates, layers), like all that follow.
        macs: Multiply-accumulates with the channels left.
        effective_macs: Those of them whose weight is not zero.
        bops: Bit operations, ``effective_macs * weight_bits * activation_bits``.
        bops_linear: Bit operations by the other published convention, linear in bits:
            ``effective_macs * max(weight_bits, activation_bits)``.
        parameters: Weights of the channels left that are not zero.
        weight_bytes: Weights as stored in DRAM, compressed where that pays.
        activation_bytes: Input and output feature map together, as stored.
        arithmetic_intensity: MACs for each byte of weights and maps, 0 for a layer that is gone.
        dram_bytes: Bytes that cross the DRAM interface, refetches and padding to atoms included.
        dram_words: The same in words of the DRAM (its ``word_bits``), at each operand's width.
        utilization: Fraction of multipliers at work while computing, zeros counted as work.
        traffic_words: Words read and written by (memory, operand), in words of that memory;
            operands are ``weight``, ``input`` and ``output``, which includes partial sums.
        notes: What a user should know about how this was priced, such as widths rounded up.
        mappings: The mapping found, per candidate and layer; None where no mapping is searched.
    """

    workload: str
    accelerator: str
    energy_unit: str
    layers: tuple[str, ...]
    component_pj: dict[str, NDArray[np.float64]]
    latency_cycles: NDArray[np.float64]
    macs: NDArray[np.float64]
    effective_macs: NDArray[np.float64]
    bops: NDArray[np.float64]
    bops_linear: NDArray[np.float64]
    parameters: NDArray[np.float64]
    weight_bytes: NDArray[np.float64]
    activation_bytes: NDArray[np.float64]
    arithmetic_intensity: NDArray[np.float64]
    dram_bytes: NDArray[np.float64]
    dram_words: NDArray[np.float64]
    utilization: NDArray[np.float64]
    traffic_words: dict[tuple[str, str], NDArray[np.float64]]
    notes: tuple[str, ...] = ()
    mappings: tuple[tuple[object, ...], ...] | None = None

    def __len__(self) -> int:
        return self.macs.shape[0]

    @property
    def layer_energy_pj(self) -> NDArray[np.float64]:
        """Energy of every layer, (candidates, layers); NaN at the coarse level."""
        if not self.component_pj:
            return np.full_like(self.macs, np.nan)
        return np.sum(list(self.component_pj.values()), axis=0)

    @property
    def energy_pj(self) -> NDArray[np.float64]:
        """Energy of the network, (candidates,); NaN at the coarse level."""
        return self.layer_energy_pj.sum(axis=1)

    @property
    def total_latency_cycles(self) -> NDArray[np.float64]:
        """Cycles of the network, one layer after the other, (candidates,)."""
        return self.latency_cycles.sum(axis=1)

    @property
    def total_bops(self) -> NDArray[np.float64]:
        """Bit operations of the network, (candidates,)."""
        return self.bops.sum(axis=1)

    @property
    def model_bytes(self) -> NDArray[np.float64]:
        """Bytes of all weights as stored, (candidates,)."""
        return self.weight_bytes.sum(axis=1)

    def to_pandas(self, candidate: int = 0) -> pd.DataFrame:
        """One row per layer of one candidate.

        Columns: ``layer``; ``energy_pj`` and its parts ``mac_pj``, ``register_file_pj``,
        ``array_network_pj``, ``buffer_pj``, ``dram_pj`` (the parts are left out at the coarse
        level); ``latency_cycles``; ``utilization`` (0 to 1); ``macs`` and ``effective_macs``
        (operations); ``bops`` and ``bops_linear`` (bit operations); ``parameters`` (non-zero
        weights); ``weight_bytes``, ``activation_bytes``, ``arithmetic_intensity`` (MACs a byte);
        ``dram_bytes``, ``dram_words``, and ``MEMORY_OPERAND_words`` of ``traffic_words`` (these
        are left out where not known).

        Raises:
            InputError: there is no such candidate.
        """
        import pandas as pd

        if not 0 <= candidate < len(self):
            raise InputError("candidate", candidate, f"use 0 to {len(self) - 1}")
        columns = {"layer": list(self.layers), "energy_pj": self.layer_energy_pj[candidate]}
        columns |= {f"{name}_pj": pj[candidate] for name, pj in self.component_pj.items()}
        columns |= {name: getattr(self, name)[candidate] for name in _TABLE_COLUMNS}
        columns |= {
            f"{memory}_{operand}_words": words[candidate]
            for (memory, operand), words in self.traffic_words.items()
        }
        return pd.DataFrame(columns)
