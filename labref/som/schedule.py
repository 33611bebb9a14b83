"""How large a map is, and by which steps it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

__all__ = ["FINAL_SIGMA", "LARGEST", "SMALLEST", "Stage", "size_for", "stages"]

SMALLEST: Final = 8
LARGEST: Final = 248
"""The thesis' recommended side, for its 62,000 cells."""
FINAL_SIGMA: Final = 1.0
"""Radius, in nodes, at which training ends."""
EPOCHS_PER_HALVING: Final = 6
SETTLING: Final = 6
_FINE: Final = 2.0  # a grid is fine enough while σ is at least so many of its nodes
_COARSEST: Final = 5


@dataclass(frozen=True)
class Stage:
    """Epochs on one grid. rows, cols : of that grid.  sigmas : the radius in each epoch, in nodes of that grid."""

    rows: int
    cols: int
    sigmas: tuple[float, ...]


def size_for(cells: int) -> tuple[int, int]:
    """Rows and columns for so many cells: about one node for each cell (Kaski's rule in the thesis, 3.6), from 8×8 to
    248×248."""
    side = min(max(round(math.sqrt(max(cells, 0))), SMALLEST), LARGEST)
    return side, side


def stages(
    rows: int,
    cols: int,
    *,
    sigma: float | None = None,
    final_sigma: float = FINAL_SIGMA,
    epochs_per_halving: int = EPOCHS_PER_HALVING,
    settling: int = SETTLING,
) -> tuple[Stage, ...]:
    """The schedule of the batch trainer, coarse grid first.

    σ (nodes of the final grid) falls geometrically from `sigma`, by default half the longer side as Kohonen advises
    (thesis
    4.5: 124 for 248), to `final_sigma`, in `epochs_per_halving` epochs for each halving, and stays there `settling`
    epochs. While σ is wide, a grid of half, a quarter … of the nodes a side holds all the map can express; it is
    doubled as σ falls, and settles at full size. Raises ValueError for a map without nodes, and for a σ that is not
    positive or would grow.
    """
    if rows < 1 or cols < 1:
        raise ValueError(f"a map needs at least one row and one column, not {rows}×{cols}")
    start = max(rows, cols, 2 * final_sigma) / 2 if sigma is None else sigma
    if not 0 < final_sigma <= start < math.inf:
        raise ValueError(f"the radius must be above 0 and not grow, not from {start} to {final_sigma}")
    if epochs_per_halving < 1 or settling < 1:
        raise ValueError("a schedule needs at least one epoch for each halving, and one to settle")
    falling = math.ceil(math.log2(start / final_sigma) * epochs_per_halving)
    sigmas = [start * (final_sigma / start) ** (i / falling) for i in range(falling)] + [final_sigma] * settling
    found: list[Stage] = []
    for number, value in enumerate(sigmas):
        factor = 1
        while number < falling and value / (2 * factor) >= _FINE and min(rows, cols) / (2 * factor) >= _COARSEST:
            factor *= 2
        grid = math.ceil(rows / factor), math.ceil(cols / factor)
        there = value * max(grid) / max(rows, cols)
        if found and (found[-1].rows, found[-1].cols) == grid:
            found[-1] = Stage(*grid, (*found[-1].sigmas, there))
        else:
            found.append(Stage(*grid, (there,)))
    return tuple(found)
