"""The whole map at a glance: what lies on each node, summed up for pictures and lists, from memory.

A `Survey` is the state of one moment. It is made again when cells came or labels changed, but not so often that making
it would take a noticeable part of the computer: some 0.7 s for a million cells, milliseconds for a thousand.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labref.asking.differential import is_abstention
from labref.errors import LabrefError
from labref.som.files import load
from labref.som.labels import RADIUS, Doubts, doubts
from labref.som.products import gaussian
from labref.som.quality import u_matrix
from labref.store import ActiveMap, Store
from labref.store.memory.origins import NOTHING
from labref.store.memory.positions import Placed
from labref.words import LabelSource, SlideId

__all__ = ["GIVEN", "LONG", "REST", "SOURCES", "Chosen", "Facets", "Nodes", "Survey", "survey"]

SOURCES: Final = tuple(LabelSource)
GIVEN: Final = frozenset((LabelSource.REVIEWED, LabelSource.ANALYSER))
"""Sources of labels that can be doubted: the network's own follow the map."""
_FEWEST_SHARE: Final = 0.01
"""A smaller share of a cell's own class about it is as surprising as this one: so small, the counts are chance."""
_FEW_CELLS: Final = 10.0
"""A class with so many cells loses half of its surprise: where a class is rare, others lie about each of its cells."""
REST: Final = 20
"""A survey is made again when it is so many times as old as it took to make."""
LONG: Final = 0.2
"""Seconds that nobody waits for a survey where there is one."""
_STALE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which cells count; None: whatever they have.

    labels, analysers : names.  since, until : seconds since 1970, UTC; `until` itself does not count.
    sources : who gave the label.  doubtful : only cells whose label disagrees with the labels about them.
    """

    labels: frozenset[str] | None = None
    slides: frozenset[SlideId] | None = None
    analysers: frozenset[str] | None = None
    since: int | None = None
    until: int | None = None
    sources: frozenset[LabelSource] | None = None
    doubtful: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """What lies on each node, of the cells that were chosen.

    label : int32[nodes], index in `Survey.labels` of the class that most cells have; -1 where none lies.  cells :
    int32[nodes].  doubtful : int32[nodes], how many of these have a label that disagrees with those about it.  shown :
    uint64[nodes], id of the cell of that class that is nearest to the node; 0 where none lies.
    """

    label: NDArray[np.int32]
    cells: NDArray[np.int32]
    doubtful: NDArray[np.int32]
    shown: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Facets:
    """What the cells on a map can be told apart by, and how many there are of each.

    classes, sources, analysers : the most frequent first.  slides : the one that was captured last first.  first,
    last : seconds since 1970, UTC; None where no moment is known.
    """

    classes: dict[str, int]
    sources: dict[str, int]
    analysers: dict[str, int]
    slides: dict[SlideId, int]
    first: int | None
    last: int | None


@dataclass(frozen=True, eq=False)
class Survey:
    """Every cell on the map, in the order of its node, of its quantisation error there, and of its id.

    active : the map.  u : float32[rows, columns], its U-matrix.  cells : where they lie.  label : int32[n], index in
    `labels`.  source : uint8[n], index in SOURCES.  slide, analyser : int32[n], index in their names, -1 for none.
    seconds : int64[n], when captured.  starts : int64[nodes + 1], where each node's cells begin.  digest : 16
    hexadecimal characters that stand for all of it.
    """

    active: ActiveMap
    u: NDArray[np.float32]
    cells: Placed
    label: NDArray[np.int32]
    labels: tuple[str, ...]
    source: NDArray[np.uint8]
    slide: NDArray[np.int32]
    slides: tuple[SlideId, ...]
    analyser: NDArray[np.int32]
    analysers: tuple[str, ...]
    seconds: NDArray[np.int64]
    starts: NDArray[np.int64]
    digest: str

    @property
    def rows(self) -> int:
        """Rows of nodes."""
        return self.active.version.rows

    @property
    def columns(self) -> int:
        """Columns of nodes."""
        return self.active.version.columns

    def select(self, chosen: Chosen) -> NDArray[np.bool_]:
        """Which cells are chosen: bool[n]."""
        kept = np.ones(len(self.cells), np.bool_)
        for codes, names, wanted in (
            (self.label, self.labels, chosen.labels),
            (self.slide, self.slides, chosen.slides),
            (self.analyser, self.analysers, chosen.analysers),
            (self.source, SOURCES, chosen.sources),
        ):
            if wanted is not None:
                # the last entry is for code -1, no name
                kept &= np.array([*(name in wanted for name in names), False], np.bool_)[codes]
        if chosen.since is not None:
            kept &= self.seconds >= chosen.since
        if chosen.until is not None:
            kept &= (self.seconds < chosen.until) & (self.seconds > _LONG_AGO)
        if chosen.doubtful:
            kept &= self.doubtful
        return kept

    def by_node(self, kept: NDArray[np.bool_] | None = None) -> Nodes:
        """What lies on each node. kept : bool[n], the cells that count; by default all."""
        at = np.arange(len(self.cells)) if kept is None else np.flatnonzero(kept)
        nodes, label = self.cells.nodes[at], self.label[at]
        size, classes = self.rows * self.columns, max(len(self.labels), 1)
        counts = np.bincount(nodes * classes + label, minlength=size * classes).reshape(size, classes)
        cells = counts.sum(axis=1)
        most = np.where(cells > 0, counts.argmax(axis=1), -1).astype(np.int32)
        shown = np.zeros(size, np.uint64)
        of_most = at[label == most[nodes]]
        where = self.cells.nodes[of_most]
        first = np.flatnonzero(np.diff(where, prepend=-1))  # nearest to its node
        shown[where[first]] = self.cells.ids[of_most[first]]
        doubtful = np.bincount(nodes, weights=self.doubtful[at], minlength=size)
        return Nodes(most, cells.astype(np.int32), doubtful.astype(np.int32), shown)

    @cached_property
    def by_id(self) -> NDArray[np.intp]:
        """The cells' places in the order of their ids: int[n]."""
        return np.argsort(self.cells.ids)

    @cached_property
    def everything(self) -> Nodes:
        """What lies on each node, of all cells."""
        return self.by_node()

    @cached_property
    def areas(self) -> NDArray[np.int32]:
        """int32[nodes], index in `labels` of the class with the largest sum of weights around each node, of the cells
        of all analysers; -1 where no cell is near. The place of one query is told by its own analyser's cells
        (`labref.asking.places`), so its class may be another."""
        rows, columns, classes = self.rows, self.columns, max(len(self.labels), 1)
        counts = np.bincount(self.cells.nodes * classes + self.label, minlength=rows * columns * classes)
        shape = counts.reshape(rows, columns, classes).astype(np.float64)
        spread = np.einsum("ab,bcl->acl", gaussian(rows, RADIUS), shape, optimize=True)
        spread = np.einsum("ab,cbl->cal", gaussian(columns, RADIUS), spread, optimize=True).reshape(-1, classes)
        return np.where(spread.max(axis=1) > _NEAR, spread.argmax(axis=1), -1).astype(np.int32)

    @cached_property
    def doubtful(self) -> NDArray[np.bool_]:
        """bool[n], which labels that a person or the analyser gave disagree with the labels about them."""
        doubtful = np.zeros(len(self.cells), np.bool_)
        doubtful[self._doubted[0]] = True
        return doubtful

    def doubt(self, sources: Collection[LabelSource]) -> tuple[NDArray[np.intp], Doubts]:
        """The cells with a label of these sources that the labels of the same sources and the same analyser about it
        call otherwise, the most surprising first: places in the survey, and what the map says of each. Labels that are
        no opinion neither count nor are judged."""
        return self._doubted if frozenset(sources) == GIVEN else self._doubt(frozenset(sources))

    @cached_property
    def _doubted(self) -> tuple[NDArray[np.intp], Doubts]:
        """Of the labels that a page shows: it takes a second for a million cells."""
        return self._doubt(GIVEN)

    @cached_property
    def abstained(self) -> NDArray[np.bool_]:
        """bool[n], which cells carry a label that is no opinion (`is_abstention`)."""
        return np.array([*map(is_abstention, self.labels), False], np.bool_)[self.label]

    def evidence(self, sources: Collection[LabelSource]) -> NDArray[np.bool_]:
        """bool[n], which labels are from these sources and an opinion."""
        of_source = np.array([source in sources for source in SOURCES], np.bool_)
        kept: NDArray[np.bool_] = of_source[self.source] & ~self.abstained
        return kept

    def surprise(
        self, share: NDArray[np.float64], share_of_label: NDArray[np.float64], cells: NDArray[Any]
    ) -> NDArray[np.float64]:
        """How surprising labels are: float64[m], the larger the more likely wrong.

        share, share_of_label : float64[m], about each cell, of the class that most have and of the cell's own.  cells :
        int[m], how many cells carry the own class. The value is log(share / share of label) + log(c / (c + 10)): a rare
        class lies among others, right or wrong. Both constants were chosen on pbc and chula; see
        `tests/benchmarks/suspects.py`.
        """
        ratio = np.log(share / np.maximum(share_of_label, _FEWEST_SHARE))
        return np.asarray(ratio + np.log(cells / (cells + _FEW_CELLS)), np.float64)

    def _doubt(self, sources: frozenset[LabelSource]) -> tuple[NDArray[np.intp], Doubts]:
        parts: list[tuple[NDArray[np.intp], Doubts]] = []
        evidence, classes = self.evidence(sources), len(self.labels)
        # cells of different optics lie apart on the map, and say nothing of each other's labels
        for analyser in np.unique(self.analyser[evidence]).tolist():
            (at,) = np.nonzero(evidence & (self.analyser == analyser))
            own = self.label[at]
            found = doubts(self.cells.nodes[at], own, rows=self.rows, cols=self.columns, classes=classes)
            cells = np.bincount(own, minlength=max(classes, 1))[own]
            surprise = self.surprise(found.share, found.share_of_label, cells)
            (kept,) = np.nonzero((surprise > 0) & (found.majority != own))
            parts.append((at[kept], replace(found, surprise=surprise).of(kept)))
        if not parts:
            nothing = np.empty(0)
            return np.empty(0, np.intp), Doubts(nothing, np.empty(0, np.int64), nothing, nothing)
        at = np.concatenate([places for places, _ in parts])
        joined = Doubts.joined([one for _, one in parts])
        order = np.lexsort((self.cells.ids[at], -joined.surprise))
        return at[order], joined.of(order)

    @cached_property
    def facets(self) -> Facets:
        """What the cells can be told apart by."""
        known = self.seconds[self.seconds > NOTHING]
        of_slide = np.bincount(self.slide[self.slide >= 0], minlength=len(self.slides))
        newest = np.full(len(self.slides) + 1, NOTHING)
        np.maximum.at(newest, self.slide, self.seconds)
        order = np.lexsort((np.arange(len(of_slide)), -newest[:-1]))
        return Facets(
            _counted(self.label, self.labels),
            _counted(self.source, SOURCES),
            _counted(self.analyser, self.analysers),
            {self.slides[code]: int(of_slide[code]) for code in order[of_slide[order] > 0].tolist()},
            None if not len(known) else int(known.min()),
            None if not len(known) else int(known.max()),
        )

    def within(self, top: int, left: int, bottom: int, right: int) -> NDArray[np.intp]:
        """The cells on the nodes of a rectangle, its last row and column included: places in the survey, in its
        order."""
        parts = [
            np.arange(self.starts[row * self.columns + left], self.starts[row * self.columns + right + 1])
            for row in range(top, bottom + 1)
        ]
        return np.concatenate(parts).astype(np.intp) if parts else np.empty(0, np.intp)

    def node_of(self, cell: int) -> int | None:
        """The node of the cell with this id; None where it is not on the map."""
        (at,) = np.nonzero(self.cells.ids == np.uint64(cell))
        return int(self.cells.nodes[at[0]]) if len(at) else None


