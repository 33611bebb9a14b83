"""How long the disk that holds a lab lasts, at the rate at which the lab grew."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from labref.lab import Lab
from labref.lab.backups import is_old
from labref.progress import Row
from labref.store import Store

__all__ = ["LEAST_FREE", "is_short", "room", "wanting"]

LEAST_FREE: Final = 500_000_000
"""Bytes. With fewer free a disk counts as full: DuckDB writes its log and a copy of what changes before it takes room
from the store's file."""
_OF_A_STORE: Final = 8 * 1000**2  # bytes: a store takes 3 to 9 MB before its cells count
_SEEN: Final = timedelta(days=30)
_LEAST_SEEN: Final = timedelta(days=2)
"""A lab that has grown for less time than this was perhaps only given what the analyser had already exported."""


def room(lab: Lab, store: Store, every: int, now: datetime | None = None) -> Row | None:
    """The disk that holds the lab's folder: {`free`, `total`: bytes; `bytes_a_cell`: of originals and store, null with
    no cell in the last 30 days; `cells_a_day`: in these days; `days_left`: until the disk is full at this rate}. The
    last two are null where the lab has not grown for two days yet. None where the system does not say.

    every : cells in the lab.  now : with a time zone; by default this moment.
    """
    try:
        usage = shutil.disk_usage(lab.folder)
        stored = lab.store_file.stat().st_size
    except OSError:
        return None
    if not usage.total:
        return None
    found: Row = {
        "free": usage.free,
        "total": usage.total,
        "bytes_a_cell": None,
        "cells_a_day": None,
        "days_left": None,
    }
    now = now or datetime.now(UTC)
    cells, size, first = store.growth(now - _SEEN)
    if not cells or not every or first is None:
        return found
    bytes_a_cell = size / cells + max(0, stored - _OF_A_STORE) / every
    found["bytes_a_cell"] = round(bytes_a_cell)
    if now - first < _LEAST_SEEN:
        return found
    a_day = cells / ((now - first) / timedelta(days=1))
    days_left = max(0, usage.free - LEAST_FREE) / (a_day * bytes_a_cell)
    return found | {"cells_a_day": round(a_day, 1), "days_left": round(days_left, 1)}


def is_short(disk: Row | None, disk_days: int) -> bool:
    """Whether somebody has to see to the disk. disk : as `room` gives it.  disk_days : of [health] in labref.toml."""
    if disk is None:
        return False
    return disk["free"] < LEAST_FREE or (disk["days_left"] is not None and disk["days_left"] < disk_days)


def wanting(lab: Lab, store: Store) -> Literal["disk", "backup"] | None:
    """What somebody has to see to before anything is lost: the disk that fills, or the backup that is old."""
    cells = store.counts().cells
    if is_short(room(lab, store, cells), lab.config.health.disk_days):
        return "disk"
    return "backup" if is_old(lab, cells) else None
