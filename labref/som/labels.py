"""What the map says about labels: the classes around a node, and how surprising a cell's label is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.products import gaussian

__all__ = ["Doubts", "Neighbourhood", "doubts", "neighbourhood", "shares_about", "suspicion"]

RADIUS: Final = 2.0
"""σ, in nodes, of the Gaussian that weighs the cells around a cell."""
_DOUBT: Final = 0.5  # weight of a class's share in the whole lab, so that a single neighbour does not decide alone


@dataclass(frozen=True)
class Neighbourhood:
    """The classes around each of n cells; the cell itself does not count.

    labels : names of the c classes.  shares : float64[n, c]; each row sums to 1.  majority : int64[n], index in
    `labels` of the class with the largest share.  weight : float64[n], sum of the Gaussian weights of the neighbours;
    0 where a cell has no neighbour.
    """

    labels: tuple[str, ...]
    shares: NDArray[np.float64]
    majority: NDArray[np.int64]
    weight: NDArray[np.float64]


def neighbourhood(
    nodes: NDArray[Any],
    labels: NDArray[Any],
    *,
    rows: int,
    cols: int,
    radius: float = RADIUS,
    at: NDArray[Any] | None = None,
) -> Neighbourhood:
    """The classes around cells on a map, from the labelled cells nearby. A labelled cell at the distance d on the grid
    weighs exp(−d²/(2·radius²)).

    nodes : int[n], of the labelled cells, row * cols + column.  labels : str[n].  radius : in nodes.
    at : int[m], the nodes to describe, of cells that are not among the labelled ones; by default each labelled cell is
    described, and does not count itself. Each class's share among all labelled cells also gets a small weight; a cell
    without neighbours gets exactly these shares.
    """
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    counts = np.zeros((rows * cols, len(names)))
    np.add.at(counts, (nodes, codes), 1.0)
    spread = gaussian(rows, radius) @ counts.reshape(rows, -1)
    spread = np.matmul(gaussian(cols, radius), spread.reshape(rows, cols, len(names)))
    sums = spread.reshape(rows * cols, len(names))[nodes if at is None else at]
    if at is None:
        sums[np.arange(len(codes)), codes] -= 1.0  # the cell's own weight, exp(0)
        sums = np.maximum(sums, 0)
    weight = sums.sum(axis=1)
    overall = counts.sum(axis=0) / max(len(codes), 1)
    shares = (sums + _DOUBT * overall) / (weight + _DOUBT)[:, None]
    return Neighbourhood(tuple(names.tolist()), shares, shares.argmax(axis=1), weight)


def suspicion(about: Neighbourhood, labels: NDArray[Any]) -> NDArray[np.float64]:
    """How surprising each cell's label is at its place on the map: float64[n].

    about : the neighbourhood of the cells.  labels : str[n], of the same cells. The value is log(share of the majority
    / share of the cell's label): 0 where the label is the majority's. The larger it is, the more likely the label is
    wrong.
    """
    places = {name: place for place, name in enumerate(about.labels)}
    codes = np.array([places[name] for name in np.asarray(labels, dtype=str).tolist()], dtype=np.int64)
    rows = np.arange(len(codes))
    own, greatest = about.shares[rows, codes], about.shares[rows, about.majority]
    return np.log(greatest / np.maximum(own, 1e-9))


@dataclass(frozen=True)
class Doubts:
    """What the labels about each of n labelled cells say of its own; the cell itself does not count.

    surprise : float64[n], as of `suspicion`.  majority : int64[n], index of the class that most about it have.
    share : float64[n], of that class.  share_of_label : float64[n], of the cell's own.
    """

    surprise: NDArray[np.float64]
    majority: NDArray[np.int64]
    share: NDArray[np.float64]
    share_of_label: NDArray[np.float64]

    def of(self, chosen: NDArray[Any]) -> Doubts:
        """Of the chosen cells."""
        return Doubts(self.surprise[chosen], self.majority[chosen], self.share[chosen], self.share_of_label[chosen])

    @staticmethod
    def joined(parts: Sequence[Doubts]) -> Doubts:
        """All parts as one; there is at least one."""
        return Doubts(
            np.concatenate([part.surprise for part in parts]),
            np.concatenate([part.majority for part in parts]),
            np.concatenate([part.share for part in parts]),
            np.concatenate([part.share_of_label for part in parts]),
        )


def doubts(nodes: NDArray[Any], codes: NDArray[Any], *, rows: int, cols: int, classes: int) -> Doubts:
    """The same as `suspicion` of `neighbourhood`, for a million cells in a second: cells of one class on one node are
    looked at once.

    nodes : int[n], row * cols + column.  codes : int[n], the class of each cell, from 0 to `classes` - 1.
    """
    nodes, classes = np.asarray(nodes, np.int64), max(classes, 1)
    key = nodes * classes + codes
    (pairs,) = np.nonzero(np.bincount(key, minlength=rows * cols * classes))
    at, own = np.divmod(pairs, classes)
    shares = shares_about(nodes, codes, at, rows=rows, cols=cols, classes=classes, own=own)
    every = np.arange(len(pairs))
    majority = shares.argmax(axis=1)
    share, share_of_label = shares[every, majority], shares[every, own]
    surprise = np.log(share / np.maximum(share_of_label, 1e-9))
    place = np.empty(rows * cols * classes, np.int64)
    place[pairs] = every
    of_cell = place[key]
    return Doubts(surprise[of_cell], majority[of_cell], share[of_cell], share_of_label[of_cell])


def shares_about(
    nodes: NDArray[Any],
    codes: NDArray[Any],
    at: NDArray[Any],
    *,
    rows: int,
    cols: int,
    classes: int,
    own: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    """The shares of the classes around some nodes, as of `neighbourhood`: float64[m, classes].

    nodes, codes : int[n], of the labelled cells.  at : int[m], the nodes to describe.  own : int[m], the class of a
    labelled cell on each of these nodes that does not count; None where none is left out.
    """
    classes = max(classes, 1)
    counts = np.bincount(np.asarray(nodes, np.int64) * classes + codes, minlength=rows * cols * classes).astype(float)
    spread = (gaussian(rows, RADIUS) @ counts.reshape(rows, -1)).reshape(rows, cols, classes)
    sums = np.einsum("ab,cbl->cal", gaussian(cols, RADIUS), spread, optimize=True).reshape(-1, classes)[at]
    if own is not None:
        sums[np.arange(len(sums)), own] -= 1.0
    sums = np.maximum(sums, 0)
    overall = counts.reshape(-1, classes).sum(axis=0) / max(len(nodes), 1)
    shares: NDArray[np.float64] = (sums + _DOUBT * overall) / (sums.sum(axis=1) + _DOUBT)[:, None]
    return shares
