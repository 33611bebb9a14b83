"""What the lab's map says about one cell: its node, the class of the cells around it, and the nearest references."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.som.labels import RADIUS
from labref.store import ActiveMap, Neighbour, Store
from labref.store.memory import distances
from labref.store.memory.books import id_to_int, int_to_id

__all__ = ["Place", "Spot", "locate"]

_REACH: Final = 4  # in radii; a cell farther away would weigh less than 1/2980, exp(-4²/2), and is left out


@dataclass(frozen=True)
class Place:
    """Where a cell lies on the map, and which class its neighbours there have.

    row, column : of the cell's node, from 0.  label : the class with the largest sum of weights among the cells around
    the node; a cell at the distance d weighs exp(-d²/2r²), with r = 2 nodes; None where no cell is near.  share : of
    that class in the sum of all weights.  cells : number of physical cells around the node; one that was captured
    several times counts once.  map : the map's version.  analyser : whose cells alone lie on that map; None where all
    do.
    """

    row: int
    column: int
    label: str | None
    share: float | None
    cells: int
    map: int
    analyser: str | None


@dataclass(frozen=True)
class Spot:
    """The node of one latent on the map in use."""

    active: ActiveMap
    latent: NDArray[np.float32]
    node: int

    def place(self, store: Store, *, exclude: Collection[str] = (), analyser: str | None = None) -> Place:
        """The node's place, and the class of the cells around it. exclude : ids of cells that do not count.  analyser :
        only cells that came from this one count; None takes all."""
        positions = self.active.positions
        reach = round((_REACH * RADIUS) ** 2)
        near = positions.within(self.node, reach)
        excluded = {id_to_int(cell) for cell in exclude}
        near = near.of(~np.isin(near.ids, np.fromiter(excluded, np.uint64, len(excluded))))
        if analyser is not None:
            near = near.of(store.are_of(near.ids, analyser))
        near = near.of(store.groups.firsts(near.ids))
        book = store.label_book
        codes, squared = book.codes_of(near.ids), positions.away(self.node, near.nodes)
        weight_at = np.array([math.exp(-away / (2 * RADIUS**2)) for away in range(reach + 1)])
        weights: dict[str, list[float]] = {}
        for code in np.unique(codes[codes >= 0]).tolist():
            weights.setdefault(book.values[code][0], []).extend(weight_at[squared[codes == code]].tolist())
        sums = {label: math.fsum(parts) for label, parts in weights.items()}
        best = min(sums, key=lambda label: (-sums[label], label), default=None)
        share = None if best is None else sums[best] / math.fsum(sums.values())
        row, column = divmod(self.node, positions.cols)
        return Place(row, column, best, share, len(near), self.active.version.number, self.active.version.analyser)

    def nearest(
        self,
        store: Store,
        k: int,
        *,
        exclude: Collection[str] = (),
        keep: Callable[[str], bool] | None = None,
        same: Collection[str] = (),
    ) -> list[Neighbour]:
        """The k references by map, in the thesis' order (section 4.6): first the cells on the same node, ordered by
        quantisation error, then the cells on the nearest nodes. Each has its mean squared error in latent space as
        distance, as every reference has. Of several captures of what is or may be one physical cell (`Store.alike`),
        only the first in this order is returned.

        exclude : ids of cells that are not returned.  keep : takes a cell id, and returns whether that cell may be
        returned; None allows all.  same : ids of cells that count as one physical cell.
        """
        one_cell = {id_to_int(cell) for cell in same}
        excluded = {id_to_int(cell) for cell in exclude}

        def may(ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
            allowed = np.array(
                [n not in excluded and (keep is None or keep(int_to_id(n))) for n in ids.tolist()], np.bool_
            ).reshape(len(ids))
            allowed[allowed] = store.alike.firsts(ids[allowed], one_cell)
            return allowed

        found = self.active.positions.nearest(self.node, k, may)
        return self.away(store, [int_to_id(cell) for cell in found.ids.tolist()])

    def away(self, store: Store, ids: Sequence[str]) -> list[Neighbour]:
        """These cells with their distance to the query (mean squared error), in the order of `ids`. Cells without a
        latent are left out."""
        latents = store.latents(ids, bundle=self.active.version.bundle)
        query = np.ascontiguousarray(self.latent, np.float32)
        return [
            Neighbour(cell, float(distances.exact(latents[cell][None], query)[0])) for cell in ids if cell in latents
        ]


def locate(
    store: Store, bundle: str, latent: NDArray[np.float32], stored: str | None = None, analyser: str | None = None
) -> Spot | None:
    """Where a latent lies on the map in use for `bundle`; None while there is no such map.

    latent : float32[L], in the latent space of `bundle`.  stored : the id of the cell that has it, where one is stored:
    its place is known then.  analyser : on the map of this one's own cells, where there is one.
    """
    active = store.maps.best(bundle, analyser)
    if active is None:
        return None
    node = None if stored is None else active.positions.node_of(id_to_int(stored))
    if node is None:
        nodes, _ = active.placer.place(latent[None])
        node = int(nodes[0])
    return Spot(active, latent, node)
