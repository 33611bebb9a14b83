"""What waits for a person: queues of cells, one decision each.

`duplicates`: pairs that may be of one cell (`duplicates.list`). `suspects`: cells whose label disagrees with the labels
about them. `unidentified`: cells whose label is no opinion, as "Unidentified". `doubtful`: cells that nobody reviewed
and whose class is uncertain. `novel`: cells that nobody reviewed and that nothing in the lab resembles. `pictures`:
cells whose picture is doubted (`labref.cells.quality`) and that are no reference until somebody decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal
from weakref import WeakKeyDictionary

import numpy as np
from pydantic import Field

from labref.asking import references
from labref.asking.novelty import NEAREST, judge, yardstick
from labref.asking.prediction import Because, predict
from labref.bundles.bundle import Bundle
from labref.errors import LabrefError
from labref.operations import operation, perform
from labref.operations.label import carried_as_seen
from labref.operations.models import Answer, Seen, Text, Who
from labref.operations.naming import Classes, cell_named, class_names, person
from labref.progress import Row
from labref.roles import Role
from labref.store import Store
from labref.store.memory.books import int_to_id
from labref.tasks.context import Context
from labref.words import LabelSource, Reason

__all__ = ["DOUBTFUL_BELOW", "CellInQueue", "QueueNeighbour", "ReviewDecided", "ReviewQueues"]

DOUBTFUL_BELOW: Final = 0.7
"""A cell is doubtful where its most probable class is less probable than this."""
_MOST_SUSPECTS: Final = 500  # the most surprising ones are the queue; there is no end to mild disagreement
_STEP: Final = 200  # cells whose novelty is looked at, before it is asked whether any of them was novel
_LOOKED_AT: Final = 20_000  # cells that lie farthest from the map, among which the novel ones are looked for
_MOST_NOVEL: Final = 500
_REMEMBERED: Final = 100_000  # of cells, whether they are novel

Queue = Literal["suspects", "unidentified", "doubtful", "novel", "pictures"]


class ReviewQueues(Answer):
    """How much waits for review; null where that was not asked."""

    duplicates: int | None = Field(description="Pairs that may be of one cell.")
    suspects: int | None = Field(
        description=f"Cells whose label disagrees with those about them, at most {_MOST_SUSPECTS}; null without a map."
    )
    unidentified: int | None = Field(
        description=f"Cells whose label is no opinion, at most {_MOST_SUSPECTS}; null without a map."
    )
    doubtful: int | None = Field(description="Cells that nobody reviewed and whose class is uncertain.")
    novel: int | None = Field(
        description=f"Cells that nobody reviewed and that nothing resembles, at most {_MOST_NOVEL}. They are looked for in "
        f"steps of {_STEP}, the farthest from the map first, until a step has none."
    )
    pictures: int | None = Field(description="Cells whose picture is doubted: no references until somebody decides.")
    doubtful_below: float = Field(description="A class is uncertain where its probability is below this.")


class QueueNeighbour(Answer):
    """A cell that resembles one of a queue."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="Its class.")
    label_source: LabelSource = Field(description="Who gave the class.")
    distance: float = Field(description="Mean squared error between the latents.")


class CellInQueue(Answer):
    """A cell that waits for a decision."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it carries.")
    label_source: LabelSource = Field(description="Who gave the class.")
    predicted: str = Field(description="What the bundle calls it.")
    probability: float = Field(description="The probability of that.")
    because: Because | None = Field(description="Why people are not shown that class; null where they are.")
    neighbourhood: str | None = Field(
        description="The class of most cells about it; null but for suspects and unidentified cells."
    )
    share: float | None = Field(description="The share of that class; null where there is none.")
    novelty: float | None = Field(description="Distance of the nearest cells over the bundle's threshold.")
    is_novel: bool = Field(description="Whether nothing in the lab resembles it.")
    doubt: Reason | None = Field(description="What is wrong with its picture, in words; null where nothing is.")
    weights: dict[str, float] = Field(description="The classes of the nearest hundred, weighted by distance.")
    neighbours: list[QueueNeighbour] = Field(description="The eight nearest.")


class ReviewDecided(Answer):
    """What came of a decision."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="The class that it carries now.")
    label_source: LabelSource = Field(description="Who gave it.")
    previous: str = Field(description="The class that it carried before.")


_Queue = Annotated[Queue, Field(description="Which queue.")]
_Cell = Annotated[Text, Field(description="The cell: its id, or a beginning of it.")]
_Below = Annotated[
    float, Field(ge=0.0, le=1.0, description="A class is uncertain where its probability is below this.")
]


