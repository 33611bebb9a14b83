"""Best-matching units, by blocked float32 matrix products.

For a latent x the node m of least ‖x − m‖ has the greatest x·m − ‖m‖²/2, so with x extended by 1 and m by −‖m‖²/2 one
product gives every score of a block. Blocks follow the grid: neighbouring nodes are alike, so a tile of them is near or
far as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.products import product

if TYPE_CHECKING:
    from minisom import MiniSom

__all__ = ["Check", "Floats", "Nodes", "extend", "extend_nodes", "find", "find_near", "weights_of", "winners"]

_LARGE: Final = 16  # nodes a side, of the squares that an exact search leaves out as a whole
_SMALL: Final = 4  # and of those within them
_NEAR_TILE: Final = 16
_BLOCK: Final = 65536  # latents at once in an exact search
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
    A node is row * cols + column. The distance is Euclidean, MiniSom's quantisation error. The search is exact but for
    rounding in float32: of two nodes that are equally near to six digits, either may be given.
    """
    weights = weights_of(som)
    if latents.ndim != 2 or latents.shape[1] != weights.shape[2]:
        raise ValueError(f"latents must be float[n, {weights.shape[2]}], not {list(latents.shape)}")
    flat = weights.reshape(-1, weights.shape[2])
    centre = flat.mean(axis=0, dtype=np.float64)
    grid = (weights - centre).astype(np.float32)
    nodes = np.empty(len(latents), np.int64)
    errors = np.empty(len(latents))
    step = _BLOCK
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


