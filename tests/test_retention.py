"""What retention removes: never because of a clock that jumped, little at a time, and so that it can come back."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pytest
import structlog
from typer.testing import CliRunner

from labref import failpoints
from labref.agent.retries import Retries
from labref.asking.answer import store_status
from labref.bundles.bundle import Bundle
from labref.cells.decoding import _TOO_LONG, Limits
from labref.cli import app
from labref.cli.status import _text as status_text
from labref.config import MapConfig, RetentionConfig
from labref.errors import BundleError, LabrefError, StoreError
from labref.lab import Lab
from labref.operations.bundle import drop
from labref.operations.status import TrashState
from labref.progress import Row, waiting
from labref.roles import Role
from labref.som.placing import open_placer
from labref.store import Due, SeenAgain, Store
from labref.store.duckdb import rows
from labref.store.duckdb.reviews import Review
from labref.store.memory.books import CellBook
from labref.tasks import retention
from labref.tasks.backup import restore, write
from labref.tasks.jobs import Jobs
from labref.tasks.mapping import FEWEST
from labref.tasks.mapping import due as due_for_map
from labref.times import local
from labref.web import desk
from tests.labs import ledger, make_lab, once
from tests.stores import BUNDLE, JUDGED, activate, mark, new_cell, new_store, put_on_map
from tests.test_store_order import a_store_of_schema_10

DAY = timedelta(days=1)
JUMPS = {
    "30 years ahead": timedelta(days=10957),
    "500 days ahead": timedelta(days=500),
    "two months ahead": timedelta(days=60),
    "30 years back": -timedelta(days=10957),
    "two months back": -timedelta(days=60),
}


class Clock:
    """The computer's clock, as the store reads it."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 5, 8)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(rows, "now", lambda: made.at)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path) as store:
        yield store


def live(store: Store, clock: Clock, cells: range, every: timedelta = DAY) -> None:
    """One cell, and then some time."""
    for number in cells:
        store.record([new_cell(number)], bundle=BUNDLE)
        clock.at += every


class Keeping:
    """A lab in so far as retention asks for one."""

    def __init__(self, store: Store, **how: Any) -> None:
        self.config = Lab  # only its attribute below is asked for
        self.config = type("Config", (), {"retention": RetentionConfig(**how)})()
        self._folder = store.path.parent / "images"

    def image_path(self, digest: str) -> Path:
        return self._folder / digest


def retain(store: Store, **how: Any) -> int:
    lab: Any = Keeping(store, **how)
    return retention.retain(lab, store, stopped=lambda: False, report=lambda _: None)


def due(store: Store, days: int) -> int:
    return len(store.due(days=days, cells=0, at_least=0, reviewed=True, limit=10**9))


def remove(store: Store, *numbers: int | str) -> list[str]:
    """Move cells to the trash, as retention does."""
    ids = [new_cell(number).cell_id for number in numbers]
    cells = store.cells(ids)
    store.remove(
        [Due(c.cell_id, c.digest, c.label, c.label_source, c.analyser, "for this test") for c in cells.values()]
    )
    return ids


