"""Matrix products and Gaussian sums in pieces so small that BLAS does each in the thread that asks.

OpenBLAS hands larger products to threads of its own and waits for them. Beside an analyser's other work, or the agent's
own networks, that wait made training ten times as long, and the threads do not have the low priority of the job that
asks. In pieces training takes one core, as long as it would alone, and its result does not depend on how many threads
BLAS has.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian", "product", "spread"]

_ALONE: Final = (
    2**18
)  # multiplications up to which OpenBLAS (SMP_THRESHOLD_MIN × GEMM_MULTITHREAD_THRESHOLD) starts no threads
_BAND: Final = 8  # rows of a Gaussian's matrix at once
_NOTHING: Final = 1e-12  # weights of a Gaussian below this are nothing

Floats = NDArray[np.float32]


def product(a: Floats, b: Floats) -> Floats:
    """a float32[m, k] @ b float32[k, n]: float32[m, n]. Fastest where b is contiguous, and n not above a thousand."""
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
    """exp(−d²/2σ²) between any two of so many nodes in a line: float64[nodes, nodes]; nothing where below 1e-12."""
    apart = np.arange(nodes)
    weights = np.exp(-((apart[:, None] - apart) ** 2) / (2 * sigma**2))
    return np.where(weights < _NOTHING, 0.0, weights)


def spread(sums: Floats, sigma: float) -> Floats:
    """At each node the sum over all nodes, weighted by the Gaussian of σ nodes between them: float32[rows, cols, k].

    sums : float32[rows, cols, k]. Down the columns first and then along the rows, which is the same.
    """
    down = _along(sums.transpose(1, 0, 2), sigma).transpose(1, 0, 2)
    return _along(np.ascontiguousarray(down), sigma)


def _along(sums: Floats, sigma: float) -> Floats:
    """The sums along the middle axis."""
    nodes = sums.shape[1]
    weights = gaussian(nodes, sigma).astype(np.float32)
    found = np.empty(sums.shape, np.float32)
    for start in range(0, nodes, _BAND):
        band = weights[start : start + _BAND]
        (reached,) = np.nonzero(band.any(axis=0))
        first, end = int(reached[0]), int(reached[-1]) + 1
        np.matmul(np.ascontiguousarray(band[:, first:end]), sums[:, first:end], out=found[:, start : start + _BAND])
    return found
