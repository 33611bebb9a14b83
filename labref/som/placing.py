"""Where latents lie on one map, many times over: the search of `winners` prepared once, for a query or a batch at a time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.search import extend

__all__ = ["Placer"]

# OpenBLAS splits larger products over threads, and then waits for a core that the ingest is using (see store.index)
_TILE_ELEMENTS: Final = 400_000


class Placer:
    """Finds nodes. Nothing in it changes, so any number of threads may ask."""

    def __init__(self, weights: NDArray[Any]) -> None:
        """weights : float[rows, cols, L] of the map."""
        self.rows, self.cols, self.length = weights.shape
        flat = np.ascontiguousarray(weights, np.float32).reshape(-1, self.length)
        self._centre = flat.mean(axis=0, dtype=np.float64)
        self._flat = flat
        moved = (flat - self._centre).astype(np.float32)
        self._nodes = np.hstack([moved, -0.5 * np.einsum("ij,ij->i", moved, moved)[:, None]])

    @property
    def weights(self) -> NDArray[np.float32]:
        """Weights float32[rows, cols, L]; not to be changed."""
        return self._flat.reshape(self.rows, self.cols, self.length)

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        return self._flat.nbytes + self._nodes.nbytes

    def place(self, latents: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The node of each latent float[n, L], row * cols + column, and its distance, the quantisation error: int64[n], float32[n].

        As `winners`; a latent's place does not depend on those beside it but for nodes that are equally near to six digits.
        """
        data = latents.astype(np.float64)
        asked = extend((data - self._centre).astype(np.float32))
        best = np.full(len(asked), -np.inf, np.float32)
        nodes = np.zeros(len(asked), np.int64)
        step = max(64, _TILE_ELEMENTS // self._nodes.shape[1])
        every = np.arange(len(asked))
        for start in range(0, len(self._nodes), step):
            scores = self._nodes[start : start + step] @ asked.T
            here = scores.argmax(axis=0)
            found = scores[here, every]
            better = found > best
            best[better], nodes[better] = found[better], here[better] + start
        away = data - self._flat[nodes]
        return nodes, np.sqrt(np.einsum("ij,ij->i", away, away)).astype(np.float32)