def content(path: Path) -> dict[str, list[Any]]:
    """All rows of a store that nobody has open, but for when and in what order things were written."""
    left_out = {"migration", "sequence", "clock", "restored_cell", "file_history"}
    with duckdb.connect(str(path)) as connection:
        tables = [name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
        found = {}
        for table in tables:
            if table in left_out or table.startswith("trash_"):
                continue
            but = " EXCLUDE (recorded_at)" if table == "file" else ""
            found[table] = connection.execute(f"SELECT *{but} FROM {table} ORDER BY ALL").fetchall()
        return found


# clocks


@pytest.mark.parametrize("jump", JUMPS.values(), ids=list(JUMPS))
@pytest.mark.parametrize("cells", [1, 3])
def test_a_clock_that_jumped_and_was_put_right_removes_nothing(
    store: Store, clock: Clock, jump: timedelta, cells: int
) -> None:
    keep = {"days": 15, "at_least": 0, "percent_a_day": 100}
    live(store, clock, range(10))
    clock.at += jump
    assert retain(store, **keep) == 0, "before a cell came with the wrong date"
    live(store, clock, range(20, 20 + cells), timedelta(hours=1))
    assert due(store, 15) == 0 and retain(store, **keep) == 0, "while the clock is wrong"
    clock.at += DAY
    assert retain(store, **keep) == 0, "a day later"
    clock.at -= jump
    assert retain(store, **keep) == 0, "as soon as it is right"
    live(store, clock, range(30, 32))
    assert retain(store, **keep) == 0 and store.counts().cells == 12 + cells
    assert len(store.jumps(15)) == 2
    # time goes on counting: 9 days until the jump, at most 3 with it, 2 after it
    live(store, clock, range(40, 46))
    assert 1 <= retain(store, **keep) <= 4


@pytest.mark.parametrize("jump", JUMPS.values(), ids=list(JUMPS))
def test_a_jump_while_nothing_runs_removes_nothing(tmp_path: Path, clock: Clock, jump: timedelta) -> None:
    with new_store(tmp_path) as store:
        live(store, clock, range(10))
        path = store.path
    clock.at += jump
    with Store.open(path) as store:
        for _ in range(3):
            assert retain(store, days=15, at_least=0, percent_a_day=100) == 0
            clock.at += DAY
        live(store, clock, range(10, 12))
        assert retain(store, days=15, at_least=0, percent_a_day=100) == 0


def test_days_that_the_lab_saw_pass_count_and_no_more_go_in_a_day_than_may(store: Store, clock: Clock) -> None:
    live(store, clock, range(100), 5 * DAY)  # 500 days
    assert due(store, 400) == 19
    assert retain(store, days=400, at_least=0) == 2, "two per cent"
    for _ in range(3):
        assert retain(store, days=400, at_least=0) == 0, "a pass later the same day"
    # nor does a clock that jumps make another day of it
    clock.at += timedelta(days=10957)
    assert retain(store, days=400, at_least=0) == 0
    clock.at -= timedelta(days=10957)
    assert retain(store, days=400, at_least=0) == 0
    clock.at += DAY
    assert retain(store, days=400, at_least=0) == 1, "two per cent of what is left"
    assert new_cell(0).cell_id in {cell.cell_id for cell in store.trash.cells(30)}, "the oldest first"
    assert store.counts().cells == 97
    assert retain(store, days=400, at_least=97, percent_a_day=100) == 0, "so many stay however old"


def test_the_last_cells_of_a_class_are_those_that_came_last_whatever_they_are_dated(store: Store, clock: Clock) -> None:
    live(store, clock, range(4))
    clock.at -= timedelta(days=10957)
    live(store, clock, range(4, 6))
    assert retain(store, cells=2, percent_a_day=100) == 4
    assert store.cells([new_cell(4).cell_id, new_cell(5).cell_id]).keys() == {new_cell(n).cell_id for n in (4, 5)}


def test_few_cells_go_one_a_day(store: Store, clock: Clock) -> None:
    live(store, clock, range(6))
    for left in (5, 4):
        assert retain(store, cells=1) == 1 and retain(store, cells=1) == 0
        assert store.counts().cells == left
        clock.at += DAY


UPGRADED = {
    # of the 8 cells, in the order they came: the day on which each is dated, and how many are due at 80 days
    "one day each month": ([0, 30, 60, 90, 120, 150, 180, 210], 0),  # a month is more than an eighth of 80 days
    "one day each week": ([0, 9, 18, 27, 36, 45, 54, 63], 0),
    "long enough": ([0, 10, 20, 30, 40, 50, 60, 85], 0),  # the last step is too long
    "a week longer": ([0, 10, 20, 30, 40, 60, 70, 80], 0),  # one of them is
    "one in the future": ([0, 1, 2, 3, 4, 10957, 5, 6], 0),
    "two dates": ([0, 0, 0, 0, 0, 0, 0, 500], 0),
    "all in the future but the last": ([10957, 10958, 10959, 10960, 10961, 10962, 10963, 6], 0),
}


@pytest.mark.parametrize(("days", "expected"), UPGRADED.values(), ids=list(UPGRADED))
def test_the_first_pass_after_an_upgrade_is_as_careful(
    tmp_path: Path, clock: Clock, days: list[int], expected: int
) -> None:
    path = tmp_path / "store.duckdb"
    a_store_of_schema_10(path)
    with duckdb.connect(str(path)) as connection:
        dates = ", ".join(map(str, days))
        connection.execute(
            f"UPDATE cell SET added_at = TIMESTAMP '2026-01-01' + INTERVAL 1 DAY * ([{dates}])[rowid + 1]"
        )
    with Store.open(path) as store:
        assert due(store, 80) == expected
        assert retain(store, days=80, at_least=0, percent_a_day=100) == expected


def test_a_lab_that_was_upgraded_goes_on_letting_go(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "store.duckdb"
    a_store_of_schema_10(path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE cell SET added_at = TIMESTAMP '2026-01-01' + INTERVAL 1 DAY * (10 * rowid)")
    with Store.open(path) as store:
        assert due(store, 70) == 0 and due(store, 80) == 0
        # 70 days lie between the first and the last, and steps of 10 count from 80 days on; so the last 10 have to pass
        with store._transaction() as connection:
            connection.execute("UPDATE cell SET added_at = added_at + INTERVAL 1 DAY * 8 WHERE number > 1")
        assert due(store, 80) == 0, "18 days are no step that counts"
        with store._transaction() as connection:
            connection.execute("UPDATE cell SET added_at = TIMESTAMP '2026-01-01' + INTERVAL 1 DAY * (2 * number)")
        assert due(store, 13) == 1 and due(store, 11) == 2
        assert retain(store, days=11, at_least=0) == 1 and retain(store, days=11, at_least=0) == 0


def test_an_emptied_trash_does_not_let_more_go_in_a_day(store: Store, clock: Clock) -> None:
    live(store, clock, range(100), 5 * DAY)
    assert retain(store, days=400, at_least=0) == 2
    assert len(store.trash.empty()) == 2 and len(store.trash) == 0 and store.trash.cells(30) == []
    assert store.removed_digests() == [new_cell(0).digest, new_cell(1).digest]
    assert retain(store, days=400, at_least=0) == 0
    clock.at += DAY
    assert retain(store, days=400, at_least=0) == 1


# people who work meanwhile


def test_a_cell_reviewed_since_it_was_found_due_stays(store: Store) -> None:
    store.record([new_cell(n) for n in range(3)], bundle=BUNDLE)
    found = store.due(days=0, cells=1, at_least=0, reviewed=False, limit=9)
    reviewed = found[0].cell_id
    store.reviews.give([Review(reviewed, "basophil", None, None)])
    assert (len(found), store.remove(found[:1]), store.remove(found)) == (2, 0, 1)
    assert store.labels([reviewed]) == {reviewed: "basophil"} and len(store.trash) == 1
    assert store.faults().found == {} and store.index_agrees(BUNDLE)


def test_a_label_for_an_unknown_cell_reaches_no_other() -> None:
    book = CellBook(np.array([1, 5, 9], np.uint64), np.array([0, 0, 0], np.uint32), ["a"])
    for number in (0, 3, 10):
        book.change(number, "b")
    assert book.of([0, 1, 3, 5, 9, 10]) == [None, "a", None, "a", "a", None]


def test_nobody_writes_before_memory_follows_a_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.record([new_cell(1), new_cell(2)], bundle=BUNDLE)
    free: list[bool] = []

    def look(*_: object) -> None:
        thread = threading.Thread(target=lambda: free.append(store._writing.acquire(blocking=False)))
        thread.start()
        thread.join()

    monkeypatch.setattr(store.reviews, "_reviewed", look)
    monkeypatch.setattr(store.trash, "_returned", look)
    store.reviews.give([Review(new_cell(1).cell_id, "basophil", None, None)])
    store.trash.bring_back(remove(store, 2))
    assert free == [False, False]


def test_a_file_in_flight_does_not_undo_that_its_cell_came_back(store: Store) -> None:
    cell = new_cell(1)
    store.record([cell], bundle=BUNDLE)
    seen = SeenAgain(cell.path, 1, 1, cell.digest)
    ids = remove(store, 1)
    assert store.record([seen], bundle=BUNDLE)[0].outcome == "rejected"
    store.trash.bring_back(ids)
    (row,) = store.record([seen], bundle=BUNDLE)
    assert (row.outcome, row.cell_id) == ("stored", cell.cell_id)


# the trash


def test_a_cell_that_comes_back_is_as_it_was(tmp_path: Path, clock: Clock) -> None:
    with new_store(tmp_path) as store:
        live(store, clock, range(20))
        store.record([new_cell("again", fingerprints=mark(1)), new_cell("first", fingerprints=mark(0))], bundle=BUNDLE)
        store.record([new_cell("later", fingerprints=mark(1))], bundle=BUNDLE, **JUDGED)
        store.record([SeenAgain("/export/copy.jpg", 1, 1, new_cell(3).digest)], bundle=BUNDLE)
        store.reviews.give([Review(new_cell(3).cell_id, "basophil", "A", None)])
        store.optics.add({new_cell(3).cell_id: np.arange(7, dtype=np.float32)})
        put_on_map(store, BUNDLE, [np.zeros(50, np.float32), np.ones(50, np.float32)])
        path = store.path
    before = content(path)
    with Store.open(path, open_placer=open_placer) as store:
        store.build_index(BUNDLE)
        ids = remove(store, 3, 7, "later")
        assert len(store.trash) == 3 and store.counts().cells == 20
        assert store.faults().found == {}
        query = new_cell(3).latent
        assert store.nearest(query, bundle=BUNDLE, k=1)[0].cell_id != ids[0]
        assert sorted(store.trash.bring_back(ids)) == sorted(ids)
        assert store.nearest(query, bundle=BUNDLE, k=1)[0].cell_id == ids[0]
        assert store.labelled(ids)[ids[0]][0] == "basophil"
        assert store.reviews.history(ids[0])[0].who == "A"
        assert store.faults().found == {} and store.index_agrees(BUNDLE)
        assert store.removed(new_cell(3).digest) is None
        active = store.maps.active(BUNDLE)
        assert active is not None and len(active.positions) == 23
        assert len(store.trash) == 0 and store.trash.bring_back(ids) == []
        assert [row.outcome for row in store.history("/export/copy.jpg")][-2:] == ["duplicate", "rejected"]
        # again, as often as one likes
        remove(store, 3)
        assert store.trash.bring_back(ids) == [ids[0]]
    after = content(path)
    for table in before.keys() | after.keys():
        assert after[table] == before[table], table
    with duckdb.connect(str(path)) as connection:
        for (table,) in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE starts_with(table_name, 'trash_')"
        ).fetchall():
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)], table


