"""Slides, and who approved them.

A slide is a name in a watched folder (`SlideId`): columns `slide` and `folder`. `folder` is NULL in what an older
labref wrote, until the lab said where its files lie (`Slides.locate`).

Table `slide_approval`: a row each time somebody approves a slide or takes that back; the last row of a slide holds. The
row says how many cells the slide had, and which bundle answered. `number` is that of the store's sequence: what has a
larger one came later. So an approval ends by itself when a cell comes to the slide, or one of its cells gets another
label; nothing has to be written for that. Table `slide_move` has the slides that cells left, or came to without being
new: their files were moved. A cell that retention removes ends no approval.

Which cells a slide has is kept in memory (`labref.store.memory.slides`), once it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

import duckdb
import numpy as np

from labref.failpoints import failpoint
from labref.store.duckdb import bundles, rows, sequence
from labref.store.duckdb.tables import Access, Tables
from labref.store.duckdb.upkeep import TRASH, tables
from labref.store.memory.books import int_to_id
from labref.store.memory.slides import SlideBook
from labref.store.text import from_column, from_nullable, to_column, to_nullable
from labref.words import SlideId

__all__ = ["Approval", "Slides"]

APPROVED: Final = "approved"
WITHDRAWN: Final = "withdrawn"

_TRASHED_FILES: Final = f"{TRASH}file"
_LOCATED: Final = ("cell", "file", f"{TRASH}cell", _TRASHED_FILES, "slide_approval", "slide_move")
"""The tables that say in which watched folder something lies, cells and files before what is about slides."""
_OF_NAME: Final = """
    UPDATE {table} SET folder = alone.folder FROM (
        SELECT slide, min(folder) AS folder FROM (SELECT DISTINCT slide, folder FROM cell WHERE slide IS NOT NULL)
        GROUP BY slide HAVING count(*) = 1
    ) alone WHERE {table}.folder IS NULL AND {table}.slide = alone.slide"""

Standing = Literal["approved", "cells came", "cells left", "labels changed"]


@dataclass(frozen=True, slots=True)
class Approval:
    """Somebody approved a slide. at : UTC.  cells : how many it had then.  standing : "approved", or why the approval
    ended by itself."""

    who: str | None
    at: datetime
    cells: int
    standing: Standing


@dataclass(frozen=True, slots=True)
class _Given:
    number: int
    who: str | None
    at: datetime
    cells: int
    bundle: str | None


class Slides(Tables):
    """The slides of one store; `Store.slides`. Methods may be called from any thread."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._book: SlideBook | None = None
        self._approvals: dict[SlideId, _Given] | None = None

    @property
    def book(self) -> SlideBook:
        """Which cells each slide has; read from the database when it is first asked for, a second for a million
        cells."""
        book = self._book
        if book is None:
            with self._quiet(), self._reading() as cursor:
                if self._book is None:
                    self._book = _load(cursor)
                book = self._book
        return book

    # what the store says of its cells, after the commit and before anybody else writes

    def came(self, cells: Iterable[tuple[int, SlideId | None, int]]) -> None:
        """Cells were stored: id, slide, number. A book that is read later has them."""
        if self._book is not None:
            for number, slide, came in cells:
                self._book.add(number, slide, came)

    def moved(self, cells: Iterable[tuple[int, SlideId | None]]) -> None:
        """Cells are of another slide from now on: id, slide."""
        if self._book is not None:
            for number, slide in cells:
                self._book.move(number, slide)

    def drop_cached(self) -> None:
        """Read again what is kept in memory, when it is next asked for."""
        self._book = self._approvals = None

    # where slides lie

    def locate(self, watched: Iterable[str]) -> None:
        """Write down of the cells and files of an older labref in which watched folder they lie, by their paths; of
        several, in the innermost. watched : the lab's, as text.

        An approval stays where one slide alone has its name; of two that were approved as one, neither is. Where all is
        known already, this costs a millisecond.
        """
        with self._quiet():
            with self._reading() as cursor:
                missing = _not_located(cursor)
            if not missing:
                return
            folders = sorted(map(to_column, watched), key=len, reverse=True)
            below = [folder if folder.endswith(("/", "\\")) else folder + _separator(folder) for folder in folders]
            found = " ".join("WHEN starts_with(path, ?) THEN ?" for _ in folders)
            values = [value for pair in zip(below, folders, strict=True) for value in pair]
            with self._transaction() as connection:
                for table in missing:
                    if table in ("slide_approval", "slide_move"):
                        connection.execute(_OF_NAME.format(table=table))
                        connection.execute(f"UPDATE {table} SET folder = '' WHERE folder IS NULL")
                    else:
                        folder = f"CASE {found} ELSE '' END" if folders else "''"
                        connection.execute(f"UPDATE {table} SET folder = {folder} WHERE folder IS NULL", values)
                failpoint("slide.locate")
            self.drop_cached()

    def has(self, folder: str) -> bool:
        """Whether a cell came from this watched folder. A millisecond where one did, a look at all cells where none
        did."""
        with self._reading() as cursor:
            return _has(cursor, "cell WHERE folder = ?", [to_column(folder)])

    def folders(self) -> set[str]:
        """The watched folders that cells came from, as text. Tens of milliseconds for a million cells."""
        with self._reading() as cursor:
            found = cursor.execute("SELECT DISTINCT coalesce(folder, '') FROM cell").fetchall()
        return {from_column(folder) for (folder,) in found}

    def files(self, folder: str, limit: int) -> list[tuple[str, int]]:
        """Path and size in bytes of the cells of a watched folder that came last, at most so many."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT path, size_bytes FROM cell WHERE folder = ? ORDER BY number DESC LIMIT ?",
                [to_column(folder), limit],
            ).fetchall()
        return [(from_column(path), size) for path, size in found]

    def rename(self, successors: Mapping[str, str]) -> None:
        """Watched folders have other names from now on, as text: old → new. Slides and their approvals go with them."""
        if not successors:
            return
        with self._quiet():
            with self._transaction() as connection:
                there = tables(connection)
                for table in (name for name in _LOCATED if name in there):
                    connection.execute(
                        f"UPDATE {table} SET folder = named.new FROM (SELECT unnest(?::VARCHAR[]) AS old, "
                        f"unnest(?::VARCHAR[]) AS new) named WHERE {table}.folder = named.old",
                        [list(map(to_column, names)) for names in (successors.keys(), successors.values())],
                    )
                failpoint("slide.rename")
            self.drop_cached()

    # approval

    def changed_by_others(self, slide: SlideId, since: int, who: str | None) -> int:
        """How many cells of a slide others than `who` gave another label since this number of the store's sequence."""
        cells = set(map(int_to_id, self.book.cells(slide)))
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT DISTINCT cell_id FROM label_change WHERE number > ? AND label <> previous AND who IS DISTINCT FROM ?",
                [since, to_nullable(who)],
            ).fetchall()
        return sum(cell_id in cells for (cell_id,) in found)

    def approve(self, slide: SlideId, who: str | None) -> None:
        """Write down that somebody approves a slide as it is now."""
        self._decide(slide, APPROVED, who)

    def unapprove(self, slide: SlideId, who: str | None) -> None:
        """Write down that a slide is no longer approved."""
        self._decide(slide, WITHDRAWN, who)

    def approvals(self, slides: Sequence[SlideId]) -> dict[SlideId, Approval]:
        """Who approved these slides, and whether that still holds; slides that nobody approved, or whose approval was
        taken back, are left out. Milliseconds."""
        known = self._known_approvals()
        given = {slide: known[slide] for slide in slides if slide in known}
        if not given:
            return {}
        book = self.book
        cells = {slide: book.cells(slide) for slide in given}
        of_cell = {int_to_id(number): slide for slide, numbers in cells.items() for number in numbers}
        first = min(approval.number for approval in given.values())
        with self._reading() as cursor:
            active = bundles.active(cursor)
            # few rows are later than an approval, and DuckDB skips the blocks of those that are earlier
            changed = cursor.execute(
                "SELECT cell_id, max(number) FROM label_change WHERE number > ? AND label <> previous GROUP BY cell_id",
                [first],
            ).fetchall()
            moved = cursor.execute(
                "SELECT slide, coalesce(folder, ''), came, max(number) FROM slide_move WHERE number > ? GROUP BY ALL",
                [first],
            ).fetchall()
            predicted = self._predicted(cursor, [slide for slide, one in given.items() if one.bundle != active], cells)
        latest: dict[SlideId, int] = {}
        for cell_id, number in changed:
            if (slide := of_cell.get(cell_id)) is not None:
                latest[slide] = max(number, latest.get(slide, 0))
        came, left = (
            {rows.slide_id(slide, folder): number for slide, folder, is_new, number in moved if is_new is way}
            for way in (True, False)
        )
        found = {}
        for slide, approval in given.items():
            standing: Standing = APPROVED
            if (
                book.last(slide) > approval.number
                or came.get(slide, 0) > approval.number
                or len(cells[slide]) > approval.cells
            ):
                standing = "cells came"
            elif left.get(slide, 0) > approval.number:
                standing = "cells left"
            elif latest.get(slide, 0) > approval.number or slide in predicted:
                standing = "labels changed"
            found[slide] = Approval(approval.who, approval.at.replace(tzinfo=UTC), approval.cells, standing)
        return found

    def _predicted(
        self, cursor: duckdb.DuckDBPyConnection, slides: Sequence[SlideId], cells: dict[SlideId, list[int]]
    ) -> set[SlideId]:
        """Which of these slides have cells with a predicted label: another bundle may call them otherwise."""
        ids = {int_to_id(number): slide for slide in slides for number in cells[slide]}
        found = rows.look_up(cursor, "cell", ["cell_id", "label_source"], "cell_id", list(ids))
        return {ids[cell_id] for cell_id, source in found if source == "predicted"}

    def _decide(self, slide: SlideId, decision: str, who: str | None) -> None:
        with self._quiet():
            cells = len(self.book.cells(slide))
            with self._transaction() as connection:
                numbers = sequence.begin(connection)
                at, bundle = rows.now(), bundles.active(connection)
                number = numbers.take()
                connection.execute(
                    "INSERT INTO slide_approval (number, slide, folder, decision, who, decided_at, cells, bundle) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        number,
                        to_column(slide.name),
                        to_column(slide.folder),
                        decision,
                        to_nullable(who),
                        at,
                        cells,
                        bundle,
                    ],
                )
                sequence.keep(connection, numbers)
                failpoint("slide.approve")
            if self._approvals is not None:
                if decision == APPROVED:
                    self._approvals[slide] = _Given(number, who, at, cells, bundle)
                else:
                    self._approvals.pop(slide, None)

    def _known_approvals(self) -> dict[SlideId, _Given]:
        known = self._approvals
        if known is None:
            with self._quiet(), self._reading() as cursor:
                found = cursor.execute(
                    "SELECT slide, coalesce(folder, ''), number, who, decided_at, cells, bundle FROM slide_approval "
                    "QUALIFY row_number() OVER (PARTITION BY slide, coalesce(folder, '') ORDER BY number DESC) = 1 "
                    "AND decision = ?",
                    [APPROVED],
                ).fetchall()
                known = self._approvals = {
                    SlideId(from_column(folder), from_column(slide)): _Given(
                        number, from_nullable(who), at, cells, bundle
                    )
                    for slide, folder, number, who, at, cells, bundle in found
                }
        return known


