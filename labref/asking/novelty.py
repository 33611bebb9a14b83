"""How unusual a cell is among the lab's own: p-values by split conformal prediction.

A sample of the lab's cells, each left out in turn, says how far a cell of this lab lies from its nearest others. The
share of the sample that lies at least as far as the query is its p-value: if the query came from where the sample came
from, p ≤ e has probability at most e, whatever the distribution (Vovk, Gammerman & Shafer 2005, Algorithmic Learning in
a Random World, ch. 2 and 4; as an anomaly detector: Laxhammar & Falkman 2010). It allows by itself for the size of the
lab, its optics and its mixture of classes. The distance is the mean of those to the nearest three physical cells.

By class as well (Mondrian): the query's distance to the nearest three of a class, among such distances of the sample's
cells of that class. Where even the most probable class has p ≤ 1 %, no class of this lab resembles the cell. Classes
with fewer than a hundred cells in the sample are judged by the distances of all classes together. The network is a
second witness: it gives the cell a class that it hardly gives any cell of this lab, and the cell lies farther from the
others than four fifths of the sample do.

With fewer than 99 cells no p-value reaches 1 %; there the bundle's own threshold counts
(`labref.bundles.bundle.NoveltyThreshold.among`), and from 20 cells on the query must also lie farther from its nearest
than any of these.

The sample is 256 cells and up to 128 of each class; in a lab of more than 20,000 cells, 128 in all, by which classes
are judged together. They are those with the smallest ids, which are digests: as good as drawn by chance, and the same
for everybody. Their distances are computed when they are first asked for, and again when the lab has grown or shrunk by
a tenth; in a lab of up to 500 cells after each change. In a large lab the questions do not wait for that.

For a million cells that takes seconds, so the distances of a large lab are kept in LAB/logs/novelty.json as well, and
the agent has them made before somebody asks (`ready`, `prepare`). What is kept there holds while the sample would be
the same cells with the same labels, but for a tenth, and the lab has not grown or shrunk by a tenth; it is no more than
a cache: a file that is damaged, or of another version, is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labref.bundles.bundle import NoveltyThreshold
from labref.errors import StoreError
from labref.files import replace_file
from labref.store import Store

__all__ = ["NEAREST", "UNUSUAL", "Novelty", "Yardstick", "by_threshold", "judge", "prepare", "ready", "yardstick"]

NEAREST: Final = 3
"""Physical cells whose mean distance counts."""
UNUSUAL: Final = 0.01
"""A p-value at or below this is called novel."""
_SAMPLE: Final = 256
_SAMPLE_OF_CLASS: Final = 128
_LARGE: Final = 20_000  # cells, above which the sample is smaller
_SAMPLE_OF_LARGE: Final = 128
_LEAST_OF_CLASS: Final = 100  # cells of a class, to be judged by themselves
_LEAST: Final = 20  # cells, for a p-value
_SURE: Final = 0.5  # probability of a class that the network gives
_HARDLY: Final = 0.005  # share of the sample that the network gives a class
_FAR: Final = 0.2  # p-value at which the network's word counts
_EXACT: Final = 500  # cells, up to which the sample is made anew after each change
_GROWN: Final = 0.1
_COLUMNS: Final = 4096  # cells that the sample is compared with at once
_CANDIDATES: Final = 12  # nearest captures kept of each, so that three physical cells are among them
_ROUNDING: Final = 1e-9
_VERSION: Final = 1  # of the file; grows when the distances come to be others
_MOST_KEPT: Final = 16  # of bundles and analysers, in the file


@dataclass(frozen=True)
class Novelty:
    """Whether the query is unlike the stored cells.

    score : mean distance of the nearest cells, divided by the bundle's threshold; None in an empty store.  is_novel :
    nothing here resembles the cell.  p : how unusual its distance is among the lab's own, 0 to 1; None with fewer than
    20 cells.  class_p : the same for the class that it fits best, `class_label`.  no_class : no class of this lab
    resembles it.  words : that in words; None where something does.
    """

    score: float | None
    is_novel: bool
    p: float | None = None
    class_p: float | None = None
    class_label: str | None = None
    no_class: bool = False
    words: str | None = None


@dataclass(frozen=True)
class Yardstick:
    """Distances of the lab's own cells from their nearest others, float64, ascending.

    near : of the sample.  by_class : of cells of each class from their nearest of that class; only classes with enough
    cells.  pooled : the same of all classes together.  called : share of the sample by the class that the network
    gives.  sample : the cells of the sample, by id, and their labels.
    """

    near: NDArray[np.float64]
    by_class: Mapping[str, NDArray[np.float64]]
    pooled: NDArray[np.float64]
    called: Mapping[str, float]
    sample: Mapping[str, str] = field(default_factory=dict)

    @property
    def enough(self) -> bool:
        """Whether a p-value can be small enough to say something."""
        return 1 / (1 + len(self.near)) <= UNUSUAL

    def p(self, distance: float, label: str | None = None) -> float:
        """The p-value of a distance, of a class where one is named."""
        known = self.near if label is None else self.by_class.get(label, self.pooled)
        at = int(np.searchsorted(known, distance * (1 - _ROUNDING)))
        return (1 + len(known) - at) / (1 + len(known))


def by_threshold(distances: Sequence[float], threshold: float) -> Novelty:
    """Whether a cell is unlike others by a bundle's threshold alone. distances : mean squared errors of the nearest,
    all of which count."""
    if not distances:
        return Novelty(None, True, words=_NOTHING)
    score = math.fsum(distances) / len(distances) / threshold
    return Novelty(score, score > 1, words=_NOTHING if score > 1 else None)


def judge(
    distances: Sequence[float],
    labels: Sequence[str],
    threshold: NoveltyThreshold,
    cells: int,
    known: Yardstick | None,
    *,
    whole: bool,
    nearest: Sequence[float] | None = None,
    predicted: tuple[str, float] | None = None,
) -> Novelty:
    """Whether a cell is unlike the stored ones.

    distances : mean squared errors of the nearest physical cells, ascending.  labels : of these.  threshold : the
    bundle's.  cells : how many were searched.  known : the lab's own distances; None where there are none.  whole :
    these are all cells.  nearest : distances of the nearest captures, which the score counts; by default `distances`.
    predicted : class and probability that the network gives.
    """
    plain = by_threshold((distances if nearest is None else nearest)[: threshold.k], threshold.among(cells))
    if not distances or known is None:
        return plain
    p = known.p(_mean(distances[:NEAREST]))
    of_class: dict[str, list[float]] = {}
    for label, distance in zip(labels, distances, strict=True):
        of_class.setdefault(label, []).append(distance)
    best, class_p = None, 0.0
    for label, away in of_class.items():
        # of a class with fewer among the nearest, the others are at least as far as the farthest of these
        missing = 0 if whole else max(0, NEAREST - len(away))
        found = known.p(_mean([*away[:NEAREST], *[distances[-1]] * missing]), label)
        if found > class_p:
            best, class_p = label, found
    strange = (
        predicted is not None
        and predicted[1] > _SURE
        and known.called.get(predicted[0], 0.0) < _HARDLY
        and min(p, class_p) <= _FAR
    )
    novel = p <= UNUSUAL if known.enough else plain.is_novel and p * (1 + len(known.near)) < 1.5
    no_class = novel or class_p <= UNUSUAL or strange
    words = _NOTHING if novel else _NO_CLASS if no_class else None
    return Novelty(plain.score, novel, p, class_p, best, no_class, words)


_NOTHING: Final = "nothing here resembles this cell"
_NO_CLASS: Final = "no class of this lab resembles this cell"

_Stamp = tuple[int, int, int]  # cells, changes of labels, cells that repeat others
_KEPT: WeakKeyDictionary[Store, dict[tuple[str, str | None], tuple[_Stamp, Yardstick | None]]] = WeakKeyDictionary()
_MAKING = threading.Lock()


def yardstick(store: Store, bundle: str, analyser: str | None) -> Yardstick | None:
    """The lab's own distances in the space of a bundle, among the cells of one analyser (None: of all); None for fewer
    than 20 cells. Microseconds; where it has to be made, milliseconds in a young lab, seconds for a million cells."""
    stamp = _stamp(store, analyser)
    if stamp[0] < _LEAST:
        return None
    kept = _KEPT.setdefault(store, {})
    found = kept.get((bundle, analyser))
    if found is not None and _still_good(found[0], stamp):
        return found[1]
    if found is not None and stamp[0] > _LARGE:
        if _MAKING.acquire(blocking=False):
            threading.Thread(
                target=_remade, args=(store, bundle, analyser, stamp), name="labref-novelty", daemon=True
            ).start()
        return found[1]
    with _MAKING:
        return _first(store, bundle, analyser, stamp, _never)


def ready(store: Store, bundle: str, analyser: str | None) -> bool:
    """Whether nobody who asks about a cell of this analyser (None: of all) has to wait for seconds."""
    return _cells(store, analyser) <= _LARGE or (bundle, analyser) in _KEPT.get(store, {})


def prepare(store: Store, bundle: str, analyser: str | None, stopped: Callable[[], bool]) -> None:
    """Have the distances of a large lab ready for whoever asks next. stopped : asked some times a second; once it is
    true this ends, and nothing is kept."""
    while not _MAKING.acquire(timeout=0.2):
        if stopped():
            return
    try:
        with contextlib.suppress(_StoppedError):
            _first(store, bundle, analyser, _stamp(store, analyser), stopped)
    finally:
        _MAKING.release()


class _StoppedError(Exception):
    """Nobody wants it any more."""


def _never() -> bool:
    return False


def _cells(store: Store, analyser: str | None) -> int:
    counts = store.analysers()
    return sum(counts.values()) if analyser is None else counts.get(analyser, 0)


def _stamp(store: Store, analyser: str | None) -> _Stamp:
    return _cells(store, analyser), store.label_book.changes, len(store.groups)


def _first(
    store: Store, bundle: str, analyser: str | None, stamp: _Stamp, stopped: Callable[[], bool]
) -> Yardstick | None:
    """The distances, from the file or made now, where nobody made them meanwhile; the caller has the lock."""
    kept = _KEPT.setdefault(store, {})
    found = kept.get((bundle, analyser))
    if found is None or not _still_good(found[0], stamp):
        large = stamp[0] > _LARGE
        made = _read(store, bundle, analyser, stamp) if large else None
        if made is None:
            made = _made(store, bundle, analyser, stopped)
            if large:
                _write(store, bundle, analyser, stamp, made)
        found = kept[(bundle, analyser)] = (stamp, made)
    return found[1]


def _remade(store: Store, bundle: str, analyser: str | None, stamp: _Stamp) -> None:
    try:
        with contextlib.suppress(StoreError):  # closed meanwhile
            made = _made(store, bundle, analyser, _never)
            _KEPT[store][(bundle, analyser)] = (stamp, made)
            _write(store, bundle, analyser, stamp, made)
    finally:
        _MAKING.release()


# the file


def _file(store: Store) -> Path:
    return store.path.parent / "logs" / "novelty.json"


def _key(bundle: str, analyser: str | None) -> str:
    return f"{bundle} {json.dumps(analyser)}"


def _entries(store: Store) -> dict[str, Any]:
    """What the file holds; nothing where it is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        held = json.loads(_file(store).read_bytes())
        if held["version"] == _VERSION and held["sha256"] == _digest(held["entries"]):
            return dict(held["entries"])
    return {}


