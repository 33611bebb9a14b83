"""Label changes as other systems follow them, and what they sent: each thing once.

Table `event`: a row for each event that another system sent with a key of its own; the same key again changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import rows
from labref.store.duckdb.reviews import Review, Reviews
from labref.store.duckdb.tables import Access, Tables
from labref.store.duckdb.vocabulary import word
from labref.store.text import from_column, from_nullable, to_column
from labref.words import LabelSource

__all__ = ["Events", "LabelEvent"]


@dataclass(frozen=True, slots=True)
class LabelEvent:
    """A cell got another label, or the same one from another source. number : grows from event to event.  at : when it
    was written down, UTC."""

    number: int
    cell_id: str
    at: datetime
    who: str | None
    label: str
    label_source: LabelSource
    previous: str
    previous_source: LabelSource


class Events(Tables):
    """What one store tells other systems, and what they told it; `Store.events`. Methods may be called from any
    thread."""

    def __init__(self, access: Access, reviews: Reviews) -> None:
        """access : the store's."""
        super().__init__(access)
        self._reviews = reviews

    def labels(self, after: int, limit: int) -> list[LabelEvent]:
        """The label changes whose number is larger than `after`, at most so many, oldest first."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT number, cell_id, changed_at, who, label, label_source, previous, previous_source "
                "FROM label_change WHERE number > ? ORDER BY number LIMIT ?",
                [after, limit],
            ).fetchall()
        return [
            LabelEvent(
                number,
                cell_id,
                at.replace(tzinfo=UTC),
                from_nullable(who),
                from_column(label),
                word(LabelSource, source, f"a label source in the history of cell {cell_id}"),
                from_column(previous),
                word(LabelSource, previous_source, f"a label source in the history of cell {cell_id}"),
            )
            for number, cell_id, at, who, label, source, previous, previous_source in found
        ]

    def answered(self, key: str) -> tuple[str, dict[str, Any]] | None:
        """What was asked with this key, as a digest, and what was answered; None where the key is new."""
        with self._reading() as cursor:
            found = cursor.execute("SELECT asked, answer FROM event WHERE key = ?", [to_column(key)]).fetchone()
        return None if found is None else (found[0], json.loads(found[1]))

    def give(self, key: str, asked: str, review: Review) -> tuple[tuple[str, dict[str, Any]], bool]:
        """Give a cell a label, and keep with it what is answered to this key, in one transaction: whatever happens, the
        key is given its label once. Returns what `answered` does from then on, and whether the key came before; then
        nothing is written.

        asked : a digest of what was asked with the key.  The answer holds `cell_id`, `label` and `outcome`; see
        `Reviews.give`.
        """
        answer: dict[str, Any] = {"cell_id": review.cell_id, "label": review.label}

        def keep(connection: duckdb.DuckDBPyConnection, outcomes: Sequence[str | None]) -> None:
            (answer["outcome"],) = outcomes
            connection.execute(
                "INSERT INTO event VALUES (?, ?, ?, ?)",
                [to_column(key), asked, json.dumps(answer, ensure_ascii=True), rows.now()],
            )
            failpoint("events.keep")

        with self._quiet():  # the same key may come twice at once
            known = self.answered(key)
            if known is not None:
                return known, True
            self._reviews.give([review], beside=keep)
        return (asked, answer), False
