"""Cells that a lab no longer keeps: off unless labref.toml's [retention] says otherwise."""

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

_AT_ONCE: Final = 20_000  # in one transaction; what is in memory is read again after each
UPKEEP: Final = threading.Lock()
"""Held while cells are removed, or kept images are copied: a backup must not lose what it is about to copy."""


def due(lab: Lab, store: Store, *, limit: int = _AT_ONCE) -> list[Due]:
    """The cells that may go now, by the lab's configuration; none where it keeps all."""
    keep = lab.config.retention
    if not keep.days and not keep.cells:
        return []
    return store.due(days=keep.days, cells=keep.cells, at_least=keep.at_least, reviewed=keep.reviewed, limit=limit)


def retain(lab: Lab, store: Store, *, stopped: Callable[[], bool], report: Callable[[int], None]) -> int:
    """Remove what is due, and return how many cells that were.

    Each part is one transaction, after which its kept bytes are deleted: killed in between, bytes without a cell are
    left, which
    the next call deletes. stopped : asked between parts.  report : how many are gone.
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
