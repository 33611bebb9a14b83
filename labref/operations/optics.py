"""Background, focus and colour of each optics: measured of cells that were stored without, told in `labref status`, and when they drift."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.agent.jobs import Job, Running
from labref.bundle import Bundle
from labref.errors import LabError, UnreadableImageError
from labref.image import prepare
from labref.lab import Lab
from labref.operations import Context, Row, operation, progress
from labref.optics import DRIFT, FROM_TRAINING, LEAST_NOW, LEAST_PAST, MEASURES, measure, shifts
from labref.store import Store

__all__ = ["JOB", "due", "overview"]

JOB: Final = "optics"
"""Name of the agent's job that measures cells which were stored without."""
_AT_ONCE: Final = 256
_MOST: Final = 20_000  # latest cells that the past is judged by
_NOW: Final = timedelta(days=1)
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


def overview(store: Store, bundle: Bundle, *, now: datetime | None = None) -> list[Row]:
    """How each optics is, the one with the most cells first.

    {`analyser` (null for cells without a named one), `cells`, `today` (measured cells of the last 24 hours), `median` {measure: median
    of the latest cells, up to 20,000}, `drift` {measure: by how many robust standard deviations today's median is off that of the
    cells before} (null with fewer than 50 cells today or 200 before), `from_training` {measure: likewise, off the cells that the bundle
    was trained on} (null where the bundle does not say), `warnings` [{`measure`, `than` ("past" or "training"), `shift`}]}.
    Measures and the statistic: `labref.optics`. now : the end of the 24 hours; other than this moment only to try it out.
    """
    rows: list[Row] = []
    since = (now or datetime.now(UTC)) - _NOW
    counts = store.analysers()
    for analyser, cells in sorted(counts.items(), key=lambda item: (-item[1], item[0] or "")):
        today, past = store.optics.latest(analyser, since=since.astimezone(UTC), most=_MOST)
        latest = np.concatenate([today, past])[:_MOST]
        drift = shifts(today, past) if len(today) >= LEAST_NOW and len(past) >= LEAST_PAST else None
        known = bundle.manifest.optics
        recent = today if len(today) >= LEAST_NOW else latest[:LEAST_PAST]
        from_training = shifts(recent, known) if known and len(recent) >= LEAST_NOW else None
        warnings = _warnings(drift, "past", DRIFT) + _warnings(from_training, "training", FROM_TRAINING)
        rows.append(
            {
                "analyser": analyser,
                "cells": cells,
                "today": len(today),
                "median": _medians(latest),
                "drift": drift,
                "from_training": from_training,
                "warnings": warnings,
            }
        )
    return rows


def _warnings(found: dict[str, float] | None, than: str, limit: float) -> list[dict[str, Any]]:
    return [
        {"measure": name, "than": than, "shift": shift} for name, shift in (found or {}).items() if abs(shift) >= limit
    ]


def _medians(values: NDArray[np.float32]) -> dict[str, float] | None:
    if not len(values):
        return None
    return {name: round(float(median), 4) for name, median in zip(MEASURES, np.median(values, axis=0), strict=True)}


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
