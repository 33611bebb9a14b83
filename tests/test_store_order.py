"""The order in which rows came is a number of their own: not where they lie in the file, and not the clock."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import pytest

from labref import failpoints
from labref.errors import StoreError
from labref.store import Rejected, Store
from labref.store.duckdb import migrations, rows
from labref.store.duckdb.duplicates import Learnt
from labref.store.duckdb.removal import Due
from labref.store.duckdb.reviews import Review
from labref.words import LabelSource
from tests.stores import BUNDLE, JUDGED, by_bits, digest_of, mark, new_cell, new_store

SCHEMAS = Path(__file__).parent / "schemas"
NUMBERED = ("cell", "label_change", "file_history", "resemblance", "embedding_failure", "measure", "landmark")
# the ids of these cells are in no order: neither this one nor its reverse
COMING = [3, 0, 4, 1, 2, 7, 5, 6]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path) as store:
        yield store


def rows_of(path: Path, query: str) -> list[Any]:
    """The first column of a query to a store that nobody has open."""
    with duckdb.connect(str(path)) as connection:
        return [row[0] for row in connection.execute(query).fetchall()]


def lie_otherwise(path: Path) -> None:
    """Let the rows of every table lie in another order, as compacting, or a copy made in parallel, may leave them."""
    with duckdb.connect(str(path)) as connection:
        for table in NUMBERED:
            connection.execute(f"CREATE TEMP TABLE taken AS SELECT * FROM {table} ORDER BY rowid DESC")
            connection.execute(f"DELETE FROM {table}")
            connection.execute("CHECKPOINT")
            connection.execute(f"INSERT INTO {table} SELECT * FROM taken")
            connection.execute("DROP TABLE taken")


def going(store: Store, numbers: Sequence[int]) -> list[Due]:
    cells = [new_cell(number) for number in numbers]
    return [Due(c.cell_id, c.digest, "neutrophil", LabelSource.ANALYSER, "DC-1", "old") for c in cells]


def orders(store: Store) -> dict[str, list[Any]]:
    """Everything that is said in the order it came."""
    return {
        "unmeasured": store.optics.missing(),
        "missing": store.changes.missing("cd" * 32),
        "labels": [(change.label, change.who) for change in store.reviews.history(new_cell(0).cell_id)],
        "outcomes": [(row.outcome, row.reason) for row in store.history("/export/again.jpg")],
        "failures": list(store.changes.failures(BUNDLE)),
    }


@contextmanager
def a_clock_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each time it is asked, it is an hour earlier."""
    start = rows.now()
    moments = (start - timedelta(hours=i) for i in count())
    with monkeypatch.context() as patch:
        patch.setattr(rows, "now", lambda: next(moments))
        yield


def fill(store: Store) -> None:
    store.add_bundle("cd" * 32, name="other", version="2", latent_size=50, labels=("a", "b"))
    for number in COMING:
        store.record([new_cell(number)], bundle=BUNDLE)
    for label in ("monocyte", "basophil", "eosinophil", "monocyte"):
        store.reviews.give([Review(new_cell(0).cell_id, label, f"who {label}", None)])
    for reason in ("no image", "truncated", "no image", "half"):
        store.record([Rejected("/export/again.jpg", 1, 1, reason)], bundle=BUNDLE)
    for number in (5, 3, 4):
        store.changes.fail(BUNDLE, {new_cell(number).cell_id: "for this test"})


def test_what_came_first_is_first_wherever_rows_lie_and_whatever_the_clock_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_store(tmp_path) as store:
        with a_clock_that_goes_back(monkeypatch):
            fill(store)
        path, before = store.path, orders(store)
    ids = [new_cell(number).cell_id for number in COMING]
    assert before["unmeasured"] == before["missing"] == ids
    assert ids not in (sorted(ids), sorted(ids, reverse=True))
    assert [label for label, _ in before["labels"]] == ["monocyte", "basophil", "eosinophil", "monocyte"]
    assert [reason for _, reason in before["outcomes"]] == ["no image", "truncated", "no image"]
    assert before["failures"] == [new_cell(number).cell_id for number in (5, 3, 4)]
    lie_otherwise(path)
    with Store.open(path) as store:
        assert orders(store) == before


