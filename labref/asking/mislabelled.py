"""Labels to look at again: those that disagree with the cells about them, and those that are no opinion.

Two witnesses are heard of each cell, only from its own analyser: the labelled cells about it on the map, and its
nearest labelled cells. Their shares are averaged. The map finds the candidates, in a second for a million cells; the
nearest cells are looked for of the first few hundred only.

The networks' own class is no third witness: added to these two it found no more wrong labels
(`tests/benchmarks/suspects.py`), for it sees the same latents. It is shown beside them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labref.asking.references import BANDWIDTH_RANK, weights
from labref.asking.survey import Survey
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


_FOUND: Final[WeakKeyDictionary[Survey, dict[frozenset[LabelSource], tuple[NDArray[np.intp], Doubts]]]] = (
    WeakKeyDictionary()
)
_SUGGESTED: Final[WeakKeyDictionary[Survey, dict[frozenset[LabelSource], Suggested]]] = WeakKeyDictionary()


def suspects(store: Store, found: Survey, sources: Collection[LabelSource]) -> tuple[NDArray[np.intp], Doubts]:
    """As `Survey.doubt`, with the nearest cells as a second witness of the first few hundred. A label that the nearest
    cells clear is left out. Kept for the same survey."""
    wanted = frozenset(sources)
    known = _FOUND.setdefault(found, {})
    if wanted in known:
        return known[wanted]
    at, doubts = found.doubt(wanted)
    first = at[:_CANDIDATES]
    if len(first):
        evidence = found.evidence(wanted)
        shares, cells = _shares(store, found, first, evidence, own=True)
        every, own = np.arange(len(first)), found.label[first]
        majority = shares.argmax(axis=1)
        share, of_label = shares[every, majority], shares[every, own]
        again = Doubts(found.surprise(share, of_label, cells), majority, share, of_label)
        (kept,) = np.nonzero((again.surprise > 0) & (majority != own))
        rest = np.arange(len(first), len(at))
        at = np.concatenate([first[kept], at[rest]])
        doubts = Doubts.joined([again.of(kept), doubts.of(rest)])
        order = np.lexsort((found.cells.ids[at], -doubts.surprise))
        at, doubts = at[order], doubts.of(order)
    known[wanted] = at, doubts
    return at, doubts


def suggestions(store: Store, found: Survey, sources: Collection[LabelSource]) -> Suggested:
    """A class for each cell whose label is no opinion, from the labels of these sources about it; the first few hundred
    by the map are asked of their nearest cells too. Kept for the same survey."""
    wanted = frozenset(sources)
    known = _SUGGESTED.setdefault(found, {})
    if wanted in known:
        return known[wanted]
    evidence = found.evidence(wanted)
    (at,) = np.nonzero(found.abstained & np.isin(found.analyser, np.unique(found.analyser[evidence])))
    shares = _on_map(found, at, evidence, own=False)[0]
    order = np.lexsort((found.cells.ids[at], -shares.max(axis=1, initial=0.0)))
    at, shares = at[order], shares[order]
    first = at[:_CANDIDATES]
    if len(first):
        shares[: len(first)] = _shares(store, found, first, evidence, own=False)[0]
    order = np.lexsort((found.cells.ids[at], -shares.max(axis=1, initial=0.0)))
    made = Suggested(at[order], shares[order].argmax(axis=1), shares[order].max(axis=1, initial=0.0))
    known[wanted] = made
    return made


def _shares(
    store: Store, found: Survey, at: NDArray[np.intp], evidence: NDArray[np.bool_], *, own: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The shares of the classes about some cells, map and nearest cells averaged: float64[m, classes]; and how many
    cells of its analyser carry each cell's own class, int64[m]. own : the cells are evidence themselves, and do not
    count for themselves."""
    on_map, cells = _on_map(found, at, evidence, own=own)
    # a physical cell is one witness, however often it was captured
    witnesses = np.flatnonzero(evidence)
    counted = np.zeros_like(evidence)
    counted[witnesses[store.groups.firsts(found.cells.ids[witnesses])]] = True
    near, there = _nearest(store, found, at, counted)
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


