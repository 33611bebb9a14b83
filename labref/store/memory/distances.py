"""How distances are computed and neighbours are ordered: the same way for all searches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST_VALUE", "exact", "order"]

LARGEST_VALUE = 1e15
"""The largest absolute value in a latent: its square, and sums of such squares, stay far from the limit of float32."""


def exact(latents: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mean squared error between each latent and the query, computed in float64: float64[n].

    latents : float32[n, L].  query : float32[L]. The distance of a row depends on this row and the query alone: the sum
    along the contiguous axis adds in the same order for one row as for a million.
    """
    difference = latents.astype(np.float64, order="C")
    difference -= query
    np.square(difference, out=difference)
    found: NDArray[np.float64] = difference.sum(axis=1) / latents.shape[1]
    return found


def order(distances: NDArray[np.float64], ids: NDArray[np.uint64], k: int) -> NDArray[np.intp]:
    """The indices of the k smallest distances, nearest first, equal distances by cell id.

    distances : float64[n].  ids : uint64[n].
    """
    return np.lexsort((ids, distances))[:k]
