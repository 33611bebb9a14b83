"""The agent's job that has the distances by which a large lab calls a cell novel ready before somebody asks."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from labref.asking.novelty import prepare, ready
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running

__all__ = ["NAME", "keep_novelty"]

NAME: Final = "novelty"
_AFTER_FAILURE: Final = timedelta(hours=1)


def keep_novelty(context: Context) -> Job | None:
    """The job, where whoever asks next would wait for these distances; else None."""
    store, jobs = context.store, context.jobs
    bundle = store.active_bundle()
    if jobs is None or bundle is None or jobs.has(NAME) or jobs.failed_within(NAME, _AFTER_FAILURE):
        return None
    counts = store.analysers()
    asked = [*(name for name in counts if name is not None), *([None] if len(counts) > 1 or None in counts else [])]
    missing = [analyser for analyser in asked if not ready(store, bundle, analyser)]
    if not missing or store.changes.pending() is not None:
        return None  # of a bundle that is just being changed nobody asks for long

    def work(running: Running) -> None:
        for done, analyser in enumerate(missing):
            running.report(done, len(missing), "analysers whose cells are compared with each other")
            prepare(store, bundle, analyser, lambda: running.stopped)

    return Job(NAME, work)
