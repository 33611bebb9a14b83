"""Matrix products and Gaussian sums, in pieces so small that BLAS computes each in the calling thread.

OpenBLAS gives larger products to its own threads and waits for them. On a computer that is busy otherwise, this wait
made training ten times as long; and these threads do not have the low priority of the training. In small pieces,
training uses one core and takes as long as on an idle computer. Its result does not depend on the number of BLAS
threads.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian", "product", "spread"]

# OpenBLAS uses no further threads up to this number of multiplications (SMP_THRESHOLD_MIN × GEMM_MULTITHREAD_THRESHOLD)
_ALONE: Final = 2**18
_BAND: Final = 8  # rows of the Gaussian's matrix in one product
_NOTHING: Final = 1e-12  # smaller weights of the Gaussian count as 0

Floats = NDArray[np.float32]


def product(a: Floats, b: Floats) -> Floats:
    """The matrix product a @ b: float32[m, n].

    a : float32[m, k].  b : float32[k, n]. Fastest where b is contiguous and n is at most about a thousand.
    """
    (m, k), n = a.shape, b.shape[1]
    step = max(1, _ALONE // (k * n))
    found = np.empty((m, n), np.float32)
    whole = m // step * step
    if whole:
        np.matmul(a[:whole].reshape(-1, step, k), b, out=found[:whole].reshape(-1, step, n))
    if whole < m:
        np.matmul(a[whole:], b, out=found[whole:])
    return found


def gaussian(nodes: int, sigma: float) -> NDArray[np.float64]:
    """The weights exp(−d²/2σ²) between any two of `nodes` nodes in a line, d apart: float64[nodes, nodes].

    sigma : in nodes. A weight below 1e-12 is set to 0.
    """
    positions = np.arange(nodes)
    weights = np.exp(-((positions[:, None] - positions) ** 2) / (2 * sigma**2))
    return np.where(weights < _NOTHING, 0.0, weights)


def spread(sums: Floats, sigma: float) -> Floats:
    """For each node the sum of `sums` over all nodes, weighted by the Gaussian of their distance: float32[rows, cols,
    k].

    sums : float32[rows, cols, k].  sigma : in nodes. The Gaussian is separable, so the sums are taken down the columns
    and then along the rows.
    """
    down = _along(sums.transpose(1, 0, 2), sigma).transpose(1, 0, 2)
    return _along(np.ascontiguousarray(down), sigma)


def _along(sums: Floats, sigma: float) -> Floats:
    """The weighted sums along the middle axis."""
    nodes = sums.shape[1]
    weights = gaussian(nodes, sigma).astype(np.float32)
    found = np.empty(sums.shape, np.float32)
    for start in range(0, nodes, _BAND):
        band = weights[start : start + _BAND]
        (reached,) = np.nonzero(band.any(axis=0))
        first, end = int(reached[0]), int(reached[-1]) + 1
        np.matmul(np.ascontiguousarray(band[:, first:end]), sums[:, first:end], out=found[:, start : start + _BAND])
    return found
