"""What is still to be told to the shared store: which cells are new, changed or gone since it was told last.

Table `outbox`: a row for each cell that something happened to, written in the transaction in which it happened. A row
says which cell, not what became of it: whoever publishes reads how the cell is by then, so a later row of the same cell
makes an earlier one superfluous, and never wrong. `kind` is "cell", or "begin" and "end" around the rows of all
cells, where the shared store is to be made again. `tag` is random, one for each transaction. The shared store keeps
number and tag of the row that it was told last, and the outbox keeps that row too: where the two do not agree, the
lab was restored from a backup, or the shared store was, and all is published again.

Table `publication`: one row. `is_on`: whether the outbox is written at all, as it is where labref.toml has a [shared]
url. `sent`: number of the row that the shared store was told last, as far as this lab knows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref.failpoints import failpoint
from labref.store.duckdb import bundles, rejections, rows
from labref.store.duckdb.duplicates import fingerprints
from labref.store.duckdb.noting import is_on, refill
from labref.store.duckdb.qualities import DOUBTED
from labref.store.duckdb.tables import Tables
from labref.words import Fingerprint, LabelSource

__all__ = ["Entry", "Outbox", "Outgoing", "Waiting"]


class Entry(NamedTuple):
    """A row of the outbox. cell : its id; None for "begin" and "end"."""

    number: int
    kind: str
    cell: str | None
    tag: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the shared store is still to be told. rows : of the outbox.  since : when the first of them came, UTC; None
    where there is none."""

    rows: int
    since: datetime | None


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """A cell as others are told of it. latent : float32[L].  fingerprint : None where it has none yet.  withheld :
    whether it is no reference until a person decides.  captured_at, stored_at : UTC.  slide, path : can name a
    patient."""

    cell_id: str
    digest: str
    label: str
    label_source: LabelSource
    analyser: str | None
    captured_at: datetime | None
    stored_at: datetime
    latent: NDArray[np.float32]
    fingerprint: Fingerprint | None
    withheld: bool
    slide: str | None
    path: str


class Outbox(Tables):
    """The outbox of one store; `Store.outbox`. Methods may be called from any thread."""

    def switch(self, on: bool) -> None:
        """Write the outbox from now on, or no more. What was in it is of no use later: where it was off, all cells are
        to be published."""
        with self._reading() as cursor:
            if is_on(cursor) == on:
                return
        with self._transaction() as connection:
            connection.execute("UPDATE publication SET is_on = ?", [on])
            if on:
                refill(connection)
            else:
                connection.execute("DELETE FROM outbox")
            failpoint("outbox.switch")

    def refill(self) -> None:
        """Let every cell be published again."""
        with self._transaction() as connection:
            refill(connection)
            failpoint("outbox.refill")

    def after(self, number: int, limit: int) -> list[Entry]:
        """The first rows with a larger number, in order, at most so many."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT number, kind, cell, tag FROM outbox WHERE number > ? ORDER BY number LIMIT ?", [number, limit]
            ).fetchall()
        return [Entry(*row) for row in found]

    def tag_of(self, number: int) -> str | None:
        """The tag of a row; None where it is not there."""
        with self._reading() as cursor:
            row = cursor.execute("SELECT tag FROM outbox WHERE number = ?", [number]).fetchone()
        return None if row is None else str(row[0])

    @property
    def told(self) -> int:
        """Number of the row that the shared store was told last, as far as the lab has written it down."""
        with self._reading() as cursor:
            row = cursor.execute("SELECT sent FROM publication").fetchone()
        assert row is not None
        return int(row[0])

    def sent(self, number: int) -> None:
        """Write down that the shared store was told everything up to this row; those before it go."""
        with self._transaction() as connection:
            failpoint("outbox.sent")
            connection.execute("DELETE FROM outbox WHERE number < ?", [number])
            connection.execute("UPDATE publication SET sent = ?", [number])

    def waiting(self, sent: int | None = None) -> Waiting:
        """What is still to be told. sent : number of the last row that was, where the asker knows better than the
        table."""
        with self._reading() as cursor:
            row = cursor.execute(
                "SELECT count(*), min(noted_at) FROM outbox WHERE number > coalesce(?, (SELECT sent FROM publication))",
                [sent],
            ).fetchone()
        assert row is not None
        return Waiting(int(row[0]), None if row[1] is None else row[1].replace(tzinfo=UTC))

    def outgoing(self, ids: Collection[str], *, bundle: str) -> list[Outgoing]:
        """These cells as others are told of them, those that are there and have a latent of this bundle. The caller
        lets nobody write meanwhile."""
        chosen = list(ids)
        with self._reading() as cursor:
            table, _ = bundles.space(cursor, bundle)
            latents = rows.latents(cursor, table, chosen)
            marks = fingerprints(cursor, chosen)
            withheld = _withheld(cursor, chosen)
            found = rows.cells(cursor, chosen)
        return [
            Outgoing(
                cell_id,
                cell.digest,
                cell.label,
                cell.label_source,
                cell.analyser,
                cell.captured_at,
                cell.added_at,
                latents[cell_id],
                marks.get(cell_id),
                cell_id in withheld,
                cell.slide,
                cell.path,
            )
            for cell_id, cell in found.items()
            if cell_id in latents
        ]


def _withheld(cursor: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> set[str]:
    """Those of these cells that are no references until a person decides, or that people called no good ones."""
    found = cursor.execute(
        f"SELECT q.cell_id FROM {DOUBTED} AND q.cell_id IN (SELECT unnest(?::VARCHAR[]))", [list(ids)]
    ).fetchall()
    return {cell_id for (cell_id,) in found} | rejections.for_any(cursor).intersection(ids)
