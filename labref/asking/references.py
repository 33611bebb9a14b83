"""The references of a cell: its nearest neighbours in the lab, the spread of the nearest hundred, and whether it is
new.

Which cells are searched. The cells of the query's own analyser are searched where that analyser is known (`Optics`),
else all cells of the lab.

Which cells are preferred. Among cells that are about equally near, a cell with a reviewed label comes before a cell
with the analyser's label, and both come before a cell with a predicted label. The cells are first ordered by distance.
Then a cell moves ahead of less trusted cells, as long as its distance is at most 5 % above theirs (`NEAR_EQUAL`; 5 % of
a mean squared error is 2.5 % of a length). The first k cells are the references; they are returned nearest first. A
nearer cell is thus left out only for a more trusted cell whose distance is at most 5 % larger.

Captures of one cell. A physical cell is shown once, however often it was captured: duplicates, and possible duplicates
that nobody has decided on, take one place (`Store.alike`). One capture of the cell is shown: the most
trusted of those whose distance is at most 5 % above that of the nearest capture, and the nearest of equally trusted
ones. The shown capture moves ahead of other cells by its own distance; other cells move ahead of it by the distance of
the nearest capture. The limit of 5 % thus holds for every capture of a cell that is left out.

The very cell. A reference that may be a capture of the cell that is asked about says so (`Reference.may_be_same`); all
of these take one place. A lab's setting keeps them, and every other possible duplicate, out of the references.

Cells of other labs. Where the question wants them, and the lab has a shared store, they stand among the references
(`labref.asking.sharing`); they are in the references alone.

Central cells. Where the bundle carries an atlas, cells of the central team's own stand in for classes of which the lab
has too few (`labref.asking.central`); they are in the references and the contrast alone.

The spread counts each physical cell once, by the capture that would be shown. With `by="map"` the cells are ordered by
their place on the map, and the first capture in that order takes the place of the nearest capture.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from labref.asking.analysers import Optics, Telling, optics_of
from labref.asking.central import Central, fill, nearest_of
from labref.asking.contrast import contrasting
from labref.asking.novelty import Novelty, judge, yardstick
from labref.asking.places import Place, Spot, locate
from labref.asking.sharing import Others, apart, own_first
from labref.bundles.atlas import CENTRAL_ID
from labref.bundles.bundle import Bundle
from labref.errors import LabrefError
from labref.shared.asking import Reply, SharedCell
from labref.store import Cell, Neighbour, Store
from labref.store.memory.books import id_to_int, int_to_id
from labref.times import utc
from labref.words import Fingerprint, LabelSource

__all__ = [
    "BANDWIDTH_RANK",
    "NEAR_EQUAL",
    "Distribution",
    "Found",
    "Reference",
    "distribution_of",
    "find",
    "prefer",
    "weights",
]

NEAR_EQUAL = 0.05
"""A more trusted cell may be shown instead of a less trusted one where its distance is larger by at most this share."""
_CANDIDATES = 64  # physical cells beyond the k nearest, among which more trusted cells are looked for
BANDWIDTH_RANK = 8
"""The distance of the neighbour of this rank is the width of the kernel that weighs the spread."""


@dataclass(frozen=True)
class Reference:
    """A cell to show beside the query: a stored one, or one of the bundle's atlas.

    distance : mean squared error in latent space.  lab : the other lab that it is of, whose cell of this id it is; None
    for the lab's own and for a cell of the atlas.  label_source : "reviewed", "analyser" or "predicted"; "central" for
    a cell of the atlas.  captured_at : ISO 8601, UTC.  path : in the export folder; empty for a cell of the atlas.
    duplicate_of : the earlier cell that this cell repeats or may repeat.  captures : number of captures that the lab
    has of this physical cell, this one included.  origin : whether it is the lab's, of the atlas, or of another lab.
    source, licence : of a cell of the atlas: the data set that it is from, and its licence.  may_be_same : whether it
    may be a capture of the very cell that is asked about, which nobody has decided on.
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
    origin: Literal["lab", "central", "shared"] = "lab"
    lab: str | None = None
    source: str | None = None
    licence: str | None = None
    may_be_same: bool = False


