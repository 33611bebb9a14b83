"""Which cells are, or may be, captures of one physical cell: those that are linked as duplicates, and those that
labref found to be possible ones and that nobody has decided on.

Only cells that are like another are in memory, some 300 bytes each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from labref.store.memory.books import first_of_each

__all__ = ["AlikeBook"]

Pair = tuple[int, int]


class AlikeBook:
    """Groups of cells that are alike, directly or through others. A book never changes: `joined` gives another one."""

    def __init__(self, same: Collection[Pair], possible: Collection[Pair], apart: Collection[Pair]) -> None:
        """same : pairs of cells that are one cell.  possible : pairs that may be.  apart : pairs of which a person said
        that they are two cells. Where such a pair comes together through others, the possible pairs of their group do
        not count: the person knew more.
        """
        self._apart = apart
        self._group: dict[int, int] = {}
        self._members: dict[int, tuple[int, ...]] = {}
        self._join([*same, *possible])
        if contested := self._contested():
            kept = [(one, other) for one, other in possible if self.group(one) not in contested]
            self._group, self._members = {}, {}
            self._join([*same, *kept])

    def __len__(self) -> int:
        return len(self._group)

    def group(self, number: int) -> int:
        """The group of a cell: the id of one of its cells; of a cell that is like no other, its own."""
        return self._group.get(number, number)

    def of(self, ids: NDArray[np.uint64], together: Collection[int] = ()) -> NDArray[np.uint64]:
        """The group of each cell: uint64[n]. ids : uint64[n].  together : ids of cells that are one group here."""
        groups = np.array([self._group.get(number, number) for number in ids.tolist()], np.uint64)
        if together:
            groups[[number in together for number in ids.tolist()]] = min(together)
        return groups

    def firsts(self, ids: NDArray[np.uint64], together: Collection[int] = ()) -> NDArray[np.bool_]:
        """Which cells are the first of their group in `ids`: bool[n]. ids, together : as of `of`."""
        return first_of_each(self.of(ids, together))

    def members(self, number: int) -> tuple[int, ...]:
        """The cells of the group that a cell is in, this one among them, in no order."""
        return self._members.get(self.group(number), (number,))

    def joined(self, pairs: Collection[Pair]) -> AlikeBook | None:
        """The book with these pairs as well; None where that brings a pair together that a person called apart: then it
        has to be made anew."""
        book = AlikeBook((), (), ())
        book._apart = self._apart
        book._group, book._members = dict(self._group), dict(self._members)
        book._join(pairs)
        return None if book._contested() else book

    def _join(self, pairs: Iterable[Pair]) -> None:
        for one, other in pairs:
            into, gone = self.group(one), self.group(other)
            if into == gone:
                continue
            if len(self.members(gone)) > len(self.members(into)):
                into, gone = gone, into
            together = (*self.members(into), *self.members(gone))
            for number in self.members(gone) if into in self._group else together:
                self._group[number] = into
            self._members.pop(gone, None)
            self._members[into] = together

    def _contested(self) -> set[int]:
        return {self.group(one) for one, other in self._apart if self.group(one) == self.group(other)}
