"""Retention: the removal of cells that a lab no longer keeps. It is off unless [retention] in labref.toml sets it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from labref.failpoints import failpoint
from labref.lab import Lab
from labref.store import Due, Store

__all__ = ["UPKEEP", "due", "empty_trash", "retain"]

_AT_ONCE: Final = 20_000  # cells in one transaction; after each, what the store keeps in memory is read again
UPKEEP: Final = threading.Lock()
"""Held while cells are removed or brought back, or kept images are copied: a backup must not lose what it is about to
copy."""


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

    stopped : asked before each transaction; True ends the removal.  report : called after each transaction with the
    number of cells removed so far.
    """
    with UPKEEP:
        store.sign_of_life()
        _empty(lab, store, days=lab.config.retention.trash_days)
        gone, left = 0, store.allowance(lab.config.retention.percent_a_day)
        while not stopped() and left > 0 and (cells := due(lab, store, limit=min(left, _AT_ONCE))):
            removed = store.remove(cells)
            gone, left = gone + removed, left - removed
            report(gone)
    return gone


def empty_trash(lab: Lab, store: Store) -> int:
    """Let go for good of all that is in the trash, with the kept bytes; returns how many cells that were."""
    with UPKEEP:
        return _empty(lab, store, days=None)


def _empty(lab: Lab, store: Store, *, days: int | None) -> int:
    gone = store.trash.empty(days=days)
    failpoint("retention.bytes", may_fail=False)
    for digest in store.removed_digests():
        if os.path.exists(lab.image_path(digest)):  # noqa: PTH110
            _delete(lab, digest)
    return len(gone)


def _delete(lab: Lab, digest: str) -> None:
    path: Path = lab.image_path(digest)
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # only where it is empty