@operation("review.queues", ReviewQueues, single=True, role=Role.VIEW)
def queues(
    context: Context,
    *,
    queue: Annotated[
        Literal["duplicates", "suspects", "unidentified", "doubtful", "novel", "pictures"] | None,
        Field(description="Only this queue; the others are null."),
    ] = None,
    below: _Below = DOUBTFUL_BELOW,
) -> Iterator[Row]:
    """Say how much waits for review in each queue."""
    store, bundle = context.store, context.lab.bundle(context.store)
    left: Row = dict.fromkeys(("duplicates", "suspects", "unidentified", "doubtful", "novel", "pictures"))
    if queue in (None, "duplicates"):
        left["duplicates"] = len(store.duplicates.possible())
    if store.maps.active(bundle.digest) is not None:
        for name in ("suspects", "unidentified"):
            if queue in (None, name):
                left[name] = sum(1 for _ in _on_map(context, name))
    if queue in (None, "doubtful"):
        left["doubtful"] = store.queues.count_doubtful(bundle.digest, below)
    if queue in (None, "novel"):
        left["novel"] = len(_novel(context, bundle))
    if queue in (None, "pictures"):
        left["pictures"] = len(store.qualities.doubted())
    yield left | {"doubtful_below": below}


@operation("review.cells", CellInQueue, hurried=False, role=Role.VIEW)
def cells(
    context: Context,
    *,
    queue: _Queue,
    limit: Annotated[int, Field(ge=1, le=50, description="At most so many cells.")] = 10,
    leave_out: Annotated[
        list[Text] | None, Field(max_length=1000, description="Ids of cells that are not wanted.")
    ] = None,
    below: _Below = DOUBTFUL_BELOW,
) -> Iterator[Row]:
    """List the first cells of a queue, each with its neighbours.

    What is most surprising, clearest, least probable or least like all others comes first."""
    bundle, out = context.lab.bundle(context.store), set(leave_out or ())
    if queue in ("suspects", "unidentified"):
        rows = [row for row in _on_map(context, queue) if row["cell_id"] not in out][:limit]
        wanted = [str(row["cell_id"]) for row in rows]
        name = "neighbourhood" if queue == "suspects" else "suggested"
        about = {str(row["cell_id"]): (row[name], row["share"]) for row in rows}
    else:
        about = {}
        if queue == "novel":
            wanted = [cell for cell in _novel(context, bundle) if cell not in out][:limit]
        elif queue == "pictures":
            wanted = sorted(context.store.qualities.doubted() - out)[:limit]
        else:
            wanted = [cell.cell_id for cell in context.store.queues.doubtful(bundle.digest, below, limit, sorted(out))]
    yield from _shown(context, bundle, wanted, about)


@operation("review.decide", ReviewDecided, role=Role.REVIEW)
def decide(
    context: Context,
    *,
    cell: _Cell,
    queue: _Queue,
    label: Annotated[
        Text | None, Field(description="The class, by any of its names; null: the one that it carries is right.")
    ] = None,
    seen: Seen = None,
    who: Who = None,
) -> Iterator[Row]:
    """Give a cell of a queue its class, or say that the one that it carries is right. It leaves the queue."""
    who = person(who)
    store, cell_id = context.store, cell_named(context, cell)
    named = None if label is None else Classes(context).label(label, new=False)
    with store.quiet():  # nobody gives another class between the look and the change
        before, _ = carried_as_seen(context, cell_id, seen)
        given = before if named is None else named
        store.queues.decide(queue, cell_id, given, who)
        decided = _decided(store, cell_id, before)
    yield decided


@operation("review.undo", ReviewDecided, role=Role.REVIEW)
def undo(context: Context, *, cell: _Cell, queue: _Queue, who: Who = None) -> Iterator[Row]:
    """Take back a decision on a cell of a queue: it carries what it carried before, and waits again.

    A person takes back only what they decided themselves."""
    who = person(who)
    store, cell_id = context.store, cell_named(context, cell)
    with store.quiet():
        settled = store.queues.settled(queue).get(cell_id)
        if settled is None:
            raise LabrefError(f"nobody decided on cell {cell_id} in this queue; there is nothing to take back.")
        if who is not None and settled.who not in (None, who):
            raise LabrefError(f"{settled.who} decided on cell {cell_id} since then: that stays.")
        before, _ = carried_as_seen(context, cell_id, settled.label)
        store.queues.undo(queue, cell_id, settled, who, own=who is not None)
        decided = _decided(store, cell_id, before)
    yield decided


def _decided(store: Store, cell_id: str, before: str) -> Row:
    label, source = store.labelled([cell_id])[cell_id]
    return {"cell_id": cell_id, "label": label, "label_source": str(source), "previous": before}


