"""Whether the picture of each cell shows one stained cell, and the pictures that a person took in all the same.

Table `quality`: a row for each cell that was judged (`labref.cells.quality`). `reason` is the name of a `Reason`, NULL
where nothing is wrong; `is_cell` is NULL where the kept bytes could not be judged. A cell with a reason is no reference
until a person gives it a class or says that it is a good one: the last row of `reference_rejection` then says so. The
page of a cell shows its judgement, so the table has an index: without it, all rows were read for each.

Table `admitted`: the digests of files that were rejected because they seem to hold nothing, and that a person had taken
in all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import rows, sequence
from labref.store.duckdb.noting import note
from labref.store.duckdb.tables import Access, OfCells
from labref.store.duckdb.vocabulary import word
from labref.store.text import from_nullable, to_nullable
from labref.words import Quality, Reason

__all__ = ["DOUBTED", "Qualities", "QualityCounts", "write"]

DOUBTED: Final = (
    "quality q JOIN cell c USING (cell_id) WHERE q.reason IS NOT NULL AND c.label_source <> 'reviewed' "
    "AND q.cell_id NOT IN (SELECT cell FROM reference_rejection WHERE query IS NULL)"
)
"""The cells with something wrong on whose picture nobody decided: what follows FROM."""


@dataclass(frozen=True, slots=True)
class QualityCounts:
    """What the pictures of some cells are. judged : cells whose picture was judged.  no_cell : of these, those that
    cannot be read as one cell.  reasons : of these, by what is wrong, most frequent first.  waiting : cells that are no
    reference until a person decides."""

    judged: int
    no_cell: int
    reasons: Mapping[Reason, int]
    waiting: int


class Qualities(OfCells):
    """The judgements of one store; `Store.qualities`. Methods may be called from any thread."""

    table = "quality"

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._doubted: frozenset[str] | None = None
        self._admitted: frozenset[str] | None = None

    def doubted(self) -> frozenset[str]:
        """Cells with something wrong on whose picture nobody decided. Microseconds but after a change."""
        known = self._doubted
        if known is None:
            with self._reading() as cursor:
                found = cursor.execute(f"SELECT q.cell_id FROM {DOUBTED}").fetchall()
            known = self._doubted = frozenset(cell_id for (cell_id,) in found)
        return known

    def of(self, ids: Collection[str]) -> dict[str, Quality]:
        """The judgements of cells, by id; those that are not judged are left out."""
        with self._reading() as cursor:
            columns = ["cell_id", "is_cell", "reason", "focus"]
            found = list(rows.look_up(cursor, "quality", columns, "cell_id", list(ids)))
        return {
            cell_id: Quality(
                is_cell,
                None if reason is None else word(Reason, reason, f"what is wrong with cell {cell_id}", by_name=True),
                round(focus, 4),
            )
            for cell_id, is_cell, reason, focus in found
            if is_cell is not None
        }

    def doubts(self, ids: Collection[str]) -> dict[str, Reason]:
        """What is wrong with the pictures of those of these cells that are `doubted`, by id."""
        found = self.of(doubted) if (doubted := self.doubted().intersection(ids)) else {}
        return {cell_id: quality.reason for cell_id, quality in found.items() if quality.reason is not None}

    def by_analyser(self) -> dict[str | None, QualityCounts]:
        """What the pictures of each analyser's cells are; a tenth of a second for a million cells."""
        with self._reading() as cursor:
            counts = cursor.execute(
                "SELECT c.analyser, q.reason, q.is_cell, count(*) AS n FROM cell c JOIN quality q USING (cell_id) "
                "WHERE q.is_cell IS NOT NULL GROUP BY ALL ORDER BY n DESC, q.reason"
            ).fetchall()
            waiting = dict(cursor.execute(f"SELECT c.analyser, count(*) FROM {DOUBTED} GROUP BY c.analyser").fetchall())
        found: dict[str | None, QualityCounts] = {}
        for analyser in {of_one[0] for of_one in counts} | set(waiting):
            own = [of_one[1:] for of_one in counts if of_one[0] == analyser]
            reasons: dict[Reason, int] = {}
            for reason, _, n in own:
                if reason is not None:
                    wrong = word(Reason, reason, "what is wrong with a picture", by_name=True)
                    reasons[wrong] = reasons.get(wrong, 0) + n
            found[from_nullable(analyser)] = QualityCounts(
                sum(n for _, _, n in own),
                sum(n for _, is_cell, n in own if not is_cell),
                reasons,
                waiting.get(analyser, 0),
            )
        return found

    def add(self, judged: Mapping[str, Quality | None]) -> None:
        """Write the judgements of stored cells; None for one whose bytes cannot be judged. Cells that have one already,
        or are no longer there, are left out."""
        with self._transaction() as connection:
            found = connection.execute(
                "SELECT cell_id FROM cell ANTI JOIN quality USING (cell_id) "
                "WHERE cell_id IN (SELECT unnest(?::VARCHAR[]))",
                [list(judged)],
            ).fetchall()
            write(connection, [(cell_id, judged[cell_id]) for (cell_id,) in found])
            note(connection, [cell_id for (cell_id,) in found])
            failpoint("qualities.commit")
        self._doubted = None

    def admitted(self, digest: str) -> bool:
        """Whether a person had the file with this digest taken in though it seems to hold nothing. Microseconds."""
        known = self._admitted
        if known is None:
            with self._reading() as cursor:
                found = cursor.execute("SELECT digest FROM admitted").fetchall()
            known = self._admitted = frozenset(known for (known,) in found)
        return digest in known

    def admit(self, digests: Sequence[str], who: str | None) -> None:
        """Write down that the files with these digests are to be taken in, whatever they seem to hold."""
        with self._transaction() as connection:
            numbers = sequence.begin(connection)
            at = rows.now()
            for digest in digests:
                connection.execute(
                    "INSERT INTO admitted VALUES (?, ?, ?, ?)", [numbers.take(), digest, to_nullable(who), at]
                )
            sequence.keep(connection, numbers)
            failpoint("qualities.admit")
        self._admitted = None

    def drop_cached(self) -> None:
        """Read the tables again when they are asked next."""
        self._doubted = self._admitted = None


def write(connection: duckdb.DuckDBPyConnection, judged: Sequence[tuple[str, Quality | None]]) -> None:
    """Write rows of `quality`: cell id, and its judgement or None."""
    if not judged:
        return
    connection.execute(
        "INSERT INTO quality (cell_id, is_cell, reason, focus) SELECT unnest($1::VARCHAR[]), unnest($2::BOOLEAN[]), "
        "unnest($3::VARCHAR[]), unnest($4::FLOAT[])",
        [
            [cell_id for cell_id, _ in judged],
            [None if quality is None else quality.is_cell for _, quality in judged],
            [None if quality is None or quality.reason is None else quality.reason.name for _, quality in judged],
            [None if quality is None else quality.focus for _, quality in judged],
        ],
    )
