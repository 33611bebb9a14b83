"""`labref label`: people's labels for cells that are stored, one by one or by a list, and how each cell's label came
about."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import Field

from labref.errors import LabrefError
from labref.export.layout import name_key
from labref.operations import operation
from labref.operations.models import Answer, Folder, GivenLabel, Limit, Progress, Request, Seen, Text, Who
from labref.operations.naming import Classes, SeveralCellsError, cell_named, find_cells, person, stored_cell
from labref.printing import printable, unprintable
from labref.progress import Pace, Row, Steps, progress, rows_of
from labref.roles import Role
from labref.store import Cell
from labref.store.duckdb.reviews import Review
from labref.tasks.context import Context
from labref.times import utc
from labref.words import LabelSource

__all__ = [
    "MOST_ROWS",
    "ImportBegun",
    "ImportRefused",
    "ImportRow",
    "ImportState",
    "Imported",
    "LabelChange",
    "LabelHistory",
    "LabelOfFile",
    "LabelPredicted",
    "LabelSet",
    "LabelUndone",
    "carried_as_seen",
    "changes_of",
]

MOST_ROWS: Final = 200_000
"""Rows of one list."""
_MOST_TEXT: Final = 4096  # characters
_LOOKED_UP_AT_ONCE: Final = 10_000
_WRITTEN_AT_ONCE: Final = 1000  # rows in one transaction; ingest waits for its end
_CLOCKS_DIFFER: Final = timedelta(minutes=10)
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)


class LabelSet(Answer):
    """A label that a person gave."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it was given.")
    previous: str = Field(description="The class that it carried before.")
    previous_source: LabelSource = Field(description="Who had given that class.")
    outcome: Literal["changed", "same", "older"] = Field(
        description="`same`: the cell was reviewed as this already, which this review confirms; `older`: the cell was "
        "given its label later."
    )


class LabelUndone(Answer):
    """A label that was taken back."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it carries from now on.")
    label_source: LabelSource = Field(description="Who gave that.")
    previous: str = Field(description="The class that was taken back.")


class ImportRow(Request):
    """One row of a list of labels; it names a cell by `cell_id` or `path`."""

    line: int = Field(ge=0, le=2**62, description="Line of the list, for messages.")
    path: str | None = Field(None, description="A file that the cell came from.")
    cell_id: str | None = Field(None, description="The cell: its id, or a beginning of it.")
    label: str | None = Field(None, description="The class; a row without one is refused.")
    who: str | None = Field(None, description="Who gave it, at most 200 characters.")
    when: str | None = Field(
        None, description="When they gave it, ISO 8601; a time without a zone is in that of the lab's computer."
    )


class ImportRefused(Answer):
    """A row that cannot be used."""

    line: int = Field(description="Its line.")
    problem: str = Field(description="Why.")


class ImportBegun(Answer):
    """The list has been checked, and is written from here on."""

    number: int = Field(description="Its number among the lab's imports, see `label.imports`.")
    rows: int = Field(description="Rows of the list.")


class ImportState(Answer):
    """How much of a list is written. The sum of `changed`, `same` and `older` is `done`."""

    number: int = Field(description="Its number.")
    digest: str = Field(description="SHA-256 of what the list says, in whatever order.")
    began_at: str = Field(description="When writing began, ISO 8601, UTC.")
    ended_at: str | None = Field(description="When all was written, ISO 8601, UTC; null where it is not.")
    state: Literal["done", "running", "interrupted"] = Field(
        description="`interrupted`: it was cut off; importing the same list again writes the rest."
    )
    rows: int = Field(description="Rows of the list.")
    done: int = Field(description="Rows that were written or needed no writing.")
    changed: int = Field(description="Cells whose label changed.")
    same: int = Field(description="Cells that were reviewed as this already, which the list confirms.")
    older: int = Field(description="Cells that got their label later than the row says; that label stays.")
    unknown: int = Field(description="Rows that cannot be used.")


class Imported(Answer):
    """The result of an import."""

    rows: int = Field(description="Rows of the list.")
    changed: int = Field(description="Cells whose label changed.")
    same: int = Field(description="Cells that were reviewed as this already, which the list confirms.")
    older: int = Field(description="Cells that got their label later than the row says; that label stays.")
    unknown: int = Field(description="Rows that cannot be used.")
    dry_run: bool = Field(description="Whether nothing was written.")


class LabelChange(Answer):
    """A change of a cell's label, or a person's confirmation of it: then the class is the one before."""

    at: str = Field(description="When it was written down, ISO 8601, UTC.")
    given_at: str | None = Field(description="When the person gave it, where that is known.")
    who: str | None = Field(description="The person, where known.")
    path: str | None = Field(description="The file that brought it; null where a person gave it to labref.")
    label: str = Field(description="The class from then on.")
    label_source: LabelSource = Field(description="Who gave it.")
    previous: str = Field(description="The class before.")
    previous_source: LabelSource = Field(description="Who had given that.")
    undo: bool = Field(description="Whether it took back a label that a person gave.")


class LabelOfFile(Answer):
    """What a file of a cell says of it."""

    path: str = Field(description="The file.")
    label: str | None = Field(description="The class, where the file says one.")
    label_source: LabelSource | None = Field(description="Who gave it, where the file says so.")


class LabelPredicted(Answer):
    """What a bundle's networks call a cell."""

    bundle: str = Field(description="Digest of the bundle.")
    label: str = Field(description="The most probable class.")
    probability: float = Field(description="Its probability.")


