"""One configuration of one network, without a run: its accuracy and its cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from envs.attack import Attack
from envs.config import CompressionConfig
from envs.config import uniform
from envs.preference import LAYER_COSTS
from envs.setup import prepare_evaluator
from envs.setup import trace_task
from envs.tasks import TaskSpec
from envs.tasks import architecture
from envs.trace import trace
from hwmodel import Accelerator
from hwmodel import LayerStates
from hwmodel import Workload
from hwmodel import cost
from hwmodel.pricing import Level
from search.evaluation import supports
from search.evaluation import total_costs


def evaluate_config(
    task_spec: TaskSpec,
    config: CompressionConfig | None,
    accelerator: Accelerator,
    level: Level,
    split: str,
    attack: Attack | None = None,
    calibration_seed: int | None = None,
) -> dict[str, Any]:
    """Accuracy and cost of one configuration; of the network as trained if there is none.

    With ``calibration_seed`` it is compressed from another sample of calibration data.

    Returns:
        ``task``, ``split``, ``config_hash``, ``accuracy`` (0..1), ``images``, ``seconds`` and the
        costs of one inference by the ledger's names, which are None for the network as trained
        where that is wider than what the accelerator takes; under an attack also
        ``robust_accuracy`` and which attack that was.

    Raises:
        InputError: the configuration does not fit the network or the accelerator, or there is no
            such split or calibration sample.
    """
    task = task_spec.load()
    task.split(split)
    if calibration_seed is not None:
        task = replace(task, calibration=task.other_calibration(calibration_seed))
    evaluator = prepare_evaluator(task)
    compressor = evaluator.compressor
    trained = uniform(compressor.network.names, 32)
    is_priced = config is not None or supports(accelerator, trained)
    config = config or trained
    costs: dict[str, Any] = dict.fromkeys(LAYER_COSTS)
    if is_priced:
        states = compressor.states(compressor.compress(config))
        costs = total_costs(cost(compressor.network.workload, states, accelerator, level=level))
    result = evaluator.evaluate(config, split, attack=attack)
    return {
        "task": task.name,
        "accelerator": accelerator.name,
        "split": split,
        "config_hash": config.hash,
        "accuracy": result.accuracy,
        **({} if attack is None else _attacked(attack, result.robust_accuracy)),
        "images": result.images,
        "seconds": result.seconds,
        **costs,
    }


def _attacked(attack: Attack, robust_accuracy: float | None) -> dict[str, Any]:
    return {
        "robust_accuracy": robust_accuracy,
        "attack": attack.method,
        "epsilon": attack.epsilon,
        "attack_steps": attack.steps,
        "attack_images": attack.images,
    }


def network_states(
    task_spec: TaskSpec, config: CompressionConfig | None, dense_bits: int
) -> tuple[Workload, LayerStates]:
    """What a configuration leaves; without one the dense network, no zeros assumed.

    A dense network whose architecture is known by name needs no data, and no weights.

    Args:
        task_spec: The task.
        config: The configuration.
        dense_bits: Width of all operands where there is no configuration.

    Raises:
        InputError: the configuration does not fit the network.
    """
    if config is None:
        is_bare = task_spec.data is None and task_spec.weights in (None, "random")
        known = architecture(task_spec.name) if is_bare else None
        network = trace_task(task_spec.load()) if known is None else trace(*known, task_spec.name)
        return network.workload, LayerStates.dense(network.workload, dense_bits)
    task = task_spec.load()
    compressor = prepare_evaluator(task).compressor
    return compressor.network.workload, compressor.states(compressor.compress(config))
