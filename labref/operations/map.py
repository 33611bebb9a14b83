"""The lab's map: trained, listed, asked. See `labref.tasks.mapping` and `labref.store.duckdb.maps`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from labref import som
from labref.asking.differential import is_abstention
from labref.asking.mislabelled import suggestions
from labref.asking.mislabelled import suspects as doubted
from labref.asking.survey import GIVEN, Chosen, Nodes, Survey, survey
from labref.config import MapConfig
from labref.errors import LabrefError
from labref.operations import operation
from labref.operations.models import Answer, JobEnded, JobRunning, Limit, Progress, Request, Text
from labref.operations.naming import cell_named, slide_keys, told_apart
from labref.operations.query import MapPlace
from labref.progress import Row, progress
from labref.roles import Role
from labref.store import ActiveMap, MapCell, StoredMap
from labref.store.memory.books import id_to_int, int_to_id
from labref.tasks import mapping
from labref.tasks.context import Context
from labref.tasks.map_job import NAME, map_job
from labref.times import utc
from labref.words import LabelSource, SlideId

__all__ = [
    "CellsOnMap",
    "CellsWanted",
    "ClassOnMap",
    "ImageOnMap",
    "MapCellRow",
    "MapFacets",
    "MapNodes",
    "MapPicture",
    "MapRegion",
    "MapShown",
    "MapSpot",
    "MapState",
    "MapSuspect",
    "MapUnidentified",
    "MapVersion",
    "PlacesOnMap",
]

_COLUMNS_AT_ONCE: Final = 2000
_ROWS_AT_ONCE: Final = 1000


class MapVersion(Answer):
    """A version of the map."""

    number: int = Field(description="Its number.")
    bundle: str = Field(description="Digest of the bundle whose latents it orders.")
    analyser: str | None = Field(description="The analyser whose cells alone it is of; null for a map of all cells.")
    rows: int = Field(description="Rows of nodes.")
    columns: int = Field(description="Columns of nodes.")
    sigma: float = Field(description="Final radius, nodes.")
    seed: int = Field(description="Seed of what is random.")
    trainer: str = Field(description="How it was trained: batch or minisom.")
    started_from: int | None = Field(
        description="The version that it went on from; null for a training from the start."
    )
    cells: int = Field(description="Cells that it was trained on.")
    qe: float = Field(description="Quantisation error: mean distance of a cell to its best node.")
    te: float = Field(description="Topographic error: share of cells whose two best nodes do not touch.")
    qe_before: float | None = Field(description="Quantisation error of the map that was in use, on the same cells.")
    te_before: float | None = Field(description="Topographic error of the map that was in use, on the same cells.")
    moved_far: float | None = Field(description="Share of the cells placed before that moved more than 3 nodes.")
    verdict: Literal["first", "better", "worse", "resized"] = Field(
        description="`first`: there was none to compare with; `better`: no worse, put in use; `worse`: kept, not used; "
        "`resized`: the one before has another size, so that their errors cannot be compared; put in use."
    )
    seconds: float = Field(description="How long training took.")
    trained_at: str = Field(description="When, ISO 8601, UTC.")
    in_use: bool = Field(description="Whether it is in use.")
    weights_kept: bool = Field(description="Whether its weights are kept; if not, it cannot be put in use.")
    said: str = Field(description="In words, what came of it.")


class MapState(Answer):
    """The state of the lab's maps."""

    bundle: str = Field(description="Digest of the bundle in use.")
    map: MapVersion | None = Field(description="The map of all cells in use; null where there is none.")
    own: list[MapVersion] = Field(
        description="The maps in use of single analysers' cells; none where the lab has cells of one analyser alone."
    )
    own_to_come: list[str] = Field(
        description="Analysers that get a map of their own and have none yet: the agent trains one after another."
    )
    problem: str | None = Field(description="Why the map that should be in use is not.")
    cells: int = Field(description="Cells that could lie on it.")
    placed: int = Field(description="Cells that do.")
    training: JobRunning | None = Field(description="The training at work.")
    due: str | None = Field(description="Why a training is due; else null.")
    last: JobEnded | None = Field(description="How the agent's last training ended.")
    config: MapConfig = Field(description="Section [map] of labref.toml.")
    fewest_cells: int = Field(description="A lab with fewer cells gets no map.")


