"""Blinded readings: people classify cells, with and without references, or say which of two cells is more alike.

A reading is drawn once, when it is started: which cells, and which cells are shown beside each. Every reader sees every
cell in every arm, in an order of their own; nobody sees a cell again before all others have been shown. What a reader
gets names no cell, slide or file, and not what anybody called the cell: pictures are asked for by their place in the
reading. (Palmqvist Sjövall & Odestål 2020: tables 10 and 11, and SVOMEN in section 4.7.)
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field

from labref.asking import agreement, references
from labref.bundles.bundle import Bundle
from labref.errors import LabrefError
from labref.operations import operation
from labref.operations.models import Answer, Progress, Text, Who
from labref.operations.naming import Classes, NoSuchNameError
from labref.operations.naming import person as name_of
from labref.printing import unprintable
from labref.progress import Row, progress
from labref.roles import Role
from labref.store import Store
from labref.store.duckdb.readings import Drawn, Reading, ReadingAnswer, ReadingTask, ShownBeside
from labref.store.memory.books import id_to_int
from labref.tasks.context import Context
from labref.times import utc
from labref.words import LabelSource

__all__ = [
    "ReadingAccuracy",
    "ReadingAgreement",
    "ReadingAnswered",
    "ReadingCell",
    "ReadingDifference",
    "ReadingEstimate",
    "ReadingListed",
    "ReadingNext",
    "ReadingPart",
    "ReadingTriplets",
]

Arm = Literal["none", "latent", "map"]
Kind = Literal["classes", "triplets"]
TRIPLET: Final = "triplet"
"""The only arm of a reading of triplets."""
_DRAWS: Final = ("close-close", "close-class", "close-random")
_EIGHT: Final = 8
_MOST_CELLS: Final = 5000
_MOST_SECONDS: Final = 3600.0


class ReadingListed(Answer):
    """A reading, and how far whoever asks is in it."""

    reading: int = Field(description="Its number.")
    title: str = Field(description="What it is called.")
    kind: Kind = Field(description="`classes`: cells are classified; `triplets`: which of two is more alike.")
    arms: list[str] = Field(description="How the cells are shown: without references, with those by latent, by map.")
    seed: int = Field(description="Seed of the draw.")
    cells: int = Field(description="How many cells there are.")
    tasks: int = Field(description="How many answers each reader gives: each cell in each arm.")
    done: int = Field(description="How many whoever asks has given.")
    readers: dict[str, int] = Field(description="How many answers each reader has given.")
    started_at: str = Field(description="When it was started, ISO 8601, UTC.")
    started_by: str | None = Field(description="Who started it.")
    ended_at: str | None = Field(description="When it was ended, ISO 8601, UTC; null while it goes on.")


class ReadingPart(Answer):
    """A picture beside the cell. The picture of part 0 is the cell itself."""

    part: int = Field(description="Its place: asked for as the part of the picture.")
    label: str | None = Field(description="Its class; null in triplets.")
    reviewed: bool = Field(
        description="Whether a person had given that class when the reading was started; false in triplets, and in "
        "readings of a labref that did not write it down."
    )


class ReadingNext(Answer):
    """A task: what a reader is asked next."""

    reading: int = Field(description="The reading.")
    kind: Kind = Field(description="`classes` or `triplets`.")
    done: int = Field(description="How many answers were given before this one.")
    tasks: int = Field(description="How many there are in all.")
    task: int | None = Field(description="Which task; null where all are done.")
    arm: str | None = Field(description="How its cell is shown; null where all are done.")
    parts: list[ReadingPart] = Field(description="What is shown beside it.")


class ReadingAnswered(Answer):
    """An answer was written down, or taken back."""

    reading: int = Field(description="The reading.")
    task: int = Field(description="Which task.")
    arm: str = Field(description="In which arm.")
    done: int = Field(description="How many answers the reader has given now.")


class ReadingCell(Answer):
    """The cell of a picture of a reading."""

    cell_id: str = Field(description="The cell.")


class ReadingEstimate(Answer):
    """A figure with its 95 % interval; null where there is nothing to measure."""

    value: float | None = Field(description="The figure.")
    low: float | None = Field(description="Lower end.")
    high: float | None = Field(description="Upper end.")
    n: int = Field(description="How many answers a share is of, or cells.")


class ReadingAccuracy(Answer):
    """How somebody, or all together, did in one arm."""

    about: Literal["accuracy"] = Field(description="accuracy")
    person: str | None = Field(description="Who; null: all readers together.")
    arm: str = Field(description="The arm.")
    answers: int = Field(description="How many were given.")
    unsaid: int = Field(description="How many of them say that it cannot be told; they count as wrong.")
    reviewed: ReadingEstimate = Field(description="Share that agrees with the label when the reading was started.")
    predicted: ReadingEstimate = Field(description="Share that agrees with what the bundle called the cell then.")
    seconds: ReadingEstimate = Field(description="Median of the seconds for a cell.")


class ReadingAgreement(Answer):
    """How well readers agree with each other in one arm, on the cells that all of them answered."""

    about: Literal["agreement"] = Field(description="agreement")
    arm: str = Field(description="The arm.")
    people: list[str] = Field(description="Who.")
    kind: Literal["cohen", "fleiss"] = Field(description="Whose kappa: of two people, or of all.")
    kappa: ReadingEstimate = Field(description="Agreement beyond chance: 1 is perfect, 0 is chance.")
    agreed: ReadingEstimate = Field(description="Share of cells on which all said the same.")


class ReadingDifference(Answer):
    """What an arm changes, of the same person on the same cell."""

    about: Literal["difference"] = Field(description="difference")
    person: str | None = Field(description="Who; null: all readers together.")
    arm: str = Field(description="The arm.")
    base: str = Field(description="The arm that it is compared with.")
    reviewed: ReadingEstimate = Field(description="Accuracy in the arm minus accuracy in the other.")
    seconds: ReadingEstimate = Field(description="Seconds for a cell in the arm minus those in the other: the mean.")
    better: int = Field(description="Pairs that were right in this arm only.")
    worse: int = Field(description="Pairs that were right in the other arm only.")
    p: float | None = Field(
        description="McNemar's exact test of these two numbers; null without any, and for one cell."
    )


class ReadingTriplets(Answer):
    """The triplets of a reading and what was chosen, as `python -m training svomen` reads them."""

    set: dict[str, Any] = Field(description="The set of triplets: the content of its JSON file.")
    votes: str = Field(description="The choices: CSV with the columns set, triplet, person, choice.")
    cells: dict[str, str] = Field(description="The cell of each path in the set.")


_Number = Annotated[int, Field(ge=1, le=1_000_000_000, description="Number of the reading.")]
_Sources = Annotated[
    list[LabelSource] | None,
    Field(
        description="Whose labels are the truth: cells with others are not drawn. By default those that people gave."
    ),
]


@operation("reading.start", Progress, ReadingListed, role=Role.REVIEW)
def start(
    context: Context,
    *,
    title: Annotated[Text, Field(description="What it is called.", min_length=1, max_length=200)],
    kind: Annotated[Kind, Field(description="`classes` or `triplets`.")] = "classes",
    n: Annotated[
        int, Field(ge=1, le=_MOST_CELLS, description="How many cells, as many of each class as can be.")
    ] = 100,
    arms: Annotated[
        list[Arm] | None,
        Field(
            max_length=3,
            description="How each cell is shown, in each of these: `none`, without references; `latent`; `map`. By default "
            "`none` and `latent`. Not for triplets.",
        ),
    ] = None,
    seed: Annotated[int, Field(ge=0, le=2**31, description="Seed of the draw.")] = 1,
    sources: _Sources = None,
    bundle_is: Annotated[
        Literal["any", "right", "wrong"],
        Field(description="Only cells that the bundle calls as they are labelled, or only those it calls otherwise."),
    ] = "any",
    who: Who = None,
) -> Iterator[Row]:
    """Start a blinded reading. Its cells are drawn at random, as many of each class as can be."""
    if unprintable(title) is not None or not title.strip():
        raise LabrefError(f"{title!r} is no title; give one of characters that can be seen.")
    who, store, bundle = name_of(who), context.store, context.lab.bundle(context.store)
    shown = (TRIPLET,) if kind == "triplets" else tuple(dict.fromkeys(arms or ("none", "latent")))
    if "map" in shown and store.maps.active(bundle.digest) is None:
        raise LabrefError("this lab has no map yet for the bundle in use; train one with `labref map train`")
    truth = tuple(sources or (LabelSource.REVIEWED,))
    right = {"any": None, "right": True, "wrong": False}[bundle_is]
    pool = store.readings.draw(bundle.digest, truth, 2 * n, seed, right=right)
    chosen = _balanced(store, pool, n)
    if not chosen:
        raise LabrefError(
            f"no cell has a label that was {' or '.join(truth)}{'' if right is None else f' and a bundle that is {bundle_is}'}; "
            "review some cells, or let other labels be the truth."
        )
    tasks: list[ReadingTask] = []
    latents = store.latents([cell.cell_id for cell in chosen], bundle=bundle.digest)
    cells = store.cells([cell.cell_id for cell in chosen])
    rng = np.random.default_rng(seed)
    for done, cell in enumerate(chosen):
        if cell.cell_id not in latents or cell.cell_id not in cells:
            continue  # removed in this moment
        latent, digest = latents[cell.cell_id], cells[cell.cell_id].digest
        if kind == "triplets":
            drawn = _triplet(store, bundle, cell, latent, pool, rng)
            beside, draw = ({}, "") if drawn is None else ({TRIPLET: drawn[0]}, drawn[1])
            if drawn is None:
                continue
        else:
            beside, draw = {arm: _references(context, bundle, latent, digest, arm) for arm in shown}, ""
        tasks.append(ReadingTask(len(tasks), cell.cell_id, cell.label, cell.predicted, beside, draw))
        if done % 20 == 0:
            yield progress(done, len(chosen), "references looked up")
    if not tasks:
        raise LabrefError(f"more than {_EIGHT} cells are needed to draw neighbours from.")
    how = {"n": n, "sources": [str(source) for source in truth], "bundle_is": bundle_is}
    made = store.readings.start(
        title=title.strip(), kind=kind, arms=shown, seed=seed, how=how, bundle=bundle.digest, who=who, tasks=tasks
    )
    yield _listed(made, [], who)


@operation("reading.list", ReadingListed, role=Role.VIEW)
def list_(context: Context, *, who: Who = None) -> Iterator[Row]:
    """List the readings, the last first, and how far whoever asks is in each."""
    for one in context.store.readings.all():
        yield _listed(one, context.store.readings.answers(one.number), who)


@operation("reading.end", ReadingListed, role=Role.REVIEW)
def end(
    context: Context,
    *,
    reading: _Number,
    again: Annotated[bool, Field(description="Let one that was ended go on.")] = False,
    who: Who = None,
) -> Iterator[Row]:
    """End a reading: nobody answers any more. It can go on again."""
    _reading(context, reading)
    context.store.readings.end(reading, ended=not again)
    yield _listed(_reading(context, reading), context.store.readings.answers(reading), who)


@operation("reading.next", ReadingNext, role=Role.VIEW)
def next_(
    context: Context,
    *,
    reading: _Number,
    who: Who = None,
    limit: Annotated[int, Field(ge=1, le=10, description="At most so many tasks, in the order they come.")] = 1,
) -> Iterator[Row]:
    """Say what a reader is asked next; where they left off, it goes on."""
    found, person = _reading(context, reading), _person(who)
    answered = {(one.task, one.arm) for one in context.store.readings.answers(reading, person) if not one.undone}
    order = _order(found, person)
    left = [one for one in order if one not in answered]
    said = {"reading": reading, "kind": found.kind, "tasks": len(order)}
    done = len(order) - len(left)
    told = 0
    for number, arm in left:
        task = context.store.readings.task(reading, number)
        beside = () if task is None else task.shown.get(arm, ())
        if task is None or not _there(context, [task.cell, *(one.cell_id for one in beside)]):
            continue
        parts = [
            {"part": part, "label": None, "reviewed": False}
            if found.kind == "triplets"
            else {"part": part, "label": one.label, "reviewed": one.reviewed}
            for part, one in enumerate(beside, 1)
        ]
        yield said | {"done": done + told, "task": number, "arm": arm, "parts": parts}
        told += 1
        if told == limit:
            return
    if not told:
        yield said | {"done": done, "task": None, "arm": None, "parts": []}


@operation("reading.cell", ReadingCell, single=True)
def cell(
    context: Context,
    *,
    reading: _Number,
    task: Annotated[int, Field(ge=0, le=1_000_000, description="Which task.")],
    arm: Annotated[Text, Field(description="In which arm.", max_length=20)],
    part: Annotated[int, Field(ge=0, le=_EIGHT, description="0: the cell itself; else what is shown beside it.")],
) -> Iterator[Row]:
    """Say which cell a picture of a reading shows. Pages ask this to send the picture; no reader may."""
    _reading(context, reading)
    found = context.store.readings.task(reading, task)
    beside = () if found is None else found.shown.get(arm, ())
    if found is None or part > len(beside):
        raise NoSuchNameError(f"reading {reading} shows no such picture.")
    yield {"cell_id": found.cell if part == 0 else beside[part - 1].cell_id}


@operation("reading.answer", ReadingAnswered, role=Role.VIEW)
def answer(
    context: Context,
    *,
    reading: _Number,
    task: Annotated[int, Field(ge=0, le=1_000_000, description="Which task.")],
    arm: Annotated[Text, Field(description="In which arm.", max_length=20)],
    choice: Annotated[
        Text | None,
        Field(description="The class; null: it cannot be told. Of triplets `1`, `2`, or `0` where neither is alike."),
    ] = None,
    seconds: Annotated[float, Field(ge=0.0, le=_MOST_SECONDS, description="How long they looked at it.")] = 0.0,
    who: Who = None,
) -> Iterator[Row]:
    """Write down what a reader answers. One answer holds; to give another, the last is taken back first."""
    found = _reading(context, reading)
    if found.ended_at is not None:
        raise LabrefError(f"reading {reading} has ended; who started it can let it go on.")
    if arm not in found.arms or context.store.readings.task(reading, task) is None:
        raise NoSuchNameError(f"reading {reading} has no task {task} in the arm {arm!r}.")
    if found.kind == "triplets":
        if choice not in ("0", "1", "2"):
            raise LabrefError("the choice has to be 1, 2, or 0 where neither is alike.")
    elif choice is not None:
        choice = Classes(context).label(choice, new=False)
    written, holds = context.store.readings.answer(reading, task, arm, _person(who), choice, seconds)
    if not written and holds != choice:
        raise LabrefError(f"task {task} was answered by {holds!r} already; take that back first.")
    yield {"reading": reading, "task": task, "arm": arm, "done": _done(context, reading, _person(who))}


@operation("reading.undo", ReadingAnswered, role=Role.VIEW)
def undo(context: Context, *, reading: _Number, who: Who = None) -> Iterator[Row]:
    """Take back the last answer of a reader; the task comes again. Its seconds still count."""
    if _reading(context, reading).ended_at is not None:
        raise LabrefError(f"reading {reading} has ended; who started it can let it go on.")
    last = context.store.readings.undo(reading, _person(who))
    if last is None:
        raise LabrefError("no answer was given yet; there is nothing to take back.")
    yield {"reading": reading, "task": last[0], "arm": last[1], "done": _done(context, reading, _person(who))}


@operation("reading.report", ReadingAccuracy, ReadingDifference, ReadingAgreement, role=Role.REVIEW)
def report(context: Context, *, reading: _Number) -> Iterator[Row]:
    """Say how well the readers of cells did, with a 95 % interval of each figure.

    There is accuracy and time of each reader in each arm, what an arm changes, and how well readers agree."""
    found = _reading(context, reading)
    if found.kind != "classes":
        raise LabrefError("this reading is of triplets; `reading.triplets` gives what was chosen.")
    tasks = {task.task: task for task in context.store.readings.tasks(reading)}
    choices, seconds = _choices(context.store.readings.answers(reading))
    people = sorted({person for person, _, _ in choices})
    for arm, person in itertools.product(found.arms, [*people, None] if len(people) > 1 else people):
        given = {key: said for key, said in choices.items() if key[2] == arm and person in (None, key[0])}
        if given:
            yield _accuracy(person, arm, given, seconds, tasks)
    for arm, person in itertools.product(found.arms[1:], [*people, None] if len(people) > 1 else people):
        compared = _difference(person, arm, found.arms[0], choices, seconds, tasks)
        if compared is not None:
            yield compared
    for arm in found.arms:
        for chosen in [*itertools.combinations(people, 2), *([tuple(people)] if len(people) > 2 else [])]:
            yield _agreement(arm, chosen, choices, tasks)


@operation("reading.triplets", ReadingTriplets, single=True, role=Role.REVIEW)
def triplets(context: Context, *, reading: _Number) -> Iterator[Row]:
    """Give the triplets of a reading and what was chosen, as `python -m training svomen score` reads them. Paths name a
    cell by its class and its id."""
    found = _reading(context, reading)
    if found.kind != "triplets":
        raise LabrefError("this reading is of classes; `reading.report` says what came of it.")
    paths: dict[str, str] = {}

    def path(cell_id: str, label: str) -> str:
        folder = "".join(letter if letter.isalnum() or letter in " ,.-_()" else "_" for letter in label).strip(" .")
        name = f"{folder or '_'}/{cell_id}.jpg"
        paths[name] = cell_id
        return name

    rows = []
    for number, task in enumerate(context.store.readings.tasks(reading)):
        first, second = task.shown[TRIPLET]
        rows.append(
            {
                "number": number,
                "reference": path(task.cell, task.label),
                "alternative_1": path(first.cell_id, first.label),
                "alternative_2": path(second.cell_id, second.label),
                "draw": task.draw,
                "same_class": task.label == first.label == second.label,
                "right": None,
            }
        )
    digest = _digest_of_set(rows)
    text = io.StringIO()
    votes = csv.writer(text, lineterminator="\n")
    votes.writerow(["set", "triplet", "person", "choice"])
    chosen, _ = _choices(context.store.readings.answers(reading))
    for (person, task_number, _), choice in sorted(chosen.items()):
        votes.writerow([digest[:12], task_number, person, choice])
    how = {"seed": found.seed, "n": found.how["n"], "bundle": found.bundle, "source": "reading", "reading": reading}
    made = {
        "format": "labref-triplets",
        "format_version": 1,
        "kind": "human",
        "digest": digest,
        "how": how,
        "triplets": rows,
    }
    yield {"set": made, "votes": text.getvalue(), "cells": paths}


# drawing


def _balanced(store: Store, pool: Sequence[Drawn], n: int) -> list[Drawn]:
    """n cells, as many of each class as can be; of a physical cell one capture."""
    by_class: dict[str, list[Drawn]] = defaultdict(list)
    for drawn in pool:
        by_class[drawn.label].append(drawn)
    seen: set[int] = set()
    chosen: list[Drawn] = []
    waiting = [iter(cells) for _, cells in sorted(by_class.items())]
    while waiting and len(chosen) < n:
        for one in list(waiting):
            for drawn in one:
                group = int(store.groups.of(np.array([id_to_int(drawn.cell_id)], np.uint64))[0])
                if group not in seen:
                    seen.add(group)
                    chosen.append(drawn)
                    break
            else:
                waiting.remove(one)
            if len(chosen) == n:
                break
    return chosen


def _references(context: Context, bundle: Bundle, latent: Any, digest: str, arm: str) -> list[ShownBeside]:
    if arm == "none":
        return []
    store = context.store
    # a second picture of the cell would tell its class: possible ones are withheld, whatever the lab's setting
    out = store.duplicates.possible() | store.qualities.doubted()
    found = references.find(
        store, bundle=bundle, latent=latent, digest=digest, k=_EIGHT, by=arm, withheld=out, show_same=False
    )
    return [ShownBeside(one.cell_id, one.label, one.label_source == LabelSource.REVIEWED) for one in found.references]


def _triplet(
    store: Store, bundle: Bundle, cell: Drawn, latent: Any, pool: Sequence[Drawn], rng: np.random.Generator
) -> tuple[list[ShownBeside], str] | None:
    """Two alternatives, as the thesis drew them: one of the eight nearest, against another of them, one of the class,
    or any. None where there are too few cells."""
    same = store.may_be_same(cell.cell_id)
    barred = {*store.duplicate_group(cell.cell_id), *same, *store.duplicates.possible()}
    near = store.nearest(latent, bundle=bundle.digest, k=3 * _EIGHT, exclude=barred)
    ids = np.array([id_to_int(one.cell_id) for one in near], np.uint64)
    near = [one for one, first in zip(near, store.alike.firsts(ids), strict=True) if first][:_EIGHT]
    if len(near) < 2:
        return None
    labels = store.labels([one.cell_id for one in near])
    close = [ShownBeside(one.cell_id, labels[one.cell_id]) for one in near if one.cell_id in labels]
    first = close[int(rng.integers(len(close)))]
    draw = str(rng.choice(_DRAWS))
    others = {
        "close-close": close,
        "close-class": [ShownBeside(one.cell_id, one.label) for one in pool if one.label == cell.label],
        "close-random": [ShownBeside(one.cell_id, one.label) for one in pool],
    }[draw]
    others = [one for one in others if one.cell_id not in barred and one.cell_id != first.cell_id]
    if not others:  # the only one of its class
        return None
    pair = [first, others[int(rng.integers(len(others)))]]
    if rng.integers(2):
        pair.reverse()
    return pair, draw


def _digest_of_set(rows: Sequence[Mapping[str, Any]]) -> str:
    """As `training.measure.triplets.TripletSet.digest`."""
    names = ("reference", "alternative_1", "alternative_2", "draw", "same_class", "right")
    lines = ["labref-triplets 1 human", *(repr(tuple(row[name] for name in names)) for row in rows)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# reading


def _reading(context: Context, number: int) -> Reading:
    for one in context.store.readings.all():
        if one.number == number:
            return one
    raise NoSuchNameError(f"there is no reading {number}; `reading.list` lists them.")


def _person(who: str | None) -> str:
    """The name under which answers are kept; empty for whoever has the lab's token."""
    return name_of(who) or ""


