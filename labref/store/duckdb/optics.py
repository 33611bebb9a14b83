"""Which analyser each cell came from, and what was measured of its optics.

Table `measure`: seven numbers a cell (see `labref.cells.optics`), with the analyser, time and number of the cell
beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.failpoints import failpoint
from labref.store.duckdb import rows
from labref.store.duckdb.rows import carried
from labref.store.duckdb.tables import OfCells
from labref.store.memory.books import CellBook, id_to_int
from labref.store.text import from_column, from_nullable, to_nullable
from labref.words import MEASURES

__all__ = ["OpticsBook", "OpticsMeasures", "codes", "load", "load_cells", "write"]

_AHEAD: Final = timedelta(days=1)
_NONE = ""  # an analyser without a name; a real name is never empty


class OpticsBook:
    """The analyser of every cell, in memory: a number for each name, and how many cells it has.

    One thread may add while others look up.
    """

    def __init__(self, counts: Mapping[str | None, int]) -> None:
        """counts : cells of each analyser."""
        self.codes: dict[str | None, int] = {name: code for code, name in enumerate(counts)}
        self.cells: CellBook[str] | None = None
        """the analyser of each cell by its id, "" where it has no name; read when it is first asked for"""
        self._counts = dict(counts)

    def counts(self) -> dict[str | None, int]:
        """Cells of each analyser; None for those whose analyser has no name."""
        return {name: count for name, count in self._counts.items() if count}

    def code(self, analyser: str | None) -> int:
        """The number of an analyser in the index; a new name gets a new number."""
        return self.codes.setdefault(analyser, len(self.codes))

    def add(self, cell_id: str, analyser: str | None) -> None:
        """A new cell."""
        self.code(analyser)
        self._counts[analyser] = self._counts.get(analyser, 0) + 1
        if self.cells is not None:
            self.cells.add(id_to_int(cell_id), analyser or _NONE)

    def those_of(self, ids: Collection[str], analyser: str) -> set[str]:
        """Those of these cells that came from this analyser, once `cells` are read. Microseconds."""
        numbers = {id_to_int(cell_id): cell_id for cell_id in ids}
        return {numbers[number] for number in self.numbers_of(list(numbers), analyser)}

    def numbers_of(self, numbers: Sequence[int], analyser: str) -> list[int]:
        """The same for ids as integers."""
        ids = np.fromiter(numbers, np.uint64, len(numbers))
        kept: list[int] = ids[self.are_of(ids, analyser)].tolist()
        return kept

    def are_of(self, numbers: NDArray[np.uint64], analyser: str) -> NDArray[np.bool_]:
        """Which of these cells came from this analyser, once `cells` are read: bool[n]. numbers : uint64[n], ids as
        integers. A quarter of a millisecond for 3,000 of a million cells."""
        if self.cells is None:
            return np.zeros(len(numbers), np.bool_)
        if self.counts().keys() == {analyser}:  # as in most labs; of no cell that is gone is it asked
            return np.ones(len(numbers), np.bool_)
        code = self.cells.code(analyser)
        return np.zeros(len(numbers), np.bool_) if code is None else self.cells.codes_of(numbers) == code


def load(cursor: duckdb.DuckDBPyConnection) -> OpticsBook:
    """The book of a store."""
    found = cursor.execute("SELECT analyser, count(*) FROM cell GROUP BY analyser ORDER BY analyser").fetchall()
    return OpticsBook({from_nullable(name): count for name, count in found})


def load_cells(cursor: duckdb.DuckDBPyConnection) -> CellBook[str]:
    """The analyser of each cell."""
    ids, codes, names = carried(cursor, f"coalesce(analyser, '{_NONE}')")
    return CellBook(ids, codes, [from_column(name) for (name,) in names])


def codes(cursor: duckdb.DuckDBPyConnection, book: OpticsBook) -> Callable[[NDArray[np.uint64]], NDArray[np.uint32]]:
    """A function from cell ids uint64[n], as an index is built from them, to the numbers of their analysers
    uint32[n]."""
    known = dict(book.codes)
    if len(known) <= 1:
        only = next(iter(known.values()), 0)
        return lambda ids: np.full(len(ids), only, np.uint32)
    # most cells came from one: only those of the others are read and sorted
    counts = book.counts()
    most = max(known, key=lambda name: counts.get(name, 0))
    others = [name for name in known if name != most and name is not None]
    unnamed = book.code(None)
    found = cursor.execute(
        "SELECT ('0x' || cell_id)::UBIGINT AS id, coalesce(($2::UINTEGER[])[list_position($1::VARCHAR[], analyser)], $3) AS code "
        "FROM cell WHERE analyser IS DISTINCT FROM $4",
        [[to_nullable(name) for name in others], [known[name] for name in others], unnamed, to_nullable(most)],
    ).fetchnumpy()
    ids, of_each = np.asarray(found["id"], np.uint64), np.asarray(found["code"], np.uint32)
    of_others = CellBook(ids, of_each, range(len(book.codes)))

    def look_up(wanted: NDArray[np.uint64]) -> NDArray[np.uint32]:
        given = of_others.codes_of(wanted)
        return np.where(given < 0, known[most], given).astype(np.uint32)

    return look_up


class OpticsMeasures(OfCells):
    """What was measured of the cells' optics; `Store.optics`. Methods may be called from any thread."""

    table = "measure"

    def add(self, measures: Mapping[str, NDArray[np.float32] | None]) -> None:
        """Write the measures float32[7] of stored cells; None for a cell whose bytes cannot be measured. Cells that
        have them already, or are no longer there, are left out."""
        ids = list(measures)
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT cell_id, analyser, added_at, number FROM cell ANTI JOIN measure USING (cell_id) "
                "WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))",
                [ids],
            ).fetchall()
            write(connection, [(cell_id, analyser, at, n, measures[cell_id]) for cell_id, analyser, at, n in found])
            failpoint("optics.commit")

    def of(self, cell_id: str) -> NDArray[np.float32] | None:
        """Measures float32[7] of one cell; None where it has none."""
        with self._reading() as cursor:
            # the table has no key, but by number DuckDB passes over all but one block of it
            row = cursor.execute(
                f"SELECT {', '.join(MEASURES)} FROM measure WHERE cell_id = $1 AND "
                "number = (SELECT number FROM cell WHERE cell_id = $1)",
                [cell_id],
            ).fetchone()
        return None if row is None or None in row else np.array(row, np.float32)

    def latest(
        self, analyser: str | None, *, since: datetime, most: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Measures of the latest cells of one optics, at most `most` of each: those since a moment, and those before;
        both float32[n, 7]. Cells dated more than a day ahead of the clock came while it was wrong, and are among those
        before."""
        found = []
        with self._reading() as cursor:
            for condition in ("(added_at >= $2 AND added_at < $3)", "(added_at < $2 OR added_at >= $3)"):
                columns = cursor.execute(
                    f"SELECT {', '.join(MEASURES)} FROM measure WHERE analyser IS NOT DISTINCT FROM $1 AND {condition} "
                    f"AND focus IS NOT NULL ORDER BY number DESC LIMIT {most:d}",
                    [to_nullable(analyser), since.replace(tzinfo=None), rows.now() + _AHEAD],
                ).fetchnumpy()
                numbers = np.stack([np.asarray(columns[name], np.float32) for name in MEASURES], axis=1)
                found.append(numbers[np.isfinite(numbers).all(axis=1)])
        return found[0], found[1]


def write(
    connection: duckdb.DuckDBPyConnection,
    cells: list[tuple[str, str | None, datetime, int, NDArray[np.float32] | None]],
) -> None:
    """Write rows of `measure`: cell id, analyser as the table `cell` has it, time and number of the cell, and what was
    measured or None."""
    if not cells:
        return
    numbers = [[None] * len(MEASURES) if values is None else values.tolist() for *_, values in cells]
    columns = [list(column) for column in zip(*numbers, strict=True)]
    places = ", ".join(f"unnest(${i}::FLOAT[])" for i in range(5, 5 + len(MEASURES)))
    connection.execute(
        f"INSERT INTO measure (cell_id, analyser, added_at, number, {', '.join(MEASURES)}) "
        f"SELECT unnest($1::VARCHAR[]), unnest($2::VARCHAR[]), unnest($3::TIMESTAMP[]), unnest($4::BIGINT[]), {places}",
        [*([cell[i] for cell in cells] for i in range(4)), *columns],
    )
