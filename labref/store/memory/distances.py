"""The one way a distance is computed and neighbours are put in order, whoever found the candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST_VALUE", "exact", "order"]

LARGEST_VALUE = 1e15
"""No latent is larger than this; squares and sums of them stay far from the end of float32."""


def exact(latents: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean squared error of each of latents float32[n, L] to query float32[L], in float64, as float64[n].

    A row's distance depends on that row and the query alone, never on the rows beside it: summing along the
    contiguous axis adds in the same order for one row as for a million.
    """
    difference = latents.astype(np.float64, order="C")
    difference -= query
    np.square(difference, out=difference)
    found: NDArray[np.float64] = difference.sum(axis=1) / latents.shape[1]
    return found


def order(distances: NDArray[np.float64], ids: NDArray[np.uint64], k: int) -> NDArray[np.intp]:
    """Positions of the k smallest distances float64[n], nearest first, equal ones by cell id uint64[n]."""
    return np.lexsort((ids, distances))[:k]
