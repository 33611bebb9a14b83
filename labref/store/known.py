"""What the store keeps in memory, so that looking a file up costs microseconds: ids, labels and hashes of all cells.

12 bytes a cell for id and label and 16 for the hashes: 28 MB for a million cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labref.fingerprint import hamming
from labref.store.values import HashMatch

__all__ = ["HashBook", "LabelBook", "id_to_int", "int_to_id"]

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