def _load(cursor: duckdb.DuckDBPyConnection) -> SlideBook:
    # the cells without a slide together, wherever they lie
    cells = (
        "(SELECT cell_id, number, slide, CASE WHEN slide IS NOT NULL THEN coalesce(folder, '') END AS folder FROM cell)"
    )
    names = cursor.execute(f"SELECT DISTINCT slide, folder FROM {cells} ORDER BY ALL").fetchall()
    found = cursor.execute(
        f"SELECT ('0x' || cell_id)::UBIGINT AS id, number, code FROM {cells} cell JOIN "
        "(SELECT unnest($1::VARCHAR[]) AS slide, unnest($2::VARCHAR[]) AS folder, "
        "unnest(range(len($1::VARCHAR[])))::UINTEGER AS code) named "
        "ON cell.slide IS NOT DISTINCT FROM named.slide AND cell.folder IS NOT DISTINCT FROM named.folder",
        [[slide for slide, _ in names], [folder for _, folder in names]],
    ).fetchnumpy()
    return SlideBook(
        np.asarray(found["id"], np.uint64),
        np.asarray(found["number"], np.int64),
        np.asarray(found["code"], np.uint32),
        [rows.slide_id(slide, folder) for slide, folder in names],
    )


def _not_located(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """The tables of `_LOCATED` that hold something whose watched folder is not known yet, in that order.

    The trash of files is made when the first cell is removed. DuckDB takes 15 ms to say that a table is missing, so it
    is asked for only where a cell is in the trash.
    """
    always = [table for table in _LOCATED if table != _TRASHED_FILES]
    parts = [f"(SELECT '{table}' FROM {table} WHERE folder IS NULL LIMIT 1)" for table in always]
    parts.append(f"(SELECT '' FROM {TRASH}cell LIMIT 1)")
    found = {name for (name,) in cursor.execute(" UNION ALL ".join(parts)).fetchall()}
    if "" in found and _has(cursor, f"{_TRASHED_FILES} WHERE folder IS NULL"):
        found.add(_TRASHED_FILES)
    return [table for table in _LOCATED if table in found]


def _separator(folder: str) -> str:
    """What stands between the folders of a path, on whatever system it was written."""
    return "\\" if "\\" in folder and not folder.startswith("/") else "/"


def _has(cursor: duckdb.DuckDBPyConnection, source: str, values: Sequence[str] = ()) -> bool:
    return bool(cursor.execute(f"SELECT 1 FROM {source} LIMIT 1", list(values)).fetchall())