def test_a_cell_that_came_back_is_not_the_next_to_go(store: Store, clock: Clock) -> None:
    live(store, clock, range(100), 5 * DAY)
    assert retain(store, days=400, at_least=0) == 2
    store.trash.bring_back([cell.cell_id for cell in store.trash.cells(30)])
    clock.at += DAY
    assert retain(store, days=400, at_least=0) == 2
    assert {cell.cell_id for cell in store.trash.cells(30)} == {new_cell(2).cell_id, new_cell(3).cell_id}
    store.trash.empty()
    # nor where the newest of a class stay: it came now
    assert retain(store, cells=2, percent_a_day=100) == 96
    assert set(store.cells([new_cell(n).cell_id for n in (0, 1)])) == {new_cell(n).cell_id for n in (0, 1)}


@pytest.mark.parametrize("jump", JUMPS.values(), ids=list(JUMPS))
def test_the_days_in_the_trash_are_days_that_the_lab_saw_pass(store: Store, clock: Clock, jump: timedelta) -> None:
    keep = {"cells": 3, "trash_days": 8}
    live(store, clock, range(4))
    assert retain(store, **keep) == 1
    clock.at += jump
    for _ in range(3):
        retain(store, **keep)
        clock.at += DAY
    clock.at -= jump
    (trashed,) = store.trash.cells(8)
    assert 5 <= trashed.days_left <= 8
    for _ in range(5):
        retain(store, **keep)
        assert len(store.trash) == 1
        clock.at += DAY
    for _ in range(4):
        retain(store, **keep)
        clock.at += DAY
    assert len(store.trash) == 0 and store.removed_digests() == [new_cell(0).digest]
    assert store.trash.bring_back([new_cell(0).cell_id]) == []
    assert "cell" in (store.removed(new_cell(0).digest) or ""), "no file brings it back"