class MapCellRow(Answer):
    """A cell on the map."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="Its class.")
    label_source: LabelSource = Field(description="Who gave it.")
    predicted: str = Field(description="The class that the bundle's networks give.")
    slide: str | None = Field(description="The slide; it can name a patient.")
    analyser: str | None = Field(description="The analyser.")
    quantization_error: float = Field(description="Distance to its node.")
    map: int = Field(description="Number of the map's version that row and column are of.")
    row: int = Field(description="Row of its node, from 0.")
    column: int = Field(description="Column of its node, from 0.")
    path: str = Field(description="Its file; it can name a patient.")


class MapSuspect(MapCellRow):
    """A cell whose label disagrees with the labels about it."""

    neighbourhood: str = Field(description="The class that most cells of its analyser about it have.")
    share: float = Field(
        description="Share of that class about it on the map and among its nearest cells, each counted by its nearness."
    )
    share_of_label: float = Field(description="Share of the cell's own class.")
    surprise: float = Field(
        description="Logarithm of the one share over the other, less where few cells of the analyser carry the label."
    )


class MapUnidentified(MapCellRow):
    """A cell whose label is no opinion, and the class that the cells about it suggest."""

    suggested: str = Field(description="The class that most cells of its analyser about it have.")
    share: float = Field(
        description="Share of that class about it on the map and among its nearest cells, each counted by its nearness."
    )


class MapShown(Answer):
    """The map whose cells follow."""

    map: MapVersion
    weights: str = Field(description="File of its weights, on the computer of the lab.")


class PlacesOnMap(Answer):
    """Cells on the map, as lists of equal length: the entries at one index are of one cell."""

    cell_id: list[str] = Field(description="The cell.")
    label: list[str] = Field(description="Its class.")
    label_source: list[LabelSource] = Field(description="Who gave it.")
    predicted: list[str] = Field(description="The bundle's class.")
    slide: list[str | None] = Field(description="Its slide; it can name a patient.")
    slide_key: list[str | None] = Field(
        description="What stands for the slide in addresses; two slides can have one name."
    )
    analyser: list[str | None] = Field(description="Its analyser.")
    patient: list[str | None] = Field(description="Its patient, as named in `patients`; null for cells of others.")
    row: list[int] = Field(description="Row of its node, from 0.")
    column: list[int] = Field(description="Column of its node, from 0.")


class MapPicture(Answer):
    """The map as `labref map show --json` prints it."""

    map: MapVersion = Field(description="Which map.")
    umatrix: list[list[float]] = Field(description="Rows of numbers, 0 to 1: how far a node is from its neighbours.")
    cells: PlacesOnMap = Field(description="What lies where.")
    out: str | None = Field(description="The picture, where one was drawn; else null.")


class ImageOnMap(Answer):
    """An image, as `labref map classify IMAGE --json` prints it."""

    image: str = Field(description="The image.")
    map: MapPlace = Field(description="Where it lies, and what it would be by its neighbours there.")


class CellsOnMap(Answer):
    """Some thousand cells, as lists of equal length: the entries at one index are of one cell."""

    cell_id: list[str] = Field(description="The cells.")
    node: list[int] = Field(description="Their nodes, row * columns + column.")
    label: list[str] = Field(description="Their classes.")
    label_source: list[LabelSource] = Field(description="Who gave these.")
    predicted: list[str] = Field(description="The classes that the bundle's networks give.")
    slide: list[str | None] = Field(description="Their slides; a name can identify a patient.")
    slide_key: list[str | None] = Field(description="What stands for these in addresses; slides can have one name.")
    analyser: list[str | None] = Field(description="Their analysers.")
    patient: list[str | None] = Field(description="Their patients, as named in `patients`; null for cells of others.")


class ClassOnMap(Answer):
    """How well the map tells one class."""

    label: str | None = Field(description="The class; null for all together.")
    cells: int = Field(description="Its labelled cells.")
    agree: float = Field(
        description="Share of these cells whose neighbours on the map are mostly of the cell's own class."
    )
    mistaken_for: dict[str, int] = Field(description="The other classes, and how many cells lie among each.")


class CellsWanted(Request):
    """Which cells of the map count: those for which all that is given holds."""

    classes: list[Text] | None = Field(None, max_length=1000, description="Only cells of these classes.")
    slides: list[Text] | None = Field(
        None, max_length=1000, description="Only cells of these slides, by their keys; see `map.facets`."
    )
    analysers: list[Text] | None = Field(
        None,
        max_length=1000,
        description="Only cells of these analysers. Of one that has a map of its own: on that map.",
    )
    since: date | None = Field(None, description="Only pictures of this day or later, in the lab's time.")
    until: date | None = Field(None, description="Only pictures of this day or earlier, in the lab's time.")
    sources: list[LabelSource] | None = Field(None, description="Only cells whose class these gave.")
    doubtful: bool = Field(
        False, description="Only suspect labels: cells whose label disagrees with the labels about them."
    )

    def chosen(self, context: Context, found: Survey) -> Chosen:
        """The same as the survey takes it, with names of slides and moments."""
        of_keys = None
        if self.slides is not None:
            slides = {key: slide for slide, key in slide_keys(context, found.slides).items()}
            of_keys = frozenset(slides[key] for key in self.slides if key in slides)
        return Chosen(
            None if self.classes is None else frozenset(self.classes),
            of_keys,
            None if self.analysers is None else frozenset(self.analysers),
            None if self.since is None else _begin(self.since),
            None if self.until is None or self.until == date.max else _begin(self.until + timedelta(days=1)),
            None if self.sources is None else frozenset(self.sources),
            self.doubtful,
        )


class MapNodes(Answer):
    """The map, node by node: lists of one length, row by row. Of the cells that were asked for."""

    map: int = Field(description="The map's number.")
    analyser: str | None = Field(
        description="The analyser whose cells alone lie on it; null where it is the map of all cells."
    )
    version: str = Field(description="Stands for the map and all that lies on it: other cells, other labels, another.")
    bundle: str = Field(description="Digest of the bundle whose latents it orders.")
    rows: int = Field(description="Rows of nodes.")
    columns: int = Field(description="Columns of nodes.")
    classes: list[str] = Field(description="The classes of all cells on the map.")
    by_class: list[int] = Field(description="Of each class, how many of the cells.")
    chosen: int = Field(description="How many cells there are, of those that were asked for.")
    placed: int = Field(description="How many cells lie on the map.")
    u: list[float] = Field(description="How far a node is from its neighbours, 0 to 1.")
    area: list[int] = Field(
        description="Index in `classes` of the class of most cells around the node, of all; -1 where none is near."
    )
    label: list[int] = Field(
        description="Index in `classes` of the class that most of the node's cells have; -1: none."
    )
    cells: list[int] = Field(description="How many cells.")
    doubtful: list[int] = Field(description="How many of them have a label that disagrees with those about it.")
    cell_id: list[str | None] = Field(description="The cell of the node's class that is nearest to it.")


class MapRegion(Answer):
    """What lies on some nodes; so many of the cells follow."""

    map: int = Field(description="The map's number.")
    row: int = Field(description="First row.")
    column: int = Field(description="First column.")
    last_row: int = Field(description="Last row.")
    last_column: int = Field(description="Last column.")
    cells: int = Field(description="How many cells, of those that were asked for.")
    by_class: dict[str, int] = Field(description="Of each class, how many; the most frequent first.")
    slides: int = Field(description="From how many slides.")


class MapSpot(Answer):
    """Where a cell lies."""

    cell_id: str = Field(description="The cell.")
    map: int = Field(description="The map's number.")
    row: int = Field(description="Row of its node, from 0.")
    column: int = Field(description="Column of its node, from 0.")
    cells: int = Field(description="How many cells lie on that node.")


class SlideOnMap(Answer):
    """A slide with cells on the map."""

    slide: str = Field(description="The slide; its name can identify a patient.")
    folder: str | None = Field(
        description="The watched folder that it lies in, where several slides have its name; else null."
    )
    key: str = Field(description="What stands for it in addresses.")
    cells: int = Field(description="How many of its cells.")


class MapFacets(Answer):
    """What the cells on the map can be told apart by."""

    map: int = Field(description="The map's number.")
    version: str = Field(description="As of `map.picture`.")
    classes: dict[str, int] = Field(description="Cells of each class.")
    sources: dict[str, int] = Field(description="Cells by who gave their class.")
    analysers: dict[str, int] = Field(description="Cells of each analyser that has a name.")
    slides: list[SlideOnMap] = Field(description="Slides, the newest first.")
    more_slides: int = Field(description="How many slides are not listed.")
    first: str | None = Field(description="Day of the first picture, where that is known.")
    last: str | None = Field(description="Day of the last picture.")


_Sources = Annotated[
    list[LabelSource] | None,
    Field(description="Whose labels count; by default those that a person or the analyser gave."),
]
_Analysers = Annotated[
    list[Text] | None,
    Field(
        max_length=1000,
        description="Only cells of these analysers; by default of all. Of one that has a map of its own: on that map.",
    ),
]
_Own = Annotated[
    Text | None,
    Field(description="On the map of this analyser's own cells, where it has one; by default on that of all cells."),
]
_Node = Annotated[int, Field(ge=0, le=1_000_000)]
_MOST_SLIDES: Final = 500  # that are listed


@operation("map.train", Progress, MapVersion)
def train(
    context: Context,
    *,
    rows: Annotated[int | None, Field(ge=1, le=1000, description="Rows of nodes.")] = None,
    columns: Annotated[int | None, Field(ge=1, le=1000, description="Columns of nodes.")] = None,
    sigma: Annotated[float | None, Field(ge=1, le=1000, description="Radius to start with, nodes.")] = None,
    seed: Annotated[int | None, Field(ge=0, le=2**32 - 1, description="Seed of what is random.")] = None,
    trainer: Annotated[
        Literal["batch", "minisom"], Field(description="How it is trained: in batches, or by MiniSom's own training.")
    ] = "batch",
    full: Annotated[bool, Field(description="Start anew, not from the map in use.")] = False,
    analyser: Annotated[
        Text | None, Field(description="A map of this analyser's cells alone; by default that of all cells.")
    ] = None,
) -> Iterator[Row]:
    """Train the map of the bundle in use now, and put it in use unless it is as large as the one in use and worse."""
    settings: dict[str, Any] = {"rows": rows, "cols": columns, "sigma": sigma, "seed": seed}
    settings |= {"trainer": trainer, "full": full, "analyser": analyser}
    bundle = _bundle(context)
    if analyser is not None:
        _require_own(context)
        _check_analyser(context, bundle, analyser)
    if context.jobs is None:
        steps = mapping.retrain(context.store, context.lab.config.map, bundle, **settings)
        try:
            while True:
                yield progress(*next(steps))
        except StopIteration as ended:
            version: StoredMap = ended.value
        finally:
            steps.close()
    else:
        if not context.jobs.submit(map_job(context, **settings)):
            raise LabrefError("a map is being trained already; `labref map status` says how far it is")
        while context.jobs.has(NAME):
            running = context.jobs.status()["running"]
            if running is not None and running["name"] == NAME:
                yield progress(running["done"], running["total"], running["text"])
            else:
                yield progress(0, 1, "waiting for other work of the agent")
            time.sleep(0.3)
        ended_job = context.jobs.status()["ended"].get(NAME)
        if ended_job is None or ended_job["outcome"] != "done":
            why = "it was stopped" if ended_job is None else ended_job["message"] or "it was stopped"
            raise LabrefError(f"no map was trained: {why}")
        version = context.store.maps.every()[-1]
    yield _described(context, version)


@operation("map.list", MapVersion, role=Role.VIEW)
def versions(context: Context) -> Iterator[Row]:
    """List every version of the map, in the order they were trained."""
    for version in context.store.maps.every():
        yield _described(context, version)


@operation("map.use", Progress, MapVersion)
def use(
    context: Context, *, number: Annotated[int, Field(ge=1, le=1_000_000_000, description="Its number.")]
) -> Iterator[Row]:
    """Put a version of the map in use, whatever its figures."""
    if any(one.number == number and one.analyser is not None for one in context.store.maps.every()):
        _require_own(context)
    yield progress(0, 1, "placing every cell")
    yield _described(context, context.store.maps.use(number))


@operation("map.status", MapState, role=Role.VIEW)
def status(context: Context) -> Iterator[Row]:
    """Say which maps are in use, how many cells lie on that of all cells, what goes on and what is due."""
    bundle = _bundle(context)
    maps = context.store.maps
    own = (maps.active(bundle, analyser) for analyser in maps.own_of(bundle))
    active, cells = maps.active(bundle), maps.embedded(bundle)
    running = None if context.jobs is None else context.jobs.status()["running"]
    yield {
        "bundle": bundle,
        "map": None if active is None else _described(context, active.version),
        "own": [_described(context, one.version) for one in own if one is not None],
        "own_to_come": mapping.own_to_come(context.store, context.lab.config.map, bundle),
        "problem": maps.problem(bundle),
        "cells": cells,
        "placed": 0 if active is None else len(active.positions),
        "training": running if running is not None and running["name"] == NAME else None,
        "due": mapping.due(context.store, context.lab.config.map, bundle),
        "last": None if context.jobs is None else context.jobs.status()["ended"].get(NAME),
        "config": context.lab.config.map.model_dump(),
        "fewest_cells": mapping.FEWEST,
    }


@operation("map.node", MapCellRow, role=Role.VIEW)
def node(
    context: Context,
    *,
    row: Annotated[_Node, Field(description="Row of the node, from 0.")],
    column: Annotated[_Node, Field(description="Column of the node, from 0.")],
    limit: Annotated[Limit, Field(description="At most so many cells.")] = 100,
    analyser: _Own = None,
) -> Iterator[Row]:
    """List the cells on a node of the map, nearest to it first."""
    bundle, active = _active(context, analyser)
    if not (0 <= row < active.version.rows and 0 <= column < active.version.columns):
        raise LabrefError(
            f"the map has no node {row} {column}; rows go from 0 to {active.version.rows - 1}, columns from 0 to "
            f"{active.version.columns - 1}"
        )
    found = active.positions.at(row * active.version.columns + column)
    if analyser is not None and active.version.analyser is None:
        found = found.of(context.store.are_of(found.ids, analyser))
    ids = [int_to_id(number) for number in found.ids[:limit].tolist()]
    paths = {cell_id: cell.path for cell_id, cell in context.store.cells(ids).items()}
    of = {cell.cell_id: cell for cell in context.store.maps.cells(bundle, ids, analyser)}
    for cell_id in ids:
        if cell_id in of:
            yield _cell(of[cell_id], active) | {"path": paths[cell_id]}


@operation("map.cells", MapShown, CellsOnMap, role=Role.VIEW)
def cells(
    context: Context,
    *,
    patients: Annotated[
        list[Text] | None, Field(description="Names of folders of the export, each of one patient.")
    ] = None,
    analyser: _Own = None,
) -> Iterator[Row]:
    """Say where every cell lies on the map in use. First comes a row with the map, then the cells, some thousand a
    row."""
    bundle, active = _active(context, analyser)
    yield {
        "map": _described(context, active.version),
        "weights": str(context.store.maps.weights_file(active.version.number)),
    }
    of_patient = {cell: name for name in patients or [] for cell in context.store.maps.cells_of_patient(name)}
    part: list[MapCell] = []
    for cell in context.store.maps.cells(bundle, analyser=analyser):
        part.append(cell)
        if len(part) == _COLUMNS_AT_ONCE:
            yield _columns(context, part, of_patient)
            part.clear()
    if part:
        yield _columns(context, part, of_patient)


@operation("map.suspects", MapSuspect, role=Role.VIEW)
def suspects(
    context: Context,
    *,
    limit: Annotated[Limit, Field(description="At most so many cells.")] = 50,
    offset: Annotated[int, Field(ge=0, le=1_000_000_000, description="Leave out so many first ones.")] = 0,
    sources: _Sources = None,
    analysers: _Analysers = None,
) -> Iterator[Row]:
    """List suspect labels: cells whose label disagrees with the labels about them, most surprising first.

    The labels that are judged are also the evidence, each only for cells of its own analyser. Labels that are no
    opinion, such as "Unidentified", are neither; see `map.unidentified`. See `labref.asking.mislabelled`.
    """
    found = _survey(context, _one_of(context, analysers))
    at, doubts = doubted(context.store, found, sources or GIVEN)
    for here, row in _part(context, found, at, analysers, offset, limit):
        yield row | {
            "neighbourhood": found.labels[int(doubts.majority[here])],
            "share": float(doubts.share[here]),
            "share_of_label": float(doubts.share_of_label[here]),
            "surprise": float(doubts.surprise[here]),
        }


@operation("map.unidentified", MapUnidentified, role=Role.VIEW)
def unidentified(
    context: Context,
    *,
    limit: Annotated[Limit, Field(description="At most so many cells.")] = 50,
    offset: Annotated[int, Field(ge=0, le=1_000_000_000, description="Leave out so many first ones.")] = 0,
    sources: _Sources = None,
    analysers: _Analysers = None,
) -> Iterator[Row]:
    """List cells whose label is no opinion, each with the class that the cells about it suggest.

    The clearest come first. Only the cells of its own analyser count."""
    found = _survey(context, _one_of(context, analysers))
    suggested = suggestions(context.store, found, sources or GIVEN)
    for here, row in _part(context, found, suggested.at, analysers, offset, limit):
        yield row | {
            "suggested": found.labels[int(suggested.label[here])],
            "share": float(suggested.share[here]),
        }


@operation("map.picture", MapNodes, single=True, role=Role.VIEW)
def picture(context: Context, *, wanted: CellsWanted) -> Iterator[Row]:
    """Say what lies on each node of the map in use, for pictures of it.

    It can be behind by some seconds while cells come in.
    """
    found = _survey(context, _one_of(context, wanted.analysers))
    chosen = wanted.chosen(context, found)
    kept = None if chosen == Chosen() else found.select(chosen)
    nodes: Nodes = found.everything if kept is None else found.by_node(kept)
    labels = found.label if kept is None else found.label[kept]
    yield {
        "map": found.active.version.number,
        "analyser": found.active.version.analyser,
        "version": found.digest,
        "bundle": found.active.version.bundle,
        "rows": found.rows,
        "columns": found.columns,
        "classes": list(found.labels),
        "by_class": np.bincount(labels, minlength=len(found.labels)).tolist(),
        "chosen": len(labels),
        "placed": len(found.cells),
        "u": found.u.ravel().round(4).astype(float).tolist(),
        "area": found.areas.tolist(),
        "label": nodes.label.tolist(),
        "cells": nodes.cells.tolist(),
        "doubtful": nodes.doubtful.tolist(),
        "cell_id": [
            int_to_id(cell) if there else None
            for cell, there in zip(nodes.shown.tolist(), nodes.cells.tolist(), strict=True)
        ],
    }


@operation("map.region", MapRegion, MapCellRow, role=Role.VIEW)
def region(
    context: Context,
    *,
    wanted: CellsWanted,
    row: Annotated[_Node, Field(description="First row, from 0.")],
    column: Annotated[_Node, Field(description="First column, from 0.")],
    last_row: Annotated[_Node | None, Field(description="Last row; by default the first.")] = None,
    last_column: Annotated[_Node | None, Field(description="Last column; by default the first.")] = None,
    offset: Annotated[int, Field(ge=0, le=1_000_000_000, description="Leave out so many first cells.")] = 0,
    limit: Annotated[int, Field(ge=0, le=10_000, description="At most so many cells.")] = 100,
) -> Iterator[Row]:
    """Say which classes lie on a rectangle of nodes, and list its cells.

    Those of the most frequent class come first, and of each class those nearest to their node.
    """
    found = _survey(context, _one_of(context, wanted.analysers))
    last_row, last_column = row if last_row is None else last_row, column if last_column is None else last_column
    for begin, last, size, what in (
        (row, last_row, found.rows, "rows"),
        (column, last_column, found.columns, "columns"),
    ):
        if not begin <= last < size:
            raise LabrefError(f"the map has no {what} {begin} to {last}; {what} go from 0 to {size - 1}")
    at = found.within(row, column, last_row, last_column)
    chosen = wanted.chosen(context, found)
    if chosen != Chosen():
        at = at[found.select(chosen)[at]]
    counts = np.bincount(found.label[at], minlength=len(found.labels))
    by_count = np.argsort(-counts, kind="stable")
    yield {
        "map": found.active.version.number,
        "row": row,
        "column": column,
        "last_row": last_row,
        "last_column": last_column,
        "cells": len(at),
        "by_class": {found.labels[code]: int(counts[code]) for code in by_count.tolist() if counts[code]},
        "slides": len(np.unique(found.slide[at][found.slide[at] >= 0])),
    }
    rank = np.empty(len(counts), np.int64)
    rank[by_count] = np.arange(len(counts))
    order = np.lexsort((found.cells.ids[at], found.cells.errors[at], rank[found.label[at]]))
    for _, cell in _rows(context, found, at[order[offset : offset + limit]]):
        yield cell


@operation("map.spot", MapSpot, single=True, role=Role.VIEW)
def spot(
    context: Context,
    *,
    cell: Annotated[Text, Field(description="The cell: its id, the beginning of that, or the path of a file.")],
    analyser: _Own = None,
) -> Iterator[Row]:
    """Say where a cell lies on the map in use."""
    _, active = _active(context, analyser)
    cell_id = cell_named(context, cell)
    placed = active.positions.every()
    (at,) = np.nonzero(placed.ids == np.uint64(id_to_int(cell_id)))
    if not len(at):
        whose = active.version.analyser
        why = "it has no latent for the bundle in use" if whose is None else f"that is of the cells of {whose}"
        raise LabrefError(f"cell {cell_id} has no place on the map: {why}")
    node = int(placed.nodes[at[0]])
    row, column = divmod(node, active.version.columns)
    yield {
        "cell_id": cell_id,
        "map": active.version.number,
        "row": row,
        "column": column,
        "cells": int(np.count_nonzero(placed.nodes == node)),
    }


@operation("map.facets", MapFacets, single=True, role=Role.VIEW)
def facets(context: Context, *, analyser: _Own = None) -> Iterator[Row]:
    """Say what the cells on the map can be told apart by: classes, slides, analysers, days, and who gave the class."""
    found = _survey(context, analyser)
    facets = found.facets
    slides = list(facets.slides.items())
    listed = [slide for slide, _ in slides[:_MOST_SLIDES]]
    keys, folders = slide_keys(context, listed), told_apart(context, listed)
    yield {
        "map": found.active.version.number,
        "version": found.digest,
        "classes": facets.classes,
        "sources": facets.sources,
        "analysers": facets.analysers,
        "slides": [
            {"slide": slide.name, "folder": folders[slide], "key": keys[slide], "cells": facets.slides[slide]}
            for slide in listed
        ],
        "more_slides": max(0, len(slides) - _MOST_SLIDES),
        "first": None if facets.first is None else _day(facets.first),
        "last": None if facets.last is None else _day(facets.last),
    }


@operation("map.classify", ClassOnMap, role=Role.VIEW)
def classify(context: Context, *, sources: _Sources = None, analysers: _Analysers = None) -> Iterator[Row]:
    """Say how well a cell's neighbourhood on the map tells its label, each by the labels of its own analyser. There is
    a row for each class, the largest first, and one for all."""
    _, active = _active(context, _one_of(context, analysers))
    labelled = _labelled(context, sources, analysers)
    if not labelled:
        return
    labels = np.array([cell.label for cell in labelled])
    told = _told(labelled, labels, active)
    names, counts = np.unique(labels, return_counts=True)
    for name in [str(names[i]) for i in np.argsort(-counts, kind="stable")]:
        of_class = labels == name
        others, n = np.unique(told[of_class & (told != name)], return_counts=True)
        yield {
            "label": name,
            "cells": int(of_class.sum()),
            "agree": float((told[of_class] == name).mean()),
            "mistaken_for": {str(others[i]): int(n[i]) for i in np.argsort(-n, kind="stable")},
        }
    yield {"label": None, "cells": len(labels), "agree": float((told == labels).mean()), "mistaken_for": {}}


def _bundle(context: Context) -> str:
    bundle = context.store.active_bundle()
    if bundle is None:
        raise LabrefError("no bundle is active in this lab; see `labref bundle --help`")
    return bundle


def _one_of(context: Context, analysers: list[str] | None) -> str | None:
    """The analyser, where the cells of one are wanted: they are looked at on its own map, if it has one. Raises
    `LabrefError` where no cell came from one of these: nothing found would read as nothing wrong."""
    for analyser in analysers or ():
        _check_analyser(context, _bundle(context), analyser)
    return analysers[0] if analysers is not None and len(analysers) == 1 else None


def _require_own(context: Context) -> None:
    if not context.lab.config.map.per_analyser:
        raise LabrefError(
            "this lab has one map, of all cells; its labref.toml says per_analyser = false below [map]. For a map of each analyser "
            "set that to true in labref.toml, and restart the agent"
        )


def _active(context: Context, analyser: str | None = None) -> tuple[str, ActiveMap]:
    bundle = _bundle(context)
    active = context.store.maps.best(bundle, analyser)
    if active is None:
        problem = context.store.maps.problem(bundle)
        raise LabrefError(problem or "this lab has no map yet for the bundle in use; train one with `labref map train`")
    if analyser is not None and active.version.analyser is None:
        _check_analyser(context, bundle, analyser)
    return bundle, active


def _check_analyser(context: Context, bundle: str, analyser: str) -> None:
    known = sorted(name for name in context.store.maps.analysers(bundle) if name is not None)
    if analyser not in known:
        there = ", ".join(known) or "none has a name"
        raise LabrefError(f"no cell on the map is from the analyser {analyser!r}; analysers are: {there}")


def _survey(context: Context, analyser: str | None = None) -> Survey:
    bundle, _ = _active(context, analyser)
    found = survey(context.store, bundle, analyser)
    assert found is not None  # `_active` raised
    return found


def _begin(day: date) -> int:
    """When a day begins in the lab's time, seconds since 1970."""
    try:
        return int(datetime(day.year, day.month, day.day).timestamp())
    except (ValueError, OverflowError, OSError):  # years that the computer's own calendar does not reach
        return (day - date(1970, 1, 1)).days * 86_400


