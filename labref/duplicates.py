"""The same cell captured again: found by fingerprint, confirmed by laying the two pictures over each other.

Fingerprints choose the few stored cells that could be the same one, whatever their class; only those are decoded again and
registered (`labref.registration`). Three verdicts, by thresholds that come with the bundle: duplicate, possible duplicate (for a
person to decide), different.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from labref.errors import LabrefError
from labref.failpoints import failpoint
from labref.fingerprint import VERSION, Fingerprint, Verdict, shifted_fingerprints
from labref.image import U8, CellImage, decode, prepare_pixels
from labref.lab import Lab
from labref.registration import Alignment, View, align, view
from labref.store import Store
from labref.store.duplicates import Learnt
from labref.store.values import Resemblance

__all__ = ["DEFAULTS", "Judge", "Thresholds", "catch_up", "repeated", "ruling", "without_frame"]

_KEPT_VIEWS: Final = 512  # 12 kB each
_AT_ONCE: Final = 32
_DARK: Final = 16  # of 255: darker than any cell in every colour
_FRAME_SHARE: Final = 0.05  # of a row or column that is dark
_FRAME_MOST: Final = 32  # pixels


@dataclass(frozen=True)
class Thresholds:
    """When two cells are the same.

    candidate_bits : both hashes of their fingerprints differ in at most so many of 64 bits.  duplicate_from, possible_from :
    the correlation after registration that a duplicate, or a possible one, has at least.  farthest : most distance of the images'
    middles after registration, pixels; the middle of a neighbouring cell in the same field lies farther away.  how : how they were calibrated.
    """

    candidate_bits: int
    duplicate_from: float
    possible_from: float
    farthest: float
    how: str

    def to_json(self) -> dict[str, Any]:
        """As a bundle's manifest keeps them, under `duplicates`."""
        return {"hash": "dhash", **asdict(self)}

    @staticmethod
    def of(duplicates: Mapping[str, Any]) -> Thresholds:
        """Those of a bundle's manifest; `DEFAULTS` for a bundle that has none, or the thesis' rule."""
        if duplicates.get("hash") != "dhash":
            return DEFAULTS
        return Thresholds(
            int(duplicates["candidate_bits"]),
            float(duplicates["duplicate_from"]),
            float(duplicates["possible_from"]),
            float(duplicates["farthest"]),
            str(duplicates["how"]),
        )


DEFAULTS: Final = Thresholds(
    candidate_bits=10,
    duplicate_from=0.96,
    possible_from=0.93,
    farthest=32.0,
    how="`python -m tests.benchmarks.duplicates` on 10,262 cells of four optics and 4,000 simulated recaptures",
)
"""For bundles without thresholds of their own. They do not depend on the networks."""


def ruling(found: Alignment, thresholds: Thresholds) -> Verdict:
    """The verdict on two cells that lie on each other like this."""
    if found.score < thresholds.possible_from:
        return Verdict.DIFFERENT
    if found.middles > thresholds.farthest:
        # one field, cut out twice: two neighbours, unless both cuts are centred on the same nucleus, which is for a person to see
        same_nucleus = float(np.hypot(*found.shift)) <= thresholds.farthest / 2
        return Verdict.POSSIBLE if same_nucleus else Verdict.DIFFERENT
    return Verdict.DUPLICATE if found.score >= thresholds.duplicate_from else Verdict.POSSIBLE


def without_frame(pixels: U8, cell: CellImage) -> CellImage:
    """The cell prepared without the black frame that software leaves where it shifted or turned an image; `cell` where it has none.

    pixels : uint8[h, w, 3], the decoded image that `cell` was prepared from. Only for comparing: black edges would move the
    centre and the correlation, and they are no part of the cell.
    """
    turned = pixels.swapaxes(0, 1)
    sides = [_frame(pixels), _frame(pixels[::-1]), _frame(turned), _frame(turned[::-1])]
    if not any(sides):
        return cell
    top, bottom, left, right = sides
    height, width = pixels.shape[:2]
    return prepare_pixels(np.ascontiguousarray(pixels[top : height - bottom, left : width - right]))


def _frame(pixels: U8) -> int:
    """How many first rows of uint8[h, w, 3] are dark in part, and two more for what compression smeared; 0 where the first is not."""
    most = min(_FRAME_MOST, len(pixels) // 8)
    framed = 0
    while framed < most and (pixels[framed].max(axis=1) <= _DARK).mean() >= _FRAME_SHARE:
        framed += 1
    return framed + 2 if framed else 0


class Judge:
    """Compares cells by their kept bytes; called with the digests of two, it gives their resemblance.

    Remembers the views of the cells it has seen, so that a cell with several candidates is decoded once. For one thread.
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
        """How alike what `shown` shows and the cell with the digest `other` are; None where its kept bytes cannot be used."""
        try:
            seen = self._view(other)
        except LabrefError:
            return None
        found = align(shown, seen)
        return Resemblance(round(found.score, 4), ruling(found, self.thresholds))

    def _read(self, digest: str) -> View:
        pixels = decode(self._lab.read_image(digest))
        return view(without_frame(pixels, prepare_pixels(pixels)))


def repeated(store: Store, judge: Judge, cell: CellImage) -> list[str]:
    """The stored cells that a cell which is not in the store is a duplicate of: most alike first, then oldest.

    cell : prepared, without a frame.
    """
    shown, found = view(cell), []
    matches = store.fingerprint_matches(shifted_fingerprints(cell.crop), judge.thresholds.candidate_bits)
    cells = store.cells([match.cell_id for match in matches])
    for age, match in enumerate(matches):
        resemblance = judge.compare(shown, cells[match.cell_id].digest) if match.cell_id in cells else None
        if resemblance is not None and resemblance.verdict is Verdict.DUPLICATE:
            found.append((-resemblance.score, age, match.cell_id))
    return [cell_id for _, _, cell_id in sorted(found)]


def catch_up(lab: Lab, store: Store, thresholds: Thresholds) -> Iterator[tuple[int, int, str]]:
    """Give a fingerprint to every cell that has none of the present kind, from its kept bytes, and compare it with the others.

    Cells are taken in the order they came, some at a time, each part in one transaction; what people decided stays. Links that the
    thesis' rule made and registration does not confirm are taken out. Yields (done, total, text) after each part; who stops listening
    ends it, and the next call goes on from there.
    """
    judge = Judge(lab, thresholds)
    missing = store.duplicates.without_fingerprint(VERSION)
    for start in range(0, len(missing), _AT_ONCE):
        ids = missing[start : start + _AT_ONCE]
        cells = store.cells(ids)
        learnt = [Learnt(cell_id, _fingerprints(lab, cells[cell_id].digest)) for cell_id in ids if cell_id in cells]
        failpoint("fingerprint.commit")
        store.learn_fingerprints(learnt, judge=judge, candidate_bits=thresholds.candidate_bits)
        yield start + len(ids), len(missing), "cells compared with all others"


def _fingerprints(lab: Lab, digest: str) -> tuple[Fingerprint, ...]:
    try:
        pixels = decode(lab.read_image(digest))
    except LabrefError:
        return ()
    return shifted_fingerprints(without_frame(pixels, prepare_pixels(pixels)).crop)
