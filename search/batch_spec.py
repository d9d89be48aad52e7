"""Many searches in one YAML file: what all have, and lists of what differs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated
from typing import Any

from pydantic import Field

from hwmodel.errors import InputError
from hwmodel.plain_data import validated
from search.spec import ResourceSection
from search.spec import Section
from search.spec import Spec

_FIELDS = frozenset(Spec.model_fields) - {"output", "resources"}
"""What experiments may differ in."""


class ExperimentGroup(Section):
    """Experiments that differ in what ``grid`` lists.

    Attributes:
        grid: Values by field of a specification; every combination is an experiment.
        spec: Fields that are the same in all of them.
        priority: Groups of higher priority start first.
    """

    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    spec: dict[str, Any] = Field(default_factory=dict)
    priority: int = 0


class BatchSpec(Section):
    """A batch's specification.

    Attributes:
        output: The batch directory: a local path, or a URI that pyarrow knows.
        spec: Fields of a specification that all experiments have, unless a group says otherwise.
        experiments: What is to be run.
        resources: Of every experiment's search, and which cluster.
    """

    output: Annotated[str, Field(min_length=1)]
    spec: dict[str, Any] = Field(default_factory=dict)
    experiments: Annotated[tuple[ExperimentGroup, ...], Field(min_length=1)]
    resources: ResourceSection = ResourceSection()

    @classmethod
    def from_mapping(cls, data: object) -> BatchSpec:
        """Validate plain data.

        Raises:
            InputError: an unknown or missing key, or a value that is not allowed.
        """
        return validated(cls, "experiments", data)

    def all(self) -> list[Experiment]:
        """Every experiment once, those of higher priority first, else as listed.

        Raises:
            InputError: a combination is not a specification; names group and field.
        """
        found: dict[str, Experiment] = {}
        ranked = sorted(enumerate(self.experiments), key=lambda item: -item[1].priority)
        for number, group in ranked:
            for experiment in self._of_group(f"experiments[{number}]", group):
                found.setdefault(experiment.name, experiment)
        return list(found.values())

    def _of_group(self, where: str, group: ExperimentGroup) -> list[Experiment]:
        for section, fields in (("spec", self.spec), *_sections(where, group)):
            for field in fields:
                if field not in _FIELDS:
                    allowed = f"known fields: {', '.join(sorted(_FIELDS))}"
                    raise InputError(f"{section}.{field}", fields[field], allowed)
        experiments = []
        for values in itertools.product(*group.grid.values()):
            fields = {**self.spec, **group.spec, **dict(zip(group.grid, values, strict=True))}
            try:
                spec = Spec.from_mapping(
                    {**fields, "output": self.output, "resources": self.resources}
                )
            except InputError as error:
                raise InputError(f"{where}: {error.field}", error.value, error.allowed) from None
            experiments.append(Experiment(spec.absolute(), group.priority))
        return experiments


@dataclass(frozen=True)
class Experiment:
    """One search of a batch.

    Attributes:
        spec: What it is; ``output`` is that of the batch.
        priority: See :class:`ExperimentGroup`.
    """

    spec: Spec
    priority: int

    @property
    def name(self) -> str:
        """Name of its run directory: readable, and another one for whatever decides the result."""
        spec = self.spec
        seeds = "-".join(map(str, spec.seeds[:4]))
        parts = (spec.task.name, spec.accelerator, spec.algorithm, f"seed-{seeds}")
        readable = "_".join(_plain(part.rpartition("/")[2]) for part in parts)
        return f"{readable}_{spec.hash}"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Experiment:
        return cls(Spec.from_mapping(data["spec"]), data["priority"])

    def to_json(self) -> dict[str, Any]:
        return {"spec": self.spec.to_json(), "priority": self.priority}


def _sections(where: str, group: ExperimentGroup) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{where}.spec", group.spec), (f"{where}.grid", group.grid)]


def _plain(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-+." else "-" for letter in text)
