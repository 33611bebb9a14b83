"""How long work says how far it is: the steps of a generator, the rows of an operation, and when another is due."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

__all__ = ["Pace", "Row", "Steps", "progress", "rows_of", "waiting"]

_T = TypeVar("_T")

Row = dict[str, Any]
"""One JSON object of an operation's answer."""

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


def progress(done: int, total: int, text: str) -> Row:
    """A row that says how far an operation is; the asker shows it and does not keep it."""
    return {"progress": {"done": done, "total": total, "text": text}}


def waiting(text: str) -> Row:
    """A row that says what else an operation waits for before it begins; people are told on a line of its own."""
    return {"progress": {"done": 0, "total": 0, "text": text, "waits": True}}


def rows_of(steps: Steps[_T]) -> Generator[Row, None, _T]:
    """The steps as rows of progress, as `labref.operations` has them; returns what they return."""
    try:
        while True:
            done, total, text = next(steps)
            yield progress(done, total, text)
    except StopIteration as ended:
        value: _T = ended.value
        return value
    finally:
        steps.close()
