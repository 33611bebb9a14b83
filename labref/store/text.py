"""Any file name in a database that knows only UTF-8, without losing a byte of it.

POSIX names are bytes and Windows names may hold lone surrogates; Python carries both as lone surrogates in `str`,
which DuckDB refuses. No file name can hold a NUL, so a surrogate is kept as NUL and four hexadecimal digits.
"""

from __future__ import annotations

import re

__all__ = ["from_column", "from_nullable", "to_column", "to_nullable"]

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_STORED = re.compile("\0([0-9a-f]{4})")


def to_column(text: str) -> str:
    """The text as DuckDB can keep it; `from_column` gives back exactly what came in."""
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub(lambda found: f"\0{ord(found[0]):04x}", text)


def from_column(stored: str) -> str:
    """The text that `to_column` was given."""
    return _STORED.sub(lambda found: chr(int(found[1], 16)), stored) if "\0" in stored else stored


def to_nullable(text: str | None) -> str | None:
    """`to_column` of a text that may be absent."""
    return None if text is None else to_column(text)


def from_nullable(stored: str | None) -> str | None:
    """`from_column` of a column that may be NULL."""
    return None if stored is None else from_column(stored)
