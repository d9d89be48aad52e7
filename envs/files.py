"""Files that are there whole or not at all, with one line for the user where that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from hwmodel import InputError
from hwmodel import files


def write_whole(path: Path, save: Callable[[Path], object], field: str) -> None:
    """Have ``save`` write a file, all of it or nothing; several writers may be at the same one.

    Args:
        path: The file; its folder is made.
        save: Writes to the path that it is given.
        field: What an error names.

    Raises:
        InputError: it cannot be written.
    """
    try:
        files.write_whole(path, save)
    except (OSError, SafetensorError) as error:
        allowed = f"it cannot be written ({error}); use a place with space and permission"
        raise InputError(field, str(path.parent), allowed) from None
