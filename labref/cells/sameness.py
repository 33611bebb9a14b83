"""The same cell captured again: found by fingerprint, confirmed by laying the two pictures over each other.

Fingerprints choose the few stored cells that could be the same one, whatever their class; only those are decoded again
and registered (`labref.cells.registration`). Four verdicts, by thresholds that come with the bundle: duplicate,
possible duplicate (for a person to decide), neighbour, different.

An analyser cuts a picture around each cell that it means, so the pictures of two cells that lie close together show the
same field: they agree fully once they are laid over each other, and are two cells all the same. Those are neighbours.
They are found by their landmarks (`labref.cells.landmarks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from labref.cells.hashes import shifted_fingerprints
from labref.cells.image import U8, CellImage, prepare_pixels
from labref.cells.landmarks import landmarks
from labref.cells.registration import Alignment, View, view
from labref.words import Fingerprint, Landmark, Verdict

__all__ = ["DEFAULTS", "Thresholds", "marks", "ruling", "seen", "without_frame"]

_DARK: Final = 16  # of 255: darker than any cell in every colour
_FRAME_SHARE: Final = 0.05  # of a row or column that is dark
_FRAME_MOST: Final = 32  # pixels
_ONE_OR_TWO: Final = (28.0, 58.0)  # pixels; two stained places so far apart may lie in one nucleus or in two
_STAINED: Final = 0.6  # of the chosen cell's density; from that on there is a nucleus in the picture's own middle too


@dataclass(frozen=True)
class Thresholds:
    """When two cells are the same.

    candidate_bits : both hashes of their fingerprints differ in at most so many of 64 bits.  duplicate_from,
    possible_from :
    the correlation after registration that a duplicate, or a possible one, has at least.  same_within : pixels after
    registration; two pictures are of one cell where its centre, or else their own middles, lie so close together.
    Neighbouring cells lie farther apart (45 px and more, platelets 30), and recaptures shift by less (some 12 px).  how
    : how they were calibrated.
    """

    candidate_bits: int
    duplicate_from: float
    possible_from: float
    same_within: float
    how: str

    def to_json(self) -> dict[str, Any]:
        """As a bundle's manifest keeps them, under `duplicates`."""
        return {"hash": "dhash", **asdict(self)}

    @staticmethod
    def of(duplicates: Mapping[str, Any]) -> Thresholds:
        """Those of a bundle's manifest; `DEFAULTS` for a bundle that has none, or the thesis' rule.

        Bundles made for preparation 2 have `farthest` instead of `same_within`: how far the middles of two pictures
        could lie apart before a person was asked. It has no meaning any more.
        """
        if duplicates.get("hash") != "dhash":
            return DEFAULTS
        return Thresholds(
            int(duplicates["candidate_bits"]),
            float(duplicates["duplicate_from"]),
            float(duplicates["possible_from"]),
            float(duplicates.get("same_within", DEFAULTS.same_within)),
            str(duplicates["how"]),
        )


DEFAULTS: Final = Thresholds(
    candidate_bits=10,
    duplicate_from=0.96,
    possible_from=0.93,
    same_within=20.0,
    how="`python -m tests.benchmarks.duplicates` on 10,262 cells of four optics and 4,000 simulated recaptures",
)
"""For bundles without thresholds of their own. They do not depend on the networks."""


def ruling(found: Alignment, thresholds: Thresholds) -> Verdict:
    """The verdict on two cells whose pictures lie on each other like this.

    The pictures may agree because they show one field; then it counts whether they were taken of one cell. They were
    where the pictures' own middles lie together: the analyser meant the same cell, whatever was found in each. They
    were not where the centres lie apart as well. Where the same centre was found though the middles lie apart, it
    depends on what stands in the middles. With a nucleus in both they are two cells, or, a little nearer, one large
    nucleus or two that touch: a person decides. Without, one picture was cut beside the only cell.
    """
    if found.score < thresholds.possible_from:
        return Verdict.DIFFERENT
    one_cell = Verdict.DUPLICATE if found.score >= thresholds.duplicate_from else Verdict.POSSIBLE
    if found.middles <= thresholds.same_within:
        return one_cell
    if float(np.hypot(*found.shift)) > thresholds.same_within:
        return Verdict.NEIGHBOUR
    near, far = _ONE_OR_TWO
    if found.middles <= near or found.stained < _STAINED:
        return one_cell
    return Verdict.POSSIBLE if found.middles <= far else Verdict.NEIGHBOUR


def without_frame(pixels: U8, cell: CellImage) -> CellImage:
    """The cell prepared without the black frame that software leaves where it shifted or turned an image; `cell` where
    it has none.

    pixels : uint8[h, w, 3], the decoded image that `cell` was prepared from. Only for comparing: black edges would move
    the centre and the correlation, and they are no part of the cell.
    """
    return unframed(pixels, cell)[1]


def marks(pixels: U8, cell: CellImage) -> tuple[tuple[Fingerprint, ...], tuple[Landmark, ...]]:
    """What a cell is searched by: its shifted fingerprints, of which the first is its own, and the landmarks of its
    picture.

    pixels : uint8[h, w, 3], the decoded image that `cell` was prepared from. A black frame is left out.
    """
    return searched_by(*unframed(pixels, cell))


def seen(pixels: U8) -> View:
    """What of a decoded image uint8[h, w, 3] is laid over others: its cell, prepared, without a frame."""
    return view(without_frame(pixels, prepare_pixels(pixels)))


def searched_by(inner: U8, bare: CellImage) -> tuple[tuple[Fingerprint, ...], tuple[Landmark, ...]]:
    return shifted_fingerprints(bare.surroundings), landmarks(inner, bare)


def unframed(pixels: U8, cell: CellImage) -> tuple[U8, CellImage]:
    turned = pixels.swapaxes(0, 1)
    sides = [_frame(pixels), _frame(pixels[::-1]), _frame(turned), _frame(turned[::-1])]
    if not any(sides):
        return pixels, cell
    top, bottom, left, right = sides
    height, width = pixels.shape[:2]
    inner = np.ascontiguousarray(pixels[top : height - bottom, left : width - right])
    return inner, prepare_pixels(inner)


def _frame(pixels: U8) -> int:
    """How many first rows of uint8[h, w, 3] are dark in part, and two more for what compression smeared; 0 where the
    first is not."""
    most = min(_FRAME_MOST, len(pixels) // 8)
    framed = 0
    while framed < most and (pixels[framed].max(axis=1) <= _DARK).mean() >= _FRAME_SHARE:
        framed += 1
    return framed + 2 if framed else 0