@dataclass(frozen=True)
class Distribution:
    """The spread: the share of each label among the n nearest physical cells, weighted by distance.

    n : number of cells.  weights : {label: share}, the largest first; the shares sum to 1.
    """

    n: int
    weights: dict[str, float]


@dataclass(frozen=True)
class Found:
    """What a query gets.

    contrast : the nearest cell of each plausible class that the references do not show; see `labref.asking.contrast`.
    reply : what the shared store answered, where cells of other labs were wanted.
    duplicate_of : the stored cell that the query is, or that it repeats; None where there is no such cell.  place : of
    the query on the lab's map, None while there is no map.
    """

    references: list[Reference]
    contrast: list[Reference]
    distribution: Distribution
    novelty: Novelty
    duplicate_of: str | None
    place: Place | None
    optics: Optics
    reply: Reply | None = None


def find(
    store: Store,
    *,
    bundle: Bundle,
    latent: NDArray[np.float32],
    digest: str | None,
    stored: Cell | None = None,
    k: int = 8,
    spread: int = 100,
    by: str = "latent",
    analyser: str | None = None,
    any_optics: bool = False,
    telling: Telling | None = None,
    repeats: Sequence[str] = (),
    may_repeat: Sequence[str] = (),
    withheld: Collection[str] = (),
    show_same: bool = True,
    probabilities: Mapping[str, float] | None = None,
    contrast: bool = False,
    placed: bool = True,
    central: Central | None = None,
    sharing: Others | None = None,
    fingerprint: Fingerprint | None = None,
) -> Found:
    """References of a query.

    latent : float32[L], in the latent space of `bundle`.  digest : SHA-256 of the query's bytes, hexadecimal, or None
    where it is unknown.  stored : the cell of that digest, where the asker has it already; else it is looked up.

    k : number of references.  spread : number of physical cells that the distribution is made of.

    by : "latent" for the references nearest in latent space, or "map" for the references nearest on the lab's map. The
    distribution and the novelty are always made of the cells nearest in latent space. The novelty counts the nearest
    captures, even where several show the same physical cell.

    analyser : the query's analyser, where the question names it; else it is found out where it can be
    (`labref.asking.analysers`).  any_optics : search the cells of all analysers.  telling : what else tells the
    analyser.

    repeats : ids of the stored cells that the query is a recapture of, the most alike first (`labref.cells.sameness`);
    empty where the query itself is stored. may_repeat : ids of those that it may be a recapture of. withheld : ids of
    cells that are never references, such as possible duplicates that nobody has reviewed. show_same : whether what may
    be the very cell that is asked about may be a reference. probabilities : of the networks, by class; the highest will
    do. contrast : whether the row of contrast is wanted. placed : whether the place on the map is. central : the atlas
    that stands in where the lab has too few cells; None for the lab's own cells alone. sharing : whose cells of other
    labs are wanted, which come by `labref.asking.sharing`; with `by="map"` none do. fingerprint : of the picture,
    where it is known and not stored.

    Not among the references are: the query itself where it is stored, the duplicates of it, the cells that it repeats,
    and the duplicates of these cells; and what people called no good reference (`Store.rejections`).

    Raises `LabrefError` where a map is asked for and there is none, or no cell of the lab came from the analyser;
    `StoreError` where the store does not know the bundle; `ValueError` where the latent does not fit the bundle.
    """
    stored_id = None if digest is None else store.has_digest(digest)
    excluded: list[str] = []
    if stored_id is not None:
        excluded += store.duplicate_group(stored_id)
        stored = stored or store.cell(stored_id)
    for cell_id in repeats:
        excluded += store.duplicate_group(cell_id)
    duplicate_of = stored_id or (repeats[0] if repeats else None)
    same = {one for cell_id in (*excluded, *may_repeat) for one in (cell_id, *store.may_be_same(cell_id))} - {*excluded}
    barred = {*excluded, *withheld, *_rejected(store, excluded), *(() if show_same else same)}

    repeated = store.cell(repeats[0]) if repeats else None
    optics = optics_of(store, stored, repeated, analyser, any_optics, telling)
    only = optics.analyser if optics.only else None
    novelty = bundle.manifest.novelty
    wanted = max(k + _CANDIDATES, spread, novelty.k, BANDWIDTH_RANK)
    pending = (
        sharing.put(bundle.digest, latent, optics, k + _CANDIDATES) if sharing is not None and by == "latent" else None
    )
    neighbours, captures = _nearest(store, bundle.digest, latent, wanted, barred, only, same)
    labelled = store.labelled([neighbour.cell_id for neighbour in neighbours])
    trust = {cell_id: source.weight for cell_id, (_, source) in labelled.items()}
    nearest = {_stand_in(of_one, trust): of_one[0].distance for of_one in captures}
    known_id = None if stored is None else stored.cell_id
    spot = locate(store, bundle.digest, latent, known_id, only) if placed else None
    if by == "map" and spot is None:
        raise LabrefError(_no_map(store, bundle.digest))
    reply, shared = None, dict[str, SharedCell]()
    if pending is not None:
        reply = pending.reply()
    if by == "map" and spot is not None:
        shown = _by_map(store, spot, k, barred, only, same)
    elif reply is not None and reply.cells:
        if stored_id is not None:
            fingerprint = store.duplicates.fingerprints([stored_id]).get(stored_id)
        theirs, shared, weight = apart(
            store, reply, list(nearest), digest=digest, fingerprint=fingerprint, stand_in=_stand_in
        )
        together = nearest | theirs
        shown = prefer(
            _in_order(together),
            own_first(trust) | weight,
            k,
            {one.cell_id: distance for one, distance in together.items()},
        )
        labelled |= {key: (one.label, one.label_source) for key, one in shared.items()}
    else:
        shown = prefer(_in_order(nearest), trust, k, {one.cell_id: distance for one, distance in nearest.items()})
    labelled |= store.labelled([one.cell_id for one in shown if one.cell_id not in labelled])
    others: dict[str, Neighbour] = {}
    if central is not None and by == "latent":
        given = {labelled[one.cell_id][0] for one in shown}
        shown = fill(
            store,
            central,
            latent,
            own=shown,
            labels=given,
            probabilities=probabilities or {},
            k=k,
            analyser=only,
        )
        others = nearest_of(central, latent) if contrast else {}
    contrasts = (
        []
        if not contrast
        else contrasting(
            store,
            bundle.digest,
            latent,
            references=shown,
            shown={_label(one, labelled, central) for one in shown},
            neighbours=neighbours,
            labelled=labelled,
            central=others,
            called=(lambda label: label) if central is None else central.names.label,
            probabilities=probabilities or {},
            barred=barred,
            may=lambda ids: set(ids) if only is None else store.those_of(ids, only),
            choose=_stand_in,
        )
    )
    cells = store.cells(
        [one.cell_id for one in (*shown, *contrasts) if not _is_central(one) and one.cell_id not in shared]
    )
    in_spread = _in_order(list(nearest)[:spread])
    # novelty is measured against cells that were counted so: see `labref.asking.novelty`
    certain = _together(neighbours, store.groups.of(_numbers(neighbours)))[:wanted]
    return Found(
        [
            _of_others(shared[one.cell_id]) if one.cell_id in shared else _reference(store, cells, one, central, same)
            for one in shown
        ],
        [_reference(store, cells, one, central, same) for one in contrasts],
        distribution_of(
            [labelled[neighbour.cell_id][0] for neighbour in in_spread], [neighbour.distance for neighbour in in_spread]
        ),
        judge(
            [of_one[0].distance for of_one in certain],
            [labelled[of_one[0].cell_id][0] for of_one in certain],
            novelty,
            optics.cells,
            yardstick(store, bundle.digest, only),
            whole=len(certain) < wanted,
            nearest=[neighbour.distance for neighbour in neighbours],
            predicted=max(probabilities.items(), key=lambda of_one: of_one[1]) if probabilities else None,
        ),
        duplicate_of,
        None if spot is None else spot.place(store, exclude=barred, analyser=only),
        optics,
        reply,
    )


