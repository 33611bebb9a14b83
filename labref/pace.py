"""When long work says how far it is."""

from __future__ import annotations

import time

__all__ = ["Pace"]


class Pace:
    """Says when it is time for another row of progress: about once a second."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        """True where a second has gone by since it was last true."""
        now = time.monotonic()
        if now - self._last < 1.0:
            return False
        self._last = now
        return True
