"""The references of a cell: its nearest neighbours in the lab, the spread of the nearest hundred, and whether it is
new.

Which cells are looked at: those from the query's own optics, where it is known (`Optics`), else all.

Who is preferred: a cell that a person reviewed to one with the analyser's label, and that to one with a predicted
label, among cells that are about as near. In the order of distance a cell moves before less trusted ones as long as its
distance is at most 5 % above theirs (`NEAR_EQUAL`; 5 % of a mean squared error is 2.5 % of a length). The k first are
the references, and are given nearest first. So of a cell shown and a nearer one left out, the one left out is never
nearer by more than 5 %: what is clearly nearer cannot be pushed out, and only more trusted cells push at all.

A physical cell is shown once, however often it was captured (`Store.groups`: duplicates; a possible duplicate counts as
a cell of its own until a person confirms it). Its nearest capture is shown, or of those whose distance is at most 5 %
above that one's the most trusted, the nearest of these. Where that is not the nearest, it moves before others by its
own distance, and others before it by the nearest capture's: what was said of a cell left out holds for every capture of
it. The spread counts the captures that would be shown, a physical cell once. By map the order is the map's, and of one
cell's captures the first in it is the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labref.asking.places import Place, Spot, locate
from labref.bundles.bundle import Bundle
from labref.errors import LabrefError
from labref.store import Cell, Neighbour, Store
from labref.store.memory.books import id_to_int
from labref.times import utc

__all__ = [
    "BANDWIDTH_RANK",
    "NEAR_EQUAL",
    "Distribution",
    "Found",
    "Novelty",
    "Optics",
    "Reference",
    "distribution_of",
    "find",
    "novelty_of",
    "prefer",
    "weights",
]

NEAR_EQUAL = 0.05
"""A reviewed cell whose distance is larger by at most this share may be shown in the place of one that nobody
reviewed."""
_CANDIDATES = 64  # cells, each counted once, beyond the k nearest that are looked at for reviewed ones
BANDWIDTH_RANK = 8
"""The distance of this neighbour is the width of the kernel that weighs the spread."""


@dataclass(frozen=True)
class Reference:
    """A stored cell to show beside the query.

    distance: mean squared error in latent space. label_source: "reviewed", "analyser" or "predicted". captured_at:
    ISO 8601, UTC. duplicate_of: the earlier cell that this one repeats or may repeat. captures: how many captures of
    this physical cell the lab has, this one among them.
    """

    cell_id: str
    label: str
    label_source: str
    distance: float
    slide: str | None
    analyser: str | None
    captured_at: str | None
    path: str
    duplicate_of: str | None
    captures: int


@dataclass(frozen=True)
class Distribution:
    """Share of each label among the n nearest physical cells, weighted by distance, largest first; the shares sum to
    1."""

    n: int
    weights: dict[str, float]


@dataclass(frozen=True)
class Novelty:
    """score: mean distance of the nearest cells over the bundle's threshold, None in an empty store. is_novel: above
    1."""

    score: float | None
    is_novel: bool


@dataclass(frozen=True)
class Optics:
    """Which optics the references are from.

    analyser : of the query, None where it is not known.  only : True where only cells from that analyser were looked
    at.
    how : "asked" (the question named it), "stored" (the query is in the store), "single" (the lab has no other),
    "unknown", or "any" (the question wanted all).  cells : how many there were to look at.
    """

    analyser: str | None
    only: bool
    how: str
    cells: int


@dataclass(frozen=True)
class Found:
    """What a query gets. duplicate_of: the stored cell that the query is, or repeats, if there is one. place: on the
    lab's map, None while there is none."""

    references: list[Reference]
    distribution: Distribution
    novelty: Novelty
    duplicate_of: str | None
    place: Place | None
    optics: Optics


