"""`labref label`: people's labels for cells that are stored, one by one or by a list, and how each cell's label came
about."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from labref.errors import LabrefError
from labref.export.layout import ClassNames
from labref.export.paths import path_from_text, path_to_text
from labref.lab import absolute
from labref.operations import operation
from labref.operations.models import Answer, GivenLabel, Progress, Request, Text
from labref.progress import Row, progress
from labref.store.duckdb.reviews import Review
from labref.tasks.context import Context
from labref.times import utc
from labref.words import LabelSource

__all__ = [
    "ImportRefused",
    "ImportRow",
    "Imported",
    "LabelChange",
    "LabelHistory",
    "LabelOfFile",
    "LabelPredicted",
    "LabelSet",
]

_AT_ONCE: Final = 2000


class LabelSet(Answer):
    """A label that a person gave."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it was given.")
    previous: str = Field(description="The class that it carried before.")
    previous_source: LabelSource = Field(description="Who had given that class.")
    outcome: Literal["changed", "same", "older"] = Field(
        description="`same`: the cell was reviewed as this already; `older`: the cell was given its label later."
    )


class ImportRow(Request):
    """One row of a list of labels; it names a cell by `cell_id` or `path`."""

    line: int = Field(description="Line of the list, for messages.")
    path: Text | None = Field(None, description="A file that the cell came from.")
    cell_id: Text | None = Field(None, description="The cell: 16 hexadecimal characters.")
    label: Text | None = Field(None, description="The class; a row without one is refused.")
    who: Text | None = Field(None, description="Who gave it.")
    when: Text | None = Field(None, description="When, ISO 8601; without a zone, in that of the lab's computer.")


class ImportRefused(Answer):
    """A row that cannot be used."""

    line: int = Field(description="Its line.")
    problem: str = Field(description="Why.")


class Imported(Answer):
    """What importing came to."""

    rows: int = Field(description="Rows of the list.")
    changed: int = Field(description="Cells whose label changed.")
    same: int = Field(description="Cells that were reviewed as this already.")
    older: int = Field(description="Cells that were given their label later: that stays.")
    unknown: int = Field(description="Rows that cannot be used.")
    dry_run: bool = Field(description="Whether nothing was written.")


class LabelChange(Answer):
    """A change of a cell's label."""

    at: str = Field(description="When it was written down, ISO 8601, UTC.")
    given_at: str | None = Field(description="When the person gave it, where that is known.")
    who: str | None = Field(description="The person, where known.")
    path: str | None = Field(description="The file that brought it; null where a person gave it to labref.")
    label: str = Field(description="The class from then on.")
    label_source: LabelSource = Field(description="Who gave it.")
    previous: str = Field(description="The class before.")
    previous_source: LabelSource = Field(description="Who had given that.")


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
    changes: list[LabelChange] = Field(description="Each change since, oldest first.")
    paths: list[LabelOfFile] = Field(description="What its files say.")
    predictions: list[LabelPredicted] = Field(description="What each bundle calls it.")


_Cell = Annotated[Text, Field(description="The cell: its 16 hexadecimal characters, or the path of one of its files.")]
_New = Annotated[bool, Field(description="A class that the lab does not know becomes one.")]


@operation("label.set", LabelSet)
def set_label(
    context: Context,
    *,
    cell: _Cell,
    label: Annotated[Text, Field(description="The class, by any of its names.")],
    who: Annotated[Text | None, Field(description="Who gives it, as they are to be named.")] = None,
    new: _New = False,
) -> Iterator[Row]:
    """Give a cell a person's label."""
    cell_id = _found(context, [cell])[cell]
    if cell_id is None:
        raise LabrefError(
            f"no cell {cell!r} in this lab; give the 16 characters of a cell's id, or the path of its file as `labref ledger` shows it."
        )
    before = context.store.cell(cell_id)
    assert before is not None
    named = _Names(context).label(label, new=new)
    (outcome,) = context.store.reviews.give([Review(cell_id, named, who, None)])
    yield {
        "cell_id": cell_id,
        "label": named,
        "previous": before.label,
        "previous_source": str(before.label_source),
        "outcome": outcome,
    }