def test_the_last_verdict_on_a_pair_holds_wherever_rows_lie(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        first, second = new_cell(1, fingerprints=mark(0)), new_cell(2, fingerprints=mark(1))
        store.record([first, second], bundle=BUNDLE, **JUDGED)
        assert store.duplicates.confirm(second.cell_id, "one").decision == "confirmed"
        found = {(pair.cell_id, pair.other, pair.verdict, pair.found) for pair in store.duplicates.pairs()}
        path = store.path
    lie_otherwise(path)
    with Store.open(path) as store:
        assert {(pair.cell_id, pair.other, pair.verdict, pair.found) for pair in store.duplicates.pairs()} == found
        # of two cells the one that came later repeats the other, whichever is named first
        assert store.duplicates.confirm(first.cell_id, None, second.cell_id).cell_id == second.cell_id


def test_numbers_are_not_given_again_after_the_last_rows_were_deleted(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(number) for number in range(6)], bundle=BUNDLE)
        path = store.path
    last = max(rows_of(path, "SELECT number FROM cell"))
    with Store.open(path) as store:
        store.remove(going(store, [3, 4, 5]))
    with Store.open(path) as store:
        store.record([new_cell(number) for number in (9, 8, 7)], bundle=BUNDLE)
        ids = [new_cell(number).cell_id for number in (0, 1, 2, 9, 8, 7)]
        assert store.optics.missing() == store.duplicates.without_fingerprint(99) == ids
    assert min(rows_of(path, "SELECT number FROM cell ORDER BY number DESC LIMIT 3")) > last
    for table in NUMBERED:
        numbers = rows_of(path, f"SELECT number FROM {table}")
        if table not in ("measure", "landmark"):
            assert len(set(numbers)) == len(numbers), table
        assert all(n <= rows_of(path, "SELECT last_number FROM sequence")[0] for n in numbers), table


def test_a_batch_that_failed_takes_its_numbers_back_with_its_rows(store: Store) -> None:
    store.record([new_cell(0)], bundle=BUNDLE)
    for point in ("record.embeddings", "record.files", "store.commit"):
        failpoints.arm(f"{point}=enospc@1")
        try:
            with pytest.raises(StoreError, match="nothing of it is kept.*give the command again"):
                store.record([new_cell(1), new_cell(2)], bundle=BUNDLE)
        finally:
            failpoints.disarm()
    store.record([new_cell(2), new_cell(1)], bundle=BUNDLE)
    assert store.optics.missing() == [new_cell(number).cell_id for number in (0, 2, 1)]
    path = store.path
    store.close()
    assert rows_of(path, "SELECT number FROM cell ORDER BY number") == [1, 2, 3]


def test_a_cell_whose_fingerprint_comes_late_still_is_the_earlier_one(tmp_path: Path) -> None:
    """What is kept in memory counts by the same numbers as the database does."""
    late, early = new_cell("late", fingerprints=()), new_cell("early", fingerprints=())
    with new_store(tmp_path) as store:
        store.record([early], bundle=BUNDLE)
        for number in range(3):
            store.record([new_cell(number, fingerprints=())], bundle=BUNDLE)
        store.record([replace(late, fingerprints=mark(0))], bundle=BUNDLE, **JUDGED)
        for cell, bits in ((late, 0), (early, 1)):  # tells the judge
            new_cell(cell.path.split("/")[-1].removesuffix(".jpg"), fingerprints=mark(bits))
        store.learn_fingerprints([Learnt(early.cell_id, mark(1))], judge=by_bits, candidate_bits=10)
        (pair,) = store.duplicates.pairs()
        assert (pair.cell_id, pair.other) == (late.cell_id, early.cell_id)
        near = store.candidates(mark(0), 4)
        assert near == [late.cell_id, early.cell_id]
        assert store.candidates((mark(0)[0], mark(1)[0]), 4) == [early.cell_id, late.cell_id], "the oldest of equals"
        path = store.path
    with Store.open(path) as store:
        assert store.candidates((mark(0)[0], mark(1)[0]), 4) == [early.cell_id, late.cell_id]


# labs of before


