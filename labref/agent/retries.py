"""Pictures that were refused for time or memory and look as they did: the computer may have been short of it just then.

Each is tried again some minutes later and then every hour, for a day; by an agent that starts meanwhile too. One that
was refused by a limit that `labref.toml` has no longer is tried again as well. What is still refused after that is
read again when its file changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from labref.cells.decoding import Limits, is_of_the_moment, names_other_limits

__all__ = ["Retries"]

_FIRST_SECONDS: Final = 600.0
_NEXT_SECONDS: Final = 3600.0
_LAST_SECONDS: Final = 86_400.0


@dataclass
class _Retry:
    due: float
    until: float


class Retries:
    """When which file is tried again. Safe from several threads. clock : seconds since 1970."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._limits, self._clock = limits, clock
        self._files: dict[str, _Retry] = {}

    def recall(self, path: str, reason: str, at: float) -> None:
        """A file that the ledger has as rejected for `reason` since `at`, seconds since 1970."""
        if path in self._files:
            return
        if names_other_limits(reason, self._limits):
            self._files[path] = _Retry(0.0, self._clock() + _LAST_SECONDS)
        elif is_of_the_moment(reason):
            at = min(at, self._clock())  # the clock may have been ahead
            self._files[path] = _Retry(at + _FIRST_SECONDS, at + _LAST_SECONDS)

    def note(self, path: str, reason: str | None) -> None:
        """A file has an outcome, for `reason`."""
        if reason is None or not is_of_the_moment(reason):
            self._files.pop(path, None)
        elif path not in self._files:
            now = self._clock()
            self._files[path] = _Retry(now + _FIRST_SECONDS, now + _LAST_SECONDS)

    def take(self, path: str) -> bool:
        """Whether the file is to be tried again now; it is not again for an hour."""
        retry = self._files.get(path)
        if retry is None:
            return False
        now = self._clock()
        if retry.due > now + _NEXT_SECONDS:  # it was put back
            retry.due, retry.until = now, now + _LAST_SECONDS
        if not retry.due <= now <= retry.until:
            return False
        retry.due = now + _NEXT_SECONDS
        return True
