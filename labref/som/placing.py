"""The nodes of latents on one map: the search of `winners`, prepared once and then used for each query or batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.som.files import load
from labref.som.products import product
from labref.som.search import extend, winners

__all__ = ["Placer", "open_placer"]

_AT_ONCE: Final = 1024  # nodes in one product; `product` is fastest with up to about a thousand columns
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
        flat = np.ascontiguousarray(weights, np.float32).reshape(-1, self.length)
        self._centre = flat.mean(axis=0, dtype=np.float64)
        self._flat = flat
        moved = (flat - self._centre).astype(np.float32)
        nodes = np.hstack([moved, -0.5 * np.einsum("ij,ij->i", moved, moved)[:, None]])
        self._parts = [np.ascontiguousarray(nodes[at : at + _AT_ONCE].T) for at in range(0, len(nodes), _AT_ONCE)]

    @property
    def weights(self) -> NDArray[np.float32]:
        """The weights float32[rows, cols, L]; the caller must not change them."""
        return self._flat.reshape(self.rows, self.cols, self.length)

    @property
    def nbytes(self) -> int:
        """Memory in use, bytes."""
        return self._flat.nbytes + sum(part.nbytes for part in self._parts)

    def place(self, latents: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The node of each latent, int64[n] (row * cols + column), and its quantisation error, float32[n] (Euclidean).

        latents : float[n, L]. The result equals that of `winners`. It does not depend on the other latents of the
        call, except where two nodes are equally near to six digits: either may then be returned.
        """
        if len(latents) >= _MANY:
            nodes, errors = winners(self.weights, latents)
            return nodes, errors.astype(np.float32)
        data = latents.astype(np.float64)
        asked = extend((data - self._centre).astype(np.float32))
        best = np.full(len(asked), -np.inf, np.float32)
        nodes = np.zeros(len(asked), np.int64)
        every = np.arange(len(asked))
        for number, part in enumerate(self._parts):
            scores = product(asked, part)
            here = scores.argmax(axis=1)
            found = scores[every, here]
            better = found > best
            best[better], nodes[better] = found[better], here[better] + number * _AT_ONCE
        away = data - self._flat[nodes]
        return nodes, np.sqrt(np.einsum("ij,ij->i", away, away)).astype(np.float32)
