"""What all pictures need: lines of text in any script, and the colour of a class.

Text is set in the system's sans serif font, and in the system's font for East Asian scripts where it has one; else in
the font built into Pillow. A character that no font has is set without its accent, or as a small box with its code.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from labref.pictures.colours import colour_of
from labref.printing import printable

__all__ = ["INK", "LINE", "PAPER", "SOFT", "Page", "class_colour", "faces", "fit", "length"]

PAPER: Final = "#ffffff"
INK: Final = "#1b1f24"
SOFT: Final = "#5d6670"
LINE: Final = "#d5dade"


def class_colour(label: str) -> str:
    """The colour of a class in pictures on paper, "#rrggbb"; see `labref.pictures.colours`."""
    return colour_of(label).light


@dataclass
class Page:
    """A picture being drawn."""

    picture: Image.Image

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.picture)

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        *,
        bold: bool = False,
        colour: str = INK,
        room: float | None = None,
        cut: str = "end",
        align: str = "left",
    ) -> float:
        """Write one line of text with its top at `at` (x, y). Returns its width in pixels.

        size : pixels.  room : the most pixels that the line may be wide; a longer text is shortened with … at its `cut`
        ("end" or "middle").  align : "left", "centre" or "right" of `at`.
        """
        line = text if room is None else fit(text, size, bold, room, cut)
        wide = length(line, size, bold)
        x = at[0] - (wide if align == "right" else wide / 2 if align == "centre" else 0)
        baseline = at[1] + size
        for face, part in _runs(line, size, bold):
            if face is None:
                self._code((x, baseline), part, size, colour)
            else:
                for shift in (0.0, face.thicken) if face.thicken else (0.0,):
                    self.pen.text((x + shift, baseline), part, colour, face.font, anchor="ls")
            x += _run_length(face, part, size)
        return wide

    def _code(self, at: tuple[float, float], character: str, size: int, colour: str) -> None:
        """Draw a box with the character's code, as browsers do for a character that no font has."""
        x, y, side = at[0] + 1, at[1] + size * 0.12, _run_length(None, character, size) - 3
        self.pen.rectangle((x, y - size, x + side, y), outline=colour)
        code, small = f"{ord(character):04X}", max(6, round(size * 0.4))
        half = (len(code) + 1) // 2
        font = faces(small, False)[-1].font
        for i, digits in enumerate((code[:half], code[half:])):
            self.pen.text((x + side / 2, y - size * (0.56 - 0.46 * i)), digits, colour, font, anchor="ms")


_LATIN: Final = (  # (regular, bold): the first pair that the system has is used
    ("segoeui.ttf", "segoeuib.ttf"),
    ("HelveticaNeue.ttc", "HelveticaNeue.ttc"),
    ("NotoSans-Regular.ttf", "NotoSans-Bold.ttf"),
    ("OpenSans-Regular.ttf", "OpenSans-Bold.ttf"),
    ("Roboto-Regular.ttf", "Roboto-Bold.ttf"),
    ("arial.ttf", "arialbd.ttf"),
    ("Arial.ttf", "Arial Bold.ttf"),
    ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf"),
    ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
)
_EAST_ASIAN: Final = (
    ("YuGothM.ttc", "YuGothB.ttc"),
    ("meiryo.ttc", "meiryob.ttc"),
    ("msyh.ttc", "msyhbd.ttc"),
    ("malgun.ttf", "malgunbd.ttf"),
    ("ヒラギノ角ゴシック W3.ttc", "ヒラギノ角ゴシック W6.ttc"),
    ("NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc"),
    ("NotoSansCJKjp-Regular.otf", "NotoSansCJKjp-Bold.otf"),
    ("ipaexg.ttf", "ipaexg.ttf"),
    ("DroidSansFallbackFull.ttf", "DroidSansFallbackFull.ttf"),
)


@dataclass(frozen=True, eq=False)
class _Face:
    """A font at one size. A font without a bold face is drawn twice for bold text, `thicken` pixels apart."""

    font: ImageFont.FreeTypeFont
    thicken: float

    def length(self, text: str) -> float:
        return self.font.getlength(text) + self.thicken

    def has(self, character: str) -> bool:
        return _covers(self.font, character)


@lru_cache(maxsize=4096)
def _covers(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Whether a font has a glyph for this character, and not only the box that it draws for a missing glyph."""
    if character.isspace():
        return True
    glyph, missing = font.getmask(character), font.getmask("\U0010fffe")
    return glyph.size != missing.size or bytes(glyph) != bytes(missing)


@lru_cache(maxsize=256)
def faces(size: int, bold: bool) -> tuple[_Face, ...]:
    """The faces to look for a glyph in, the best first; the last is built into Pillow."""
    faces = []
    for family in (_LATIN, _EAST_ASIAN):
        for names in family:
            try:
                faces.append(_Face(ImageFont.truetype(names[bold], size), 0.0))
            except OSError:
                continue
            break
    built_in = ImageFont.load_default(size)
    if isinstance(built_in, ImageFont.FreeTypeFont):
        faces.append(_Face(built_in, size / 20 if bold else 0.0))
    return tuple(faces)


def _plain(character: str) -> str:
    """A character without its accents; "" where nothing is left."""
    return "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))


def _runs(text: str, size: int, bold: bool) -> list[tuple[_Face | None, str]]:
    """The text in parts, each with its face: a single part where one face has all glyphs. The face is None for a
    character that no face has."""
    fonts = faces(size, bold)
    # joiners have no picture of their own
    text = "".join(c for c in printable(unicodedata.normalize("NFC", text)) if c.isprintable() or c == "\u00a0")
    for face in fonts:
        if all(face.has(c) for c in text):
            return [(face, text)]
    runs: list[tuple[_Face | None, str]] = []
    for character in text:
        for part in (character, _plain(character)):
            fitting = next((f for f in fonts if part and all(f.has(c) for c in part)), None)
            if fitting is not None:
                break
        else:
            part = character
        if runs and fitting is not None and runs[-1][0] is fitting:
            runs[-1] = (fitting, runs[-1][1] + part)
        else:
            runs.append((fitting, part))
    return runs


def _run_length(face: _Face | None, part: str, size: int) -> float:
    return size * (0.92 if len(part) == 1 and ord(part) < 0x10000 else 1.2) if face is None else face.length(part)


@lru_cache(maxsize=4096)
def length(text: str, size: int, bold: bool) -> float:
    """Width of a line of text in pixels."""
    return sum(_run_length(face, part, size) for face, part in _runs(text, size, bold))


def fit(text: str, size: int, bold: bool, room: float, cut: str) -> str:
    """The text, shortened with … to at most `room` pixels. cut : where it is shortened, "end" or "middle"."""
    if length(text, size, bold) <= room:
        return text
    least, most = 0, len(text)
    while least < most:
        keep = (least + most + 1) // 2
        if length(_shorten(text, keep, cut), size, bold) <= room:
            least = keep
        else:
            most = keep - 1
    return _shorten(text, least, cut)


def _shorten(text: str, keep: int, cut: str) -> str:
    if cut == "end":
        return text[:keep].rstrip() + "…"
    tail = keep // 2
    return text[: keep - tail] + "…" + (text[-tail:] if tail else "")