def _digest(entries: Any) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _read(store: Store, bundle: str, analyser: str | None, now: _Stamp) -> Yardstick | None:
    """What the file holds, where that still holds for the lab as it is now."""
    entry = _entries(store).get(_key(bundle, analyser))
    if entry is None or not _still_good((entry["cells"], now[1], entry["repeats"]), now):
        return None
    made = Yardstick(
        np.array(entry["near"], np.float64),
        {label: np.array(known, np.float64) for label, known in entry["by_class"].items()},
        np.array(entry["pooled"], np.float64),
        entry["called"],
        entry["sample"],
    )
    labels = store.labels(list(made.sample))
    others = sum(labels.get(cell_id) != label for cell_id, label in made.sample.items())
    return made if made.sample and others <= _GROWN * len(made.sample) else None


def _write(store: Store, bundle: str, analyser: str | None, stamp: _Stamp, made: Yardstick | None) -> None:
    """Keep it in the file; where that cannot be written, it is made again after the next start."""
    if made is None:
        return
    entries = _entries(store)
    entries.pop(_key(bundle, analyser), None)  # the last one written stands last
    entries[_key(bundle, analyser)] = {
        "cells": stamp[0],
        "repeats": stamp[2],
        "near": made.near.tolist(),
        "by_class": {label: known.tolist() for label, known in made.by_class.items()},
        "pooled": made.pooled.tolist(),
        "called": dict(made.called),
        "sample": dict(made.sample),
    }
    entries = dict(list(entries.items())[-_MOST_KEPT:])
    file = _file(store)
    with contextlib.suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        replace_file(file, json.dumps({"version": _VERSION, "sha256": _digest(entries), "entries": entries}))


