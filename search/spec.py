"""The specification of a run: one YAML file, validated, hashed, and the way back to YAML."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Any
from typing import Literal

import yaml
from pydantic import AfterValidator
from pydantic import BaseModel
from pydantic import BeforeValidator
from pydantic import ConfigDict
from pydantic import Field
from pydantic import PlainSerializer
from pydantic import SerializerFunctionWrapHandler
from pydantic import ValidationInfo
from pydantic import field_validator
from pydantic import model_serializer

from envs.attack import Attack
from envs.attack import AttackMethod
from envs.config import INTEGER_BITS
from envs.config import LayerDecision
from envs.config import Repair
from envs.config import check_keys
from envs.limits import CostLimits
from envs.preference import ENERGY
from envs.preference import LAYER_COSTS
from envs.preference import Preference
from envs.quantizer import DEFAULT_QUANTIZER
from envs.quantizer import Quantizer
from envs.reconstruction_settings import DEFAULT_RECONSTRUCTION
from envs.reconstruction_settings import Reconstruction
from envs.settings import read_settings
from envs.space import DEFAULT_METHODS
from envs.space import Method
from envs.task_spec import TaskSpec
from hwmodel.errors import InputError
from hwmodel.plain_data import parse_yaml
from hwmodel.plain_data import validated
from search.baselines import BASELINES
from search.goals import Goals
from search.learners import MEASURED_LEARNERS
from search.policy_settings import PolicySettings
from search.policy_settings import require_used

if TYPE_CHECKING:
    from envs.setup import Menu

MIN_BUDGET = 16
"""Room for the baselines and a few proposals of the search."""

Algorithm = Literal[
    "ppo",
    "appo",
    "ppo-rounds",
    "composite",
    "dp",
    "dp+local",
    "dp+fitted",
    "random",
    "uniform",
    "optuna-tpe",
    "optuna-nsga2",
]
"""What proposes configurations; see ``search.proposers``."""
Accuracy = Literal["predicted", "measured"]
"""What policies learn from: a predictor that true evaluations correct, or these alone."""

_LATER = (
    "accuracy", "energy_targets", "init_from", "limits", "policies", "preference", "robustness",
)  # fmt: skip
"""Fields that are not in a hash at their defaults."""
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    _check_distinct(values)
    return tuple(sorted(values))


def _check_distinct(values: Sequence[object]) -> Sequence[object]:
    if len(set(values)) != len(values):
        raise InputError("", list(values), "use every value once")
    return values


def _none_first(names: tuple[str, ...]) -> tuple[str, ...]:
    for position, name in enumerate(names):
        try:
            Method.parse(name)
        except InputError as error:
            raise InputError(f"[{position}]", name, error.allowed) from None
    if "none" not in names:
        raise InputError("", list(names), "'none' must be among them")
    _check_distinct(names)
    return ("none", *(name for name in names if name != "none"))


def _decision(value: object) -> object:
    """A layer's decision from its keys; those left out have the defaults of LayerDecision."""
    if isinstance(value, LayerDecision):
        return value
    known = {item.name for item in fields(LayerDecision)}
    if not isinstance(value, Mapping):
        raise InputError("", value, f"use a mapping with keys {', '.join(sorted(known))}")
    check_keys("", value, required=set(), optional=known)
    return LayerDecision(**value)


def _seconds(text: str | None) -> str | None:
    if text is not None and parse_duration(text) is None:
        raise InputError("", text, "use a number with s, m or h, such as 90s, 30m, 2h")
    return text