class LabelHistory(Answer):
    """How a cell came to its label."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it carries.")
    label_source: LabelSource = Field(description="Who gave it.")
    stored_at: str = Field(description="When the cell was stored, ISO 8601, UTC.")
    stored_as: GivenLabel = Field(description="The class that it was stored with.")
    changes: list[LabelChange] = Field(description="Each change and confirmation since, oldest first.")
    paths: list[LabelOfFile] = Field(description="What its files say.")
    predictions: list[LabelPredicted] = Field(description="What each bundle calls it.")


_Cell = Annotated[
    Text,
    Field(
        description="The cell: its id, a beginning of it, or the path or SHA-256 of one of its files.",
        max_length=_MOST_TEXT,
    ),
]
_New = Annotated[bool, Field(description="Accept a class that the lab does not know; it becomes one of its classes.")]


@operation("label.set", LabelSet, role=Role.REVIEW)
def set_label(
    context: Context,
    *,
    cell: _Cell,
    label: Annotated[Text, Field(description="The class, by any of its names.")],
    who: Who = None,
    seen: Seen = None,
    new: _New = False,
    folder: Folder = None,
) -> Iterator[Row]:
    """Give a cell a person's label.

    Where a person says what the cell was reviewed as already, that is a review too: it is kept in the history, and
    stands above what files and older lists say.
    """
    who = person(who)
    cell_id = cell_named(context, cell, folder=folder)
    named = Classes(context).label(label, new=new)
    with context.store.quiet():  # nobody gives another between the look and the change
        previous, source = carried_as_seen(context, cell_id, seen)
        (outcome,) = context.store.reviews.give([Review(cell_id, named, who, None)])
    yield {
        "cell_id": cell_id,
        "label": named,
        "previous": previous,
        "previous_source": str(source),
        "outcome": outcome,
    }


def carried_as_seen(context: Context, cell_id: str, seen: str | None) -> tuple[str, LabelSource]:
    """The class that a cell carries, and who gave it. seen : what a person saw it carry, or None.

    Raises `LabrefError` where it carries another by now, or is gone.
    """
    found = context.store.labelled([cell_id]).get(cell_id)
    if found is None:
        raise LabrefError(f"cell {cell_id} was removed from this lab just now.")
    if seen is not None and seen not in (found[0], printable(found[0])):  # as a page shows it
        changes = context.store.reviews.history(cell_id)
        by = f" by {changes[-1].who}" if changes and changes[-1].who else ""
        raise LabrefError(
            f"cell {cell_id} is called {found[0]!r}{by} by now, not {seen!r}: that stays. Look at it again."
        )
    return found


@operation("label.undo", LabelUndone, role=Role.REVIEW)
def undo(
    context: Context,
    *,
    cell: _Cell,
    label: Annotated[
        Text | None,
        Field(
            description="The class to take back: where the cell carries another by now, or somebody other than `who` gave "
            "or confirmed it last, that stays."
        ),
    ] = None,
    who: Who = None,
    folder: Folder = None,
) -> Iterator[Row]:
    """Take back the label that a person gave a cell last: it carries what it carried before. Once more takes back the
    one before that. All of it stays in the history."""
    who = person(who)
    cell_id = cell_named(context, cell, folder=folder)
    with context.store.quiet():  # nobody gives another between the look and the change
        previous, _ = carried_as_seen(context, cell_id, label)
        carried, source = context.store.reviews.undo(cell_id, who, own=label is not None and who is not None)
    yield {"cell_id": cell_id, "label": carried, "label_source": str(source), "previous": previous}


@operation("label.import", Progress, ImportRefused, ImportBegun, Imported)
def import_labels(
    context: Context,
    *,
    rows: Annotated[list[ImportRow], Field(description="The list.", max_length=MOST_ROWS)],
    dry_run: Annotated[bool, Field(description="Only say what would change; nothing is written.")] = False,
    new: _New = False,
    folder: Folder = None,
) -> Iterator[Row]:
    """Give many cells people's labels. All rows are checked before any is written.

    A row that cannot be used is reported, and the others are written. The whole list is refused, and nothing of it is
    written, where rows contradict each other (usable or not), where a row may mean several cells, where its reviewer is
    empty, where it holds a character that cannot be seen, or where its review lies in the future. The list is written
    in parts, so that the agent can take in files meanwhile. What is written stays, whatever happens to the process that
    asked. `label.imports` says how much of a list is written. The same list again changes no label that is written
    already, nor any that people gave since the first import. The last row counts the outcomes.
    """
    checked = yield from rows_of(_checked(context, rows, new=new, folder=folder))
    yield from checked.problems
    if checked.contradictions:
        yield from checked.contradictions
        raise _refusal(checked.contradictions)
    counts: Counter[str | None] = Counter()
    reviews, refused = checked.reviews, len(checked.problems)
    if dry_run or not reviews:
        for start in range(0, len(reviews), _WRITTEN_AT_ONCE):
            counts.update(context.store.reviews.give(reviews[start : start + _WRITTEN_AT_ONCE], dry_run=True))
            yield progress(start, len(reviews), "rows compared")
    else:
        with context.store.reviews.list_(_digest(rows), length=len(rows), refused=refused) as (number, first):
            yield {"number": number, "rows": len(rows)}
            for start in range(0, len(reviews), _WRITTEN_AT_ONCE):
                began = time.monotonic()
                part = reviews[start : start + _WRITTEN_AT_ONCE]
                if first is not None:  # labels that people gave since then stay
                    part = [replace(review, given_at=review.given_at or first) for review in part]
                counts.update(context.store.reviews.give(part, in_list=number))
                yield progress(min(start + _WRITTEN_AT_ONCE, len(reviews)), len(reviews), "labels written")
                if context.jobs is not None:  # in an agent, threads that wait to write cells come first
                    time.sleep(min(1.0, time.monotonic() - began))
    told = {name: counts[name] for name in ("changed", "same", "older")}
    yield {"rows": len(rows), **told, "unknown": refused + counts[None], "dry_run": dry_run}


@operation("label.imports", ImportState)
def imports(
    context: Context,
    *,
    limit: Annotated[Limit, Field(description="How many lists at most.")] = 20,
) -> Iterator[Row]:
    """List the lists that were imported, the last first, and how much of each is written."""
    for made in context.store.reviews.lists(limit):
        yield {
            "number": made.number,
            "digest": made.digest,
            "began_at": utc(made.began_at, timespec="seconds"),
            "ended_at": None if made.ended_at is None else utc(made.ended_at, timespec="seconds"),
            "state": "running" if made.running else "interrupted" if made.ended_at is None else "done",
            "rows": made.rows,
            "done": made.done,
            "changed": made.changed,
            "same": made.same,
            "older": made.older,
            "unknown": made.refused,
        }


@operation("label.history", LabelHistory, role=Role.VIEW)
def history(context: Context, *, cell: _Cell, folder: Folder = None) -> Iterator[Row]:
    """Say how a cell came to its label.

    That is what it was stored as, each change and confirmation since, and what its files and bundles say.
    """
    found = stored_cell(context, cell, folder=folder)
    yield {
        "cell_id": found.cell_id,
        "label": found.label,
        "label_source": str(found.label_source),
        "stored_at": utc(found.added_at, timespec="seconds"),
        **changes_of(context, found),
        "paths": context.store.path_labels(found.cell_id),
        "predictions": [
            {"bundle": made.bundle, "label": made.label, "probability": round(made.probability, 6)}
            for made in context.store.reviews.predictions(found.cell_id)
        ],
    }


def changes_of(context: Context, cell: Cell) -> Row:
    """`stored_as` and `changes` of `LabelHistory`."""
    changes = context.store.reviews.history(cell.cell_id)
    first = (changes[0].previous, changes[0].previous_source) if changes else (cell.label, cell.label_source)
    return {
        "stored_as": {"label": first[0], "label_source": str(first[1])},
        "changes": [
            {
                "at": utc(change.at, timespec="seconds"),
                "given_at": None if change.given_at is None else utc(change.given_at, timespec="seconds"),
                "who": change.who,
                "path": change.path,
                "label": change.label,
                "label_source": str(change.label_source),
                "previous": change.previous,
                "previous_source": str(change.previous_source),
                "undo": change.undo,
            }
            for change in changes
        ],
    }


# lists


@dataclass
class _Checked:
    """The result of checking a list. problems : of single rows.  contradictions : the problems for which the whole list
    is refused."""

    reviews: list[Review] = field(default_factory=list)
    problems: list[Row] = field(default_factory=list)
    contradictions: list[Row] = field(default_factory=list)


def _checked(context: Context, rows: Sequence[ImportRow], *, new: bool, folder: str | None) -> Steps[_Checked]:
    """Look up the cells of all rows, and check every row, before any row is written."""
    classes, found = Classes(context), dict[str, str | LabrefError]()
    names = list(dict.fromkeys(name for row in rows for name in (row.cell_id, row.path) if name))
    for start in range(0, len(names), _LOOKED_UP_AT_ONCE):
        found |= find_cells(context, names[start : start + _LOOKED_UP_AT_ONCE], folder=folder)
        yield min(start + _LOOKED_UP_AT_ONCE, len(names)), len(names), "cells looked up"
    checked, pace = _Checked(), Pace()
    said = _Said(found)
    latest = datetime.now(UTC) + _CLOCKS_DIFFER
    for number, row in enumerate(rows):
        try:
            label: str | LabrefError = classes.label(row.label or "", new=new)
        except LabrefError as error:
            label = error
        try:
            said.add(row, label)
            checked.reviews.append(_review(row, found, label, latest=latest))
        except (_ContradictionError, SeveralCellsError) as error:
            checked.contradictions.append({"line": row.line, "problem": str(error)})
        except LabrefError as error:
            checked.problems.append({"line": row.line, "problem": str(error)})
        if pace.due():
            yield number, len(rows), "rows checked"
    return checked


class _ContradictionError(LabrefError):
    """A row for which its whole list is refused."""


class _Said:
    """What the rows of a list call each cell, whether or not they can be used."""

    def __init__(self, found: Mapping[str, str | LabrefError]) -> None:
        """found : the cells by the names that the rows give them; an error where there is none."""
        self._found = found
        self._labels: dict[str, tuple[int, str]] = {}

    def add(self, row: ImportRow, label: str | LabrefError) -> None:
        """Raises `_ContradictionError` where an earlier row gave the cell another class.

        label : what the row's class is in this lab. Of one that is none here, and of a cell that is not there, what
        the row calls it counts.
        """
        written = name_key(row.label or "") or (row.label or "").strip()
        if not written:
            return
        called = f"? {written}" if isinstance(label, LabrefError) else label
        for name in filter(None, (row.cell_id, row.path)):
            found = self._found[name]
            cell = name if isinstance(found, LabrefError) else found
            line, other = self._labels.setdefault(cell, (row.line, called))
            if other != called:
                here, there = called.removeprefix("? "), other.removeprefix("? ")
                raise _ContradictionError(f"cell {cell} is called {here!r} here and {there!r} in line {line}")


def _review(
    row: ImportRow, found: Mapping[str, str | LabrefError], label: str | LabrefError, *, latest: datetime
) -> Review:
    """The review that a row gives. label : its class in this lab.

    Raises `_ContradictionError` or `SeveralCellsError` where the whole list must be refused, and `LabrefError` where
    only this row cannot be used.
    """
    for column, text in (("label", row.label), ("cell_id", row.cell_id), ("when", row.when)):
        if text is not None and (character := unprintable(text)) is not None:
            raise _ContradictionError(f"{column} {text!r} holds the character {character}, which cannot be seen")
    try:
        who = person(row.who)
    except LabrefError as error:
        raise _ContradictionError(str(error)) from None
    given_at = _moment(row.when)
    if given_at is not None and given_at > latest:
        raise _ContradictionError(
            f"the review of {row.when!r} is in the future; at most {_CLOCKS_DIFFER.seconds // 60} minutes are allowed, for "
            "clocks that differ"
        )
    cells = [found[name] for name in (row.cell_id, row.path) if name]
    if not cells:
        raise LabrefError("neither a path nor a cell_id")
    for cell in cells:
        if isinstance(cell, LabrefError):
            raise cell
    if len(set(cells)) > 1:
        raise _ContradictionError(f"cell_id and path are of two cells: {row.cell_id}, and {row.path} is {cells[1]}")
    if isinstance(label, LabrefError):
        raise label
    return Review(str(cells[0]), label, who, given_at)


def _moment(when: str | None) -> datetime | None:
    if when is None or not when.strip():
        return None
    try:
        moment = datetime.fromisoformat(when.strip()).astimezone(UTC)
    except (ValueError, OverflowError, OSError):  # years that the computer's own calendar does not reach
        raise LabrefError(f"{when!r} is no date; write it like 2026-03-31 or 2026-03-31T14:05") from None
    if moment < _EARLIEST:
        raise LabrefError(f"{when!r} is no date of a review: it is before {_EARLIEST.year}")
    return moment


def _digest(rows: Sequence[ImportRow]) -> str:
    """Of what a list says."""
    said = sorted(json.dumps([row.cell_id, row.path, row.label, row.who, row.when]) for row in rows)
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _refusal(contradictions: Sequence[Row]) -> LabrefError:
    rows = f"line {contradictions[0]['line']}" if len(contradictions) == 1 else f"{len(contradictions)} lines"
    return LabrefError(
        f"the list is refused because of {rows}, and nothing of it was written; mend it and import it again."
    )
