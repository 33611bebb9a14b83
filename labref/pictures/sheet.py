"""A sheet of cells: images in rows, each with lines of text below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labref.pictures.lettering import LINE, PAPER, SOFT, Page, class_colour

__all__ = ["Tile", "draw_sheet"]

_TILE: Final = 200
_GAP: Final = 22
_MARGIN: Final = 34
_HEAD: Final = 84
_LINE: Final = 22


@dataclass(frozen=True, eq=False)
class Tile:
    """One cell of a sheet. image : uint8[h, w, 3], RGB, or None where no image is kept.  label : its class, shown in
    bold and as a bar of its colour.  lines : text below the class."""

    image: NDArray[np.uint8] | None
    label: str
    lines: tuple[str, ...]


def draw_sheet(title: str, subtitle: str, tiles: Sequence[Tile], *, columns: int = 6) -> Image.Image:
    """Draw the tiles in order, row by row: an RGB picture."""
    columns = max(4, min(columns, len(tiles)))  # with fewer the title would be cut
    rows = -(-len(tiles) // columns)
    caption = 34 + _LINE * max((len(tile.lines) for tile in tiles), default=0)
    width = 2 * _MARGIN + columns * _TILE + (columns - 1) * _GAP
    height = 2 * _MARGIN + _HEAD + max(1, rows) * (_TILE + caption + _GAP) - _GAP
    page = Page(Image.new("RGB", (width, height), PAPER))
    page.text((_MARGIN, _MARGIN - 4), title, 28, bold=True, room=width - 2 * _MARGIN)
    page.text((_MARGIN, _MARGIN + 36), subtitle, 16, colour=SOFT, room=width - 2 * _MARGIN)
    if not tiles:
        page.text((_MARGIN, _MARGIN + _HEAD + 40), "No cell.", 20, colour=SOFT)
    for number, tile in enumerate(tiles):
        x = _MARGIN + number % columns * (_TILE + _GAP)
        y = _MARGIN + _HEAD + number // columns * (_TILE + caption + _GAP)
        if tile.image is None:
            page.pen.rectangle((x, y, x + _TILE - 1, y + _TILE - 1), fill="#f1f3f5", outline=LINE)
            page.text((x + _TILE / 2, y + _TILE / 2 - 9), "no image kept", 15, colour=SOFT, align="centre")
        else:
            whole = Image.fromarray(tile.image)
            side = min(whole.size)
            left, top = (whole.width - side) // 2, (whole.height - side) // 2
            square = (left, top, left + side, top + side)
            page.picture.paste(whole.resize((_TILE, _TILE), Image.Resampling.LANCZOS, box=square), (x, y))
        page.pen.rectangle((x, y + _TILE, x + _TILE - 1, y + _TILE + 4), fill=class_colour(tile.label))
        page.text((x, y + _TILE + 10), tile.label, 18, bold=True, room=_TILE)
        for line, text in enumerate(tile.lines):
            page.text((x, y + _TILE + 34 + _LINE * line), text, 15, colour=SOFT, room=_TILE, cut="middle")
    return page.picture