def test_of_a_chain_of_captures_each_can_come_back_alone(store: Store) -> None:
    first, second, third = (new_cell(f"c{n}", fingerprints=mark(bits)) for n, bits in ((1, 0), (2, 1), (3, 3)))
    for cell in (first, second, third):
        store.record([cell], bundle=BUNDLE, **JUDGED)
    assert store.duplicate_group(third.cell_id) == [first.cell_id, second.cell_id, third.cell_id]
    remove(store, "c3")
    remove(store, "c2")
    remove(store, "c1")
    store.trash.bring_back([third.cell_id])
    cell = store.cell(third.cell_id)
    assert cell is not None and (cell.duplicate_of, cell.duplicate_group) == (None, None)
    (row,) = [row for row in store.ledger() if row.cell_id is not None]
    assert (row.outcome, row.cell_id) == ("stored", third.cell_id)
    store.trash.bring_back([first.cell_id, second.cell_id])
    assert store.duplicate_group(second.cell_id) == [first.cell_id, second.cell_id]
    assert store.faults().found == {}


def test_neighbours_come_back_with_the_last_of_them(store: Store) -> None:
    from labref.store import Resemblance
    from labref.words import Verdict

    store.record(
        [new_cell(n, fingerprints=mark(n)) for n in (1, 2)],
        bundle=BUNDLE,
        judge=lambda *_: Resemblance(0.5, Verdict.NEIGHBOUR),
        candidate_bits=10,
    )
    before = store.duplicates.pairs(verdict="neighbour")
    assert len(before) == 1
    one, two = remove(store, 1, 2)
    store.trash.bring_back([one])
    assert store.duplicates.pairs(verdict="neighbour") == []
    store.trash.bring_back([two])
    assert store.duplicates.pairs(verdict="neighbour") == before


