"""Whether two pictures show the same cell: candidates are found by fingerprint, and confirmed by registration.

Fingerprints choose the few stored cells that could be the same, whatever their class. Only these are decoded again and
registered (`labref.cells.registration`). Thresholds that come with the bundle give one of four verdicts: duplicate,
possible duplicate (a person decides), neighbour, different.

An analyser cuts a picture around each cell that it means. The pictures of two cells that lie close together therefore
show the same field: they agree fully when registered, but they are of two cells. Such cells are neighbours. They are
found by their landmarks (`labref.cells.landmarks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from PIL import Image

from labref.cells.hashes import ORIENTATIONS, oriented_fingerprints, shifted_fingerprints, turned_fingerprints
from labref.cells.image import U8, CellImage, as_picture, measure_background, prepare_pixels
from labref.cells.landmarks import landmarks
from labref.cells.registration import STAINED, Alignment, View, align, turned, view
from labref.words import SHIFTED, Fingerprint, Landmark, Verdict

__all__ = ["DEFAULTS", "Compared", "Thresholds", "compared", "marks", "ruling", "seen", "without_frame"]

_DARK: Final = 16  # of 255: darker than any cell in every colour
_FRAME_SHARE: Final = 0.05  # of a row or column that is dark
_FRAME_MOST: Final = 32  # pixels
_BLACK_SHARE: Final = 0.005  # of a picture, black from its edges on: less is no mask
_BLACK_EDGE: Final = 3  # pixels beside it, which compression or scaling has mixed
_SOFT_EDGE, _SHADED = 24, 0.6  # pixels beside it, and of the ground's brightness: what is darker there is its edge
_GROUND: Final = 60  # of 255: a smear's ground is brighter in every colour
_LOOKED_AT: Final = 1000  # pixels; a larger picture is looked at on a smaller scale
_ONE_OR_TWO: Final = (28.0, 58.0)  # pixels; two stained places at such a distance may lie in one nucleus or in two
_ONE_BODY: Final = 36.0  # pixels; centres farther apart are of two cells, even on what looks like one nucleus
_DETAIL_POSSIBLE, _DETAIL_SURE = 0.8, 0.88
"""Chosen on 126 cells of pbc on ground made empty (`python -m tests.benchmarks.alone --cells 18 --seed 2`): two of one
class that agree in colours or structure agree in detail to 0.75 at most, but for two pairs of eosinophils (0.82);
simulated recaptures to 0.96 at least, those of platelets to 0.89."""


@dataclass(frozen=True)
class Thresholds:
    """When two cells are the same.

    candidate_bits : the most bits, of 64, in which each of the two hashes may differ between candidates.
    duplicate_from, possible_from : the least correlation after registration of a duplicate, and of a possible one.
    same_within : pixels after registration. Two pictures are of one cell where the centres found, or else the middles
    of the pictures, are at most this far apart. Neighbouring cells are farther apart (45 px and more, platelets 30);
    recaptures shift by less (about 12 px).  how : how the thresholds were calibrated.
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
        """The thresholds in a bundle's manifest; `DEFAULTS` for a bundle without any, or with the thesis' rule.

        Bundles made for preparation 2 have `farthest` instead of `same_within`: the distance between the middles of two
        pictures from which a person was asked. It is no longer used.
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
"""The thresholds for bundles without their own. They do not depend on the networks."""


def ruling(found: Alignment, thresholds: Thresholds) -> Verdict:
    """The verdict on two cells whose pictures are registered like this.

    Where nothing but a cell is shown, as on the empty ground of a body fluid, what is not round in the two has to agree
    as well (`Alignment.detail`).

    Pictures that agree show one field. They may still have been taken of two cells. Three cases:
    1. The middles of the pictures coincide: one cell. The analyser meant the same cell, whatever centre was found.
    2. Neither the middles nor the centres coincide: two cells, neighbours. Where both lie so near that they may be of
       one nucleus, or the centres on what looks like one and not far apart, a person decides: a large nucleus has no
       certain centre.
    3. The centres coincide, the middles do not. Where a nucleus lies in the middle of both pictures, they are of two
       cells, or, at a smaller distance or where it is the very nucleus of the centre, of one large nucleus or two that
       touch: a person decides. Where one picture has no nucleus in its middle, it was cut beside the only cell: one
       cell.
    """
    if found.score < thresholds.possible_from and not found.agrees_in_structure:
        return Verdict.DIFFERENT
    if found.detail < _DETAIL_POSSIBLE:
        return Verdict.DIFFERENT
    sure = found.score >= thresholds.duplicate_from and found.detail >= _DETAIL_SURE
    one_cell = Verdict.DUPLICATE if sure else Verdict.POSSIBLE
    if found.middles <= thresholds.same_within:
        return one_cell
    apart = float(np.hypot(*found.shift))
    near, far = _ONE_OR_TWO
    if apart > thresholds.same_within:
        may_be_one = (apart <= near and found.middles <= far) or (found.one_body and apart <= _ONE_BODY)
        return Verdict.POSSIBLE if may_be_one else Verdict.NEIGHBOUR
    if found.middles <= near or found.stained < STAINED:
        return one_cell
    return Verdict.POSSIBLE if found.middles <= far or found.one_body else Verdict.NEIGHBOUR


@dataclass(frozen=True)
class Compared:
    """How two views compare.

    found : the registration of the second on the first.  verdict : on the two.  quarters, mirrored : the second view
    was first mirrored, left for right, and then turned by so many quarters counter-clockwise.
    """

    found: Alignment
    verdict: Verdict
    quarters: int = 0
    mirrored: bool = False


def compared(first: View, second: View, thresholds: Thresholds) -> Compared:
    """Whether two views show the same cell. Where they are not as they are, and the second has the fingerprint of the
    first once it is turned by quarters or mirrored, it is compared so: a person decides whether they are one."""
    found = align(first, second)
    verdict = ruling(found, thresholds)
    if verdict.is_one_cell:
        return Compared(found, verdict)
    (own,), others = oriented_fingerprints(_grey(first), (0,)), oriented_fingerprints(_grey(second))
    bits = [max((own.across ^ one.across).bit_count(), (own.down ^ one.down).bit_count()) for one in others]
    number = int(np.argmin(bits))
    if number == 0 or bits[number] > thresholds.candidate_bits:
        return Compared(found, verdict)
    again = align(first, turned(second, number))
    # a copy that a program turned keeps its colours; by structure alone a lymphocyte agrees with another mirrored one
    if again.score < thresholds.possible_from or not ruling(again, thresholds).is_one_cell:
        return Compared(found, verdict)
    return Compared(again, Verdict.POSSIBLE, number % 4, number >= ORIENTATIONS // 2)


def _grey(shown: View) -> U8:
    return np.asarray(Image.fromarray(shown.thumb).convert("L"))


def without_frame(pixels: U8, cell: CellImage) -> CellImage:
    """The cell prepared again without the image's black frame; `cell` itself where the image has no frame.

    Software leaves a black frame where it shifts or turns an image. pixels : uint8[h, w, 3], the decoded image that
    `cell` was prepared from. This cell serves for comparing only: black edges would move the centre and change the
    correlation.
    """
    return unframed(pixels, cell)[1]


def marks(pixels: U8, cell: CellImage) -> tuple[tuple[Fingerprint, ...], tuple[Landmark, ...]]:
    """What a cell is searched by: its fingerprint followed by the shifted ones, then those of its crop turned and
    mirrored; and the landmarks of its picture.

    pixels : uint8[h, w, 3], the decoded image that `cell` was prepared from. A black frame is left out.
    """
    return searched_by(*unframed(pixels, cell))


def seen(pixels: U8) -> View:
    """The view of a decoded image, uint8[h, w, 3], for registration: of its prepared cell, without a black frame."""
    return view(without_frame(pixels, prepare_pixels(pixels)))


def searched_by(inner: U8 | Image.Image, bare: CellImage) -> tuple[tuple[Fingerprint, ...], tuple[Landmark, ...]]:
    own = shifted_fingerprints(bare.surroundings)
    assert len(own) == SHIFTED
    return own + turned_fingerprints(bare.surroundings), landmarks(inner, bare)


def unframed(pixels: U8, cell: CellImage) -> tuple[U8 | Image.Image, CellImage]:
    inner = without_black(as_picture(pixels))
    return (pixels, cell) if inner is None else (inner, prepare_pixels(inner))


def without_black(picture: Image.Image) -> Image.Image | None:
    """An RGB picture without what software left black: a frame is cut off, and what else is black from the edges on, as
    around a round mask, becomes ground. None where nothing is."""
    box = inside_frame(picture)
    inner = picture if box is None else picture.crop(box)
    filled = _filled(inner)
    return filled if filled is not None else None if box is None else inner


def _filled(picture: Image.Image) -> Image.Image | None:
    """A picture whose black, from its edges on, has the colour of its ground; so has a colour that most of its edges
    are of, and no smear's ground is. None where there is little."""
    width, height = picture.size
    sides = ((0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height))
    lines = [np.asarray(picture.crop(side)).reshape(-1, 3) for side in sides]
    edge = np.concatenate(lines)
    colour = np.median(edge, axis=0).astype(np.int16)
    coloured = colour.min() < _GROUND and (abs(edge - colour) <= _DARK).all(axis=1).mean() >= 0.5
    if not coloured and not any((line <= _DARK).all(axis=1).mean() >= _FRAME_SHARE for line in lines):
        return None
    times = max(1, -(-max(width, height) // _LOOKED_AT))
    small = picture if times == 1 else picture.reduce(times)
    pixels = np.asarray(small)
    dark = (pixels <= _DARK).all(axis=2)
    if coloured:
        dark |= (abs(pixels.astype(np.int16) - colour) <= _DARK).all(axis=2)
    numbers, _ = scipy.ndimage.label(dark)
    at_edge = np.concatenate([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]])
    black = np.isin(numbers, np.setdiff1d(at_edge, [0]))
    if not _BLACK_SHARE <= black.mean() < 1.0 - _BLACK_SHARE:
        return None
    ground = tuple(round(value) for value in measure_background(pixels[~black][None]))
    # a mask with a soft edge becomes black by degrees
    shaded = pixels.max(axis=2) < _SHADED * max(ground)
    black = scipy.ndimage.binary_dilation(black, mask=shaded, iterations=max(1, _SOFT_EDGE // times))
    black = scipy.ndimage.binary_dilation(black, iterations=max(1, _BLACK_EDGE // times))
    mask = Image.fromarray(black).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", picture.size, ground), picture, mask)


def inside_frame(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """What a black frame leaves of an RGB picture: (left, top, right, bottom). None where it has none."""
    width, height = picture.size
    left = _frame(picture, lambda at: (at, 0, at + 1, height), width)
    top = _frame(picture, lambda at: (0, at, width, at + 1), height)
    right = _frame(picture, lambda at: (width - at - 1, 0, width - at, height), width)
    bottom = _frame(picture, lambda at: (0, height - at - 1, width, height - at), height)
    return (left, top, width - right, height - bottom) if left or top or right or bottom else None


def _frame(picture: Image.Image, line: Callable[[int], tuple[int, int, int, int]], length: int) -> int:
    """The number of lines at one side of an RGB picture that belong to a black frame, and two more, which compression
    has blurred; 0 without a frame.

    line : the box of the line that is so many pixels from the side.  length : the number of lines.
    """
    most = min(_FRAME_MOST, length // 8)
    framed = 0
    while framed < most and _is_dark(picture.crop(line(framed))):
        framed += 1
    return framed + 2 if framed else 0


def _is_dark(line: Image.Image) -> bool:
    red, green, blue = np.moveaxis(np.asarray(line) <= _DARK, 2, 0)
    return bool((red & green & blue).mean() >= _FRAME_SHARE)
