"""A store opens or says why not; migrations are all or nothing; what was committed survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest

import labref
from labref.errors import StoreError, StoreLockedError, StoreTooNewError
from labref.store import Store
from labref.store.duckdb import migrations, wal
from labref.store.duckdb.connection import connect, release
from tests.stores import BUNDLE, activate, digest_of, new_cell, new_store


@contextmanager
def another_process(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A process of Python that has run up to its line on standard output."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(labref.__file__).parents[1],
    )
    try:
        assert process.stdout is not None and process.stdout.readline() != "", "the other process ended"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_who_has_the_store(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    Store.create(path).close()
    holding = """
        import sys; from pathlib import Path; from labref.store import Store
        store = Store.open(Path(sys.argv[1])); print("open", flush=True); sys.stdin.read()
    """
    with another_process(holding, path) as process:
        with pytest.raises(StoreLockedError, match=r"one process at a time.*labref query") as caught:
            Store.open(path)
        assert str(path) in str(caught.value)
        if sys.platform == "linux":
            assert f"process {process.pid};" in str(caught.value)
    Store.open(path).close()


def test_a_store_opens_once_in_a_process_and_again_when_closed(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    with Store.create(path) as store:
        with pytest.raises(StoreLockedError, match="already open in this process"):
            Store.open(tmp_path / "." / "store.duckdb")
        assert store.active_bundle() is None
    store.close()
    Store.open(path).close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.build_index()
    for use in (
        store.counts,
        store.active_bundle,
        store.known_files,
        lambda: list(store.ledger()),
        lambda: store.has_digest(digest_of(1)),
        lambda: store.nearest(new_cell(1).latent, bundle=BUNDLE, k=8),
        lambda: store.record([new_cell(1)], bundle=BUNDLE),
        lambda: activate(store),
    ):
        with pytest.raises(StoreError, match="is closed"):
            use()


def test_a_store_closes_while_threads_read_it(tmp_path: Path) -> None:
    """As an agent's does that ends while pages and published thumbnails are made."""
    path = tmp_path / "store.duckdb"
    Store.create(path).close()

    def read(store: Store, told: list[str]) -> None:
        try:
            while True:
                assert store.schema_version > 0
        except StoreError as error:
            told.append(str(error))

    for _ in range(20):
        store = Store.open(path)
        told: list[str] = []
        readers = [threading.Thread(target=read, args=(store, told)) for _ in range(4)]
        for reader in readers:
            reader.start()
        time.sleep(0.02)
        store.close()
        for reader in readers:
            reader.join()
        assert len(told) == 4 and all("is closed" in text for text in told)
    with another_process(
        "import sys; from pathlib import Path; from labref.store import Store\nStore.open(Path(sys.argv[1])); print()",
        path,
    ):
        pass  # nothing of this process holds it


def test_create_refuses_what_is_there_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    (tmp_path / "store.duckdb.new").write_bytes(b"left by a killed init")
    Store.create(path).close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["store.duckdb"]
    with pytest.raises(StoreError, match="is there already"):
        Store.create(path)


@pytest.mark.parametrize("content", [b"", b"not a database " * 1000, os.urandom(20_000)])
def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.duckdb"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.duckdb"):
        Store.open(path)
    assert path.read_bytes() == content


def test_a_missing_store_and_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="labref init"):
        Store.open(tmp_path / "store.duckdb")
    with pytest.raises(StoreError):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.create(tmp_path / "no such folder" / "store.duckdb")


def test_another_database_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE accounts (id INTEGER)")
    with pytest.raises(StoreError, match="not a labref store"):
        Store.open(path)
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("accounts",)]


