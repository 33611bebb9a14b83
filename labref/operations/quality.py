"""Whether pictures show a cell, judged of cells that were stored before labref judged them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic import Field

from labref.cells.quality import Thresholds, judge
from labref.lab import Lab
from labref.operations import operation
from labref.operations.models import Answer, Progress
from labref.progress import Row
from labref.store import Store
from labref.tasks import filling
from labref.tasks.context import Context
from labref.tasks.jobs import Job
from labref.words import Quality

__all__ = ["JOB", "PicturesJudged", "due"]

JOB: Final = "quality"
"""Name of the agent's job that judges the pictures of cells that were stored without."""


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
    return filling.due(context, JOB, context.store.qualities.counts, lambda: _judge(context.lab, context.store))


def _judge(lab: Lab, store: Store) -> Iterator[Row]:
    thresholds = Thresholds.of(lab.bundle(store).manifest.quality)

    def made(data: bytes) -> Quality:
        return judge(lab.decoder.judge(data)[1], thresholds)

    qualities = store.qualities
    yield from filling.fill(lab, store, qualities.missing(), made, qualities.add, "cells whose pictures are judged")