def _counted(codes: NDArray[Any], names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    return {str(names[code]): int(counts[code]) for code in np.argsort(-counts, kind="stable").tolist() if counts[code]}


_LONG_AGO: Final = -(2**61)  # what is before is no moment
_NEAR: Final = 0.05  # of a weight: a single cell is near up to 5 nodes from it


@dataclass(slots=True)
class _Held:
    """The newest survey of one of a store's maps. state : what it was made of.  rests : until when it is good enough,
    monotonic.  took : seconds that it took to make."""

    survey: Survey
    state: tuple[Any, ...]
    rests: float
    took: float

    def serves(self, active: ActiveMap, state: tuple[Any, ...]) -> bool:
        """Whether it is good enough for whoever asks now."""
        return self.survey.active is active and (self.state == state or time.monotonic() < self.rests)


_held: WeakKeyDictionary[Store, dict[str | None, _Held]] = WeakKeyDictionary()
"""By store, and whose cells alone lie on the map."""
_making = threading.Lock()


def survey(store: Store, bundle: str, analyser: str | None = None) -> Survey | None:
    """The map in use for `bundle` with what lies on it; None while there is no such map.

    analyser : the map of this one's own cells, where there is one.

    It may be behind by twenty times what it takes to make one; and where that is long, whoever asks then still gets the
    one before, at most a minute older, while a thread makes the next.
    """
    active = store.maps.best(bundle, analyser)
    if active is None:
        return None
    state, held = _state(store, active), _held_of(store, active)
    if held is not None and held.serves(active, state):
        return held.survey
    if (
        held is not None
        and held.survey.active is active
        and held.took > LONG
        and time.monotonic() < held.rests + _STALE_SECONDS
    ):
        if _making.acquire(blocking=False):  # else somebody makes it
            threading.Thread(
                target=_renew, args=(store, active, held.survey), name="labref-survey", daemon=True
            ).start()
        return held.survey
    with _making:
        held = _held_of(store, active)
        if held is not None and held.serves(active, _state(store, active)):
            return held.survey
        return _hold(store, active, None if held is None else held.survey)


def _held_of(store: Store, active: ActiveMap) -> _Held | None:
    return _held.get(store, {}).get(active.version.analyser)


def _renew(store: Store, active: ActiveMap, before: Survey) -> None:
    """Make the next survey, and what pages ask of it; the caller has the lock."""
    try:
        _hold(store, active, before, whole=True)
    except LabrefError:  # closed meanwhile; else whoever asks next is told
        return
    finally:
        _making.release()


def _hold(store: Store, active: ActiveMap, before: Survey | None, *, whole: bool = False) -> Survey:
    """Make a survey, and keep it for whoever asks. whole : with what else is made when it is first asked
    for."""
    state, begun = _state(store, active), time.monotonic()
    made = _make(store, active, before)
    if whole:
        _ = made.facets, made.everything, made.areas
    ended = time.monotonic()
    _held.setdefault(store, {})[active.version.analyser] = _Held(
        made, state, ended + REST * (ended - begun), ended - begun
    )
    return made


def _state(store: Store, active: ActiveMap) -> tuple[Any, ...]:
    book = store.label_book
    return id(book), book.changes, len(active.positions)


def _make(store: Store, active: ActiveMap, before: Survey | None) -> Survey:
    book, placed = store.label_book, active.positions.every()
    placed = placed.of(np.argsort(placed.ids))  # looked up in order, they are found much faster
    origins = store.origins()
    codes, (slide, analyser, seconds) = book.codes_of(placed.ids), origins.of(placed.ids)
    # by node, error, and id: the bits of a positive float32 are ordered as it is
    key = placed.nodes.astype(np.uint64) << np.uint64(32) | placed.errors.astype(np.float32).view(np.uint32)
    order = np.argsort(key, kind="stable")
    order = order[codes[order] >= 0]
    placed, codes = placed.of(order), codes[order]
    slide, analyser, seconds = slide[order], analyser[order], seconds[order]
    values = list(book.values)
    labels = tuple(sorted({values[code][0] for code in np.unique(codes).tolist()}))
    names = {name: at for at, name in enumerate(labels)}
    label = np.array([names.get(name, -1) for name, _ in values] or [-1], np.int32)[codes]
    source = np.array([SOURCES.index(given) for _, given in values] or [0], np.uint8)[codes]
    counts = np.bincount(placed.nodes, minlength=active.version.rows * active.version.columns)
    if before is not None and before.active.version == active.version:
        u = before.u
    else:
        u = u_matrix(load(store.maps.weights_file(active.version.number)).get_weights()).astype(np.float32)
    said = hashlib.blake2b(digest_size=8)
    for part in (placed.ids, placed.nodes, label, source, slide, seconds):
        said.update(np.ascontiguousarray(part).data)
    said.update(repr((active.version.bundle, active.version.trained_at, labels)).encode("utf-8", "surrogatepass"))
    return Survey(
        active,
        u,
        placed,
        label,
        labels,
        source,
        slide,
        origins.slide_ids,
        analyser,
        origins.analyser_names,
        seconds,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        said.hexdigest(),
    )
