"""One true evaluation: compress, run, price, and write it down before anyone uses it."""

from __future__ import annotations

import json
import logging
import socket
import time
import traceback
from collections.abc import Sequence
from datetime import datetime
from datetime import timezone

import ray
import torch

from envs.config import CompressionConfig
from envs.evaluator import EvaluationResult
from envs.evaluator import Evaluator
from envs.evaluator import is_out_of_memory
from envs.evaluator import weights_hash
from envs.layer_compression import COMPRESSION_VERSION
from envs.preference import LAYER_COSTS
from envs.setup import prepare_evaluator
from envs.setup import recalibrated
from hwmodel import Accelerator
from hwmodel import CostReport
from hwmodel import InputError
from hwmodel import LayerStates
from hwmodel import cost
from hwmodel.pricing import Level
from search.failure import keep_trace
from search.ledger import RECALIBRATED
from search.ledger import Evaluation
from search.ledger import Ledger
from search.permit import Permit
from search.requests import Request
from search.requests import WorkerSpec
from search.sharing import Key
from search.storage import local_database

_log = logging.getLogger(__name__)
RECALIBRATION_SEED = 1
"""Of the sample of calibration data that picks are compressed from again: the same for all."""
_NO_COSTS = dict.fromkeys(LAYER_COSTS, float("nan"))


