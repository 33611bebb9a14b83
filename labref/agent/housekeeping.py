"""What the serving agent looks after by itself: each housekeeper says, when asked, which job is due, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from labref.operations.bundle import due as embed_again
from labref.operations.duplicates import due as compare_cells
from labref.operations.optics import due as measure_optics
from labref.operations.quality import due as judge_pictures
from labref.tasks.context import Context
from labref.tasks.jobs import Job
from labref.tasks.map_job import keep_map
from labref.tasks.novelty_job import keep_novelty
from labref.tasks.retention_job import keep_retention

__all__ = ["HOUSEKEEPERS", "SECONDS", "housekeep"]

Housekeeper = Callable[[Context], Job | None]

SECONDS: Final = 5.0
"""How often they are asked; each answers within milliseconds."""
HOUSEKEEPERS: tuple[Housekeeper, ...] = (
    keep_novelty,
    embed_again,
    compare_cells,
    keep_map,
    keep_retention,
    measure_optics,
    judge_pictures,
)


def housekeep(context: Context) -> None:
    """Queue the jobs that are due."""
    if context.jobs is None:
        return
    for housekeeper in HOUSEKEEPERS:
        job = housekeeper(context)
        if job is not None:
            context.jobs.submit(job)
