"""What is made of the bytes of one picture, from `decode` to marks: the tasks that a decoding process can be given.

`labref.cells.decoding` has them done in processes that can be ended; nothing in the lab calls them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.cells.display import RENDERERS
from labref.cells.image import U8, CellImage, decode, prepare, prepare_pixels, reduced, require_content
from labref.cells.optics import measure
from labref.cells.quality import Measured, examine
from labref.cells.registration import View, view
from labref.cells.sameness import searched_by, seen, unframed
from labref.errors import UnreadableImageError
from labref.words import Fingerprint, Landmark

__all__ = ["TASKS", "Examined", "Searched"]


@dataclass(frozen=True)
class Examined:
    """What is stored of a cell.

    crop : uint8[256, 256, 3].  size : (height, width) of the picture, pixels.  fingerprints,
    landmarks : what it is searched by.  measures : float32[7], of its optics (`labref.cells.optics`).  judged_by : what
    `labref.cells.quality.judge` needs.  empty : why the picture holds nothing, None where it holds something.
    """

    crop: U8
    size: tuple[int, int]
    fingerprints: tuple[Fingerprint, ...]
    landmarks: tuple[Landmark, ...]
    measures: NDArray[np.float32]
    judged_by: Measured
    empty: str | None


@dataclass(frozen=True)
class Searched:
    """A prepared cell, and what stored captures of it are searched and compared by; a black frame is left out of
    that. judged_by : what `labref.cells.quality.judge` needs."""

    cell: CellImage
    judged_by: Measured
    fingerprints: tuple[Fingerprint, ...]
    landmarks: tuple[Landmark, ...]
    view: View


def _examine(data: bytes, max_pixels: int) -> Examined:
    pixels = decode(data, max_pixels)
    small = reduced(pixels)
    empty = None
    try:
        require_content(small)
    except UnreadableImageError as error:  # a person may have it taken in all the same
        empty = str(error)
    cell = prepare_pixels(pixels, small)
    inner, bare = unframed(pixels, cell)
    judged_by = examine(small if bare is cell else reduced(inner), bare)
    return Examined(cell.crop, cell.size, *searched_by(inner, bare), measure(cell), judged_by, empty)


def _search(data: bytes, max_pixels: int) -> Searched:
    pixels = decode(data, max_pixels)
    small = reduced(pixels)
    require_content(small)
    cell = prepare_pixels(pixels, small)
    inner, bare = unframed(pixels, cell)
    judged_by = examine(small if bare is cell else reduced(inner), bare)
    return Searched(cell, judged_by, *searched_by(inner, bare), view(bare))


def _judge(data: bytes, max_pixels: int) -> tuple[CellImage, Measured]:
    pixels = decode(data, max_pixels)
    small = reduced(pixels)
    cell = prepare_pixels(pixels, small)
    inner, bare = unframed(pixels, cell)
    return cell, examine(small if bare is cell else reduced(inner), bare)


def _view(data: bytes, max_pixels: int) -> View:
    return seen(decode(data, max_pixels))


TASKS: Final[dict[str, Callable[[bytes, int], Any]]] = {
    "decode": decode,
    "prepare": prepare,
    "examine": _examine,
    "search": _search,
    "judge": _judge,
    "view": _view,
    **{f"show {name}": renderer for name, renderer in RENDERERS.items()},
}
"""By name: (bytes of a file, most pixels) → what is made of them. Each raises `UnreadableImageError`."""