def _nearest(
    store: Store, found: Survey, at: NDArray[np.intp], evidence: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The shares of the classes among each cell's nearest labelled cells of its analyser, each counted by its nearness
    as the spread is (`labref.asking.references.weights`): float64[m, classes]; and which cells have some, bool[m].

    All cells are read once for all that are asked. Captures of the cell itself do not count.
    """
    bundle, classes = found.active.version.bundle, max(len(found.labels), 1)
    ids = found.cells.ids[at]
    latents = store.latents([int_to_id(int(one)) for one in ids], bundle=bundle)
    asked = np.array([place for place, one in enumerate(ids.tolist()) if int_to_id(one) in latents], np.intp)
    shares, there = np.zeros((len(at), classes)), np.zeros(len(at), np.bool_)
    if not len(asked):
        return shares, there
    queries = np.stack([latents[int_to_id(int(ids[place]))] for place in asked])
    analysers, groups = found.analyser[at[asked]], store.groups.of(ids[asked])
    by_id = np.argsort(found.cells.ids)
    sorted_ids = found.cells.ids[by_id]
    best = [(np.empty(0), np.empty(0, np.uint64), np.empty(0, np.int64)) for _ in asked]
    for block_ids, block in store.every_latent(bundle=bundle):
        for start in range(0, len(block_ids), _ROWS_AT_ONCE):
            part_ids, part = block_ids[start : start + _ROWS_AT_ONCE], block[start : start + _ROWS_AT_ONCE]
            where = by_id[np.minimum(np.searchsorted(sorted_ids, part_ids), len(sorted_ids) - 1)]
            (rows,) = np.nonzero((found.cells.ids[where] == part_ids) & evidence[where])
            if not len(rows):
                continue
            part_ids, part, where = part_ids[rows], part[rows], where[rows]
            of_part = store.groups.of(part_ids)
            squared = np.square(part).sum(axis=1) - 2 * (queries @ part.T)  # but for the query's own, which is the same
            squared[analysers[:, None] != found.analyser[where][None]] = np.inf
            squared[groups[:, None] == of_part[None]] = np.inf
            most = min(NEAREST + _MORE, len(rows))
            nearest = np.argpartition(squared, most - 1, axis=1)[:, :most]
            for place, columns in enumerate(nearest):
                columns = columns[np.isfinite(squared[place, columns])]
                if len(columns):
                    best[place] = _joined(
                        best[place], distances.exact(part[columns], queries[place]), part_ids[columns], where[columns]
                    )
    overall = np.zeros((len(asked), classes))
    for analyser in np.unique(analysers).tolist():
        counts = np.bincount(found.label[evidence & (found.analyser == analyser)], minlength=classes)
        overall[analysers == analyser] = counts / max(counts.sum(), 1)
    for place, (away, _, where) in enumerate(best):
        if len(away):
            weight = np.array(weights(away.tolist(), float(away[:BANDWIDTH_RANK][-1])))
            sums = np.bincount(found.label[where], weights=weight, minlength=classes)
            shares[asked[place]] = (sums + _PRIOR * overall[place]) / (weight.sum() + _PRIOR)
            there[asked[place]] = True
    return shares, there


def _joined(
    before: tuple[NDArray[np.float64], NDArray[np.uint64], NDArray[np.int64]],
    away: NDArray[np.float64],
    ids: NDArray[np.uint64],
    where: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.uint64], NDArray[np.int64]]:
    """The nearest of both, nearest first, equal ones by id."""
    away, ids = np.concatenate([before[0], away]), np.concatenate([before[1], ids])
    where = np.concatenate([before[2], where])
    order = np.lexsort((ids, away))[:NEAREST]
    return away[order], ids[order], where[order]
