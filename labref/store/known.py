"""What the store keeps in memory, so that looking a file up costs microseconds: the ids and hashes of all cells.

8 bytes a cell for the ids and 16 for the hashes: 24 MB for a million cells.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from labref.fingerprint import hamming
from labref.store.values import HashMatch

__all__ = ["HashBook", "IdSet", "id_to_int", "int_to_id"]

_MERGE_AT = 8192


def id_to_int(cell_id: str) -> int:
    """The 16 hexadecimal characters of a cell id as an unsigned 64-bit integer; their orders are the same."""
    return int(cell_id, 16)


def int_to_id(number: int) -> str:
    """The cell id that `id_to_int` was given."""
    return f"{number:016x}"


class IdSet:
    """A set of unsigned 64-bit integers that only grows: a sorted array and a few newcomers.

    One thread may add while others look up.
    """

    def __init__(self, numbers: NDArray[np.uint64]) -> None:
        """numbers : uint64[n], in any order."""
        self._state: tuple[NDArray[np.uint64], set[int]] = (np.sort(numbers), set())

    def __contains__(self, number: int) -> bool:
        settled, recent = self._state  # both from one moment, even while `add` merges them
        if number in recent:
            return True
        at = int(np.searchsorted(settled, np.uint64(number)))
        return at < len(settled) and int(settled[at]) == number

    def __len__(self) -> int:
        settled, recent = self._state
        return len(settled) + len(recent)

    def add(self, numbers: Iterable[int]) -> None:
        """Add numbers that are not in the set yet."""
        settled, recent = self._state
        recent.update(numbers)
        if len(recent) >= _MERGE_AT:
            merged = np.concatenate([settled, np.fromiter(recent, np.uint64, len(recent))])
            merged.sort()
            self._state = (merged, set())


class _Column:
    """Hashes and ids of the cells of one class, in the order they came; grows by half when it is full."""

    def __init__(self) -> None:
        self.hashes: NDArray[np.uint64] = np.empty(64, np.uint64)
        self.ids: NDArray[np.uint64] = np.empty(64, np.uint64)
        self.n = 0

    def extend(self, hashes: NDArray[np.uint64], ids: NDArray[np.uint64]) -> None:
        end = self.n + len(ids)
        if end > len(self.ids):
            capacity = max(end, len(self.ids) * 3 // 2)
            self.hashes = np.concatenate([self.hashes[: self.n], np.empty(capacity - self.n, np.uint64)])
            self.ids = np.concatenate([self.ids[: self.n], np.empty(capacity - self.n, np.uint64)])
        self.hashes[self.n : end] = hashes
        self.ids[self.n : end] = ids
        self.n = end

    def without(self, number: int) -> _Column:
        keep = self.ids[: self.n] != np.uint64(number)
        column = _Column()
        column.extend(self.hashes[: self.n][keep], self.ids[: self.n][keep])
        return column


class HashBook:
    """Average hashes of all cells by class, for the thesis' duplicate rule.

    One thread may add and move while others look up: what a column shows of its first n cells never changes.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def add(self, label: str, hashes: NDArray[np.uint64], ids: NDArray[np.uint64]) -> None:
        """Add cells of one class: hashes uint64[n] and ids uint64[n]."""
        self._columns.setdefault(label, _Column()).extend(hashes, ids)

    def add_one(self, label: str, average_hash: int, number: int) -> None:
        """Add one cell."""
        self.add(label, np.array([average_hash], np.uint64), np.array([number], np.uint64))

    def move(self, number: int, average_hash: int, *, previous: str, label: str) -> None:
        """A cell changed its class."""
        if previous != label:
            self._columns[previous] = self._columns[previous].without(number)
            self.add_one(label, average_hash, number)

    def nearest(self, label: str, average_hash: int) -> HashMatch | None:
        """The cell of that class with the fewest differing bits, the earliest of equals; None where there is none."""
        bits, column = self._bits(label, average_hash)
        if column is None or len(bits) == 0:
            return None
        at = int(bits.argmin())
        return HashMatch(int_to_id(int(column.ids[at])), int(bits[at]))

    def within(self, label: str, average_hash: int, below: int) -> list[HashMatch]:
        """The cells of that class that differ in fewer than `below` bits: fewest first, equal ones earliest first."""
        bits, column = self._bits(label, average_hash)
        if column is None:
            return []
        close = np.flatnonzero(bits < below)
        close = close[np.argsort(bits[close], kind="stable")]
        return [HashMatch(int_to_id(int(column.ids[at])), int(bits[at])) for at in close]

    def _bits(self, label: str, average_hash: int) -> tuple[NDArray[np.uint8], _Column | None]:
        column = self._columns.get(label)
        if column is None:
            return np.empty(0, np.uint8), None
        return hamming(average_hash, column.hashes[: column.n]), column
