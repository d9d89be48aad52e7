"""Who may add to a ledger: what was given up for lost, and lives on unawares, may not.

A process outlives its driver for a moment, and one on a machine that cannot be reached for longer.
What it was at is then evaluated by another, and would be recorded twice. So an evaluator records
only while the file of its permit is there, and whoever gives it up removes that before another is
asked::

    permits/DRIVER/seed-N/TRIAL          that start of the trial may make evaluators
    permits/DRIVER/seed-N/TRIAL-ACTOR    that evaluator may record

A driver that begins removes all of them, a trial that starts again all of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from hwmodel.errors import InputError
from search.storage import Storage
from search.storage import patiently
from search.storage import write_error


@dataclass(frozen=True)
class Permit:
    """One of these files. Small and picklable.

    Attributes:
        storage: Its folder.
        name: Its name.
    """

    storage: Storage
    name: str

    def child(self, name: str) -> Permit:
        """Another one in the same folder."""
        return Permit(self.storage, f"{self.name}-{name}")

    def grant(self) -> None:
        """Write the file.

        Raises:
            InputError: it cannot be written, and stays so for ``storage.PATIENCE_SECONDS``.
        """
        try:
            self.storage.write_patiently(self.name, b"")
        except OSError as error:
            raise write_error("run", self.storage.location, error) from error

    def require(self) -> None:
        """Refuse to go on without the file.

        Raises:
            InputError: it is gone, or the storage cannot be read.
        """
        try:
            is_there = patiently(lambda: self.storage.has(self.name))
        except OSError as error:
            raise write_error("run", self.storage.location, error) from error
        if not is_there:
            allowed = "another driver, or a later start of this trial, has taken over"
            raise InputError("run", self.storage.location, allowed)

    def revoke(self) -> None:
        """Remove the file.

        Raises:
            InputError: it cannot be removed, and stays so for ``storage.PATIENCE_SECONDS``.
        """
        try:
            patiently(lambda: self.storage.delete(self.name))
        except OSError as error:
            raise write_error("run", self.storage.location, error) from error


def revoke_all(folder: Storage) -> None:
    """Remove what is in a folder of permits, if there is one.

    Raises:
        InputError: it cannot be removed.
    """
    try:
        patiently(folder.clear)
    except OSError as error:
        raise write_error("run", folder.location, error) from error


def take_over(folder: Storage) -> Permit:
    """A permit that is granted, and the only one in its folder.

    Raises:
        InputError: the folder cannot be written.
    """
    revoke_all(folder)
    permit = Permit(folder, uuid4().hex)
    permit.grant()
    return permit