def test_a_store_of_a_newer_labref_is_refused_untouched_and_names_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    Store.create(path).close()
    with duckdb.connect(str(path)) as connection:
        newer = migrations.latest_version() + 1
        connection.execute("INSERT INTO migration VALUES (?, 'from the future', now()::TIMESTAMP, '9.8.7')", [newer])
    before = path.read_bytes()
    with pytest.raises(StoreTooNewError, match=rf"labref 9\.8\.7 \(schema {newer}\).*Install") as caught:
        Store.open(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_migrations_are_recorded_with_the_version_that_made_them(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    with Store.create(path) as store:
        assert store.schema_version == migrations.latest_version()
    Store.open(path).close()
    with duckdb.connect(str(path)) as connection:
        found = connection.execute("SELECT version, labref_version FROM migration ORDER BY version").fetchall()
    assert found == [(version, labref.__version__) for version in range(1, migrations.latest_version() + 1)]


def test_a_migration_that_fails_leaves_the_version_before_it_whole() -> None:
    def half(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("CREATE TABLE half (id INTEGER)")
        connection.execute("INSERT INTO nowhere VALUES (1)")

    first = migrations.Migration(
        1, "one", lambda connection: connection.execute("CREATE TABLE one (id INTEGER)") and None
    )
    with duckdb.connect() as connection:
        with pytest.raises(duckdb.Error, match="nowhere"):
            migrations.apply(connection, [first, migrations.Migration(2, "two", half)])
        assert migrations.schema_version(connection) == 1
        assert connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall() == [
            ("migration",),
            ("one",),
        ]
        mended = migrations.Migration(2, "two", lambda connection: connection.execute("DROP TABLE one") and None)
        assert migrations.apply(connection, [first, mended]) == 2
        assert migrations.apply(connection, [first, mended]) == 2, "what is applied is not applied again"


def test_a_migration_must_follow_the_last() -> None:
    with pytest.raises(ValueError, match="cannot be"):
        migrations.migration(migrations.latest_version() + 2, "a gap")


RECORDING = """
    import sys; from pathlib import Path; from labref.store import Store
    from tests.stores import BUNDLE, new_cell
    store = Store.open(Path(sys.argv[1]))
    for batch in range(1000):
        store.record([new_cell(16 * batch + i) for i in range(16)], bundle=BUNDLE)
        print(batch, flush=True)
"""


@pytest.mark.parametrize("batches", [1, 2, 5, 12])
def test_what_record_returned_survives_a_kill(tmp_path: Path, batches: int) -> None:
    with new_store(tmp_path):
        pass
    with another_process(RECORDING, tmp_path / "store.duckdb") as process:
        assert process.stdout is not None
        confirmed = 0
        while confirmed < batches:
            confirmed = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        process.wait()
        rest = process.stdout.read().split()
        confirmed = int(rest[-1]) if rest else confirmed
    with Store.open(tmp_path / "store.duckdb") as store:
        counts = store.counts()
        assert counts.cells == counts.files and counts.cells % 16 == 0, "batches are all or nothing"
        assert counts.cells >= 16 * (confirmed + 1)
        ids = [new_cell(i).cell_id for i in range(counts.cells)]
        assert set(store.cells(ids)) == set(store.latents(ids, bundle=BUNDLE)) == set(ids)
        assert all(store.has_digest(digest_of(i)) for i in range(counts.cells))
        store.record([new_cell(i) for i in range(counts.cells + 16)], bundle=BUNDLE)
        assert store.counts().cells == counts.cells + 16


FULL_DISK = """
    import resource, sys; from pathlib import Path; from labref.errors import StoreError; from labref.store import Store
    from tests.stores import BUNDLE, new_cell
    def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    store = Store.open(Path(sys.argv[1]))
    store._connection.execute(f"SET checkpoint_threshold = '{sys.argv[2]}'")
    store.build_index()
    limit(3_000_000)
    recorded, refused = 0, 0
    while refused < 3:
        try:
            store.record([new_cell(recorded + i) for i in range(64)], bundle=BUNDLE)
            recorded += 64
        except StoreError as error:
            assert str(store.path) in str(error) and "disk space" in str(error) or "restore" in str(error), error
            refused += 1
    limit(resource.RLIM_INFINITY)
    for start in range(0, recorded + 640, 64):
        store.record([new_cell(start + i) for i in range(64)], bundle=BUNDLE)
    near = store.nearest(new_cell(recorded + 7).latent, bundle=BUNDLE, k=1)
    assert near[0].cell_id == new_cell(recorded + 7).cell_id
    print(recorded + 640, flush=True)
    sys.stdin.read()
"""


if sys.platform != "win32":  # where the size of a file can be limited, as a full disk does

    @pytest.mark.parametrize("checkpoint_threshold", ["16MB", "1MB"], ids=["while committing", "while checkpointing"])
    def test_a_full_disk_refuses_a_batch_and_takes_it_when_there_is_room_again(
        tmp_path: Path, checkpoint_threshold: str
    ) -> None:
        with new_store(tmp_path):
            pass
        with another_process(FULL_DISK, tmp_path / "store.duckdb", checkpoint_threshold) as process:
            process.kill()
        with Store.open(tmp_path / "store.duckdb") as store:
            counts = store.counts()
            assert counts.cells == counts.files > 640
            assert len(store.latents([new_cell(i).cell_id for i in range(counts.cells)], bundle=BUNDLE)) == counts.cells


def test_a_checkpoint_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(i) for i in range(40)], bundle=BUNDLE)
        store._connection.execute("CHECKPOINT")
        store.record([new_cell(i) for i in range(40, 80)], bundle=BUNDLE)
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("store.duckdb", "store.duckdb.wal"):  # as a kill leaves them
            (copy / name).write_bytes((tmp_path / name).read_bytes())
    with Store.open(copy / "store.duckdb") as store:
        assert store.counts().cells == 80


LOG = """
    import os, sys; from pathlib import Path
    from labref.store.duckdb.connection import connect
    connection = connect(Path(sys.argv[1]), memory_limit="1GiB", threads=1)
    connection.execute("CREATE TABLE said (label VARCHAR)"); connection.execute("CHECKPOINT")
    for label in ("blast", "monocyte", "basophil"):
        connection.execute("INSERT INTO said VALUES (?)", [label])
    print("committed", flush=True); sys.stdin.read()
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A database of three transactions that a killed process left in its log: the file, and the log."""
    path = tmp_path_factory.mktemp("killed") / "store.duckdb"
    with another_process(LOG, path):
        pass
    return path.read_bytes(), path.with_name("store.duckdb.wal").read_bytes()


def heads(log: bytes) -> list[int]:
    """Where the length of each entry stands in a log."""
    at, found = wal._first_entry(log), []
    assert at is not None and wal._leads_to_the_end(log, at)
    while at < len(log):
        found.append(at)
        at += 16 + int.from_bytes(log[at : at + 8], "little")
    return found


def said(folder: Path, store: bytes, log: bytes) -> list[str]:
    path = folder / "store.duckdb"
    path.write_bytes(store)
    path.with_name("store.duckdb.wal").write_bytes(log)
    connection = connect(path, memory_limit="1GiB", threads=1)
    try:
        return [label for (label,) in connection.execute("SELECT label FROM said").fetchall()]
    finally:
        connection.close()
        release(path)


def test_a_damaged_length_in_the_log_takes_no_change_away_without_a_word(
    killed: tuple[bytes, bytes], tmp_path: Path
) -> None:
    store, log = killed
    assert duckdb.__version__.startswith(wal._KNOWN), "look at the log of this DuckDB: labref/store/duckdb/wal.py"
    whole = ["blast", "monocyte", "basophil"]
    assert said(tmp_path, store, log) == whole
    assert len(heads(log)) >= 6
    told = 0
    for at in heads(log):
        for byte in range(at, at + 8, 2 if at == heads(log)[0] else 5):
            damaged = bytearray(log)
            damaged[byte] ^= 1 << (byte % 8)
            try:
                assert said(tmp_path, store, bytes(damaged)) == whole, byte
            except StoreError as error:
                told += "changes made last" in str(error)
    assert told >= 6


def test_a_log_that_a_crash_cut_is_no_damage(killed: tuple[bytes, bytes], tmp_path: Path) -> None:
    store, log = killed
    path = tmp_path / "store.duckdb"
    for length in range(len(log) + 1):
        path.with_name("store.duckdb.wal").write_bytes(log[:length])
        wal.check_log(path)
    cut = heads(log)[-1] - 1
    assert said(tmp_path, store, log[:cut]) == ["blast", "monocyte"]


def test_all_that_answers_need_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards the database is not asked for the nearest cells, for known bytes and for slides."""
    path = tmp_path / "store.duckdb"
    with Store.create(path) as store:
        with pytest.raises(StoreError, match="no active bundle"):
            store.read_ahead()
        activate(store)
        cells = [new_cell(number) for number in range(20)]
        store.record(cells, bundle=BUNDLE)
    with Store.open(path) as store:
        store.read_ahead()
        store.read_ahead()  # what is in memory is not read again

        def reading(*_: object, **__: object) -> None:
            raise AssertionError("the database is read")

        with monkeypatch.context() as patched:
            patched.setattr(store, "_reading", reading)
            assert store.has_digest(cells[3].digest) == cells[3].cell_id
            assert store.has_digest("0" * 64) is None
            assert store.index_bytes > 0
            assert store.slides.book is not None
        assert store.record([new_cell(21)], bundle=BUNDLE)[0].outcome == "stored"
        assert store.has_digest(digest_of(21)) is not None
