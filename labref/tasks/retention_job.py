"""The agent's daily job that removes the cells that the lab's configuration no longer keeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from labref.tasks import retention
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running

__all__ = ["NAME", "keep_retention"]

NAME: Final = "retention"
_EVERY: Final = timedelta(days=1)


def keep_retention(context: Context) -> Job | None:
    """The job, where [retention] is set or cells were ever removed, and the last one was a day ago; else None."""
    keep = context.lab.config.retention
    if context.jobs is None:
        return None
    last = context.jobs.status()["ended"].get(NAME)
    if last is not None and abs(datetime.now(UTC) - datetime.fromisoformat(last["at"])) < _EVERY:
        return None
    if not keep.days and not keep.cells and not context.store.withdrawal.ever():
        return None
    if context.store.changes.pending() is not None:
        return None  # cells are being embedded again; they are removed afterwards

    def work(running: Running) -> None:
        retention.retain(
            context.lab,
            context.store,
            stopped=lambda: running.stopped,
            report=lambda gone: running.report(gone, gone, "cells removed"),
        )

    return Job(NAME, work)
