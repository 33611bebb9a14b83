"""Measures of a map's quality, and of how far cells moved from one map to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.search import centred, extend, find_dense, in_parts, weights_of, winners

if TYPE_CHECKING:
    from minisom import MiniSom

__all__ = ["moved", "quality", "trustworthiness", "u_matrix"]

SAMPLE: Final = 2000
NEIGHBOURS: Final = 8
"""Neighbours that trustworthiness and continuity look at: as many as the references that a technologist sees."""


def quality(
    som: MiniSom | NDArray[Any], latents: NDArray[Any], *, sample: int = SAMPLE, seed: int = 0
) -> dict[str, float]:
    """Measure a map on a random sample of latents.

    latents : float[n, L].  sample : size of the sample; all latents where n is not larger.  seed : of the choice.
    Returns a dictionary:
    `qe` : mean distance to the best node (MiniSom's quantization_error, in units of the latents).
    `te` : share of the latents whose two best nodes do not touch, not even at a corner (MiniSom's topographic_error).
    `trustworthiness` : 1 where the 8 nearest on the map are also neighbours in the latent space, `continuity` : the
    reverse (Venna and Kaski 2001).
    `cells` : number of latents measured.

    Raises ValueError without latents.
    """
    if not len(latents):
        raise ValueError("a map's quality is measured on at least one latent")
    weights = weights_of(som)
    chosen = np.random.default_rng(seed).permutation(len(latents))[:sample] if len(latents) > sample else slice(None)
    data = np.asarray(latents, dtype=np.float64)[chosen]
    nodes, errors = winners(weights, data)
    second = _second(weights, data, nodes)
    cols = weights.shape[1]
    grid_steps = np.maximum(abs(nodes // cols - second // cols), abs(nodes % cols - second % cols))
    places = np.stack([nodes // cols, nodes % cols], axis=1).astype(np.float64)
    latent_ranks, map_ranks = _ranks(data), _ranks(places)
    return {
        "cells": float(len(data)),
        "qe": float(errors.mean()),
        "te": float((grid_steps > 1).mean()),
        "trustworthiness": trustworthiness(latent_ranks, map_ranks),
        "continuity": trustworthiness(map_ranks, latent_ranks),
    }


def moved(before: MiniSom | NDArray[Any], after: MiniSom | NDArray[Any], latents: NDArray[Any]) -> NDArray[np.float64]:
    """How far each latent's node moved from one map to another of the same size: float64[n], Euclidean, in nodes.

    latents : float[n, L]. Raises ValueError for maps of different sizes.
    """
    old, new = weights_of(before), weights_of(after)
    if old.shape != new.shape:
        raise ValueError(f"maps of different sizes cannot be compared: {list(old.shape)} and {list(new.shape)}")
    cols = old.shape[1]
    (a, _), (b, _) = winners(old, latents), winners(new, latents)
    distances: NDArray[np.float64] = np.hypot(a // cols - b // cols, a % cols - b % cols)
    return distances


def _second(weights: NDArray[Any], data: NDArray[np.float64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The second-best node of each latent: int64[n]. nodes : int64[n], the best nodes."""
    if weights.shape[0] * weights.shape[1] == 1:
        return nodes
    centre, grid = centred(weights)
    return find_dense(extend((data - centre).astype(np.float32)), in_parts(grid), without=nodes)


def _ranks(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """The ranks of all points by their distance from each point: int64[n, n].

    In the row of a point, the point itself has 0, the nearest other point 1, the next 2 and so on. Equally near points
    are ranked in the order given; the sample's order is random.
    """
    squares = np.einsum("ij,ij->i", points, points)
    away = squares[:, None] - 2 * points @ points.T + squares
    np.fill_diagonal(away, -np.inf)
    order = np.argsort(away, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(points))[None, :], axis=1)
    return ranks


def trustworthiness(near: NDArray[np.int64], far: NDArray[np.int64], k: int = NEIGHBOURS) -> float:
    """Trustworthiness (Venna and Kaski 2001, eq. 1): 1 where the k nearest points by the ranks `far` are also the k
    nearest by the ranks `near`; the less, the farther they are by `near`.

    near, far : int64[n, n], ranks as in `_ranks`.  k : neighbours looked at; fewer where there are few points.
    """
    count = len(near)
    k = min(k, (count - 1) // 2)
    if k < 1:
        return 1.0
    intruders = (far <= k) & (far > 0) & (near > k)
    penalty = float((near[intruders] - k).sum())
    return 1.0 - 2.0 * penalty / (count * k * (2 * count - 3 * k - 1))


def u_matrix(weights: NDArray[Any]) -> NDArray[np.float64]:
    """The U-matrix: the mean distance of each node to its up to eight neighbours, divided by the largest such mean:
    float64[rows, cols].

    weights : float[rows, cols, L]. The result equals that of `MiniSom.distance_map("mean")`, and takes much less time.
    A map of one node has the value 0.
    """
    grid = np.asarray(weights, np.float64)
    rows, cols = grid.shape[:2]
    total, count = np.zeros((rows, cols)), np.zeros((rows, cols))
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        ours = (slice(0, rows - down), slice(max(0, -right), cols - max(0, right)))
        theirs = (slice(down, rows), slice(max(0, right), cols - max(0, -right)))
        distances = np.sqrt(np.square(grid[ours] - grid[theirs]).sum(axis=2))
        for part in (ours, theirs):
            total[part] += distances
            count[part] += 1
    mean = total / np.maximum(count, 1)
    largest = float(mean.max())
    return mean / largest if largest > 0 else mean
