"""The search for the best-matching node of each latent, by float32 matrix products in blocks.

The node m with the smallest ‖x − m‖ for a latent x has the largest score x·m − ‖m‖²/2. With x extended by 1, and m by
−‖m‖²/2, one matrix product gives all scores of a block (`_best`). Three searches choose the blocks:

- `find_dense` looks at all nodes. Small maps are searched by it, and few latents on a map that is prepared (`Placer`).
- `find` looks at squares of the grid: neighbouring nodes are alike, so a whole square is near a latent or far from it.
- `find_near` looks only around the node that a latent had before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.products import product

if TYPE_CHECKING:
    from minisom import MiniSom

__all__ = [
    "Check",
    "Floats",
    "Nodes",
    "as_columns",
    "centred",
    "distances",
    "extend",
    "extend_nodes",
    "find",
    "find_dense",
    "find_near",
    "in_parts",
    "weights_of",
    "winners",
]

_LARGE: Final = 16  # nodes a side of the large squares that an exact search can leave out
_SMALL: Final = 4  # nodes a side of the small squares within a large one
_NEAR_TILE: Final = 16  # nodes a side of the squares whose latents `find_near` handles together
_BLOCK: Final = 65536  # latents at once in an exact search
_DENSE: Final = 1024  # nodes at once in `find_dense`; `product` is fastest with up to about a thousand columns
_SLACK: Final = 1e-3  # relative error that a bound may have through rounding: far above that of float32

Nodes = NDArray[np.int64]
Floats = NDArray[np.float32]
Check = Callable[[], None]


def _go_on() -> None:
    """The default of `check`: does nothing."""


def weights_of(som: MiniSom | NDArray[Any]) -> NDArray[Any]:
    """The weights float[rows, cols, L] of a map; an array is returned as it is. Raises ValueError for another shape."""
    weights = som if isinstance(som, np.ndarray) else som.get_weights()
    if weights.ndim != 3:
        raise ValueError(f"the weights of a map are [rows, cols, L], not {list(weights.shape)}")
    return weights


def winners(som: MiniSom | NDArray[Any], latents: NDArray[Any]) -> tuple[Nodes, NDArray[np.float64]]:
    """The best node of each latent, int64[n], and its distance, float64[n].

    som : a map, or its weights float[rows, cols, L].  latents : float[n, L].
    A node is row * cols + column. The distance is Euclidean (MiniSom's quantisation error). The search is exact except
    for rounding in float32: of two nodes that are equally near to six digits, either may be returned.
    Raises ValueError where the shapes do not fit.
    """
    weights = weights_of(som)
    if latents.ndim != 2 or latents.shape[1] != weights.shape[2]:
        raise ValueError(f"latents must be float[n, {weights.shape[2]}], not {list(latents.shape)}")
    centre, grid = centred(weights)
    flat = weights.reshape(-1, weights.shape[2])
    nodes = np.empty(len(latents), np.int64)
    errors = np.empty(len(latents))
    for start in range(0, len(latents), _BLOCK):
        part = slice(start, start + _BLOCK)
        some = latents[part].astype(np.float64)
        nodes[part] = find(extend((some - centre).astype(np.float32)), grid)
        errors[part] = distances(some, flat[nodes[part]])
    return nodes, errors


def centred(weights: NDArray[Any]) -> tuple[NDArray[np.float64], Floats]:
    """The mean of all nodes, float64[L], and the weights without it, float32[rows, cols, L]. Without the mean, float32
    keeps more digits of the distances. weights : float[rows, cols, L]."""
    centre = weights.reshape(-1, weights.shape[2]).mean(axis=0, dtype=np.float64)
    return centre, (weights - centre).astype(np.float32)


def distances(latents: NDArray[np.float64], nodes: NDArray[Any]) -> NDArray[np.float64]:
    """The Euclidean distance of each latent from its node: float64[n]. latents : float64[n, L].  nodes : float[n, L],
    the weights of the node of each latent."""
    away = latents - nodes
    found: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", away, away))
    return found


def extend(latents: Floats) -> Floats:
    """Latents float32[n, L] with a column of ones behind them: float32[n, L + 1], as the searches here take them."""
    return np.hstack([latents, np.ones((len(latents), 1), np.float32)])


def extend_nodes(grid: Floats) -> Floats:
    """Weights float32[..., L] with −‖m‖²/2 behind each node m: float32[..., L + 1]."""
    halves = -0.5 * np.einsum("...l,...l->...", grid, grid)
    return np.concatenate([grid, halves[..., None]], axis=-1)


def as_columns(nodes: Floats) -> Floats:
    """Nodes float32[..., L + 1] from `extend_nodes` as contiguous columns, float32[L + 1, k], as products take them."""
    return np.ascontiguousarray(nodes.reshape(-1, nodes.shape[-1]).T)


def in_parts(grid: Floats) -> list[Floats]:
    """All nodes of a grid as `find_dense` takes them: float32[L + 1, k] with k up to 1024, in the order of the nodes.
    grid : float32[rows, cols, L]."""
    nodes = extend_nodes(grid).reshape(-1, grid.shape[2] + 1)
    return [as_columns(nodes[start : start + _DENSE]) for start in range(0, len(nodes), _DENSE)]


def _best(latents: Floats, nodes: Floats, without: tuple[Nodes, Nodes] | None = None) -> tuple[Nodes, Floats]:
    """The column of the largest score of each latent, int64[n], and that score, float32[n].

    latents : float32[n, L + 1].  nodes : float32[L + 1, k].  without : rows and columns of scores that do not count.
    """
    scores = product(latents, nodes)
    if without is not None:
        scores[without] = -np.inf
    columns = scores.argmax(axis=1)
    return columns, scores[np.arange(len(latents)), columns]


def _by_group(keys: NDArray[np.int64], count: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(key, indices where `keys` has it) for each key from 0 to count − 1 that occurs, in ascending order."""
    order = np.argsort(keys, kind="stable")
    ends = np.cumsum(np.bincount(keys, minlength=count))
    start = 0
    for key, end in enumerate(ends.tolist()):
        if end > start:
            yield key, order[start:end]
        start = end


def find_near(latents: Floats, grid: Floats, last: Nodes, reach: int, check: Check = _go_on) -> tuple[Nodes, Floats]:
    """The best node of each latent among the nodes near its last one: at least all within `reach` rows and columns.

    latents : float32[n, L + 1] from `extend`.  grid : float32[rows, cols, L].  last : int64[n], node of each latent in
    the epoch before.  check : called for each square of nodes, and may raise. Returns the nodes int64[n] and their
    scores float32[n], x·m − ‖m‖²/2.
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
        candidates = as_columns(window)
        for start in range(0, len(places), _BLOCK):
            some = places[start : start + _BLOCK]
            best, scores[some] = _best(latents[some], candidates)
            nodes[some] = (first_row + best // wide) * cols + first_col + best % wide
    return nodes, scores


def find(latents: Floats, grid: Floats, last: Nodes | None = None, check: Check = _go_on) -> Nodes:
    """The best node of each latent among all nodes of the grid, exact except for rounding: int64[n].

    latents, grid, check : as in `find_near`.  last : int64[n], nodes to begin the search at, or None.
    Squares of 16×16 nodes, and squares of 4×4 nodes within them, are left out by the triangle inequality: a square
    holds no better node where its centre is farther away than the best node so far plus the square's own radius.
    """
    if grid.shape[0] * grid.shape[1] <= 4 * _LARGE * _LARGE:
        return find_dense(latents, in_parts(grid), check=check)
    tiles = _Tiles(grid)
    nodes = np.empty(len(latents), np.int64)
    for start in range(0, len(latents), _BLOCK):
        part = slice(start, start + _BLOCK)
        nodes[part] = tiles.find(latents[part], None if last is None else last[part], check)
    return nodes


def find_dense(
    latents: Floats, parts: Sequence[Floats], *, without: Nodes | None = None, check: Check = _go_on
) -> Nodes:
    """The best node of each latent among all nodes of a grid, without leaving any out: int64[n].

    latents, check : as in `find_near`; `check` is called for each block of latents.  parts : the nodes, from
    `in_parts`.  without : int64[n], for each latent a node that does not count, or None.
    """
    nodes = np.zeros(len(latents), np.int64)
    step = max(256, 2**20 // parts[0].shape[1])
    for start in range(0, len(latents), step):
        check()
        some = latents[start : start + step]
        scores = np.full(len(some), -np.inf, np.float32)
        first = 0
        for part in parts:
            left_out = None
            if without is not None:
                columns = without[start : start + step] - first
                (rows,) = np.nonzero((columns >= 0) & (columns < part.shape[1]))
                left_out = rows, columns[rows]
            best, found = _best(some, part, left_out)
            better = found > scores
            scores[better] = found[better]
            nodes[start : start + step][better] = best[better] + first
            first += part.shape[1]
    return nodes


class _Balls:
    """Groups of nodes, each enclosed in a ball around its mean.

    radii : float32[k].  centres : float32[L + 1, k], extended as by `extend_nodes`.
    """

    def __init__(self, groups: list[Floats]) -> None:
        means = np.stack([group.mean(axis=0) for group in groups])
        self.radii = np.array(
            [np.sqrt(((group - mean) ** 2).sum(axis=1).max()) for group, mean in zip(groups, means, strict=True)],
            dtype=np.float32,
        )
        self.centres = as_columns(extend_nodes(means))

    def away(self, latents: Floats, squares: Floats) -> Floats:
        """The distance of each latent from each centre: float32[n, k]. squares : float32[n], ‖x‖² of the latents."""
        found = product(latents, self.centres)
        found *= -2
        found += squares[:, None]
        np.sqrt(np.maximum(found, 0, out=found), out=found)
        return found


class _Tiles:
    """The grid cut into large squares of 16×16 nodes, and each large square into small squares of 4×4 nodes."""

    def __init__(self, grid: Floats) -> None:
        rows, cols, length = grid.shape
        extended = extend_nodes(grid).reshape(-1, length + 1)
        numbers = np.arange(rows * cols).reshape(rows, cols)
        self._members = [[part.ravel() for part in _squares(large, _SMALL)] for large in _squares(numbers, _LARGE)]
        self._nodes = [[as_columns(extended[part]) for part in parts] for parts in self._members]
        plain = [[extended[part, :length] for part in parts] for parts in self._members]
        self._large = _Balls([np.concatenate(parts) for parts in plain])
        self._small = [_Balls(parts) for parts in plain]
        self._large_of = np.empty(rows * cols, np.int64)
        for number, parts in enumerate(self._members):
            self._large_of[np.concatenate(parts)] = number

    def find(self, latents: Floats, last: Nodes | None, check: Check) -> Nodes:
        """The best nodes of one block of latents: int64[n]."""
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
        """Try the nodes of one large square on the latents at `places`, the small square with the nearest centre
        first."""
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
    """The best node of each latent found so far, and its distance."""

    def __init__(self, latents: Floats, squares: Floats) -> None:
        self.latents, self.squares = latents, squares
        self.nodes = np.zeros(len(latents), np.int64)
        self.distances = np.full(len(latents), np.inf, np.float32)
        self._scores = np.full(len(latents), -np.inf, np.float32)

    def look(self, nodes: Floats, members: Nodes, places: NDArray[np.int64]) -> None:
        """Try nodes on the latents at `places`, and keep those that are better. nodes : float32[L + 1, k].  members :
        int64[k], their numbers."""
        best, found = _best(self.latents[places], nodes)
        better = found > self._scores[places]
        chosen = places[better]
        self._scores[chosen] = found = found[better]
        self.nodes[chosen] = members[best[better]]
        self.distances[chosen] = np.sqrt(np.maximum(self.squares[chosen] - 2 * found, 0))


def _squares(numbers: Nodes, side: int) -> list[Nodes]:
    """A table of nodes, int64[rows, cols], cut into squares; those at the edges may be smaller."""
    rows, cols = numbers.shape
    return [numbers[r : r + side, c : c + side] for r in range(0, rows, side) for c in range(0, cols, side)]
