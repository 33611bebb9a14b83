"""The slides of a lab: which there are, what is on one, who approved it.

A slide is named by its key (`slide_key`), since its name can identify a patient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Final, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from labref.asking import marks
from labref.asking.differential import Kind, differential, kind_of
from labref.asking.prediction import Because, at_a_glance
from labref.errors import LabrefError
from labref.operations import operation
from labref.operations.models import Answer, Text, Who
from labref.operations.naming import (
    NoSuchNameError,
    SeveralSlidesError,
    class_names,
    earlier_slide_keys,
    person,
    slide_keys,
    told_apart,
)
from labref.progress import Row
from labref.roles import Role
from labref.store import Cell, Store
from labref.store.duckdb.slides import Approval
from labref.store.memory import distances
from labref.store.memory.books import int_to_id
from labref.tasks.context import Context
from labref.times import utc
from labref.words import LabelSource, Outcome, Reason, SlideId

__all__ = ["SlideApproval", "SlideCell", "SlideClass", "SlideKin", "SlideListed", "SlideShown", "SlidesFound"]

_MOST_ALIKE: Final = 3000
"""Cells of a slide whose distances are reckoned, at most: a smear has hundreds."""
_FEWEST: Final = 5  # cells of a class among which one can be odd
_ODD: Final = 3.0  # robust standard deviations above the median
_NORMAL: Final = 1.4826  # of the median absolute deviation to a standard deviation
_KEY: Final = 20  # characters of a key
_SHOWN: Final = 5  # slides of one name that are told of


class SlideApproval(Answer):
    """Somebody approved a slide."""

    who: str | None = Field(description="Who.")
    at: str = Field(description="When, ISO 8601, UTC.")
    cells: int = Field(description="How many cells the slide had then.")
    standing: Literal["approved", "cells came", "cells left", "labels changed"] = Field(
        description="`approved`: it holds; else why it ended by itself."
    )


class SlidesFound(Answer):
    """How many slides there are."""

    slides: int = Field(description="How many were found, of which the rows are a part.")


class SlideListed(Answer):
    """A slide."""

    slide: str = Field(description="Its key, 20 characters: it stands for the slide in addresses.")
    name: str = Field(description="Its name; it can name a patient.")
    folder: str | None = Field(
        description="The watched folder that it lies in, where several slides have its name; else null."
    )
    cells: int = Field(description="How many of its cells are stored.")
    awaiting: int = Field(description="How many of them no person has reviewed.")
    latest_at: str = Field(description="When its last cell was stored, ISO 8601, UTC.")
    approval: SlideApproval | None = Field(description="Who approved it; null where nobody did.")


class SlideShown(SlideListed):
    """A slide, and its differential."""

    leukocytes: int = Field(description="Cells that the differential counts.")
    erythroblasts: float | None = Field(description="Erythroblasts for a hundred leukocytes; null without leukocytes.")
    seen: int = Field(
        description="Number of the lab's last change: `slide.approve` takes it, to tell whether others changed labels since."
    )
    order: Literal["similarity", "arrival"] = Field(
        description="How the cells of a class are ordered: those least like their class first, or the last that came first."
    )


class SlideClass(Answer):
    """A class of cells on a slide."""

    label: str = Field(description="The class.")
    cells: int = Field(description="How many cells of the slide carry it.")
    awaiting: int = Field(description="How many of them no person has reviewed.")
    kind: Kind = Field(
        description="How it counts: `leukocyte`, in the differential; `erythroblast` and `other`, apart."
    )
    share: float | None = Field(description="Its share of the leukocytes, 0 to 1; null where it is none of them.")


class SlideCell(Answer):
    """A cell of a slide."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it carries.")
    label_source: LabelSource = Field(description="Who gave it.")
    confidence: float | None = Field(description="Probability of a predicted label; null for one that somebody gave.")
    because: Because | None = Field(
        description="Why the networks' class is not shown to people as a class, where the cell carries it; null where it is."
    )
    stored_at: str = Field(description="When it was stored, ISO 8601, UTC.")
    captured_at: str | None = Field(description="When it was captured, ISO 8601, UTC, where that is known.")
    distance: float | None = Field(
        description="From the middle (median) of its class on this slide, mean squared error; null where it is not known."
    )
    odd: bool = Field(description="Whether it is far less like its class than the others of the slide.")
    possible_duplicate: bool = Field(description="Whether it may repeat an earlier cell, and nobody has decided.")
    doubt: Reason | None = Field(
        description="What is wrong with its picture, in words, where it is no reference until somebody decides."
    )


