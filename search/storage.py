"""A folder on a local disk or in an object store: whole files in, whole files out."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from typing import TypeAlias
from typing import TypeVar
from uuid import uuid4

from pyarrow import ArrowException
from pyarrow import fs

from hwmodel.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

PATIENCE_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Waits between attempts at what a run cannot go on without: a minute in all."""

T = TypeVar("T")

Location: TypeAlias = "str | Path | tuple[fs.FileSystem, str] | Storage"
"""A local path, a URI (``s3://bucket/runs/1``), a pyarrow file system and a path in it, or what
:meth:`Storage.at` made of one of these."""


@dataclass(frozen=True)
class Storage:
    """One folder, local or remote. Small and picklable.

    Attributes:
        filesystem: Where the folder is.
        root: Path of the folder in ``filesystem``; absolute when it is local.
        location: The folder as the user would name it.
    """

    filesystem: fs.FileSystem
    root: str
    location: str

    @classmethod
    def at(cls, location: Location) -> Storage:
        """The folder at ``location``, which need not exist.

        Raises:
            InputError: the URI is malformed, or of a kind that pyarrow does not know.
        """
        if isinstance(location, Storage):
            return location
        if isinstance(location, tuple):
            filesystem, root = location
            return cls(filesystem, root, root)
        text = str(location)
        if "://" not in text:
            path = os.path.abspath(text)
            return cls(fs.LocalFileSystem(), path, path)
        try:
            filesystem, root = fs.FileSystem.from_uri(text)
        except (ArrowException, OSError) as error:
            allowed = f"use a local path, or a URI such as s3://bucket/path ({reason(error)})"
            raise InputError("output", text, allowed) from None
        return cls(filesystem, root, root if _is_local(filesystem) else text.rstrip("/"))

    @property
    def local(self) -> Path | None:
        """The folder as a local path; None where it is remote."""
        return Path(self.root) if _is_local(self.filesystem) else None

    def child(self, name: str) -> Storage:
        """The folder ``name`` in this one."""
        path, mark, options = self.location.partition("?" if "://" in self.location else "\0")
        return Storage(self.filesystem, f"{self.root}/{name}", f"{path}/{name}{mark}{options}")

    def make(self) -> None:
        """Create the folder and its parents where they are missing."""
        self.filesystem.create_dir(self.root, recursive=True)

    def names(self, field: str = "run") -> list[str]:
        """Names of what the folder holds, sorted; empty if it does not exist.

        Raises:
            InputError: about ``field``: it is no folder, or may not be read.
        """
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        except OSError as error:
            allowed = f"use a folder that can be read ({reason(error)})"
            raise InputError(field, self.location, allowed) from None
        return sorted(item.base_name for item in found)

    def read(self, name: str) -> bytes:
        """Content of one file.

        Raises:
            OSError: it does not exist or cannot be read.
        """
        with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """Create or replace one file, all of it or nothing; readers never see a part.

        On a local disk the content is on the disk when this returns; an object store makes an
        object visible when its upload is complete.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        if self.local is not None:
            _write_local(self.local / name, content)
            return
        target = f"{self.root}/{name}"
        try:
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(content)
        except OSError:
            if self.filesystem.get_file_info(target).is_file:
                self.filesystem.delete_file(target)
            raise

    def write_patiently(self, name: str, content: bytes) -> None:
        """:meth:`write` into this folder, made if missing; tried again while it is refused.

        Raises:
            OSError: it was still refused after ``PATIENCE_SECONDS``; nothing is left behind.
        """

        def write() -> None:
            self.make()
            self.write(name, content)

        patiently(write)

    def read_patiently(self, name: str) -> bytes:
        """:meth:`read`, tried again while it is refused.

        Raises:
            FileNotFoundError: it does not exist, which is not tried again.
            OSError: it was still refused after ``PATIENCE_SECONDS``.
        """
        return patiently(lambda: self.read(name), final=FileNotFoundError)

    def move(self, name: str, target: Storage) -> None:
        """Move one file to another folder of the same file system, made if missing.

        Raises:
            OSError: it cannot be moved.
        """
        target.make()
        self.filesystem.move(f"{self.root}/{name}", f"{target.root}/{name}")

    def clear(self) -> None:
        """Remove all that is in the folder, if there is one.

        Raises:
            OSError: it cannot be removed.
        """
        self.filesystem.delete_dir_contents(self.root, missing_dir_ok=True)

    def delete(self, name: str) -> None:
        """Remove one file; it is no error if it is gone.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            self.filesystem.delete_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return


def patiently(access: Callable[[], T], final: type[OSError] | tuple[type[OSError], ...] = ()) -> T:
    """Do what the storage may refuse for a while.

    Args:
        access: Does it.
        final: Refusals that waiting does not change.

    Raises:
        OSError: it was still refused after ``PATIENCE_SECONDS``, or ``final``.
    """
    for seconds in PATIENCE_SECONDS:
        try:
            return access()
        except final:
            raise
        except OSError:
            time.sleep(seconds)
    return access()


def table_files(name: str, table: pd.DataFrame) -> dict[str, bytes]:
    """A table as CSV and as Parquet: content by file name."""
    parquet = io.BytesIO()
    table.to_parquet(parquet, index=False)
    return {
        f"{name}.csv": table.to_csv(index=False).encode(),
        f"{name}.parquet": parquet.getvalue(),
    }


def write_error(field: str, location: str, error: OSError) -> InputError:
    """What to tell the user when ``location`` cannot be written."""
    allowed = f"it cannot be written ({reason(error)}); use a place with space and permission"
    return InputError(field, location, allowed)


def read_error(field: str, location: str, error: OSError) -> InputError:
    """What to tell the user when ``location`` is there and cannot be read."""
    return InputError(field, location, f"it cannot be read ({reason(error)}); try again later")


def reason(error: BaseException) -> str:
    """What an exception says, on one line."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_local(filesystem: fs.FileSystem) -> bool:
    return isinstance(filesystem, fs.LocalFileSystem)


def _write_local(path: Path, content: bytes) -> None:
    # Hidden, so that readers of the folder pass over what a killed writer leaves.
    partial = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a power failure
    finally:
        os.close(folder)


def local_database(database: Storage) -> Path:
    """Folder of an option database on this machine, with all that a remote one holds.

    Raises:
        InputError: the remote one cannot be listed, or there is no safe place for a copy.
    """
    if database.local is not None:
        return database.local
    place = hashlib.sha256(database.location.encode()).hexdigest()[:16]
    here = Storage.at(_own_temporary() / place)
    here.make()
    for name in set(database.names("database")) - set(here.names("database")):
        here.write(name, database.read(name))
    return Path(here.root)


def _own_temporary() -> Path:
    """A folder for temporary files that are found again, into which nobody else may put any.

    Raises:
        InputError: what is there is not such a folder: others know its name, too.
    """
    folder = Path(tempfile.gettempdir()) / f"joulecut-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or others_write:
        allowed = "a copy needs a folder of yours that nobody else may write; remove it, or set "
        raise InputError("resources.database", str(folder), f"{allowed}TMPDIR to another place")
    return folder


@contextmanager
def local_copy(storage: Storage) -> Iterator[Path]:
    """A local path with the files of a folder: the folder itself where it is local."""
    if storage.local is not None:
        yield storage.local
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in storage.names():
            (Path(temporary) / name).write_bytes(storage.read(name))
        yield Path(temporary)
