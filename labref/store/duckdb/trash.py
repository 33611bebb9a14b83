"""Cells that were removed, by retention or by people, as they were, while they can be brought back.

For each table with rows of cells there is one called `trash_…`, with the same columns: `trash_cell`, `trash_file`,
`trash_embedding_1`, … A removed cell is in the trash as long as it has a row in `trash_cell`. Its kept bytes stay where
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import clock, duplicates, rows, sequence
from labref.store.duckdb.noting import note
from labref.store.duckdb.tables import Access, Tables
from labref.store.duckdb.upkeep import TRASH, tables, tables_of_cells
from labref.store.duckdb.vocabulary import word
from labref.store.text import from_column, from_nullable
from labref.words import LabelSource, Outcome

__all__ = ["Trash", "Trashed", "drop_table", "empty", "keep", "linked_with", "loosen"]

_AGED: Final = (
    f"WITH seen AS ({clock.SEEN}) "
    "SELECT cell_id, t.digest, t.label, t.label_source, t.analyser, r.reason, r.removed_at, t.size_bytes, r.number, "
    f"{clock.age('r.removed_at')} / 86400 AS age FROM removed_cell r JOIN {TRASH}cell t USING (cell_id) "
    "ASOF LEFT JOIN seen ON r.number >= seen.number WHERE r.number IS NOT NULL"
)
"""The cells in the trash, and for how many days each has been there, as the lab saw time pass."""
_ALONE: Final = "the cell that it repeated is no longer there"
_LOOSE: Final = "the cell that it may repeat was removed; that was cell "


@dataclass(frozen=True, slots=True)
class Trashed:
    """A removed cell that can be brought back.

    reason : in the ledger's words.  removed_at : UTC, by the clock.  days_left : for which it stays, as the lab sees
    time pass.  size_bytes : of its kept bytes.
    """

    cell_id: str
    digest: str
    label: str
    label_source: LabelSource
    analyser: str | None
    reason: str
    removed_at: datetime
    days_left: float
    size_bytes: int


class Trash(Tables):
    """The trash of one store; `Store.trash`. Methods may be called from any thread."""

    def __init__(self, access: Access, returned: Callable[[], None]) -> None:
        """access : the store's.  returned : called after cells came back and that is committed, before anybody else
        writes."""
        super().__init__(access)
        self._returned = returned

    def __len__(self) -> int:
        """How many cells are in it. A millisecond."""
        with self._reading() as cursor:
            row = cursor.execute(f"SELECT count(*) FROM {TRASH}cell").fetchone()
        return 0 if row is None else int(row[0])

    def summary(self, days: int) -> tuple[int, int, float, float]:
        """How many cells are in it, bytes of their originals, and days for which the first and the last to go stay.

        days : for which cells stay.
        """
        with self._reading() as cursor:
            row = cursor.execute(
                f"SELECT count(*), coalesce(sum(size_bytes), 0), max(age), min(age) FROM ({_AGED})", clock.values(days)
            ).fetchone()
        if row is None or not row[0]:
            return 0, 0, 0.0, 0.0
        return int(row[0]), int(row[1]), max(0.0, days - row[2]), max(0.0, days - row[3])

    def holds(self, cell_id: str) -> bool:
        """Whether this cell is in it."""
        with self._reading() as cursor:
            return cursor.execute(f"SELECT 1 FROM {TRASH}cell WHERE cell_id = ?", [cell_id]).fetchone() is not None

    def cells(self, days: int) -> list[Trashed]:
        """The cells in it, those first that were removed first. days : for which cells stay."""
        with self._reading() as cursor:
            return _cells(cursor, days)

    def bring_back(self, ids: Sequence[str]) -> list[str]:
        """Bring cells back as they were, all or none; returns those that were in the trash.

        With them come their latents, labels, places and neighbours. Their files get back the outcomes that they had,
        unless they have others since; files with the same bytes that came meanwhile are copies of the cell. A cell
        counts for retention as if it had come now. Where other cells came meanwhile it has no fingerprint any more, so
        that it is compared with them (`labref.tasks.comparing`).
        """
        with self._quiet():
            with self._transaction() as connection:
                back = _bring_back(connection, ids)
            if back:
                self._returned()
        return back

    def empty(self, *, days: int | None = None) -> list[str]:
        """Let go for good of the cells that have been in it for so many days, or of all; returns their digests.

        That they were removed is still known, so that no file brings them back; their kept bytes are the caller's to
        delete.
        """
        with self._transaction() as connection:
            going = [cell for cell in _cells(connection, days or 1) if days is None or cell.days_left <= 0]
            if going:
                empty(connection, [cell.cell_id for cell in going])
        return [cell.digest for cell in going]


def keep(connection: duckdb.DuckDBPyConnection) -> None:
    """Copy all rows of the cells in the temporary table `going` into the trash."""
    listed = "cell_id IN (SELECT cell_id FROM going)"
    for table in ("cell", "file", *tables_of_cells(connection)):
        _make(connection, table)
        connection.execute(f"INSERT INTO {TRASH}{table} BY NAME SELECT * FROM {table} WHERE {listed}")
    _make(connection, "resemblance")
    connection.execute(
        f"INSERT INTO {TRASH}resemblance BY NAME SELECT * FROM resemblance WHERE verdict = 'neighbour' AND "
        "(cell IN (SELECT cell_id FROM going) OR other IN (SELECT cell_id FROM going))"
    )


def _cells(cursor: duckdb.DuckDBPyConnection, days: int) -> list[Trashed]:
    found = cursor.execute(
        "SELECT cell_id, digest, label, label_source, analyser, reason, removed_at, size_bytes, age "
        f"FROM ({_AGED}) ORDER BY number",
        clock.values(days),
    ).fetchall()
    return [
        Trashed(
            cell_id,
            digest,
            from_column(label),
            word(LabelSource, source, f"the label source of cell {cell_id} in the trash"),
            from_nullable(analyser),
            from_column(reason),
            at.replace(tzinfo=UTC),
            max(0.0, days - age),
            size,
        )
        for cell_id, digest, label, source, analyser, reason, at, size, age in found
    ]


def _bring_back(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> list[str]:
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE coming AS SELECT cell_id, reason FROM removed_cell "
        f"WHERE number IS NOT NULL AND cell_id IN (SELECT cell_id FROM {TRASH}cell) "
        "AND cell_id IN (SELECT unnest(?::VARCHAR[]))",
        [list(ids)],
    )
    back = [cell_id for (cell_id,) in connection.execute("SELECT cell_id FROM coming ORDER BY cell_id").fetchall()]
    among = "cell_id IN (SELECT cell_id FROM coming)"
    there = set(_tables(connection))
    for table in ("cell", *tables_of_cells(connection)):
        if table in there:
            failpoint("trash.restore")
            _make(connection, table)
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM {TRASH}{table} WHERE {among}")
    _make(connection, "resemblance")
    # of two neighbours that were removed the last to come back brings what is known of them
    both = "cell IN (SELECT cell_id FROM cell) AND other IN (SELECT cell_id FROM cell)"
    connection.execute(f"INSERT INTO resemblance BY NAME SELECT * FROM {TRASH}resemblance WHERE {both}")
    connection.execute(f"DELETE FROM {TRASH}resemblance WHERE {both}")
    _give_back_files(connection)
    failpoint("trash.files")
    numbers = sequence.begin(connection)
    connection.execute(
        "INSERT INTO restored_cell SELECT cell_id, ? + row_number() OVER (ORDER BY cell_id) FROM coming", [numbers.last]
    )
    numbers.take(len(back))
    sequence.keep(connection, numbers)
    _compare_again(connection)
    connection.execute(f"DELETE FROM removed_cell WHERE {among}")
    for table in there - {"resemblance"}:
        connection.execute(f"DELETE FROM {TRASH}{table} WHERE {among}")
    connection.execute("DROP TABLE temp.coming")
    _take_dead_links(connection, back)
    _fasten(connection, back)
    note(connection, back)
    return back


def _compare_again(connection: duckdb.DuckDBPyConnection) -> None:
    """Let the cells in `coming` be compared with all others, as cells without fingerprints are, where others came while
    they were away."""
    found = connection.execute(
        "SELECT cell_id FROM coming JOIN removed_cell r USING (cell_id) WHERE r.number < "
        "(SELECT max(number) FROM cell WHERE cell_id NOT IN (SELECT cell_id FROM coming))"
    ).fetchall()
    duplicates.drop_marks(connection, [cell_id for (cell_id,) in found])


def _give_back_files(connection: duckdb.DuckDBPyConnection) -> None:
    """Let the files of the cells in `coming` say what they said, and files with the same bytes that they are copies."""
    _make(connection, "file")
    at = rows.now()
    still = (
        f"outcome = '{Outcome.REJECTED}' AND reason IN (SELECT reason FROM coming) AND path IN "
        f"(SELECT path FROM {TRASH}file WHERE cell_id IN (SELECT cell_id FROM coming))"
    )
    rows.keep_history(connection, still, [], at)
    columns = ("outcome", "reason", "cell_id", "label", "label_source", "slide", "folder", "duplicate_of")
    connection.execute(
        f"UPDATE file SET {', '.join(f'{name} = was.{name}' for name in columns)}, recorded_at = ? "
        f"FROM {TRASH}file was JOIN coming USING (cell_id) "
        f"WHERE file.path = was.path AND file.outcome = '{Outcome.REJECTED}' AND file.reason = coming.reason",
        [at],
    )
    # mtime 0 never equals a file's: the next scan reads it, and finds what its path says
    meanwhile = f"outcome = '{Outcome.REJECTED}' AND reason IN (SELECT reason FROM coming)"
    rows.keep_history(connection, meanwhile, [], at)
    connection.execute(
        "UPDATE file SET outcome = ?, reason = 'the same bytes as cell ' || coming.cell_id, cell_id = coming.cell_id, "
        "duplicate_of = coming.cell_id, mtime_ns = 0, recorded_at = ? FROM coming "
        f"WHERE file.outcome = '{Outcome.REJECTED}' AND file.reason = coming.reason",
        [str(Outcome.DUPLICATE), at],
    )


def _take_dead_links(connection: duckdb.DuckDBPyConnection, back: Sequence[str]) -> None:
    """Take links with cells that are gone from those that came back."""
    found = connection.execute(
        "SELECT cell_id, duplicate_of, duplicate_of IS NULL OR duplicate_of IN (SELECT cell_id FROM cell) FROM cell "
        "WHERE cell_id IN (SELECT unnest(?::VARCHAR[])) AND (duplicate_of IS NOT NULL OR duplicate_group IS NOT NULL)",
        [list(back)],
    ).fetchall()
    at = rows.now()
    for cell_id, _, linked in found:
        if not linked:
            duplicates.set_link(connection, cell_id, None, outcome=Outcome.STORED, reason=_ALONE, at=at)
    duplicates.regroup(connection, [one for cell_id, other, _ in found for one in (cell_id, other) if one is not None])


def linked_with(cursor: duckdb.DuckDBPyConnection, going: Sequence[str]) -> dict[str, str]:
    """The other cells that are linked with one of these as its repetition, and with which."""
    found = cursor.execute(
        "SELECT cell_id, duplicate_of FROM cell WHERE duplicate_of IN (SELECT unnest($1::VARCHAR[])) "
        "AND cell_id NOT IN (SELECT unnest($1::VARCHAR[])) ORDER BY number",
        [list(going)],
    ).fetchall()
    return dict(found)


def loosen(connection: duckdb.DuckDBPyConnection, going: Sequence[str]) -> None:
    """Take the links with cells that go from those that stay and may repeat them, until they come back."""
    at = rows.now()
    for cell_id, other in linked_with(connection, going).items():
        duplicates.set_link(connection, cell_id, None, outcome=Outcome.STORED, reason=f"{_LOOSE}{other}", at=at)


def _fasten(connection: duckdb.DuckDBPyConnection, back: Sequence[str]) -> None:
    """Link what was loosened from cells that came back, as labref had found it."""
    found = connection.execute(
        "SELECT cell.cell_id, file.reason FROM file JOIN cell USING (cell_id) WHERE cell.duplicate_of IS NULL "
        "AND file.reason IN (SELECT unnest(?::VARCHAR[]))",
        [[f"{_LOOSE}{cell_id}" for cell_id in back]],
    ).fetchall()
    at = rows.now()
    for cell_id, reason in dict(found).items():
        other = reason.removeprefix(_LOOSE)
        resemblance = duplicates.measured(connection, cell_id, other)
        if resemblance is not None and resemblance.verdict.is_one_cell:
            duplicates.link_as_found(connection, cell_id, other, resemblance, at)


def empty(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> None:
    """Let these cells of the trash go for good."""
    chosen = "(SELECT unnest(?::VARCHAR[]))"
    for table in _tables(connection):
        failpoint("trash.empty")
        if table == "resemblance":
            connection.execute(
                f"DELETE FROM {TRASH}resemblance WHERE cell IN {chosen} OR other IN {chosen}", [list(ids), list(ids)]
            )
        else:
            connection.execute(f"DELETE FROM {TRASH}{table} WHERE cell_id IN {chosen}", [list(ids)])


def drop_table(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    """Forget the rows of a table that is dropped: another of its name would get them."""
    connection.execute(f"DROP TABLE IF EXISTS {TRASH}{table}")


def _tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Tables that have one in the trash."""
    return [name.removeprefix(TRASH) for name in tables(connection) if name.startswith(TRASH)]


def _make(connection: duckdb.DuckDBPyConnection, table: str) -> None:
    """Make the trash of a table, or give it the columns that the table has by now."""
    connection.execute(f"CREATE TABLE IF NOT EXISTS {TRASH}{table} AS FROM {table} LIMIT 0")
    now, before = (
        {name: str(kind) for name, kind, *_ in connection.execute(f"DESCRIBE {name}").fetchall()}
        for name in (table, f"{TRASH}{table}")
    )
    for name in before.keys() - now.keys():
        connection.execute(f"ALTER TABLE {TRASH}{table} DROP COLUMN {name}")
    for name in now.keys() - before.keys():
        connection.execute(f"ALTER TABLE {TRASH}{table} ADD COLUMN {name} {now[name]}")
