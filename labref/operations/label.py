"""`labref label`: people's labels for cells that are stored, one by one or by a list, and how each cell's label came about."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from labref.errors import LabrefError
from labref.export.layout import ClassNames
from labref.export.paths import path_from_text, path_to_text
from labref.lab import absolute
from labref.operations import operation
from labref.progress import Row, progress
from labref.store.duckdb.reviews import Review
from labref.tasks.context import Context

__all__: list[str] = []

_AT_ONCE: Final = 2000


@operation("label.set")
def set_label(context: Context, *, cell: str, label: str, who: str | None, new: bool = False) -> Iterator[Row]:
    """Give a cell a person's label. cell : id, or path of a file.  new : the class is new to the lab.

    Yields {`cell_id`, `label`, `previous`, `previous_source`, `outcome` ("changed" or "same")}.
    """
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


@operation("label.import")
def import_labels(
    context: Context, *, rows: list[dict[str, Any]], dry_run: bool = False, new: bool = False
) -> Iterator[Row]:
    """Give many cells people's labels: all rows that can be used in one transaction, or none where it fails.

    rows : {`line`, `path` or `cell_id`, `label`, `who`, `when` (ISO 8601; without a zone, this computer's)}, of the list.
    Yields {"line", "problem"} for each row that cannot be used, and last {`rows`, `changed`, `same`, `older` (the cell was given
    its label later: that stays), `unknown` (rows with a problem), `dry_run`}.
    """
    names = _Names(context)
    wanted = [str(row.get("cell_id") or row.get("path") or "") for row in rows]
    cells: dict[str, str | None] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        cells |= _found(context, wanted[start : start + _AT_ONCE])
        yield progress(min(start + _AT_ONCE, len(rows)), len(rows), "rows looked up")
    reviews, problems = [], 0
    for row, cell in zip(rows, wanted, strict=True):
        try:
            cell_id = cells[cell]
            if cell_id is None:
                what = "no cell has this id" if row.get("cell_id") else "no cell came from this file"
                raise LabrefError(f"{what}: {cell!r}" if cell else "neither a path nor a cell_id")
            label = names.label(str(row.get("label") or ""), new=new)
            reviews.append(Review(cell_id, label, row.get("who") or None, _moment(row.get("when"))))
        except LabrefError as error:
            problems += 1
            yield {"line": row["line"], "problem": str(error)}
    outcomes = context.store.reviews.give(reviews, dry_run=dry_run)
    counts = {name: sum(outcome == name for outcome in outcomes) for name in ("changed", "same", "older")}
    yield {"rows": len(rows), **counts, "unknown": problems, "dry_run": dry_run}


@operation("label.history")
def history(context: Context, *, cell: str) -> Iterator[Row]:
    """How a cell came to its label. Yields one {`cell_id`, `label`, `label_source`, `stored_at`, `stored_as` {label, label_source},
    `changes` [{`at`, `given_at`, `who`, `path`, `label`, `label_source`, `previous`, `previous_source`}], `paths` [{`path`, `label`,
    `label_source`}], `predictions` [{`bundle`, `label`, `probability`}]}."""
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
        "stored_at": found.added_at.isoformat(timespec="seconds"),
        "stored_as": {"label": first[0], "label_source": str(first[1])},
        "changes": [
            {
                "at": change.at.isoformat(timespec="seconds"),
                "given_at": None if change.given_at is None else change.given_at.isoformat(timespec="seconds"),
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
        """The label that `name` stands for. Raises `LabrefError` where it is empty, or no class of this lab and not `new`."""
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
    """The id of each cell that is named by its id, or by the path of one of its files as it is, or below a watched folder."""
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


def _moment(when: Any) -> datetime | None:
    if when is None or not str(when).strip():
        return None
    try:
        moment = datetime.fromisoformat(str(when).strip())
    except ValueError:
        raise LabrefError(f"{when!r} is no date; write it like 2026-03-31 or 2026-03-31T14:05") from None
    return moment.astimezone(UTC)
