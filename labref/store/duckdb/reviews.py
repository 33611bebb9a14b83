"""Labels that people give to cells after they are stored, and what every cell was called before.

Table `label_change`: a row each time a cell carries another label, or the same one from another source. `path` is empty
where no file brought it; `who` and `given_at` are what the person, or the list that was imported, says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import duckdb

from labref.failpoints import failpoint
from labref.store.duckdb import bundles, rows, sequence
from labref.store.recording import utc_naive
from labref.store.text import from_column, from_nullable, to_column, to_nullable
from labref.words import LabelSource

__all__ = ["LabelGiven", "Prediction", "Review", "Reviews"]

CHANGED: Final = "changed"
SAME: Final = "same"
OLDER: Final = "older"


@dataclass(frozen=True, slots=True)
class Review:
    """A person's label for a cell. who : as they are to be named, or None.  given_at : with a time zone; None means
    now."""

    cell_id: str
    label: str
    who: str | None
    given_at: datetime | None


@dataclass(frozen=True, slots=True)
class LabelGiven:
    """A change of a cell's label. at : when it was written down, UTC.  given_at : when the person gave it, where that
    is known.
    who : the person, where known.  path : the file that brought it, or None."""

    at: datetime
    given_at: datetime | None
    who: str | None
    path: str | None
    label: str
    label_source: LabelSource
    previous: str
    previous_source: LabelSource


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a bundle's networks call a cell. bundle : digest.  probability : of that class."""

    bundle: str
    label: str
    probability: float


class Reviews:
    """Labels given by people in one store; `Store.reviews`. Methods may be called from any thread."""

    def __init__(
        self,
        reading: Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]],
        transaction: Callable[[], AbstractContextManager[duckdb.DuckDBPyConnection]],
        reviewed: Callable[[Mapping[str, str]], None],
    ) -> None:
        """reading, transaction : the store's.  reviewed : called with the label, by cell id, of each cell that was
        given one, after the commit."""
        self._reading, self._transaction, self._reviewed = reading, transaction, reviewed

    def give(self, reviews: Sequence[Review], *, dry_run: bool = False) -> list[str | None]:
        """Write people's labels down, all or none, and say of each what came of it, in the same order:

        "changed", "same" (the cell was reviewed as this already), "older" (somebody gave the cell its label later than
        this one was given: that one stays), or None where there is no such cell.  dry_run : write nothing.
        """
        at = rows.now()
        outcomes: list[str | None] = []
        given_to: dict[str, str] = {}
        with self._changing(dry_run) as connection:
            ids = list({review.cell_id for review in reviews})
            states = rows.states(connection, ids)
            decided = _decided(
                connection, [i for i in ids if i in states and states[i].label_source is LabelSource.REVIEWED]
            )
            numbers = sequence.begin(connection)
            for review in reviews:
                state = states.get(review.cell_id)
                if state is None:
                    outcomes.append(None)
                    continue
                given = None if review.given_at is None else utc_naive(review.given_at)
                if state.label_source is LabelSource.REVIEWED:
                    since = decided.get(review.cell_id)
                    if given is not None and since is not None and given < since:
                        outcomes.append(OLDER)
                        continue
                    if state.label == review.label:
                        outcomes.append(SAME)
                        continue
                outcomes.append(CHANGED)
                states[review.cell_id] = replace(state, label=review.label, label_source=LabelSource.REVIEWED)
                decided[review.cell_id] = given or at
                given_to[review.cell_id] = review.label
                if not dry_run:
                    _write(connection, review, given, at, state.label, state.label_source, numbers.take())
            if not dry_run:
                sequence.keep(connection, numbers)
            failpoint("label.commit")
        if not dry_run:
            self._reviewed(given_to)
        return outcomes

    def history(self, cell_id: str) -> list[LabelGiven]:
        """How a cell's label changed, oldest first."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT changed_at, given_at, who, path, label, label_source, previous, previous_source FROM label_change "
                "WHERE cell_id = ? ORDER BY number",
                [cell_id],
            ).fetchall()
        return [
            LabelGiven(
                at.replace(tzinfo=UTC),
                None if given is None else given.replace(tzinfo=UTC),
                from_nullable(who),
                from_column(path) or None,
                from_column(label),
                LabelSource(source),
                from_column(previous),
                LabelSource(previous_source),
            )
            for at, given, who, path, label, source, previous, previous_source in found
        ]

    def predictions(self, cell_id: str) -> list[Prediction]:
        """What each bundle with a latent of the cell calls it, in the order the bundles came."""
        made = []
        with self._reading() as cursor:
            for bundle in bundles.every(cursor):
                table, _ = bundles.space(cursor, bundle.digest)
                columns = ["predicted_label", "predicted_probability"]
                for label, probability in rows.look_up(cursor, table, columns, "cell_id", [cell_id]):
                    made.append(Prediction(bundle.digest, from_column(label), probability))
        return made

    @contextmanager
    def _changing(self, dry_run: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        with (self._reading if dry_run else self._transaction)() as connection:
            yield connection


def _decided(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> dict[str, datetime]:
    """When the label that each of these reviewed cells carries was given; those that a file brought do not say."""
    found = connection.execute(
        "SELECT cell_id, arg_max(coalesce(given_at, changed_at), number) FROM label_change "
        "WHERE label_source = 'reviewed' AND path = '' AND cell_id IN (SELECT unnest(?::VARCHAR[])) GROUP BY cell_id",
        [list(ids)],
    ).fetchall()
    return dict(found)


def _write(
    connection: duckdb.DuckDBPyConnection,
    review: Review,
    given: datetime | None,
    at: datetime,
    previous: str,
    previous_source: LabelSource,
    number: int,
) -> None:
    label = to_column(review.label)
    connection.execute(
        "UPDATE cell SET label = ?, label_source = 'reviewed' WHERE cell_id = ?", [label, review.cell_id]
    )
    connection.execute(
        "INSERT INTO label_change (cell_id, changed_at, path, label, label_source, previous, previous_source, who, given_at, number) "
        "VALUES (?, ?, '', ?, 'reviewed', ?, ?, ?, ?, ?)",
        [review.cell_id, at, label, to_column(previous), str(previous_source), to_nullable(review.who), given, number],
    )
