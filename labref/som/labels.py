"""What the map says about labels: the classes about a node, and how surprising a cell's label is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.products import gaussian

__all__ = ["Neighbourhood", "neighbourhood", "suspicion"]

RADIUS: Final = 2.0
"""σ of the Gaussian, in nodes, by which the cells about a cell count."""
_DOUBT: Final = 0.5  # weight of the lab's overall share of each class, so that a lone neighbour does not settle it


@dataclass(frozen=True)
class Neighbourhood:
    """The classes about each of n labelled cells, itself left out.

    labels : the c names.  shares : float64[n, c], adding up to 1 a row.  majority : int64[n], the place in `labels` of
    the greatest.
    weight : float64[n], how many neighbours that is, each counted by its nearness; 0 where a cell has none.
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
    """Classes about cells on a map, by the labelled cells around, weighted by exp(−d²/2·radius²) of the distance on the
    grid.

    nodes : int[n] of labelled cells, row * cols + col.  labels : str[n].
    at : int[m], nodes to tell about instead (cells that are not among the labelled); by default each labelled cell,
    itself left out. A little weight goes to each class' share in the whole, so an empty neighbourhood gives just that.
    """
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    counts = np.zeros((rows * cols, len(names)))
    np.add.at(counts, (nodes, codes), 1.0)
    spread = gaussian(rows, radius) @ counts.reshape(rows, -1)
    spread = np.matmul(gaussian(cols, radius), spread.reshape(rows, cols, len(names)))
    about = spread.reshape(rows * cols, len(names))[nodes if at is None else at]
    if at is None:
        about[np.arange(len(codes)), codes] -= 1.0  # exp(0): itself
        about = np.maximum(about, 0)
    weight = about.sum(axis=1)
    overall = counts.sum(axis=0) / max(len(codes), 1)
    shares = (about + _DOUBT * overall) / (weight + _DOUBT)[:, None]
    return Neighbourhood(tuple(names.tolist()), shares, shares.argmax(axis=1), weight)


def suspicion(about: Neighbourhood, labels: NDArray[Any]) -> NDArray[np.float64]:
    """How surprising each cell's label str[n] is where it lies: log(share of the majority / share of its label), 0
    where its label is the majority; the greater, the more likely it is wrong. float64[n]."""
    places = {name: place for place, name in enumerate(about.labels)}
    codes = np.array([places[name] for name in np.asarray(labels, dtype=str).tolist()], dtype=np.int64)
    rows = np.arange(len(codes))
    own, greatest = about.shares[rows, codes], about.shares[rows, about.majority]
    return np.log(greatest / np.maximum(own, 1e-9))
