"""Principal components of the features at the break: the linear baseline that the thesis' VAE is held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Components", "principal_components"]

_BLOCK = 512
_SPARE = 20
_PASSES = 6


@dataclass(frozen=True)
class Components:
    """mean float32[d]; axes float32[k, d], orthonormal, largest variance first; kept : share of the variance on each,
    float64[k]."""

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]
    kept: NDArray[np.float64]

    def latents(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Coordinates float32[n, k] of features [n, …], block by block."""
        blocks = [
            (features[start : start + _BLOCK].reshape(-1, len(self.mean)).astype(np.float32) - self.mean) @ self.axes.T
            for start in range(0, len(features), _BLOCK)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, len(self.axes)), np.float32)


def principal_components(features: NDArray[np.floating], k: int, seed: int = 1) -> Components:
    """The k leading components of features float[n, …], read in blocks, so that a memory map need not fit in memory.

    Randomised subspace iteration (Halko, Martinsson & Tropp, SIAM Review 53(2), 2011, algorithm 4.4) with six passes,
    at which the leading variances agree with an exact decomposition to four digits on features like these (there is a
    test).
    """
    count, size = len(features), int(np.prod(features.shape[1:]))
    if count < 2:
        raise ValueError(f"principal components need at least two cells, not {count}")
    k = min(k, count - 1, size)

    def blocks() -> list[slice]:
        return [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)]

    def read(part: slice) -> NDArray[np.float32]:
        return np.asarray(features[part].reshape(-1, size), dtype=np.float32)

    mean = sum(read(part).sum(axis=0, dtype=np.float64) for part in blocks()) / count
    centre = mean.astype(np.float32)
    total = sum(float(((read(part) - centre).astype(np.float64) ** 2).sum()) for part in blocks())

    def product(basis: NDArray[np.float64]) -> NDArray[np.float64]:
        """Covariance (not yet divided) times basis [d, r]."""
        narrow = basis.astype(np.float32)
        result = np.zeros(basis.shape)
        for part in blocks():
            block = read(part) - centre
            result += block.T @ (block @ narrow)
        return result

    basis = np.random.default_rng(seed).normal(size=(size, min(k + _SPARE, size)))
    for _ in range(_PASSES):
        basis, _ = np.linalg.qr(product(basis))
    values, vectors = np.linalg.eigh(basis.T @ product(basis))
    order = np.argsort(values)[::-1][:k]
    axes = (basis @ vectors[:, order]).T
    return Components(centre, axes.astype(np.float32), values[order] / max(total, float(values.sum()), 1e-30))
