"""Files that grow while a process works: logs and event files."""

from __future__ import annotations

import os
import threading
from pathlib import PurePath

from search.storage import Storage

UPLOAD_SECONDS = 10.0
"""How long what was appended may wait before it is written to an object store."""
PART_BYTES = 1 << 20
"""Size from which on another object is begun, since all of one is written every time."""


class GrowingFile:
    """One process's file that is only appended to.

    On a local disk what was appended is in the file at once, and survives a kill. An object store
    cannot append: there the file is written anew every few seconds, from a thread, and continued
    in others (``NAME-1.EXT``, ``NAME-2.EXT``, ...) before it becomes long. What the storage
    refuses is kept and tried again with what comes next; nothing here ends a run.

    Args:
        folder: Where it goes; made when the first bytes come.
        name: Of the file; no other process may use it.
    """

    def __init__(self, folder: Storage, name: str) -> None:
        self._folder = folder
        self._name = PurePath(name)
        self._part = 0
        self._pending = bytearray()  # in an object store: all of the part
        self._file: int | None = None
        self._is_unsaved = False  # whether there is something that no upload had
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._uploading = threading.Lock()

    def append(self, content: bytes) -> None:
        """Add to the end of the file; may be called from any thread."""
        with self._lock:
            self._pending += content
            if self._folder.local is not None:
                self._write()
                return
            self._is_unsaved = True
            if self._timer is None:
                self._timer = threading.Timer(UPLOAD_SECONDS, self._upload)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Write what is left; nothing can be appended after this."""
        with self._lock:
            timer, self._timer = self._timer, None
            if self._file is not None:
                os.close(self._file)
                self._file = None
        if timer is not None:
            timer.cancel()
        if self._is_unsaved:
            self._upload()

    def _write(self) -> None:
        try:
            if self._file is None:
                self._folder.make()
                path = f"{self._folder.root}/{self._name}"
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            written = os.write(self._file, self._pending)
        except OSError:
            return
        del self._pending[:written]

    def _upload(self) -> None:
        with self._uploading:  # or an older content could be the last to arrive
            with self._lock:
                self._timer = None
                self._is_unsaved = False
                content = bytes(self._pending)
            name = self._name
            if self._part:
                name = name.with_name(f"{name.stem}-{self._part}{name.suffix}")
            try:
                self._folder.make()
                self._folder.write(str(name), content)
            except OSError:
                self._is_unsaved = True
                return
            if len(content) >= PART_BYTES:
                self._part += 1
                with self._lock:
                    del self._pending[: len(content)]
