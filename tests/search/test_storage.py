"""Where this machine keeps what a remote option database holds."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

import pytest
from pyarrow import fs

from hwmodel.errors import InputError
from search.storage import Storage
from search.storage import local_database


@pytest.fixture
def remote(tmp_path: Path) -> Storage:
    """A database with one file, in a file system that is not the local one to the code."""
    filesystem = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    database = Storage.at((filesystem, "database"))
    database.make()
    database.write("options", b"all")
    return database


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_remote_database_is_copied_to_a_folder_that_is_the_users_alone(
    remote: Storage, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", unknown)
    for _ in range(2):  # the second time the folder is there
        here = local_database(remote)
        assert (here / "options").read_bytes() == b"all"
    own = temporary / f"joulecut-{os.getuid()}"
    assert own in here.parents
    assert own.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("made", ["link", "file", "writable by others", "of somebody else"])
def test_a_folder_that_others_may_have_put_there_is_refused(
    remote: Storage, temporary: Path, tmp_path: Path, made: str
) -> None:
    own = temporary / f"joulecut-{os.getuid()}"
    if made == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        own.symlink_to(tmp_path / "theirs")
    elif made == "file":
        own.write_text("")
    else:
        own.mkdir(mode=0o700)
    if made == "writable by others":
        own.chmod(0o770)
    if made == "of somebody else":
        if os.geteuid() != 0:
            pytest.skip("only root may give folders away")
        os.chown(own, 12345, -1)
    with pytest.raises(InputError, match=f"^resources.database: .*{own.name}.*TMPDIR"):
        local_database(remote)
    assert made == "file" or list(own.iterdir()) == []
