"""When long work says how far it is."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

__all__ = ["Pace", "Steps", "rows_of"]

_T = TypeVar("_T")

Steps = Generator[tuple[int, int, str], None, _T]
"""Work that says how much is done, of how much, and what; it returns what came of it."""


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


def rows_of(steps: Steps[_T]) -> Generator[dict[str, Any], None, _T]:
    """The steps as rows of progress, as `labref.operations` has them; returns what they return."""
    try:
        while True:
            done, total, text = next(steps)
            yield {"progress": {"done": done, "total": total, "text": text}}
    except StopIteration as ended:
        value: _T = ended.value
        return value
    finally:
        steps.close()