class EvaluationWorker:
    """Evaluates configurations one after the other; every result is in the ledger on return.

    Args:
        spec: What to evaluate.
        evaluator: Made from ``spec`` if None.
        permit: To add to the ledger; asked for before every row. None where there is no need.
        threads: Of torch in this process; as they are if None.

    Raises:
        InputError: the task gives another network than in another process.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        evaluator: Evaluator | None = None,
        *,
        permit: Permit | None = None,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        if evaluator is None:
            directory = local_database(spec.database)
            evaluator = prepare_evaluator(spec.task.load(), directory, _device(spec.device))
        self.spec = spec
        self.evaluator = evaluator
        self._ledger = Ledger(spec.ledger)
        self._permit = permit
        self._recalibrated: Evaluator | None = None
        self.weights_hash = weights_hash(evaluator.task.network)
        if spec.weights_hash not in (None, self.weights_hash):
            allowed = (
                "it gave other weights in another process: seed what is random, or read trained "
                "weights from a file"
            )
            raise InputError("task", spec.task.name, allowed)

    def price(self, config: CompressionConfig, level: Level | None = None) -> CostReport:
        """Cost of a configuration with the weights that it really leaves.

        Args:
            config: The configuration.
            level: Level of the hardware model; that of the ledger by default.
        """
        return self.price_states(self.states(config), level)

    def states(self, config: CompressionConfig) -> LayerStates:
        """What the hardware sees of a configuration."""
        return _states(self.evaluator, config)

    def price_states(self, states: LayerStates, level: Level | None = None) -> CostReport:
        """As :meth:`price`, of what the hardware sees of a configuration."""
        workload = self.evaluator.compressor.network.workload
        return cost(workload, states, self.spec.accelerator, level=level or self.spec.level)

    def evaluate(self, request: Request, *, again: bool = False) -> Evaluation:
        """:meth:`evaluate_all` of one."""
        return self.evaluate_all([request], again=again)[0]

    def evaluate_all(self, requests: Sequence[Request], *, again: bool = False) -> list[Evaluation]:
        """Measure and price configurations, and record them together.

        A configuration that cannot be evaluated is recorded with its error and no accuracy.

        Args:
            requests: What to evaluate.
            again: Another worker was asked before and did not answer: what it may have recorded
                before it was lost is not evaluated again.

        Raises:
            InputError: the ledger cannot be written, or no longer by this worker.
        """
        rows, made = [], []
        for request in requests:
            row = self._ledger.find(request.config.hash, request.split) if again else None
            if row is None:
                row = self._evaluate(request)
                made.append(row)
            rows.append(row)
        self._record(made)
        return rows

    def record_failure(self, request: Request, error: str) -> Evaluation:
        """Record that a configuration could not be evaluated by the workers that were asked."""
        row = self._row(request, time.perf_counter(), _NO_COSTS, None, error)
        self._record([row])
        return row

    def _evaluate(self, request: Request) -> Evaluation:
        start = time.perf_counter()
        try:
            evaluator = self._evaluator(request.split)
            costs, result = self._costs(request, evaluator), self._result(request, evaluator)
        except Exception as problem:  # one bad candidate must not end a search
            error = "".join(traceback.format_exception_only(problem)).strip()
            if self.spec.errors is not None:
                name = f"{request.config.hash}-{request.split}"
                keep_trace(self.spec.errors, traceback.format_exc(), name)
            return self._row(request, start, _NO_COSTS, None, error)
        return self._row(request, start, costs, result, None)

    def _evaluator(self, split: str) -> Evaluator:
        """What measures on a split; statistics of further calibration data are gathered here."""
        if split != RECALIBRATED:
            return self.evaluator
        if self._recalibrated is None:
            directory = local_database(self.spec.database)
            self._recalibrated = recalibrated(self.evaluator, RECALIBRATION_SEED, directory)
        return self._recalibrated

    def _costs(self, request: Request, evaluator: Evaluator) -> dict[str, float]:
        """Costs of a configuration; NaN for a baseline that is too wide for the accelerator.

        What is lost is told against dense FP32 also where no more than 8 or 16 bits can be run.
        """
        if request.role == "baseline" and not supports(self.spec.accelerator, request.config):
            return _NO_COSTS
        return total_costs(self.price_states(_states(evaluator, request.config)))

    def _result(self, request: Request, evaluator: Evaluator) -> EvaluationResult:
        """Accuracy of a configuration, which another run of a batch may know."""
        shared = self.spec.shared
        if shared is None:
            return self._run(request, evaluator)
        task, attack = self.spec.task, self.spec.attack
        key = Key(task, self.weights_hash, request.split, request.config.hash, attack)
        result: EvaluationResult | None = ray.get(shared.claim.remote(key))
        if result is None:
            try:
                result = self._run(request, evaluator)
            finally:
                shared.record.remote(key, result)
        return result

    def _run(self, request: Request, evaluator: Evaluator) -> EvaluationResult:
        split = "test" if request.split == RECALIBRATED else request.split
        while True:
            try:
                return evaluator.evaluate(request.config, split, attack=self.spec.attack)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not evaluator.halve_batches():
                    raise

    def _record(self, rows: list[Evaluation]) -> None:
        if self._permit is not None:
            self._permit.require()
        self._ledger.append(rows)

    def _row(
        self,
        request: Request,
        start: float,
        costs: dict[str, float],
        result: EvaluationResult | None,
        error: str | None,
    ) -> Evaluation:
        config = request.config
        return Evaluation(
            config_hash=config.hash,
            config=json.dumps(config.to_json()),
            task=self.evaluator.task.name,
            weights_hash=self.weights_hash,
            split=request.split,
            role=request.role,
            name=request.name,
            accuracy=result.accuracy if result else None,
            block_accuracies=result.block_accuracies if result else (),
            images=result.images if result else 0,
            robust_accuracy=result.robust_accuracy if result else None,
            **costs,
            accelerator=self.spec.accelerator.name,
            seconds=time.perf_counter() - start,
            seed=request.seed,
            algorithm=request.algorithm,
            host=socket.gethostname(),
            time=datetime.now(timezone.utc),
            code_version=COMPRESSION_VERSION,
            error=error,
            predicted_drop=request.predicted_drop,
        )


def _states(evaluator: Evaluator, config: CompressionConfig) -> LayerStates:
    compressor = evaluator.compressor
    return compressor.states(compressor.compress(config))


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        _log.warning("a GPU is reserved and torch sees none: evaluating on the CPU")
        return "cpu"
    return wanted


def supports(accelerator: Accelerator, config: CompressionConfig) -> bool:
    """Whether an accelerator has operands as wide as those of a configuration."""
    precision = accelerator.precision
    return all(
        decision.weight_bits <= max(precision.weight_bits)
        and decision.activation_bits <= max(precision.activation_bits)
        for decision in config.layers.values()
    )


def total_costs(report: CostReport) -> dict[str, float]:
    """Costs of one inference of the only candidate of a report, by the ledger's names."""
    return {name: float(getattr(report, of)[0].sum()) for name, of in LAYER_COSTS.items()}
