"""Exact nearest neighbours in memory: first a lower bound on every distance, then the exact distance of few cells.

Latents lie in blocks of 65,536. A full block is rotated onto its principal axes. Of each cell x the index keeps the
first m coordinates x1, the length r of the remaining ones, and the squared length of all. For a query q, rotated in the
same way, Cauchy-Schwarz gives

    |x - q|^2 >= |x|^2 + |q|^2 - 2 x1.q1 - 2 r_x r_q,

This is one matrix-vector product of m + 2 columns instead of L. The exact distance is computed only for cells whose
bound does not exceed the k-th smallest distance found so far. The bounds are lowered by more than all rounding of
float32, so no neighbour is missed; the distances equal those of `labref.store.memory.distances` bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labref.store.memory import distances

__all__ = ["BLOCK_ROWS", "Index"]

BLOCK_ROWS = 65_536
# OpenBLAS splits larger products over threads, and then waits for a core that the ingest uses. Beside a busy process,
# a search among a million cells took 120 ms instead of 3 ms
_TILE_ELEMENTS = 400_000
_TURN_ROWS = 2048  # rows rotated at once, one axis after the other, for the same reason; they stay in the cache
_AXES = (6, 14, 22, 30, 38)
_UNSORTED = 1024  # cells of a block whose ids are compared one by one, until they are sorted with the others
_TRIAL_ROWS, _TRIAL_QUERIES, _TRIAL_K = 4096, 16, 100
# measured times in nanoseconds: of reading one element of the bounds, and of one candidate's exact distance
_NS_ELEMENT, _NS_CANDIDATE = 0.18, 150.0
_TINY = 1e-36
"""Added to a limit, because squares smaller than this are lost in float32."""


def _slack(terms: int) -> float:
    """An upper limit, with a margin, of the relative rounding error of a float32 product with this number of terms.

    In units of 2^-24, the terms and their sum take terms + 4; r, a difference of squares in float64, at most 5 more.
    """
    return (terms + 20) * 2.0**-24


@dataclass(frozen=True)
class _Axes:
    """The rotation of a full block, x -> (x - mean) @ rotation; the first m coordinates are kept."""

    mean: NDArray[np.float64]  # [L]
    rotation: NDArray[np.float64]  # [L, L], orthogonal
    m: int
    columns: NDArray[np.float32]  # [n, m + 2], column by column in memory: x1, r, lowered |x|^2

    @classmethod
    def of(
        cls, latents: NDArray[np.float32], mean: NDArray[np.float64], rotation: NDArray[np.float64], m: int
    ) -> _Axes:
        columns = np.empty((len(latents), m + 2), np.float32, order="F")
        for start in range(0, len(latents), _TURN_ROWS):
            part = slice(start, start + _TURN_ROWS)
            centred = latents[part] - mean
            squared = np.square(centred).sum(axis=1)
            rest = squared.copy()
            for axis in range(m):
                coordinate = centred @ rotation[:, axis]
                rest -= np.square(coordinate)
                columns[part, axis] = coordinate
            columns[part, m] = np.sqrt(np.maximum(rest, 0))
            columns[part, m + 1] = squared * (1 - 2 * _slack(m + 2))
        return cls(mean, rotation, m, columns)

    def weights(self, query: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """Factors for the columns, float32[m + 2], and a number. The product of columns and factors, plus the number,
        is the bound on the squared distance."""
        turned = (query - self.mean) @ self.rotation
        rest = np.sqrt(np.square(turned[self.m :]).sum())
        factors = np.concatenate([-2 * turned[: self.m], [-2 * rest, 1.0]]).astype(np.float32)
        return factors, float(np.square(turned).sum() * (1 - _slack(self.m + 2)))


class _Block:
    """Up to BLOCK_ROWS cells. Its first n rows never change, so readers need no lock."""

    def __init__(self, latent_size: int, rows: int = BLOCK_ROWS) -> None:
        self.n = 0
        self.latents = np.empty((rows, latent_size), np.float32)
        self.ids = np.empty(rows, np.uint64)
        self.groups = np.zeros(rows, np.uint32)
        self.lengths = np.empty(rows, np.float32)  # |x|^2, lowered
        self.axes: _Axes | None = None
        self._sorted = np.empty(0, np.uint64), np.empty(0, np.intp)

    @property
    def nbytes(self) -> int:
        columns = 0 if self.axes is None else self.axes.columns.nbytes
        ids = self.ids.nbytes + sum(part.nbytes for part in self._sorted)
        return self.latents.nbytes + ids + self.groups.nbytes + self.lengths.nbytes + columns

    def fill(self, ids: NDArray[np.uint64], latents: NDArray[np.float32], groups: NDArray[np.uint32] | int = 0) -> None:
        end = self.n + len(ids)
        self.groups[self.n : end] = groups
        self.ids[self.n : end] = ids
        self.latents[self.n : end] = latents
        squared = np.square(latents, dtype=np.float64).sum(axis=1)
        self.lengths[self.n : end] = squared * (1 - 2 * _slack(latents.shape[1] + 1))
        self.n = end

    def bounds(self, query: NDArray[np.float32], n: int) -> tuple[NDArray[np.float32], float]:
        """float32[n] and a number. Their sum is at most the squared distance of each of the first n cells to the
        query."""
        out = np.empty(n, np.float32)
        axes = self.axes
        if axes is None:
            factors = query * np.float32(-2)
            step = max(1, _TILE_ELEMENTS // len(query))
            for start in range(0, n, step):
                np.matmul(self.latents[start : min(n, start + step)], factors, out=out[start : start + step])
            out += self.lengths[:n]
            return out, float(np.square(query, dtype=np.float64).sum() * (1 - _slack(len(query) + 1)))
        factors, base = axes.weights(query)
        step = _TILE_ELEMENTS // len(factors)
        for start in range(0, n, step):
            np.matmul(axes.columns[start : min(n, start + step)], factors, out=out[start : start + step])
        return out, base

    def rows_of(self, wanted: NDArray[np.uint64]) -> NDArray[np.intp]:
        """The rows of those of these ids that are here. wanted : uint64[k], ascending."""
        n = self.n
        ids, rows = self._sorted
        if n - len(ids) > _UNSORTED:
            rows = np.argsort(self.ids[:n])
            ids = self.ids[rows]
            self._sorted = ids, rows
        at = np.searchsorted(ids, wanted)
        at = at[at < len(ids)]  # those are the first: `wanted` ascends
        there: NDArray[np.intp] = rows[at[ids[at] == wanted[: len(at)]]]
        if n == len(ids):
            return there
        return np.concatenate([there, len(ids) + np.flatnonzero(np.isin(self.ids[len(ids) : n], wanted))])

    def settle(self) -> None:
        """Rotate a full block onto its principal axes, where a trial on part of its cells shows that it saves time."""
        size = self.latents.shape[1]
        part = np.ascontiguousarray(self.latents[:: max(1, self.n // _TRIAL_ROWS)])
        mean = part.mean(axis=0, dtype=np.float64)
        centred = part - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)
        rotation = np.ascontiguousarray(vectors[:, ::-1])
        k = max(1, _TRIAL_K * len(part) // self.n)
        best, best_cost = None, 0.8 * size * self.n * _NS_ELEMENT
        for m in (m for m in _AXES if m + 2 < size):
            trial = _Axes.of(part, mean, rotation, m)
            survivors = 0
            for probe in part[:: len(part) // _TRIAL_QUERIES]:
                factors, base = trial.weights(probe)
                bounds = trial.columns @ factors
                first = np.argpartition(bounds, k)[: k + 1]
                reach = distances.exact(part[first], probe).max() * size - base
                survivors += int(np.count_nonzero(bounds <= reach))
            share = survivors / (_TRIAL_QUERIES * len(part))
            cost = self.n * ((m + 2) * _NS_ELEMENT + share * _NS_CANDIDATE)
            if cost < best_cost:
                best, best_cost = m, cost
        self.axes = None if best is None else _Axes.of(self.latents[: self.n], mean, rotation, best)


class Index:
    """All latents of one bundle. One thread adds at a time; any number search meanwhile."""

    def __init__(self, latent_size: int, block_rows: int = BLOCK_ROWS) -> None:
        """block_rows : cells in a block; tests use smaller blocks than the default."""
        self.latent_size = latent_size
        self.groups: dict[str | None, int] = {}
        """{name: number} of the groups; the code that adds cells maintains it."""
        self._block_rows = block_rows
        self._blocks: list[_Block] = []
        self._adding = threading.Lock()

    def __len__(self) -> int:
        return sum(block.n for block in self._blocks)

    @property
    def nbytes(self) -> int:
        """Memory of the index, bytes."""
        return sum(block.nbytes for block in self._blocks)

    def checksum(self) -> tuple[int, int]:
        """The number of cells in the index, and the exclusive or of all their ids."""
        parts = [int(np.bitwise_xor.reduce(block.ids[: block.n])) for block in list(self._blocks)]
        return len(self), int(np.bitwise_xor.reduce(np.array(parts, np.uint64))) if parts else 0

    def add(
        self, ids: NDArray[np.uint64], latents: NDArray[np.float32], groups: NDArray[np.uint32] | None = None
    ) -> None:
        """Add cells. ids : uint64[n], not in the index yet.  latents : float32[n, L].  groups : uint32[n], the group of
        each cell; by default 0."""
        of_each = np.zeros(len(ids), np.uint32) if groups is None else groups
        with self._adding:
            start = 0
            while start < len(ids):
                if not self._blocks or self._blocks[-1].n == self._block_rows:
                    self._blocks.append(_Block(self.latent_size, self._block_rows))
                block = self._blocks[-1]
                part = slice(start, start + self._block_rows - block.n)
                block.fill(ids[part], latents[part], of_each[part])
                start = part.stop
                if block.n == self._block_rows:
                    block.settle()

    def blocks(self, group: int | None = None) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
        """All cells, or those of a group, block by block: ids uint64[n] and latents float32[n, L], not to be
        changed."""
        for block in list(self._blocks):
            n = block.n
            chosen = slice(n) if group is None else np.flatnonzero(block.groups[:n] == group)
            yield block.ids[chosen], block.latents[chosen]

    def latents(self, ids: NDArray[np.uint64]) -> dict[int, NDArray[np.float32]]:
        """The latents float32[L] of some cells, by id; cells that are not in the index are left out. ids : uint64[n].
        A millisecond for some hundred of a million."""
        wanted = np.sort(ids)
        found: dict[int, NDArray[np.float32]] = {}
        for block in list(self._blocks):
            rows = block.rows_of(wanted)
            found.update(zip(block.ids[rows].tolist(), block.latents[rows], strict=True))
        return found

    def nearest(
        self, query: NDArray[np.float32], k: int, group: int | None = None
    ) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """The k cells nearest to the query: ids uint64[k] and distances float64[k] (mean squared error).

        query : float32[L].  group : search only the cells of this group; None for all. Nearest first, equal distances
        by id; fewer than k where the index holds fewer.
        """
        ids = np.empty(0, np.uint64)
        found = np.empty(0, np.float64)
        for block in list(self._blocks):
            n = block.n
            bounds, base = block.bounds(query, n)
            if len(found) < k:
                # the k cells with the smallest bounds give a first value of the k-th distance
                chosen = np.arange(n) if group is None else np.flatnonzero(block.groups[:n] == group)
                if len(chosen) == 0:
                    continue
                first = chosen[np.argpartition(bounds[chosen], min(k, len(chosen)) - 1)[: min(k, len(chosen))]]
                exact = np.concatenate([found, distances.exact(block.latents[first], query)])
                reach = np.inf if len(exact) < k else float(np.partition(exact, k - 1)[k - 1])
            else:
                reach = float(found[-1])
            limit = np.float32(reach * self.latent_size * (1 + 1e-12) + _TINY - base)
            close = np.flatnonzero(bounds <= np.nextafter(limit, np.float32(np.inf)))
            if group is not None:
                close = close[block.groups[close] == group]
            if len(close) == 0:
                continue
            ids = np.concatenate([ids, block.ids[close]])
            found = np.concatenate([found, distances.exact(block.latents[close], query)])
            nearest = distances.order(found, ids, k)
            ids, found = ids[nearest], found[nearest]
        return ids, found
