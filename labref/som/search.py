"""Best-matching units, by blocked float32 matrix products.

For a latent x the node m of least ‖x − m‖ has the greatest x·m − ‖m‖²/2, so with x extended by 1 and m by −‖m‖²/2 one product gives
every score of a block. Blocks follow the grid: neighbouring nodes are alike, so a tile of them is near or far as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from minisom import MiniSom

__all__ = ["extend", "find", "find_near", "weights_of", "winners"]

_TILE: Final = 8  # nodes a side, of the tiles that an exact search leaves out as a whole
_NEAR_TILE: Final = 16
_BLOCK: Final = 8192  # latents at once in an exact search
_SLACK: Final = 1e-3  # share by which a bound may be wrong through rounding: far more than float32 loses

Nodes = NDArray[np.int64]
Floats = NDArray[np.float32]
Check = Callable[[], None]


def _go_on() -> None:
    """Nothing to check."""


def weights_of(som: MiniSom | NDArray[Any]) -> NDArray[Any]:
    """Weights float[rows, cols, L] of a map, or the array itself. Raises ValueError for another shape."""
    weights = som if isinstance(som, np.ndarray) else som.get_weights()
    if weights.ndim != 3:
        raise ValueError(f"the weights of a map are [rows, cols, L], not {list(weights.shape)}")
    return weights


def winners(som: MiniSom | NDArray[Any], latents: NDArray[Any]) -> tuple[Nodes, NDArray[np.float64]]:
    """The node of each latent, and how far it is: int64[n] and float64[n].

    som : a map, or its weights float[rows, cols, L].  latents : float[n, L].
    A node is row * cols + column. The distance is Euclidean, MiniSom's quantisation error. The search is exact but for rounding in
    float32: of two nodes that are equally near to six digits, either may be given.
    """
    weights = weights_of(som)
    if latents.ndim != 2 or latents.shape[1] != weights.shape[2]:
        raise ValueError(f"latents must be float[n, {weights.shape[2]}], not {list(latents.shape)}")
    flat = weights.reshape(-1, weights.shape[2])
    centre = flat.mean(axis=0, dtype=np.float64)
    grid = (weights - centre).astype(np.float32)
    nodes = np.empty(len(latents), np.int64)
    errors = np.empty(len(latents))
    step = 8 * _BLOCK
    for start in range(0, len(latents), step):
        part = latents[start : start + step].astype(np.float64)
        found = find(extend((part - centre).astype(np.float32)), grid)
        nodes[start : start + step] = found
        for at in range(0, len(part), _BLOCK):
            away = part[at : at + _BLOCK] - flat[found[at : at + _BLOCK]]
            errors[start + at : start + at + len(away)] = np.sqrt(np.einsum("ij,ij->i", away, away))
    return nodes, errors


def extend(latents: Floats) -> Floats:
    """Latents float32[n, L] with a column of ones: float32[n, L + 1], what every search here takes."""
    return np.hstack([latents, np.ones((len(latents), 1), np.float32)])


def _nodes(grid: Floats) -> Floats:
    """Weights float32[rows, cols, L] with −‖m‖²/2 behind them: float32[rows, cols, L + 1]."""
    halves = -0.5 * np.einsum("rcl,rcl->rc", grid, grid)
    return np.concatenate([grid, halves[:, :, None]], axis=2)


def _by_group(keys: NDArray[np.int64], count: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(key, places where it stands) for each key of 0 … count − 1 that occurs, in order."""
    order = np.argsort(keys, kind="stable")
    ends = np.cumsum(np.bincount(keys, minlength=count))
    start = 0
    for key, end in enumerate(ends.tolist()):
        if end > start:
            yield key, order[start:end]
        start = end