def find(
    store: Store,
    *,
    bundle: Bundle,
    latent: NDArray[np.float32],
    digest: str | None,
    k: int = 8,
    spread: int = 100,
    by: str = "latent",
    analyser: str | None = None,
    any_optics: bool = False,
    repeats: Sequence[str] = (),
    withheld: Collection[str] = (),
) -> Found:
    """References of a query.

    latent : float32[L] in the space of `bundle`. digest : SHA-256 of the query's bytes, or None where it is not known.
    k : references wanted. spread : physical cells that the distribution is made of.
    by : "latent", the nearest in latent space, or "map", those that lie nearest on the lab's map; the distribution and
    the novelty are of the nearest in latent space either way. The novelty is of the nearest captures, whichever cells
    they are of.

    analyser : the query's, where it is known; else that of the cell where the query is in the store.  any_optics : look
    at the cells of all analysers, not only at those of the query's.

    repeats : stored cells that a query which is not stored itself is a recapture of, most alike first
    (`labref.cells.sameness`).
    withheld : cells that are to be nobody's references, such as possible duplicates that nobody has reviewed.

    The query itself is no reference, where the store has it, nor is a duplicate of it: not the cells linked with it as
    duplicates, nor those that it repeats and the duplicates of these.

    Raises LabrefError where a map is asked for and there is none, or the analyser has no cell here, StoreError where
    the store does not know the bundle, ValueError where the latent does not fit it.
    """
    itself = None if digest is None else store.has_digest(digest)
    excluded: list[str] = []
    stored = None
    if itself is not None:
        excluded += store.duplicate_group(itself)
        stored = store.cell(itself)
    for cell_id in repeats:
        excluded += store.duplicate_group(cell_id)
    duplicate_of = itself or (repeats[0] if repeats else None)
    barred = {*excluded, *withheld}

    optics = _optics(store, stored, analyser, any_optics)
    only = optics.analyser if optics.only else None
    novelty = bundle.manifest.novelty
    wanted = max(k + _CANDIDATES, spread, novelty.k, BANDWIDTH_RANK)
    neighbours, captures = _nearest(store, bundle.digest, latent, wanted, barred, only)
    labelled = store.labelled([neighbour.cell_id for neighbour in neighbours])
    trust = {cell_id: source.weight for cell_id, (_, source) in labelled.items()}
    nearest = {_stand_in(of_one, trust): of_one[0].distance for of_one in captures}
    spot = locate(store, bundle.digest, latent)
    if by == "map" and spot is None:
        raise LabrefError(_no_map(store, bundle.digest))
    if by == "map" and spot is not None:
        shown = _by_map(store, spot, k, barred, only)
    else:
        shown = prefer(_in_order(nearest), trust, k, {one.cell_id: distance for one, distance in nearest.items()})
    cells = store.cells([one.cell_id for one in shown])
    in_spread = _in_order(list(nearest)[:spread])
    return Found(
        [_reference(store, cells[one.cell_id], one.distance) for one in shown],
        distribution_of(
            [labelled[neighbour.cell_id][0] for neighbour in in_spread], [neighbour.distance for neighbour in in_spread]
        ),
        novelty_of([neighbour.distance for neighbour in neighbours[: novelty.k]], novelty.among(optics.cells)),
        duplicate_of,
        None if spot is None else spot.place(store, exclude=barred),
        optics,
    )


def prefer(
    neighbours: Sequence[Neighbour], trust: Mapping[str, int], k: int, nearest: Mapping[str, float] | None = None
) -> list[Neighbour]:
    """The k references among neighbours, nearest first: the nearest, but more trusted cells before others about as
    near.

    neighbours : nearest first, at least all whose distance is at most 5 % above the k-th.  trust : of each cell, larger
    before smaller.
    nearest : of each, the distance of its nearest capture; None where each is its own.  The rule is in this module's
    description.
    """
    order: list[Neighbour] = []
    for neighbour in neighbours:
        at = len(order)
        while at and trust[order[at - 1].cell_id] < trust[neighbour.cell_id]:
            before = order[at - 1].distance if nearest is None else nearest[order[at - 1].cell_id]
            if neighbour.distance > (1 + NEAR_EQUAL) * before:
                break
            at -= 1
        order.insert(at, neighbour)
    rank = {neighbour.cell_id: position for position, neighbour in enumerate(neighbours)}
    return sorted(order[:k], key=lambda neighbour: rank[neighbour.cell_id])


def _nearest(
    store: Store, bundle: str, latent: NDArray[np.float32], cells: int, barred: Collection[str], analyser: str | None
) -> tuple[list[Neighbour], list[list[Neighbour]]]:
    """The nearest captures, so many that they are of `cells` physical cells, or all there are; and the captures of each
    of the `cells` nearest. Nearest first all of them, a cell by its nearest capture."""
    # some more at once where cells are captured again at all: a second search takes as long as the first
    wanted = cells + cells // 2 if len(store.groups) else cells
    while True:
        neighbours = store.nearest(latent, bundle=bundle, k=wanted, exclude=barred, analyser=analyser)
        groups = store.groups.of(np.array([id_to_int(neighbour.cell_id) for neighbour in neighbours], np.uint64))
        captures: dict[int, list[Neighbour]] = {}
        for group, neighbour in zip(groups.tolist(), neighbours, strict=True):
            captures.setdefault(group, []).append(neighbour)
        if len(captures) >= cells or len(neighbours) < wanted:
            return neighbours, list(captures.values())[:cells]
        hidden = sum(len(store.groups.members(group)) - len(those) for group, those in captures.items())
        wanted = max(2 * wanted, wanted + hidden + 2 * (cells - len(captures)))


