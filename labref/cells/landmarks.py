"""Landmarks of a picture. They find the pictures of neighbouring cells, which show the same field around different
middles.

The nuclei and platelets in a picture are its landmarks: dark spots that every picture of the field shows at the same
place, whichever cell the picture was taken of. A fingerprint is made of the window around each landmark, as one is made
of the crop around the cell. Two landmarks of each cell are stored. All landmarks of a new picture are looked up among
the stored ones. Landmarks do not depend on the segmentation, except that they are ordered by their distance from the
cell's centre.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from numpy.typing import NDArray
from PIL import Image

from labref.cells.hashes import REDUCE, WINDOW, hash_windows, to_int
from labref.cells.image import BACKGROUND, CROP_SIZE, CellImage, as_picture
from labref.cells.segmentation import highest_around
from labref.words import BITS, Fingerprint, Landmark

__all__ = ["landmarks"]


# pixels from the cell's centre: pictures of cells farther apart have too little in common to be registered
_BESIDE: Final = 160
_MOST: Final = 6
# the next two are lengths in reduced pixels; most nuclei are 10 to 25 reduced pixels wide
_BLUR: Final = 4.4
_APART: Final = 5
_BASE: Final = 0.1  # optical density of haze and of the palest red cells
_DARKEST: Final = 0.9  # higher densities count as this, so that a dark nucleus does not hide a pale one beside it
_LEAST: Final = 0.04  # the least height of a peak: blurred density above the base
_LEAST_SHARE: Final = 0.3  # of the height of the picture's highest peak; lower peaks are red cells
_SHIFTS: Final = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
_LEAST_SHOWN: Final = BITS // 2  # bits of each hash that must compare places within the picture
_INSIDE: Final = 0.9  # share of each place that a hash compares which must lie within the picture
_GREY: Final = (0.299, 0.587, 0.114)  # weights of red, green and blue, as in Pillow

F32 = NDArray[np.float32]


def landmarks(pixels: NDArray[np.uint8] | Image.Image, cell: CellImage) -> tuple[Landmark, ...]:
    """The landmarks of a picture, at most six, those nearest to the cell's centre first. Takes about 2 ms.

    pixels : uint8[h, w, 3] or an RGB picture, the decoded image that `cell` was prepared from. A spot is left out where
    less than half the bits of each hash compare places within the picture; the hashes are made of the 224 pixels around
    the spot.
    """
    # of a large field, only the part that the windows can show
    reach = _BESIDE + CROP_SIZE // 2
    corner = [max(0, round(middle) - reach) for middle in cell.centre]
    bottom, right = (min(round(middle) + reach, size) for middle, size in zip(cell.centre, cell.size, strict=True))
    small = as_picture(pixels).reduce(REDUCE, (corner[1], corner[0], right, bottom))
    spots, depths = _spots(_density(np.asarray(small)[:, :, 0], cell.background[0]))
    centre = (np.subtract(cell.centre, corner) + 0.5) / REDUCE - 0.5
    away = np.hypot(*(spots - centre).T)
    near = np.flatnonzero((depths >= _LEAST_SHARE * depths.max(initial=0.0)) & (away <= _BESIDE / REDUCE))
    gains = [share * BACKGROUND / max(level, 1.0) for share, level in zip(_GREY, cell.background, strict=True)]
    grey = np.asarray(small.convert("L", (*gains, 0.0)))
    corners: list[tuple[int, int]] = []
    shown: list[Fingerprint] = []
    for spot in spots[near[np.argsort(away[near], kind="stable")]].tolist():
        top, left = (round(at - (WINDOW - 1) / 2) for at in spot)
        bits = _shown(_inside(top, grey.shape[0]), _inside(left, grey.shape[1]))
        if min(each.bit_count() for each in bits) >= _LEAST_SHOWN:
            corners += [(WINDOW + top + row, WINDOW + left + column) for row, column in _SHIFTS]
            shown.append(bits)
            if len(shown) == _MOST:
                break
    hashes = hash_windows(_padded(grey), corners)
    return tuple(Landmark(hashes[at * len(_SHIFTS) :][: len(_SHIFTS)], bits) for at, bits in enumerate(shown))


def _padded(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with a window's width around it, in which its edges go on."""
    height, width = grey.shape
    padded = np.empty((height + 2 * WINDOW, width + 2 * WINDOW), np.uint8)
    padded[WINDOW:-WINDOW, WINDOW:-WINDOW] = grey
    padded[WINDOW:-WINDOW, :WINDOW], padded[WINDOW:-WINDOW, -WINDOW:] = grey[:, :1], grey[:, -1:]
    padded[:WINDOW], padded[-WINDOW:] = padded[WINDOW], padded[-WINDOW - 1]
    return padded


def _density(red: NDArray[np.uint8], background: float) -> F32:
    """Optical density (natural logarithm) in red light, above the base and limited: float32[h, w].

    red : uint8[h, w], the red channel of the reduced picture.  background : its background in red, 0 to 255.
    """
    curve = np.log((max(background, 1.0) + 1.0) / (np.arange(256, dtype=np.float32) + 1.0)).astype(np.float32)
    return np.asarray(np.clip(curve - _BASE, 0.0, _DARKEST - _BASE)[red])


def _spots(density: F32) -> tuple[NDArray[np.float64], F32]:
    """The peaks of the blurred density: (row, column) float64[n, 2], finer than a pixel, and heights float32[n]."""
    smooth = scipy.ndimage.gaussian_filter(density, _BLUR, mode="constant")
    is_peak = (smooth == highest_around(smooth, _APART // 2)) & (smooth > _LEAST)
    is_peak[[0, -1]] = is_peak[:, [0, -1]] = False
    rows, columns = np.nonzero(is_peak)
    found = [
        at + _vertex(smooth[rows - down, columns - right], smooth[rows, columns], smooth[rows + down, columns + right])
        for at, down, right in ((rows, 1, 0), (columns, 0, 1))
    ]
    return np.stack(found, axis=1), smooth[is_peak]


def _vertex(before: F32, here: F32, after: F32) -> NDArray[np.float64]:
    """The vertex of the parabola through three neighbouring values, from the middle one, -0.5 to 0.5 pixels."""
    bend = np.minimum(before - 2.0 * here + after, -1e-9)
    return np.asarray(np.clip(0.5 * (before - after) / bend, -0.5, 0.5), np.float64)


def _inside(start: int, length: int) -> tuple[int, int]:
    """Which pixels of a window that begins at `start` lie in a picture of `length` pixels: the first, and the one after
    the last, 0 to 56."""
    first = min(max(-start, 0), WINDOW)
    return first, max(first, min(length - start, WINDOW))


@lru_cache(maxsize=4096)
def _shown(rows: tuple[int, int], columns: tuple[int, int]) -> Fingerprint:
    """The bits of a fingerprint that compare two places within the picture, as ones. rows, columns : which of the
    window lie in the picture, as `_inside` says."""
    across = _in_parts(rows, 8)[:, None] & _next_too(_in_parts(columns, 9))[None, :]
    down = _next_too(_in_parts(rows, 9))[:, None] & _in_parts(columns, 8)[None, :]
    return Fingerprint(to_int(across), to_int(down))


def _in_parts(inside: tuple[int, int], count: int) -> NDArray[np.bool_]:
    """Which of `count` equal parts of a window lie inside for at least 90 %: bool[count]."""
    edges = np.linspace(0, WINDOW, count + 1).round().astype(int)
    covered = np.diff(np.clip(edges, *inside))
    return np.asarray(covered >= _INSIDE * np.diff(edges))


def _next_too(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return inside[:-1] & inside[1:]