def _still_good(made: _Stamp, now: _Stamp) -> bool:
    if now[0] <= _EXACT:
        return made == now
    return all(abs(after - before) <= _GROWN * made[0] for before, after in zip(made, now, strict=True))


def _made(store: Store, bundle: str, analyser: str | None, stopped: Callable[[], bool]) -> Yardstick | None:
    names, label_of = _labels(store)
    ids, labels = [], []
    for some, _ in store.every_latent(bundle=bundle, analyser=analyser):
        if stopped():
            raise _StoppedError
        ids.append(some)
        labels.append(label_of(some))
    if not ids:
        return None
    all_ids, of_each = np.concatenate(ids), np.concatenate(labels)
    order = np.argsort(all_ids)
    large = len(order) > _LARGE
    in_general = order[: _SAMPLE_OF_LARGE if large else _SAMPLE]
    chosen = {
        label: order[of_each[order] == label][:_SAMPLE_OF_CLASS]
        for label in (() if large else np.unique(of_each).tolist())
    }
    rows = np.unique(np.concatenate([in_general, *chosen.values()]))
    sample, sampled = all_ids[rows], of_each[rows]
    wanted = np.sort(sample)
    latents = np.empty((len(rows), 0), np.float64)
    for some, values in store.every_latent(bundle=bundle, analyser=analyser):
        if not latents.size:
            latents = np.full((len(rows), values.shape[1]), np.nan)
        at = np.minimum(np.searchsorted(wanted, some), len(wanted) - 1)
        there = wanted[at] == some
        latents[np.argsort(sample)[at[there]]] = values[there]
    groups = store.groups
    own = groups.of(sample)
    any_class, same_class = _Nearest(len(rows)), _Nearest(len(rows))
    for some, values in store.every_latent(bundle=bundle, analyser=analyser):
        for start in range(0, len(some), _COLUMNS):
            if stopped():
                raise _StoppedError
            part = slice(start, start + _COLUMNS)
            away = _apart(latents, values[part].astype(np.float64))
            of_one = groups.of(some[part])
            away[own[:, None] == of_one[None]] = np.inf
            any_class.add(away, of_one)
            same_class.add(away, of_one, sampled[:, None] == label_of(some[part])[None])
    general = np.isin(rows, in_general)
    near, near_class = any_class.means(), same_class.means()
    by_class = {}
    for label, of_label in chosen.items():
        known = near_class[np.isin(rows, of_label)]
        known = known[np.isfinite(known)]
        if len(known) >= _LEAST_OF_CLASS:
            by_class[names[label]] = np.sort(known)
    called: dict[str, float] = {}
    of_sample = [f"{number:016x}" for number in sample[general].tolist()]
    said = store.embedded(of_sample, bundle=bundle)
    for one in said.values():
        called[one.label] = called.get(one.label, 0.0) + 1 / len(said)
    pooled = near_class[general]
    return Yardstick(
        np.sort(near[general & np.isfinite(near)]),
        by_class,
        np.sort(pooled[np.isfinite(pooled)]),
        called,
        store.labels(of_sample),
    )


