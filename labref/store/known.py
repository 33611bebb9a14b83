"""What the store keeps in memory, so that looking a file up costs microseconds: ids, labels and hashes of all cells.

12 bytes a cell for id and label and 20 for the hashes: 32 MB for a million cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from labref.fingerprint import hamming
from labref.store.values import HashMatch

__all__ = ["HashBook", "HashChanges", "LabelBook", "id_to_int", "int_to_id"]

_MERGE_AT = 8192


def id_to_int(cell_id: str) -> int:
    """The 16 hexadecimal characters of a cell id as an unsigned 64-bit integer; their orders are the same."""
    return int(cell_id, 16)


def int_to_id(number: int) -> str:
    """The cell id that `id_to_int` was given."""
    return f"{number:016x}"


class LabelBook:
    """The label of every cell by its id: a sorted array, and a few newcomers beside it.

    One thread may add and change while others look up.
    """

    def __init__(self, ids: NDArray[np.uint64], labels: Sequence[str]) -> None:
        """ids : uint64[n], each once, in any order. labels : n."""
        self._names: list[str] = []
        self._codes: dict[str, int] = {}
        codes = np.fromiter(map(self._code, labels), np.uint32, len(labels))
        order = np.argsort(ids)
        self._state: tuple[NDArray[np.uint64], NDArray[np.uint32], dict[int, int]] = (ids[order], codes[order], {})

    def __contains__(self, number: int) -> bool:
        return self.get(number) is not None

    def __len__(self) -> int:
        ids, _, recent = self._state
        return len(ids) + len(recent)

    def get(self, number: int) -> str | None:
        """Label of a cell, or None for an unknown id. Microseconds."""
        ids, codes, recent = self._state  # all from one moment, even while `add` merges them
        code = recent.get(number)
        if code is None:
            at = int(np.searchsorted(ids, np.uint64(number)))
            if at == len(ids) or int(ids[at]) != number:
                return None
            code = int(codes[at])
        return self._names[code]

    def add(self, number: int, label: str) -> None:
        """Add a cell that is not there yet."""
        ids, codes, recent = self._state
        recent[number] = self._code(label)
        if len(recent) >= _MERGE_AT:
            merged = np.concatenate([ids, np.fromiter(recent.keys(), np.uint64, len(recent))])
            merged_codes = np.concatenate([codes, np.fromiter(recent.values(), np.uint32, len(recent))])
            order = np.argsort(merged)
            self._state = (merged[order], merged_codes[order], {})

    def change(self, number: int, label: str) -> None:
        """Give a cell another label."""
        ids, codes, recent = self._state
        if number in recent:
            recent[number] = self._code(label)
        else:
            codes[np.searchsorted(ids, np.uint64(number))] = self._code(label)

    def _code(self, label: str) -> int:
        code = self._codes.get(label)
        if code is None:
            code = len(self._names)
            self._names.append(label)
            self._codes[label] = code
        return code


class _Column:
    """Hashes, ids and ages of the cells of one class; grows by half when it is full. Its first n never change."""

    def __init__(self) -> None:
        self._arrays = (np.empty(64, np.uint64), np.empty(64, np.uint64), np.empty(64, np.uint32))
        self.n = 0

    @property
    def filled(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]:
        n = self.n  # before the arrays: those only ever get longer
        hashes, ids, ages = self._arrays
        return hashes[:n], ids[:n], ages[:n]

    def extend(self, hashes: NDArray[np.uint64], ids: NDArray[np.uint64], ages: NDArray[np.uint32]) -> None:
        end = self.n + len(ids)
        if end > len(self._arrays[0]):
            more = max(end, len(self._arrays[0]) * 3 // 2) - self.n
            self._arrays = (
                np.concatenate([self.filled[0], np.empty(more, np.uint64)]),
                np.concatenate([self.filled[1], np.empty(more, np.uint64)]),
                np.concatenate([self.filled[2], np.empty(more, np.uint32)]),
            )
        self._arrays[0][self.n : end] = hashes
        self._arrays[1][self.n : end] = ids
        self._arrays[2][self.n : end] = ages
        self.n = end


class HashBook:
    """Average hashes of all cells by class, for the thesis' duplicate rule. Age: how many cells came before.

    One thread may add and move while others look up.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return sum(column.n for column in self._columns.values())

    def add(self, label: str, hashes: NDArray[np.uint64], ids: NDArray[np.uint64], ages: NDArray[np.uint32]) -> None:
        """Add cells of one class: hashes uint64[n], ids uint64[n], ages uint32[n]."""
        self._columns.setdefault(label, _Column()).extend(hashes, ids, ages)

    def columns(self) -> Iterator[tuple[str, tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]]]:
        """Hashes, ids and ages by class, as `add` takes them."""
        return ((label, column.filled) for label, column in self._columns.items())

    def take(self, number: int, label: str) -> None:
        """Take a cell out of its class."""
        hashes, ids, ages = self._columns[label].filled
        (at,) = np.flatnonzero(ids == np.uint64(number))
        rest = _Column()  # a new one: readers of the old are not disturbed
        rest.extend(np.delete(hashes, at), np.delete(ids, at), np.delete(ages, at))
        self._columns[label] = rest

    def within(self, label: str, average_hash: int, below: int) -> list[tuple[int, int, int]]:
        """Cells of that class that differ in fewer than `below` bits, as (bits, age, id): fewest first, then oldest."""
        column = self._columns.get(label)
        if column is None:
            return []
        hashes, ids, ages = column.filled
        bits = hamming(average_hash, hashes)
        close = np.flatnonzero(bits < below)
        return sorted(zip(bits[close].tolist(), ages[close].tolist(), ids[close].tolist(), strict=True))


class HashChanges:
    """What a batch will change in a book, seen as if it were done, and done by `apply` once it is committed."""

    def __init__(self, book: HashBook) -> None:
        self._book = book
        self._size = len(book)
        self._pending = HashBook()
        self._ages: dict[int, int] = {}  # of the cells in pending
        self._moved: dict[int, str] = {}  # cells of the book that have another class now, and the one they had

    def add(self, number: int, label: str, average_hash: int) -> None:
        """A new cell."""
        self._put(number, label, average_hash, self._size + len(self._ages) - len(self._moved))

    def move(self, number: int, average_hash: int, *, previous: str, label: str) -> None:
        """A cell has another class."""
        if number in self._ages:
            self._pending.take(number, previous)
            self._put(number, label, average_hash, self._ages[number])
        elif previous != label:
            (age,) = (age for _, age, other in self._book.within(previous, average_hash, 1) if other == number)
            self._moved[number] = previous
            self._put(number, label, average_hash, age)

    def closest(self, label: str, average_hash: int, below: int) -> HashMatch | None:
        """The cell of that class with the fewest differing bits, the oldest of equals; None where all differ in `below`."""
        settled = self._book.within(label, average_hash, below)
        found = [match for match in settled if match[2] not in self._moved]
        found += self._pending.within(label, average_hash, below)
        if not found:
            return None
        bits, _, number = min(found)
        return HashMatch(int_to_id(number), bits)

    def apply(self) -> None:
        """Change the book."""
        for number, previous in self._moved.items():
            self._book.take(number, previous)
        for label, column in self._pending.columns():
            self._book.add(label, *column)

    def _put(self, number: int, label: str, average_hash: int, age: int) -> None:
        self._ages[number] = age
        self._pending.add(
            label, np.array([average_hash], np.uint64), np.array([number], np.uint64), np.array([age], np.uint32)
        )