def test_files_that_changed_meanwhile_keep_what_they_say_now(store: Store) -> None:
    store.record([new_cell(1), new_cell(2)], bundle=BUNDLE)
    one, two = remove(store, 1, 2)
    # another picture under the first's name, the first's bytes under another, the second only touched
    store.record([new_cell(3, path=new_cell(1).path)], bundle=BUNDLE)
    store.record([new_cell(1, path="/export/moved.jpg"), new_cell(2, mtime_ns=5)], bundle=BUNDLE)
    assert {row.path: row.outcome for row in store.ledger()}["/export/moved.jpg"] == "rejected"
    store.trash.bring_back([one, two])
    found = {row.path: (row.outcome, row.cell_id) for row in store.ledger()}
    assert found == {
        new_cell(1).path: ("stored", new_cell(3).cell_id),
        "/export/moved.jpg": ("duplicate", one),
        new_cell(2).path: ("stored", two),
    }
    assert store.known_files()["/export/moved.jpg"].mtime_ns == 0, "the next scan reads it again"
    assert store.faults().found == {}


def test_the_bundle_may_change_while_cells_are_in_the_trash(store: Store) -> None:
    store.record([new_cell(n, label=None, label_source="predicted") for n in (1, 2)], bundle=BUNDLE)
    (one,) = remove(store, 1)
    other = "cd" * 32
    activate(store, other)
    store.changes.drop(BUNDLE)
    third = "ef" * 32
    activate(store, third)  # gets the number, and so the table's name, that the first had
    assert store.trash.bring_back([one]) == [one]
    assert store.latents([one], bundle=third) == {}
    assert set(store.changes.missing(third)) == {one, new_cell(2).cell_id}, "both are embedded again"


def test_a_table_that_got_a_column_meanwhile_takes_the_rows_back(store: Store) -> None:
    store.record([new_cell(1), new_cell(2)], bundle=BUNDLE)
    (one,) = remove(store, 1)
    with store._transaction() as connection:
        connection.execute("ALTER TABLE measure ADD COLUMN later INTEGER")
        connection.execute("ALTER TABLE file ADD COLUMN later INTEGER")
    remove(store, 2)
    assert sorted(store.trash.bring_back([one, new_cell(2).cell_id])) == sorted([one, new_cell(2).cell_id])
    assert store.faults().found == {}


@pytest.mark.parametrize(
    ("point", "doing"),
    [
        ("retention.files", "remove"),
        ("retention.cells@3", "remove"),
        ("trash.restore@2", "bring back"),
        ("trash.files", "bring back"),
        ("store.commit", "bring back"),
        ("trash.empty@2", "empty"),
    ],
)
def test_what_fails_halfway_has_changed_nothing(tmp_path: Path, point: str, doing: str) -> None:
    with new_store(tmp_path) as store:
        store.record([new_cell(n) for n in range(4)], bundle=BUNDLE)
        ids = [] if doing == "remove" else remove(store, 1, 2)
        before = store.counts(), len(store.trash)
        name, _, nth = point.partition("@")
        failpoints.arm(f"{name}=enospc@{nth or 1}")
        try:
            with pytest.raises(StoreError):
                if doing == "remove":
                    remove(store, 1, 2)
                elif doing == "empty":
                    store.trash.empty()
                else:
                    store.trash.bring_back(ids)
        finally:
            failpoints.disarm()
        assert (store.counts(), len(store.trash)) == before and store.faults().found == {}
        if doing != "remove":
            assert sorted(store.trash.bring_back(ids)) == sorted(ids) and store.counts().cells == 4


# a lab


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    """A lab with 32 cells; tests leave it as it is."""
    root = tmp_path_factory.mktemp("retention")
    shutil.copytree(drawn_cells, root / "export")
    lab = make_lab(root / "lab", root / "export", starter)
    once(lab)
    return lab


@pytest.fixture
def lab(tmp_path: Path, made: Lab) -> Lab:
    """A copy of it that keeps two of each class, by its labref.toml."""
    shutil.copytree(made.folder, tmp_path / "lab")
    with (tmp_path / "lab" / "labref.toml").open("a") as file:
        file.write("\n[retention]\ncells = 2\nat_least = 0\npercent_a_day = 100\n")
    found = Lab.open(tmp_path / "lab")
    return replace(found, config=found.config.model_copy(update={"watch": made.config.watch}))


def run(lab: Lab, *arguments: str, fails: str = "") -> list[Any]:
    done = CliRunner().invoke(app, ["store", *arguments, "--lab", str(lab.folder), "--json"])
    if fails:
        assert done.exit_code == 1 and fails in done.stderr, done.output
        return []
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def sound(lab: Lab, latents: int = 0) -> bool:
    """Whether `labref ledger --check` finds no fault; latents : of so many cells these are made anew."""
    return bool(list(desk.run(lab, "ledger.check", latents=latents))[-1]["ok"])


