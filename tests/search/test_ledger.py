from __future__ import annotations

import errno
import os
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledger_rows import ROW
from ledger_rows import evaluation
from pyarrow import fs

from hwmodel.errors import InputError
from search.ledger import COLUMNS
from search.ledger import MEASURED
from search.ledger import MERGED
from search.ledger import SCHEMA
from search.ledger import DamagedPartError
from search.ledger import Ledger
from search.storage import Storage


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.storage.PATIENCE_SECONDS", (0.0, 0.0))


@pytest.fixture(params=["path", "uri", "filesystem"])
def ledger(request, tmp_path: Path) -> Ledger:
    """A local folder, a URI, and a file system that is not the local one to the code."""
    if request.param == "path":
        return Ledger(tmp_path / "ledger")
    if request.param == "uri":
        return Ledger(f"file://{tmp_path}/ledger")
    return Ledger((fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "ledger"))


def test_rows_come_back_as_they_went_in(ledger: Ledger) -> None:
    ledger.append([evaluation(1), evaluation(2, accuracy=None, error="ran out of memory")])

    rows = ledger.read()

    assert list(rows.columns) == list(COLUMNS) == SCHEMA.names
    assert rows["accuracy"][0] == 0.9
    assert np.isnan(rows["accuracy"][1])
    assert list(rows["block_accuracies"][0]) == [0.9] * 10
    assert rows["error"][1] == "ran out of memory"
    assert rows["time"][0].to_pydatetime() == ROW.time + timedelta(seconds=1)


def test_rows_are_sorted_by_time_across_parts(ledger: Ledger) -> None:
    ledger.append([evaluation(3), evaluation(1)])
    ledger.append([evaluation(2)])
    assert list(ledger.read()["config_hash"]) == [f"{n:016x}" for n in (1, 2, 3)]


def test_an_empty_ledger_has_the_columns(ledger: Ledger) -> None:
    ledger.append([])
    rows = ledger.read()
    assert rows.empty
    assert list(rows.columns) == list(COLUMNS)