def _labels(store: Store) -> tuple[list[str], Callable[[NDArray[np.uint64]], NDArray[np.int64]]]:
    """The labels that cells carry, and a function from cell ids uint64[n] to the places of their labels in these:
    int64[n], -1 for a cell that is gone."""
    book = store.label_book
    carried = [label for label, _ in book.values]
    names = list(dict.fromkeys(carried))
    places = np.array([*(names.index(label) for label in carried), -1], np.int64)
    return names, lambda ids: places[book.codes_of(ids)]


class _Nearest:
    """The nearest captures of each row so far: distances and physical cells."""

    def __init__(self, rows: int) -> None:
        self._away = np.full((rows, _CANDIDATES), np.inf)
        self._cells = np.zeros((rows, _CANDIDATES), np.uint64)

    def add(self, away: NDArray[np.float64], cells: NDArray[np.uint64], only: NDArray[np.bool_] | None = None) -> None:
        """away : float64[rows, n].  cells : uint64[n], the physical cell of each.  only : bool[rows, n], those that
        count."""
        nearer = away < self._away[:, -1:]
        if only is not None:
            nearer &= only
        some = np.flatnonzero(nearer.any(axis=0))
        if not len(some):
            return
        away, cells = np.where(nearer[:, some], away[:, some], np.inf), cells[some]
        columns = np.argpartition(away, min(_CANDIDATES, away.shape[1]) - 1, axis=1)[:, :_CANDIDATES]
        joined = np.concatenate([self._away, np.take_along_axis(away, columns, axis=1)], axis=1)
        named = np.concatenate([self._cells, cells[columns]], axis=1)
        order = np.argsort(joined, axis=1, kind="stable")[:, :_CANDIDATES]
        self._away = np.take_along_axis(joined, order, axis=1)
        self._cells = np.take_along_axis(named, order, axis=1)

    def means(self) -> NDArray[np.float64]:
        """Mean distance of the nearest physical cells of each row; infinite where there is none."""
        found = np.full(len(self._away), np.inf)
        for row, (away, cells) in enumerate(zip(self._away, self._cells, strict=True)):
            there = np.isfinite(away)
            _, first = np.unique(cells[there], return_index=True)
            nearest = np.sort(away[there][first])[:NEAREST]
            if len(nearest):
                found[row] = nearest.mean()
        return found


def _apart(rows: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error between each of these and each of those: float64[n, m]."""
    found = np.square(rows).sum(axis=1)[:, None] + np.square(others).sum(axis=1)[None] - 2 * rows @ others.T
    away: NDArray[np.float64] = np.maximum(found, 0) / rows.shape[1]
    return away


def _mean(distances: Sequence[float]) -> float:
    return math.fsum(distances) / len(distances)