def _order(reading: Reading, person: str) -> list[tuple[int, str]]:
    """In which order a reader is asked: task and arm. All cells once, in arms that take turns; then all again, in the
    next arm, in another order."""

    def place(block: int, task: int) -> bytes:
        return hashlib.sha256(f"{reading.number}:{reading.seed}:{person}:{block}:{task}".encode()).digest()

    tasks = range(reading.tasks)
    turn = {task: at for at, task in enumerate(sorted(tasks, key=lambda task: place(-1, task)))}
    return [
        (task, reading.arms[(turn[task] + block) % len(reading.arms)])
        for block in range(len(reading.arms))
        for task in sorted(tasks, key=lambda task: place(block, task))
    ]


def _there(context: Context, cells: Sequence[str]) -> bool:
    """Whether all of these cells are still stored: a reading goes on without a cell that was removed."""
    return len(context.store.labels(cells)) == len(set(cells))


def _done(context: Context, number: int, person: str) -> int:
    return sum(not one.undone for one in context.store.readings.answers(number, person))


def _listed(reading: Reading, answers: Sequence[ReadingAnswer], who: str | None) -> Row:
    readers: dict[str, int] = defaultdict(int)
    for one in answers:
        readers[one.person] += not one.undone
    return {
        "reading": reading.number,
        "title": reading.title,
        "kind": reading.kind,
        "arms": list(reading.arms),
        "seed": reading.seed,
        "cells": reading.tasks,
        "tasks": reading.tasks * len(reading.arms),
        "done": readers.get(_person(who), 0),
        "readers": dict(sorted(readers.items())),
        "started_at": utc(reading.started_at, timespec="seconds"),
        "started_by": reading.who,
        "ended_at": None if reading.ended_at is None else utc(reading.ended_at, timespec="seconds"),
    }


