"""Whether two cells of a lab are the same one, from their kept bytes (`labref.cells.sameness` rules)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from labref.cells.examination import Searched
from labref.cells.registration import View
from labref.cells.sameness import Thresholds, compared
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
        shown = self._view(digest)
        return None if shown is None else self.compare(shown, other)

    def compare(self, shown: View, other: str) -> Resemblance | None:
        """How alike what `shown` shows and the cell with the digest `other` are; None where its kept bytes cannot be
        used."""
        seen = self._view(other)
        if seen is None:
            return None
        result = compared(shown, seen, self.thresholds)
        return Resemblance(round(result.found.agreement, 4), result.verdict)

    def _read(self, digest: str) -> View | None:
        try:
            return self._lab.decoder.view(self._lab.read_image(digest))
        except LabrefError:
            return None  # `labref ledger --check` finds such bytes, and says what to do


def repeated(store: Store, judge: Judge, cell: Searched) -> tuple[list[str], list[str]]:
    """The stored cells that a cell which is not in the store is a duplicate of, and those that it may be one of: most
    alike first, then oldest."""
    found: dict[Verdict, list[tuple[float, int, str]]] = {Verdict.DUPLICATE: [], Verdict.POSSIBLE: []}
    near = store.candidates(cell.fingerprints, judge.thresholds.candidate_bits, cell.landmarks)
    cells = store.cells(near)
    for place, cell_id in enumerate(near):
        resemblance = judge.compare(cell.view, cells[cell_id].digest) if cell_id in cells else None
        if resemblance is not None and resemblance.verdict.is_one_cell:
            found[resemblance.verdict].append((-resemblance.score, place, cell_id))
    certain, possible = ([cell_id for _, _, cell_id in sorted(alike)] for alike in found.values())
    return certain, possible
