"""`labref duplicates`: cells that repeat others, what people decide of them, and cells that are said to be of different
classes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from labref.cells import sameness
from labref.cells.sameness import DEFAULTS, Thresholds
from labref.errors import BundleError, LabError, LabrefError
from labref.operations import operation
from labref.operations.models import Answer, Limit, Progress, Text, Who
from labref.operations.naming import NoCellError, id_of_cell, person, told_apart
from labref.progress import Row, progress
from labref.roles import Role
from labref.store import Cell, Pair
from labref.store.duckdb.duplicates import Conflict
from labref.tasks.comparing import catch_up
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running
from labref.times import utc
from labref.words import LabelSource, Outcome, Verdict

__all__ = [
    "JOB",
    "CellOfPair",
    "Compared",
    "ConflictOfCaptures",
    "ConflictOfFiles",
    "Decided",
    "DuplicatePair",
    "FileLabel",
    "Overlay",
    "compare_left",
    "due",
]

JOB: Final = "fingerprints"
_AFTER_FAILURE: Final = timedelta(minutes=10)


class CellOfPair(Answer):
    """One cell of a pair."""

    label: str = Field(description="Its class.")
    label_source: LabelSource = Field(description="Who gave the class.")
    slide: str | None = Field(description="The slide it came from; it can name a patient.")
    slide_folder: str | None = Field(
        description="The watched folder that its slide lies in, where several have the slide's name; else null."
    )
    analyser: str | None = Field(description="The analyser it came from.")
    captured_at: str | None = Field(description="When it was captured, ISO 8601, UTC.")
    path: str = Field(description="Its file in the export folder; it can name a patient.")


class _Paired(Answer):
    """What is known of a pair of cells."""

    cell_id: str = Field(description="The cell.")
    duplicate_of: str = Field(description="The earlier cell that it is linked with.")
    verdict: Literal["duplicate", "possible_duplicate", "neighbour", "rejected"] = Field(
        description="What holds now; `neighbour`: two cells in pictures of one field; `rejected`: a person said that they "
        "are two."
    )
    found: Literal["duplicate", "possible_duplicate", "neighbour", "different"] | None = Field(
        description="What labref itself found; null where it saw nothing alike."
    )
    score: float | None = Field(description="Correlation of the two pictures after registration, -1 to 1.")
    found_at: str | None = Field(description="When labref found it, ISO 8601, UTC.")
    decision: Literal["confirmed", "rejected", "undone"] | None = Field(
        description="The last that a person said of it."
    )
    who: str | None = Field(description="Who said so.")
    decided_at: str | None = Field(description="When that was, ISO 8601, UTC.")
    cell: CellOfPair | None = Field(description="The cell; null where it is no longer there.")
    other: CellOfPair | None = Field(description="The earlier cell; null where it is no longer there.")


class DuplicatePair(_Paired):
    """Two cells, of which the later repeats the earlier, may repeat it, or is its neighbour."""

    kind: Literal["pair"] = Field(description="pair")
    conflict: bool = Field(description="Whether the two carry different classes.")


class FileLabel(Answer):
    """What a file says of its cell."""

    path: str = Field(description="The file; it can name a patient.")
    label: str = Field(description="The class that it says.")
    label_source: LabelSource = Field(description="Who gave that class.")
    cell_id: str = Field(description="The cell that came from the file.")


class ConflictOfFiles(Answer):
    """A cell whose files, all with the same bytes, say different classes."""

    kind: Literal["conflict"] = Field(description="conflict")
    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it carries.")
    label_source: LabelSource = Field(description="Who gave that class.")
    paths: list[FileLabel] = Field(description="What its files say.")
    duplicate_of: None = Field(description="Always null.")


class ConflictOfCaptures(_Paired):
    """Two captures of one cell that carry different classes."""

    kind: Literal["conflict"] = Field(description="conflict")
    label: str = Field(description="The class that the later carries.")
    label_source: LabelSource = Field(description="Who gave that class.")
    paths: list[FileLabel] = Field(description="What the files of both say.")


class Decided(Answer):
    """A person's decision on a pair."""

    cell_id: str = Field(description="The cell.")
    duplicate_of: str = Field(description="The earlier cell.")
    decision: Literal["confirmed", "rejected", "undone"] = Field(description="What the person said.")
    who: str | None = Field(description="Who.")
    at: str = Field(description="When, ISO 8601, UTC.")