def parse_duration(text: str) -> float | None:
    """Seconds in ``90s``, ``30m`` or ``2h``; None where the text is something else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match or float(match[1]) == 0:
        return None
    return float(match[1]) * _SECONDS[match[2]]


def _task(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


_Bits = Annotated[int, Field(ge=min(INTEGER_BITS), le=max(INTEGER_BITS), strict=True)]
_Widths = Annotated[tuple[_Bits, ...], Field(min_length=1), AfterValidator(_ascending)]
_Sparsity = Annotated[float, Field(gt=0, lt=1, strict=True)]
_Points = Annotated[float, Field(gt=0, le=100, strict=True)]
_Ratio = Annotated[float, Field(gt=0, le=1, strict=True)]
_Weight = Annotated[float, Field(ge=0, le=1e9, strict=True)]
_Limit = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
_Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Units = Annotated[int, Field(ge=1, le=4096, strict=True)]
_Text = Annotated[str, Field(min_length=1)]
_Decision = Annotated[LayerDecision, BeforeValidator(_decision), PlainSerializer(asdict)]
_Quantizer = Annotated[
    Quantizer,
    BeforeValidator(partial(read_settings, Quantizer)),
    PlainSerializer(Quantizer.to_json),
]
_Reconstruction = Annotated[
    Reconstruction,
    BeforeValidator(partial(read_settings, Reconstruction)),
    PlainSerializer(Reconstruction.to_json),
]


class Section(BaseModel):
    """Part of a file that a user writes: every key is known, no value changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class TaskSection(Section):
    """Which network and data.

    Attributes:
        name: Name of a task (``joulecut tasks``), or ``module:function``.
        data: Folder of the data set, where the task needs one.
        weights: Weights file, or ``hub:OWNER/REPO:ENTRY``, where the task needs one.
    """

    name: _Text
    data: _Text | None = None
    weights: _Text | None = None


