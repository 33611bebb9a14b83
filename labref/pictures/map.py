"""Pictures of a map: its U-matrix with the classes of the cells on it, a single class, and the spread of a slide.

They follow the thesis' figures 43 (digits), 44 (U-matrix), 58 (both) and 59 to 77 (one class; cells that the network
takes for another class are red). A class has a digit as well as a colour, so nobody needs to tell colours apart. As in
the thesis, light means far and dark means near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter

from labref.pictures.lettering import INK, LINE, PAPER, SOFT, Page, class_colour, faces, length

__all__ = ["Shown", "draw_class", "draw_map", "draw_spread"]

SYMBOLS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OTHER: Final = "+"
_MARGIN: Final = 40
_HEAD: Final = 104
_AXIS: Final = 46
_LEGEND: Final = 380
_WRONG: Final = "#c8102e"
_TALLEST: Final = 1440  # the longer side of a map in pixels, where the limits of a node's side allow it
_LEAST_NODE, _LARGEST_NODE = 9, 44
_DISC: Final = 17  # pixels: the smallest disc in which a digit can be read
_PALE: Final = 178  # grey level of near nodes in the pale U-matrix behind digits


@dataclass(frozen=True)
class Shown:
    """What a picture shows.

    u : float[rows, cols], the U-matrix.  nodes : int[n], the node of each cell, row * cols + column.  labels : str[n],
    the class of each cell.  predicted : str[n], the class that the network predicts for each cell.  title, subtitle :
    lines above the picture.
    """

    u: NDArray[np.float64]
    nodes: NDArray[np.int64]
    labels: NDArray[np.str_]
    predicted: NDArray[np.str_]
    title: str
    subtitle: str

    @cached_property
    def classes(self) -> list[str]:
        """The classes, in the order of their digits."""
        return sorted(set(self.labels.tolist()), key=str.casefold)

    def symbol(self, label: str) -> str:
        """The digit or letter of a class; "+" for classes beyond the 36th."""
        at = self.classes.index(label)
        return SYMBOLS[at] if at < len(SYMBOLS) else _OTHER


def draw_map(shown: Shown, *, digits: bool = True, background: bool = True) -> Image.Image:
    """The whole map over its U-matrix. Each node with cells bears the digit of the class that most of them have.

    digits : False draws the U-matrix alone (figure 44).  background : False draws the digits alone (figure 43).
    """
    panel = _Panel(shown, _node_side(shown.u))
    page = _page(shown, panel.width + _LEGEND, panel.height + _AXIS)
    at = (_MARGIN + _AXIS, _MARGIN + _HEAD)
    panel.background(page, at, None if not background else "full" if not digits else "pale")
    if digits:
        for node, label in _majorities(shown.nodes, shown.labels).items():
            panel.mark(page, at, node, shown.symbol(label), _dark(class_colour(label)))
    panel.axes(page, at)
    x, y = at[0] + panel.width + 36, at[1]
    names, counts = np.unique(shown.labels, return_counts=True)
    cells_of = dict(zip(names.tolist(), counts.tolist(), strict=True))
    if digits:
        y = _legend(page, (x, y), shown, [(label, cells_of[label], "") for label in shown.classes])
    if background:
        _scale(page, (x, y), pale=digits)
    return page.picture


def draw_class(shown: Shown, label: str) -> Image.Image:
    """One class over the U-matrix (figures 59 to 77). A node with cells of the class bears its digit; the digit is on
    red where the network takes at least one of these cells for another class. Raises ValueError for a class that no
    cell has."""
    if label not in shown.classes:
        raise ValueError(f"no cell on the map is called {label!r}")
    panel = _Panel(shown, _node_side(shown.u))
    page = _page(shown, panel.width + _LEGEND, panel.height + _AXIS)
    at = (_MARGIN + _AXIS, _MARGIN + _HEAD)
    panel.background(page, at, "pale")
    chosen = shown.labels == label
    wrong = chosen & (shown.predicted != shown.labels)
    right_nodes, wrong_nodes = np.unique(shown.nodes[chosen & ~wrong]), np.unique(shown.nodes[wrong])
    for node in right_nodes.tolist():
        panel.mark(page, at, node, shown.symbol(label), INK)
    for node in wrong_nodes.tolist():  # drawn last, so that no other digit hides them
        panel.stamp(page, at, node, shown.symbol(label))
    panel.axes(page, at)
    x, y = at[0] + panel.width + 36, at[1]
    room = _LEGEND - 50
    page.text((x, y), label, 24, bold=True, colour=_dark(class_colour(label)), room=room)
    y += 44
    cells, mistaken = int(chosen.sum()), int(wrong.sum())
    _glyph(page, (x, y), shown.symbol(label), INK)
    page.text((x + 36, y + 3), f"{cells - mistaken:,} the network agrees on", 17, room=room - 36)
    y += 38
    page.pen.rectangle((x, y, x + 25, y + 25), fill=_WRONG)
    page.text((x + 13, y + 4), shown.symbol(label), 17, bold=True, colour=PAPER, align="centre")
    page.text((x + 36, y + 3), f"{mistaken:,} it takes for another class", 17, room=room - 36)
    y += 52
    if mistaken:
        page.text((x, y), "It takes them for", 17, bold=True)
        y += 30
        names, counts = np.unique(shown.predicted[wrong], return_counts=True)
        for i in np.lexsort((names, -counts))[:12].tolist():
            page.pen.rectangle((x, y + 2, x + 15, y + 17), fill=class_colour(str(names[i])))
            page.text((x + 26, y), str(names[i]), 17, room=room - 90)
            page.text((x + room, y), f"{counts[i]:,}", 17, align="right")
            y += 28
        y += 20
    _scale(page, (x, y), pale=True)
    return page.picture


def draw_spread(shown: Shown, parts: Sequence[tuple[str, NDArray[np.bool_]]]) -> Image.Image:
    """How parts of the cells, such as the cells of a slide, spread over the map: one panel for each part, side by side.

    parts : (name, bool[n] of the part's cells) of each panel. A disc marks a node with cells of the part. It bears the
    digit of the class that most of these cells have; its area grows with their number.
    """
    side = min(max(1000 // max(shown.u.shape[0], shown.u.shape[1]), 4), 28)
    panel = _Panel(shown, side)
    most = max((len(set(shown.labels[chosen].tolist())) for _, chosen in parts), default=0)
    below = 52 + 30 * max(1, min(most, 12)) + 20
    gap = 64
    page = _page(shown, len(parts) * (panel.width + _AXIS + gap) - _AXIS - gap + 20, panel.height + _AXIS + below)
    for number, (name, chosen) in enumerate(parts):
        left = _MARGIN + _AXIS + number * (panel.width + _AXIS + gap)
        at = (left, _MARGIN + _HEAD + 44)
        page.text(
            (left, at[1] - 48), f"{name}: {int(chosen.sum()):,} cells", 20, bold=True, room=panel.width, cut="middle"
        )
        panel.background(page, at, "pale")
        counts = np.bincount(shown.nodes[chosen], minlength=shown.u.size)
        of_node = _majorities(shown.nodes[chosen], shown.labels[chosen])
        for node in sorted(of_node, key=lambda node: -int(counts[node])):  # small discs are drawn last, on top
            panel.disc(
                page, at, node, shown.symbol(of_node[node]), _dark(class_colour(of_node[node])), int(counts[node])
            )
        panel.axes(page, at)
        _composition(page, (left, at[1] + panel.height + _AXIS), panel.width, shown, chosen)
    return page.picture


# --- parts of a picture ---


@cache
def _dark(colour: str) -> str:
    """The colour, darkened until a small digit can be read on white: a contrast of 4.5 (WCAG 2.2, 1.4.3)."""
    rgb = np.array(ImageColor.getrgb(colour)[:3]) / 255
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05) >= 4.5:
            r, g, b = (rgb * 255).round().astype(int).tolist()
            return f"#{r:02x}{g:02x}{b:02x}"
        rgb = rgb * 0.95


class _Panel:
    """The map itself. side : of a node, pixels."""

    def __init__(self, shown: Shown, side: int) -> None:
        self._u, self._side = shown.u, side
        self.rows, self.cols = shown.u.shape
        self.width, self.height = self.cols * side, self.rows * side
        self._masks: dict[tuple[str, int], tuple[Image.Image, Image.Image]] = {}

    def background(self, page: Page, at: tuple[int, int], kind: str | None) -> None:
        """Draw the U-matrix. kind : "full" from black to white, "pale" for use behind digits, None for plain white."""
        if kind is None:
            page.pen.rectangle((at[0], at[1], at[0] + self.width - 1, at[1] + self.height - 1), fill=PAPER)
        else:
            low, high = np.quantile(self._u, [0.02, 0.98])
            shade = np.clip((self._u - low) / max(float(high - low), 1e-12), 0, 1)
            grey = (255 * shade if kind == "full" else _PALE + (255 - _PALE) * shade).round().astype(np.uint8)
            page.picture.paste(
                Image.fromarray(grey).resize((self.width, self.height), Image.Resampling.NEAREST).convert("RGB"), at
            )
        page.pen.rectangle((at[0] - 1, at[1] - 1, at[0] + self.width, at[1] + self.height), outline=SOFT)

    def axes(self, page: Page, at: tuple[int, int]) -> None:
        """Draw the numbers of rows and columns, as `labref map node` takes them."""
        for count, down in ((self.rows, True), (self.cols, False)):
            step = next((s for s in (1, 2, 5, 10, 20, 25, 50, 100) if s * self._side >= 44), 200)
            for number in range(0, count, step):
                middle = number * self._side + self._side / 2
                if down:
                    page.pen.line((at[0] - 6, at[1] + middle, at[0] - 2, at[1] + middle), fill=SOFT)
                    page.text((at[0] - 10, at[1] + middle - 8), str(number), 14, colour=SOFT, align="right")
                else:
                    bottom = at[1] + self.height
                    page.pen.line((at[0] + middle, bottom + 2, at[0] + middle, bottom + 6), fill=SOFT)
                    page.text((at[0] + middle, bottom + 8), str(number), 14, colour=SOFT, align="centre")
        page.text((at[0] + self.width, at[1] + self.height + 26), "column", 14, colour=SOFT, align="right")
        page.text((at[0] - 10, at[1] - 22), "row", 14, colour=SOFT, align="right")

    def mark(self, page: Page, at: tuple[int, int], node: int, symbol: str, colour: str) -> None:
        """Draw a digit with a white halo on a node."""
        size = max(10, round(self._side * 0.95))
        mask, halo = self._glyph(symbol, size)
        x, y = self._middle(at, node)
        corner = (round(x - mask.width / 2), round(y - mask.height / 2))
        page.picture.paste(PAPER, corner, halo)
        page.picture.paste(colour, corner, mask)

    def stamp(self, page: Page, at: tuple[int, int], node: int, symbol: str) -> None:
        """Draw a white digit on a red square on a node."""
        half = max(6, round(self._side * 0.48))
        x, y = map(round, self._middle(at, node))
        page.pen.rectangle((x - half, y - half, x + half, y + half), fill=_WRONG, outline=PAPER)
        mask, _ = self._glyph(symbol, max(10, round(1.7 * half)))
        page.picture.paste(PAPER, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)

    def disc(self, page: Page, at: tuple[int, int], node: int, symbol: str, colour: str, count: int) -> None:
        """Draw a disc with a digit on a node. count : number of cells; the area of the disc grows with it."""
        half = round(max(_DISC, self._side) * min(1 + 0.35 * (count**0.5 - 1), 2.4) / 2)
        x, y = map(round, self._middle(at, node))
        page.pen.ellipse((x - half - 1, y - half - 1, x + half + 1, y + half + 1), fill=PAPER)
        page.pen.ellipse((x - half, y - half, x + half, y + half), fill=colour)
        mask, _ = self._glyph(symbol, max(11, round(1.2 * half)))
        page.picture.paste(PAPER, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)

    def _middle(self, at: tuple[int, int], node: int) -> tuple[float, float]:
        row, column = divmod(node, self.cols)
        return at[0] + (column + 0.5) * self._side, at[1] + (row + 0.5) * self._side

    def _glyph(self, symbol: str, size: int) -> tuple[Image.Image, Image.Image]:
        """The mask of a symbol, and the mask of its halo."""
        if (symbol, size) not in self._masks:
            room = 2 * (size // 2 + 3)
            mask = Image.new("L", (room, room), 0)
            face = faces(size, True)[0]
            ImageDraw.Draw(mask).text((room / 2, room / 2), symbol, 255, face.font, anchor="mm")
            halo = ImageChops.lighter(mask, mask.filter(ImageFilter.MaxFilter(3)))
            self._masks[symbol, size] = mask, halo
        return self._masks[symbol, size]


def _node_side(u: NDArray[np.float64]) -> int:
    rows, cols = u.shape
    return min(max(_TALLEST // max(int(rows), int(cols)), _LEAST_NODE), _LARGEST_NODE)


def _page(shown: Shown, width: int, height: int) -> Page:
    # wide and tall enough for the heading and the legend of a small map
    width = max(width + 2 * _MARGIN + _AXIS, 760)
    height = max(height + 2 * _MARGIN + _HEAD, _MARGIN + _HEAD + 40 + 34 * (len(shown.classes) + 6))
    page = Page(Image.new("RGB", (width, height), PAPER))
    page.text((_MARGIN, _MARGIN - 6), shown.title, 30, bold=True, room=width - 2 * _MARGIN)
    page.text((_MARGIN, _MARGIN + 36), shown.subtitle, 17, colour=SOFT, room=width - 2 * _MARGIN)
    return page


def _majorities(nodes: NDArray[np.int64], labels: NDArray[np.str_]) -> dict[int, str]:
    """{node: the class that most of its cells have}; of equally frequent classes the first by name."""
    names, codes = np.unique(labels, return_inverse=True)
    pairs, counts = np.unique(np.stack([nodes, codes], axis=1), axis=0, return_counts=True)
    order = np.lexsort((-pairs[:, 1], counts))  # the most frequent class comes last, and replaces the others
    return {int(pairs[i, 0]): str(names[pairs[i, 1]]) for i in order.tolist()}


def _glyph(page: Page, at: tuple[int, int], symbol: str, colour: str) -> None:
    page.pen.rectangle((at[0], at[1], at[0] + 25, at[1] + 25), fill=PAPER, outline=LINE)
    page.text((at[0] + 13, at[1] + 3), symbol, 18, bold=True, colour=colour, align="centre")


def _legend(page: Page, at: tuple[int, int], shown: Shown, rows: Sequence[tuple[str, int, str]]) -> int:
    """Draw a line for each (class, number of cells, remark). Returns where the legend ends, pixels from the top."""
    x, y = at
    room = _LEGEND - 50
    page.text((x, y), "Class of most cells on a node", 17, bold=True, room=room)
    page.text((x + room, y + 26), "cells", 14, colour=SOFT, align="right")
    y += 50
    for label, cells, remark in rows:
        _glyph(page, (x, y), shown.symbol(label), _dark(class_colour(label)))
        text = f"{cells:,}{remark}"
        page.text((x + 38, y + 3), label, 18, room=room - 52 - length(text, 17, False))
        page.text((x + room, y + 3), text, 17, align="right")
        y += 34
    return y + 28


def _scale(page: Page, at: tuple[int, int], *, pale: bool) -> None:
    x, y = at
    room = _LEGEND - 50
    page.text((x, y), "Distance to the nodes around", 17, bold=True, room=room)
    low = _PALE if pale else 0
    ramp = np.tile(np.linspace(low, 255, room).astype(np.uint8), (18, 1))
    page.picture.paste(Image.fromarray(ramp).convert("RGB"), (x, y + 30))
    page.pen.rectangle((x - 1, y + 29, x + room, y + 48), outline=SOFT)
    page.text((x, y + 54), "near: inside a cluster", 14, colour=SOFT)
    page.text((x + room, y + 54), "far: a border", 14, colour=SOFT, align="right")


def _composition(page: Page, at: tuple[int, int], width: int, shown: Shown, chosen: NDArray[np.bool_]) -> None:
    """Draw bars with the share of each class among the chosen cells."""
    x, y = at
    names, counts = np.unique(shown.labels[chosen], return_counts=True)
    if not len(names):
        page.text((x, y + 8), "None of its cells lies on the map.", 17, colour=SOFT, room=width)
        return
    page.text((x, y), "Its classes", 17, bold=True)
    order = np.lexsort((names, -counts)).tolist()
    wide = max(length(str(names[i]), 17, False) for i in order) + 44
    left, right = x + min(wide, 0.4 * width), x + width - 130
    for line, i in enumerate(order[:12]):
        label, top, share = str(names[i]), y + 34 + 30 * line, counts[i] / counts.sum()
        _glyph(page, (x, top - 2), shown.symbol(label), _dark(class_colour(label)))
        page.text((x + 34, top + 1), label, 17, room=left - x - 40)
        page.pen.rectangle((left, top + 2, right, top + 20), fill="#eef1f3")
        page.pen.rectangle(
            (left, top + 2, max(left + 2, left + (right - left) * share), top + 20), fill=class_colour(label)
        )
        page.text((x + width, top + 1), f"{counts[i]:,}  {share:.1%}".replace("%", " %"), 17, align="right")