class Overlay(Answer):
    """How the picture of a cell lies on that of another; each is the piece around its cell, 256 pixels wide."""

    score: float | None = Field(description="Correlation of the two after registration; null: a picture is missing.")
    rows: float = Field(description="How far down the second is moved to lie on the first, pixels.")
    columns: float = Field(description="How far to the right it is moved, pixels.")
    turn: float = Field(description="How far it is turned about its middle, degrees, clockwise.")
    mirrored: bool = Field(description="Whether it is mirrored, left for right, before that.")


class Compared(Answer):
    """What comparing came to."""

    compared: int = Field(description="Cells that were compared with all others.")


_Cell = Annotated[Text, Field(description="The cell: its id, or a beginning of it.")]
_Undecided = Annotated[
    bool, Field(description="Only while the cell waits for a decision: where somebody has decided by now, that stays.")
]


@operation("duplicates.list", DuplicatePair, ConflictOfFiles, ConflictOfCaptures, hurried=False, role=Role.VIEW)
def list_(
    context: Context,
    *,
    verdict: Annotated[
        Literal["duplicate", "possible_duplicate", "rejected", "neighbour", "conflict"] | None,
        Field(
            description="Only pairs of which this holds; `neighbour` pairs are in no other list. `conflict`: only conflicts."
        ),
    ] = None,
    limit: Annotated[Limit | None, Field(description="How many pairs of each kind at most.")] = None,
) -> Iterator[Row]:
    """List pairs of cells that repeat each other, and cells that are said to be of different classes.

    Pairs that wait for a decision come first. Different classes are said by files with the same bytes, or by captures
    of one cell.
    """
    found = context.store.duplicates
    if verdict != "conflict":
        yield from _described(context, found.pairs(verdict=verdict, limit=limit))
    if verdict in (None, "conflict"):
        yield from _conflicts(context, found.conflicts(limit), found.conflicting_pairs(limit))


@operation("duplicates.confirm", DuplicatePair, role=Role.REVIEW)
def confirm(
    context: Context,
    *,
    cell: _Cell,
    who: Who = None,
    of: Annotated[
        Text | None, Field(description="The cell that it repeats; by default the one it is linked with.")
    ] = None,
    undecided: _Undecided = False,
) -> Iterator[Row]:
    """Say that a cell is the same cell as the one it is linked with, or as another."""
    who, store = person(who), context.store
    cell, of = id_of_cell(store, cell), of and id_of_cell(store, of)
    with store.quiet():  # nobody decides between the look and the decision
        if undecided:
            _refuse_decided(context, cell)
        pair = store.duplicates.confirm(cell, who, of)
    yield from _described(context, [pair])


@operation("duplicates.reject", DuplicatePair, role=Role.REVIEW)
def reject(context: Context, *, cell: _Cell, who: Who = None, undecided: _Undecided = False) -> Iterator[Row]:
    """Say that a cell is another cell than the one it is linked with. They are never linked again."""
    who, store = person(who), context.store
    cell = id_of_cell(store, cell)
    with store.quiet():
        if undecided:
            _refuse_decided(context, cell)
        pair = store.duplicates.reject(cell, who)
    yield from _described(context, [pair])


@operation("duplicates.undo", DuplicatePair, role=Role.REVIEW)
def undo(
    context: Context,
    *,
    cell: _Cell,
    of: Annotated[Text | None, Field(description="Only what was decided of it and this cell.")] = None,
    own: Annotated[bool, Field(description="Only what `who` decided: another person's decision stays.")] = False,
    who: Who = None,
) -> Iterator[Row]:
    """Take back the last decision on a cell. What labref found itself holds again."""
    store = context.store
    cell, of = id_of_cell(store, cell), of and id_of_cell(store, of)
    yield from _described(context, [store.duplicates.undo(cell, person(who), of, own=own)])


@operation("duplicates.overlay", Overlay, single=True, role=Role.VIEW)
def overlay(
    context: Context, *, cell: _Cell, other: Annotated[Text, Field(description="The cell that it is laid on.")]
) -> Iterator[Row]:
    """Say how the picture of a cell has to be moved to lie on that of another. Where the two are not alike, cell lies
    on cell."""
    store = context.store
    ids = [id_of_cell(store, other), id_of_cell(store, cell)]
    cells = store.cells(ids)
    for cell_id in ids:
        if cell_id not in cells:
            raise NoCellError(f"no cell {cell_id!r} in this lab; `labref duplicates list` lists the pairs.")
    views = []
    for cell_id in ids:
        with contextlib.suppress(LabrefError):  # the kept bytes are missing or damaged
            views.append(context.lab.decoder.view(context.lab.read_image(cells[cell_id].digest)))
    if len(views) < 2:
        yield {"score": None, "rows": 0.0, "columns": 0.0, "turn": 0.0, "mirrored": False}
        return
    result = sameness.compared(views[0], views[1], _thresholds(context))
    found, alike = result.found, result.verdict is not Verdict.DIFFERENT
    rows, columns, turn = (*found.shift, found.turn - 90.0 * result.quarters) if alike else (0.0, 0.0, 0.0)
    yield {"score": found.agreement, "rows": rows, "columns": columns, "turn": turn, "mirrored": result.mirrored}


