"""Whether pictures show a cell, judged of cells that were stored before labref judged them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from pydantic import Field

from labref.cells.quality import Thresholds, judge
from labref.errors import LabError, UnreadableImageError
from labref.lab import Lab
from labref.operations import operation
from labref.operations.models import Answer, Progress
from labref.progress import Row, progress
from labref.store import Store
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running
from labref.words import Quality

__all__ = ["JOB", "PicturesJudged", "due"]

JOB: Final = "quality"
"""Name of the agent's job that judges the pictures of cells that were stored without."""
_AT_ONCE: Final = 256
_LEAST_SLICE_SECONDS: Final = 30.0


class PicturesJudged(Answer):
    """The result of judging."""

    judged: int = Field(description="Cells whose picture was judged.")
    doubted: int = Field(description="Cells of the lab that are no references because of their picture.")


@operation("quality.judge", Progress, PicturesJudged)
def judge_all(context: Context) -> Iterator[Row]:
    """Judge, from their kept bytes, the pictures of the cells that were stored without."""
    _, before = context.store.qualities.counts()
    yield from _judge(context.lab, context.store)
    judged = context.store.qualities.counts()[1] - before
    yield {"judged": judged, "doubted": len(context.store.qualities.doubted())}


def due(context: Context) -> Job | None:
    """The agent's job where pictures were not judged, as in a lab that an older labref filled; else None."""
    cells, judged = context.store.qualities.counts()
    if judged >= cells or (context.jobs is not None and context.jobs.has(JOB)):
        return None
    return Job(JOB, lambda running: _job(context, running))


def _job(context: Context, running: Running) -> None:
    started = time.monotonic()
    for row in _judge(context.lab, context.store):
        said = row["progress"]
        running.report(said["done"], said["total"], said["text"])
        waiting = context.jobs is not None and context.jobs.status()["waiting"]
        if running.stopped or (waiting and time.monotonic() - started > _LEAST_SLICE_SECONDS):
            return


def _judge(lab: Lab, store: Store) -> Iterator[Row]:
    missing = store.qualities.unjudged()
    thresholds = Thresholds.of(lab.bundle(store).manifest.quality)
    told = time.monotonic()
    for start in range(0, len(missing), _AT_ONCE):
        made: dict[str, Quality | None] = {}
        for cell_id, cell in store.cells(missing[start : start + _AT_ONCE]).items():
            try:
                made[cell_id] = judge(lab.decoder.judge(lab.read_image(cell.digest))[1], thresholds)
            except (LabError, UnreadableImageError):
                made[cell_id] = None
            if time.monotonic() - told > 1.0:
                told = time.monotonic()
                yield progress(start + len(made), len(missing), "cells whose pictures are judged")
        store.qualities.add(made)
        yield progress(min(start + _AT_ONCE, len(missing)), len(missing), "cells whose pictures are judged")
