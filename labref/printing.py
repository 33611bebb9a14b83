"""Text for people: what a terminal would obey instead of showing it is written as its code."""

from __future__ import annotations

import re
from typing import TypeVar

__all__ = ["UNPRINTABLE", "printable"]

_T = TypeVar("_T")

UNPRINTABLE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
"""Control characters of C0 (line breaks, escape codes) and C1, of line and text direction, and invisible tags: a class
of characters, as regular expressions write it."""
_FOUND = re.compile(f"[{UNPRINTABLE}\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(value: _T) -> _T:
    """`value` with each text in it, names in dictionaries too, as a terminal can show it on one line.

    A character of `UNPRINTABLE`, or one that is no UTF-8, becomes its code as Python writes it (`\\n`, `\\x1b`,
    `\\u202e`); all else stays, other values too.
    """
    made: object = value
    if isinstance(value, str):
        made = _FOUND.sub(_code, value)
    elif isinstance(value, dict):
        made = {printable(key): printable(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        made = type(value)(map(printable, value))
    return made  # type: ignore[return-value]


def _code(found: re.Match[str]) -> str:
    character, number = found[0], ord(found[0])
    short = f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return _SHORT.get(character, short)