class SlideKin(Answer):
    """Another slide of the same patient, where the folders say so."""

    slide: str = Field(description="Its key.")
    name: str = Field(description="Its name; it can name a patient.")
    folder: str | None = Field(
        description="The watched folder that it lies in, where several slides have its name; else null."
    )
    cells: int = Field(description="How many of its cells are stored.")
    latest_at: str = Field(description="When its last cell was stored, ISO 8601, UTC.")


_Slide = Annotated[
    Text, Field(description="The slide: its key, as `slide.list` gives it, or its name.", max_length=4096)
]
_Limit = Annotated[int, Field(ge=1, le=1000, description="At most so many.")]
_Offset = Annotated[int, Field(ge=0, le=1_000_000_000, description="So many are passed over.")]


@operation("slide.list", SlidesFound, SlideListed, role=Role.VIEW)
def list_(
    context: Context,
    *,
    search: Annotated[Text, Field(description="Only slides whose name has this in it.", max_length=200)] = "",
    slide: Annotated[_Slide | None, Field(description="Only the slides that have this key or name.")] = None,
    limit: _Limit = 50,
    offset: _Offset = 0,
) -> Iterator[Row]:
    """List the slides; first the one whose last cell came last."""
    wanted = search.strip().casefold()
    among = [one.id for one in context.store.slides.book.newest()] if slide is None else _slides_named(context, slide)
    found = [one for one in among if wanted in one.name.casefold()]
    yield {"slides": len(found)}
    yield from _listed(context, found[offset : offset + limit])


@operation("slide.show", SlideShown, SlideClass, SlideCell, SlideKin, role=Role.VIEW, hurried=False)
def show(
    context: Context,
    *,
    slide: _Slide,
    order: Annotated[
        Literal["similarity", "arrival"],
        Field(description="Of the cells of a class: those least like it first, or the last that came first."),
    ] = "similarity",
    limit: Annotated[int, Field(ge=0, le=3000, description="At most so many cells.")] = 1000,
    offset: _Offset = 0,
) -> Iterator[Row]:
    """Show a slide: its classes with counts and differential, and its cells, class by class.

    Classes stand in the order of the differential: leukocytes by their number, then erythroblasts, then what is not
    counted. A slide of more than 3000 cells is not ordered by similarity.
    """
    store, wanted = context.store, slide_named(context, slide)
    seen = store.last_number()
    ids = [int_to_id(number) for number in store.slides.book.cells(wanted)]
    labelled = store.labelled(ids)
    ids = [cell_id for cell_id in ids if cell_id in labelled]
    counts = Counter(label for label, _ in labelled.values())
    awaiting = Counter(label for label, source in labelled.values() if source is not LabelSource.REVIEWED)
    made = differential(counts)
    by_similarity = order == "similarity" and len(ids) <= _MOST_ALIKE
    (listed,) = _listed(context, [wanted])
    yield listed | {
        "leukocytes": made.leukocytes,
        "erythroblasts": made.erythroblasts,
        "seen": seen,
        "order": "similarity" if by_similarity else "arrival",
    }
    kinds = list(Kind)
    classes = sorted(counts, key=lambda label: (kinds.index(kind_of(label)), -counts[label], label))
    for label in classes:
        yield {
            "label": label,
            "cells": counts[label],
            "awaiting": awaiting[label],
            "kind": str(kind_of(label)),
            "share": made.shares.get(label),
        }
    ids.reverse()  # the last that came first
    away: Mapping[str, tuple[float, bool]] = {}
    bundle = store.active_bundle()
    if by_similarity and bundle is not None:
        latents = store.latents(ids, bundle=bundle)
        away = _away(latents, {cell_id: label for cell_id, (label, _) in labelled.items()})
    places = {label: place for place, label in enumerate(classes)}
    ids.sort(key=lambda cell_id: (places[labelled[cell_id][0]], -away.get(cell_id, (0.0, False))[0]))
    yield from _cells(context, wanted, ids[offset : offset + limit], away)
    yield from kin_of(context, wanted)


