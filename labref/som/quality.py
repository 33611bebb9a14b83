"""How good a map is, and how far it moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.search import weights_of, winners

if TYPE_CHECKING:
    from minisom import MiniSom

__all__ = ["moved", "quality", "trustworthiness"]

SAMPLE: Final = 2000
NEIGHBOURS: Final = 8
"""As many as a technologist sees references."""


def quality(
    som: MiniSom | NDArray[Any], latents: NDArray[Any], *, sample: int = SAMPLE, seed: int = 0
) -> dict[str, float]:
    """Measure a map on `sample` of latents float[n, L] (all, where there are no more), chosen by `seed`.

    `qe` : mean distance to the best node (MiniSom's quantization_error, units of the latents).
    `te` : share of latents whose two best nodes do not touch, not even by a corner (MiniSom's topographic_error).
    `trustworthiness`, `continuity` : Venna and Kaski 2001, of the 8 nearest: 1 where neighbours on the map are
    neighbours in the latent space, and the other way round.
    `cells` : how many it was measured on. Raises ValueError without latents.
    """
    if not len(latents):
        raise ValueError("a map's quality is measured on at least one latent")
    weights = weights_of(som)
    chosen = np.random.default_rng(seed).permutation(len(latents))[:sample] if len(latents) > sample else slice(None)
    data = np.asarray(latents, dtype=np.float64)[chosen]
    nodes, errors = winners(weights, data)
    second = _second(weights, data, nodes)
    cols = weights.shape[1]
    apart = np.maximum(abs(nodes // cols - second // cols), abs(nodes % cols - second % cols))
    places = np.stack([nodes // cols, nodes % cols], axis=1).astype(np.float64)
    near, far = _ranks(data), _ranks(places)
    return {
        "cells": float(len(data)),
        "qe": float(errors.mean()),
        "te": float((apart > 1).mean()),
        "trustworthiness": trustworthiness(near, far),
        "continuity": trustworthiness(far, near),
    }


def moved(before: MiniSom | NDArray[Any], after: MiniSom | NDArray[Any], latents: NDArray[Any]) -> NDArray[np.float64]:
    """How far each latent float[n, L] moved from one map to another of the same size: nodes, Euclidean, float64[n]."""
    old, new = weights_of(before), weights_of(after)
    if old.shape != new.shape:
        raise ValueError(f"maps of different sizes cannot be compared: {list(old.shape)} and {list(new.shape)}")
    cols = old.shape[1]
    (a, _), (b, _) = winners(old, latents), winners(new, latents)
    distances: NDArray[np.float64] = np.hypot(a // cols - b // cols, a % cols - b % cols)
    return distances


def _second(weights: NDArray[Any], data: NDArray[np.float64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The best node but for `nodes`: int64[n]."""
    flat = weights.reshape(-1, weights.shape[2])
    if len(flat) == 1:
        return nodes
    centre = flat.mean(axis=0, dtype=np.float64)
    moved_nodes = (flat - centre).astype(np.float32)
    halves = 0.5 * np.einsum("ij,ij->i", moved_nodes, moved_nodes)
    found = np.empty(len(data), np.int64)
    step = max(16, 2**23 // len(flat))
    for start in range(0, len(data), step):
        part = slice(start, start + step)
        scores = (data[part] - centre).astype(np.float32) @ moved_nodes.T - halves
        scores[np.arange(len(scores)), nodes[part]] = -np.inf
        found[part] = scores.argmax(axis=1)
    return found


def _ranks(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64[n, n]: 1 for the point nearest to the row's, 2 for the next …, 0 for itself; equally near ones in the order
    given, which the sample makes one of chance."""
    squares = np.einsum("ij,ij->i", points, points)
    away = squares[:, None] - 2 * points @ points.T + squares
    np.fill_diagonal(away, -np.inf)
    order = np.argsort(away, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(points))[None, :], axis=1)
    return ranks


def trustworthiness(near: NDArray[np.int64], far: NDArray[np.int64], k: int = NEIGHBOURS) -> float:
    """Venna and Kaski 2001, eq. 1: how little the k nearest by ranks `far` int64[n, n] are beyond the k nearest by
    `near`."""
    count = len(near)
    k = min(k, (count - 1) // 2)
    if k < 1:
        return 1.0
    intruders = (far <= k) & (far > 0) & (near > k)
    penalty = float((near[intruders] - k).sum())
    return 1.0 - 2.0 * penalty / (count * k * (2 * count - 3 * k - 1))
