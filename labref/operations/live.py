"""The cells that come in, for a page that stays open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from labref.asking import marks
from labref.asking.prediction import Because
from labref.operations import operation
from labref.operations.models import Answer, Text
from labref.operations.naming import class_names, slide_keys, told_apart
from labref.progress import Row
from labref.roles import Role
from labref.store import Cell
from labref.tasks.context import Context
from labref.times import utc
from labref.words import LabelSource, Outcome, Reason

__all__ = ["CellMarks", "LiveCell", "LiveMarks"]


class CellMarks(Answer):
    """What of a cell deserves a look, as it was when it was first looked at."""

    novelty: float | None = Field(
        description="Above 1 it is unlike the cells of the lab; null where there is no other."
    )
    novel: bool = Field(description="Whether nothing in the lab resembles it.")
    no_class: bool = Field(description="Whether no class of the lab resembles it.")
    because: Because | None = Field(
        description="Why people are not shown the class that the networks give; null where they are."
    )
    neighbours: str | None = Field(description="The most frequent class among its nearest hundred, weighted.")
    share: float | None = Field(description="The share of that class, 0 to 1.")
    disagrees: bool = Field(description="Whether most of its neighbours are called otherwise than the cell is now.")


class LiveMarks(Answer):
    """What of one cell deserves a look."""

    cell_id: str = Field(description="The cell.")
    marks: CellMarks


class LiveCell(Answer):
    """A cell that came in."""

    cell_id: str = Field(description="The cell.")
    number: int = Field(description="Its number in the order in which all came; larger for a later one.")
    slide: str | None = Field(description="The key of its slide, as `slide.list` gives it.")
    slide_name: str | None = Field(description="The slide's name; it can name a patient.")
    slide_folder: str | None = Field(
        description="The watched folder that the slide lies in, where several have its name; else null."
    )
    label: str = Field(description="The class that it carries.")
    label_source: LabelSource = Field(description="Who gave it.")
    confidence: float | None = Field(description="Probability of a predicted label; null for one that somebody gave.")
    stored_at: str = Field(description="When it was stored, ISO 8601, UTC.")
    captured_at: str | None = Field(description="When it was captured, ISO 8601, UTC, where that is known.")
    possible_duplicate: bool = Field(description="Whether it may repeat an earlier cell, and nobody has decided.")
    doubt: Reason | None = Field(
        description="What is wrong with its picture, in words, where it is no reference until somebody decides."
    )
    marks: CellMarks | None = Field(description="What deserves a look, where that is known; `live.marks` finds it.")


@operation("live.cells", LiveCell, role=Role.VIEW)
def cells(
    context: Context,
    *,
    after: Annotated[int, Field(ge=0, le=2**62, description="Only cells with a larger number.")] = 0,
    before: Annotated[int | None, Field(ge=1, le=2**62, description="Only cells with a smaller number.")] = None,
    limit: Annotated[int, Field(ge=1, le=200, description="At most so many, the newest.")] = 60,
) -> Iterator[Row]:
    """List the cells that came last, the last first."""
    store = context.store
    recent = store.recent(after=after, before=before, limit=limit)
    ids = [cell.cell_id for _, cell in recent]
    bundle = store.active_bundle()
    predicted = [cell.cell_id for _, cell in recent if cell.label_source is LabelSource.PREDICTED]
    said = {} if bundle is None else store.predicted(predicted, bundle=bundle)
    known = {} if bundle is None else marks.known(store, bundle, ids)
    slides = {cell.slide_id for _, cell in recent if cell.slide_id is not None}
    keys, folders = slide_keys(context, slides), told_apart(context, slides)
    doubts = store.qualities.doubts(ids)
    for number, cell in recent:
        yield {
            "cell_id": cell.cell_id,
            "number": number,
            "slide": None if cell.slide_id is None else keys[cell.slide_id],
            "slide_name": cell.slide,
            "slide_folder": None if cell.slide_id is None else folders[cell.slide_id],
            "label": cell.label,
            "label_source": str(cell.label_source),
            "confidence": said[cell.cell_id][1] if cell.cell_id in said else None,
            "stored_at": utc(cell.added_at, timespec="seconds"),
            "captured_at": None if cell.captured_at is None else utc(cell.captured_at, timespec="seconds"),
            "possible_duplicate": cell.duplicate_verdict is Outcome.POSSIBLE_DUPLICATE,
            "doubt": doubts.get(cell.cell_id),
            "marks": _marks(cell, known.get(cell.cell_id)),
        }


@operation("live.marks", LiveMarks, role=Role.VIEW)
def find_marks(
    context: Context,
    *,
    cells: Annotated[list[Text], Field(description="Ids of cells.", max_length=60)],
) -> Iterator[Row]:
    """Find what of these cells deserves a look: they are new to the lab, or their neighbours are called otherwise.

    Milliseconds a cell; what was found once is kept for a while. A cell that is gone, or has no latent, has no row.
    """
    store = context.store
    there = store.cells(dict.fromkeys(cells))
    bundle = context.embedder().bundle
    names = class_names(context, bundle)
    found = marks.found(store, bundle, list(there.values()), names)
    for cell_id in dict.fromkeys(cells):
        if cell_id in found:
            yield {"cell_id": cell_id, "marks": _marks(there[cell_id], found[cell_id])}


def _marks(cell: Cell, made: marks.Marks | None) -> Row | None:
    if made is None:
        return None
    return {
        "novelty": made.novelty,
        "novel": made.is_novel,
        "no_class": made.no_class,
        "because": made.because,
        "neighbours": made.label,
        "share": made.share,
        "disagrees": made.disagrees(cell.label),
    }
