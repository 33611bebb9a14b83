"""Ids, labels, fingerprints and groups of all cells, in memory, so that a look-up takes microseconds.

Memory: 16 to 20 bytes a cell for its id and label, and 28 for its fingerprint, so 48 MB for a million cells. A
duplicate takes 32 bytes more, and a landmark 28. Only the latest landmarks are read when the store is opened (11 MB);
those of all cells stored while it is open are added.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from labref.words import BITS, Fingerprint, hamming

__all__ = [
    "MOST_LANDMARKS",
    "CellBook",
    "GroupBook",
    "HashBook",
    "HashChanges",
    "first_of_each",
    "id_to_int",
    "int_to_id",
]

MOST_LANDMARKS = 400_000
"""Number of landmarks that are searched: the latest ones, of at least 200,000 cells. The pictures of one field are
written within minutes of each other, so older landmarks would only cost time."""

_Value = TypeVar("_Value", bound=Hashable)
_MERGE_AT = 8192
_LOOKED_UP = 8192  # ids that are looked up at once: more do not stay in the processor's cache
_BLOCK = 1 << 15  # hashes compared at once: intermediate results stay in the processor's cache
# the most bits in which fingerprints searched in one pass differ; with more, the first filter passes too many cells
_TOGETHER = 14
_ALL = Fingerprint(2**BITS - 1, 2**BITS - 1)


def id_to_int(cell_id: str) -> int:
    """The 16 hexadecimal characters of a cell id as an unsigned 64-bit integer. The order of ids stays the same."""
    return int(cell_id, 16)


def int_to_id(number: int) -> str:
    """The cell id of an integer: the inverse of `id_to_int`."""
    return f"{number:016x}"


def first_of_each(groups: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which are the first with their value: bool[n]. groups : uint64[n]."""
    chosen = np.zeros(len(groups), np.bool_)
    chosen[np.unique(groups, return_index=True)[1]] = True
    return chosen


