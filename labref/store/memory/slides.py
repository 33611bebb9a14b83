"""Which cells each slide has, in memory: 28 bytes a cell, so 28 MB for a million."""

from __future__ import annotations

from array import array
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from labref.store.memory.books import CellBook

__all__ = ["Slide", "SlideBook"]

_NONE: Final = ""  # a cell without a slide; a real name is never empty


@dataclass(frozen=True, slots=True)
class Slide:
    """A slide. cells : how many of its cells are stored.  last : number of the cell that came last, and its id."""

    name: str
    cells: int
    last: int
    last_cell: int


@dataclass(slots=True)
class _Cells:
    """The cells of one slide in the order they came."""

    ids: array[int] = field(default_factory=lambda: array("Q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))


class SlideBook:
    """The cells of each slide, in the order they came. Cells without a slide are not among them.

    One thread may add and move while others look up.
    """

    def __init__(
        self,
        ids: NDArray[np.uint64],
        numbers: NDArray[np.int64],
        codes: NDArray[np.uint32],
        names: Sequence[str | None],
    ) -> None:
        """ids : uint64[n].  numbers : int64[n], in which order the cells came.  codes : uint32[n], the index in `names`
        of each cell's slide."""
        self._of: CellBook[str] = CellBook(ids, codes, [name or _NONE for name in names])
        self._slides: dict[str, _Cells] = {}
        self._newest: list[Slide] | None = None
        self._kin: tuple[Sequence[Slide], dict[str, list[str]]] | None = None
        order = np.lexsort((numbers, codes))
        ids, numbers, codes = ids[order], numbers[order], codes[order]
        starts = np.searchsorted(codes, np.arange(len(names) + 1))
        for code, name in enumerate(names):
            part = slice(starts[code], starts[code + 1])
            if name:
                cells = self._slides[name] = _Cells()
                cells.ids.frombytes(ids[part].astype("=u8").tobytes())
                cells.numbers.frombytes(numbers[part].astype("=i8").tobytes())

    def __len__(self) -> int:
        return len(self._slides)

    def newest(self) -> Sequence[Slide]:
        """All slides; first the one whose last cell came last. Microseconds where nothing came since it was asked."""
        found = self._newest
        if found is None:
            found = [
                Slide(name, len(cells.ids), cells.numbers[-1], cells.ids[-1])
                for name, cells in list(self._slides.items())
                if cells.ids
            ]
            found.sort(key=lambda slide: -slide.last)
            self._newest = found
        return found

    def kin(self, slide: str) -> list[str]:
        """The other slides whose names begin with the same folder, where one of them lies in it; as `newest` orders
        them."""
        newest = self.newest()
        kept = self._kin
        if kept is None or kept[0] is not newest:
            of: dict[str, list[str]] = {}
            for one in newest:
                of.setdefault(one.name.partition("/")[0], []).append(one.name)
            kept = self._kin = newest, {folder: names for folder, names in of.items() if len(names) > 1}
        names = kept[1].get(slide.partition("/")[0], [])
        # two slides without a folder have no name in common
        return [name for name in names if name != slide] if any("/" in name for name in names) else []

    def cells(self, slide: str) -> list[int]:
        """The cells of a slide, in the order they came; empty where there is none of that name."""
        cells = self._slides.get(slide)
        return [] if cells is None else cells.ids.tolist()

    def ids(self, slide: str) -> NDArray[np.uint64]:
        """The same as uint64[n]."""
        return np.array(self.cells(slide), np.uint64)

    def span(self, slide: str) -> tuple[int, int]:
        """The numbers of the slide's cells that came first and last; 0 and 0 where there is no such slide."""
        cells = self._slides.get(slide)
        return (0, 0) if cells is None or not cells.numbers else (cells.numbers[0], cells.numbers[-1])

    def last(self, slide: str) -> int:
        """The number of the slide's cell that came last; 0 where there is no such slide."""
        cells = self._slides.get(slide)
        return cells.numbers[-1] if cells is not None and cells.numbers else 0

    def slide(self, number: int) -> str | None:
        """The slide of a cell, by its id; None where it has none, or is unknown."""
        return self._of.get(number) or None

    def add(self, number: int, slide: str | None, came: int) -> None:
        """A new cell. came : its number in the order of all cells, larger than those before."""
        self._of.add(number, slide or _NONE)
        self._put(number, slide, came)
        self._newest = None

    def move(self, number: int, slide: str | None) -> None:
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
        self._of.change(number, slide or _NONE)
        self._put(number, slide, came)
        self._newest = None

    def _put(self, number: int, slide: str | None, came: int) -> None:
        if slide:
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