def _day(seconds: int) -> str | None:
    try:
        return datetime.fromtimestamp(seconds).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return None


def _rows(context: Context, found: Survey, at: NDArray[np.intp]) -> Iterator[tuple[int, Row]]:
    """The cells at these places of the survey, each with its place: as they are now, which can be newer. Cells that
    are gone are left out."""
    for start in range(0, len(at), _ROWS_AT_ONCE):
        places = at[start : start + _ROWS_AT_ONCE].tolist()
        ids = [int_to_id(int(found.cells.ids[place])) for place in places]
        cells = context.store.cells(ids)
        said = context.store.predicted(ids, bundle=found.active.version.bundle)
        for place, cell_id in zip(places, ids, strict=True):
            if cell_id in cells and cell_id in said:
                cell = cells[cell_id]
                on_map = MapCell(
                    cell_id,
                    int(found.cells.nodes[place]),
                    float(found.cells.errors[place]),
                    cell.label,
                    str(cell.label_source),
                    said[cell_id][0],
                    cell.slide,
                    cell.analyser,
                    cell.folder,
                )
                yield place, _cell(on_map, found.active) | {"path": cell.path}


def _part(
    context: Context, found: Survey, at: NDArray[np.intp], analysers: list[str] | None, offset: int, limit: int
) -> Iterator[tuple[int, Row]]:
    """Some of the cells at these places of the survey, each with its index in `at`. analysers : only cells that came
    from these; None: whatever they came from."""
    kept = np.arange(len(at))
    if analysers is not None:
        (kept,) = np.nonzero(found.select(Chosen(analysers=frozenset(analysers)))[at])
    kept = kept[offset : offset + limit]
    here = dict(zip(at[kept].tolist(), kept.tolist(), strict=True))
    for place, row in _rows(context, found, at[kept]):
        yield here[place], row


