"""One true evaluation: compress, run, price, and write it down before anyone uses it."""

from __future__ import annotations

import getpass
import hashlib
import json
import socket
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from pathlib import Path

from envs.config import CompressionConfig
from envs.evaluator import Evaluator
from envs.evaluator import weights_hash
from envs.layer_compression import COMPRESSION_VERSION
from envs.setup import prepare_evaluator
from envs.tasks import TaskSpec
from hwmodel import Accelerator
from hwmodel import CostReport
from hwmodel import InputError
from hwmodel import cost
from hwmodel.pricing import Level
from search.ledger import Evaluation
from search.ledger import Ledger
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
    """

    task: TaskSpec
    accelerator: Accelerator
    level: Level
    database: Storage
    ledger: Storage
    device: str = "cpu"


class EvaluationWorker:
    """Evaluates configurations one after the other; every result is in the ledger on return."""

    def __init__(self, spec: WorkerSpec, evaluator: Evaluator | None = None) -> None:
        if evaluator is None:
            directory = local_database(spec.database)
            evaluator = prepare_evaluator(spec.task.load(), directory, spec.device)
        self.spec = spec
        self.evaluator = evaluator
        self._ledger = Ledger(spec.ledger)
        self.weights_hash = weights_hash(evaluator.task.network)

    def price(self, config: CompressionConfig, level: Level | None = None) -> CostReport:
        """Cost of a configuration with the weights that it really leaves.

        Args:
            config: The configuration.
            level: Level of the hardware model; that of the ledger by default.
        """
        compressor = self.evaluator.compressor
        states = compressor.states(compressor.compress(config))
        workload = compressor.network.workload
        return cost(workload, states, self.spec.accelerator, level=level or self.spec.level)

    def evaluate(self, request: Request) -> Evaluation:
        """Measure, price and record one configuration.

        A configuration that cannot be evaluated is recorded with its error and no accuracy.

        Raises:
            InputError: the ledger cannot be written.
        """
        row = self._measure(request)
        self._ledger.append([row])
        return row

    def _measure(self, request: Request) -> Evaluation:
        start = datetime.now(timezone.utc)
        config = request.config
        accuracy, images, error = None, 0, None
        blocks: tuple[float, ...] = ()
        costs = dict.fromkeys(
            ("energy_pj", "latency_cycles", "bops", "model_bytes", "dram_bytes"), float("nan")
        )
        try:
            costs = total_costs(self.price(config))
            # What is reported is what an export computes; a search may be faster than that.
            exact = request.split != "search"
            result = self.evaluator.evaluate(config, request.split, exact=exact)
            accuracy, blocks, images = result.accuracy, result.block_accuracies, result.images
        except Exception as problem:  # one bad candidate must not end a search
            error = "".join(traceback.format_exception_only(problem)).strip()
        end = datetime.now(timezone.utc)
        return Evaluation(
            config_hash=config.hash,
            config=json.dumps(config.to_json()),
            task=self.evaluator.task.name,
            weights_hash=self.weights_hash,
            split=request.split,
            role=request.role,
            name=request.name,
            accuracy=accuracy,
            block_accuracies=blocks,
            images=images,
            **costs,
            accelerator=self.spec.accelerator.name,
            seconds=(end - start).total_seconds(),
            seed=request.seed,
            algorithm=request.algorithm,
            host=socket.gethostname(),
            time=end,
            code_version=COMPRESSION_VERSION,
            error=error,
        )


def total_costs(report: CostReport) -> dict[str, float]:
    """Costs of one inference of the only candidate of a report, by the ledger's names."""
    return {
        "energy_pj": float(report.energy_pj[0]),
        "latency_cycles": float(report.total_latency_cycles[0]),
        "bops": float(report.total_bops[0]),
        "model_bytes": float(report.model_bytes[0]),
        "dram_bytes": float(report.dram_bytes[0].sum()),
    }


def local_database(database: Storage) -> Path:
    """Folder of an option database on this machine, with all that a remote one holds."""
    if database.local is not None:
        return database.local
    place = hashlib.sha256(database.location.encode()).hexdigest()[:16]
    here = Storage.at(Path(tempfile.gettempdir()) / f"joulecut-{getpass.getuser()}" / place)
    here.make()
    for name in set(database.names("database")) - set(here.names("database")):
        here.write(name, database.read(name))
    return Path(here.root)


@contextmanager
def local_copy(storage: Storage) -> Iterator[Path]:
    """A local path with the files of a folder: the folder itself where it is local."""
    if storage.local is not None:
        yield storage.local
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in storage.names():
            (Path(temporary) / name).write_bytes(storage.read(name))
        yield Path(temporary)


def evaluation_error(row: Evaluation) -> InputError | None:
    """The error of a row that must have succeeded, as one line for the user."""
    if row.error is None:
        return None
    return InputError(f"evaluation of {row.name or row.config_hash}", row.error, "it must succeed")