def a_store_of_schema_10(path: Path) -> None:
    """As a store was before rows had numbers: order was where rows lie. Some of them were deleted again."""
    with duckdb.connect(str(path)) as connection:
        migrations.apply(connection, migrations._REGISTRY[:10])
        connection.execute(
            "CREATE TABLE embedding_1 (cell_id VARCHAR PRIMARY KEY, latent FLOAT[2] NOT NULL, "
            "probabilities FLOAT[1] NOT NULL, predicted_label VARCHAR NOT NULL, predicted_probability FLOAT NOT NULL)"
        )
        connection.execute(f"INSERT INTO bundle VALUES (1, '{BUNDLE}', 'b', '1', 2, ['a'], now()::TIMESTAMP)")
        connection.execute(f"INSERT INTO activation VALUES (1, '{BUNDLE}', now()::TIMESTAMP)")
        for hour, number in enumerate(COMING):
            cell, at = new_cell(number), f"TIMESTAMP '2026-01-09' - INTERVAL {hour} HOUR"
            connection.execute(
                f"INSERT INTO cell VALUES (?, ?, ?, 1, 2, 2, 'a', 'analyser', NULL, NULL, NULL, 0, NULL, NULL, NULL, {at})",
                [cell.cell_id, cell.digest, cell.path],
            )
            connection.execute(
                f"INSERT INTO file VALUES (?, 1, 1, 'stored', NULL, ?, 'a', 'analyser', NULL, NULL, {at})",
                [cell.path, cell.cell_id],
            )
            connection.execute(
                f"INSERT INTO label_change VALUES (?, {at}, '', ?, 'reviewed', 'a', 'analyser', 'me', {at})",
                [new_cell(0).cell_id, str(number)],
            )
            connection.execute(
                f"INSERT INTO file_history VALUES ('/export/again.jpg', 1, 1, 'rejected', ?, NULL, NULL, NULL, NULL, NULL, "
                f"{at}, {at})",
                [str(number)],
            )
            connection.execute(f"INSERT INTO embedding_failure VALUES ('{BUNDLE}', ?, 'why', {at})", [cell.cell_id])
            connection.execute(
                f"INSERT INTO measure (cell_id, added_at, focus) VALUES (?, {at}, ?)", [cell.cell_id, number]
            )
            connection.execute("INSERT INTO landmark VALUES (?, 3, 0, 0)", [cell.cell_id])
            verdict = "different" if number == 6 else "neighbour"
            connection.execute(
                f"INSERT INTO resemblance VALUES (?, ?, ?, ?, {at})",
                [new_cell(4).cell_id, new_cell(3).cell_id, number / 10, verdict],
            )
        for table in ("label_change", "file_history"):
            what = "label" if table == "label_change" else "reason"
            connection.execute(f"DELETE FROM {table} WHERE {what} = '4'")


def test_a_store_of_the_schema_before_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    a_store_of_schema_10(path)
    ids = [new_cell(number).cell_id for number in COMING]
    with Store.open(path) as store:
        assert store.schema_version == migrations.latest_version()
        store.add_bundle("cd" * 32, name="other", version="2", latent_size=50, labels=("a", "b"))
        assert store.changes.missing("cd" * 32) == ids
        left = [str(number) for number in COMING if number != 4]
        assert [change.label for change in store.reviews.history(new_cell(0).cell_id)] == left
        assert [row.reason for row in store.history("/export/again.jpg")] == left
        assert list(store.changes.failures(BUNDLE)) == ids
        # the last said of the pair was that they differ
        assert store.duplicates.pairs(verdict="neighbour") == []
        since = rows.now().replace(year=2000)
        newest, _ = store.optics.latest(None, since=since, most=3)
        assert newest[:, -4].tolist() == [float(number) for number in COMING[:-4:-1]]
    last = rows_of(path, "SELECT last_number FROM sequence")[0]
    for table in NUMBERED:
        numbers = rows_of(path, f"SELECT number FROM {table} ORDER BY rowid")
        assert numbers == sorted(numbers) and min(numbers) >= 1 and max(numbers) <= last, table
        assert rows_of(path, f"SELECT is_nullable FROM duckdb_columns() WHERE table_name = '{table}' "
                             "AND column_name = 'number'") == [False]  # fmt: skip


@pytest.mark.parametrize("killed_after", [10, 11])
def test_an_upgrade_that_was_stopped_halfway_goes_on(tmp_path: Path, killed_after: int) -> None:
    path = tmp_path / "store.duckdb"
    a_store_of_schema_10(path)
    with duckdb.connect(str(path)) as connection:
        migrations.apply(connection, migrations._REGISTRY[:killed_after])
    failpoints.arm("migrate.commit=eio@1")
    try:
        with pytest.raises(StoreError, match="as it was"):
            Store.open(path)
    finally:
        failpoints.disarm()
    with Store.open(path) as store:
        store.add_bundle("cd" * 32, name="other", version="2", latent_size=50, labels=("a", "b"))
        assert store.changes.missing("cd" * 32) == [new_cell(number).cell_id for number in COMING]


@pytest.mark.parametrize("released", sorted(SCHEMAS.glob("*.duckdb")), ids=lambda path: f"schema {path.stem}")
def test_every_released_store_keeps_its_order(tmp_path: Path, released: Path) -> None:
    path = tmp_path / "store.duckdb"
    shutil.copy(released, path)
    path.chmod(0o644)
    ids = rows_of(path, "SELECT cell_id FROM cell ORDER BY rowid")
    with Store.open(path) as store:
        store.add_bundle("cd" * 32, name="other", version="2", latent_size=50, labels=("a", "b"))
        assert store.changes.missing("cd" * 32) == ids
        bundle = store.active_bundle()
        assert bundle is not None
        (record,) = store.record([Rejected("/export/new", None, None, digest_of(1))], bundle=bundle)
        assert record.outcome == "rejected"
