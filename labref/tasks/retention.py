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

__all__ = ["UPKEEP", "due", "retain"]

_AT_ONCE: Final = 20_000  # cells in one transaction; after each, what the store keeps in memory is read again
UPKEEP: Final = threading.Lock()
"""Held while cells are removed or kept images are copied: retention must not delete an image that a backup is about to
copy."""


def due(lab: Lab, store: Store, *, limit: int = _AT_ONCE) -> list[Due]:
    """The cells to be removed now, at most `limit`, by the lab's configuration; none where the lab keeps all cells."""
    keep = lab.config.retention
    if not keep.days and not keep.cells:
        return []
    return store.due(days=keep.days, cells=keep.cells, at_least=keep.at_least, reviewed=keep.reviewed, limit=limit)


def retain(lab: Lab, store: Store, *, stopped: Callable[[], bool], report: Callable[[int], None]) -> int:
    """Remove the cells that are due, and return their number.

    Cells are removed in transactions of up to 20,000. After each transaction their kept bytes are deleted. A kill in
    between leaves bytes without a cell; the next call deletes these.

    stopped : asked before each transaction; True ends the removal.  report : called after each transaction with the
    number of cells removed so far.
    """
    with UPKEEP:
        _delete_bytes_of_removed(lab, store)
        gone = 0
        while not stopped() and (cells := due(lab, store)):
            store.remove(cells)
            failpoint("retention.bytes", may_fail=False)
            for cell in cells:
                _delete(lab, cell.digest)
            gone += len(cells)
            report(gone)
    return gone


def _delete_bytes_of_removed(lab: Lab, store: Store) -> None:
    for digest in store.removed_digests():
        if os.path.exists(lab.image_path(digest)):  # noqa: PTH110
            _delete(lab, digest)


def _delete(lab: Lab, digest: str) -> None:
    path: Path = lab.image_path(digest)
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # only where it is empty
