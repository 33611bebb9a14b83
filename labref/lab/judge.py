"""Whether two cells of a lab are the same one, from their kept bytes (`labref.cells.sameness` rules)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from labref.cells.image import U8, CellImage, decode
from labref.cells.registration import View, align, view
from labref.cells.sameness import Thresholds, ruling, searched_by, seen, unframed
from labref.errors import LabrefError
from labref.lab import Lab
from labref.store import Store
from labref.store.values import Resemblance
from labref.words import Verdict

__all__ = ["Judge", "repeated"]

_KEPT_VIEWS: Final = 512  # 12 kB each


class Judge:
    """Compares cells by their kept bytes; called with the digests of two, it gives their resemblance.

    Remembers the views of the cells it has seen, so that a cell with several candidates is decoded once. For one
    thread.
    """

    def __init__(self, lab: Lab, thresholds: Thresholds) -> None:
        self.thresholds = thresholds
        self._lab = lab
        self._view = lru_cache(_KEPT_VIEWS)(self._read)

    def __call__(self, digest: str, other: str) -> Resemblance | None:
        """How alike the cells with these digests are; None where the kept bytes of one cannot be used."""
        try:
            return self.compare(self._view(digest), other)
        except LabrefError:
            return None  # `labref ledger --check` finds such bytes, and says what to do

    def compare(self, shown: View, other: str) -> Resemblance | None:
        """How alike what `shown` shows and the cell with the digest `other` are; None where its kept bytes cannot be
        used."""
        try:
            seen = self._view(other)
        except LabrefError:
            return None
        found = align(shown, seen)
        return Resemblance(round(found.score, 4), ruling(found, self.thresholds))

    def _read(self, digest: str) -> View:
        return seen(decode(self._lab.read_image(digest)))


def repeated(store: Store, judge: Judge, pixels: U8, cell: CellImage) -> list[str]:
    """The stored cells that a cell which is not in the store is a duplicate of: most alike first, then oldest.

    pixels : uint8[h, w, 3], the decoded image that `cell` was prepared from. A black frame is left out.
    """
    inner, bare = unframed(pixels, cell)
    shown, found = view(bare), []
    fingerprints, places = searched_by(inner, bare)
    near = store.candidates(fingerprints, judge.thresholds.candidate_bits, places)
    cells = store.cells(near)
    for place, cell_id in enumerate(near):
        resemblance = judge.compare(shown, cells[cell_id].digest) if cell_id in cells else None
        if resemblance is not None and resemblance.verdict is Verdict.DUPLICATE:
            found.append((-resemblance.score, place, cell_id))
    return [cell_id for _, _, cell_id in sorted(found)]
