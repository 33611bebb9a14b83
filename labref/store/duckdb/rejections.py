"""References that people called no good: for one query, or for any.

Table `reference_rejection`: a row for each time somebody said so or took it back; the last row of a pair holds. `query`
is the id of the cell that was asked about, and NULL where the reference is no good for any. Both columns name cells by
another name than `cell_id`, so that the rows stay, as history, where cells are removed.

For any query, a picture is no good: blurred, or two cells, or wrongly stained. So that capture alone is left out, and
another of the same cell may be shown. For one query, the cell is no good: it is not like it. So all captures of the one
are left out for all captures of the other (`labref.asking.references`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import rows, sequence
from labref.store.duckdb.noting import note
from labref.store.duckdb.tables import Access, Tables
from labref.store.text import from_nullable, to_nullable

__all__ = ["Rejection", "Rejections", "for_any"]

_REJECTED: Final = "rejected"
_UNDONE: Final = "undone"


@dataclass(frozen=True, slots=True)
class Rejection:
    """What somebody said of a reference. query : None where of any.  rejected : False where it was taken back.  at :
    UTC."""

    cell_id: str
    query: str | None
    rejected: bool
    who: str | None
    at: datetime


class _Said(NamedTuple):
    """What people said. rejected : the rejected cells of each query that has any, under None those of all queries.
    named : every cell that anything was said of, or as whose reference."""

    rejected: Mapping[str | None, Set[str]]
    named: Set[str]


class Rejections(Tables):
    """Rejected references of one store; `Store.rejections`. Methods may be called from any thread."""

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._known: _Said | None = None

    def reject(self, cell_id: str, query: str | None, who: str | None) -> bool:
        """Write down that a cell is no good reference; False, and nothing written, where that is so already."""
        return self._say(cell_id, query, who, rejected=True)

    def undo(self, cell_id: str, query: str | None, who: str | None) -> bool:
        """Take that back; False, and nothing written, where nobody says so."""
        return self._say(cell_id, query, who, rejected=False)

    def accept(self, cell_id: str, who: str | None) -> None:
        """Write down that a cell is a good reference although its picture is doubted."""
        with self._transaction() as connection:
            numbers = sequence.begin(connection)
            connection.execute(
                "INSERT INTO reference_rejection VALUES (?, ?, ?, ?, ?, ?)",
                [numbers.take(), cell_id, None, _UNDONE, to_nullable(who), rows.now()],
            )
            sequence.keep(connection, numbers)
            note(connection, [cell_id])
            failpoint("rejections.accept")
        self._known = None

    def for_any(self) -> Set[str]:
        """Ids of cells that are no good reference for any query. Microseconds but after a change."""
        return self._all().rejected.get(None, frozenset())

    def for_queries(self, queries: Collection[str]) -> set[str]:
        """Ids of cells that are no good reference for one of these. Microseconds but after a change."""
        known = self._all().rejected
        return {cell for query in queries for cell in known.get(query, ())}

    def history(self, cell_id: str) -> list[Rejection]:
        """What people said of a cell as a reference, and of the references of this cell, oldest first. Microseconds for
        a cell that nobody said anything of."""
        if cell_id not in self._all().named:
            return []
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT cell, query, decision, who, decided_at FROM reference_rejection WHERE cell = $1 OR query = $1 "
                "ORDER BY number",
                [cell_id],
            ).fetchall()
        return [
            Rejection(cell, query, decision == _REJECTED, from_nullable(who), at.replace(tzinfo=UTC))
            for cell, query, decision, who, at in found
        ]

    def drop_cached(self) -> None:
        """Read the table again when it is asked next."""
        self._known = None

    def _say(self, cell_id: str, query: str | None, who: str | None, *, rejected: bool) -> bool:
        with self._transaction() as connection:
            said = _last(connection).rejected
            if (cell_id in said.get(query, ())) == rejected:
                return False
            numbers = sequence.begin(connection)
            decision = _REJECTED if rejected else _UNDONE
            connection.execute(
                "INSERT INTO reference_rejection VALUES (?, ?, ?, ?, ?, ?)",
                [numbers.take(), cell_id, query, decision, to_nullable(who), rows.now()],
            )
            sequence.keep(connection, numbers)
            note(connection, [cell_id])
            failpoint("rejections.commit")
        self._known = None
        return True

    def _all(self) -> _Said:
        known = self._known
        if known is None:
            with self._reading() as cursor:
                known = self._known = _last(cursor)
        return known


def for_any(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Ids of cells that are no good reference for any query, as the tables have it now."""
    return {*_last(connection).rejected.get(None, ())}


def _last(connection: duckdb.DuckDBPyConnection) -> _Said:
    found = connection.execute(
        "SELECT query, cell, last(decision ORDER BY number) = ? FROM reference_rejection GROUP BY query, cell",
        [_REJECTED],
    ).fetchall()
    known: dict[str | None, set[str]] = {}
    for query, cell, rejected in found:
        if rejected:
            known.setdefault(query, set()).add(cell)
    return _Said(known, frozenset(one for query, cell, _ in found for one in (query, cell) if one is not None))
