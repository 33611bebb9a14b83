"""Where in its picture a cell was found, and the remarks that people get about it and about its picture.

An analyser cuts its picture around the cell that it means. So a cell off the middle gets a note, and a middle without a
cell gets a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from labref.cells.image import CellImage

__all__ = [
    "OFF_MIDDLE_PIXELS",
    "Remark",
    "distance_from_middle",
    "doubt",
    "is_off_middle",
    "remark",
    "whereabouts",
]

OFF_MIDDLE_PIXELS: Final = 25.0
"""A cell farther than this from the middle of its picture (pixels of the picture) is marked, and gets a note."""


@dataclass(frozen=True)
class Remark:
    """One line for people. kind : "warning" where the picture may show no cell in its middle, else "note"."""

    kind: Literal["warning", "note"]
    text: str


def whereabouts(cell: CellImage) -> dict[str, Any]:
    """Where a prepared cell was found, as the JSON values that an answer holds under `cell`.

    `found` : bool, False where no object is near the middle, and the crop was taken around the middle itself.
    `row`, `column` : of the crop's centre in the picture as a person sees it (EXIF orientation applied), pixels; the
    centre of the upper left pixel is 0, 0.  `moved` : distance of the crop's centre from the middle of the picture,
    pixels.  `others` : number of other cells in the picture. Pixels are rounded to one decimal.
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
    """Whether a cell that lies `moved` pixels from the middle of its picture is marked, and gets a note."""
    return moved > OFF_MIDDLE_PIXELS


def remark(cell: Mapping[str, Any] | None) -> Remark | None:
    """The remark about an answer's `cell` (see `whereabouts`). None where the cell is in the middle, or where `cell` is
    None: an agent of an older version answers without it."""
    if cell is None:
        return None
    if not cell["found"]:
        return Remark("warning", "No cell was found in the middle of the picture; the middle itself was compared")
    if is_off_middle(cell["moved"]):
        return Remark("note", f"The cell lies {cell['moved']:.0f} px from the middle of the picture")
    return None


def doubt(quality: Mapping[str, Any] | None) -> Remark | None:
    """The remark about an answer's `quality`. None where nothing is wrong with the picture, or where it was not
    judged."""
    if quality is None or quality["reason"] is None:
        return None
    return Remark("warning", f"This picture is doubtful: {quality['reason']}")
