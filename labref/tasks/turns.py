"""Who works next while the bundle is changed: new cells go first; what the change needs gets its share."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["SHARE", "Turns"]

SHARE: Final = 2
"""While the bundle is changed, so many cells are embedded again for each new one, and so much more time goes to the
change than to new cells, where those come as fast as they are taken in."""
_AT_ONCE: Final = 32  # so many may be owed before new cells wait
_LONGEST_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.25


class Turns:
    """The turns of new cells, and of what a change of bundle does. Methods may be called from any thread.

    A change has to end however fast files come. It is background work of low priority, and each new cell is one more
    that the other bundle has to embed: without a share of its own it would never be done. New cells wait only where
    they come faster than a third of what this computer embeds, and never long at a time: other programs may take the
    time that background work has.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._changing = self._embedding = 0
        self._owed = 0
        self._ended = self._took = 0.0  # of the last new cells, in seconds

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """The bundle is changed for as long as the block lasts."""
        with self._changed:
            self._changing += 1
        try:
            yield
        finally:
            with self._changed:
                self._changing -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def embedding_again(self) -> Iterator[None]:
        """Cells are embedded again for as long as the block lasts: now they count, and not the time."""
        with self._changed:
            self._embedding += 1
        try:
            yield
        finally:
            with self._changed:
                self._embedding -= 1
                if not self._embedding:
                    self._owed = 0
                self._changed.notify_all()

    def embedded_again(self, cells: int) -> None:
        """So many cells were embedded again."""
        with self._changed:
            self._owed = max(0, self._owed - cells)
            self._changed.notify_all()

    @contextlib.contextmanager
    def new(self, cells: int, *, stopped: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """So many new cells go through the networks in the block, once it is their turn: at once where no bundle is
        changed or that had its share, after 20 seconds at the latest. stopped : once it says True, nobody waits."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        with self._changed:
            while self._must_wait() and not stopped() and time.monotonic() < deadline:
                self._changed.wait(_LOOK_SECONDS)
            if self._embedding:
                self._owed = min(self._owed, _AT_ONCE) + SHARE * cells
        began = time.monotonic()
        try:
            yield
        finally:
            with self._changed:
                self._ended = time.monotonic()
                self._took = self._ended - began

    def _must_wait(self) -> bool:
        if self._embedding:
            return self._owed > _AT_ONCE
        return self._changing > 0 and time.monotonic() - self._ended < SHARE * self._took
