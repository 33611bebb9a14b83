"""The same cell captured again: found by fingerprint, confirmed by laying the two pictures over each other.

Fingerprints choose the few stored cells that could be the same one, whatever their class; only those are decoded again and
registered (`labref.registration`). Four verdicts, by thresholds that come with the bundle: duplicate, possible duplicate (for a
person to decide), neighbour, different.

An analyser cuts a picture around each cell that it means, so the pictures of two cells that lie close together show the same
field: they agree fully once they are laid over each other, and are two cells all the same. Those are neighbours. They are found by
their landmarks (`labref.landmarks`).
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
from labref.landmarks import Landmark, landmarks
from labref.registration import Alignment, View, align, view
from labref.store import Store
from labref.store.duplicates import Learnt
from labref.store.values import Resemblance

__all__ = ["DEFAULTS", "Judge", "Thresholds", "catch_up", "marks", "repeated", "ruling", "seen", "without_frame"]

_KEPT_VIEWS: Final = 512  # 12 kB each
_AT_ONCE: Final = 32
_DARK: Final = 16  # of 255: darker than any cell in every colour
_FRAME_SHARE: Final = 0.05  # of a row or column that is dark
_FRAME_MOST: Final = 32  # pixels
_ONE_OR_TWO: Final = (28.0, 58.0)  # pixels; two stained places so far apart may lie in one nucleus or in two
_STAINED: Final = 0.6  # of the chosen cell's density; from that on there is a nucleus in the picture's own middle too


@dataclass(frozen=True)
class Thresholds:
    """When two cells are the same.

    candidate_bits : both hashes of their fingerprints differ in at most so many of 64 bits.  duplicate_from, possible_from :
    the correlation after registration that a duplicate, or a possible one, has at least.  same_within : pixels after registration;
    two pictures are of one cell where its centre, or else their own middles, lie so close together. Neighbouring cells lie farther
    apart (45 px and more, platelets 30), and recaptures shift by less (some 12 px).  how : how they were calibrated.
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
        """Those of a bundle's manifest; `DEFAULTS` for a bundle that has none, or the thesis' rule.

        Bundles made for preparation 2 have `farthest` instead of `same_within`: how far the middles of two pictures could lie
        apart before a person was asked. It has no meaning any more.
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
"""For bundles without thresholds of their own. They do not depend on the networks."""


def ruling(found: Alignment, thresholds: Thresholds) -> Verdict:
    """The verdict on two cells whose pictures lie on each other like this.

    The pictures may agree because they show one field; then it counts whether they were taken of one cell. They were where the
    pictures' own middles lie together: the analyser meant the same cell, whatever was found in each. They were not where the
    centres lie apart as well. Where the same centre was found though the middles lie apart, it depends on what stands in the
    middles. With a nucleus in both they are two cells, or, a little nearer, one large nucleus or two that touch: a person decides.
    Without, one picture was cut beside the only cell.
    """
    if found.score < thresholds.possible_from:
        return Verdict.DIFFERENT
    one_cell = Verdict.DUPLICATE if found.score >= thresholds.duplicate_from else Verdict.POSSIBLE
    if found.middles <= thresholds.same_within:
        return one_cell
    if float(np.hypot(*found.shift)) > thresholds.same_within:
        return Verdict.NEIGHBOUR
    near, far = _ONE_OR_TWO
    if found.middles <= near or found.stained < _STAINED:
        return one_cell
    return Verdict.POSSIBLE if found.middles <= far else Verdict.NEIGHBOUR


def without_frame(pixels: U8, cell: CellImage) -> CellImage:
    """The cell prepared without the black frame that software leaves where it shifted or turned an image; `cell` where it has none.

    pixels : uint8[h, w, 3], the decoded image that `cell` was prepared from. Only for comparing: black edges would move the
    centre and the correlation, and they are no part of the cell.
    """
    return _unframed(pixels, cell)[1]


def marks(pixels: U8, cell: CellImage) -> tuple[tuple[Fingerprint, ...], tuple[Landmark, ...]]:
    """What a cell is searched by: its shifted fingerprints, of which the first is its own, and the landmarks of its picture.

    pixels : uint8[h, w, 3], the decoded image that `cell` was prepared from. A black frame is left out.
    """
    return _searched_by(*_unframed(pixels, cell))


def seen(pixels: U8) -> View:
    """What of a decoded image uint8[h, w, 3] is laid over others: its cell, prepared, without a frame."""
    return view(without_frame(pixels, prepare_pixels(pixels)))


def _searched_by(inner: U8, bare: CellImage) -> tuple[tuple[Fingerprint, ...], tuple[Landmark, ...]]:
    return shifted_fingerprints(bare.surroundings), landmarks(inner, bare)


def _unframed(pixels: U8, cell: CellImage) -> tuple[U8, CellImage]:
    turned = pixels.swapaxes(0, 1)
    sides = [_frame(pixels), _frame(pixels[::-1]), _frame(turned), _frame(turned[::-1])]
    if not any(sides):
        return pixels, cell
    top, bottom, left, right = sides
    height, width = pixels.shape[:2]
    inner = np.ascontiguousarray(pixels[top : height - bottom, left : width - right])
    return inner, prepare_pixels(inner)


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
        return seen(decode(self._lab.read_image(digest)))


def repeated(store: Store, judge: Judge, pixels: U8, cell: CellImage) -> list[str]:
    """The stored cells that a cell which is not in the store is a duplicate of: most alike first, then oldest.

    pixels : uint8[h, w, 3], the decoded image that `cell` was prepared from. A black frame is left out.
    """
    inner, bare = _unframed(pixels, cell)
    shown, found = view(bare), []
    fingerprints, places = _searched_by(inner, bare)
    near = store.candidates(fingerprints, judge.thresholds.candidate_bits, places)
    cells = store.cells(near)
    for place, cell_id in enumerate(near):
        resemblance = judge.compare(shown, cells[cell_id].digest) if cell_id in cells else None
        if resemblance is not None and resemblance.verdict is Verdict.DUPLICATE:
            found.append((-resemblance.score, place, cell_id))
    return [cell_id for _, _, cell_id in sorted(found)]


def catch_up(lab: Lab, store: Store, thresholds: Thresholds) -> Iterator[tuple[int, int, str]]:
    """Give a fingerprint to every cell that has none of the present kind, from its kept bytes, and compare it with the others.

    Cells are taken in the order they came, some at a time, each part in one transaction; what people decided stays. Links that an
    earlier version made and that are not found again are taken out. Yields (done, total, text) after each part; who stops
    listening ends it, and the next call goes on from there.
    """
    judge = Judge(lab, thresholds)
    missing = store.duplicates.without_fingerprint(VERSION)
    for start in range(0, len(missing), _AT_ONCE):
        ids = missing[start : start + _AT_ONCE]
        cells = store.cells(ids)
        learnt = [Learnt(cell_id, *_marks_of_kept(lab, cells[cell_id].digest)) for cell_id in ids if cell_id in cells]
        failpoint("fingerprint.commit")
        store.learn_fingerprints(learnt, judge=judge, candidate_bits=thresholds.candidate_bits)
        yield start + len(ids), len(missing), "cells compared with all others"


def _marks_of_kept(lab: Lab, digest: str) -> tuple[tuple[Fingerprint, ...], tuple[Landmark, ...]]:
    try:
        pixels = decode(lab.read_image(digest))
        return marks(pixels, prepare_pixels(pixels))
    except LabrefError:
        return (), ()
