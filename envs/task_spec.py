"""Which task, for processes that load it and those that only pass it on."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envs.tasks.task import Task


@dataclass(frozen=True)
class TaskSpec:
    """What identifies a task; cheap to send to another process, which loads the task itself.

    Attributes:
        name: One of :func:`envs.tasks.task_names`.
        data: Folder of the data, or None for the task's own.
        weights: A file, ``hub:OWNER/REPO:ENTRY``, or None for the task's own.
    """

    name: str
    data: str | None = None
    weights: str | None = None

    def load(self) -> Task:
        """See :func:`envs.tasks.load_task`."""
        from envs.tasks.registry import load_task  # torch, which those who only name tasks save

        return load_task(self.name, data=self.data, weights=self.weights)

    def absolute(self) -> TaskSpec:
        """The same with absolute paths, for processes with another working directory."""
        file, _, function = self.name.rpartition(":")
        return replace(
            self,
            name=f"{Path(file).resolve()}:{function}" if file.endswith(".py") else self.name,
            data=None if self.data is None else str(Path(self.data).resolve()),
            weights=_absolute_weights(self.weights),
        )

    def to_json(self) -> dict[str, str | None]:
        """The fields by name; ``TaskSpec(**spec.to_json()) == spec``."""
        return asdict(self)


def _absolute_weights(weights: str | None) -> str | None:
    if weights is None or weights == "random" or weights.startswith("hub:"):
        return weights
    return str(Path(weights).resolve())