def _labelled(context: Context, sources: list[LabelSource] | None, analysers: list[str] | None) -> list[MapCell]:
    """The cells whose label is from these sources and an opinion."""
    wanted = set(map(str, sources or GIVEN))
    return [
        cell
        for cell in context.store.maps.cells(_bundle(context), analyser=_one_of(context, analysers))
        if cell.label_source in wanted
        and (analysers is None or cell.analyser in analysers)
        and not is_abstention(cell.label)
    ]


def _told(labelled: list[MapCell], labels: NDArray[np.str_], active: ActiveMap) -> NDArray[np.str_]:
    """The class that the cells of its analyser about each cell have."""
    told = np.empty_like(labels)
    nodes = np.array([cell.node for cell in labelled], np.int64)
    analysers = np.array([cell.analyser or "" for cell in labelled])
    for analyser in np.unique(analysers):
        (at,) = np.nonzero(analysers == analyser)
        about = som.neighbourhood(nodes[at], labels[at], rows=active.version.rows, cols=active.version.columns)
        told[at] = np.array(about.labels)[about.majority]
    return told


def _cell(cell: MapCell, active: ActiveMap) -> Row:
    values = asdict(cell)
    del values["folder"]
    row, column = divmod(values.pop("node"), active.version.columns)
    return values | {
        "quantization_error": values.pop("error"),
        "map": active.version.number,
        "row": row,
        "column": column,
    }


