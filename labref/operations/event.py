"""For other systems, such as a laboratory's: links to cells and slides, and label changes both ways."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import Field

from labref.errors import LabrefError
from labref.operations import operation
from labref.operations.models import Answer, Text, Who
from labref.operations.naming import Classes, cell_named, person, slide_key
from labref.operations.slide import slide_named
from labref.progress import Row
from labref.roles import Role
from labref.store.duckdb.reviews import Review
from labref.store.memory.books import int_to_id
from labref.tasks.context import Context
from labref.times import utc
from labref.words import LabelSource

__all__ = ["CellLink", "EventGiven", "LabelEventRow", "SlideLink"]

_MOST_KEY: Final = 200  # characters


class _Versions(Answer):
    """By which model and map the lab answers."""

    bundle: str | None = Field(description="Digest of the active bundle.")
    map: int | None = Field(description="Number of the map's version in use; null while there is none.")


class SlideLink(_Versions):
    """Where a slide is shown."""

    slide: str = Field(description="Its key.")
    address: str = Field(description="Path of its page at the agent. It names no patient, and stays the same.")
    cells: int = Field(description="How many cells it has.")


class CellLink(_Versions):
    """Where a cell is shown."""

    cell_id: str = Field(description="The cell.")
    address: str = Field(description="Path of its page at the agent. It names no patient, and stays the same.")
    label: str = Field(description="The class that it carries.")
    label_source: LabelSource = Field(description="Who gave it.")


class LabelEventRow(_Versions):
    """A cell got another label, or the same one from another source."""

    number: int = Field(description="Its number; later events have larger ones.")
    cell_id: str = Field(description="The cell.")
    at: str = Field(description="When it was written down, ISO 8601, UTC.")
    who: str | None = Field(description="The person, where one gave it.")
    label: str = Field(description="The class from then on.")
    label_source: LabelSource = Field(description="Who gave it.")
    previous: str = Field(description="The class before.")
    previous_source: LabelSource = Field(description="Who had given that.")


class EventGiven(_Versions):
    """A label that another system gave."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it was given.")
    outcome: str = Field(
        description="`changed`; `same`: the cell was reviewed as this already; `older`: it was given its label later."
    )
    repeated: bool = Field(description="Whether this key came before, and nothing was done now.")


_Accession = Annotated[
    Text, Field(description="The slide: the accession number that its folder has, or its key.", max_length=4096)
]


@operation("event.links", SlideLink, CellLink, role=Role.VIEW, hurried=False)
def links(
    context: Context,
    *,
    slide: _Accession,
    cell: Annotated[
        Text | None,
        Field(description="Only this cell of it: its id, its file's name or path.", max_length=4096),
    ] = None,
) -> Iterator[Row]:
    """Give the addresses of a slide's page and of those of its cells, for another system to open.

    Where slides in several watched folders have the name, it is an error that gives the key of each."""
    store, found = context.store, slide_named(context, slide)
    versions = _versions(context)
    ids = [int_to_id(number) for number in store.slides.book.cells(found)]
    labelled = store.labelled(ids)
    if cell is not None:
        ids = [_cell_of_slide(context, cell, ids)]
    key = slide_key(context, found)
    yield {"slide": key, "address": f"/slide/{key}", "cells": len(labelled), **versions}
    for cell_id in ids:
        if cell_id in labelled:
            label, source = labelled[cell_id]
            yield {
                "cell_id": cell_id,
                "address": f"/cell/{cell_id}",
                "label": label,
                "label_source": str(source),
                **versions,
            }


@operation("event.labels", LabelEventRow, role=Role.VIEW, hurried=False)
def labels(
    context: Context,
    *,
    after: Annotated[
        int, Field(ge=0, le=2**62, description="The number of the last event that is known; 0 for all.")
    ] = 0,
    limit: Annotated[int, Field(ge=1, le=10_000, description="At most so many.")] = 1000,
) -> Iterator[Row]:
    """List the label changes after an event, oldest first. Ask again from the last one's number."""
    versions = _versions(context)
    for event in context.store.events.labels(after, limit):
        yield {
            "number": event.number,
            "cell_id": event.cell_id,
            "at": utc(event.at),
            "who": event.who,
            "label": event.label,
            "label_source": str(event.label_source),
            "previous": event.previous,
            "previous_source": str(event.previous_source),
            **versions,
        }


@operation("event.give", EventGiven, role=Role.REVIEW)
def give(
    context: Context,
    *,
    key: Annotated[
        Text,
        Field(
            description="A key of the sender's own for this event. The same key again changes nothing.",
            min_length=1,
            max_length=_MOST_KEY,
        ),
    ],
    cell: Annotated[Text, Field(description="The cell: its id, or the path of one of its files.", max_length=4096)],
    label: Annotated[Text, Field(description="The class, by any of its names.")],
    at: Annotated[
        datetime | None, Field(description="When the person gave it, ISO 8601 with a time zone; null: now.")
    ] = None,
    who: Who = None,
) -> Iterator[Row]:
    """Give a cell a person's label that was given in another system, once for each key."""
    if at is not None and at.tzinfo is None:
        raise LabrefError("at has no time zone; write it as 2026-03-31T14:05:00+02:00.")
    if at is not None and at > datetime.now(UTC):
        raise LabrefError("at lies in the future; look at the clocks of both computers.")
    asked = hashlib.sha256(
        json.dumps([cell, label, None if at is None else utc(at), who], ensure_ascii=True).encode()
    ).hexdigest()
    events = context.store.events
    known, repeated = events.answered(key), True
    if known is None:  # else the cell may be gone by now
        review = Review(cell_named(context, cell), Classes(context).label(label, new=False), person(who), at)
        known, repeated = events.give(key, asked, review)
    if known[0] != asked:
        raise LabrefError(
            "this key came before with another event; give each event a key of its own. Nothing was done."
        )
    yield {**known[1], "repeated": repeated, **_versions(context)}


def _cell_of_slide(context: Context, cell: str, ids: list[str]) -> str:
    """The id of the cell of a slide that is called by its id, its path, or its file's name."""
    try:
        found = cell_named(context, cell)
    except LabrefError:
        found = ""
    if found in ids:
        return found
    wanted = cell.replace("\\", "/").rsplit("/", 1)[-1].casefold()
    named = [
        one.cell_id
        for one in context.store.cells(ids).values()
        if wanted in ((name := one.path.replace("\\", "/").rsplit("/", 1)[-1].casefold()), name.rpartition(".")[0])
    ]
    if len(named) != 1:
        how_many = "none" if not named else "several"
        raise LabrefError(f"of the slide's {len(ids)} cells, {how_many} is called so; give the cell's id or its file.")
    return named[0]


def _versions(context: Context) -> Row:
    bundle = context.store.active_bundle()
    active = None if bundle is None else context.store.maps.active(bundle)
    return {"bundle": bundle, "map": None if active is None else active.version.number}
