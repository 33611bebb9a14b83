"""What waits for a person: cells whose class is uncertain, and what a person left as it is.

Table `review_decision`: one row for each time a person decided on a cell of a queue; the last row of a cell and a queue
holds. A cell that was settled under the class that it carries does not come back to the queue; a file that brings
another class brings it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import bundles, rows, sequence
from labref.store.duckdb.reviews import CHANGED, Review, Reviews
from labref.store.duckdb.tables import Access, Tables
from labref.store.duckdb.vocabulary import word
from labref.store.text import from_column, from_nullable, to_column, to_nullable
from labref.words import LabelSource

__all__ = ["Doubtful", "Queues", "Settled"]

_SETTLED = (
    "(SELECT cell, last(label ORDER BY number) AS label, last(undone ORDER BY number) AS undone, "
    "last(changed ORDER BY number) AS changed, last(who ORDER BY number) AS who FROM review_decision WHERE queue = $queue GROUP BY cell)"
)
_WAITING = (
    "c.label_source <> 'reviewed' AND NOT EXISTS "
    f"(SELECT 1 FROM {_SETTLED} s WHERE s.cell = c.cell_id AND NOT s.undone AND s.label = c.label)"
)


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A cell that nobody has reviewed. predicted, probability : what the bundle calls it."""

    cell_id: str
    label: str
    label_source: LabelSource
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class Settled:
    """What somebody decided on a cell of a queue last. label : the class that it had from then on.  changed : whether
    the decision gave it that."""

    label: str
    changed: bool
    who: str | None


class Queues(Tables):
    """What waits for review in one store; `Store.queues`. Methods may be called from any thread."""

    def __init__(self, access: Access, reviews: Reviews) -> None:
        """access, reviews : the store's."""
        super().__init__(access)
        self._reviews = reviews

    def doubtful(
        self, bundle: str, below: float, limit: int, leave_out: Sequence[str] = (), *, queue: str = "doubtful"
    ) -> list[Doubtful]:
        """Cells of a queue that nobody reviewed and whose most probable class has a probability below this, the least
        first. Tens of milliseconds for a million cells. leave_out : ids of cells that are not wanted."""
        where = "e.predicted_probability < $below AND NOT list_contains($out::VARCHAR[], c.cell_id)"
        return self._cells(bundle, queue, where, limit, {"below": below, "out": list(leave_out)})

    def waiting(self, bundle: str, queue: str, ids: Sequence[str]) -> list[Doubtful]:
        """Those of these cells that nobody reviewed, or left as they are in this queue; the least probable first."""
        return self._cells(bundle, queue, "list_contains($ids::VARCHAR[], c.cell_id)", len(ids), {"ids": list(ids)})

    def count_doubtful(self, bundle: str, below: float) -> int:
        """How many cells `doubtful` has."""
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, bundle)
            row = cursor.execute(
                f"SELECT count(*) FROM cell c JOIN {table} e USING (cell_id) "
                f"WHERE e.predicted_probability < $below AND {_WAITING}",
                {"below": below, "queue": "doubtful"},
            ).fetchone()
        return 0 if row is None else int(row[0])

    def _cells(self, bundle: str, queue: str, where: str, limit: int, values: dict[str, object]) -> list[Doubtful]:
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, bundle)
            found = cursor.execute(
                f"SELECT c.cell_id, c.label, c.label_source, e.predicted_label, e.predicted_probability "
                f"FROM cell c JOIN {table} e USING (cell_id) WHERE {where} AND {_WAITING} "
                f"ORDER BY e.predicted_probability, c.cell_id LIMIT {limit:d}",
                values | {"queue": queue},
            ).fetchall()
        return [
            Doubtful(
                cell,
                from_column(label),
                word(LabelSource, source, f"the label source of cell {cell}"),
                from_column(predicted),
                probability,
            )
            for cell, label, source, predicted, probability in found
        ]

    def predictions(self, bundle: str, ids: Sequence[str]) -> dict[str, tuple[str, float]]:
        """What the bundle calls these cells, and with which probability, by id."""
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, bundle)
            found = rows.look_up(
                cursor, table, ["cell_id", "predicted_label", "predicted_probability"], "cell_id", list(ids)
            )
            return {cell: (from_column(label), probability) for cell, label, probability in found}

    def settled(self, queue: str) -> dict[str, Settled]:
        """The cells of a queue on which somebody decided, and what."""
        with self._reading() as cursor:
            found = cursor.execute(
                f"SELECT cell, label, changed, who FROM {_SETTLED} WHERE NOT undone", {"queue": queue}
            ).fetchall()
        return {cell: Settled(from_column(label), changed, from_nullable(who)) for cell, label, changed, who in found}

    def decide(self, queue: str, cell_id: str, label: str, who: str | None) -> None:
        """Give a cell of a queue its class, and write down that somebody decided, in one transaction. label : the one
        that it carries, where that is right."""

        def settle(connection: duckdb.DuckDBPyConnection, outcomes: Sequence[str | None]) -> None:
            (outcome,) = outcomes
            _settle(connection, queue, cell_id, label, who, changed=outcome == CHANGED)

        self._reviews.give([Review(cell_id, label, who, None)], beside=settle)

    def undo(self, queue: str, cell_id: str, settled: Settled, who: str | None, *, own: bool) -> None:
        """Take back what somebody decided on a cell of a queue, and the label with it where the decision gave it one,
        in one transaction; the cell waits again. own : only what `who` said. Raises what `Reviews.undo` does."""

        def settle(connection: duckdb.DuckDBPyConnection, label: str) -> None:
            _settle(connection, queue, cell_id, label, who, undone=True)

        if settled.changed:
            self._reviews.undo(cell_id, who, own=own, beside=settle)
        else:
            with self._transaction() as connection:
                settle(connection, settled.label)


def _settle(
    connection: duckdb.DuckDBPyConnection,
    queue: str,
    cell_id: str,
    label: str,
    who: str | None,
    *,
    changed: bool = False,
    undone: bool = False,
) -> None:
    """Write down that somebody decided on a cell of a queue, or took that back. label : the class that it carries from
    then on.  changed : whether the decision gave it that, so that taking it back takes the label back."""
    numbers = sequence.begin(connection)
    connection.execute(
        "INSERT INTO review_decision VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [numbers.take(), queue, cell_id, to_column(label), to_nullable(who), rows.now(), changed, undone],
    )
    sequence.keep(connection, numbers)
    failpoint("review.settle")
