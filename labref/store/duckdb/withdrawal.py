"""Taking out cells and slides that somebody names, as where a patient withdraws consent; and erasing what the store
says of them.

What is taken out is in the trash (`labref.store.duckdb.removal`, `trash`), as what retention removes. Erasing lets it
go at once, and deletes the paths and slides by which the ledger and its history name it. What stays of an erased cell
is that it was removed: its id, digest and class, so that no file brings it back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import removal, rows, trash
from labref.store.duckdb.tables import Access, Tables
from labref.store.duckdb.upkeep import TRASH, tables
from labref.store.duckdb.vocabulary import word
from labref.store.text import from_column, from_nullable, to_column
from labref.words import LabelSource, Outcome, SlideId

__all__ = ["Because", "FileLeft", "Named", "Withdrawal", "Withdrawn"]

Because = Literal["named", "on the slide", "capture"]
"""Why a cell goes: it was named; it is on a slide that was named; it is another capture of such a cell."""

_IN_TRASH: Final = f"SELECT cell_id FROM {TRASH}cell"
_ON_SLIDE: Final = "(coalesce(folder, ''), slide) IN (SELECT folder, slide FROM chosen_slide)"


@dataclass(frozen=True, slots=True)
class Named:
    """A cell that goes. in_trash : whether it was removed before, and can still be brought back."""

    cell_id: str
    label: str
    label_source: LabelSource
    analyser: str | None
    slide: SlideId | None
    because: Because
    in_trash: bool


@dataclass(frozen=True, slots=True)
class FileLeft:
    """A file of an erased cell or slide that is still there. path : as text.  cell_id : of the cell that was erased;
    None where none came from it."""

    path: str
    cell_id: str | None


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """What was taken out.

    removed : cells that were in the lab.  staying : ids of cells that may be captures of these.  erased : cells that
    are gone for good, those that were in the trash before among them.  files : how many files the ledger no longer
    names.  left : those that it still names, as they are there.
    """

    removed: int = 0
    staying: Sequence[str] = ()
    erased: int = 0
    files: int = 0
    left: Sequence[FileLeft] = ()


class Withdrawal(Tables):
    """Taking cells out of one store by name; `Store.withdrawal`. Methods may be called from any thread."""

    def __init__(self, access: Access, removed: Callable[[], None]) -> None:
        """access : the store's.  removed : called after cells went and that is committed, before anybody else
        writes."""
        super().__init__(access)
        self._removed = removed

    def slides(self) -> set[SlideId]:
        """The slides that the store still names, whether or not they have cells: in the ledger or its history, or in
        the trash. Some tenths of a second for a million cells."""
        with self._reading() as cursor:
            return _slides(cursor)

    def named(self, ids: Iterable[str], slides: Iterable[SlideId]) -> list[Named]:
        """The cells that go with these cells and slides: those named, those with a file on one of the slides, and all
        captures of each. In the order they came, those in the trash first.

        Of captures, those count that are linked as certain, by labref or by a person; possible ones stay. ids : of
        cells, in the lab or in the trash.
        """
        with self._reading() as cursor:
            return _named(cursor, ids, slides)

    def possible(self, cells: Sequence[Named]) -> list[str]:
        """The cells that stay where these go, and that are linked with one of them as perhaps the same."""
        with self._reading() as cursor:
            return _possible(cursor, [cell.cell_id for cell in cells if not cell.in_trash])

    def ever(self) -> bool:
        """Whether any cell was ever removed, and did not come back. A millisecond."""
        with self._reading() as cursor:
            return cursor.execute("SELECT 1 FROM removed_cell LIMIT 1").fetchone() is not None

    def gone(self, beginning: str) -> list[str]:
        """Ids that begin so, of cells that are gone for good."""
        with self._reading() as cursor:
            found = cursor.execute(
                f"SELECT cell_id FROM removed_cell WHERE starts_with(cell_id, ?) AND cell_id NOT IN ({_IN_TRASH})",
                [beginning],
            ).fetchall()
        return [cell_id for (cell_id,) in found]

    def take(
        self,
        ids: Collection[str],
        slides: Collection[SlideId],
        said: str,
        *,
        erase: bool = False,
        is_there: Callable[[str], bool] = lambda _: False,
    ) -> Withdrawn:
        """Move the cells that `named` gives to the trash, whoever gave their labels, all or none.

        A cell that stays and was linked with one of these, as perhaps the same, is linked with none from then on; where
        that one comes back, so does the link.

        said : why, as the ledger is to say it, before the id of the cell.  erase : let them go for good, with those of
        them that were in the trash before, and with the names by which the store knows them and the slides: paths,
        slides, approvals, what paths said of labels. The kept bytes are the caller's to delete. Cells that are gone
        already can be named as well.  is_there : whether there is a file at a path. One that is there keeps its
        outcome, and so its path: rejected, because its cell was removed.
        """
        with self._quiet():
            with self._transaction() as connection:
                found = _named(connection, ids, slides)
                going = [cell.cell_id for cell in found if not cell.in_trash]
                staying = _possible(connection, going)
                trash.loosen(connection, going)
                removed = removal.take_out(connection, dict.fromkeys(going, said))
                failpoint("withdraw.removed")
                erased, files, left = 0, 0, list[FileLeft]()
                if erase:
                    every = {*ids, *(cell.cell_id for cell in found)}
                    erased, files, left = _erase(connection, sorted(every), slides, is_there)
            if going or erase:
                self._removed()
        return Withdrawn(removed, staying, erased, files, left)


def _slides(cursor: duckdb.DuckDBPyConnection) -> set[SlideId]:
    parts = [f"SELECT slide, folder FROM {table}" for table in ("cell", f"{TRASH}cell", "file", "file_history")]
    found = cursor.execute(
        f"SELECT DISTINCT slide, coalesce(folder, '') FROM ({' UNION ALL '.join(parts)}) WHERE slide IS NOT NULL"
    ).fetchall()
    return {SlideId(from_column(folder), from_column(slide)) for slide, folder in found}


def _named(cursor: duckdb.DuckDBPyConnection, ids: Iterable[str], slides: Iterable[SlideId]) -> list[Named]:
    with _chosen(cursor, ids, slides):
        found = cursor.execute(
            f"""
            WITH every AS (
                SELECT cell_id, label, label_source, analyser, slide, folder, duplicate_group, number, false AS in_trash
                FROM cell
                UNION ALL
                SELECT cell_id, label, label_source, analyser, slide, folder, duplicate_group, number, true AS in_trash
                FROM {TRASH}cell
            ), on_slide AS (
                SELECT cell_id FROM every WHERE {_ON_SLIDE}
                UNION SELECT cell_id FROM {_files(cursor)} WHERE cell_id IS NOT NULL AND {_ON_SLIDE}
            ), first AS (
                SELECT cell_id, 0 AS why FROM chosen_cell UNION ALL SELECT cell_id, 1 FROM on_slide
            ), captured AS (
                SELECT cell_id, coalesce(duplicate_group, cell_id) AS root FROM every
            ), roots AS (
                SELECT DISTINCT root FROM captured SEMI JOIN first USING (cell_id)
            ), going AS (
                SELECT cell_id, why FROM first
                UNION ALL SELECT cell_id, 2 FROM captured SEMI JOIN roots USING (root)
            )
            SELECT cell_id, label, label_source, analyser, slide, folder, min(why), in_trash
            FROM every JOIN going USING (cell_id) GROUP BY ALL ORDER BY in_trash DESC, any_value(number)"""
        ).fetchall()
    reasons: tuple[Because, ...] = ("named", "on the slide", "capture")
    return [
        Named(
            cell_id,
            from_column(label),
            word(LabelSource, source, f"the label source of cell {cell_id}"),
            from_nullable(analyser),
            rows.slide_id(slide, folder),
            reasons[why],
            in_trash,
        )
        for cell_id, label, source, analyser, slide, folder, why, in_trash in found
    ]


def _possible(cursor: duckdb.DuckDBPyConnection, going: Sequence[str]) -> list[str]:
    """The cells that stay where these go, linked with one of them: as what may repeat it, or what it may repeat."""
    earlier = cursor.execute(
        "SELECT duplicate_of FROM cell WHERE duplicate_of IS NOT NULL AND cell_id IN (SELECT unnest($1::VARCHAR[])) "
        "AND duplicate_of NOT IN (SELECT unnest($1::VARCHAR[]))",
        [list(going)],
    ).fetchall()
    return sorted({cell_id for (cell_id,) in earlier} | set(trash.linked_with(cursor, going)))


def _erase(
    connection: duckdb.DuckDBPyConnection,
    ids: Sequence[str],
    slides: Iterable[SlideId],
    is_there: Callable[[str], bool],
) -> tuple[int, int, list[FileLeft]]:
    """Let these cells of the trash go for good, with all names of them and of the slides. How many cells that were, how
    many files the ledger no longer names, and which are still there."""
    there = {cell_id for (cell_id,) in connection.execute(_IN_TRASH).fetchall()}
    gone = [cell_id for cell_id in ids if cell_id in there]
    with _chosen(connection, ids, slides):
        trash.empty(connection, gone)
        failpoint("withdraw.names")
        # cells of these slides that went for good long ago: their files say so
        connection.execute(
            f"INSERT INTO chosen_cell SELECT cell_id FROM removed_cell WHERE reason IN (SELECT reason FROM file WHERE {_ON_SLIDE})"
        )
        removed = "SELECT reason FROM removed_cell SEMI JOIN chosen_cell USING (cell_id)"
        # where a cell that stays was stored from the same path before, the path is that one's as well
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE chosen_file AS SELECT path FROM file "
            f"WHERE outcome = '{Outcome.REJECTED}' AND (reason IN ({removed}) OR {_ON_SLIDE}) "
            "AND path NOT IN (SELECT path FROM cell) "
            "AND path NOT IN (SELECT path FROM file_history SEMI JOIN cell USING (cell_id))"
        )
        found = connection.execute(
            "SELECT path, removed_cell.cell_id FROM chosen_file JOIN file USING (path) LEFT JOIN removed_cell USING (reason) "
            "ORDER BY path"
        ).fetchall()
        left = [(path, cell_id) for path, cell_id in found if is_there(from_column(path))]
        connection.execute(
            "DELETE FROM chosen_file WHERE path IN (SELECT unnest(?::VARCHAR[]))", [[path for path, _ in left]]
        )
        _delete(connection, "file", "path IN (SELECT path FROM chosen_file)")
        _delete(
            connection,
            "file_history",
            f"cell_id IN (SELECT cell_id FROM chosen_cell) OR reason IN ({removed}) OR "
            f"path IN (SELECT path FROM chosen_file) OR (cell_id IS NULL AND {_ON_SLIDE})",
        )
        connection.execute("DROP TABLE temp.chosen_file")
        failpoint("withdraw.history")
        _delete(connection, "label_change", "cell_id IN (SELECT cell_id FROM chosen_cell)")
        connection.execute("UPDATE removed_cell SET slide = NULL WHERE cell_id IN (SELECT cell_id FROM chosen_cell)")
        for table in ("slide_approval", "slide_move"):
            _delete(connection, table, _ON_SLIDE)
    return len(gone), len(found) - len(left), [FileLeft(from_column(path), cell_id) for path, cell_id in left]


def _delete(connection: duckdb.DuckDBPyConnection, table: str, where: str) -> None:
    connection.execute(f"DELETE FROM {table} WHERE {where}")


def _files(cursor: duckdb.DuckDBPyConnection) -> str:
    """A table of the files of cells, those of the trash as well; its trash is made when the first cell is removed."""
    parts = [
        f"SELECT cell_id, slide, folder FROM {name}" for name in ("file", f"{TRASH}file") if name in tables(cursor)
    ]
    return f"({' UNION ALL '.join(parts)})"


@contextmanager
def _chosen(cursor: duckdb.DuckDBPyConnection, ids: Iterable[str], slides: Iterable[SlideId]) -> Iterator[None]:
    """Temporary tables `chosen_cell` and `chosen_slide`, of this connection alone."""
    named = list(slides)
    cursor.execute(
        "CREATE OR REPLACE TEMP TABLE chosen_cell AS SELECT DISTINCT unnest(?::VARCHAR[]) AS cell_id", [list(ids)]
    )
    cursor.execute(
        "CREATE OR REPLACE TEMP TABLE chosen_slide AS SELECT unnest(?::VARCHAR[]) AS folder, unnest(?::VARCHAR[]) AS slide",
        [[to_column(one.folder) for one in named], [to_column(one.name) for one in named]],
    )
    yield
    cursor.execute("DROP TABLE temp.chosen_cell")
    cursor.execute("DROP TABLE temp.chosen_slide")