class SpaceSection(Section):
    """What the search may decide for every layer.

    Attributes:
        methods: Ways to prune, see ``Method.parse``; ``none`` is always among them.
        sparsities: Fractions removed, 0 < sparsity < 1.
        weight_bits, activation_bits: Widths, 2..8.
        repair: How the weights left are adjusted, see ``CompressionConfig``.
        quantizer: How integers stand for numbers, see ``Quantizer``.
        reconstruction: How repair prunes and rounds, see ``Reconstruction``.
        pinned: Decision by layer name, ``first`` or ``last``: layers that are not searched.
    """

    methods: Annotated[tuple[str, ...], AfterValidator(_none_first)] = tuple(
        map(str, DEFAULT_METHODS)
    )
    sparsities: Annotated[
        tuple[_Sparsity, ...], Field(min_length=1), AfterValidator(_ascending)
    ] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    weight_bits: _Widths = INTEGER_BITS
    activation_bits: _Widths = INTEGER_BITS
    repair: Repair = "aligned"
    quantizer: _Quantizer = DEFAULT_QUANTIZER
    reconstruction: _Reconstruction = DEFAULT_RECONSTRUCTION
    pinned: dict[str, _Decision] = Field(default_factory=dict)

    @field_validator("reconstruction")
    @classmethod
    def _there_is_repair(
        cls, reconstruction: Reconstruction, info: ValidationInfo
    ) -> Reconstruction:
        if reconstruction != DEFAULT_RECONSTRUCTION and info.data.get("repair") == "none":
            allowed = "leave it out with repair none, which reconstructs nothing"
            raise InputError("", reconstruction.to_json(), allowed)
        return reconstruction

    @model_serializer(mode="wrap")
    def _only_what_was_asked_for(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without settings that are the default, so that older runs keep their hash."""
        data: dict[str, Any] = serialize(self)
        default = {name for name in ("quantizer", "reconstruction") if not data[name]}
        return {name: value for name, value in data.items() if name not in default}

    def to_menu(self) -> Menu:
        """The same as the environments take it."""
        from envs.setup import Menu  # torch: seconds that validation does not need

        return Menu(
            methods=tuple(Method.parse(name) for name in self.methods),
            sparsities=self.sparsities,
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            pinned=self.pinned,
            repair=self.repair,
            quantizer=self.quantizer,
            reconstruction=self.reconstruction,
        )


class RobustnessSection(Section):
    """Attack under which every evaluation measures accuracy a second time.

    Attributes:
        attack, epsilon, steps, images: See ``Attack``.
    """

    attack: AttackMethod
    epsilon: Annotated[float, Field(gt=0, le=1, strict=True, allow_inf_nan=False)]
    steps: Annotated[int, Field(ge=1, strict=True)] = Attack.steps
    images: Annotated[int, Field(ge=1, strict=True)] = Attack.images


class PolicySection(Section):
    """What is set of learned policies; what is None is as the algorithm has it.

    Attributes:
        hidden, learning_rate, entropy_coefficient, target_entropy, first_epsilon, exploring_walks,
            replay_walks: See ``PolicySettings``.
    """

    hidden: Annotated[tuple[_Units, ...], Field(min_length=1, max_length=8)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    entropy_coefficient: Annotated[float, Field(ge=0, le=10, strict=True)] | None = None
    target_entropy: Annotated[float, Field(ge=-100, le=100, strict=True)] | None = None
    first_epsilon: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    exploring_walks: Annotated[int, Field(ge=1, le=10**9, strict=True)] | None = None
    replay_walks: Annotated[int, Field(ge=1, le=10**6, strict=True)] | None = None

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not, so that further settings will change no hash."""
        return {name: value for name, value in serialize(self).items() if value is not None}


class LimitSection(Section):
    """What an inference may cost at most, besides energy.

    Attributes:
        latency_cycles, bops, model_bytes, dram_bytes: As in the ledger, at the run's level.
    """

    latency_cycles: _Limit | None = None
    bops: _Limit | None = None
    model_bytes: _Limit | None = None
    dram_bytes: _Limit | None = None

    @model_serializer(mode="wrap")
    def _only_what_was_asked_for(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the limits that there are not, so that further kinds will change no hash."""
        return {name: limit for name, limit in serialize(self).items() if limit is not None}


def _none_if_empty(section: Section | None) -> Section | None:
    return section if section is not None and section.model_dump() else None


class PreferenceSection(Section):
    """How much each cost of an inference counts; the weights are taken over their sum.

    Attributes:
        energy_pj, latency_cycles, bops, model_bytes, dram_bytes: Weight of the cost's share of
            dense INT8's, at the run's level.
    """

    energy_pj: _Weight = 0.0
    latency_cycles: _Weight = 0.0
    bops: _Weight = 0.0
    model_bytes: _Weight = 0.0
    dram_bytes: _Weight = 0.0

    @model_serializer(mode="wrap")
    def _only_what_counts(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what does not count, so that further kinds will change no hash."""
        return {name: weight for name, weight in serialize(self).items() if weight > 0}


def _normalized(preference: PreferenceSection | None) -> PreferenceSection | None:
    """Weights that add up to 1; None where nothing but energy counts, which is the default.

    Raises:
        InputError: nothing counts.
    """
    weights = {} if preference is None else preference.model_dump()
    if preference is not None and not weights:
        raise InputError("", weights, f"give one of {', '.join(LAYER_COSTS)} a weight above 0")
    if not weights.keys() - {"energy_pj"}:
        return None
    total = sum(weights.values())
    return PreferenceSection(**{name: weight / total for name, weight in weights.items()})


class ResourceSection(Section):
    """What a run takes of the machines; may change when it is resumed.

    Attributes:
        evaluators: Evaluator actors of every seed; None for as many as there is room for when all
            trials run, and work for in each round.
        trainer_cpus, evaluator_cpus: CPUs that Ray reserves for a trainer and for an evaluator.
        evaluator_gpus: GPUs, or a fraction of one, for an evaluator.
        evaluation_timeout: Time, such as 90s, 30m or 2h, after which an evaluation counts as
            hanging and is given to another evaluator, once; None for no limit.
        num_cpus: CPUs of a local Ray; None takes all.
        address: Address of a running Ray cluster; None starts a local one.
        database: Folder or URI of the option database, which runs may share; in the run directory
            if None.
    """

    evaluators: Annotated[int, Field(ge=1, strict=True)] | None = None
    trainer_cpus: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] = 0.2
    evaluator_cpus: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] = 0.8
    evaluator_gpus: Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)] = 0.0
    evaluation_timeout: Annotated[str | None, AfterValidator(_seconds)] = "1h"
    num_cpus: Annotated[int, Field(ge=1, strict=True)] | None = None
    address: _Text | None = None
    database: _Text | None = None

    @property
    def evaluation_timeout_seconds(self) -> float | None:
        return parse_duration(self.evaluation_timeout) if self.evaluation_timeout else None


