"""Which cells lie on which node of a map, in memory: 16 bytes a cell, read without a lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["OpenPlacer", "Placed", "Placer", "Positions"]

_MERGE_AT: Final = 8192


class Placer(Protocol):
    """Finds where latents lie on one map. Whoever opens the store hands it in; the store does not know how."""

    rows: int
    cols: int

    def place(self, latents: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The node of each latent float[n, L], row * cols + column, and its distance, the quantisation error: int64[n],
        float32[n]. Called from any thread."""


OpenPlacer = Callable[[Path], Placer]
"""Opens the file with the weights of a map. Raises `LabrefError` where it is missing or damaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Cells with their places on a map. ids : uint64[n].  nodes : int64[n], row * cols + column.  errors : float32[n],
    the quantisation error: the distance of each latent from its node."""

    ids: NDArray[np.uint64]
    nodes: NDArray[np.int64]
    errors: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, chosen: NDArray[np.intp] | NDArray[np.bool_]) -> Placed:
        """Only the chosen cells."""
        return Placed(self.ids[chosen], self.nodes[chosen], self.errors[chosen])

    @staticmethod
    def joined(parts: Sequence[Placed]) -> Placed:
        """All parts as one."""
        if not parts:
            return Placed(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.float32))
        return Placed(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.nodes for part in parts]),
            np.concatenate([part.errors for part in parts]),
        )


class _State(NamedTuple):
    """One consistent state for readers. cells : sorted by node.  starts : int64[nodes + 1], the index in `cells` where
    each node's cells begin.  recent : cells added since the last sort.  recently : their number."""

    cells: Placed
    starts: NDArray[np.int64]
    recent: tuple[Placed, ...]
    recently: int


class Positions:
    """The cells on one map of rows × cols nodes. One thread may add while any number of others look up."""

    def __init__(self, rows: int, cols: int, cells: Placed) -> None:
        self.rows, self.cols = rows, cols
        self._state = self._settled(cells)

    def __len__(self) -> int:
        state = self._state
        return len(state.cells) + state.recently

    @property
    def nbytes(self) -> int:
        """Memory in use, bytes."""
        state = self._state
        return 20 * (len(state.cells) + state.recently) + state.starts.nbytes

    def add(self, cells: Placed) -> None:
        """Add cells that are not on the map yet."""
        state = self._state
        recent = (*state.recent, cells)
        recently = state.recently + len(cells)
        if recently >= _MERGE_AT:
            self._state = self._settled(Placed.joined((state.cells, *recent)))
        elif len(recent) >= 64:
            # a look-up goes through the recent parts one by one, so there must be few
            self._state = state._replace(recent=(Placed.joined(recent),), recently=recently)
        else:
            self._state = state._replace(recent=recent, recently=recently)

    def every(self) -> Placed:
        """All cells, in no particular order."""
        state = self._state
        return Placed.joined((state.cells, *state.recent))

    def node_of(self, cell: int) -> int | None:
        """The node of the cell with this id; None where it is not on the map. A millisecond for a million cells."""
        state = self._state
        for part in (*state.recent[::-1], state.cells):
            there = np.flatnonzero(part.ids == np.uint64(cell))
            if len(there):
                return int(part.nodes[there[0]])
        return None

    def at(self, node: int) -> Placed:
        """The cells on a node, ordered by quantisation error, then by id."""
        return self.within(node, 0)

    def within(self, node: int, squared: int) -> Placed:
        """The cells whose node's squared distance from `node` on the grid is at most `squared`. The nearest nodes come
        first; cells of equally near nodes are ordered by quantisation error, then by id."""
        return self._gather(self._state, self._away(node), squared)

    def nearest(
        self, node: int, k: int, keep: Callable[[NDArray[np.uint64]], NDArray[np.bool_]] | None = None
    ) -> Placed:
        """The k cells nearest to a node, as the thesis chooses references by map (section 4.6): the cells on the node,
        then those of the nearest nodes by Euclidean distance on the grid. Cells of equally near nodes are ordered by
        quantisation error. Fewer than k are returned where the map has fewer.

        keep : takes ids uint64[n], nearest first and complete up to a distance, and returns bool[n], which of these
        cells may be returned; None allows all.
        """
        state = self._state
        away = self._away(node)
        counts = np.diff(state.starts)
        for part in state.recent:
            counts = counts + np.bincount(part.nodes, minlength=len(counts))
        within = np.cumsum(np.bincount(away, weights=counts))
        total, wanted = len(state.cells) + state.recently, k
        while True:
            reach = int(np.searchsorted(within, min(wanted, total)))
            found = self._gather(state, away, reach)
            if keep is not None:
                found = found.of(keep(found.ids))
            if len(found) >= k or wanted >= total:
                return found.of(np.arange(min(k, len(found))))
            wanted = 4 * max(wanted, 16)

    def away(self, node: int, nodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The squared distance on the grid between `node` and each of `nodes`: int64[n]. nodes : int64[n]."""
        squared: NDArray[np.int64] = (nodes // self.cols - node // self.cols) ** 2 + (
            nodes % self.cols - node % self.cols
        ) ** 2
        return squared

    def _away(self, node: int) -> NDArray[np.int64]:
        if not 0 <= node < self.rows * self.cols:
            raise ValueError(f"a map of {self.rows}×{self.cols} has no node {node}")
        return self.away(node, np.arange(self.rows * self.cols))

    def _gather(self, state: _State, away: NDArray[np.int64], squared: int) -> Placed:
        inside = away <= squared
        nodes = np.flatnonzero(inside)
        starts, ends = state.starts[nodes], state.starts[nodes + 1]
        lengths = ends - starts
        rows = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) + np.arange(lengths.sum())
        found = Placed.joined(
            (state.cells.of(rows.astype(np.intp)), *(part.of(inside[part.nodes]) for part in state.recent))
        )
        return found.of(np.lexsort((found.ids, found.errors, away[found.nodes])))

    def _settled(self, cells: Placed) -> _State:
        cells = cells.of(np.argsort(cells.nodes, kind="stable"))
        counts = np.bincount(cells.nodes, minlength=self.rows * self.cols)
        return _State(cells, np.concatenate([[0], np.cumsum(counts)]), (), 0)
