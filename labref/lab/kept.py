"""Values that are kept in memory for whoever asks next, up to a total weight."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Kept"]

_Value = TypeVar("_Value")


class Kept(Generic[_Value]):
    """Values by key, those used last, up to a total weight; each is made once, by whoever asks first. Methods may be
    called from any thread."""

    def __init__(self, most: int) -> None:
        """most : the total weight."""
        self._most, self._weight = most, 0
        self._values: OrderedDict[Hashable, tuple[_Value, int]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> _Value | None:
        """The value; None where it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: _Value, weight: int = 1) -> None:
        """Keep a value. The last one is kept even where it weighs too much alone."""
        with self._lock:
            self._weight -= self._values.pop(key, (value, 0))[1]
            self._values[key] = value, weight
            self._weight += weight
            while self._weight > self._most and len(self._values) > 1:
                self._weight -= self._values.popitem(last=False)[1][1]

    def making(self, key: Hashable) -> threading.Lock:
        """The lock that whoever makes this value holds."""
        with self._lock:
            if len(self._making) > 1000:
                self._making = {key: lock for key, lock in self._making.items() if lock.locked()}
            return self._making.setdefault(key, threading.Lock())