class Spec(Section):
    """A run's specification.

    Attributes:
        task: Which network and data; a string is the name alone.
        accelerator: Name of a preset (``joulecut accelerators``) or path of a YAML file.
        output: The run directory: a local path, or a URI that pyarrow knows.
        level: Level of the hardware model at which evaluations are priced; one that knows energy.
        algorithm: What proposes configurations.
        accuracy: What policies learn from; ``measured`` has one true evaluation for every episode.
        policies: What is set of learned policies; None for nothing.
        init_from: An earlier run, path or URI, whose policies this one's start from; None starts
            from nothing.
        seeds: One trial each.
        budget: Distinct true evaluations on the search split, all seeds together, baselines
            included; at least one more than these for each seed.
        time_budget: Wall time, such as 90s, 30m or 2h, after which the search stops; None for
            no limit.
        targets: Accuracy drops, in points, for which the best configuration is reported.
        energy_targets: Energies, over that of dense INT8, at which the configuration that loses
            least is reported.
        limits: What the best, and the front, may cost besides energy; None for no limits.
        preference: What the best are to cost as little of as possible; None for energy alone.
        space: What may be decided.
        robustness: Attack whose accuracy is a third objective; None for none.
        resources: What it takes of the machines.
    """

    task: Annotated[TaskSection, BeforeValidator(_task)]
    accelerator: _Text
    output: _Text
    level: Literal["mid", "fine"] = "mid"
    algorithm: Algorithm = "ppo"
    accuracy: Accuracy = "predicted"
    policies: Annotated[PolicySection | None, AfterValidator(_none_if_empty)] = None
    init_from: _Text | None = None
    seeds: Annotated[tuple[_Seed, ...], Field(min_length=1), AfterValidator(_check_distinct)] = (0,)
    budget: Annotated[int, Field(ge=MIN_BUDGET, strict=True, validate_default=True)] = 300
    time_budget: Annotated[str | None, AfterValidator(_seconds)] = None
    targets: Annotated[tuple[_Points, ...], Field(min_length=1), AfterValidator(_ascending)] = (
        0.5,
        1.0,
        2.0,
    )
    energy_targets: Annotated[tuple[_Ratio, ...], AfterValidator(_ascending)] = ()
    limits: Annotated[LimitSection | None, AfterValidator(_none_if_empty)] = None
    preference: Annotated[PreferenceSection | None, AfterValidator(_normalized)] = None
    space: SpaceSection = SpaceSection()
    robustness: RobustnessSection | None = None
    resources: ResourceSection = ResourceSection()

    @field_validator("accuracy")
    @classmethod
    def _policies_can_learn_from_it(cls, accuracy: Accuracy, info: ValidationInfo) -> Accuracy:
        algorithm = info.data.get("algorithm")  # not there if it is not allowed itself
        if accuracy == "measured" and algorithm not in (None, *MEASURED_LEARNERS):
            measurable = " or ".join(MEASURED_LEARNERS)
            allowed = f"use 'predicted' with {algorithm}; 'measured' needs {measurable}"
            raise InputError("", accuracy, allowed)
        return accuracy

    @field_validator("budget")
    @classmethod
    def _every_seed_has_a_share(cls, budget: int, info: ValidationInfo) -> int:
        given, seeds = len(BASELINES), len(info.data.get("seeds", ()))
        if budget < given + seeds:
            allowed = f"use at least {given + seeds}, {given} for baselines and 1 for each of "
            raise InputError("", budget, f"{allowed}{seeds} seeds")
        return budget

    @field_validator("policies")
    @classmethod
    def _the_algorithm_has_them(
        cls, policies: PolicySection | None, info: ValidationInfo
    ) -> PolicySection | None:
        algorithm = info.data.get("algorithm")
        if policies is not None and algorithm is not None:
            require_used(algorithm, policies.model_dump())
        return policies

    @field_validator("preference")
    @classmethod
    def _energies_are_of_energy(
        cls, preference: PreferenceSection | None, info: ValidationInfo
    ) -> PreferenceSection | None:
        if preference is not None and info.data.get("energy_targets"):
            allowed = "leave it out with energy_targets, which ask for the least loss at an energy"
            raise InputError("", preference.model_dump(), allowed)
        return preference

    @classmethod
    def from_mapping(cls, data: object) -> Spec:
        """Validate plain data.

        Raises:
            InputError: an unknown or missing key, or a value that is not allowed. ``field`` is
                the dotted path of the first.
        """
        return validated(cls, "spec", data)

    @classmethod
    def load(cls, path: str | Path) -> Spec:
        """Read a specification from a YAML file.

        Raises:
            InputError: it cannot be read, is not YAML, or is not a specification.
        """
        return cls.from_mapping(read_yaml(path))

    def to_json(self) -> dict[str, Any]:
        """Plain data; the inverse of :meth:`from_mapping`."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """YAML text; the inverse of :meth:`load`."""
        return yaml.safe_dump(self.to_json(), sort_keys=False, default_flow_style=None)

    @classmethod
    def default_of(cls, field: str) -> Any:
        """Default of a field, as :meth:`to_json` has it."""
        default = cls.model_fields[field].default
        return list(default) if isinstance(default, tuple) else default

    def identity(self) -> dict[str, Any]:
        """What decides the result: everything but where it runs, for how long, and where to."""
        data = self.to_json()
        for key in ("output", "resources", "time_budget"):
            del data[key]
        return data

    @property
    def hash(self) -> str:
        """Hash of :meth:`identity`, 16 hexadecimal digits."""
        identity = self.identity()
        for field in _LATER:
            # Specifications from before this field keep their hash.
            if identity[field] == self.default_of(field):
                del identity[field]
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def goals(self) -> Goals:
        """What the run is asked for."""
        limits = CostLimits() if self.limits is None else CostLimits(**self.limits.model_dump())
        preference = ENERGY
        if self.preference is not None:
            preference = Preference(**self.preference.model_dump())
        return Goals(self.targets, limits, self.energy_targets, preference)

    @property
    def policy_settings(self) -> PolicySettings:
        """Of learned policies."""
        return PolicySettings(**(self.policies.model_dump() if self.policies else {}))

    @property
    def attack(self) -> Attack | None:
        """What robust accuracy is measured under."""
        robust = self.robustness
        if robust is None:
            return None
        return Attack(robust.attack, robust.epsilon, robust.steps, robust.images)

    @property
    def time_budget_seconds(self) -> float | None:
        return parse_duration(self.time_budget) if self.time_budget else None

    def absolute(self) -> Spec:
        """The same with absolute paths, so that a run can be resumed from anywhere."""
        path = Path(self.accelerator)
        database = _absolute(self.resources.database)
        return self.model_copy(
            update={
                "task": TaskSection.model_validate(self.task_spec().absolute().to_json()),
                "accelerator": str(path.resolve()) if path.is_file() else self.accelerator,
                "output": _absolute(self.output),
                "init_from": _absolute(self.init_from),
                "resources": self.resources.model_copy(update={"database": database}),
            }
        )

    def task_spec(self) -> TaskSpec:
        """The task, ready to load."""
        return TaskSpec(self.task.name, data=self.task.data, weights=self.task.weights)


def _absolute(place: str | None) -> str | None:
    """A path or URI for processes with another working directory."""
    return place if place is None or "://" in place else str(Path(place).resolve())


def read_yaml(path: str | Path) -> Any:
    """Content of a YAML file.

    Raises:
        InputError: it cannot be read, or line so-and-so is not YAML.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError("spec", str(path), f"use a readable file ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError("spec", str(path), "use a text file in UTF-8") from None
