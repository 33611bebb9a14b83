"""What the lab's map says of one cell: its node, the class of the cells about it, and the references that lie
nearest."""

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

_REACH: Final = 4  # radii; what lies farther counts less than a three-thousandth


@dataclass(frozen=True)
class Place:
    """Where a cell lies on the map, and what it would be by its neighbours there.

    row, column : of its node, from 0.  label : the class that most cells about the node have, each counted by its
    nearness, exp(-d²/2r²) with r two nodes; None where no cell is near.  share : of that class among them.  cells : how
    many they are, each counted once however
    often it was captured.  map : the version.
    """

    row: int
    column: int
    label: str | None
    share: float | None
    cells: int
    map: int


@dataclass(frozen=True)
class Spot:
    """The node of one latent on the map in use."""

    active: ActiveMap
    latent: NDArray[np.float32]
    node: int

    def place(self, store: Store, *, exclude: Collection[str] = ()) -> Place:
        """What lies about the node, the excluded cells left out."""
        positions = self.active.positions
        about = positions.within(self.node, round((_REACH * RADIUS) ** 2))
        barred = {id_to_int(cell) for cell in exclude}
        about = about.of(np.array([cell not in barred for cell in about.ids.tolist()], bool))
        about = about.of(store.groups.firsts(about.ids))
        ids = [int_to_id(cell) for cell in about.ids.tolist()]
        labels = store.labels(ids)
        squared = positions.away(self.node, about.nodes).tolist()
        shares: dict[str, list[float]] = {}
        for cell_id, away in zip(ids, squared, strict=True):
            if cell_id in labels:
                shares.setdefault(labels[cell_id], []).append(math.exp(-away / (2 * RADIUS**2)))
        sums = {label: math.fsum(parts) for label, parts in shares.items()}
        best = min(sums, key=lambda label: (-sums[label], label), default=None)
        share = None if best is None else sums[best] / math.fsum(sums.values())
        row, column = divmod(self.node, positions.cols)
        return Place(row, column, best, share, len(about), self.active.version.number)

    def nearest(
        self,
        store: Store,
        k: int,
        *,
        exclude: Collection[str] = (),
        keep: Callable[[str], bool] | None = None,
    ) -> list[Neighbour]:
        """The k references by map, in the thesis' order (chapter 4.9): cells on the same node by quantisation error,
        then those on the nearest nodes. Their distances are mean squared errors in latent space, as of any reference.
        Of the captures of one cell (`Store.groups`) only the first in that order is there.

        exclude : cell ids that may not appear.  keep : of a cell id, whether it may.
        """
        barred = {id_to_int(cell) for cell in exclude}

        def may(ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
            allowed = np.array(
                [n not in barred and (keep is None or keep(int_to_id(n))) for n in ids.tolist()], np.bool_
            ).reshape(len(ids))
            allowed[allowed] = store.groups.firsts(ids[allowed])
            return allowed

        found = self.active.positions.nearest(self.node, k, may)
        return self.away(store, [int_to_id(cell) for cell in found.ids.tolist()])

    def away(self, store: Store, ids: Sequence[str]) -> list[Neighbour]:
        """Cells with their distance to the query, in the order given; those without a latent are left out."""
        latents = store.latents(ids, bundle=self.active.version.bundle)
        query = np.ascontiguousarray(self.latent, np.float32)
        return [
            Neighbour(cell, float(distances.exact(latents[cell][None], query)[0])) for cell in ids if cell in latents
        ]


def locate(store: Store, bundle: str, latent: NDArray[np.float32]) -> Spot | None:
    """Where latent float32[L], in the space of `bundle`, lies on the map in use there; None while there is no map."""
    active = store.maps.active(bundle)
    if active is None:
        return None
    nodes, _ = active.placer.place(latent[None])
    return Spot(active, latent, int(nodes[0]))