@operation("duplicates.history", Decided, role=Role.VIEW)
def history(context: Context, *, cell: _Cell) -> Iterator[Row]:
    """List what people decided of a cell, oldest first."""
    cell = id_of_cell(context.store, cell)
    decisions = context.store.duplicates.history(cell)
    if not decisions and context.store.cell(cell) is None:
        raise NoCellError(f"no cell {cell!r} in this lab; `labref ledger` lists cells and their files.")
    for cell_id, other, decision, who, at in decisions:
        yield {
            "cell_id": cell_id,
            "duplicate_of": other,
            "decision": str(decision),
            "who": who,
            "at": utc(at, timespec="seconds"),
        }


@operation("duplicates.find", Progress, Compared)
def find(context: Context) -> Iterator[Row]:
    """Compare the cells that have not been compared yet: those of a lab that an earlier labref filled."""
    waiting = context.store.duplicates.count_without_fingerprint()
    yield from compare_left(context)
    yield {"compared": waiting - context.store.duplicates.count_without_fingerprint()}


def compare_left(context: Context) -> Iterator[Row]:
    """Compare the cells that have not been compared yet, with progress."""
    if context.store.duplicates.count_without_fingerprint():
        for step in catch_up(context.lab, context.store, _thresholds(context)):
            yield progress(*step)


def due(context: Context) -> Job | None:
    """The agent's job where cells have no fingerprint of the present kind; else None. Takes milliseconds."""
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


def _refuse_decided(context: Context, cell: str) -> None:
    """Raise `LabrefError` where nobody is asked any more whether a cell repeats the one that it is linked with."""
    found = context.store.cell(cell)
    if found is None or found.duplicate_verdict is not Outcome.POSSIBLE_DUPLICATE:
        said = [(decision, who) for one, _, decision, who, _ in context.store.duplicates.history(cell) if one == cell]
        by = f" by {said[-1][1]} ({said[-1][0]})" if said and said[-1][1] else ""
        raise LabrefError(f"cell {cell} was decided on{by} by now: that stays. Look at it again.")


def _thresholds(context: Context) -> Thresholds:
    try:
        return Thresholds.of(context.lab.bundle(context.store).manifest.duplicates)
    except (LabError, BundleError):
        return DEFAULTS  # no networks are needed: cells are compared by their pictures


def _described(context: Context, pairs: Sequence[Pair]) -> Iterator[Row]:
    cells = context.store.cells({cell_id for pair in pairs for cell_id in (pair.cell_id, pair.other)})
    in_conflict = (
        {(pair.cell_id, pair.other) for pair in context.store.duplicates.conflicting_pairs()} if pairs else set()
    )
    for pair in pairs:
        conflict = (pair.cell_id, pair.other) in in_conflict
        yield {"kind": "pair"} | _pair(context, pair, cells) | {"conflict": conflict}


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
            } | _pair(context, pair, cells)


def _pair(context: Context, pair: Pair, cells: Mapping[str, Cell]) -> dict[str, Any]:
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
        "cell": _cell(context, cells.get(pair.cell_id)),
        "other": _cell(context, cells.get(pair.other)),
    }


def _said(cell_id: str, path: str, label: str, source: str) -> dict[str, str]:
    return {"path": path, "label": label, "label_source": source, "cell_id": cell_id}


def _cell(context: Context, cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    slide = cell.slide_id
    return {
        "label": cell.label,
        "label_source": str(cell.label_source),
        "slide": cell.slide,
        "slide_folder": None if slide is None else told_apart(context, [slide])[slide],
        "analyser": cell.analyser,
        "captured_at": _when(cell.captured_at),
        "path": cell.path,
    }


def _when(moment: datetime | None) -> str | None:
    return None if moment is None else utc(moment, timespec="seconds")
