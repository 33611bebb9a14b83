"""Whether the numbers of a bundle's manifest fit what its networks say of the golden cells.

A threshold may lie in its range and still make every cell novel, or none. What the golden cells show tells such numbers
from plausible ones; wide margins are left, as the golden cells are drawn, and few.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.bundles.inference import Embedder
from labref.errors import BundleError

__all__ = ["check_golden_cells"]

_MOVED: Final = 1  # pixels
_DARKER: Final = 0.98
_SPREAD: Final = 20.0  # times; of real cells and of drawn ones the spread of latents differs by up to 1.8
_CRISP: Final = 2.0  # times the tolerance; what lies nearer cannot be told apart by it


def check_golden_cells(embedder: Embedder) -> float:
    """Run the golden cells, and each once more as another picture of it might show it: moved by a pixel, and darker.

    Returns the largest difference from the golden outputs. Raises `BundleError` where `Embedder.golden_difference`
    would, and where the manifest's numbers contradict these cells.
    """
    golden = embedder.bundle.golden(embedder.precision)
    difference, again = embedder.golden_outputs(golden, _taken_again(golden.crops))
    why = _contradiction(embedder, golden.latents.astype(np.float64), again.latents.astype(np.float64))
    if why is not None:
        raise BundleError(f"bundle {embedder.bundle.title} makes no sense: {why}. Do not use it.")
    return difference


def _taken_again(crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    moved = np.concatenate([crops[:, _MOVED:], crops[:, -_MOVED:]], axis=1)
    return (moved * _DARKER).astype(np.uint8)


def _contradiction(embedder: Embedder, latents: NDArray[np.float64], again: NDArray[np.float64]) -> str | None:
    """What does not fit. latents : float64[n, L] of the golden cells.  again : the same of their second pictures."""
    manifest = embedder.bundle.manifest
    threshold, scale = manifest.novelty.threshold, manifest.latent_scale
    recaptured = float(np.median(np.square(again - latents).mean(axis=1)))
    if not recaptured <= threshold:
        return (
            f"its novelty threshold is {threshold:g}, but a second picture of one cell is {recaptured:.3g} away from the "
            "first: every cell would be novel"
        )
    if len(latents) < 2:
        return None
    one, other = np.triu_indices(len(latents), 1)
    apart = latents[one] - latents[other]
    nearest = float(np.abs(apart).max(axis=1).min())
    if not nearest > _CRISP * embedder.golden_tolerance:
        return (
            f"golden_tolerance is {embedder.golden_tolerance:g}, but two of its golden cells differ by {nearest:.3g} only: "
            "wrong outputs would not be noticed"
        )
    spread = float(np.square(apart).mean())
    if not threshold <= spread:
        return (
            f"its novelty threshold is {threshold:g}, but its golden cells, each of another kind, are {spread:.3g} apart in "
            "the mean: no cell would be novel"
        )
    if not spread / _SPREAD <= scale <= spread * _SPREAD:
        return f"its latent.scale is {scale:g}, but its golden cells are {spread:.3g} apart in the mean"
    return None
