"""Which analyser a question's cell came from, and which analyser's cells its references are taken from.

The analyser is known, in this order, where the question names it, the cell is stored with it, the cell's file lies in a
watched folder that has one, the cell is a recapture of a cell that has one, or the lab has no other. Else the optics
may tell: see `by_optics`. Where nothing tells, all cells of the lab are searched, and each reference says where it is
from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labref.cells.optics import LEAST_NOW, LEAST_SPREAD, robust
from labref.errors import LabrefError, LayoutError
from labref.export.layout import Layout
from labref.export.paths import path_from_text
from labref.lab import Lab
from labref.store import Cell, Store

__all__ = ["Optics", "Telling", "by_optics", "of_file", "optics_of"]

_MOST: Final = 400  # of an analyser's latest cells, that optics are compared with
_NEAR: Final = 3  # nearest of these, whose mean distance counts
_WRONG: Final = 0.005  # of the lab's own cells may be given to a wrong analyser
_LEAST_MARGIN: Final = 1.5
_USUAL: Final = 0.95  # of an analyser's own cells lie as near to the others


@dataclass(frozen=True)
class Optics:
    """Which analyser's cells the references are taken from.

    analyser : the query's analyser, None where it is unknown.  only : True where only cells of that analyser were
    searched.  how : where the analyser is known from: "asked" (the question named it), "stored" (the query is in the
    store), "folder" (its file lies in a watched folder that has one), "recapture" (the query is another picture of a
    stored cell), "single" (the lab has no other analyser), "optics" (background, focus and colour tell), "unknown", or
    "any" (the question asked for all analysers).  cells : number of cells that were searched.
    """

    analyser: str | None
    only: bool
    how: str
    cells: int


@dataclass(frozen=True)
class Telling:
    """What tells a query's analyser beside the question and the store.

    folder : the analyser of the watched folder that its file lies in.  measures : returns the seven measures of its
    optics, float32[7] (`labref.cells.optics`); asked for only where nothing else tells.
    """

    folder: str | None = None
    measures: Callable[[], NDArray[np.float32] | None] | None = None


def of_file(lab: Lab, store: Store, labels: tuple[str, ...], path: str) -> str | None:
    """The analyser of a file that lies in a watched folder, whether it is there or not; None for any other file, and
    where neither folder nor path names one. Nothing is read.

    path : absolute, as `labref.export.paths.path_to_text` writes it.  labels : the bundle's.
    """
    file = path_from_text(path)
    for root in sorted(lab.watched, key=lambda folder: -len(str(folder))):
        for name, below in ((file, str(root)), (os.path.realpath(file), os.path.realpath(root))):
            if name.startswith(below.rstrip(os.sep) + os.sep):
                relative = os.path.relpath(name, below).replace(os.sep, "/")
                layout = Layout(lab.config.watch, labels, lab.analysers, store.given_classes)
                try:
                    return layout.place(relative, str(root)).analyser
                except LayoutError:
                    return lab.analysers.get(str(root), lab.config.watch.analyser)
    return None


def optics_of(
    store: Store,
    stored: Cell | None,
    repeated: Cell | None,
    analyser: str | None,
    any_optics: bool,
    telling: Telling | None = None,
) -> Optics:
    """Which analyser's cells the references of a query are taken from.

    stored : the query, where it is in the store.  repeated : the stored cell that it is a recapture of.  analyser : the
    one that the question names. Raises `LabrefError` where no cell of the lab came from that one.
    """
    cells = store.analysers()
    total = sum(cells.values())
    telling = telling or Telling()
    how = "unknown"
    if analyser is not None:
        if analyser not in cells:
            names = ", ".join(sorted(name for name in cells if name is not None)) or "none with a name"
            raise LabrefError(
                f"no cell of this lab came from an analyser called {analyser!r}; there is {names}. Ask with --any-optics, or name one."
            )
        how = "asked"
    elif stored is not None and stored.analyser is not None:
        analyser, how = stored.analyser, "stored"
    elif telling.folder is not None:
        analyser, how = telling.folder, "folder"
    elif repeated is not None and repeated.analyser is not None:
        analyser, how = repeated.analyser, "recapture"
    elif len(cells) == 1:
        analyser, how = next(iter(cells)), "single"
    elif telling.measures is not None and not any_optics and len(cells) > 1:
        measures = telling.measures()
        analyser = None if measures is None else by_optics(store, measures)
        how = "unknown" if analyser is None else "optics"
    if any_optics:
        return Optics(analyser, False, "any", total)
    # of an analyser that the lab has no cell of yet, all are searched
    if analyser is None or analyser not in cells:
        return Optics(analyser, False, how, total)
    return Optics(analyser, True, how, cells[analyser])


def by_optics(store: Store, measures: NDArray[np.float32]) -> str | None:
    """The analyser whose cells have optics like these, where that is clear; else None.

    measures : float32[7] of one cell. It is compared with up to 400 of the latest cells of each analyser, each measure
    in robust standard deviations, by the mean distance to the nearest three. The nearest analyser is the cell's where
    the second nearest is farther by a margin, and 95 % of its own cells lie no nearer to each other. The margin is the
    smallest, at least 1.5, at which at most 0.5 % of the lab's own cells, each left out in turn, would be given to a
    wrong analyser. With fewer than 50 measured cells of any analyser, or cells whose analyser has no name, nothing is
    said. A millisecond, and some more after new cells.
    """
    known = _samples(store)
    return None if known is None or not np.isfinite(measures).all() else known.tell(measures)


class _Samples:
    """Optics of some cells of each analyser, and the margin that was found among them."""

    def __init__(self, values: Mapping[str, NDArray[np.float32]]) -> None:
        """values : float32[n, 7] of each analyser."""
        within = np.stack([robust(of_one)[1] for of_one in values.values()])
        self._scale = np.maximum(within.mean(axis=0), LEAST_SPREAD)
        self._names = list(values)
        self._cells = [of_one.astype(np.float64) / self._scale for of_one in values.values()]
        self._usual, self._margin = self._calibrated()

    def _away(self, cells: NDArray[np.float64], own: int | None) -> NDArray[np.float64]:
        """Mean distance of these cells to the nearest of each analyser: float64[n, analysers]. own : the analyser that
        they are themselves the sample of."""
        columns = []
        for number, others in enumerate(self._cells):
            apart = np.sqrt(np.square(cells[:, None] - others[None]).sum(axis=2))
            if number == own:
                np.fill_diagonal(apart, np.inf)
            columns.append(np.partition(apart, _NEAR - 1, axis=1)[:, :_NEAR].mean(axis=1))
        return np.stack(columns, axis=1)

    def _calibrated(self) -> tuple[list[float], float]:
        usual, ratios, right = [], [], []
        for number, cells in enumerate(self._cells):
            away = self._away(cells, number)
            usual.append(float(np.quantile(away[:, number], _USUAL)))
            first, second = np.sort(away, axis=1)[:, :2].T
            ratios.append(second / np.maximum(first, 1e-9))
            right.append(away.argmin(axis=1) == number)
        ratio, good = np.concatenate(ratios), np.concatenate(right)
        wrong = np.sort(ratio[~good])[::-1]
        allowed = int(_WRONG * len(ratio))
        return usual, max(_LEAST_MARGIN, float(wrong[allowed]) if len(wrong) > allowed else 0.0)

    def tell(self, measures: NDArray[np.float32]) -> str | None:
        (away,) = self._away((measures.astype(np.float64) / self._scale)[None], None)
        best = int(away.argmin())
        second = float(np.partition(away, 1)[1])
        clear = second > self._margin * max(float(away[best]), 1e-9)
        return self._names[best] if clear and away[best] <= self._usual[best] else None


_KEPT: WeakKeyDictionary[Store, tuple[tuple[dict[str | None, int], int], _Samples | None]] = WeakKeyDictionary()


def _samples(store: Store) -> _Samples | None:
    counts = store.analysers()
    if len(counts) < 2 or None in counts:
        return None
    seen = (counts, store.optics.counts()[1])
    kept = _KEPT.get(store)
    if kept is None or kept[0] != seen:
        now = datetime.now(UTC)
        values = {name: np.concatenate(store.optics.latest(name, since=now, most=_MOST)) for name in counts if name}
        enough = all(len(of_one) >= LEAST_NOW for of_one in values.values())
        kept = _KEPT[store] = (seen, _Samples(values) if enough else None)
    return kept[1]
