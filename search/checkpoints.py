"""Agents of a seed in the folder of a run's policies: taken up from there, and kept there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

from search.storage import Storage
from search.storage import local_copy
from search.storage import write_error

CHECKPOINT = "agents.pt"
"""What a seed's policies learnt, in ``policies/seed-N``."""
INITIAL_POLICIES = "initial"
"""Folder in ``policies`` of a checkpoint of another run, with which this one began."""


class Restorable(Protocol):
    """Agents that can be written to a directory and read from it, as ``CHECKPOINT`` there."""

    def save(self, directory: Path) -> None: ...

    def restore(self, directory: Path) -> None: ...

    def start_from(self, directory: Path) -> None: ...


def take_up(agents: Restorable, policies: Storage, seed: int) -> bool:
    """Have new agents go on from what is in ``seed-N``, else start from ``initial``, if anything.

    Args:
        agents: Of the seed.
        policies: Folder of a run's policies.
        seed: Whose they are.

    Returns:
        Whether they go on from their own.
    """
    own, initial = policies.child(f"seed-{seed}"), policies.child(INITIAL_POLICIES)
    if CHECKPOINT in own.names():
        with local_copy(own) as directory:
            agents.restore(directory)
        return True
    if CHECKPOINT in initial.names():
        with local_copy(initial) as directory:
            agents.start_from(directory)
    return False


def keep(agents: Restorable, policies: Storage, seed: int) -> None:
    """Write the agents to ``seed-N``.

    Raises:
        InputError: it cannot be written.
    """
    own = policies.child(f"seed-{seed}")
    with tempfile.TemporaryDirectory() as temporary:
        agents.save(Path(temporary))
        try:
            own.write_patiently(CHECKPOINT, (Path(temporary) / CHECKPOINT).read_bytes())
        except OSError as error:
            raise write_error("policies", own.location, error) from error