class _Sorted:
    """Ids in their order, and where those with the same leading bits begin.

    An id is the beginning of a digest, so ids lie evenly, and few have the same leading bits: many are found in less
    than half the time of a binary search among all. Where they do not lie evenly, it is one among all.
    """

    def __init__(self, ids: NDArray[np.uint64]) -> None:
        """ids : uint64[n], ascending."""
        self.ids = ids
        bits = max(1, len(ids).bit_length())
        self._shift = np.uint64(64 - bits)
        counts = np.bincount((ids >> self._shift).astype(np.intp), minlength=1 << bits)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self._steps = int(counts.max()).bit_length()

    def find(self, wanted: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Of those of some ids that are here: which they are, and where. wanted : uint64[k]."""
        if not len(self.ids):
            return np.empty(0, np.intp), np.empty(0, np.intp)
        if len(wanted) > _LOOKED_UP:
            parts = [self.find(wanted[start : start + _LOOKED_UP]) for start in range(0, len(wanted), _LOOKED_UP)]
            which = [there + number * _LOOKED_UP for number, (there, _) in enumerate(parts)]
            return np.concatenate(which), np.concatenate([at for _, at in parts])
        bucket = (wanted >> self._shift).astype(np.intp)
        low, high, last = self._starts[bucket], self._starts[bucket + 1], len(self.ids) - 1
        for _ in range(self._steps):
            middle = (low + high) >> 1
            later = (self.ids[np.minimum(middle, last)] < wanted) & (low < high)
            low, high = np.where(later, middle + 1, low), np.where(later, high, middle)
        at = np.minimum(low, last)
        there = np.flatnonzero(self.ids[at] == wanted)
        return there, at[there].astype(np.intp)


class CellBook(Generic[_Value]):
    """One value of each cell, such as its label, by the cell's id. It is a sorted array, and a small dictionary of the
    latest cells.

    One thread may add and change while others look up.
    """

    def __init__(self, ids: NDArray[np.uint64], codes: NDArray[np.uint32], values: Sequence[_Value]) -> None:
        """ids : uint64[n], each once, in any order.  codes : uint32[n], the index in `values` of each cell's value."""
        self._values = list(values)
        self._codes = {value: code for code, value in enumerate(values)}
        order = np.argsort(ids)
        self._state: tuple[_Sorted, NDArray[np.uint32], dict[int, int]] = (_Sorted(ids[order]), codes[order], {})
        self._counts = np.bincount(codes, minlength=len(self._values)).tolist()
        self.changes = 0
        """Grows when a cell is added or its value changes."""

    def __contains__(self, number: int) -> bool:
        return self.get(number) is not None

    def __len__(self) -> int:
        settled, _, recent = self._state
        return len(settled.ids) + len(recent)

    def get(self, number: int) -> _Value | None:
        """The value of a cell; None for an unknown id. Takes microseconds."""
        settled, codes, recent = self._state  # one consistent state, even while `add` merges
        code = recent.get(number)
        if code is None:
            ids = settled.ids
            at = int(np.searchsorted(ids, np.uint64(number)))
            if at == len(ids) or int(ids[at]) != number:
                return None
            code = int(codes[at])
        return self._values[code]

    def of(self, numbers: Sequence[int]) -> list[_Value | None]:
        """The values of several cells, each as by `get`. Takes a fraction of a microsecond a cell."""
        settled, codes, recent = self._state  # one consistent state, even while `add` merges
        found = list(map(recent.get, numbers))
        there, at = settled.find(np.array(numbers, np.uint64))
        for place, code in zip(there.tolist(), codes[at].tolist(), strict=True):
            found[place] = code
        return [None if code is None else self._values[code] for code in found]

    def codes_of(self, numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The index in `values` of each cell's value: int64[n], -1 for an unknown id. numbers : uint64[n]. For many
        cells at once: a sixth of a second for a million."""
        settled, codes, recent = self._state  # one consistent state, even while `add` merges
        found = np.full(len(numbers), -1, np.int64)
        there, at = settled.find(numbers)
        found[there] = codes[at]
        latest = list(recent.items())
        if latest:
            newest = np.array([number for number, _ in latest], np.uint64)
            order = np.argsort(newest)
            there, at = _Sorted(newest[order]).find(numbers)
            found[there] = np.array([code for _, code in latest], np.int64)[order][at]
        return found

    def code(self, value: _Value) -> int | None:
        """The index of a value in `values`; None where no cell had it yet."""
        return self._codes.get(value)

    @property
    def values(self) -> Sequence[_Value]:
        """All that a cell carries or carried since the book was made, each once."""
        return self._values

    def counts(self) -> dict[_Value, int]:
        """How many cells have each value; a value that none has is left out. Microseconds."""
        return {value: count for value, count in zip(self._values, list(self._counts), strict=False) if count}

    def between(self, first: int, last: int, most: int) -> list[int]:
        """Cells with ids from `first` to `last`, in order, at most so many. Microseconds."""
        settled, _, recent = self._state
        ids = settled.ids
        start, end = np.searchsorted(ids, np.uint64(first)), np.searchsorted(ids, np.uint64(last), "right")
        return sorted(
            [*ids[start : min(end, start + most)].tolist(), *(number for number in recent if first <= number <= last)]
        )[:most]

    def firsts(self, name_of: Callable[[_Value], str], most: int) -> dict[str, list[int]]:
        """By name, the smallest ids of the cells whose value has it, in order, at most so many of each name. A
        millisecond or two for a million cells."""
        settled, codes, recent = self._state  # one consistent state, even while `add` merges
        ids, latest = settled.ids, list(recent.items())
        names = [name_of(value) for value in list(self._values)]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        number_of = np.array([numbers[name] for name in names], np.uint32)
        found: list[list[int]] = [[] for _ in numbers]
        left = np.bincount(number_of[codes], minlength=len(numbers)) if len(codes) else np.zeros(len(numbers), np.int64)
        for start in range(0, len(ids), _BLOCK):
            of_block = number_of[codes[start : start + _BLOCK]]
            there = np.bincount(of_block, minlength=len(numbers))
            left = left - there
            for number in np.flatnonzero(there).tolist():
                if (room := most - len(found[number])) > 0:
                    found[number] += ids[start + np.flatnonzero(of_block == number)[:room]].tolist()
            if all(len(chosen) >= most or not more for chosen, more in zip(found, left.tolist(), strict=True)):
                break
        for cell, code in latest:
            found[int(number_of[code])].append(cell)
        return {name: sorted(found[number])[:most] for name, number in numbers.items() if found[number]}

    def add(self, number: int, value: _Value) -> None:
        """Add a cell that the book does not hold yet."""
        settled, codes, recent = self._state
        self.changes += 1
        recent[number] = code = self._code(value)
        self._counts[code] += 1
        if len(recent) >= _MERGE_AT:
            merged = np.concatenate([settled.ids, np.fromiter(recent.keys(), np.uint64, len(recent))])
            merged_codes = np.concatenate([codes, np.fromiter(recent.values(), np.uint32, len(recent))])
            order = np.argsort(merged)
            self._state = (_Sorted(merged[order]), merged_codes[order], {})

    def change(self, number: int, value: _Value) -> None:
        """Change the value of a cell; one that the book does not hold is left alone."""
        settled, codes, recent = self._state
        self.changes += 1
        code = self._code(value)
        if number in recent:
            before, recent[number] = recent[number], code
        else:
            ids = settled.ids
            at = int(np.searchsorted(ids, np.uint64(number)))
            if at == len(ids) or int(ids[at]) != number:
                return
            before = int(codes[at])
            codes[at] = code
        self._counts[before] -= 1
        self._counts[code] += 1

    def _code(self, value: _Value) -> int:
        code = self._codes.get(value)
        if code is None:
            code = len(self._values)
            self._counts.append(0)
            self._values.append(value)
            self._codes[value] = code
        return code


class _Groups(NamedTuple):
    """One consistent state for readers: the cells sorted by id, the same cells sorted by group, and the latest cells by
    id and by group."""

    ids: NDArray[np.uint64]
    groups: NDArray[np.uint64]
    sorted_groups: NDArray[np.uint64]
    by_group: NDArray[np.uint64]
    recent: dict[int, int]
    recent_by_group: dict[int, list[int]]


class GroupBook:
    """Which cells are captures of one physical cell. The name of a group is the id of its first capture.

    One thread may add while others look up.
    """

    def __init__(self, ids: NDArray[np.uint64], groups: NDArray[np.uint64]) -> None:
        """ids : uint64[n], cells that repeat another, each once, oldest first.  groups : uint64[n], their groups."""
        self._state = _settled(ids, groups)

    def __len__(self) -> int:
        return len(self._state.ids) + len(self._state.recent)

    def of(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The group of each cell: uint64[n]. ids : uint64[n]. A cell that repeats no other is a group with its own id.
        Takes microseconds."""
        state, found = self._state, ids.copy()
        if len(state.ids):
            at = np.minimum(np.searchsorted(state.ids, ids), len(state.ids) - 1)
            there = state.ids[at] == ids
            found[there] = state.groups[at[there]]
        if state.recent:
            for place, number in enumerate(ids.tolist()):
                if number in state.recent:
                    found[place] = state.recent[number]
        return found

    def firsts(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which cells are the first of their group in `ids`: bool[n]. ids : uint64[n]."""
        if not len(self):
            return np.ones(len(ids), np.bool_)
        return first_of_each(self.of(ids))

    def members(self, group: int) -> list[int]:
        """The captures in a group, oldest first. Takes microseconds."""
        state = self._state
        start, end = (np.searchsorted(state.sorted_groups, np.uint64(group), side) for side in ("left", "right"))
        return [group, *state.by_group[start:end].tolist(), *state.recent_by_group.get(group, ())]

    def add(self, number: int, group: int) -> None:
        """Add a cell that repeats another, and that the book does not hold yet."""
        state = self._state
        state.recent[number] = group
        state.recent_by_group.setdefault(group, []).append(number)
        if len(state.recent) >= _MERGE_AT:
            numbers = np.fromiter(state.recent.keys(), np.uint64, len(state.recent))
            groups = np.fromiter(state.recent.values(), np.uint64, len(state.recent))
            # the cells of one group stay in the order in which they were added
            self._state = _settled(
                np.concatenate([state.by_group, numbers]), np.concatenate([state.sorted_groups, groups])
            )


def _settled(ids: NDArray[np.uint64], groups: NDArray[np.uint64]) -> _Groups:
    by_id, by_group = np.argsort(ids), np.argsort(groups, kind="stable")
    return _Groups(ids[by_id], groups[by_id], groups[by_group], ids[by_group], {}, {})


class HashBook:
    """The fingerprints of cells. A search compares all of them, so it is exact and independent of the cells' classes.
    Each cell has an age, a number that is larger for a later cell.

    One thread may add while others look up.
    """

    def __init__(self, most: int | None = None) -> None:
        """most : number of fingerprints that are searched, those added last; None for all."""
        self._most = most
        self._arrays = (
            np.empty(64, np.uint64),
            np.empty(64, np.uint64),
            np.empty(64, np.uint64),
            np.empty(64, np.uint32),
        )
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def next_age(self) -> int:
        """An age larger than all ages in the book."""
        ages = self._filled()[3]
        return int(ages.max()) + 1 if len(ages) else 0

    def add(
        self,
        across: NDArray[np.uint64],
        down: NDArray[np.uint64],
        ids: NDArray[np.uint64],
        ages: NDArray[np.uint32],
    ) -> None:
        """Add cells: both hashes of their fingerprints uint64[n], ids uint64[n], ages uint32[n]."""
        end = self._n + len(ids)
        if end > len(self._arrays[0]):
            more = max(end, len(self._arrays[0]) * 3 // 2) - self._n
            one, two, three, four = self._filled()
            self._arrays = (
                np.concatenate([one, np.empty(more, np.uint64)]),
                np.concatenate([two, np.empty(more, np.uint64)]),
                np.concatenate([three, np.empty(more, np.uint64)]),
                np.concatenate([four, np.empty(more, np.uint32)]),
            )
        self._arrays[0][self._n : end] = across
        self._arrays[1][self._n : end] = down
        self._arrays[2][self._n : end] = ids
        self._arrays[3][self._n : end] = ages
        self._n = end  # set last, so that readers see only whole rows

    def within(
        self, fingerprints: Sequence[Fingerprint], bits: int, shown: Fingerprint = _ALL, *, latest: int | None = None
    ) -> list[tuple[int, int, int]]:
        """The cells whose fingerprint is close to one of these, as (differing bits, age, id): the fewest bits first,
        then the smallest age.

        bits : the most bits, of 64, in which each of the two hashes may differ; fewer in proportion where `shown` has
        fewer bits.  shown : the bits of each hash that are compared, as ones.  latest : only so many fingerprints are
        searched, those added last. The differing bits returned are those of the hash that differs more, of the
        fingerprint that differs least. Takes some milliseconds for a million cells.
        """
        across, down, ids, ages = self._filled(self._most if latest is None else latest)
        most = [bits * count.bit_count() // BITS for count in shown]
        differ: dict[int, int] = {}
        if not len(ids):
            return []
        for together in _near_one_another(fingerprints, shown):
            first = together[0]
            # a cell close to any of these is not much farther from the first (triangle inequality), so one pass over
            # all cells is enough
            reach = most[0] + max(_differ(first, mark, shown)[0] for mark in together)
            parts = [
                np.flatnonzero(hamming(first.across, across[start : start + _BLOCK], shown.across) <= reach) + start
                for start in range(0, len(ids), _BLOCK)
            ]
            near = np.concatenate(parts) if parts else np.empty(0, np.int64)
            reach = most[1] + max(_differ(first, mark, shown)[1] for mark in together)
            near = near[hamming(first.down, down[near], shown.down) <= reach]
            if not len(near):
                continue
            for mark in together:
                one = hamming(mark.across, across[near], shown.across)
                two = hamming(mark.down, down[near], shown.down)
                close = np.flatnonzero((one <= most[0]) & (two <= most[1]))
                for at, worse in zip(near[close].tolist(), np.maximum(one, two)[close].tolist(), strict=True):
                    differ[at] = min(worse, differ.get(at, BITS))
        return sorted((worse, int(ages[at]), int(ids[at])) for at, worse in differ.items())

    def _filled(
        self, most: int | None = None
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]:
        n = self._n  # read before the arrays: these only grow, and their first n rows never change
        first = 0 if most is None else max(0, n - most)
        across, down, ids, ages = self._arrays
        return across[first:n], down[first:n], ids[first:n], ages[first:n]


def _near_one_another(marks: Sequence[Fingerprint], shown: Fingerprint) -> list[list[Fingerprint]]:
    """The fingerprints in groups that one pass can search: each differs from the first of its group in at most 14
    bits."""
    groups: list[list[Fingerprint]] = []
    for mark in marks:
        for group in groups:
            if max(_differ(group[0], mark, shown)) <= _TOGETHER:
                group.append(mark)
                break
        else:
            groups.append([mark])
    return groups


def _differ(one: Fingerprint, other: Fingerprint, shown: Fingerprint) -> tuple[int, int]:
    """The number of differing bits of the two hashes, among the bits in `shown`."""
    return ((one.across ^ other.across) & shown.across).bit_count(), ((one.down ^ other.down) & shown.down).bit_count()


class HashChanges:
    """The fingerprints that a batch adds to a book. A search finds them as if they were in the book; `apply` puts them
    there once the batch is committed."""

    def __init__(self, book: HashBook) -> None:
        self._book = book
        self._pending = HashBook()
        self._next_age = book.next_age

    def add(self, number: int, fingerprint: Fingerprint, age: int | None = None) -> None:
        """Add a cell. age : of a cell stored earlier; None for a new cell, which gets the next age."""
        if age is None:
            age = self._next_age
            self._next_age += 1
        across, down = fingerprint
        self._pending.add(
            np.array([across], np.uint64),
            np.array([down], np.uint64),
            np.array([number], np.uint64),
            np.array([age], np.uint32),
        )

    def within(
        self, fingerprints: Sequence[Fingerprint], bits: int, shown: Fingerprint = _ALL, *, latest: int | None = None
    ) -> list[tuple[int, int, int]]:
        """As `HashBook.within`, over the book and the fingerprints to be added."""
        pending = self._pending.within(fingerprints, bits, shown, latest=latest)
        before = None if latest is None else max(0, latest - len(self._pending))
        if before == 0:
            return pending
        return sorted(self._book.within(fingerprints, bits, shown, latest=before) + pending)

    def apply(self) -> None:
        """Add the pending fingerprints to the book; none is pending afterwards."""
        self._book.add(*self._pending._filled())
        self._pending = HashBook()