def _stand_in(captures: Sequence[Neighbour], trust: Mapping[str, int]) -> Neighbour:
    """Which capture of a cell is shown: the first, or one that is more trusted and about as near."""
    if len(captures) == 1:
        return captures[0]
    reach = (1 + NEAR_EQUAL) * captures[0].distance
    return max((one for one in captures if one.distance <= reach), key=lambda one: trust[one.cell_id])


def _in_order(neighbours: Iterable[Neighbour]) -> list[Neighbour]:
    return sorted(neighbours, key=lambda neighbour: (neighbour.distance, neighbour.cell_id))


def _by_map(store: Store, spot: Spot, k: int, barred: Collection[str], analyser: str | None) -> list[Neighbour]:
    """The k references by map, in its order."""

    def may(cell_id: str) -> bool:
        return analyser is None or store.is_of(cell_id, analyser)

    firsts = spot.nearest(store, k, exclude=barred, keep=may)
    groups = [store.duplicate_group(first.cell_id) for first in firsts]
    labelled = store.labelled({cell_id for group in groups for cell_id in group})
    trust = {cell_id: source.weight for cell_id, (_, source) in labelled.items()}
    better = [
        [one for one in group if trust[one] > trust[first.cell_id] and one not in barred and may(one)]
        for first, group in zip(firsts, groups, strict=True)
    ]
    away = {one.cell_id: one for one in spot.away(store, [cell_id for group in better for cell_id in group])}
    return [
        _stand_in([first, *_in_order(away[one] for one in group if one in away)], trust)
        for first, group in zip(firsts, better, strict=True)
    ]


def _optics(store: Store, stored: Cell | None, analyser: str | None, any_optics: bool) -> Optics:
    """Which optics the references of a query are taken from."""
    cells = store.analysers()
    total = sum(cells.values())
    how = "unknown"
    if analyser is not None:
        if analyser not in cells:
            known = ", ".join(sorted(name for name in cells if name is not None)) or "none with a name"
            raise LabrefError(
                f"no cell of this lab came from an analyser called {analyser!r}; there is {known}. Ask with --any-optics, or name one."
            )
        how = "asked"
    elif stored is not None and stored.analyser is not None:
        analyser, how = stored.analyser, "stored"
    elif len(cells) == 1:
        analyser, how = next(iter(cells)), "single"
    if any_optics:
        return Optics(analyser, False, "any", total)
    if analyser is None:
        return Optics(None, False, how, total)
    return Optics(analyser, True, how, cells.get(analyser, 0))


def weights(distances: Sequence[float], width: float) -> list[float]:
    """exp(-d / width) of each distance: one where the cell is the query's twin, 1/e at the width.

    The width is the distance of a near neighbour, so that the kernel is narrow where the lab has many such cells and
    wide where it has few (Loftsgaarden & Quesenberry 1965; Zelnik-Manor & Perona 2004). For a width of 0, its limit:
    one for distance 0, else 0.
    """
    if width == 0:
        return [1.0 if distance == 0 else 0.0 for distance in distances]
    return [math.exp(-distance / width) for distance in distances]


def distribution_of(labels: Sequence[str], distances: Sequence[float]) -> Distribution:
    """The spread of cells that are nearest first: the share of each label, weighted by `weights`.

    The width of the kernel is the distance of neighbour number `BANDWIDTH_RANK`, or of the last where there are fewer.
    """
    if not distances:
        return Distribution(0, {})
    of_each = weights(distances, distances[:BANDWIDTH_RANK][-1])
    total = math.fsum(of_each)
    by_label: dict[str, list[float]] = {}
    for label, weight in zip(labels, of_each, strict=True):
        by_label.setdefault(label, []).append(weight)
    shares = {label: math.fsum(parts) / total for label, parts in by_label.items()}
    return Distribution(len(distances), dict(sorted(shares.items(), key=lambda share: (-share[1], share[0]))))


def novelty_of(distances: Sequence[float], threshold: float) -> Novelty:
    """Whether a cell is new: from the distances of the cells nearest to it, and the threshold of a lab of that size
    (`labref.bundles.bundle.NoveltyThreshold.among`)."""
    if not distances:
        return Novelty(None, True)
    score = math.fsum(distances) / len(distances) / threshold
    return Novelty(score, score > 1)


def _no_map(store: Store, bundle: str) -> str:
    damaged = store.maps.problem(bundle)
    if damaged is not None:
        return f"{damaged}. Until then ask with --by latent"
    return (
        "no map has been trained in this lab yet for the bundle in use; the agent trains one by itself, `labref map train` at once. "
        "Until then ask with --by latent"
    )


def _reference(store: Store, cell: Cell, distance: float) -> Reference:
    return Reference(
        cell.cell_id,
        cell.label,
        str(cell.label_source),
        distance,
        cell.slide,
        cell.analyser,
        None if cell.captured_at is None else utc(cell.captured_at),
        cell.path,
        cell.duplicate_of,
        len(store.duplicate_group(cell.cell_id)),
    )
