"""A run on disk: what was asked, what was found, and who is working on it.

::

    RUN/run.json      format, version and specification; written last, so it marks a whole run
    RUN/accelerator.json  what the accelerator was when the run was started
    RUN/spec.yaml     the specification; resources and time_budget may be edited before a resume
    RUN/state.json    the driver and how far it is
    RUN/ledger/       every true evaluation, see ``search.ledger``
    RUN/database/     what compression computed once for all evaluators
    RUN/policies/     checkpoints of the learners, and what they started from
    RUN/permits/      who may add to the ledger, see ``search.permit``
    RUN/report/       tables, pictures and the HTML page
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version
from typing import Any

from hwmodel import Accelerator
from hwmodel.errors import InputError
from hwmodel.plain_data import parse_yaml
from hwmodel.plain_data import validated
from search.checkpoints import INITIAL_POLICIES
from search.driving import State
from search.driving import now
from search.driving import read_json
from search.driving import to_json
from search.front import distinct
from search.ledger import MEASURED
from search.ledger import Ledger
from search.picks import best_so_far
from search.picks import unreached
from search.spec import Spec
from search.storage import Location
from search.storage import Storage
from search.storage import write_error

FORMAT = 1
"""Version of the layout of a run directory."""

_ACCELERATOR = "accelerator.json"
_FOLDERS = ("ledger", "database", "policies", "report")
_NOT_A_RUN = "use a directory that 'joulecut search' wrote"


class RunDirectory:
    """An existing run. Make one with :meth:`create` or :meth:`open`.

    Attributes:
        storage: The directory; ``storage.child(...)`` are the folders in it.
        ledger: Every true evaluation of the run.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.ledger = Ledger(storage.child("ledger"))
        self._state = State(storage, "run", _NOT_A_RUN)
        self._made_folder = False

    @classmethod
    def create(
        cls, path: Location, spec: Spec, initial_policies: Mapping[str, bytes] | None = None
    ) -> RunDirectory:
        """Start a run in a new or empty directory.

        Args:
            path: The directory.
            spec: What is asked.
            initial_policies: Files of the policies to start from, by name. The run keeps them:
                what they came from may move, change or go.

        Raises:
            InputError: the directory holds something, or cannot be written; what was there is
                as it was.
        """
        storage = Storage.at(path)
        run = cls(storage)
        if storage.names("output"):
            allowed = "it is not empty; use resume or another --output"
            raise InputError("output", storage.location, allowed)
        run._made_folder = storage.local is not None and not storage.local.exists()
        try:
            with _writable("output", storage):
                for folder in _FOLDERS:
                    storage.child(folder).make()
                for name, content in (initial_policies or {}).items():
                    initial = storage.child("policies").child(INITIAL_POLICIES)
                    initial.make()
                    initial.write(name, content)
                storage.write("spec.yaml", spec.to_yaml().encode())
                run._state.write({"state": "interrupted", "message": "not started"})
                storage.write("run.json", to_json(_header(spec)))
        except InputError:
            run._remove()
            raise
        return run

    @classmethod
    def open(cls, path: Location) -> RunDirectory:
        """Open a run that :meth:`create` made.

        Raises:
            InputError: it is not a run directory, is half-written, or has another format.
        """
        run = cls(Storage.at(path))
        run._header()
        run.spec()
        return run

    @property
    def location(self) -> str:
        """The directory as a local path or URI."""
        return self.storage.location

    @property
    def report(self) -> Storage:
        """Where the report's files go."""
        return self.storage.child("report")

    def spec(self) -> Spec:
        """The run's specification, as spec.yaml has it now.

        Raises:
            InputError: it is missing, damaged or not valid.
        """
        where = f"{self.location}/spec.yaml"
        try:
            text = self.storage.read("spec.yaml").decode()
        except (OSError, UnicodeDecodeError):
            raise InputError("run", where, f"it is missing or damaged; {_NOT_A_RUN}") from None
        return Spec.from_mapping(parse_yaml(text, where))

    def database(self, spec: Spec) -> Storage:
        """Folder of the option database: the run's own unless the specification names one."""
        shared = spec.resources.database
        return self.storage.child("database") if shared is None else Storage.at(shared)

    def check_spec(self, spec: Spec) -> None:
        """Refuse to go on with another specification than the run was started with.

        ``output``, ``resources`` and ``time_budget`` may differ: they do not decide the result.

        Raises:
            InputError: names the first field that differs and what it was.
        """
        started = self._header()["spec"]
        for key, value in spec.identity().items():
            # Runs from before there was a field have its default.
            before = started.get(key, Spec.default_of(key))
            if value != before:
                allowed = f"the run was started with {before!r}; use another --output"
                raise InputError(f"spec.{key}", value, allowed)

    def require_accelerator(self, spec: Spec, accelerator: Accelerator) -> None:
        """Keep what energies are of, and refuse to go on with what has changed since.

        Args:
            spec: Of the run.
            accelerator: What its ``accelerator`` stands for now.

        Raises:
            InputError: it stood for another one when the run was started.
        """
        if _ACCELERATOR not in self.storage.names():
            with _writable("output", self.storage):
                self.storage.write(_ACCELERATOR, accelerator.model_dump_json(indent=2).encode())
            return
        where = f"{self.location}/{_ACCELERATOR}"
        data = read_json(self.storage, _ACCELERATOR, "run", _NOT_A_RUN)
        before = validated(Accelerator, where, data)
        if before != accelerator:
            allowed = f"the run was started with what is in {where}; use another --output"
            raise InputError("accelerator", spec.accelerator, allowed)

    @contextlib.contextmanager
    def driving(self) -> Iterator[dict[str, Any]]:
        """Own the run while it is worked on; see :meth:`search.driving.State.driving`."""
        with self._state.driving() as details:
            yield details

    def discard_if_unused(self) -> None:
        """Remove a local run without evaluations: its input was refused before it began.

        A directory that was there before is left, empty as it was.
        """
        if not self.ledger.storage.names():
            self._remove()

    def state(self) -> str:
        """``running``, ``completed``, ``interrupted`` or ``failed``.

        Raises:
            InputError: state.json is damaged.
        """
        return str(self._state.read()["state"])

    def message(self) -> str:
        """Why it failed, stopped or ended early; empty else.

        Raises:
            InputError: state.json is damaged.
        """
        return str(self._state.read().get("message", ""))

    def evaluations(self) -> int:
        """How many configurations have been evaluated on the search split.

        Raises:
            InputError: a part of the ledger is damaged.
        """
        return len(distinct(self.ledger.read(MEASURED), "search"))

    def status(self) -> dict[str, Any]:
        """How far the run is, as ``joulecut status --json`` prints it; see docs/cli.md.

        Raises:
            InputError: the state or a part of the ledger is damaged.
        """
        spec, state, rows = self.spec(), self._state.read(), self.ledger.read(MEASURED)
        searched = distinct(rows, "search")
        best = best_so_far(rows, spec.goals)
        seeds = [{"seed": s, "evaluations": int((searched["seed"] == s).sum())} for s in spec.seeds]
        return {
            "run": self.location,
            "state": state["state"],
            "message": state.get("message", ""),
            "evaluations": len(searched),
            "budget": spec.budget,
            "ledger": self.ledger.location,
            "task": spec.task.name,
            "accelerator": spec.accelerator,
            "algorithm": spec.algorithm,
            "seeds": seeds,
            "preference": spec.goals.preference.given,
            "best": best,
            "unreached": unreached(rows, spec.goals, {entry["name"] for entry in best}),
            "driver": state.get("driver"),
            "heartbeat": state.get("heartbeat"),
        }

    def _header(self) -> dict[str, Any]:
        names = set(self.storage.names())
        if "run.json" not in names:
            found = "it is half-written" if names & set(_FOLDERS) else "there is no run"
            raise InputError("run", self.location, f"{found}; {_NOT_A_RUN}")
        header = read_json(self.storage, "run.json", "run", _NOT_A_RUN)
        if header.get("format") != FORMAT:
            allowed = f"this joulecut reads format {FORMAT}; use the version that wrote it"
            raise InputError(f"{self.location}/run.json: format", header.get("format"), allowed)
        if not isinstance(header.get("spec"), dict):
            raise InputError("run", f"{self.location}/run.json", f"it is damaged; {_NOT_A_RUN}")
        return header

    def _remove(self) -> None:
        if self.storage.local is None:
            return
        with contextlib.suppress(OSError):  # must not hide why it is removed
            self.storage.clear()
            if self._made_folder:
                self.storage.local.rmdir()


def _header(spec: Spec) -> dict[str, Any]:
    try:
        joulecut = version("joulecut")
    except PackageNotFoundError:  # run from a checkout
        joulecut = "unknown"
    return {
        "format": FORMAT,
        "joulecut": joulecut,
        "spec_hash": spec.hash,
        "spec": spec.identity(),
        "created": now(),
    }


@contextlib.contextmanager
def _writable(field: str, storage: Storage) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(field, storage.location, error) from error
