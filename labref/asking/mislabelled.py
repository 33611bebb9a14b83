"""Labels to look at again: those that disagree with the cells about them, and those that are no opinion.

Two witnesses are heard of each cell, only from its own analyser: the labelled cells about it on the map, and its
nearest labelled cells. Their shares are averaged. The map finds the candidates, in a second for a million cells; the
nearest cells are looked for of the first few hundred only.

The networks' own class is no third witness: added to these two it found no more wrong labels
(`tests/benchmarks/suspects.py`), for it sees the same latents. It is shown beside them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labref.asking.references import BANDWIDTH_RANK, weights
from labref.asking.survey import LONG, REST, Survey
from labref.errors import LabrefError
from labref.som.labels import Doubts, shares_about
from labref.store import Store
from labref.store.memory import distances
from labref.store.memory.books import int_to_id
from labref.words import LabelSource

__all__ = ["NEAREST", "Suggested", "suggestions", "suspects"]

NEAREST: Final = 30
"""How many nearest labelled cells are asked."""
_CANDIDATES: Final = 300
_MORE: Final = 10  # nearest cells by approximate distances, beyond those that are wanted
_ROWS_AT_ONCE: Final = 4096
_PRIOR: Final = 0.5  # weight of a class's share in the whole lab, as on the map


@dataclass(frozen=True, eq=False)
class Suggested:
    """Cells whose label is no opinion, the clearest first. at : int[n], places in the survey.  label : int[n], index in
    its labels of the class that most cells about it have.  share : float64[n], of that class."""

    at: NDArray[np.intp]
    label: NDArray[np.int64]
    share: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Heard:
    """The nearest labelled cells of the first few hundred, by id: their ids, uint64[n], nearest first, and distances,
    float64[n]. rests : until when they are good enough, monotonic.  took : seconds that the search took."""

    nearest: dict[int, tuple[NDArray[np.uint64], NDArray[np.float64]]]
    rests: float
    took: float


@dataclass(eq=False)
class _Kept:
    """What is kept for one kind of question to one store. looking : held by who looks for nearest cells.  answering :
    held by who makes an answer.  answers : by survey, with what was heard for it."""

    heard: _Heard | None = None
    looking: threading.Lock = field(default_factory=threading.Lock)
    answering: threading.Lock = field(default_factory=threading.Lock)
    answers: WeakKeyDictionary[Survey, tuple[_Heard | None, Any]] = field(default_factory=WeakKeyDictionary)


_Kind: TypeAlias = tuple[str, str | None, str, frozenset[LabelSource]]
_KEPT: Final[WeakKeyDictionary[Store, dict[_Kind, _Kept]]] = WeakKeyDictionary()
"""By store, and by bundle, analyser whose map it is, question and sources."""


def suspects(store: Store, found: Survey, sources: Collection[LabelSource]) -> tuple[NDArray[np.intp], Doubts]:
    """As `Survey.doubt`, with the nearest cells as a second witness of the first few hundred. A label that the nearest
    cells clear is left out.

    Where looking for nearest cells takes long, it is done beside: the nearest cells of the time before are heard until
    then, and of a cell that has none yet the map alone.
    """
    wanted = frozenset(sources)

    def make(ask: _Ask) -> tuple[NDArray[np.intp], Doubts]:
        at, doubts = found.doubt(wanted)
        first = at[:_CANDIDATES]
        if not len(first):
            return at, doubts
        shares, cells = _shares(found, first, found.evidence(wanted), ask, own=True)
        every, own = np.arange(len(first)), found.label[first]
        majority = shares.argmax(axis=1)
        share, of_label = shares[every, majority], shares[every, own]
        again = Doubts(found.surprise(share, of_label, cells), majority, share, of_label)
        (kept,) = np.nonzero((again.surprise > 0) & (majority != own))
        rest = np.arange(len(first), len(at))
        at = np.concatenate([first[kept], at[rest]])
        doubts = Doubts.joined([again.of(kept), doubts.of(rest)])
        order = np.lexsort((found.cells.ids[at], -doubts.surprise))
        return at[order], doubts.of(order)

    return _answered(store, found, "suspects", wanted, make)


def suggestions(store: Store, found: Survey, sources: Collection[LabelSource]) -> Suggested:
    """A class for each cell whose label is no opinion, from the labels of these sources about it; the first few hundred
    by the map are asked of their nearest cells too, as for `suspects`."""
    wanted = frozenset(sources)

    def make(ask: _Ask) -> Suggested:
        evidence = found.evidence(wanted)
        (at,) = np.nonzero(found.abstained & np.isin(found.analyser, np.unique(found.analyser[evidence])))
        shares = _on_map(found, at, evidence, own=False)[0]
        order = np.lexsort((found.cells.ids[at], -shares.max(axis=1, initial=0.0)))
        at, shares = at[order], shares[order]
        first = at[:_CANDIDATES]
        if len(first):
            shares[: len(first)] = _shares(found, first, evidence, ask, own=False)[0]
        order = np.lexsort((found.cells.ids[at], -shares.max(axis=1, initial=0.0)))
        return Suggested(at[order], shares[order].argmax(axis=1), shares[order].max(axis=1, initial=0.0))

    return _answered(store, found, "suggestions", wanted, make)


_Ask: TypeAlias = Callable[[NDArray[np.intp], NDArray[np.bool_]], _Heard]
"""The nearest cells of those at these places of a survey, among those that are evidence."""
_Made = TypeVar("_Made")


def _answered(
    store: Store, found: Survey, kind: str, sources: frozenset[LabelSource], make: Callable[[_Ask], _Made]
) -> _Made:
    """An answer, kept for the same survey until more was heard."""
    version = found.active.version
    kept = _KEPT.setdefault(store, {}).setdefault((version.bundle, version.analyser, kind, sources), _Kept())

    def ask(at: NDArray[np.intp], evidence: NDArray[np.bool_]) -> _Heard:
        heard = kept.heard
        if heard is not None and heard.took > LONG:
            if time.monotonic() >= heard.rests and kept.looking.acquire(blocking=False):  # else somebody looks
                threading.Thread(
                    target=_look_beside, args=(kept, store, found, at, evidence), name="labref-suspects", daemon=True
                ).start()
            return heard
        with kept.looking:
            if kept.heard is heard:
                kept.heard = _look(store, found, at, evidence)
            assert kept.heard is not None
            return kept.heard

    with kept.answering:
        known = kept.answers.get(found)
        if known is not None and known[0] is kept.heard:
            answer: _Made = known[1]
            return answer
        answer = make(ask)
        kept.answers[found] = kept.heard, answer
        return answer


def _look_beside(kept: _Kept, store: Store, found: Survey, at: NDArray[np.intp], evidence: NDArray[np.bool_]) -> None:
    """Look, and keep what was found; the caller has the lock."""
    try:
        kept.heard = _look(store, found, at, evidence)
    except LabrefError:  # closed meanwhile; else whoever asks next is told
        return
    finally:
        kept.looking.release()


def _shares(
    found: Survey, at: NDArray[np.intp], evidence: NDArray[np.bool_], ask: _Ask, *, own: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The shares of the classes about some cells, map and nearest cells averaged: float64[m, classes]; and how many
    cells of its analyser carry each cell's own class, int64[m]. own : the cells are evidence themselves, and do not
    count for themselves."""
    on_map, cells = _on_map(found, at, evidence, own=own)
    near, there = _near(found, at, evidence, ask(at, evidence))
    on_map[there] = (on_map[there] + near[there]) / 2
    return on_map, cells


