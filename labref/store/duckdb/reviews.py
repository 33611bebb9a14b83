"""Labels that people give to cells after they are stored, and what every cell was called before.

Table `label_change`: a row each time a cell carries another label, or the same one from another source, and each time a
person confirms the label that it carries. `path` is empty where no file brought it; `who` and `given_at` are what the
person, or the list that was imported, says. A row that takes another one back has its number in `undoes`; its path is
empty only where a person gave the label that the cell carries again.

Table `label_list`: a row for each list that was imported. A list is written in parts, each in a transaction of its own
together with how far the list is, so that after a crash the row says what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import duckdb

from labref.errors import StoreError
from labref.failpoints import failpoint
from labref.store.duckdb import bundles, rows
from labref.store.duckdb.tables import Access, Tables
from labref.store.duckdb.vocabulary import word
from labref.store.duckdb.writing import write_labels
from labref.store.recording import LabelChange, utc_naive
from labref.store.text import from_column, from_nullable
from labref.words import LabelSource

__all__ = ["LabelGiven", "ListImported", "Prediction", "Review", "Reviews"]

CHANGED: Final = "changed"
SAME: Final = "same"
OLDER: Final = "older"
_IDS: Final = "SEMI JOIN (SELECT unnest(?::VARCHAR[]) AS cell_id) USING (cell_id)"


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
    """A change of a cell's label, or a person's confirmation of it.

    at : when it was written down, UTC.  given_at : when the person gave it, where that is known.  who : the person,
    where known.  path : the file that brought it, or None.  undo : whether it took back what a person said.
    """

    at: datetime
    given_at: datetime | None
    who: str | None
    path: str | None
    label: str
    label_source: LabelSource
    previous: str
    previous_source: LabelSource
    undo: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a bundle's networks call a cell. bundle : digest.  probability : of that class."""

    bundle: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ListImported:
    """A list of labels, and how far its import is. began_at, ended_at : UTC; ended_at is None where it has not ended.

    digest : of what it says.  running : whether it is being written now; else one that has not ended was cut off.
    rows : of the list.  refused : rows that cannot be used.  done : usable rows that were written, of which `changed`
    gave a cell another label, `same` said what was so already, and `older` came after a newer label.
    """

    number: int
    digest: str
    began_at: datetime
    ended_at: datetime | None
    running: bool
    rows: int
    refused: int
    done: int
    changed: int
    same: int
    older: int


