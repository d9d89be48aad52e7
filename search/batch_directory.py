"""A batch on disk: its experiments, its driver, and one run directory for each of them.

::

    BATCH/batch.json           format, and the specification and priority of every experiment
    BATCH/state.json           the driver, and how busy the cluster was
    BATCH/experiments/NAME/    run directories, see ``search.run_directory``
    BATCH/database/            what compression computed once for all experiments of a network
"""

from __future__ import annotations

import json
from typing import Any

from hwmodel.errors import InputError
from search.batch_spec import BatchSpec
from search.batch_spec import Experiment
from search.driving import State
from search.driving import read_json
from search.driving import to_json
from search.run_directory import RunDirectory
from search.spec import Spec
from search.storage import Location
from search.storage import Storage
from search.storage import write_error
from search.warm_start import initial_policies

FORMAT = 1
"""Version of the layout of a batch directory."""

_HEADER = "batch.json"
_NOT_A_BATCH = "use a directory that 'joulecut batch' wrote"


class BatchDirectory:
    """An existing batch. Make or extend one with :meth:`write`, or :meth:`open` it.

    Attributes:
        storage: The directory.
        state: Its driver.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.state = State(storage, "batch", _NOT_A_BATCH)

    @classmethod
    def write(cls, spec: BatchSpec) -> BatchDirectory:
        """Start a batch in a new or empty directory, or give an existing one more experiments.

        Raises:
            InputError: the directory holds something else, or cannot be written; or experiments
                that were started are missing from ``spec``.
        """
        batch, experiments = cls(Storage.at(spec.output)), spec.all()
        is_new = not is_batch(batch.storage)
        if is_new and batch.storage.names("output"):
            allowed = "it holds something else; use another output"
            raise InputError("output", batch.storage.location, allowed)
        missing = set(batch._runs.names("batch")) - {item.name for item in experiments}
        if missing:
            allowed = "it was started in this batch: add experiments, or use another output"
            raise InputError("experiments", min(missing), allowed)
        header = {"format": FORMAT, "experiments": [item.to_json() for item in experiments]}
        try:
            batch.storage.make()
            if is_new:
                batch.state.write({"state": "interrupted", "message": "not started"})
            batch.storage.write(_HEADER, to_json(header))
        except OSError as error:
            raise write_error("output", batch.storage.location, error) from error
        return batch

    @classmethod
    def open(cls, path: Location) -> BatchDirectory:
        """Open a batch that :meth:`write` made.

        Raises:
            InputError: it is not one, is damaged, or has another format.
        """
        batch = cls(Storage.at(path))
        batch.experiments()
        return batch

    @property
    def location(self) -> str:
        """The directory as a local path or URI."""
        return self.storage.location

    @property
    def _runs(self) -> Storage:
        return self.storage.child("experiments")

    def experiments(self) -> list[Experiment]:
        """Every experiment, in the order in which they start.

        Raises:
            InputError: the list is missing or damaged.
        """
        header = read_json(self.storage, _HEADER, "batch", _NOT_A_BATCH)
        where = f"{self.location}/{_HEADER}"
        if header.get("format") != FORMAT:
            allowed = f"this joulecut reads format {FORMAT}; use the version that wrote it"
            raise InputError(f"{where}: format", header.get("format"), allowed)
        try:
            return [Experiment.from_json(item) for item in header["experiments"]]
        except (KeyError, TypeError):
            raise InputError("batch", where, f"it is damaged; {_NOT_A_BATCH}") from None

    def run_storage(self, experiment: Experiment) -> Storage:
        """The run directory of an experiment, which need not exist."""
        return self._runs.child(experiment.name)

    def run(self, experiment: Experiment) -> tuple[RunDirectory, Spec]:
        """The run of an experiment, created if it has none, and its specification.

        Raises:
            InputError: it cannot be created or opened.
        """
        storage = self.run_storage(experiment)
        resources = experiment.spec.resources
        if resources.database is None:
            database = self.storage.child("database").location
            resources = resources.model_copy(update={"database": database})
        update = {"output": storage.location, "resources": resources}
        spec = experiment.spec.model_copy(update=update)
        if "run.json" in storage.names("batch"):
            return RunDirectory.open(storage), spec
        storage.clear()  # of a creation that was killed
        return RunDirectory.create(storage, spec, initial_policies(spec)), spec

    def has_begun(self, experiment: Experiment) -> bool:
        """Whether it has measured something."""
        return bool(self.run_storage(experiment).child("ledger").names("batch"))

    def is_prepared(self, experiment: Experiment) -> bool:
        """Whether its trials have been started, and so all is in the database that they need."""
        return bool(self.run_storage(experiment).child("tune").names("batch"))

    def run_state(self, experiment: Experiment) -> dict[str, Any]:
        """State of an experiment's run; ``waiting`` where there is none yet."""
        storage = self.run_storage(experiment)
        if "run.json" not in storage.names("batch"):
            return {"state": "waiting", "message": ""}
        return State(storage, "run", "use a run directory").read()


def is_batch(storage: Storage) -> bool:
    """Whether a directory is a batch, rather than a run or something else."""
    return _HEADER in storage.names("output")


def network_key(experiment: Experiment) -> str:
    """Equal for experiments that need the same options in the database."""
    spec = experiment.spec.to_json()
    return json.dumps([spec["task"], spec["space"]], sort_keys=True)
