"""What compressed networks cost on embedded accelerators."""

from hwmodel.accelerator import Accelerator
from hwmodel.accelerator import load_accelerator
from hwmodel.accelerator import preset_names
from hwmodel.accelerator import preset_text
from hwmodel.errors import InputError
from hwmodel.layers_csv import read_layers
from hwmodel.pricing import cost
from hwmodel.report import CostReport
from hwmodel.states import LayerStates
from hwmodel.workload import LayerShape
from hwmodel.workload import VectorOperation
from hwmodel.workload import Workload

__all__ = [
    "Accelerator",
    "CostReport",
    "InputError",
    "LayerShape",
    "LayerStates",
    "VectorOperation",
    "Workload",
    "cost",
    "load_accelerator",
    "preset_names",
    "preset_text",
    "read_layers",
]