def test_pandas_reads_the_folder(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for number in range(3):
        ledger.append([evaluation(number)])
    assert len(pd.read_parquet(ledger.location)) == 3


def test_writers_and_readers_at_the_same_time(tmp_path: Path) -> None:
    def write(start: int) -> None:
        for number in range(start, start + 10):
            Ledger(tmp_path).append([evaluation(number)])

    threads = [threading.Thread(target=write, args=(100 * writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    reader, counts = Ledger(tmp_path), []
    while any(thread.is_alive() for thread in threads):
        counts.append(len(reader.read()))
    for thread in threads:
        thread.join()

    assert counts == sorted(counts)
    assert reader.read()["config_hash"].nunique() == 40


def test_what_a_killed_writer_leaves_is_passed_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([evaluation(1)])
    (tmp_path / ".part-0123.parquet.4567.tmp").write_bytes(b"PAR1 half a fi")
    assert len(ledger.read()) == 1
    assert len(pd.read_parquet(ledger.location)) == 1


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not parquet at all"])
def test_a_damaged_part_is_named(ledger: Ledger, damage: bytes) -> None:
    ledger.append([evaluation(1)])
    ledger.storage.write("part-bad.parquet", damage)
    with pytest.raises(InputError, match=r"part-bad\.parquet.*not a whole Parquet file"):
        ledger.read()


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    Ledger(tmp_path).append([evaluation(1, config="x" * 99)])
    (part,) = tmp_path.glob("part-*.parquet")
    whole = part.read_bytes()
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 0xFF
        part.write_bytes(content)
        with pytest.raises(DamagedPartError, match=part.name):
            Ledger(tmp_path).read()


def test_damaged_parts_are_set_aside_and_the_others_kept(ledger: Ledger, tmp_path: Path) -> None:
    ledger.append([evaluation(1)])
    ledger.storage.write("part-bad.parquet", b"PAR1")
    ledger.storage.write("part-empty.parquet", b"")
    aside = Storage.at((fs.LocalFileSystem(), str(tmp_path / "damaged")))
    if not isinstance(ledger.storage.filesystem, fs.LocalFileSystem):
        aside = Storage.at((ledger.storage.filesystem, "damaged"))
    assert ledger.set_aside_damaged(aside) == ["part-bad.parquet", "part-empty.parquet"]
    assert aside.names() == ["part-bad.parquet", "part-empty.parquet"]
    assert len(ledger.read()) == 1


def test_many_parts_become_few_and_no_row_is_lost_or_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.ledger.MERGED", 8)
    ledger = Ledger(tmp_path)
    for number in range(19):
        ledger.append([evaluation(number)])
    ledger.merge()
    assert len(list(tmp_path.glob("part-*.parquet"))) == 2 + 3
    for reader in (ledger, Ledger(tmp_path)):
        assert list(reader.read()["config_hash"]) == [f"{n:016x}" for n in range(19)]
    assert len(pd.read_parquet(ledger.location)) == 19


def test_merged_parts_are_merged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.ledger.MERGED", 4)
    ledger = Ledger(tmp_path)
    for number in range(40):
        ledger.append([evaluation(number)])
        ledger.merge()
    assert len(list(tmp_path.glob("part-*.parquet"))) == 2 + 2
    assert Ledger(tmp_path).read()["config_hash"].nunique() == len(ledger.read()) == 40


@pytest.mark.parametrize("deleted", range(4))
def test_a_merge_that_is_killed_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    monkeypatch.setattr("search.ledger.MERGED", 4)
    ledger = Ledger(tmp_path)
    for number in range(4):
        ledger.append([evaluation(number)])
    delete, left = Storage.delete, [deleted]

    def die(storage: Storage, name: str) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        delete(storage, name)

    with monkeypatch.context() as context:
        context.setattr(Storage, "delete", die)
        with pytest.raises(KeyboardInterrupt):
            ledger.merge()
    assert len(ledger.read()) == len(Ledger(tmp_path).read()) == 4
    Ledger(tmp_path).merge()
    assert len(list(tmp_path.glob("part-*.parquet"))) == 1
    assert len(Ledger(tmp_path).read()) == 4


def test_one_merges_while_others_append_and_read(tmp_path: Path) -> None:
    def write(start: int) -> None:
        for number in range(start, start + 70):
            Ledger(tmp_path).append([evaluation(number)])

    threads = [threading.Thread(target=write, args=(1000 * writer,)) for writer in range(2)]
    for thread in threads:
        thread.start()
    reader, counts = Ledger(tmp_path), []
    while any(thread.is_alive() for thread in threads):
        reader.merge()
        counts.append(len(Ledger(tmp_path).read()))
    for thread in threads:
        thread.join()
    assert counts == sorted(counts)
    assert reader.read()["config_hash"].nunique() == len(reader.read()) == 140


def test_a_row_that_was_measured_can_be_found(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([evaluation(1), evaluation(1, split="test", accuracy=None, error="none")])
    assert ledger.find(f"{1:016x}", "search") == evaluation(1)
    assert ledger.find(f"{2:016x}", "search") is None
    assert ledger.find(f"{1:016x}", "test") is None


def test_a_truncated_part_is_named(tmp_path: Path) -> None:
    Ledger(tmp_path).append([evaluation(1)])
    (part,) = tmp_path.glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(InputError, match=part.name):
        Ledger(tmp_path).read()


def test_a_part_with_other_columns_is_named(tmp_path: Path) -> None:
    pd.DataFrame({"accuracy": [1.0]}).to_parquet(tmp_path / "part-0.parquet")
    with pytest.raises(InputError, match=r"part-0\.parquet.*config_hash"):
        Ledger(tmp_path).read()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_failed_write_leaves_the_ledger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([evaluation(1)])
    before = sorted(tmp_path.iterdir())

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError) as caught:
        ledger.append([evaluation(2)])

    assert os.strerror(code) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    assert len(ledger.read()) == 1


def test_a_write_that_is_refused_for_a_while_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ledger").write_text("in the way")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            (tmp_path / "ledger").unlink()

    monkeypatch.setattr("search.storage.PATIENCE_SECONDS", (1.0, 2.0, 4.0))
    monkeypatch.setattr("time.sleep", wait)
    Ledger(tmp_path / "ledger").append([evaluation(1)])
    assert waits == [1.0, 2.0]
    assert len(Ledger(tmp_path / "ledger").read()) == 1


def refuse_reads(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The storage fails to give a file out, as a disk or a network may for a while."""
    read, left = Storage.read, [times]

    def refuse(storage: Storage, name: str) -> bytes:
        if left[0] == 0:
            return read(storage, name)
        left[0] -= 1
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Storage, "read", refuse)


def test_a_read_that_fails_for_a_while_is_made_later(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.append([evaluation(1)])
    refuse_reads(monkeypatch, times=2)
    assert len(ledger.read()) == 1


def test_a_part_that_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.append([evaluation(1)])
    refuse_reads(monkeypatch, times=3)
    with pytest.raises(InputError, match=r"ledger: .*/part-.*it cannot be read \(Input/output"):
        ledger.set_aside_damaged(Storage.at(tmp_path / "damaged"))
    assert not (tmp_path / "damaged").exists()
    assert len(ledger.read()) == 1


def test_a_part_that_a_merge_took_away_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([evaluation(1)])
    names = ledger._names
    found = iter([["part-gone.parquet", *names()]])
    monkeypatch.setattr(ledger, "_names", lambda: next(found, None) or names())
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waited"))
    assert len(ledger.read()) == 1


def test_a_failed_upload_leaves_no_object(tmp_path: Path) -> None:
    class FullStream:
        def __init__(self, stream) -> None:
            self.stream = stream

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, content: bytes) -> None:
            self.stream.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FullStore(fs.SubTreeFileSystem):
        def open_output_stream(self, path: str, **options: object) -> FullStream:
            return FullStream(super().open_output_stream(path, **options))

    ledger = Ledger((FullStore(str(tmp_path), fs.LocalFileSystem()), "ledger"))
    with pytest.raises(InputError, match="No space left"):
        ledger.append([evaluation(1)])
    assert list((tmp_path / "ledger").iterdir()) == []


def test_only_what_is_needed_is_read(ledger: Ledger) -> None:
    ledger.append([evaluation(number) for number in range(3)])
    ledger.append([evaluation(1, split="test")])
    whole = ledger.read()
    assert tuple(whole.columns) == COLUMNS
    pd.testing.assert_frame_equal(ledger.read(("seed", "accuracy")), whole[["seed", "accuracy"]])
    assert set(COLUMNS) - set(ledger.read(MEASURED).columns) == {"config"}
    one = ledger.read(hashes=[f"{1:016x}"])
    pd.testing.assert_frame_equal(
        one, whole[whole["config_hash"] == f"{1:016x}"].reset_index(drop=True)
    )
    assert ledger.configs([f"{1:016x}", "not there"]) == {f"{1:016x}": "{}"}


def test_a_reader_keeps_nothing(ledger: Ledger) -> None:
    ledger.append([evaluation(1)])
    before = pa.total_allocated_bytes()
    for _ in range(3):
        ledger.read()
    assert pa.total_allocated_bytes() == before


def test_parts_from_before_attacks_and_expectations_are_read_and_merged(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(MERGED):
        ledger.append([evaluation(number)])
    for part in tmp_path.glob("part-*.parquet"):
        table = pq.read_table(part).drop_columns(["robust_accuracy", "predicted_drop"])
        pq.write_table(table, tmp_path / f"part-{part.name[5:13]}.parquet")
        part.unlink()
    ledger.append([evaluation(99, robust_accuracy=0.5, predicted_drop=0.1)])
    assert ledger.merge() == MERGED
    rows = Ledger(tmp_path).read()
    assert len(rows) == MERGED + 1
    assert rows["robust_accuracy"].count() == rows["predicted_drop"].count() == 1
    assert ledger.find(f"{3:016x}", "search") == evaluation(3)
    assert ledger.read(("accuracy",))["accuracy"].notna().all()
