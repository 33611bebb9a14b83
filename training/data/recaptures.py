"""Which images show the same cell, by labref's own rule. With this, figures count cells and not images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labref.cells.hashes import digest
from labref.cells.image import decode, prepare_pixels
from labref.cells.registration import View
from labref.cells.sameness import DEFAULTS, compared, marks, seen
from labref.cpus import usable_cpus
from labref.errors import UnreadableImageError
from labref.store.memory.books import HashBook, id_to_int, int_to_id
from labref.store.recording import Search
from labref.words import Fingerprint, Landmark

__all__ = ["recapture_groups"]


_AT_ONCE = 4096


def recapture_groups(files: Sequence[Path], advance: Callable[[int], None] = lambda _: None) -> NDArray[np.int64]:
    """For each image the number of the first image of the same cell: int64[n].

    Images are of the same cell where their files are identical, or where they are linked as duplicates or possible
    duplicates (`labref.cells.sameness`), directly or through other images. An unreadable image is a cell of its own.
    Neighbouring cells in overlapping pictures are different cells. The search is that of a lab
    (`labref.store.recording.Search`).

    advance : called with the number of images done.
    """

    def searched_by(file: Path) -> tuple[str, tuple[Fingerprint, ...], tuple[Landmark, ...]]:
        data = file.read_bytes()
        try:
            pixels = decode(data)
        except UnreadableImageError:
            return digest(data), (), ()
        return digest(data), *marks(pixels, prepare_pixels(pixels))

    @lru_cache(4096)
    def shown(number: int) -> View:
        return seen(decode(files[number].read_bytes()))

    group = np.arange(len(files))
    first: dict[str, int] = {}
    search = Search(HashBook(), HashBook())
    with ThreadPoolExecutor(max_workers=usable_cpus()) as pool:
        for start in range(0, len(files), _AT_ONCE):
            found = pool.map(searched_by, files[start : start + _AT_ONCE])
            for number, (name, fingerprints, places) in enumerate(found, start):
                advance(1)
                if not fingerprints:
                    continue
                if name in first:
                    group[number] = group[first[name]]
                    continue
                first[name] = number
                for cell_id in search.candidates(fingerprints, places, DEFAULTS.candidate_bits):
                    other = id_to_int(cell_id)
                    if group[other] == group[number]:
                        continue
                    if compared(shown(other), shown(number), DEFAULTS).verdict.is_one_cell:
                        pair = (group[other], group[number])
                        group[np.isin(group, pair)] = min(pair)
                search.add(int_to_id(number), fingerprints, places)
                search.apply()
    return group
