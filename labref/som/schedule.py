"""The size of a map, and the schedule of its training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

__all__ = ["FINAL_SIGMA", "LARGEST", "SMALLEST", "Stage", "size_for", "stages"]

SMALLEST: Final = 8
LARGEST: Final = 248
"""Nodes a side: the size that the thesis recommends for its 62,000 cells."""
FINAL_SIGMA: Final = 1.0
"""The radius, in nodes, at the end of training."""
EPOCHS_PER_HALVING: Final = 6
SETTLING: Final = 6
_FINE: Final = 2.0  # a grid is fine enough while σ is at least this many of its nodes
_COARSEST: Final = 5  # the fewest nodes on the shorter side of a coarse grid


@dataclass(frozen=True)
class Stage:
    """The epochs on one grid. rows, cols : of the grid.  sigmas : the radius in each epoch, in nodes of this grid."""

    rows: int
    cols: int
    sigmas: tuple[float, ...]


def size_for(cells: int) -> tuple[int, int]:
    """Rows and columns of a map for this number of cells: about one node for each cell (Kaski's rule, thesis 3.6), from
    8×8 to 248×248."""
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

    The radius σ, in nodes of the final grid, falls geometrically from `sigma` to `final_sigma`. Each halving takes
    `epochs_per_halving` epochs. Then σ stays at `final_sigma` for `settling` epochs. By default σ starts at half the
    longer side, as Kohonen advises (thesis 4.5: 124 nodes for a side of 248).

    While σ is large, a grid with half or a quarter of the nodes a side loses nothing: the map is smooth. The grid is
    doubled as σ falls, and has its full size at the end. Raises ValueError for a map without nodes, for a σ that is
    not positive or would grow, and for a schedule without epochs.
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
        sigma_on_grid = value * max(grid) / max(rows, cols)
        if found and (found[-1].rows, found[-1].cols) == grid:
            found[-1] = Stage(*grid, (*found[-1].sigmas, sigma_on_grid))
        else:
            found.append(Stage(*grid, (sigma_on_grid,)))
    return tuple(found)