def _on_map(
    found: Survey, at: NDArray[np.intp], evidence: NDArray[np.bool_], *, own: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    classes = max(len(found.labels), 1)
    shares, cells = np.zeros((len(at), classes)), np.zeros(len(at), np.int64)
    for analyser in np.unique(found.analyser[at]).tolist():
        here = found.analyser[at] == analyser
        counted = evidence & (found.analyser == analyser)
        asked, labels = at[here], found.label[counted]
        shares[here] = shares_about(
            found.cells.nodes[counted],
            labels,
            found.cells.nodes[asked],
            rows=found.rows,
            cols=found.columns,
            classes=classes,
            own=found.label[asked] if own else None,
        )
        cells[here] = np.bincount(labels, minlength=classes)[found.label[asked]]
    return shares, cells


def _near(
    found: Survey, at: NDArray[np.intp], evidence: NDArray[np.bool_], heard: _Heard
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The shares of the classes among each cell's nearest labelled cells, each counted by its nearness as the spread is
    (`labref.asking.references.weights`), by the labels of today: float64[m, classes]; and which cells have some,
    bool[m]."""
    classes = max(len(found.labels), 1)
    shares, there = np.zeros((len(at), classes)), np.zeros(len(at), np.bool_)
    overall = {
        analyser: counts / max(counts.sum(), 1)
        for analyser in np.unique(found.analyser[at]).tolist()
        for counts in [np.bincount(found.label[evidence & (found.analyser == analyser)], minlength=classes)]
    }
    known = [heard.nearest.get(cell) for cell in found.cells.ids[at].tolist()]
    if not any(known):
        return shares, there
    every = np.unique(np.concatenate([one[0] for one in known if one is not None]))
    place = found.by_id[np.minimum(np.searchsorted(found.cells.ids, every, sorter=found.by_id), len(found.by_id) - 1)]
    counts_still = (found.cells.ids[place] == every) & evidence[place]
    for row, one in enumerate(known):
        if one is None:
            continue
        index = np.searchsorted(every, one[0])
        still = counts_still[index]
        away, where = one[1][still], place[index[still]]
        if len(away):
            weight = np.array(weights(away.tolist(), float(away[:BANDWIDTH_RANK][-1])))
            sums = np.bincount(found.label[where], weights=weight, minlength=classes)
            shares[row] = (sums + _PRIOR * overall[int(found.analyser[at[row]])]) / (weight.sum() + _PRIOR)
            there[row] = True
    return shares, there


def _look(store: Store, found: Survey, at: NDArray[np.intp], evidence: NDArray[np.bool_]) -> _Heard:
    """Look for the nearest labelled cells of those at these places, each among those of its own analyser.

    All cells are read once for all that are asked. Captures of the cell itself do not count, and a physical cell is one
    witness, however often it was captured.
    """
    begun = time.monotonic()
    witnesses = np.flatnonzero(evidence)
    counted = np.zeros_like(evidence)
    counted[witnesses[store.groups.firsts(found.cells.ids[witnesses])]] = True
    bundle, ids = found.active.version.bundle, found.cells.ids[at]
    latents = store.latents([int_to_id(int(one)) for one in ids], bundle=bundle)
    asked = np.array([place for place, one in enumerate(ids.tolist()) if int_to_id(one) in latents], np.intp)
    nearest: dict[int, tuple[NDArray[np.uint64], NDArray[np.float64]]] = {}
    if len(asked):
        queries = np.stack([latents[int_to_id(int(ids[place]))] for place in asked])
        analysers, best = found.analyser[at[asked]], _Best(queries, store.groups.of(ids[asked]))
        sorted_ids = found.cells.ids[found.by_id]
        for block_ids, block in store.every_latent(bundle=bundle):
            for start in range(0, len(block_ids), _ROWS_AT_ONCE):
                part_ids, part = block_ids[start : start + _ROWS_AT_ONCE], block[start : start + _ROWS_AT_ONCE]
                order = np.argsort(part_ids)  # looked up in order, they are found much faster
                part_ids = part_ids[order]
                where = found.by_id[np.minimum(np.searchsorted(sorted_ids, part_ids), len(sorted_ids) - 1)]
                (rows,) = np.nonzero((found.cells.ids[where] == part_ids) & counted[where])
                came, part_ids, part = found.analyser[where[rows]], part_ids[rows], part[order[rows]]
                of_part = store.groups.of(part_ids)
                for analyser in np.unique(analysers).tolist():
                    (those,) = np.nonzero(came == analyser)
                    if len(those):
                        places = np.flatnonzero(analysers == analyser)
                        best.add(places, part[those], part_ids[those], of_part[those])
        nearest = {int(ids[place]): best.nearest(row) for row, place in enumerate(asked.tolist())}
    ended = time.monotonic()
    return _Heard(nearest, ended + REST * (ended - begun), ended - begun)


class _Best:
    """The nearest cells of each query among those that were added, by distances in float32; and some more, so that the
    nearest by the exact distance are among them."""

    def __init__(self, queries: NDArray[np.float32], groups: NDArray[Any]) -> None:
        """queries : float32[m, L].  groups : [m], the physical cell of each, which does not count."""
        most = NEAREST + _MORE
        self._queries, self._groups = queries, groups
        # squared distance, less the query's own square, which is the same for all
        self._squared = np.full((len(queries), most), np.inf, np.float32)
        self._ids = np.zeros((len(queries), most), np.uint64)
        self._latents = np.zeros((len(queries), most, queries.shape[1]), np.float32)

    def add(
        self, places: NDArray[np.intp], latents: NDArray[np.float32], ids: NDArray[np.uint64], groups: NDArray[Any]
    ) -> None:
        """Look whether some of these cells are nearer. places : the queries that they count for.  latents : float32[n,
        L].  ids : uint64[n].  groups : [n], their physical cells."""
        squared = np.square(latents).sum(axis=1) - 2 * (self._queries[places] @ latents.T)
        squared[self._groups[places][:, None] == groups[None]] = np.inf
        most = self._squared.shape[1]
        (hit,) = np.nonzero((squared < self._squared[places].max(axis=1)[:, None]).any(axis=1))
        if not len(hit):
            return
        columns = np.argpartition(squared[hit], min(most, squared.shape[1]) - 1, axis=1)[:, :most]
        at = places[hit]
        joined = np.concatenate([self._squared[at], np.take_along_axis(squared[hit], columns, axis=1)], axis=1)
        kept = np.argpartition(joined, most - 1, axis=1)[:, :most]
        self._squared[at] = np.take_along_axis(joined, kept, axis=1)
        self._ids[at] = np.take_along_axis(np.concatenate([self._ids[at], ids[columns]], axis=1), kept, axis=1)
        self._latents[at] = np.take_along_axis(
            np.concatenate([self._latents[at], latents[columns]], axis=1), kept[..., None], axis=1
        )

    def nearest(self, place: int) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """The ids of the nearest cells of one query and their exact distances, nearest first, equal ones by id."""
        there = np.isfinite(self._squared[place])
        ids, away = self._ids[place, there], distances.exact(self._latents[place, there], self._queries[place])
        order = distances.order(away, ids, NEAREST)
        return ids[order], away[order]
