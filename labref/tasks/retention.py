"""Retention: the removal of cells that a lab no longer keeps. It is off unless [retention] in labref.toml sets it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

from labref.failpoints import failpoint
from labref.lab import Lab
from labref.lab.pictures import forget_thumbnail
from labref.progress import Row, waiting
from labref.store import Due, Store

__all__ = ["REMOVAL", "UPKEEP", "Upkeep", "delete_bytes", "due", "empty_trash", "remove", "retain"]

_AT_ONCE: Final = 20_000  # cells in one transaction; after each, what the store keeps in memory is read again
_SAID_SECONDS: Final = 1.0


class Upkeep:
    """The right to remove cells or bring them back, or to copy kept images: one may at a time, so that a backup does
    not lose what it is about to copy. Whoever waits for it says for what."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work = ""

    def take(self, work: str) -> Generator[Row, None, None]:
        """Wait until it is free, and take it; the caller has to `release` it. It yields every second what it waits for,
        and whoever does not want to wait any longer leaves it there.

        work : what others are told that they wait for, as "a backup is written".
        """
        while not self._lock.acquire(timeout=_SAID_SECONDS):
            yield waiting(f"waits until something else in this lab has ended: {self._work}")
        self._work = work

    def release(self) -> None:
        """Let others have it."""
        self._work = ""
        self._lock.release()


UPKEEP: Final = Upkeep()
"""The one of this process: a lab's store is open in one process at a time."""
REMOVAL: Final = "old cells are removed"
"""What others are told while retention works."""


def due(lab: Lab, store: Store, *, limit: int = _AT_ONCE) -> list[Due]:
    """The cells that may be removed by the lab's configuration, at most `limit`; none where the lab keeps all cells."""
    keep = lab.config.retention
    if not keep.days and not keep.cells:
        return []
    return store.due(days=keep.days, cells=keep.cells, at_least=keep.at_least, reviewed=keep.reviewed, limit=limit)


def retain(lab: Lab, store: Store, *, stopped: Callable[[], bool], report: Callable[[int], None]) -> int:
    """Move cells that are due to the trash, no more than may go in a day, and return their number. Cells that have been
    in the trash for `trash_days` are deleted for good.

    Each part, of up to 20,000 cells, is one transaction. The kept bytes of deleted cells are deleted after their rows.
    A kill in between leaves bytes without a cell; the next call deletes these.

    stopped : asked before each transaction, and every second while something else has the lab's upkeep; True ends the
    removal.  report : called after each transaction with the number of cells removed so far.
    """
    for _ in UPKEEP.take(REMOVAL):
        if stopped():
            return 0
    try:
        return remove(lab, store, stopped=stopped, report=report)
    finally:
        UPKEEP.release()


def remove(lab: Lab, store: Store, *, stopped: Callable[[], bool], report: Callable[[int], None]) -> int:
    """The same as `retain`, for a caller that has taken `UPKEEP`."""
    store.sign_of_life()
    empty_trash(lab, store, days=lab.config.retention.trash_days)
    gone, left = 0, store.allowance(lab.config.retention.percent_a_day)
    while not stopped() and left > 0 and (cells := due(lab, store, limit=min(left, _AT_ONCE))):
        removed = store.remove(cells)
        gone, left = gone + removed, left - removed
        report(gone)
    return gone


def empty_trash(lab: Lab, store: Store, *, days: int | None = None) -> int:
    """Let go for good of what has been in the trash for so many days, or of all, with the kept bytes; returns how many
    cells that were. The caller has taken `UPKEEP`, where others work on the lab."""
    gone = store.trash.empty(days=days)
    delete_bytes(lab, store)
    return len(gone)


def delete_bytes(lab: Lab, store: Store) -> None:
    """Delete the kept bytes of all cells that are gone for good, those that a kill left among them."""
    failpoint("retention.bytes", may_fail=False)
    for digest in store.removed_digests():
        if os.path.exists(lab.image_path(digest)):  # noqa: PTH110
            _delete(lab, digest)


def _delete(lab: Lab, digest: str) -> None:
    forget_thumbnail(lab, digest)
    path: Path = lab.image_path(digest)
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # only where it is empty
