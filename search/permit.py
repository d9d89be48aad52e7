"""Who may add to a ledger: what was given up for lost, and lives on unawares, may not.

A process outlives its driver for a moment, and one on a machine that cannot be reached for longer.
What it was at is then evaluated by another, and would be recorded twice. So driver, trials and
evaluators have permits, files in ``RUN/permits`` that hold a word of their own, and an evaluator
records only while those of all three do. Who takes over from another writes a new word, and who
gives one up removes its file, before anyone else is asked for what the other was at.
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
    """One of these files, as it was written. Small and picklable.

    Attributes:
        storage: Folder of the permits of a run.
        name: Of the file.
        word: What it must hold.
        parent: On whose behalf it was granted; not worth more than that one.
    """

    storage: Storage
    name: str
    word: str
    parent: Permit | None = None

    def grant_child(self, name: str) -> Permit:
        """A permit that depends on this one; voids what others were granted by that name.

        Raises:
            InputError: this one is void, or the storage cannot be written.
        """
        self.require()
        return grant(self.storage, name, self)

    def require(self) -> None:
        """Refuse to go on where this permit, or one that it depends on, is void.

        Raises:
            InputError: it is, or the storage cannot be read.
        """
        if self.parent is not None:
            self.parent.require()
        try:
            word = patiently(self._read)
        except OSError as error:
            raise write_error("run", self.storage.location, error) from error
        if word != self.word:
            where = f"{self.storage.location}/{self.name}"
            raise InputError("run", where, "somebody else has taken over from this process")

    def revoke(self) -> None:
        """Remove the file.

        Raises:
            InputError: it cannot be removed.
        """
        try:
            patiently(lambda: self.storage.delete(self.name))
        except OSError as error:
            raise write_error("run", self.storage.location, error) from error

    def _read(self) -> str | None:
        try:
            return self.storage.read(self.name).decode()
        except FileNotFoundError:
            return None


def grant(storage: Storage, name: str, parent: Permit | None = None) -> Permit:
    """A permit; voids what others were granted by that name.

    Raises:
        InputError: the storage cannot be written, and stays so for ``storage.PATIENCE_SECONDS``.
    """
    permit = Permit(storage, name, uuid4().hex, parent)
    try:
        storage.write_patiently(name, permit.word.encode())
    except OSError as error:
        raise write_error("run", storage.location, error) from error
    return permit
