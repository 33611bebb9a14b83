"""The lab's map: trained, listed, asked. See `labref.tasks.mapping` and `labref.store.duckdb.maps`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from labref import som
from labref.errors import LabrefError
from labref.operations import operation
from labref.progress import Row, progress
from labref.store import ActiveMap, LabelSource, MapCell, StoredMap
from labref.store.memory.books import int_to_id
from labref.tasks import mapping
from labref.tasks.context import Context
from labref.tasks.map_job import NAME, map_job

__all__: list[str] = []

_COLUMNS_AT_ONCE: Final = 2000


@operation("map.train")
def train(
    context: Context,
    *,
    rows: int | None = None,
    columns: int | None = None,
    sigma: float | None = None,
    seed: int | None = None,
    trainer: str = "batch",
    full: bool = False,
) -> Iterator[Row]:
    """Train the map of the bundle in use now; one row, the version, as `map.list` gives it. See `labref.tasks.mapping.retrain`."""
    if trainer not in ("batch", "minisom"):
        raise LabrefError(f"there is no trainer {trainer!r}; choose batch or minisom")
    settings: dict[str, Any] = {"rows": rows, "cols": columns, "sigma": sigma, "seed": seed}
    settings |= {"trainer": trainer, "full": full}
    bundle = _bundle(context)
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


@operation("map.list")
def versions(context: Context) -> Iterator[Row]:
    """A row for each version, in the order they were trained."""
    for version in context.store.maps.every():
        yield _described(context, version)


@operation("map.use")
def use(context: Context, *, number: int) -> Iterator[Row]:
    """Put a version in use, whatever its figures; one row, the version."""
    yield progress(0, 1, "placing every cell")
    yield _described(context, context.store.maps.use(number))


@operation("map.status")
def status(context: Context) -> Iterator[Row]:
    """One row: the map in use, how many cells lie on it, what goes on and what is due."""
    bundle = _bundle(context)
    maps = context.store.maps
    active, cells = maps.active(bundle), maps.embedded(bundle)
    running = None if context.jobs is None else context.jobs.status()["running"]
    yield {
        "bundle": bundle,
        "map": None if active is None else _described(context, active.version),
        "problem": maps.problem(bundle),
        "cells": cells,
        "placed": 0 if active is None else len(active.positions),
        "training": running if running is not None and running["name"] == NAME else None,
        "due": mapping.due(context.store, context.lab.config.map, bundle),
        "last": None if context.jobs is None else context.jobs.status()["ended"].get(NAME),
        "config": context.lab.config.map.model_dump(),
        "fewest_cells": mapping.FEWEST,
    }


@operation("map.node")
def node(context: Context, *, row: int, column: int, limit: int = 100) -> Iterator[Row]:
    """A row for each cell on a node, nearest to it first, at most `limit`."""
    bundle, active = _active(context)
    if not (0 <= row < active.version.rows and 0 <= column < active.version.columns):
        raise LabrefError(
            f"the map has no node {row} {column}; rows go from 0 to {active.version.rows - 1}, columns from 0 to "
            f"{active.version.columns - 1}"
        )
    found = active.positions.at(row * active.version.columns + column)
    ids = [int_to_id(number) for number in found.ids[:limit].tolist()]
    paths = {cell_id: cell.path for cell_id, cell in context.store.cells(ids).items()}
    of = {cell.cell_id: cell for cell in context.store.maps.cells(bundle, ids)}
    for cell_id in ids:
        if cell_id in of:
            yield _cell(of[cell_id], active) | {"path": paths[cell_id]}


@operation("map.cells")
def cells(context: Context, *, patients: list[str] | None = None) -> Iterator[Row]:
    """First a row with the map in use; then the cells on it, column by column, some thousands a row: `cell_id`, `node` (row *
    columns + column), `label`, `label_source`, `predicted`, `slide`, and `patient`: which of `patients` (folders' names) it is of,
    or null."""
    bundle, active = _active(context)
    yield {
        "map": _described(context, active.version),
        "weights": str(context.store.maps.weights_file(active.version.number)),
    }
    of_patient = {cell: name for name in patients or [] for cell in context.store.maps.cells_of_patient(name)}
    part: list[MapCell] = []
    for cell in context.store.maps.cells(bundle):
        part.append(cell)
        if len(part) == _COLUMNS_AT_ONCE:
            yield _columns(part, of_patient)
            part.clear()
    if part:
        yield _columns(part, of_patient)


@operation("map.suspects")
def suspects(context: Context, *, limit: int = 50, sources: list[str] | None = None) -> Iterator[Row]:
    """Cells whose label disagrees with the labels about them on the map, most surprising first, at most `limit`.

    sources : whose labels are doubted, and believed: by default those that a person or the analyser gave. A row has `surprise`, the
    logarithm of how many times more of the neighbourhood is of `neighbourhood` than of `label` (see `labref.som.suspicion`).
    """
    _, active = _active(context)
    labelled = _labelled(context, sources)
    if not labelled:
        return
    labels = np.array([cell.label for cell in labelled])
    about = _about(labelled, labels, active)
    surprise = som.suspicion(about, labels)
    order = np.lexsort((np.array([cell.cell_id for cell in labelled]), -surprise))
    chosen = [int(at) for at in order[:limit] if surprise[at] > 0]
    paths = {cell_id: cell.path for cell_id, cell in context.store.cells([labelled[i].cell_id for i in chosen]).items()}
    names = {name: place for place, name in enumerate(about.labels)}
    for at in chosen:
        cell = labelled[at]
        yield _cell(cell, active) | {
            "neighbourhood": about.labels[int(about.majority[at])],
            "share": float(about.shares[at, about.majority[at]]),
            "share_of_label": float(about.shares[at, names[cell.label]]),
            "surprise": float(surprise[at]),
            "path": paths[cell.cell_id],
        }


@operation("map.classify")
def classify(context: Context, *, sources: list[str] | None = None) -> Iterator[Row]:
    """How well a cell's neighbourhood on the map, itself left out, tells its label: a row a class, largest first, and one for all
    with `label` null. `agree`: share of the cells whose neighbourhood has most of their own label; `mistaken_for`: the others."""
    _, active = _active(context)
    labelled = _labelled(context, sources)
    if not labelled:
        return
    labels = np.array([cell.label for cell in labelled])
    about = _about(labelled, labels, active)
    told = np.array(about.labels)[about.majority]
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


def _active(context: Context) -> tuple[str, ActiveMap]:
    bundle = _bundle(context)
    active = context.store.maps.active(bundle)
    if active is None:
        problem = context.store.maps.problem(bundle)
        raise LabrefError(problem or "this lab has no map yet for the bundle in use; train one with `labref map train`")
    return bundle, active


def _labelled(context: Context, sources: list[str] | None) -> list[MapCell]:
    wanted = {str(LabelSource(source)) for source in sources} if sources else {"reviewed", "analyser"}
    return [cell for cell in context.store.maps.cells(_bundle(context)) if cell.label_source in wanted]


def _about(labelled: list[MapCell], labels: np.ndarray[Any, Any], active: ActiveMap) -> som.Neighbourhood:
    nodes = np.array([cell.node for cell in labelled], np.int64)
    return som.neighbourhood(nodes, labels, rows=active.version.rows, cols=active.version.columns)


def _cell(cell: MapCell, active: ActiveMap) -> Row:
    values = asdict(cell)
    row, column = divmod(values.pop("node"), active.version.columns)
    return values | {"quantization_error": values.pop("error"), "row": row, "column": column}


def _columns(part: list[MapCell], of_patient: dict[str, str]) -> Row:
    names = ("cell_id", "node", "label", "label_source", "predicted", "slide")
    columns: Row = {name: [getattr(cell, name) for cell in part] for name in names}
    return columns | {"patient": [of_patient.get(cell.cell_id) for cell in part]}


def _described(context: Context, version: StoredMap) -> Row:
    """A version as JSON values, with whether it is in use, whether its weights are kept, and in words what came of it."""
    used = version.number in context.store.maps.in_use()
    values = asdict(version) | {"trained_at": version.trained_at.isoformat(timespec="seconds")}
    return values | {
        "in_use": used,
        "weights_kept": context.store.maps.weights_file(version.number).exists(),
        "said": _said(version),
    }


def _said(version: StoredMap) -> str:
    if version.qe_before is None or version.te_before is None:
        return "the first for its bundle: put in use"
    figures = (
        f"quantisation error {version.qe_before:.4g} → {version.qe:.4g}, topographic error {version.te_before:.4f} → "
        f"{version.te:.4f}"
    )
    if version.verdict != "worse":
        return f"put in use: {figures}"
    return (
        f"worse than the map in use, which stays ({figures}; more than {mapping.QE_TOLERANCE:.0%} or {mapping.TE_TOLERANCE:g} is "
        f"worse). `labref map use {version.number}` puts it in use all the same"
    )
