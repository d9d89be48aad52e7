"""What is asked of evaluation workers. Who asks needs no torch, which takes seconds to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from envs.attack import Attack
from envs.config import CompressionConfig
from envs.task_spec import TaskSpec
from hwmodel import Accelerator
from hwmodel import InputError
from hwmodel.pricing import Level
from search.ledger import Evaluation
from search.storage import Storage


@dataclass(frozen=True)
class Request:
    """What to evaluate and on whose behalf; see :class:`search.ledger.Evaluation`."""

    config: CompressionConfig
    split: str
    role: str
    name: str = ""
    seed: int = -1
    algorithm: str = ""
    predicted_drop: float | None = None


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a process needs to become an evaluation worker; small and picklable.

    Attributes:
        task: The task, which the process loads itself.
        accelerator: What the network runs on.
        level: Level of the hardware model at which the ledger's costs are.
        database: Folder of the option database.
        ledger: Folder of the ledger.
        device: Where the network runs, ``cpu`` or ``cuda``.
        shared: Handle of a batch's :class:`search.sharing.Accuracies`; None outside of batches.
        errors: Folder for the tracebacks of evaluations that fail; None to keep none.
        attack: What robust accuracy is measured under; None not to measure it.
        weights_hash: Of the network that the task gives; None where nobody knows yet.
    """

    task: TaskSpec
    accelerator: Accelerator
    level: Level
    database: Storage
    ledger: Storage
    device: str = "cpu"
    shared: Any = None
    errors: Storage | None = None
    attack: Attack | None = None
    weights_hash: str | None = None


def evaluation_error(row: Evaluation) -> InputError | None:
    """The error of a row that must have succeeded, as one line for the user."""
    if row.error is None:
        return None
    return InputError(f"evaluation of {row.name or row.config_hash}", row.error, "it must succeed")
