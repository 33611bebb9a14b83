"""Text for people: what cannot be seen, and what a terminal would obey instead of showing it, is written as its
code."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    import regex

__all__ = ["counted", "printable", "unprintable"]

_T = TypeVar("_T")

_ABOVE: Final = r"[\u0590-\u200b\u200e-\U0010ffff]"  # the scripts that need joiners, and pictures
_VISIBLE: Final = (
    r"\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"  # signs around Arabic and other numbers
)
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LOST: Final = "\ufffd"  # stands for a character that could not be read


def counted(number: int, what: str) -> str:
    """`1 slide`, `2 slides`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@lru_cache(maxsize=1)
def _unseen() -> regex.Pattern[str]:
    """What cannot be seen, or is obeyed."""
    import regex  # loaded and compiled where a text is printed: `--help` prints none

    return regex.compile(
        # controls, line and text direction, what has no width, invisible letters and tags, halves of characters
        rf"[[\p{{Cc}}\p{{Cf}}\p{{Cs}}\p{{Zl}}\p{{Zp}}\p{{Default_Ignorable_Code_Point}}]--[\u200c\u200d\ufe0e\ufe0f{_VISIBLE}]]"
        # joiners and variation selectors, where they join nothing and vary nothing
        rf"|(?<!{_ABOVE})[\u200c\u200d]|[\u200c\u200d](?!{_ABOVE})|(?<![0-9#*©®]|{_ABOVE})[\ufe0e\ufe0f]",
        regex.VERSION1,
    )


def printable(value: _T) -> _T:
    """`value` with each text in it, names in dictionaries too, as a terminal can show it on one line.

    A character that cannot be seen or changes how others are shown becomes its code as Python writes it (`\\n`,
    `\\x1b`, `\\u200b`, `\\u202e`); all else stays, other values too.
    """
    made: object = value
    if isinstance(value, str):
        made = _unseen().sub(_code, value)
    elif isinstance(value, dict):
        made = {printable(key): printable(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        made = type(value)(map(printable, value))
    return made  # type: ignore[return-value]


def unprintable(text: str) -> str | None:
    """The first character of a text that `printable` would write as its code, or that stands for one that was lost, as
    `U+0007`; None where there is none. Names and labels hold none."""
    at = [found.start()] if (found := _unseen().search(text)) else []
    if _LOST in text:
        at.append(text.index(_LOST))
    return f"U+{ord(text[min(at)]):04X}" if at else None


def _code(found: regex.Match[str]) -> str:
    character, number = found[0], ord(found[0])
    short = f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    return _SHORT.get(character, short)
