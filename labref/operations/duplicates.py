"""`labref duplicates`: cells that repeat others, what people decide of them, and cells that are said to be of different classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from labref.cells.sameness import DEFAULTS, Thresholds
from labref.errors import BundleError, LabError, LabrefError
from labref.operations import operation
from labref.progress import Row, progress
from labref.store import Cell, Pair
from labref.store.duckdb.duplicates import Conflict
from labref.tasks.comparing import catch_up
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running

__all__ = ["JOB", "due"]

JOB: Final = "fingerprints"
_AFTER_FAILURE: Final = timedelta(minutes=10)
_VERDICTS: Final = ("duplicate", "possible_duplicate", "rejected", "neighbour")


@operation("duplicates.list")
def list_(context: Context, *, verdict: str | None = None, limit: int | None = None) -> Iterator[Row]:
    """Pairs of cells (`kind` "pair"), those first that wait for a decision, and then cells of which different classes are said
    (`kind` "conflict"): by files with the same bytes, or by captures of one cell; at most `limit` of each.

    verdict : only pairs that are "duplicate", "possible_duplicate", "rejected" or "neighbour" (these are in no other list); "conflict"
    only conflicts.
    """
    if verdict not in (None, "conflict", *_VERDICTS):
        raise LabrefError(f"no pair can be {verdict!r}; ask for {', '.join(_VERDICTS)} or conflict")
    found = context.store.duplicates
    if verdict != "conflict":
        yield from _described(context, found.pairs(verdict=verdict, limit=limit))
    if verdict in (None, "conflict"):
        yield from _conflicts(context, found.conflicts(limit), found.conflicting_pairs(limit))


@operation("duplicates.confirm")
def confirm(context: Context, *, cell: str, who: str | None, of: str | None = None) -> Iterator[Row]:
    """A person says that `cell` is the same cell as the one it is linked with, or as `of`; the pair, as `duplicates.list` gives it."""
    yield from _described(context, [context.store.duplicates.confirm(cell, who, of)])


@operation("duplicates.reject")
def reject(context: Context, *, cell: str, who: str | None) -> Iterator[Row]:
    """A person says that `cell` is another cell than the one it is linked with; they are never linked again."""
    yield from _described(context, [context.store.duplicates.reject(cell, who)])


@operation("duplicates.undo")
def undo(context: Context, *, cell: str, who: str | None) -> Iterator[Row]:
    """Take back the last decision on `cell`: what labref found itself holds again."""
    yield from _described(context, [context.store.duplicates.undo(cell, who)])


@operation("duplicates.history")
def history(context: Context, *, cell: str) -> Iterator[Row]:
    """What people decided of a cell, oldest first: `cell_id`, `duplicate_of`, `decision`, `who`, `at`."""
    for cell_id, other, decision, who, at in context.store.duplicates.history(cell):
        yield {
            "cell_id": cell_id,
            "duplicate_of": other,
            "decision": str(decision),
            "who": who,
            "at": at.isoformat(timespec="seconds"),
        }


@operation("duplicates.find")
def find(context: Context) -> Iterator[Row]:
    """Compare the cells that have not been compared yet: those of a lab that an earlier labref filled. One row: `compared`."""
    waiting = context.store.duplicates.count_without_fingerprint()
    if waiting:
        for step in catch_up(context.lab, context.store, _thresholds(context)):
            yield progress(*step)
    yield {"compared": waiting - context.store.duplicates.count_without_fingerprint()}


def due(context: Context) -> Job | None:
    """The agent's job, where cells have no fingerprint of the present kind. Milliseconds."""
    assert context.jobs is not None
    if context.jobs.has(JOB) or not context.store.duplicates.count_without_fingerprint():
        return None
    if context.jobs.failed_within(JOB, _AFTER_FAILURE):
        return None
    return Job(JOB, lambda running: _work(context, running))


def _work(context: Context, running: Running) -> None:
    for step in catch_up(context.lab, context.store, _thresholds(context)):
        running.report(*step)
        if running.stopped:
            return


def _thresholds(context: Context) -> Thresholds:
    try:
        return Thresholds.of(context.lab.bundle(context.store).manifest.duplicates)
    except (LabError, BundleError):
        return DEFAULTS  # cells are compared by their pictures, whatever becomes of the networks


def _described(context: Context, pairs: Sequence[Pair]) -> Iterator[Row]:
    cells = context.store.cells({cell_id for pair in pairs for cell_id in (pair.cell_id, pair.other)})
    in_conflict = (
        {(pair.cell_id, pair.other) for pair in context.store.duplicates.conflicting_pairs()} if pairs else set()
    )
    for pair in pairs:
        conflict = (pair.cell_id, pair.other) in in_conflict
        yield {"kind": "pair"} | _pair(pair, cells) | {"conflict": conflict}


def _conflicts(context: Context, same_bytes: Sequence[Conflict], captures: Sequence[Pair]) -> Iterator[Row]:
    for conflict in same_bytes:
        yield {
            "kind": "conflict",
            "cell_id": conflict.cell_id,
            "label": conflict.label,
            "label_source": conflict.label_source,
            "paths": [_said(conflict.cell_id, *said) for said in conflict.says],
            "duplicate_of": None,
        }
    ids = {cell_id for pair in captures for cell_id in (pair.cell_id, pair.other)}
    cells, says = context.store.cells(ids), context.store.duplicates.says(ids)
    for pair in captures:
        if pair.cell_id in cells:
            cell, files = cells[pair.cell_id], (pair.cell_id, pair.other)
            yield {
                "kind": "conflict",
                "cell_id": cell.cell_id,
                "label": cell.label,
                "label_source": str(cell.label_source),
                "paths": [_said(cell_id, *said) for cell_id in files for said in says.get(cell_id, ())],
            } | _pair(pair, cells)


def _pair(pair: Pair, cells: Mapping[str, Cell]) -> dict[str, Any]:
    return {
        "cell_id": pair.cell_id,
        "duplicate_of": pair.other,
        "verdict": "rejected" if pair.verdict is None else str(pair.verdict),
        "found": None if pair.found is None else str(pair.found),
        "score": pair.score,
        "found_at": _when(pair.found_at),
        "decision": None if pair.decision is None else str(pair.decision),
        "who": pair.who,
        "decided_at": _when(pair.decided_at),
        "cell": _cell(cells.get(pair.cell_id)),
        "other": _cell(cells.get(pair.other)),
    }


def _said(cell_id: str, path: str, label: str, source: str) -> dict[str, str]:
    return {"path": path, "label": label, "label_source": source, "cell_id": cell_id}


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {
        "label": cell.label,
        "label_source": str(cell.label_source),
        "slide": cell.slide,
        "analyser": cell.analyser,
        "captured_at": _when(cell.captured_at),
        "path": cell.path,
    }


def _when(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")
