"""What is made of the bytes of one picture, from `decode` to marks: the tasks that a decoding process can be given.

`labref.cells.decoding` has them done in processes that can be ended; nothing in the lab calls them otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labref.cells.display import RENDERERS
from labref.cells.image import U8, CellImage, decode, opened, prepare, prepare_seen, reduced, require_content
from labref.cells.optics import measure
from labref.cells.quality import Measured, examine
from labref.cells.registration import View, view
from labref.cells.sameness import searched_by, seen, without_black
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


@dataclass(frozen=True)
class _Seen:
    """What is found in a decoded picture.

    cell : prepared.  inner, bare : the picture without its black frame, and the cell prepared from that; the picture
    and the cell themselves where it has none.  judged_by : of the picture without its frame.
    """

    cell: CellImage
    inner: Image.Image
    bare: CellImage
    judged_by: Measured


def _looked_at(picture: Image.Image, small: U8) -> _Seen:
    cell, colours = prepare_seen(picture, small)
    inner = without_black(picture)
    if inner is None:
        return _Seen(cell, picture, cell, examine(cell, colours))
    bare, colours = prepare_seen(inner, reduced(inner))
    return _Seen(cell, inner, bare, examine(bare, colours))


def _examine(data: bytes, max_pixels: int) -> Examined:
    picture = opened(data, max_pixels)
    small = reduced(picture)
    empty = None
    try:
        require_content(small)
    except UnreadableImageError as error:  # a person may have it taken in all the same
        empty = str(error)
    seen = _looked_at(picture, small)
    cell = seen.cell
    return Examined(cell.crop, cell.size, *searched_by(seen.inner, seen.bare), measure(cell), seen.judged_by, empty)


def _search(data: bytes, max_pixels: int) -> Searched:
    picture = opened(data, max_pixels)
    small = reduced(picture)
    require_content(small)
    seen = _looked_at(picture, small)
    return Searched(seen.cell, seen.judged_by, *searched_by(seen.inner, seen.bare), view(seen.bare))


def _judge(data: bytes, max_pixels: int) -> tuple[CellImage, Measured]:
    picture = opened(data, max_pixels)
    seen = _looked_at(picture, reduced(picture))
    return seen.cell, seen.judged_by


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
