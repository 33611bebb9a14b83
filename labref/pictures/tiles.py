"""The map in square tiles, as a deep-zoom viewer asks for them: the farther one is, the less is drawn.

From far, areas are coloured by class and bear its name; nearer, each node bears the sign of its class, then its code;
from near it shows its cell. As on the printed map (`labref.pictures.map`), light means far from the nodes around and
dark means near; on a dark page it is the other way round for what is empty.

The pyramid: at its last level a node is `NODE` pixels wide, at each level before it half as wide, down to one pixel.
Nodes never cross the edge of a tile, so a tile is put together from arrays, without a loop over its nodes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final, Literal

import numpy as np
import scipy
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageColor, ImageDraw, ImageFilter

from labref.pictures.lettering import faces, fit, length

__all__ = ["NODE", "TILE", "Kind", "Terrain", "draw_picture", "draw_tile", "levels", "side_in_picture", "size"]

TILE: Final = 256
"""Side of a tile, pixels."""
NODE: Final = 128
"""Side of a node at the last level, pixels."""
SIGNS_FROM: Final = 32
CODES_FROM: Final = 64
CELLS_FROM: Final = 128
"""From this side of a node on it bears its sign, its code, and shows its cell. A viewer shows tiles at half to full
size, so these are twice what can be read."""

_SHAPES_FROM: Final = 8  # else two slides are told apart by colour and place alone

Kind = Literal["classes", "umatrix", "compare"]
"""What is drawn: the classes; the U-matrix alone; which of two slides has cells there."""

_RED: Final = (200, 16, 46)
_ONE, _OTHER, _BOTH = (31, 119, 180), (230, 126, 20), (90, 60, 120)
_U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class _Theme:
    """Greys, 0 to 255. near, far : of an empty node among near and among far ones.  paper, ink : of texts."""

    near: int
    far: int
    paper: int
    ink: int


_LIGHT: Final = _Theme(near=186, far=252, paper=255, ink=20)
_DARK: Final = _Theme(near=74, far=28, paper=12, ink=240)


@dataclass(frozen=True, eq=False)
class Terrain:
    """What the map has on each node: arrays [rows, columns].

    u : float32, distance to the nodes around, 0 to 1.  label, area : int32, index of the class of most of its cells,
    and of most cells about it; -1 for none.  marked : bool, which are red.  one, other : bool, which have cells of the
    one and of the other slide.  names, codes, signs : of the classes; a sign is one character.  colours, dark_colours :
    of the classes on light and on dark ground, "#rrggbb".  cells : int32, how many.  pale : whether classes are drawn
    pale, so that red stands out.  whole : whether all cells are drawn, so that areas are coloured too.
    """

    u: NDArray[np.float32]
    label: NDArray[np.int32]
    area: NDArray[np.int32]
    marked: NDArray[np.bool_]
    one: NDArray[np.bool_]
    other: NDArray[np.bool_]
    cells: NDArray[np.int32]
    names: Sequence[str]
    codes: Sequence[str]
    signs: Sequence[str]
    colours: Sequence[str]
    dark_colours: Sequence[str]
    pale: bool = False
    whole: bool = True
    _names_at: dict[tuple[int, bool], list[_Name]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of nodes."""
        return int(self.u.shape[0])

    @property
    def columns(self) -> int:
        """Columns of nodes."""
        return int(self.u.shape[1])

    @cached_property
    def far(self) -> NDArray[np.float32]:
        """The U-matrix between its 2nd and its 98th percentile: float32[rows, columns], 0 to 1."""
        low, high = np.quantile(self.u, [0.02, 0.98])
        shade = np.clip((self.u - low) / max(float(high - low), 1e-9), 0, 1)
        return np.asarray(shade, np.float32)

    @cached_property
    def palettes(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Colours of the classes on light and on dark ground: float32[classes + 1, 3]; the last, for -1, is not
        used."""
        light, dark = (
            np.array([*(ImageColor.getrgb(colour)[:3] for colour in colours), (0, 0, 0)], np.float32)
            for colours in (self.colours, self.dark_colours)
        )
        return light, dark

    @cached_property
    def middles(self) -> list[tuple[float, int, int, int]]:
        """Of each area: how far its middle is from its edge in nodes, its class, and row and column of its middle; the
        widest areas first."""
        found: list[tuple[float, int, int, int]] = []
        for code in range(len(self.names)):
            grid = np.pad(self.area == code, 1)
            parts, n = scipy.ndimage.label(grid, np.ones((3, 3), int))
            if n:
                deep = scipy.ndimage.distance_transform_edt(grid)
                places = scipy.ndimage.maximum_position(deep, parts, range(1, n + 1))
                found += [(float(deep[place]), code, int(place[0]) - 1, int(place[1]) - 1) for place in places]
        return sorted(found, reverse=True)[:_MOST_NAMES]

    def names_at(self, side: int, dark: bool) -> list[_Name]:
        """Names of the areas where a node has so many pixels."""
        if (side, dark) not in self._names_at:
            self._names_at[side, dark] = _names(self, side, dark)
        return self._names_at[side, dark]


def size(rows: int, columns: int) -> tuple[int, int]:
    """Width and height of the map at the last level, pixels."""
    return columns * NODE, rows * NODE


def levels(rows: int, columns: int) -> tuple[int, int]:
    """The first and the last level: as deep zoom counts them, level 0 is one pixel; at the first, a node is one."""
    last = max(*size(rows, columns), 1) - 1
    return last.bit_length() - (NODE - 1).bit_length(), last.bit_length()


def draw_tile(
    terrain: Terrain,
    kind: Kind,
    level: int,
    x: int,
    y: int,
    *,
    dark: bool = False,
    cell: Callable[[int, int], Image.Image | None] | None = None,
) -> bytes | None:
    """One tile as PNG, at most TILE × TILE pixels; None where there is none of that place.

    cell : (row, column) → the picture of the node's cell, square, RGB; None leaves the node's class.
    """
    first, last = levels(terrain.rows, terrain.columns)
    if not first <= level <= last:
        return None
    side = NODE >> (last - level)
    nodes = TILE // side
    if not (0 <= x * nodes < terrain.columns and 0 <= y * nodes < terrain.rows):
        return None
    picture = _draw(terrain, kind, side, (y * nodes, x * nodes), (nodes, nodes), dark, cell)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def side_in_picture(terrain: Terrain, widest: int) -> int:
    """The side of a node where the whole map is one picture of about `widest` pixels: a power of two."""
    side = max(1, min(SIGNS_FROM, widest // max(terrain.rows, terrain.columns)))
    return int(1 << (side.bit_length() - 1))


def draw_picture(terrain: Terrain, kind: Kind, side: int, *, dark: bool = False) -> Image.Image:
    """The whole map as one picture. side : of a node, pixels, less than `CELLS_FROM`."""
    return _draw(terrain, kind, side, (0, 0), (terrain.rows, terrain.columns), dark, None)


def _draw(
    terrain: Terrain,
    kind: Kind,
    side: int,
    start: tuple[int, int],
    count: tuple[int, int],
    dark: bool,
    cell: Callable[[int, int], Image.Image | None] | None,
) -> Image.Image:
    """Nodes from `start` (row, column) on, `count` of them down and across, each `side` pixels wide."""
    theme = _DARK if dark else _LIGHT
    here = (slice(start[0], start[0] + count[0]), slice(start[1], start[1] + count[1]))
    far, label = terrain.far[here], terrain.label[here]
    grey = theme.near + (theme.far - theme.near) * far
    ground = np.repeat(grey[:, :, None], 3, axis=2)
    if kind == "classes":
        palette = terrain.palettes[dark]
        if side < SIGNS_FROM and terrain.whole and not terrain.pale:
            # from far, areas: what lies about an empty node shows faintly
            ground = _mixed(ground, palette[terrain.area[here]], np.where(terrain.area[here] >= 0, 0.3, 0.0))
        strength = 0.35 if terrain.pale else 0.92
        ground = _mixed(ground, palette[label], np.where(label >= 0, strength * (1 - 0.45 * far), 0.0))
        if side < SIGNS_FROM:
            ground[terrain.marked[here]] = _RED
    elif kind == "umatrix":
        ground = np.repeat((far * 255)[:, :, None], 3, axis=2)
    elif side < _SHAPES_FROM:
        one, other = terrain.one[here], terrain.other[here]
        for which, colour in ((one & ~other, _ONE), (other & ~one, _OTHER), (one & other, _BOTH)):
            ground[which] = colour
    pixels = np.repeat(np.repeat(ground.round().astype(np.uint8), side, axis=0), side, axis=1)
    if kind == "classes" and SIGNS_FROM <= side < CELLS_FROM:
        _stamp(pixels, _masks(tuple(terrain.signs if side < CODES_FROM else terrain.codes), side), label, ground, side)
    if kind == "compare" and side >= _SHAPES_FROM:
        shapes = np.select(
            [terrain.one[here] & terrain.other[here], terrain.one[here], terrain.other[here]], [2, 0, 1], -1
        )
        _shapes(pixels, shapes, side)
    if side >= SIGNS_FROM:
        _grid(pixels, side, theme)
    picture = Image.fromarray(pixels)
    if kind == "classes" and side >= CELLS_FROM:
        _cells(picture, terrain, start, label, side, dark, cell)
    if kind == "classes" and side >= SIGNS_FROM:
        _frames(picture, terrain.marked[here], side)
    if side < SIGNS_FROM and kind == "classes" and terrain.whole:
        origin = (start[1] * side, start[0] * side)
        for name in terrain.names_at(side, dark):
            name.draw(picture, origin)
    return picture


def _mixed(below: NDArray[Any], above: NDArray[Any], share: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(below + (above - below) * share[:, :, None])


def _stamp(pixels: _U8, masks: _U8, label: NDArray[np.int32], ground: NDArray[Any], side: int) -> None:
    """Write each node's sign in black or white, whichever is read better on its ground."""
    rows, columns = label.shape
    mask = masks[label].transpose(0, 2, 1, 3).reshape(rows * side, columns * side, 1)
    ink = np.where(_luminance(ground) > 0.18, 0.0, 255.0)
    inks = np.repeat(np.repeat(ink, side, axis=0), side, axis=1)[:, :, None]
    pixels[:] = (pixels + (inks - pixels) * (mask / np.float32(255))).round().astype(np.uint8)


def _luminance(colours: NDArray[Any]) -> NDArray[Any]:
    """WCAG's relative luminance of colours [..., 3], 0 to 255."""
    part = colours / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


@lru_cache(maxsize=64)
def _masks(texts: tuple[str, ...], side: int) -> _U8:
    """The texts as masks uint8[texts + 1, side, side], each as large as the node allows; the last is empty."""
    masks = np.zeros((len(texts) + 1, side, side), np.uint8)
    for number, text in enumerate(texts):
        points = round(side * 0.82) if len(text) == 1 else round(side * 0.6)
        while points > 7 and length(text, points, True) > side - 2:
            points -= 1
        masks[number] = _mask(fit(text, points, True, side, "end"), points, side, side)
    return masks


def _mask(text: str, points: int, width: int, height: int) -> _U8:
    picture = Image.new("L", (width, height), 0)
    ImageDraw.Draw(picture).text((width / 2, height / 2), text, 255, faces(points, True)[0].font, anchor="mm")
    return np.asarray(picture)


def _shapes(pixels: _U8, shapes: NDArray[np.int64], side: int) -> None:
    """A disc for the one slide, a square for the other, both for both."""
    rows, columns = shapes.shape
    sprites, alphas = _shape_sprites(side)
    tall = (rows * side, columns * side)
    alpha = alphas[shapes].transpose(0, 2, 1, 3).reshape(*tall, 1) / np.float32(255)
    colour = sprites[shapes].transpose(0, 2, 1, 3, 4).reshape(*tall, 3)
    pixels[:] = (pixels + (colour.astype(np.float32) - pixels) * alpha).round().astype(np.uint8)


@lru_cache(maxsize=16)
def _shape_sprites(side: int) -> tuple[_U8, _U8]:
    large = 4 * side
    sprites, alphas = np.zeros((4, side, side, 3), np.uint8), np.zeros((4, side, side), np.uint8)
    for number in range(3):
        picture = Image.new("RGBA", (large, large), (255, 255, 255, 0))
        pen = ImageDraw.Draw(picture)
        edge = max(2, large // 24)
        if number in (1, 2):
            inset = large * 0.14
            pen.rectangle(
                (inset, inset, large - inset, large - inset), fill=(*_OTHER, 255), outline="white", width=edge
            )
        if number in (0, 2):
            inset = large * (0.1 if number == 0 else 0.27)
            pen.ellipse((inset, inset, large - inset, large - inset), fill=(*_ONE, 255), outline="white", width=edge)
        small = np.asarray(picture.resize((side, side), Image.Resampling.BOX))
        sprites[number], alphas[number] = small[:, :, :3], small[:, :, 3]
    return sprites, alphas


def _grid(pixels: _U8, side: int, theme: _Theme) -> None:
    """A thin line between nodes."""
    line = np.uint8(theme.paper)
    pixels[side - 1 :: side] = line
    pixels[:, side - 1 :: side] = line


def _cells(
    picture: Image.Image,
    terrain: Terrain,
    start: tuple[int, int],
    label: NDArray[np.int32],
    side: int,
    dark: bool,
    cell: Callable[[int, int], Image.Image | None] | None,
) -> None:
    """On each node its cell, framed in the colour of its class, with code and number of cells below."""
    pen, theme = ImageDraw.Draw(picture), _DARK if dark else _LIGHT
    colours = terrain.dark_colours if dark else terrain.colours
    frame, bar = 4, 24
    face, font = faces(bar - 3, True)[0].font, faces(bar - 4, False)[0].font
    for row, column in np.argwhere(label >= 0).tolist():
        code = int(label[row, column])
        left, top = column * side, row * side
        shown = None if cell is None else cell(start[0] + row, start[1] + column)
        if shown is not None:
            room = side - 1 - 2 * frame
            picture.paste(shown.resize((room, room), Image.Resampling.BILINEAR), (left + frame, top + frame))
        colour = ImageColor.getrgb(colours[code])
        pen.rectangle((left, top, left + side - 2, top + side - 2), outline=colour, width=frame)
        ink = "black" if float(_luminance(np.array(colour[:3]))) > 0.18 else "white"
        text = terrain.codes[code]
        wide = min(side - 2, round(length(text, bar - 3, True)) + 2 * frame + 2)
        pen.rectangle((left, top + side - 2 - bar, left + wide, top + side - 2), fill=colour)
        pen.text((left + frame, top + side - 2 - bar / 2), text, ink, face, anchor="lm")
        count = int(terrain.cells[start[0] + row, start[1] + column])
        if count > 1:
            said = f"{count:,}"
            room = round(font.getlength(said)) + 6
            if wide + room < side - 2:
                box = (left + side - 2 - room, top + side - 2 - bar, left + side - 2, top + side - 2)
                pen.rectangle(box, fill=(theme.paper,) * 3)
                pen.text((box[0] + room / 2, top + side - 2 - bar / 2), said, (theme.ink,) * 3, font, anchor="mm")


def _frames(picture: Image.Image, marked: NDArray[np.bool_], side: int) -> None:
    """A red frame with a white line inside, and from near an exclamation mark, on nodes with a doubtful label."""
    pen = ImageDraw.Draw(picture)
    width = max(2, side // 10)
    for row, column in np.argwhere(marked).tolist():
        left, top = column * side, row * side
        right, bottom = left + side - 2, top + side - 2
        pen.rectangle((left, top, right, bottom), outline=_RED, width=width)
        pen.rectangle((left + width, top + width, right - width, bottom - width), outline="white")
        if side >= SIGNS_FROM:
            box = max(10, side // 4)
            pen.rectangle((right - box, top, right, top + box), fill=_RED)
            face = faces(round(box * 0.9), True)[0].font
            pen.text((right - box / 2, top + box / 2), "!", "white", face, anchor="mm")


@dataclass(frozen=True, eq=False)
class _Name:
    """A name on the map. left, top : of its masks, pixels from the map's corner."""

    left: int
    top: int
    mask: Image.Image
    halo: Image.Image
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]

    def draw(self, picture: Image.Image, origin: tuple[int, int]) -> None:
        at = (self.left - origin[0], self.top - origin[1])
        if -self.mask.width < at[0] < picture.width and -self.mask.height < at[1] < picture.height:
            picture.paste(self.paper, at, self.halo)
            picture.paste(self.ink, at, self.mask)


@lru_cache(maxsize=256)
def _name_masks(text: str, points: int, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """A name, and the ground around its letters."""
    mask = Image.fromarray(_mask(text, points, width, height))
    return mask, ImageChops.lighter(mask, mask.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.GaussianBlur(0.8)))


_MOST_NAMES: Final = 400
_NAME_POINTS: Final = (36, 30, 25, 20)


def _names(terrain: Terrain, side: int, dark: bool) -> list[_Name]:
    """A name in the middle of each area that has room for it: the whole name, else the code; the widest areas first."""
    theme = _DARK if dark else _LIGHT
    taken: list[tuple[int, int, int, int]] = []
    names: list[_Name] = []
    width, height = terrain.columns * side, terrain.rows * side
    for reach, code, row, column in terrain.middles:
        room = 2.6 * reach * side
        fitting = next(
            (
                (text, points)
                for text in (terrain.names[code], terrain.codes[code])
                for points in _NAME_POINTS
                if length(text, points, True) <= min(room, width) and points * 1.1 <= min(2 * reach * side, height)
            ),
            None,
        )
        if fitting is None:
            continue
        text, points = fitting
        wide, tall = round(length(text, points, True)) + 8, points + 10
        left = min(max(round((column + 0.5) * side - wide / 2), 0), max(width - wide, 0))
        top = min(max(round((row + 0.5) * side - tall / 2), 0), max(height - tall, 0))
        box = (left, top, left + wide, top + tall)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        mask, halo = _name_masks(text, points, wide, tall)
        names.append(_Name(left, top, mask, halo, (theme.ink,) * 3, (theme.paper,) * 3))
    return names