def test_the_commands_list_bring_back_and_empty(lab: Lab, made: Lab) -> None:
    before = {path: (row["outcome"], row["cell_id"], row["label"]) for path, row in ledger(lab).items()}
    removed = run(lab, "retain")[-1]["removed"]
    assert removed > 0 and run(lab, "retain")[-1]["removed"] == 0
    listed = run(lab, "trash")
    assert len(listed) == removed and all(row["days_left"] == 30 and row["bytes"] > 0 for row in listed)
    assert all(lab.image_path(row["digest"]).exists() for row in _cells(made)), "the bytes stay"
    assert sound(lab)
    told = CliRunner().invoke(app, ["ledger", "--check", "--latents", "0", "--lab", str(lab.folder)]).stdout
    assert f"{32 - removed} cells" in told and f"32 kept images read, {removed} of them of removed cells" in told
    one = listed[0]["cell_id"]
    run(lab, "bring-back", fails="name the cells")
    run(lab, "bring-back", one, "--all", fails="name the cells")
    run(lab, "bring-back", "zz", fails="no cell 'zz' is in the trash")
    run(lab, "bring-back", one, "zz", fails="no cell 'zz' is in the trash")
    assert len(run(lab, "trash")) == removed, "all or none"
    (back,) = run(lab, "bring-back", one[:10].upper())
    assert back == {"cells": [one], "without_bytes": [], "already": []}
    run(lab, "bring-back", one, fails="is in the trash")
    assert len(run(lab, "bring-back", "--all")[0]["cells"]) == removed - 1
    assert {p: (row["outcome"], row["cell_id"], row["label"]) for p, row in ledger(lab).items()} == before
    again = once(lab)
    assert again.stored == again.embedded == 0, "its files are known"
    assert sound(lab, latents=100)


def _cells(lab: Lab) -> list[dict[str, str]]:
    with lab.open_store() as store:
        return [{"digest": digest} for digest in store.digests()]


def test_an_emptied_trash_gives_its_room_back(lab: Lab) -> None:
    removed = run(lab, "retain")[-1]["removed"]
    digests = [name for name in (row["digest"] for row in _cells(lab)) if lab.image_path(name).exists()]
    assert len(digests) == 32
    refused = CliRunner().invoke(app, ["store", "empty-trash", "--lab", str(lab.folder)], input="n\n")
    assert refused.exit_code == 1 and len(run(lab, "trash")) == removed
    assert run(lab, "empty-trash", "--yes") == [{"removed": removed}]
    assert sum(lab.image_path(name).exists() for name in digests) == 32 - removed
    assert run(lab, "trash") == [] and sound(lab)
    run(lab, "bring-back", "--all")
    again = once(lab)
    assert again.stored == again.embedded == 0


def test_the_status_says_what_can_come_back_and_until_when(lab: Lab) -> None:
    with lab.open_store() as store:
        embedder = BundleError("not asked for here")
        assert store_status(lab, store, embedder)["trash"] is None
        cells = retention.due(lab, store)[:2]
        store.remove(cells)
        found = store_status(lab, store, embedder)
    trash = TrashState.model_validate(found["trash"])
    assert trash.cells == 2 and trash.bytes == sum(lab.image_path(cell.digest).stat().st_size for cell in cells)
    for until in (trash.first_until, trash.last_until):
        left = datetime.fromisoformat(until) - datetime.now(UTC)
        assert timedelta(days=29, hours=23) < left <= timedelta(days=30)
    told = status_text(found | {"agent": None, "watch": [], "disk": None, "backup": None, "shared": None})
    assert "2 removed cells can be brought back" in told and local(trash.last_until) in told