def _on_map(context: Context, queue: Literal["suspects", "unidentified"]) -> Iterator[Row]:
    """The cells of a queue that the map gives, but those that somebody settled under the label that they carry."""
    settled = context.store.queues.settled(queue)
    for row in perform(context, f"map.{queue}", {"limit": _MOST_SUSPECTS + len(settled)}):
        found = settled.get(str(row["cell_id"]))
        if found is None or found.label != row["label"]:
            yield row


_NOVELTY: Final[WeakKeyDictionary[Store, dict[tuple[str, int, str], bool]]] = WeakKeyDictionary()
"""By store: whether a cell is novel, by bundle, size of the lab (to two digits) and cell."""


def _novel(context: Context, bundle: Bundle) -> list[str]:
    """Cells that nobody reviewed and that are novel, the farthest from the map first; without a map, the least probable
    first. They are looked for step by step, until none of a step is novel."""
    found: list[str] = []
    for candidates in _farthest(context.store, bundle):
        novel = _novel_of(context.store, bundle, candidates)
        found += novel
        if not novel or len(found) >= _MOST_NOVEL:
            break
    return found[:_MOST_NOVEL]


def _farthest(store: Store, bundle: Bundle) -> Iterator[list[str]]:
    """Cells that nobody reviewed and that wait, in steps: the farthest from the map first, or the least probable."""
    active = store.maps.active(bundle.digest)
    if active is None:
        ids = [one.cell_id for one in store.queues.doubtful(bundle.digest, 2.0, _LOOKED_AT, queue="novel")]
        yield from (ids[start : start + _STEP] for start in range(0, len(ids), _STEP))
        return
    placed = active.positions.every()
    most = min(_LOOKED_AT, len(placed))
    far = np.argpartition(-placed.errors, most - 1)[:most] if most else np.empty(0, np.int64)
    ids = [int_to_id(number) for number in placed.ids[far[np.argsort(-placed.errors[far], kind="stable")]].tolist()]
    labelled = store.labelled(ids)
    ids = [one for one in ids if one in labelled and labelled[one][1] is not LabelSource.REVIEWED]
    for start in range(0, len(ids), _STEP):
        step = ids[start : start + _STEP]
        waiting = {cell.cell_id for cell in store.queues.waiting(bundle.digest, "novel", step)}
        if waiting:
            yield [one for one in step if one in waiting]


def _novel_of(store: Store, bundle: Bundle, candidates: Sequence[str]) -> list[str]:
    """Those of these cells that are novel."""
    known = _NOVELTY.setdefault(store, {})
    size = sum(store.label_counts().values())
    about = round(size, 2 - len(str(size)))
    if len(known) > _REMEMBERED:
        known.clear()
    fresh = [one for one in candidates if (bundle.digest, about, one) not in known]
    for cell_id, latent in store.latents(fresh, bundle=bundle.digest).items():
        threshold = bundle.manifest.novelty
        near = store.nearest(
            latent, bundle=bundle.digest, k=max(threshold.k, NEAREST), exclude=store.duplicate_group(cell_id)
        )
        away = [one.distance for one in near]
        judged = judge(away, [""] * len(away), threshold, size, yardstick(store, bundle.digest, None), whole=False)
        known[bundle.digest, about, cell_id] = judged.is_novel
    return [one for one in candidates if known.get((bundle.digest, about, one), False)]


def _shown(context: Context, bundle: Bundle, wanted: Sequence[str], about: dict[str, tuple[Any, Any]]) -> Iterator[Row]:
    store = context.store
    latents, found = store.latents(wanted, bundle=bundle.digest), store.cells(wanted)
    names = class_names(context, bundle)
    predictions, qualities = store.queues.predictions(bundle.digest, wanted), store.qualities.of(wanted)
    for cell_id in wanted:
        cell = found.get(cell_id)
        if cell is None or cell_id not in latents:
            continue  # removed at this moment
        asked = references.find(store, bundle=bundle, latent=latents[cell_id], digest=cell.digest, stored=cell)
        predicted, probability = predictions[cell_id]
        prediction = predict(store, bundle, predictions[cell_id], asked, names, partial(store.optics.of, cell_id))
        neighbourhood, share = about.get(cell_id, (None, None))
        yield {
            "cell_id": cell_id,
            "label": cell.label,
            "label_source": str(cell.label_source),
            "predicted": predicted,
            "probability": probability,
            "because": prediction.because,
            "neighbourhood": neighbourhood,
            "share": share,
            "novelty": asked.novelty.score,
            "is_novel": asked.novelty.is_novel,
            "doubt": qualities[cell_id].reason if cell_id in qualities else None,
            "weights": asked.distribution.weights,
            "neighbours": [
                {
                    "cell_id": one.cell_id,
                    "label": one.label,
                    "label_source": one.label_source,
                    "distance": one.distance,
                }
                for one in asked.references
            ],
        }
