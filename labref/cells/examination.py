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
from labref.cells.registration import View, view
from labref.cells.sameness import marks, searched_by, seen, unframed
from labref.words import Fingerprint, Landmark

__all__ = ["TASKS", "Examined", "Searched"]


@dataclass(frozen=True)
class Examined:
    """What is stored of a cell.

    crop : uint8[256, 256, 3].  size : (height, width) of the picture, pixels.  fingerprints,
    landmarks : what it is searched by.  measures : float32[7], of its optics (`labref.cells.optics`).
    """

    crop: U8
    size: tuple[int, int]
    fingerprints: tuple[Fingerprint, ...]
    landmarks: tuple[Landmark, ...]
    measures: NDArray[np.float32]


@dataclass(frozen=True)
class Searched:
    """A prepared cell, and what stored captures of it are searched and compared by; a black frame is left out of
    that."""

    cell: CellImage
    fingerprints: tuple[Fingerprint, ...]
    landmarks: tuple[Landmark, ...]
    view: View


def _examine(data: bytes, max_pixels: int) -> Examined:
    pixels = decode(data, max_pixels)
    small = reduced(pixels)
    require_content(small)
    cell = prepare_pixels(pixels, small)
    fingerprints, landmarks = marks(pixels, cell)
    return Examined(cell.crop, cell.size, fingerprints, landmarks, measure(cell))


def _search(data: bytes, max_pixels: int) -> Searched:
    pixels = decode(data, max_pixels)
    small = reduced(pixels)
    require_content(small)
    cell = prepare_pixels(pixels, small)
    inner, bare = unframed(pixels, cell)
    return Searched(cell, *searched_by(inner, bare), view(bare))


def _view(data: bytes, max_pixels: int) -> View:
    return seen(decode(data, max_pixels))


TASKS: Final[dict[str, Callable[[bytes, int], Any]]] = {
    "decode": decode,
    "prepare": prepare,
    "examine": _examine,
    "search": _search,
    "view": _view,
    **{f"show {name}": renderer for name, renderer in RENDERERS.items()},
}
"""By name: (bytes of a file, most pixels) → what is made of them. Each raises `UnreadableImageError`."""
