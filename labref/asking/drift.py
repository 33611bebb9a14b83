"""Whether the optics of a lab's analysers have changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.bundles.bundle import Bundle
from labref.cells.optics import DRIFT, FROM_TRAINING, LEAST_NOW, LEAST_PAST, shifts
from labref.progress import Row
from labref.store import Store
from labref.words import MEASURES

__all__ = ["from_training", "overview"]


_MOST: Final = 20_000  # cells, the latest ones, that the past of an analyser is judged by
_NOW: Final = timedelta(days=1)


def overview(store: Store, bundle: Bundle | None, *, now: datetime | None = None) -> list[Row]:
    """The optics of each analyser, the analyser with the most cells first.

    One row for each: {`analyser` (null for cells without a named analyser), `cells`, `today` (number of measured cells
    of the last 24 hours), `median` {measure: median of the latest cells, up to 20,000}, `drift` {measure: today's
    median minus that of the earlier cells, in robust standard deviations} (null with fewer than 50 cells today or 200
    earlier ones), `from_training` {measure: the same against the cells that the bundle was trained on} (null where the
    bundle does not describe these), `warnings` [{`measure`, `than` ("past" or "training"), `shift`}]}.
    `labref.cells.optics` defines the measures and the statistic.

    now : the end of the 24 hours; by default this moment. Tests give another.
    """
    rows: list[Row] = []
    since = (now or datetime.now(UTC)) - _NOW
    counts = store.analysers()
    for analyser, cells in sorted(counts.items(), key=lambda item: (-item[1], item[0] or "")):
        today, past = store.optics.latest(analyser, since=since.astimezone(UTC), most=_MOST)
        latest = np.concatenate([today, past])[:_MOST]
        drift = shifts(today, past) if len(today) >= LEAST_NOW and len(past) >= LEAST_PAST else None
        off = None if bundle is None else _from_training(today, latest, bundle)
        warnings = _warnings(drift, "past", DRIFT) + _warnings(off, "training", FROM_TRAINING)
        rows.append(
            {
                "analyser": analyser,
                "cells": cells,
                "today": len(today),
                "median": _medians(latest),
                "drift": drift,
                "from_training": off,
                "warnings": warnings,
            }
        )
    return rows


def from_training(store: Store, bundle: Bundle, analyser: str | None) -> dict[str, float] | None:
    """{measure: shift} of an analyser's optics from the cells that the bundle was trained on, as in `overview`, by the
    latest 200 cells: those of the last 24 hours, where they are at least 50. None with fewer than 50 cells, or where
    the bundle does not describe its own."""
    today, past = store.optics.latest(analyser, since=datetime.now(UTC) - _NOW, most=LEAST_PAST)
    return _from_training(today, np.concatenate([today, past]), bundle)


def _from_training(today: NDArray[np.float32], latest: NDArray[np.float32], bundle: Bundle) -> dict[str, float] | None:
    """The shift of today's cells, or where these are few of the latest, from those that the bundle was trained on."""
    recent = today if len(today) >= LEAST_NOW else latest[:LEAST_PAST]
    trained_on = bundle.manifest.optics
    return shifts(recent, trained_on) if trained_on and len(recent) >= LEAST_NOW else None


def _warnings(found: dict[str, float] | None, than: str, limit: float) -> list[dict[str, Any]]:
    return [
        {"measure": name, "than": than, "shift": shift} for name, shift in (found or {}).items() if abs(shift) >= limit
    ]


def _medians(values: NDArray[np.float32]) -> dict[str, float] | None:
    if not len(values):
        return None
    return {name: round(float(median), 4) for name, median in zip(MEASURES, np.median(values, axis=0), strict=True)}
