"""Which images show one cell, captured more than once, by labref's own rule: so that a figure counts cells and not images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labref.duplicates import DEFAULTS, ruling, without_frame
from labref.errors import UnreadableImageError
from labref.fingerprint import Fingerprint, digest, shifted_fingerprints
from labref.image import CellImage, decode, prepare_pixels
from labref.registration import View, align, view
from labref.store.known import HashBook

__all__ = ["recapture_groups"]


_AT_ONCE = 4096


def _bare(data: bytes) -> CellImage:
    pixels = decode(data)
    return without_frame(pixels, prepare_pixels(pixels))


def recapture_groups(files: Sequence[Path], advance: Callable[[int], None] = lambda _: None) -> NDArray[np.int64]:
    """For each image the number of the first one, int64[n], that it shows the cell of: identical files, duplicates and possible
    duplicates (`labref.duplicates`), and what these are duplicates of. Unreadable images are groups of their own, and so are cells
    side by side in overlapping pictures.

    advance : called with the number of images done.
    """

    def marks(file: Path) -> tuple[str, tuple[Fingerprint, ...]]:
        data = file.read_bytes()
        try:
            return digest(data), shifted_fingerprints(_bare(data).surroundings)
        except UnreadableImageError:
            return digest(data), ()

    @lru_cache(4096)
    def seen(number: int) -> View:
        return view(_bare(files[number].read_bytes()))

    group = np.arange(len(files))
    first: dict[str, int] = {}
    book = HashBook()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for start in range(0, len(files), _AT_ONCE):
            for number, (name, found) in enumerate(pool.map(marks, files[start : start + _AT_ONCE]), start):
                advance(1)
                if not found:
                    continue
                if name in first:
                    group[number] = group[first[name]]
                    continue
                first[name] = number
                for _, _, other in book.within(found, DEFAULTS.candidate_bits):
                    if group[other] == group[number]:
                        continue
                    if ruling(align(seen(int(other)), seen(number)), DEFAULTS).is_one_cell:
                        pair = (group[other], group[number])
                        group[np.isin(group, pair)] = min(pair)
                book.add(
                    np.array([found[0].across], np.uint64),
                    np.array([found[0].down], np.uint64),
                    np.array([number], np.uint64),
                    np.array([number], np.uint32),
                )
    return group
