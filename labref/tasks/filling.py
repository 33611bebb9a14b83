"""What was not stored of cells when they came, as in a lab that an older labref filled: made from their kept bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from labref.errors import LabError, UnreadableImageError
from labref.lab import Lab
from labref.progress import Row, progress
from labref.store import Store
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running

__all__ = ["due", "fill"]

_Made = TypeVar("_Made")
_AT_ONCE: Final = 256
_LEAST_SLICE_SECONDS: Final = 30.0


def fill(
    lab: Lab,
    store: Store,
    missing: Sequence[str],
    make: Callable[[bytes], _Made],
    add: Callable[[Mapping[str, _Made | None]], None],
    text: str,
) -> Iterator[Row]:
    """Make what some stored cells lack, and store it in parts; yields `progress` at least every few seconds.

    missing : their ids.  make : from the bytes of a cell's picture.  add : stores what was made, by id; None for a cell
    whose bytes are gone or unreadable.  text : what the cells are, for the progress.
    """
    told = time.monotonic()
    for start in range(0, len(missing), _AT_ONCE):
        made: dict[str, _Made | None] = {}
        for cell_id, cell in store.cells(missing[start : start + _AT_ONCE]).items():
            try:
                made[cell_id] = make(lab.read_image(cell.digest))
            except (LabError, UnreadableImageError):
                made[cell_id] = None
            if time.monotonic() - told > 1.0:
                told = time.monotonic()
                yield progress(start + len(made), len(missing), text)
        add(made)
        yield progress(min(start + _AT_ONCE, len(missing)), len(missing), text)


def due(
    context: Context, name: str, counts: Callable[[], tuple[int, int]], work: Callable[[], Iterator[Row]]
) -> Job | None:
    """The agent's job of this name where cells lack something; else None. It leaves off early where another job waits,
    and a later one goes on.

    counts : how many cells there are, and how many lack nothing.  work : `fill`, as an iterator.
    """
    cells, done = counts()
    if done >= cells or (context.jobs is not None and context.jobs.has(name)):
        return None
    return Job(name, lambda running: _work(context, running, work()))


def _work(context: Context, running: Running, steps: Iterator[Row]) -> None:
    started = time.monotonic()
    for row in steps:
        said = row["progress"]
        running.report(said["done"], said["total"], said["text"])
        waiting = context.jobs is not None and context.jobs.status()["waiting"]
        if running.stopped or (waiting and time.monotonic() - started > _LEAST_SLICE_SECONDS):
            return
