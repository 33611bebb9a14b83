"""Where the cells come from: slide, analyser and time of each, in memory, 24 bytes a cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.words import SlideId

__all__ = ["NOTHING", "Origins"]

NOTHING: Final = -(2**62)
"""Stands for a moment that is not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Origins:
    """Where cells come from. It never changes.

    ids : uint64[n], sorted.  slides, analysers : int32[n], index in `slide_ids`, `analyser_names`; -1 where a cell
    has none.  seconds : int64[n], when it was captured, seconds since 1970, UTC; `NOTHING` where that is not known.
    last : the largest number of these cells in the store's order.
    """

    ids: NDArray[np.uint64]
    slides: NDArray[np.int32]
    analysers: NDArray[np.int32]
    seconds: NDArray[np.int64]
    slide_ids: tuple[SlideId, ...]
    analyser_names: tuple[str, ...]
    last: int

    @staticmethod
    def none() -> Origins:
        """Of no cells."""
        return Origins(
            np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int64), (), (), 0
        )

    def of(self, ids: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
        """Slides, analysers and seconds of these cells, as the fields have them; a cell that is not known has none.
        ids : uint64[n]."""
        if not len(self.ids):
            nothing = np.full(len(ids), -1, np.int32)
            return nothing, nothing, np.full(len(ids), NOTHING, np.int64)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        known = self.ids[at] == ids
        return (
            np.where(known, self.slides[at], np.int32(-1)),
            np.where(known, self.analysers[at], np.int32(-1)),
            np.where(known, self.seconds[at], np.int64(NOTHING)),
        )

    def joined(
        self,
        ids: NDArray[np.uint64],
        slides: NDArray[np.int32],
        analysers: NDArray[np.int32],
        seconds: NDArray[np.int64],
        slide_ids: tuple[SlideId, ...],
        analyser_names: tuple[str, ...],
        last: int,
    ) -> Origins:
        """These and more cells, in any order; the names begin with those that are there."""
        ids = np.concatenate([self.ids, ids])
        order = np.argsort(ids)
        return Origins(
            ids[order],
            np.concatenate([self.slides, slides])[order],
            np.concatenate([self.analysers, analysers])[order],
            np.concatenate([self.seconds, seconds])[order],
            slide_ids,
            analyser_names,
            last,
        )