def _columns(context: Context, part: list[MapCell], of_patient: dict[str, str]) -> Row:
    names = ("cell_id", "node", "label", "label_source", "predicted", "slide", "analyser")
    columns: Row = {name: [getattr(cell, name) for cell in part] for name in names}
    slides = [None if cell.slide is None else SlideId(cell.folder, cell.slide) for cell in part]
    keys = slide_keys(context, {slide for slide in slides if slide is not None})
    return columns | {
        "slide_key": [None if slide is None else keys[slide] for slide in slides],
        "patient": [of_patient.get(cell.cell_id) for cell in part],
    }


def _described(context: Context, version: StoredMap) -> Row:
    """A version as JSON values, with whether it is in use, whether its weights are kept, and in words what came of
    it."""
    used = version.number in context.store.maps.in_use() and (version.analyser is None or context.store.maps.own)
    values = asdict(version) | {"trained_at": utc(version.trained_at, timespec="seconds")}
    return values | {
        "in_use": used,
        "weights_kept": context.store.maps.weights_file(version.number).exists(),
        "said": _said(version),
    }


def _said(version: StoredMap) -> str:
    if version.qe_before is None or version.te_before is None:
        whose = "" if version.analyser is None else f" and {version.analyser}"
        return f"the first for its bundle{whose}: put in use"
    figures = (
        f"quantisation error {version.qe_before:.4g} → {version.qe:.4g}, topographic error {version.te_before:.4f} → "
        f"{version.te:.4f}"
    )
    if version.verdict == "resized":
        return (
            f"put in use: {version.rows}×{version.columns} nodes, another size than before, so that the errors cannot be "
            f"compared ({figures}); `labref map list` has the one before, and `labref map use` goes back to it"
        )
    if version.verdict != "worse":
        return f"put in use: {figures}"
    return (
        f"worse than the map in use, which stays ({figures}; more than {mapping.QE_TOLERANCE:.0%} or {mapping.TE_TOLERANCE:g} is "
        f"worse). `labref map use {version.number}` puts it in use all the same"
    )
