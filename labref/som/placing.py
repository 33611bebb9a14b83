"""The nodes of latents on one map: `find_dense`, prepared once and then used for each query or batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.files import load
from labref.som.search import centred, distances, extend, find_dense, in_parts, winners

__all__ = ["Placer", "open_placer"]

_MANY: Final = 8192  # latents at once, for which `winners` is worth its preparation


def open_placer(path: Path) -> Placer:
    """A placer for the map that `save` wrote. Raises `LabrefError` where the file is missing, damaged, or of a newer
    labref."""
    return Placer(load(path).get_weights())


class Placer:
    """Finds the nodes of latents on one map. It never changes, so several threads may use it at once."""

    def __init__(self, weights: NDArray[Any]) -> None:
        """weights : float[rows, cols, L], of the map."""
        self.rows, self.cols, self.length = weights.shape
        self._weights = np.ascontiguousarray(weights, np.float32)
        self._flat = self._weights.reshape(-1, self.length)
        self._centre, grid = centred(self._weights)
        self._parts = in_parts(grid)

    @property
    def weights(self) -> NDArray[np.float32]:
        """The weights float32[rows, cols, L]; the caller must not change them."""
        return self._weights

    @property
    def nbytes(self) -> int:
        """Memory in use, bytes."""
        return self._weights.nbytes + sum(part.nbytes for part in self._parts)

    def place(self, latents: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The node of each latent, int64[n] (row * cols + column), and its quantisation error, float32[n] (Euclidean).

        latents : float[n, L]. The result equals that of `winners`. It does not depend on the other latents of the
        call, except where two nodes are equally near to six digits: either may then be returned.
        """
        if len(latents) >= _MANY:
            nodes, errors = winners(self.weights, latents)
            return nodes, errors.astype(np.float32)
        data = latents.astype(np.float64)
        nodes = find_dense(extend((data - self._centre).astype(np.float32)), self._parts)
        return nodes, distances(data, self._flat[nodes]).astype(np.float32)