class Reviews(Tables):
    """Labels given by people in one store; `Store.reviews`. Methods may be called from any thread."""

    def __init__(self, access: Access, reviewed: Callable[[Mapping[str, tuple[str, LabelSource]]], None]) -> None:
        """access : the store's.  reviewed : called with label and source, by cell id, of each cell whose label changed,
        after the commit, before anybody else writes."""
        super().__init__(access)
        self._reviewed = reviewed
        self._running: set[int] = set()

    def give(
        self,
        reviews: Sequence[Review],
        *,
        dry_run: bool = False,
        in_list: int | None = None,
        beside: Callable[[duckdb.DuckDBPyConnection, Sequence[str | None]], None] | None = None,
    ) -> list[str | None]:
        """Write people's labels down, all or none, and say of each what came of it, in the same order:

        "changed", "same" (the cell was reviewed as this already; that this person says so too is kept in its history),
        "older" (somebody gave the cell its label later than this one was given: that one stays), or None where there is
        no such cell.  dry_run : write nothing.  in_list : the list (`list_`) that these are a part of; how far it is is
        written with them.  beside : writes in the same transaction what belongs to these; it is told what came of each.

        What the same person said then or later already is not written again; nor is what a list says without a date.
        """
        with nullcontext() if dry_run else self._quiet():
            outcomes, given_to = self._give(reviews, dry_run, in_list, beside)
            if not dry_run:
                self._reviewed({cell_id: (label, LabelSource.REVIEWED) for cell_id, label in given_to.items()})
        return outcomes

    def undo(
        self,
        cell_id: str,
        who: str | None,
        *,
        own: bool = False,
        beside: Callable[[duckdb.DuckDBPyConnection, str], None] | None = None,
    ) -> tuple[str, LabelSource]:
        """Take back the label that a person gave a cell last; returns what it carries from now on, and from whom.

        It carries what it carried before: of a predicted label, what the active bundle calls it now. Once more takes
        back the label before that.  who : who takes it back.  own : only what they said themselves.  beside : writes in
        the same transaction what belongs to this; it is told the label that the cell carries from now on.

        Raises StoreError where no person gave the label that the cell carries, or a file has brought one since; with
        `own`, where another person gave or confirmed it last.
        """
        with self._quiet():
            with self._transaction() as connection:
                carried = _undo(connection, cell_id, who, own=own)
                if beside is not None:
                    beside(connection, carried[0])
                failpoint("label.undo")
            self._reviewed({cell_id: carried})
        return carried

    def _give(
        self,
        reviews: Sequence[Review],
        dry_run: bool,
        in_list: int | None,
        beside: Callable[[duckdb.DuckDBPyConnection, Sequence[str | None]], None] | None,
    ) -> tuple[list[str | None], dict[str, str]]:
        """What came of each, and the label, by cell id, of each cell that was given one."""
        at = rows.now()
        outcomes: list[str | None] = []
        given_to: dict[str, str] = {}
        written: list[LabelChange] = []
        with self._changing(dry_run) as connection:
            ids = list({review.cell_id for review in reviews})
            carried = _carried(connection, ids)
            said = _said(connection, [i for i in ids if i in carried and carried[i][1] == LabelSource.REVIEWED])
            for review in reviews:
                before = carried.get(review.cell_id)
                if before is None:
                    outcomes.append(None)
                    continue
                given = None if review.given_at is None else utc_naive(review.given_at)
                by = said.get(review.cell_id, {}) if before[1] == LabelSource.REVIEWED else {}
                if before == (review.label, LabelSource.REVIEWED):
                    outcomes.append(SAME)
                    if review.who in by and (by[review.who] >= given if given else in_list is not None):
                        continue
                elif given is not None and by and given < max(by.values()):
                    outcomes.append(OLDER)
                    continue
                else:
                    outcomes.append(CHANGED)
                    given_to[review.cell_id] = review.label
                    by = {}
                carried[review.cell_id] = (review.label, LabelSource.REVIEWED)
                said[review.cell_id] = by | {review.who: max(given or at, by.get(review.who, datetime.min))}
                reviewed = LabelSource.REVIEWED
                written.append(
                    LabelChange(review.cell_id, None, None, review.label, reviewed, *before, review.who, given)
                )
            if not dry_run:
                write_labels(connection, written, at)
                if in_list is not None:
                    _count(connection, in_list, outcomes)
                if beside is not None:
                    beside(connection, outcomes)
            failpoint("label.commit")
        return outcomes, given_to

    @contextmanager
    def list_(self, digest: str, *, length: int, refused: int) -> Iterator[tuple[int, datetime | None]]:
        """While a list of labels is written in parts; gives its number, and when the same list was begun first, UTC, or
        None.

        digest : of what the list says.  length, refused : its rows, and those that cannot be used. The row of
        `label_list` says that the list has ended only where the block did.
        """
        at = rows.now()
        with self._transaction() as connection:
            number, first = connection.execute(
                "SELECT (SELECT coalesce(max(number), 0) + 1 FROM label_list), "
                "(SELECT min(began_at) FROM label_list WHERE digest = ?)",
                [digest],
            ).fetchall()[0]
            connection.execute(
                "INSERT INTO label_list VALUES (?, ?, ?, NULL, ?, ?, 0, 0, 0, 0)", [number, digest, at, length, refused]
            )
        self._running.add(number)
        try:
            yield number, None if first is None else first.replace(tzinfo=UTC)
            with self._transaction() as connection:
                connection.execute("UPDATE label_list SET ended_at = ? WHERE number = ?", [rows.now(), number])
        finally:
            self._running.discard(number)

    def lists(self, limit: int) -> list[ListImported]:
        """The lists that were imported, at most so many, the last first."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT number, digest, began_at, ended_at, rows, refused, done, changed, same, older FROM label_list "
                "ORDER BY number DESC LIMIT ?",
                [limit],
            ).fetchall()
        return [
            ListImported(
                number,
                digest,
                began.replace(tzinfo=UTC),
                None if ended is None else ended.replace(tzinfo=UTC),
                number in self._running,
                *counts,
            )
            for number, digest, began, ended, *counts in found
        ]

    def history(self, cell_id: str) -> list[LabelGiven]:
        """How a cell's label changed, oldest first."""
        with self._reading() as cursor:
            found = cursor.execute(
                "SELECT changed_at, given_at, who, path, label, label_source, previous, previous_source, "
                "undoes IS NOT NULL FROM label_change WHERE cell_id = ? ORDER BY number",
                [cell_id],
            ).fetchall()
        return [
            LabelGiven(
                at.replace(tzinfo=UTC),
                None if given is None else given.replace(tzinfo=UTC),
                from_nullable(who),
                from_column(path) or None,
                from_column(label),
                word(LabelSource, source, f"a label source in the history of cell {cell_id}"),
                from_column(previous),
                word(LabelSource, previous_source, f"a label source in the history of cell {cell_id}"),
                undo,
            )
            for at, given, who, path, label, source, previous, previous_source, undo in found
        ]

    def predictions(self, cell_id: str) -> list[Prediction]:
        """What each bundle with a latent of the cell calls it, in the order the bundles came."""
        made = []
        with self._reading() as cursor:
            for table, bundle in bundles.spaces(cursor).values():
                columns = ["predicted_label", "predicted_probability"]
                for label, probability in rows.look_up(cursor, table, columns, "cell_id", [cell_id]):
                    made.append(Prediction(bundle.digest, from_column(label), probability))
        return made

    @contextmanager
    def _changing(self, dry_run: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        with (self._reading if dry_run else self._transaction)() as connection:
            yield connection


def _said(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> dict[str, dict[str | None, datetime]]:
    """Who gave each of these reviewed cells the label that it carries, or confirmed it, and when last, by cell; those
    that files brought do not say."""
    found = connection.execute(
        f"""
        WITH change AS (SELECT * FROM label_change {_IDS}), given AS (
            SELECT cell_id, max(number) AS number FROM change
            WHERE label <> previous OR label_source <> previous_source GROUP BY cell_id
        )
        SELECT cell_id, who, max(coalesce(given_at, changed_at)) FROM change LEFT JOIN given USING (cell_id)
        WHERE path = '' AND change.number >= coalesce(given.number, 0) GROUP BY cell_id, who""",
        [list(ids)],
    ).fetchall()
    said: dict[str, dict[str | None, datetime]] = {}
    for cell_id, who, at in found:
        said.setdefault(cell_id, {})[from_nullable(who)] = at
    return said


def _carried(connection: duckdb.DuckDBPyConnection, ids: Sequence[str]) -> dict[str, tuple[str, LabelSource]]:
    """Label and source of each of these cells, by id."""
    found = connection.execute(f"SELECT cell_id, label, label_source FROM cell {_IDS}", [list(ids)]).fetchall()
    return {
        cell_id: (from_column(label), word(LabelSource, source, f"the label source of cell {cell_id}"))
        for cell_id, label, source in found
    }


def _undo(
    connection: duckdb.DuckDBPyConnection, cell_id: str, who: str | None, *, own: bool
) -> tuple[str, LabelSource]:
    found = connection.execute(
        "SELECT number, path, previous, previous_source, who, undoes FROM label_change WHERE cell_id = ? ORDER BY number",
        [cell_id],
    ).fetchall()
    undone = {undoes for *_, undoes in found}
    standing = [row[:5] for row in found if row[5] is None and row[0] not in undone]
    carried = rows.cells(connection, [cell_id]).get(cell_id)
    if not standing or standing[-1][1] or carried is None or carried.label_source is not LabelSource.REVIEWED:
        raise StoreError(
            f"there is nothing to take back: cell {cell_id} does not carry a label that a person gave to labref."
        )
    undoes, _, label, source, said = standing[-1]
    other = from_nullable(said)
    if own and other not in (None, who):
        raise StoreError(f"{other} gave or confirmed the class of cell {cell_id} since then: that stays.")
    by_person = len(standing) > 1 and not standing[-2][1]
    active = bundles.active(connection)
    if source == LabelSource.PREDICTED and active is not None:
        table, _ = bundles.space(connection, active)
        made = rows.look_up(connection, table, ["predicted_label"], "cell_id", [cell_id])
        label = next((now for (now,) in made), label)
    change = LabelChange(
        cell_id,
        None if by_person else carried.path,
        carried.slide_id,
        from_column(label),
        word(LabelSource, source, f"a label source in the history of cell {cell_id}"),
        carried.label,
        carried.label_source,
        who,
        undoes=undoes,
    )
    write_labels(connection, [change], rows.now())
    return change.label, change.label_source


def _count(connection: duckdb.DuckDBPyConnection, number: int, outcomes: Sequence[str | None]) -> None:
    counts = [sum(outcome == name for outcome in outcomes) for name in (CHANGED, SAME, OLDER)]
    connection.execute(
        "UPDATE label_list SET done = done + ?, changed = changed + ?, same = same + ?, older = older + ? WHERE number = ?",
        [len(outcomes), *counts, number],
    )
