"""Black-box optimizers of Optuna as proposers: what the policies are compared to."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from envs.problem import CompressionProblem
from hwmodel.errors import InputError
from search.measurements import Measurements
from search.measurements import Reference

_COLUMNS = ("method", "sparsity", "weight_bits", "activation_bits")
_REPEATS = 20
"""Times as many suggestions as were asked for, before repeats of what is known end a batch."""


def require_optuna() -> ModuleType:
    """Optuna, which is an optional dependency.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        allowed = "it needs Optuna: pip install optuna"
        raise InputError("algorithm", "optuna", allowed) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class OptunaProposer:
    """Least cost ratio and accuracy drop at once, by multi-objective TPE or NSGA-II.

    Every column of every layer is one integer parameter: menus ascend, and methods are few. What
    others measured, the baselines among it, is told like its own.

    Args:
        problem: What is decided and how it is priced.
        reference: What measurements are compared to.
        seed: Of the sampler.
        algorithm: ``optuna-tpe`` or ``optuna-nsga2``.

    Raises:
        InputError: Optuna is not installed.
    """

    def __init__(
        self, problem: CompressionProblem, reference: Reference, seed: int, algorithm: str
    ) -> None:
        self._optuna = require_optuna()
        samplers = self._optuna.samplers
        sampler = (
            samplers.TPESampler(seed=seed, constant_liar=True)
            if algorithm == "optuna-tpe"
            else samplers.NSGAIISampler(seed=seed)
        )
        self._study = self._optuna.create_study(
            directions=["minimize", "minimize"], sampler=sampler
        )
        integer = self._optuna.distributions.IntDistribution
        self._distributions = {
            f"{layer}.{column}": integer(0, int(size) - 1)
            for layer, name in enumerate(problem.space.layers)
            if name not in problem.space.pinned
            for column, size in zip(_COLUMNS, problem.space.sizes, strict=True)
        }
        self._known = Measurements(problem, reference)
        self._values: dict[str, tuple[float, float]] = {}
        self._asked: dict[str, int] = {}

    def propose(self, count: int) -> NDArray[np.int64]:
        space = self._known.problem.space
        picked: list[NDArray[np.int64]] = []
        for _ in range(_REPEATS * count):
            if len(picked) == count:
                break
            trial = self._study.ask(self._distributions)
            choice = space.canonical(self._choice(trial.params))
            config_hash = space.config(choice).hash
            if config_hash in self._values:  # many parameters stand for one configuration
                self._study.tell(trial, self._values[config_hash])
            elif config_hash in self._asked:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            else:
                self._asked[config_hash] = trial.number
                picked.append(choice)
        return np.stack(picked) if picked else self._known.choices[:0]

    def learn(self, choices: NDArray[np.int64], accuracy: NDArray[np.float64]) -> None:
        before = len(self._known.choices)
        self._known.add(choices, accuracy)
        ratio = self._known.cost_ratio[before:]
        drop = self._known.accuracy_drop[before:]
        for choice, *values in zip(choices, ratio, drop, strict=True):
            config_hash = self._known.problem.space.config(choice).hash
            self._values[config_hash] = (float(values[0]), float(values[1]))
            number = self._asked.pop(config_hash, None)
            if number is not None:
                self._study.tell(number, self._values[config_hash])
            else:
                self._study.add_trial(
                    self._optuna.trial.create_trial(
                        params=self._parameters(choice),
                        distributions=self._distributions,
                        values=self._values[config_hash],
                    )
                )

    def save(self) -> None:
        """Nothing to keep: a study made later is told what the ledger holds."""

    def _choice(self, parameters: dict[str, int]) -> NDArray[np.int64]:
        choice = np.zeros((len(self._known.problem.space.layers), len(_COLUMNS)), dtype=np.int64)
        for name, value in parameters.items():
            layer, column = name.split(".")
            choice[int(layer), _COLUMNS.index(column)] = value
        return choice

    def _parameters(self, choice: NDArray[np.int64]) -> dict[str, int]:
        parameters = {}
        for name in self._distributions:
            layer, column = name.split(".")
            parameters[name] = int(choice[int(layer), _COLUMNS.index(column)])
        return parameters