# the report

_Key = tuple[str, int, str]
"""person, task, arm"""
_UNSAID: Final = "—"


def _choices(answers: Sequence[ReadingAnswer]) -> tuple[dict[_Key, str | None], dict[_Key, float]]:
    """What each person said of each task in each arm, and the seconds for it, those of answers taken back too."""
    choices: dict[_Key, str | None] = {}
    seconds: dict[_Key, float] = defaultdict(float)
    for one in answers:
        key = (one.person, one.task, one.arm)
        seconds[key] += one.seconds
        if not one.undone:
            choices[key] = one.choice
    return choices, seconds


def _by_cell(values: Mapping[_Key, Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for (_, task, _), value in values.items():
        found[task].append(value)
    return found


def _accuracy(
    person: str | None,
    arm: str,
    given: Mapping[_Key, str | None],
    seconds: Mapping[_Key, float],
    tasks: Mapping[int, ReadingTask],
) -> Row:
    row: Row = {"about": "accuracy", "person": person, "arm": arm, "answers": len(given)}
    row["unsaid"] = sum(said is None for said in given.values())
    for name, truth in (("reviewed", "label"), ("predicted", "predicted")):
        right = {key: float(said == getattr(tasks[key[1]], truth)) for key, said in given.items()}
        figure = (
            agreement.mean_over_cells(_by_cell(right))
            if person is None
            else agreement.share(int(sum(right.values())), len(right))
        )
        row[name] = asdict(figure)
    row["seconds"] = asdict(agreement.median(_by_cell({key: seconds[key] for key in given})))
    return row


def _difference(
    person: str | None,
    arm: str,
    base: str,
    choices: Mapping[_Key, str | None],
    seconds: Mapping[_Key, float],
    tasks: Mapping[int, ReadingTask],
) -> Row | None:
    right: dict[int, list[tuple[float, float]]] = defaultdict(list)
    took: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for (who, task, of_arm), said in choices.items():
        first = (who, task, base)
        if of_arm != arm or person not in (None, who) or first not in choices:
            continue
        right[task].append((float(choices[first] == tasks[task].label), float(said == tasks[task].label)))
        took[task].append((seconds[first], seconds[who, task, arm]))
    if not right:
        return None
    pairs = [pair for of_cell in right.values() for pair in of_cell]
    better, worse = pairs.count((0.0, 1.0)), pairs.count((1.0, 0.0))
    return {
        "about": "difference",
        "person": person,
        "arm": arm,
        "base": base,
        "reviewed": asdict(agreement.difference(right)),
        "seconds": asdict(agreement.difference(took)),
        "better": better,
        "worse": worse,
        # of several people the pairs are not independent: their interval is over cells
        "p": agreement.sign_test(better, worse) if person is not None else None,
    }


def _agreement(
    arm: str, people: Sequence[str], choices: Mapping[_Key, str | None], tasks: Mapping[int, ReadingTask]
) -> Row:
    both = [task for task in sorted(tasks) if all((person, task, arm) in choices for person in people)]
    said = [[choices[person, task, arm] or _UNSAID for person in people] for task in both]
    kappa = (
        agreement.cohen([one for one, _ in said], [other for _, other in said])
        if len(people) == 2
        else agreement.fleiss(said)
    )
    return {
        "about": "agreement",
        "arm": arm,
        "people": list(people),
        "kind": "cohen" if len(people) == 2 else "fleiss",
        "kappa": asdict(kappa),
        "agreed": asdict(agreement.share(sum(len(set(one)) == 1 for one in said), len(said))),
    }
