"""Files that runs and users share: where they are kept, and how they get there whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4


def cache_directory() -> Path:
    """Where what is made once is kept: ``$JOULECUT_CACHE`` or ~/.cache/joulecut."""
    configured = os.environ.get("JOULECUT_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "joulecut"


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Have ``save`` write a file, all of it or nothing; several writers may be at the same one.

    Who may read it is for the process's umask to say, as for any other new file.

    Args:
        path: The file; its folder is made.
        save: Writes to the path that it is given.

    Raises:
        OSError: it cannot be written. What ``save`` raises is passed on.
    """
    # Hidden, so that what a killed writer leaves is no entry.
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