def find_near(latents: Floats, grid: Floats, last: Nodes, reach: int, check: Check = _go_on) -> tuple[Nodes, Floats]:
    """Best node of each latent among those within `reach` rows and columns of its last one (a few more are looked at).

    latents : float32[n, L + 1] from `extend`.  grid : float32[rows, cols, L].  last : int64[n].
    Returns nodes int64[n] and scores float32[n], x·m − ‖m‖²/2. check() is called now and then, and may raise.
    """
    rows, cols, _ = grid.shape
    extended = _nodes(grid)
    nodes = np.empty(len(latents), np.int64)
    scores = np.empty(len(latents), np.float32)
    across = -(-cols // _NEAR_TILE)
    tiles = (last // cols // _NEAR_TILE) * across + last % cols // _NEAR_TILE
    for tile, places in _by_group(tiles, across * -(-rows // _NEAR_TILE)):
        check()
        top, left = tile // across * _NEAR_TILE, tile % across * _NEAR_TILE
        first_row, first_col = max(top - reach, 0), max(left - reach, 0)
        window = extended[first_row : top + _NEAR_TILE + reach, first_col : left + _NEAR_TILE + reach]
        wide = window.shape[1]
        candidates = window.reshape(-1, window.shape[2])
        for start in range(0, len(places), _BLOCK):
            some = places[start : start + _BLOCK]
            products = latents[some] @ candidates.T
            best = products.argmax(axis=1)
            scores[some] = products[np.arange(len(some)), best]
            nodes[some] = (first_row + best // wide) * cols + first_col + best % wide
    return nodes, scores


def find(latents: Floats, grid: Floats, last: Nodes | None = None, check: Check = _go_on) -> Nodes:
    """Best node of each latent among all of the grid, exact but for rounding: int64[n].

    latents, grid, last, check : as in `find_near`; `last` is where to look first.
    Tiles of 8×8 nodes are left out by the triangle inequality: a tile whose centre is farther than the best node so far plus the
    tile's radius holds nothing better.
    """
    rows, cols, length = grid.shape
    if rows * cols <= 16 * _TILE * _TILE:
        return _find_dense(latents, _nodes(grid).reshape(-1, length + 1), check)
    tiles = _Tiles(grid)
    nodes = np.empty(len(latents), np.int64)
    for start in range(0, len(latents), _BLOCK):
        part = slice(start, start + _BLOCK)
        nodes[part] = tiles.find(latents[part], None if last is None else last[part], check)
    return nodes


def _find_dense(latents: Floats, candidates: Floats, check: Check) -> Nodes:
    nodes = np.empty(len(latents), np.int64)
    step = max(256, 2**22 // len(candidates))
    for start in range(0, len(latents), step):
        check()
        nodes[start : start + step] = (latents[start : start + step] @ candidates.T).argmax(axis=1)
    return nodes


class _Tiles:
    """The grid cut into tiles: the nodes of each, its centre, and the radius of the ball that holds it."""

    def __init__(self, grid: Floats) -> None:
        rows, cols, length = grid.shape
        self._grid = grid
        extended = _nodes(grid).reshape(-1, length + 1)
        numbers = np.arange(rows * cols).reshape(rows, cols)
        self.members = [
            numbers[r : r + _TILE, c : c + _TILE].ravel() for r in range(0, rows, _TILE) for c in range(0, cols, _TILE)
        ]
        self.nodes = [extended[members] for members in self.members]
        self.centres = np.stack([part[:, :length].mean(axis=0) for part in self.nodes])
        self.radii = np.array(
            [
                np.sqrt(((part[:, :length] - centre) ** 2).sum(axis=1).max())
                for part, centre in zip(self.nodes, self.centres, strict=True)
            ],
            dtype=np.float32,
        )
        self.tile_of = np.empty(rows * cols, np.int64)
        for number, members in enumerate(self.members):
            self.tile_of[members] = number

    def find(self, latents: Floats, last: Nodes | None, check: Check) -> Nodes:
        """Best nodes of one block."""
        plain = latents[:, :-1]
        squares = np.einsum("ij,ij->i", plain, plain)
        away = plain @ self.centres.T
        away *= -2
        away += squares[:, None]
        away += np.einsum("ij,ij->i", self.centres, self.centres)
        np.sqrt(np.maximum(away, 0, out=away), out=away)
        nodes = np.zeros(len(latents), np.int64)
        scores = np.full(len(latents), -np.inf, np.float32)
        first = away.argmin(axis=1) if last is None else self.tile_of[last]
        for tile, places in _by_group(first, len(self.members)):
            self._look(tile, places, latents, nodes, scores)
        check()
        # what could still be nearer than the best so far
        best = np.sqrt(np.maximum(squares - 2 * scores, 0))
        slack = _SLACK * np.sqrt(squares.max(initial=0))
        away -= self.radii + np.float32(slack)
        away[np.arange(len(latents)), first] = np.inf
        open_tiles, open_places = np.nonzero((away < best[:, None]).T)
        ends = np.searchsorted(open_tiles, np.arange(len(self.members) + 1))
        for tile in range(len(self.members)):
            if ends[tile + 1] > ends[tile]:
                self._look(tile, open_places[ends[tile] : ends[tile + 1]], latents, nodes, scores)
            if tile % 64 == 0:
                check()
        return nodes

    def _look(self, tile: int, places: NDArray[np.int64], latents: Floats, nodes: Nodes, scores: Floats) -> None:
        products = latents[places] @ self.nodes[tile].T
        best = products.argmax(axis=1)
        found = products[np.arange(len(places)), best]
        better = found > scores[places]
        chosen = places[better]
        scores[chosen] = found[better]
        nodes[chosen] = self.members[tile][best[better]]