@operation("slide.approve", SlideListed, role=Role.REVIEW)
def approve(
    context: Context,
    *,
    slide: _Slide,
    cells: Annotated[
        int | None,
        Field(ge=0, le=2**62, description="How many cells the approver saw: with others meanwhile, it is refused."),
    ] = None,
    seen: Annotated[
        int | None,
        Field(
            ge=0,
            le=2**62,
            description="What `slide.show` gave as `seen` when the approver looked: where others changed labels since, it is "
            "refused.",
        ),
    ] = None,
    who: Who = None,
) -> Iterator[Row]:
    """Approve a slide as it is now.

    The approval ends by itself when a cell comes to the slide or moves away from it, or one of its cells gets another
    label.
    """
    who = person(who)
    store, approved = context.store, slide_named(context, slide)
    with store.quiet():
        there = len(store.slides.book.cells(approved))
        if cells is not None and cells != there:
            raise LabrefError(f"the slide has {there} cells by now, not {cells}: look at it again, then approve it.")
        if seen is not None and (changed := store.slides.changed_by_others(approved, seen, who)):
            raise LabrefError(
                f"others changed the class of {changed} cell{'s' if changed > 1 else ''} of the slide meanwhile: look at it "
                "again, then approve it."
            )
        store.slides.approve(approved, who)
    yield from _listed(context, [approved])


@operation("slide.unapprove", SlideListed, role=Role.REVIEW)
def unapprove(context: Context, *, slide: _Slide, who: Who = None) -> Iterator[Row]:
    """Take the approval of a slide back."""
    who = person(who)
    approved = slide_named(context, slide)
    if approved not in context.store.slides.approvals([approved]):
        raise LabrefError("nobody has approved this slide; there is nothing to take back.")
    context.store.slides.unapprove(approved, who)
    yield from _listed(context, [approved])


# slides by their keys


class _Keys:
    """The slides of one store by their keys, and the names of slides by the keys of before (`earlier_slide_keys`)."""

    def __init__(self) -> None:
        self.slides: dict[str, SlideId] = {}
        self.names: dict[str, str] = {}


_KEYS: WeakKeyDictionary[Store, _Keys] = WeakKeyDictionary()


def slide_named(context: Context, slide: str) -> SlideId:
    """The slide with this key, or this name. Raises `NoSuchNameError` where there is none, and `SeveralSlidesError`
    where several have the name."""
    named = _slides_named(context, slide)
    if not named:
        raise NoSuchNameError("no slide of this lab has this key or name; perhaps its cells were removed.")
    if len(named) > 1:
        keys = slide_keys(context, named)
        told = "; ".join(f"{keys[one]} in {one.folder or 'a folder that is not known'}" for one in named[:_SHOWN])
        more = f"; and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        raise SeveralSlidesError(
            f"{len(named)} slides have this name: {told}{more}. Give the key of the one that is meant."
        )
    return named[0]


def _slides_named(context: Context, slide: str) -> list[SlideId]:
    """The slides with this key, or this name; the one whose last cell came last first."""
    book, known = context.store.slides.book, _KEYS.setdefault(context.store, _Keys())
    if len(slide) == _KEY and slide not in known.slides:
        there = {found.id for found in book.newest()}
        fresh = there - set(known.slides.values())
        known.slides.update((key, one) for one, key in slide_keys(context, fresh).items())
        if slide not in known.slides and slide not in known.names:
            names = {one.name for one in there} - set(known.names.values())
            known.names.update((key, name) for name, key in earlier_slide_keys(context, names).items())
    if (found := known.slides.get(slide)) is not None and book.cells(found):
        return [found]
    return book.named(known.names.get(slide, slide))


def _listed(context: Context, slides: Sequence[SlideId]) -> Iterator[Row]:
    store = context.store
    keys, folders = slide_keys(context, slides), told_apart(context, slides)
    approvals = store.slides.approvals(slides)
    of_each = {slide: store.slides.book.ids(slide) for slide in slides}
    last = store.cells([int_to_id(int(cells[-1])) for cells in of_each.values() if len(cells)])
    awaiting = _awaiting(store, list(of_each.values()))
    for (slide, cells), waiting in zip(of_each.items(), awaiting, strict=True):
        if not len(cells) or (latest := last.get(int_to_id(int(cells[-1])))) is None:
            continue  # removed at this moment
        yield {
            "slide": keys[slide],
            "name": slide.name,
            "folder": folders[slide],
            "cells": len(cells),
            "awaiting": waiting,
            "latest_at": utc(latest.added_at, timespec="seconds"),
            "approval": _approval(approvals.get(slide)),
        }