def _rejected(store: Store, query: Sequence[str]) -> set[str]:
    """Cells that people called no good reference: for any query, or for this one. query : ids of its captures."""
    unlike = store.rejections.for_queries(query)
    return {*store.rejections.for_any(), *(one for cell_id in unlike for one in store.duplicate_group(cell_id))}


def prefer(
    neighbours: Sequence[Neighbour], trust: Mapping[str, int], k: int, nearest: Mapping[str, float] | None = None
) -> list[Neighbour]:
    """The k references among these neighbours, nearest first, by the rule in this module's description: the nearest
    cells, where among about equally near ones the more trusted come first.

    neighbours : nearest first; at least all cells whose distance is at most 5 % above that of the k-th.  trust : {cell
    id: weight of its label's source}, a larger weight is preferred.  nearest : {cell id: distance of the cell's nearest
    capture}; None where each neighbour is the nearest capture of its cell.
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
    store: Store,
    bundle: str,
    latent: NDArray[np.float32],
    cells: int,
    barred: Collection[str],
    analyser: str | None,
    same: Collection[str],
) -> tuple[list[Neighbour], list[list[Neighbour]]]:
    """Two lists, each nearest first: the nearest captures, as many as it takes to have `cells` physical cells (fewer
    where the lab has fewer); and for each of these physical cells, ordered by their nearest capture, its captures.

    same : ids of what may be one physical cell, that which is asked about.
    """
    # where the lab has recaptures, the first search asks for half as many more: a second search takes as long
    alike, one_cell = store.alike, {id_to_int(cell_id) for cell_id in same}
    wanted = cells + cells // 2 if len(alike) else cells
    while True:
        neighbours = store.nearest(latent, bundle=bundle, k=wanted, exclude=barred, analyser=analyser)
        captures = _together(neighbours, alike.of(_numbers(neighbours), one_cell))
        if len(captures) >= cells or len(neighbours) < wanted:
            return neighbours, captures[:cells]
        hidden = sum(len(alike.members(id_to_int(seen[0].cell_id))) - len(seen) for seen in captures)
        wanted = max(2 * wanted, wanted + hidden + 2 * (cells - len(captures)))


def _numbers(neighbours: Sequence[Neighbour]) -> NDArray[np.uint64]:
    return np.array([id_to_int(neighbour.cell_id) for neighbour in neighbours], np.uint64)


def _together(neighbours: Sequence[Neighbour], groups: NDArray[np.uint64]) -> list[list[Neighbour]]:
    """The neighbours of each group, in their order. groups : uint64[n], that of each neighbour."""
    found: dict[int, list[Neighbour]] = {}
    for group, neighbour in zip(groups.tolist(), neighbours, strict=True):
        found.setdefault(group, []).append(neighbour)
    return list(found.values())


def _stand_in(captures: Sequence[Neighbour], trust: Mapping[str, int]) -> Neighbour:
    """The capture of a cell that is shown: the first, or a more trusted one whose distance is at most 5 % larger."""
    if len(captures) == 1:
        return captures[0]
    reach = (1 + NEAR_EQUAL) * captures[0].distance
    return max((one for one in captures if one.distance <= reach), key=lambda one: trust[one.cell_id])


def _in_order(neighbours: Iterable[Neighbour]) -> list[Neighbour]:
    return sorted(neighbours, key=lambda neighbour: (neighbour.distance, neighbour.cell_id))


def _by_map(
    store: Store, spot: Spot, k: int, barred: Collection[str], analyser: str | None, same: Collection[str]
) -> list[Neighbour]:
    """The k references in the order of the map. same : ids of what may be one physical cell."""
    alike = store.alike

    def may(cell_id: str) -> bool:
        return analyser is None or store.is_of(cell_id, analyser)

    def captures(cell_id: str) -> list[str]:
        return [*same] if cell_id in same else [int_to_id(one) for one in alike.members(id_to_int(cell_id))]

    firsts = spot.nearest(store, k, exclude=barred, keep=may, same=same)
    groups = [captures(first.cell_id) for first in firsts]
    labelled = store.labelled({cell_id for group in groups for cell_id in group})
    trust = {cell_id: source.weight for cell_id, (_, source) in labelled.items()}
    better = [
        [one for one in group if trust.get(one, 0) > trust[first.cell_id] and one not in barred and may(one)]
        for first, group in zip(firsts, groups, strict=True)
    ]
    away = {one.cell_id: one for one in spot.away(store, [cell_id for group in better for cell_id in group])}
    return [
        _stand_in([first, *_in_order(away[one] for one in group if one in away)], trust)
        for first, group in zip(firsts, better, strict=True)
    ]


def weights(distances: Sequence[float], width: float) -> list[float]:
    """The weight exp(-d / width) of each distance d: 1 at distance 0, and 1/e at the width.

    The width is the distance of a near neighbour. The kernel is thus narrow where the lab has many cells like the
    query, and wide where it has few (Loftsgaarden & Quesenberry 1965; Zelnik-Manor & Perona 2004). With a width of 0
    the weights are the limit of the formula: 1 for distance 0, else 0.
    """
    if width == 0:
        return [1.0 if distance == 0 else 0.0 for distance in distances]
    return [math.exp(-distance / width) for distance in distances]


def distribution_of(labels: Sequence[str], distances: Sequence[float]) -> Distribution:
    """The spread: the share of each label among these cells, weighted by `weights`.

    labels, distances : of the same cells, nearest first. The width of the kernel is the distance of the cell of rank
    `BANDWIDTH_RANK`, or of the last cell where there are fewer.
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


