"""Where in its picture a cell was found, and what people are told of it.

An analyser cuts its picture around the cell that it means, so a cell away from the middle is worth a word, and a middle
without a cell is worth a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from labref.cells.image import CellImage

__all__ = ["OFF_MIDDLE_PIXELS", "Remark", "distance_from_middle", "is_off_middle", "remark", "whereabouts"]

OFF_MIDDLE_PIXELS: Final = 25.0
"""A cell farther than this from the middle of its picture (pixels of the picture) is marked and told of."""


@dataclass(frozen=True)
class Remark:
    """One line for people. kind : "warning" where the answer may be about nothing, "note" where a look is enough."""

    kind: Literal["warning", "note"]
    text: str


def whereabouts(cell: CellImage) -> dict[str, Any]:
    """Where a prepared cell was found, as the JSON values that an answer holds under `cell`.

    `found` : bool, False where no object is near the middle and the middle itself was taken.  `row`, `column` : of the
    crop's centre in the picture as a person sees it (EXIF orientation applied), pixels, the upper left pixel's centre
    is 0, 0.
    `moved` : distance of that from the picture's own middle, pixels.  `others` : number of other cells in the picture.
    Pixels are given to one decimal.
    """
    row, column = cell.centre
    return {
        "found": cell.nucleus_found,
        "row": round(float(row), 1),
        "column": round(float(column), 1),
        "moved": round(distance_from_middle(cell.centre, cell.size), 1),
        "others": len(cell.others),
    }


def distance_from_middle(centre: tuple[float, float], size: tuple[int, int]) -> float:
    """Distance (pixels) of `centre` (row, column) from the middle of a picture of `size` (height, width)."""
    return math.hypot(centre[0] - (size[0] - 1) / 2, centre[1] - (size[1] - 1) / 2)


def is_off_middle(moved: float) -> bool:
    """Whether a cell that lies `moved` pixels from its picture's middle is marked and told of."""
    return moved > OFF_MIDDLE_PIXELS


def remark(cell: Mapping[str, Any] | None) -> Remark | None:
    """What people are told of an answer's `cell`; None where the cell is in the middle, as it should be, or an agent of
    an older version has not told."""
    if cell is None:
        return None
    if not cell["found"]:
        return Remark("warning", "No cell was found in the middle of the picture; the middle itself was compared")
    if is_off_middle(cell["moved"]):
        return Remark("note", f"The cell lies {cell['moved']:.0f} px from the middle of the picture")
    return None
