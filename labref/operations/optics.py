"""Background, focus and colour of each optics: measured of cells that were stored without, told in `labref status`, and when they drift."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.asking.drift import overview
from labref.cells.image import prepare
from labref.cells.optics import measure
from labref.errors import LabError, UnreadableImageError
from labref.lab import Lab
from labref.operations import operation
from labref.progress import Row, progress
from labref.store import Store
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running

__all__ = [
    "JOB",
    "due",
]

JOB: Final = "optics"
"""Name of the agent's job that measures cells which were stored without."""
_AT_ONCE: Final = 256
_LEAST_SLICE_SECONDS: Final = 30.0


@operation("optics.show")
def show(context: Context) -> Iterator[Row]:
    """What `overview` says of each optics."""
    yield from overview(context.store, context.lab.bundle(context.store))


@operation("optics.measure")
def measure_all(context: Context) -> Iterator[Row]:
    """Measure, from their kept bytes, the cells that were stored without measures. Yields progress, last {"measured": n}."""
    _, before = context.store.optics.counts()
    yield from _measure(context.lab, context.store)
    yield {"measured": context.store.optics.counts()[1] - before}


def due(context: Context) -> Job | None:
    """The agent's job, where cells are without measures: those of a lab that an older labref filled."""
    cells, measured = context.store.optics.counts()
    if measured >= cells or (context.jobs is not None and context.jobs.has(JOB)):
        return None
    return Job(JOB, lambda running: _job(context, running))


def _job(context: Context, running: Running) -> None:
    started = time.monotonic()
    for row in _measure(context.lab, context.store):
        said = row["progress"]
        running.report(said["done"], said["total"], said["text"])
        waiting = context.jobs is not None and context.jobs.status()["waiting"]
        if running.stopped or (waiting and time.monotonic() - started > _LEAST_SLICE_SECONDS):
            return


def _measure(lab: Lab, store: Store) -> Iterator[Row]:
    missing = store.optics.unmeasured()
    told = time.monotonic()
    for start in range(0, len(missing), _AT_ONCE):
        made: dict[str, NDArray[np.float32] | None] = {}
        for cell_id, cell in store.cells(missing[start : start + _AT_ONCE]).items():
            try:
                made[cell_id] = measure(prepare(lab.read_image(cell.digest)))
            except (LabError, UnreadableImageError):
                made[cell_id] = None
            if time.monotonic() - told > 1.0:
                told = time.monotonic()
                yield progress(start + len(made), len(missing), "cells whose optics are measured")
        store.optics.add(made)
        yield progress(min(start + _AT_ONCE, len(missing)), len(missing), "cells whose optics are measured")
