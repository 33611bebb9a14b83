"""The agent's jobs for the maps: training where it is due, and placing stored cells that have no place on them yet."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any, Final

from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running
from labref.tasks.mapping import due, due_own, retrain

__all__ = ["NAME", "keep_map", "map_job"]

NAME: Final = "map"
"""Name of the job that trains the map."""
_AFTER_FAILURE: Final = timedelta(hours=1)


def map_job(context: Context, **settings: Any) -> Job:
    """The job that trains the map of the bundle in use. settings : arguments of `labref.tasks.mapping.retrain`."""

    def work(running: Running) -> None:
        bundle = context.store.active_bundle()
        if bundle is None:
            return
        with contextlib.closing(retrain(context.store, context.lab.config.map, bundle, **settings)) as steps:
            for done, total, text in steps:
                if running.stopped:
                    return
                running.report(done, total, text)

    return Job(NAME, work)


def keep_map(context: Context) -> Job | None:
    """The job that is due: the training, or the placing of cells that have no place on the map yet; None where neither
    is due. Takes milliseconds."""
    assert context.jobs is not None
    bundle = context.store.active_bundle()
    if bundle is None or context.jobs.has(NAME):
        return None
    if context.jobs.failed_within(NAME, _AFTER_FAILURE):
        return None  # the cause, such as a full disk, is probably still there
    store, config = context.store, context.lab.config.map
    if due(store, config, bundle) is not None:
        return map_job(context)
    if store.maps.lacks_places(bundle):
        return Job(f"{NAME} places", lambda _: store.maps.catch_up(bundle))
    analyser = due_own(store, config, bundle)
    return None if analyser is None else map_job(context, analyser=analyser)