def extend_nodes(grid: Floats) -> Floats:
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
    extended = extend_nodes(grid)
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
        candidates = np.ascontiguousarray(window.reshape(-1, window.shape[2]).T)
        for start in range(0, len(places), _BLOCK):
            some = places[start : start + _BLOCK]
            products = product(latents[some], candidates)
            best = products.argmax(axis=1)
            scores[some] = products[np.arange(len(some)), best]
            nodes[some] = (first_row + best // wide) * cols + first_col + best % wide
    return nodes, scores


def find(latents: Floats, grid: Floats, last: Nodes | None = None, check: Check = _go_on) -> Nodes:
    """Best node of each latent among all of the grid, exact but for rounding: int64[n].

    latents, grid, last, check : as in `find_near`; `last` is where to look first.
    Squares of 16×16 nodes, and of 4×4 within them, are left out by the triangle inequality: one whose centre is farther
    than the best node so far and the square's own radius together holds nothing better.
    """
    rows, cols, length = grid.shape
    if rows * cols <= 4 * _LARGE * _LARGE:
        return _find_dense(latents, np.ascontiguousarray(extend_nodes(grid).reshape(-1, length + 1).T), check)
    tiles = _Tiles(grid)
    nodes = np.empty(len(latents), np.int64)
    for start in range(0, len(latents), _BLOCK):
        part = slice(start, start + _BLOCK)
        nodes[part] = tiles.find(latents[part], None if last is None else last[part], check)
    return nodes


def _find_dense(latents: Floats, candidates: Floats, check: Check) -> Nodes:
    nodes = np.empty(len(latents), np.int64)
    step = max(256, 2**20 // candidates.shape[1])
    for start in range(0, len(latents), step):
        check()
        nodes[start : start + step] = product(latents[start : start + step], candidates).argmax(axis=1)
    return nodes


class _Balls:
    """Groups of nodes, each in the ball about its mean. centres : float32[L + 1, k], extended as `extend_nodes`
    does."""

    def __init__(self, groups: list[Floats]) -> None:
        means = np.stack([group.mean(axis=0) for group in groups])
        self.radii = np.array(
            [np.sqrt(((group - mean) ** 2).sum(axis=1).max()) for group, mean in zip(groups, means, strict=True)],
            dtype=np.float32,
        )
        self.centres = np.ascontiguousarray(np.hstack([means, -0.5 * np.einsum("ij,ij->i", means, means)[:, None]]).T)

    def away(self, latents: Floats, squares: Floats) -> Floats:
        """Distance of each latent from each centre: float32[n, k]."""
        found = product(latents, self.centres)
        found *= -2
        found += squares[:, None]
        np.sqrt(np.maximum(found, 0, out=found), out=found)
        return found


class _Tiles:
    """The grid cut into squares of 16×16 nodes, and each of those into squares of 4×4."""

    def __init__(self, grid: Floats) -> None:
        rows, cols, length = grid.shape
        extended = extend_nodes(grid).reshape(-1, length + 1)
        numbers = np.arange(rows * cols).reshape(rows, cols)
        self._members = [[part.ravel() for part in _squares(large, _SMALL)] for large in _squares(numbers, _LARGE)]
        self._nodes = [[np.ascontiguousarray(extended[part].T) for part in parts] for parts in self._members]
        plain = [[extended[part, :length] for part in parts] for parts in self._members]
        self._large = _Balls([np.concatenate(parts) for parts in plain])
        self._small = [_Balls(parts) for parts in plain]
        self._large_of = np.empty(rows * cols, np.int64)
        for number, parts in enumerate(self._members):
            self._large_of[np.concatenate(parts)] = number

    def find(self, latents: Floats, last: Nodes | None, check: Check) -> Nodes:
        """Best nodes of one block."""
        plain = latents[:, :-1]
        squares = np.einsum("ij,ij->i", plain, plain)
        slack = np.float32(_SLACK * np.sqrt(squares.max(initial=0)))
        away = self._large.away(latents, squares)
        state = _Best(latents, squares)
        first = away.argmin(axis=1) if last is None else self._large_of[last]
        for number, places in _by_group(first, len(self._members)):
            check()
            self._within(number, places, state, slack)
        away -= self._large.radii + slack
        away[np.arange(len(latents)), first] = np.inf
        for number in range(len(self._members)):
            check()
            (places,) = np.nonzero(away[:, number] < state.distances)
            if len(places):
                self._within(number, places, state, slack)
        return state.nodes

    def _within(self, number: int, places: NDArray[np.int64], state: _Best, slack: np.float32) -> None:
        """Look at the nodes of one large square, the small square of the nearest centre first."""
        small = self._small[number]
        away = small.away(state.latents[places], state.squares[places])
        nearest = away.argmin(axis=1)
        away -= small.radii + slack
        for part, where in _by_group(nearest, len(small.radii)):
            state.look(self._nodes[number][part], self._members[number][part], places[where])
        away[np.arange(len(places)), nearest] = np.inf
        still = (away < state.distances[places, None]).T
        for part in np.nonzero(still.any(axis=1))[0].tolist():
            state.look(self._nodes[number][part], self._members[number][part], places[still[part]])


class _Best:
    """The best node of each latent so far, and its distance."""

    def __init__(self, latents: Floats, squares: Floats) -> None:
        self.latents, self.squares = latents, squares
        self.nodes = np.zeros(len(latents), np.int64)
        self.distances = np.full(len(latents), np.inf, np.float32)
        self._scores = np.full(len(latents), -np.inf, np.float32)

    def look(self, nodes: Floats, members: Nodes, places: NDArray[np.int64]) -> None:
        """Try some nodes on the latents at `places`."""
        products = product(self.latents[places], nodes)
        best = products.argmax(axis=1)
        found = products[np.arange(len(places)), best]
        better = found > self._scores[places]
        chosen = places[better]
        self._scores[chosen] = found = found[better]
        self.nodes[chosen] = members[best[better]]
        self.distances[chosen] = np.sqrt(np.maximum(self.squares[chosen] - 2 * found, 0))


def _squares(numbers: Nodes, side: int) -> list[Nodes]:
    """A table of nodes cut into squares, the last ones smaller."""
    rows, cols = numbers.shape
    return [numbers[r : r + side, c : c + side] for r in range(0, rows, side) for c in range(0, cols, side)]