@operation("label.import", Progress, ImportRefused, Imported)
def import_labels(
    context: Context,
    *,
    rows: Annotated[list[ImportRow], Field(description="The list.")],
    dry_run: Annotated[bool, Field(description="Only say what would come of it.")] = False,
    new: _New = False,
) -> Iterator[Row]:
    """Give many cells people's labels: all rows that can be used in one transaction, or none where it fails.

    Each row that cannot be used is told of; the last row says what became of all.
    """
    names = _Names(context)
    wanted = [row.cell_id or row.path or "" for row in rows]
    cells: dict[str, str | None] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        cells |= _found(context, wanted[start : start + _AT_ONCE])
        yield progress(min(start + _AT_ONCE, len(rows)), len(rows), "rows looked up")
    reviews, problems = [], 0
    for row, cell in zip(rows, wanted, strict=True):
        try:
            cell_id = cells[cell]
            if cell_id is None:
                what = "no cell has this id" if row.cell_id else "no cell came from this file"
                raise LabrefError(f"{what}: {cell!r}" if cell else "neither a path nor a cell_id")
            label = names.label(row.label or "", new=new)
            reviews.append(Review(cell_id, label, row.who or None, _moment(row.when)))
        except LabrefError as error:
            problems += 1
            yield {"line": row.line, "problem": str(error)}
    outcomes = context.store.reviews.give(reviews, dry_run=dry_run)
    counts = {name: sum(outcome == name for outcome in outcomes) for name in ("changed", "same", "older")}
    yield {"rows": len(rows), **counts, "unknown": problems, "dry_run": dry_run}


@operation("label.history", LabelHistory)
def history(context: Context, *, cell: _Cell) -> Iterator[Row]:
    """Say how a cell came to its label: what it was stored as, each change since, and what its files and bundles
    say."""
    cell_id = _found(context, [cell])[cell]
    found = None if cell_id is None else context.store.cell(cell_id)
    if found is None or cell_id is None:
        raise LabrefError(f"no cell {cell!r} in this lab; `labref ledger` lists cells and their files.")
    changes = context.store.reviews.history(cell_id)
    first = (changes[0].previous, changes[0].previous_source) if changes else (found.label, found.label_source)
    yield {
        "cell_id": cell_id,
        "label": found.label,
        "label_source": str(found.label_source),
        "stored_at": utc(found.added_at, timespec="seconds"),
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
            }
            for change in changes
        ],
        "paths": context.store.path_labels(cell_id),
        "predictions": [
            {"bundle": made.bundle, "label": made.label, "probability": round(made.probability, 6)}
            for made in context.store.reviews.predictions(cell_id)
        ],
    }


class _Names:
    """The classes of this lab, by any of their names."""

    def __init__(self, context: Context) -> None:
        store = context.store
        active = store.active_bundle()
        bundle = next(bundle for bundle in store.bundles() if bundle.digest == active)
        own = context.lab.config.watch.labels
        self._names = ClassNames(bundle.labels, own)
        self._known = {*bundle.labels, *own.values(), *store.counts().by_label}

    def label(self, name: str, *, new: bool) -> str:
        """The label that `name` stands for. Raises `LabrefError` where it is empty, or no class of this lab and not
        `new`."""
        if not name.strip():
            raise LabrefError("no label is given")
        label = name.strip() if name.strip() in self._known else self._names.label(name.strip())
        if label not in self._known:
            if not new:
                close = difflib.get_close_matches(label, sorted(self._known), n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(self._known))}."
                raise LabrefError(f"{label!r} is no class of this lab; {hint} With --new it becomes one.")
            self._known.add(label)
        return label


def _found(context: Context, cells: Sequence[str]) -> dict[str, str | None]:
    """The id of each cell that is named by its id, or by the path of one of its files as it is, or below a watched
    folder."""
    store = context.store
    there = store.cells([cell for cell in cells if len(cell) == 16])
    named: dict[str, str | None] = {cell: cell if cell in there else None for cell in cells}
    tried: dict[str, str] = {}
    for cell in cells:
        if named[cell] is None and cell:
            path = path_from_text(cell)
            for start in (Path(), *context.lab.watched):
                tried.setdefault(path_to_text(str(absolute(start / path))), cell)
    found = store.cells_of_paths(list(tried))
    for path, cell in tried.items():
        if named[cell] is None:
            named[cell] = found.get(path)
    return named


def _moment(when: str | None) -> datetime | None:
    if when is None or not when.strip():
        return None
    try:
        moment = datetime.fromisoformat(when.strip())
    except ValueError:
        raise LabrefError(f"{when!r} is no date; write it like 2026-03-31 or 2026-03-31T14:05") from None
    return moment.astimezone(UTC)