@pytest.mark.parametrize("words", [["retain"], ["bring-back", "--all"], ["empty-trash", "--yes"], ["backup", "?"]])
def test_who_waits_for_other_work_of_the_lab_says_for_which(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.setattr(retention, "_SAID_SECONDS", 0.05)
    words = [str(tmp_path / "backup") if word == "?" else word for word in words]
    assert not list(retention.UPKEEP.take("a backup is written"))
    said: list[str] = []

    def told(text: str) -> Row:
        said.append(text)
        if len(said) == 3:  # it said so several times, and prints it once
            retention.UPKEEP.release()
        return waiting(text)

    monkeypatch.setattr(retention, "waiting", told)
    done = CliRunner().invoke(app, ["store", *words, "--lab", str(lab.folder)])
    if len(said) < 3:
        retention.UPKEEP.release()  # other tests do not wait for it
    assert done.exit_code == 0
    assert len(said) == 3
    assert done.stderr.count("waits until something else in this lab has ended: a backup is written") == 1
    assert "waits until" not in done.stdout


def test_who_waits_for_other_work_of_the_lab_can_be_interrupted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_SAID_SECONDS", 0.05)
    assert not list(retention.UPKEEP.take("a backup is written"))
    try:
        for name in ("store.retain", "store.bring_back", "store.empty_trash"):
            rows = desk.run(lab, name, **({"every": True} if name == "store.bring_back" else {}))
            assert next(rows)["progress"]["waits"]
            rows.close()  # what a Ctrl-C comes to, or a connection that is closed
        with lab.open_store() as store:
            asked = iter([False, True])
            assert retention.retain(lab, store, stopped=lambda: next(asked), report=lambda _: None) == 0
    finally:
        retention.UPKEEP.release()
    assert run(lab, "bring-back", "--all") == [{"cells": [], "without_bytes": [], "already": []}], (
        "nobody else has it now"
    )


def test_who_waits_for_another_command_says_so(lab: Lab) -> None:
    other = lab.open_store()
    threading.Timer(1.5, other.close).start()
    done = CliRunner().invoke(app, ["store", "trash", "--lab", str(lab.folder)])
    assert done.exit_code == 0
    assert done.stderr.startswith("waits for another command: ") and str(lab.store_file) in done.stderr


def test_bytes_that_are_gone_are_said(lab: Lab) -> None:
    run(lab, "retain")
    one = run(lab, "trash")[0]["cell_id"]
    digest = next(row["digest"] for row in _cells(lab) if row["digest"].startswith(one))
    lab.image_path(digest).unlink()
    run(lab, "bring-back", one, fails="have lost their original bytes")
    with lab.open_store() as store:
        assert store.cell(one) is not None


def test_a_backup_has_the_trash(lab: Lab, tmp_path: Path) -> None:
    removed = run(lab, "retain")[-1]["removed"]
    with lab.open_store() as store:
        for _ in write(lab, store, tmp_path / "backup"):
            pass
    for _ in restore(tmp_path / "backup", tmp_path / "back"):
        pass
    back = Lab.open(tmp_path / "back")
    assert len(run(back, "bring-back", "--all")[0]["cells"]) == removed
    with back.open_store() as store:
        assert store.counts().cells == 32
        assert all(back.read_image(digest) for digest in store.digests())


def test_a_dry_run_says_how_many_go_at_once_and_which_time_does_not_count(lab: Lab) -> None:
    with duckdb.connect(str(lab.store_file)) as connection:
        connection.execute(
            "UPDATE cell SET added_at = TIMESTAMP '2056-01-01' WHERE number = (SELECT max(number) FROM cell)"
        )
    config = lab.config_file.read_text().replace("cells = 2", "days = 400").replace("percent_a_day = 100", "")
    lab.config_file.write_text(config)
    (told,) = run(lab, "retain", "--dry-run")
    assert told["due"] == told["now"] == 0
    assert [jump["until"][:4] for jump in told["not_counted"]][:1] == ["2056"] and len(told["not_counted"]) == 2
    text = CliRunner().invoke(app, ["store", "retain", "--dry-run", "--lab", str(lab.folder)]).stdout
    assert "Not counted as time" in text and "2056" in text and "0 cells would go" in text
    lab.config_file.write_text(config.replace("days = 400", "cells = 1"))
    dry = run(lab, "retain", "--dry-run")
    assert dry[-1]["due"] == len(dry) - 1 > 10 and dry[-1]["now"] == 1


def test_retention_that_is_switched_off_still_empties_the_trash(lab: Lab) -> None:
    assert run(lab, "retain")[-1]["removed"] > 0
    with lab.open_store() as store, pytest.raises(LabrefError, match="keeps all cells"):
        off = replace(lab, config=lab.config.model_copy(update={"retention": RetentionConfig()}))
        assert retention.retain(off, store, stopped=lambda: False, report=lambda _: None) == 0
        assert len(store.trash) > 0
        assert retention.empty_trash(off, store) > 0 and len(store.trash) == 0
        raise LabrefError("keeps all cells")


# what else goes by the clock: a wrong one lasts no longer than it is wrong


def test_a_session_opened_while_the_clock_was_ahead_ends_with_that(store: Store, clock: Clock) -> None:
    idle, lasts = timedelta(hours=1), timedelta(hours=12)
    store.people.add("A", Role.VIEW, "code", None)
    clock.at += JUMPS["30 years ahead"]
    assert store.people.sign_in("code", "token", lasts) is not None
    assert store.people.of_session("token", idle) is not None
    clock.at -= JUMPS["30 years ahead"]
    assert store.people.of_session("token", idle) is None
    assert store.people.sign_in("code", "another", lasts) is not None
    clock.at -= timedelta(minutes=5)  # clocks are put right by some minutes, too
    assert store.people.of_session("another", idle) is not None


def test_who_was_let_in_for_some_days_while_the_clock_was_ahead_is_not_let_in_for_years(
    store: Store, clock: Clock
) -> None:
    clock.at += JUMPS["30 years ahead"]
    person = store.people.add("A", Role.VIEW, "days", clock.at.replace(tzinfo=UTC) + timedelta(days=7))
    store.people.add("B", Role.VIEW, "always", None)
    assert store.people.sign_in("days", "1", timedelta(hours=1)) is not None
    clock.at -= JUMPS["30 years ahead"]
    assert store.people.sign_in("days", "2", timedelta(hours=1)) is None
    assert store.people.sign_in("always", "3", timedelta(hours=1)) is not None
    store.people.renew(person, "again", clock.at.replace(tzinfo=UTC) + timedelta(days=7))
    assert store.people.sign_in("again", "4", timedelta(hours=1)) is not None


def test_a_map_trained_while_the_clock_was_ahead_is_trained_again(store: Store) -> None:
    store.record([new_cell(number) for number in range(FEWEST)], bundle=BUNDLE)
    put_on_map(store, BUNDLE, [np.zeros(50, np.float32), np.ones(50, np.float32)])
    store.record([new_cell(number) for number in range(FEWEST, 2 * FEWEST)], bundle=BUNDLE)
    now = datetime.now(UTC)
    assert due_for_map(store, MapConfig(), BUNDLE, at=now) is None, "it rests"
    for jump in JUMPS.values():
        assert due_for_map(store, MapConfig(), BUNDLE, at=now - jump) is not None


@pytest.mark.parametrize("name", ["30 years ahead", "two months ahead"])
def test_a_picture_refused_while_the_clock_was_ahead_is_tried_again_for_a_day(name: str) -> None:
    limits, reason = Limits(10.0, 1024, 40.0), f"{_TOO_LONG}: more than 10 s"
    at = SimpleNamespace(now=1e9)
    ahead = JUMPS[name].total_seconds()
    running, started = (Retries(limits, lambda: at.now) for _ in range(2))
    at.now += ahead
    running.note("a", reason)
    at.now -= ahead
    started.recall("a", reason, at.now + ahead)
    for retries in (running, started):
        at.now = 1e9
        tries = 0
        while at.now < 1e9 + 3 * 86_400:
            tries += retries.take("a")
            at.now += 600
        assert 24 <= tries <= 25


def test_cells_taken_in_while_the_clock_was_ahead_are_not_today_s(store: Store, clock: Clock) -> None:
    measured = np.ones(7, np.float32)
    clock.at += JUMPS["30 years ahead"]
    store.record([new_cell(number, measures=0 * measured) for number in range(3)], bundle=BUNDLE)
    clock.at -= JUMPS["30 years ahead"]
    store.record([new_cell(number, measures=measured) for number in range(3, 5)], bundle=BUNDLE)
    today, past = store.optics.latest("DC-1", since=clock.at.replace(tzinfo=UTC) - DAY, most=9)
    assert today.tolist() == [[1.0] * 7] * 2 and past.tolist() == [[0.0] * 7] * 3


def test_a_job_that_failed_while_the_clock_was_ahead_is_due_again() -> None:
    jobs = Jobs(structlog.get_logger())
    try:
        jobs._ended["map"] = {"at": (datetime.now(UTC) + 9 * DAY).isoformat(), "outcome": "failed", "message": ""}
        assert not jobs.failed_within("map", timedelta(hours=1))
        jobs._ended["map"]["at"] = datetime.now(UTC).isoformat()
        assert jobs.failed_within("map", timedelta(hours=1))
    finally:
        jobs.close()


@pytest.mark.parametrize("jump", JUMPS.values(), ids=list(JUMPS))
def test_a_bundle_of_just_now_is_not_dropped_whatever_the_clock_did_since(
    tmp_path: Path, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, jump: timedelta
) -> None:
    """A batch may still be on its way to the space of the bundle before."""
    other = "cd" * 32
    store.add_bundle(other, name="other", version="2", latent_size=50, labels=("a", "b"))
    context: Any = SimpleNamespace(lab=SimpleNamespace(bundles=tmp_path), store=store, jobs=object())
    clock.at += jump
    store.changes.switch(other)
    clock.at -= jump
    with pytest.raises(LabrefError, match="switched just now"):
        list(drop(context, bundle=BUNDLE))
    assert {bundle.digest for bundle in store.bundles()} == {BUNDLE, other}
    # ten seconds later it is, also where the clock says that this was the moment of the switch
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic() + 10.0: now)
    clock.at = datetime.now(UTC).replace(tzinfo=None)
    store.changes.switch(BUNDLE)
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic() + 10.0: now)
    list(drop(context, bundle=other))
    assert {bundle.digest for bundle in store.bundles()} == {BUNDLE}
