"""Waiting for files to stand still: a file still being written is looked at again and again, and read once it has
settled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from labref.config import WatchConfig
from labref.export.scan import GONE, Candidate, look

__all__ = ["Settling"]

_CLOCK_AHEAD: Final = -2.0  # seconds; a smaller age means that the file's clock runs ahead of ours, and is not used


@dataclass
class _Waiting:
    candidate: Candidate
    since: float  # monotonic seconds at which the file was first seen as it is now
    first: float  # monotonic seconds at which it was first seen
    hold_until: float = 0.0


@dataclass
class _TakenBack:
    """A file that had settled and was no use when it was read. Monotonic seconds: when that was for the first time of
    several in a row, and for the last."""

    first: float
    last: float


class Settling:
    """The files that are not yet settled. For one thread.

    A file is settled at once where it was last touched `stable_seconds` ago or longer, by its mtime and its ctime both
    (a copy tool keeps the mtime of the original). Else it is looked at until size and times were the same for
    `stable_seconds`.
    clock : monotonic seconds.
    """

    def __init__(self, watch: WatchConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._watch = watch
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self._taken_back: dict[str, _TakenBack] = {}
        self.vanished = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, path: str) -> bool:
        return path in self._waiting

    def add(self, candidate: Candidate, *, observe: bool = False) -> bool:
        """Take in a file seen now; True where it is settled at once and not kept here.

        observe : do not trust its age (it appeared while the agent was looking, or changed while being read).
        """
        if candidate.signature is None:
            self._waiting.pop(candidate.path, None)
            return True
        known = self._waiting.get(candidate.path)
        if known is not None:
            self._see(known, candidate)
            return False
        age = candidate.signature.age_seconds()
        if not observe and (age >= self._watch.stable_seconds or self._watch.stable_seconds == 0):
            return True
        now = self._clock()
        # what its age already proves need not be waited for again
        proven = max(0.0, age) if not observe and age > _CLOCK_AHEAD else 0.0
        self._waiting[candidate.path] = _Waiting(candidate, now - min(proven, self._watch.stable_seconds), now)
        return False

    def changed(self, candidate: Candidate) -> Candidate | None:
        """Take back a settled file, seen now, that changed while it was read; returned where it does not settle: it is
        gone, no file any more, or was taken back again and again for longer than `settle_limit_seconds`.

        The last happens where a file has another size than its bytes, as in /proc and on some mounted clouds.
        """
        if candidate.signature is None:
            return candidate
        first = self._back(candidate.path)
        if self._clock() - first > self._watch.settle_limit_seconds:
            del self._taken_back[candidate.path]
            return self._given_up(candidate)
        self.add(candidate, observe=True)
        self._waiting[candidate.path].first = first
        return None

    def unfinished(self, candidate: Candidate) -> bool:
        """Take back a settled file that is no usable image; False where it stood still for `complete_seconds` already,
        or was taken back again and again for longer than `settle_limit_seconds`.

        A copy that stalls, of a file made in its full size before, is such a file too (`labref.cells.completeness`).
        """
        if candidate.signature is None:
            return False
        age = candidate.signature.age_seconds()
        left = self._watch.complete_seconds - max(age, 0.0)
        if left <= 0 or age < _CLOCK_AHEAD:
            return False
        now, first = self._clock(), self._back(candidate.path)
        if now - first > self._watch.settle_limit_seconds:
            del self._taken_back[candidate.path]
            return False
        self._waiting[candidate.path] = _Waiting(candidate, now, first, hold_until=now + left)
        return True

    def _back(self, path: str) -> float:
        """When a file that is taken back was taken back for the first time."""
        now = self._clock()
        # it settles, waits and is read between two times
        most = self._watch.settle_limit_seconds + self._watch.stable_seconds + self._watch.complete_seconds
        for old in [old for old, back in self._taken_back.items() if now - back.last > most]:
            del self._taken_back[old]
        back = self._taken_back.setdefault(path, _TakenBack(now, now))
        back.last = now
        return back.first

    def _given_up(self, candidate: Candidate) -> Candidate:
        limit = f"{self._watch.settle_limit_seconds:g}"
        reason = f"still being written after {limit} s; it is tried again at the next scan"
        return replace(candidate, signature=None, refusal=reason)

    def gone(self, candidate: Candidate) -> Candidate:
        """Count a file that was deleted before it was read; returns it without signature, with that reason."""
        self.vanished += 1
        return replace(candidate, signature=None, refusal=GONE)

    def settled(self) -> Iterator[Candidate]:
        """Look at every waiting file. Returns those that have settled; they are no longer kept here.

        A file that is gone, or that has been changing for longer than `settle_limit_seconds`, is returned as a
        candidate without signature.
        """
        for path, waiting in list(self._waiting.items()):
            now = self._clock()
            seen = look(path, waiting.candidate.root)
            if seen is None:
                del self._waiting[path]
                yield self.gone(waiting.candidate)
                continue
            if seen.signature is None:
                del self._waiting[path]
                yield seen
                continue
            self._see(waiting, seen)
            if now >= waiting.hold_until and now - waiting.since >= self._watch.stable_seconds:
                del self._waiting[path]
                yield waiting.candidate
            elif now - waiting.first > self._watch.settle_limit_seconds:
                del self._waiting[path]
                yield self._given_up(seen)

    def _see(self, waiting: _Waiting, seen: Candidate) -> None:
        if seen.signature != waiting.candidate.signature:
            waiting.since = self._clock()
            waiting.hold_until = 0.0
            waiting.candidate = seen
