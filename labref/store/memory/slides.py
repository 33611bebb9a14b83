"""Which cells each slide has, in memory: 28 bytes a cell, so 28 MB for a million."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.store.memory.books import CellBook
from labref.words import SlideId

__all__ = ["Slide", "SlideBook"]

_NONE: Final = SlideId("", "")  # a cell without a slide; a real name is never empty


@dataclass(frozen=True, slots=True)
class Slide:
    """A slide. cells : how many of its cells are stored.  last : number of the cell that came last, and its id."""

    id: SlideId
    cells: int
    last: int
    last_cell: int


@dataclass(slots=True)
class _Cells:
    """The cells of one slide in the order they came."""

    ids: array[int] = field(default_factory=lambda: array("Q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))


def _patient(slide: SlideId) -> tuple[str, str]:
    """The watched folder, and the first folder in it that the slide's name has."""
    return slide.folder, slide.name.partition("/")[0]


def _described(slide: SlideId, cells: _Cells) -> Slide:
    return Slide(slide, len(cells.ids), cells.numbers[-1], cells.ids[-1])


class SlideBook:
    """The cells of each slide, in the order they came. Cells without a slide are not among them.

    One thread may add and move while others look up.
    """

    def __init__(
        self,
        ids: NDArray[np.uint64],
        numbers: NDArray[np.int64],
        codes: NDArray[np.uint32],
        slides: Sequence[SlideId | None],
    ) -> None:
        """ids : uint64[n].  numbers : int64[n], in which order the cells came.  codes : uint32[n], the index in
        `slides` of each cell's slide."""
        self._of: CellBook[SlideId] = CellBook(ids, codes, [slide or _NONE for slide in slides])
        self._slides: dict[SlideId, _Cells] = {}
        self._order: dict[SlideId, Slide] | None = None  # as `newest` says it, the other way round
        self._ordering = threading.Lock()
        self._patients: dict[tuple[str, str], set[SlideId]] = {}
        self._named: dict[str, tuple[SlideId, ...]] = {}
        order = np.lexsort((numbers, codes))
        ids, numbers, codes = ids[order], numbers[order], codes[order]
        starts = np.searchsorted(codes, np.arange(len(slides) + 1))
        for code, slide in enumerate(slides):
            part = slice(starts[code], starts[code + 1])
            if slide is not None:
                self._named[slide.name] = (*self._named.get(slide.name, ()), slide)
                self._patients.setdefault(_patient(slide), set()).add(slide)
                cells = self._slides[slide] = _Cells()
                cells.ids.frombytes(ids[part].astype("=u8").tobytes())
                cells.numbers.frombytes(numbers[part].astype("=i8").tobytes())

    def __len__(self) -> int:
        return len(self._slides)

    def newest(self) -> Sequence[Slide]:
        """All slides; first the one whose last cell came last. Microseconds, but where a cell has moved since it was
        asked."""
        with self._ordering:
            if self._order is not None:
                return list(self._order.values())[::-1]
            found = [_described(slide, cells) for slide, cells in list(self._slides.items()) if cells.ids]
            found.sort(key=lambda slide: slide.last)
            self._order = {slide.id: slide for slide in found}
            return found[::-1]

    def named(self, name: str) -> list[SlideId]:
        """The slides of this name; first the one whose last cell came last. Microseconds."""
        return sorted(self._named.get(name, ()), key=lambda slide: -self.last(slide))

    def kin(self, slide: SlideId) -> list[SlideId]:
        """The other slides of its watched folder whose names begin with the same folder, where one of them lies in it;
        as `newest` orders them."""
        there = [
            one for one in self._patients.get(_patient(slide), ()) if one in self._slides and self._slides[one].ids
        ]
        slides = sorted(there, key=lambda one: -self.last(one))
        # two slides without a folder have no name in common
        return [one for one in slides if one != slide] if any("/" in one.name for one in slides) else []

    def cells(self, slide: SlideId) -> list[int]:
        """The cells of a slide, in the order they came; empty where there is no such slide."""
        cells = self._slides.get(slide)
        return [] if cells is None else cells.ids.tolist()

    def ids(self, slide: SlideId) -> NDArray[np.uint64]:
        """The same as uint64[n]."""
        return np.array(self.cells(slide), np.uint64)

    def span(self, slide: SlideId) -> tuple[int, int]:
        """The numbers of the slide's cells that came first and last; 0 and 0 where there is no such slide."""
        cells = self._slides.get(slide)
        return (0, 0) if cells is None or not cells.numbers else (cells.numbers[0], cells.numbers[-1])

    def last(self, slide: SlideId) -> int:
        """The number of the slide's cell that came last; 0 where there is no such slide."""
        cells = self._slides.get(slide)
        return cells.numbers[-1] if cells is not None and cells.numbers else 0

    def slide(self, number: int) -> SlideId | None:
        """The slide of a cell, by its id; None where it has none, or is unknown."""
        found = self._of.get(number)
        return None if found == _NONE else found

    def add(self, number: int, slide: SlideId | None, came: int) -> None:
        """A new cell. came : its number in the order of all cells, larger than those before."""
        self._of.add(number, slide or _NONE)
        self._put(number, slide, came)
        with self._ordering:
            if self._order is not None and slide is not None:
                self._order.pop(slide, None)
                self._order[slide] = _described(slide, self._slides[slide])

    def move(self, number: int, slide: SlideId | None) -> None:
        """A cell is of another slide from now on; one that the book does not hold is left alone."""
        before = self._of.get(number)
        if before is None or before == (slide or _NONE):
            return
        came = 0
        cells = self._slides.get(before)
        if cells is not None:
            at = cells.ids.index(number)
            came = cells.numbers[at]
            left = _Cells(cells.ids[:at] + cells.ids[at + 1 :], cells.numbers[:at] + cells.numbers[at + 1 :])
            if left.ids:
                self._slides[before] = left
            else:
                del self._slides[before]
                self._named[before.name] = tuple(one for one in self._named[before.name] if one != before)
                self._patients[_patient(before)] = self._patients[_patient(before)] - {before}
        self._of.change(number, slide or _NONE)
        self._put(number, slide, came)
        with self._ordering:
            self._order = None

    def _call(self, slide: SlideId) -> None:
        """A slide that there was not."""
        self._named[slide.name] = (*self._named.get(slide.name, ()), slide)
        # others look it up meanwhile: a new set takes the place of the one before
        self._patients[_patient(slide)] = {slide, *self._patients.get(_patient(slide), ())}

    def _put(self, number: int, slide: SlideId | None, came: int) -> None:
        if slide is not None:
            if slide not in self._slides:
                self._call(slide)
            cells = self._slides.get(slide, _Cells())
            at = bisect(cells.numbers, came)
            if at == len(cells.ids):
                cells.numbers.append(came)
                cells.ids.append(number)
                self._slides[slide] = cells
                return
            ids, numbers = cells.ids[:], cells.numbers[:]
            ids.insert(at, number)
            numbers.insert(at, came)
            self._slides[slide] = _Cells(ids, numbers)