def _awaiting(store: Store, slides: Sequence[NDArray[np.uint64]]) -> list[int]:
    """How many cells of each slide no person has reviewed. slides : uint64[n], the ids of its cells."""
    if not slides:
        return []
    ids, of = np.concatenate(slides), np.repeat(np.arange(len(slides)), [len(cells) for cells in slides])
    order = np.argsort(ids)  # in order they are found much faster
    labels = store.label_book
    codes = labels.codes_of(ids[order])
    # the last entry is for code -1, a cell that is gone
    awaits = np.array([*(source is not LabelSource.REVIEWED for _, source in labels.values), False])
    return [int(count) for count in np.bincount(of[order][awaits[codes]], minlength=len(slides))]


def _approval(given: Approval | None) -> Row | None:
    if given is None:
        return None
    return {
        "who": given.who,
        "at": utc(given.at, timespec="seconds"),
        "cells": given.cells,
        "standing": given.standing,
    }


def _cells(
    context: Context, slide: SlideId, ids: Sequence[str], away: Mapping[str, tuple[float, bool]]
) -> Iterator[Row]:
    store = context.store
    found, labelled = store.cells_of_slide(slide, ids), store.labelled(ids)
    predicted = [cell_id for cell_id in ids if cell_id in labelled and labelled[cell_id][1] is LabelSource.PREDICTED]
    bundle = store.active_bundle()
    said = {} if bundle is None else store.predicted(predicted, bundle=bundle)
    withheld = _withheld(context, [found[cell_id] for cell_id in predicted if cell_id in found])
    doubts = store.qualities.doubts(ids)
    for cell_id in ids:
        cell = found.get(cell_id)
        if cell is None:
            continue
        distance, odd = away.get(cell_id, (None, False))
        yield {
            "cell_id": cell_id,
            "label": cell.label,
            "label_source": str(cell.label_source),
            "confidence": said[cell_id][1] if cell_id in said else None,
            "because": withheld.get(cell_id),
            "stored_at": utc(cell.added_at, timespec="seconds"),
            "captured_at": _captured(cell),
            "distance": distance,
            "odd": odd,
            "possible_duplicate": cell.duplicate_verdict is Outcome.POSSIBLE_DUPLICATE,
            "doubt": doubts.get(cell.cell_id),
        }


def _withheld(context: Context, cells: Sequence[Cell]) -> dict[str, Because | None]:
    """Why the predicted classes of these cells are withheld, by id: as it was found on the live page, else at a
    glance."""
    store = context.store
    if not cells or store.active_bundle() is None:
        return {}
    bundle = context.lab.bundle(store) if context.jobs is None else context.embedder().bundle
    names = class_names(context, bundle)
    seen = marks.known(store, bundle.digest, [cell.cell_id for cell in cells])
    glance = cache(lambda label, analyser: at_a_glance(store, bundle, label, analyser, names))
    return {
        cell.cell_id: seen[cell.cell_id].because if cell.cell_id in seen else glance(cell.label, cell.analyser)
        for cell in cells
    }


def _captured(cell: Cell) -> str | None:
    return None if cell.captured_at is None else utc(cell.captured_at, timespec="seconds")


def kin_of(context: Context, slide: SlideId) -> Iterator[Row]:
    """Rows of `SlideKin`: other slides of the same patient, where the folders say so, at most twenty."""
    others = context.store.slides.book.kin(slide)
    for row in _listed(context, others[:20]):
        yield {part: row[part] for part in ("slide", "name", "folder", "cells", "latest_at")}


def _away(latents: Mapping[str, NDArray[np.float32]], labels: Mapping[str, str]) -> dict[str, tuple[float, bool]]:
    """Of each cell the distance from the middle of its class, and whether it is odd: more than three robust standard
    deviations (1.4826 times the median absolute deviation) farther than the median of its class.

    latents : float32[L] of each cell.  labels : the class of each.
    """
    classes: dict[str, list[str]] = {}
    for cell_id in latents:
        classes.setdefault(labels[cell_id], []).append(cell_id)
    found: dict[str, tuple[float, bool]] = {}
    for cells in classes.values():
        of_class = np.stack([latents[cell_id] for cell_id in cells])
        away = distances.exact(of_class, np.median(of_class, axis=0).astype(np.float32))
        spread = _NORMAL * np.median(np.abs(away - np.median(away)))
        odd = (away > np.median(away) + _ODD * spread) & (len(cells) >= _FEWEST)
        found |= {
            cell_id: (float(distance), bool(is_odd)) for cell_id, distance, is_odd in zip(cells, away, odd, strict=True)
        }
    return found