def _no_map(store: Store, bundle: str) -> str:
    damaged = store.maps.problem(bundle)
    if damaged is not None:
        return f"{damaged}. Until then ask with --by latent"
    return (
        "no map has been trained in this lab yet for the bundle in use; the agent trains one by itself, `labref map train` at once. "
        "Until then ask with --by latent"
    )


def _is_central(neighbour: Neighbour) -> bool:
    return neighbour.cell_id.startswith(CENTRAL_ID)


def _label(neighbour: Neighbour, labelled: Mapping[str, tuple[str, LabelSource]], central: Central | None) -> str:
    if central is not None and _is_central(neighbour):
        return central.label(neighbour.cell_id)
    return labelled[neighbour.cell_id][0]


def _of_others(cell: SharedCell) -> Reference:
    return Reference(
        cell.cell_id,
        cell.label,
        str(cell.label_source),
        cell.distance,
        slide=None,
        analyser=cell.analyser,
        captured_at=None if cell.captured_at is None else utc(cell.captured_at),
        path="",
        duplicate_of=None,
        captures=1,
        origin="shared",
        lab=cell.lab,
    )


def _reference(
    store: Store, cells: Mapping[str, Cell], neighbour: Neighbour, central: Central | None, same: Collection[str]
) -> Reference:
    cell_id = neighbour.cell_id
    if central is not None and _is_central(neighbour):
        source = central.source(cell_id)
        return Reference(
            cell_id,
            central.label(cell_id),
            "central",
            neighbour.distance,
            slide=None,
            analyser=None,
            captured_at=None,
            path="",
            duplicate_of=None,
            captures=1,
            origin="central",
            source=source.name,
            licence=source.licence,
        )
    cell = cells[cell_id]
    return Reference(
        cell_id,
        cell.label,
        str(cell.label_source),
        neighbour.distance,
        cell.slide,
        cell.analyser,
        None if cell.captured_at is None else utc(cell.captured_at),
        cell.path,
        cell.duplicate_of,
        len(store.duplicate_group(cell.cell_id)),
        may_be_same=cell_id in same,
    )
