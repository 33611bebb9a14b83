"""How often one person may ask about a picture: each costs a processor, and the analyser's cells come first."""

from __future__ import annotations

import threading
import time
from typing import Final

__all__ = ["Rate"]

_MOST_NAMES: Final = 1000


class Rate:
    """Lets everybody do something `burst` times at once, and `per_second` times a second in the long run (a token
    bucket). Methods may be called from any thread."""

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst, self._per_second = burst, per_second
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wait_seconds(self, name: str) -> float:
        """Take one of the times of this person: 0 where there was one, else how long until there is."""
        now = time.monotonic()
        with self._lock:
            if len(self._left) >= _MOST_NAMES:
                self._left.clear()
            left, at = self._left.get(name, (float(self._burst), now))
            left = min(float(self._burst), left + (now - at) * self._per_second)
            allowed = left >= 1.0
            self._left[name] = (left - 1.0 if allowed else left, now)
            return 0.0 if allowed else (1.0 - left) / self._per_second
