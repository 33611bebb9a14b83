"""The picture of an answer, after the thesis' figure 34: the query among its reference cells; below them
other classes to compare, and the spread of the nearest hundred cells.

    picture = draw(answer, query_image, reference_images)
    picture.save("grid.png")

It is drawn with Pillow alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from labref.cells.centring import distance_from_middle, doubt, is_off_middle, remark
from labref.cells.image import CROP_SIZE
from labref.pictures.lettering import INK, LINE, PAPER, SOFT, Page, class_colour, length

__all__ = ["Shown", "draw", "how_far"]

_TILE: Final = 288  # side of one image, pixels
_UNUSUAL: Final = 0.01  # a p-value at or below it is novel: labref.asking.novelty.UNUSUAL
_GAP: Final = 22
_MARGIN: Final = 34
_CAPTION: Final = 108
_TITLE: Final = 44
_CONTRASTS: Final = 4  # cells in the row of contrast, at least: fewer are not drawn larger
_BARS_MOST: Final = 10

_PIECE: Final = CROP_SIZE * 3 // 2  # side of the piece of a large picture that a tile shows, pixels of the picture
_MARK: Final = 72  # half the side of the square that marks a cell, pixels of the picture: larger than most nuclei
_MARK_MOST: Final = 86  # the most that half the side may be, pixels of the tile
_ARM: Final = 15  # length of an arm of a corner, pixels of the tile

_ACCENT: Final = "#14508c"
_WARN_PAPER, _WARN_INK = "#fff1d6", "#7a4300"
_NOTE_PAPER, _NOTE_INK = "#e6eef6", "#14508c"

_MARK_EDGE: Final = "#1b1f24"

_SOURCES: Final[Mapping[str, str]] = {
    "reviewed": "reviewed by a person",
    "analyser": "the analyser's class",
    "predicted": "predicted, not reviewed",
    "central": "central, not this lab's",
}


Shown = tuple[NDArray[np.uint8] | None, tuple[float, float] | None]
"""An image uint8[h, w, 3], None where none is kept, and the (row, column) of the cell in it, None for its middle."""


def draw(
    answer: Mapping[str, Any],
    query_image: NDArray[np.uint8],
    reference_images: Sequence[NDArray[np.uint8] | None],
    reference_centres: Sequence[tuple[float, float] | None] | None = None,
    contrast: Sequence[Shown] = (),
) -> Image.Image:
    """Draw the answer to a query.

    answer : what `labref query --json` prints for one image.
    query_image : uint8[h, w, 3], RGB.
    reference_images : uint8[h, w, 3] of each reference, in the answer's order; None where no image is kept.
    reference_centres : (row, column) of the cell in each reference image, pixels; None for the middle of the image.
    contrast : image and centre, as those of the references, of each cell of the answer's row of contrast.

    Of an image whose shorter side is at most 384 pixels, the largest square that fits is shown; of a larger image,
    384×384 pixels around the cell. Four corners mark a cell that lies off the middle of its image.

    Returns an RGB picture, 976 pixels wide for eight references. Raises ValueError where the numbers of references, of
    their images and of their centres differ, or those of the row of contrast.
    """
    references = list(answer["references"])
    centres = [None] * len(references) if reference_centres is None else list(reference_centres)
    if not len(references) == len(reference_images) == len(centres):
        raise ValueError(
            f"{len(references)} references, but {len(reference_images)} images of references and {len(centres)} centres"
        )
    others = list(answer.get("contrast", ()))
    if len(others) != len(contrast):
        raise ValueError(f"{len(others)} cells in the row of contrast, but {len(contrast)} images of them")
    columns, rows, middle = _arrange(len(references))
    width = 2 * _MARGIN + columns * _TILE + (columns - 1) * _GAP
    bands = _bands(answer)
    shares = _shares(answer["distribution"]["weights"])
    top = _MARGIN + 82 + 52 * len(bands) + (10 if bands else 0)
    grid_height = rows * (_TILE + _CAPTION) + (rows - 1) * _GAP
    in_row = max(_CONTRASTS, len(others))
    side = (width - 2 * _MARGIN - (in_row - 1) * _GAP) // in_row
    row_height = _TITLE + side + _CAPTION if others else 0
    height = top + grid_height + row_height + 24 + 50 + 34 * max(1, len(shares)) + 46 + _MARGIN
    page = _Page(Image.new("RGB", (width, height), PAPER))

    page.text((_MARGIN, _MARGIN), "Reference cells", 30, bold=True)
    page.text(
        (_MARGIN, _MARGIN + 38),
        str(answer["image"]),
        17,
        colour=SOFT,
        room=width - 2 * _MARGIN,
        cut="middle",
    )
    y = _MARGIN + 74
    for kind, line in bands:
        page.band((_MARGIN, y, width - _MARGIN, y + 44), kind, line)
        y += 52

    cells = [i for i in range(columns * rows) if i != middle]
    for place, (reference, image, centre) in enumerate(zip(references, reference_images, centres, strict=True)):
        page.reference(_corner(cells[place], columns, top), place + 1, reference, image, centre)
    page.query(_corner(middle, columns, top), answer, query_image)
    if not references:
        x, y = _corner(cells[0] if cells else 0, columns, top)
        page.text((x, y + _TILE // 2), "No reference yet:", 18, colour=SOFT)
        page.text((x, y + _TILE // 2 + 26), "the store is empty.", 18, colour=SOFT)
    if others:
        page.contrast((_MARGIN, top + grid_height + 24), side, others, contrast)
    page.spread(
        (_MARGIN, top + grid_height + row_height + 24), width - 2 * _MARGIN, answer["distribution"]["n"], shares
    )
    page.foot(answer, width, height)
    return page.picture


def _arrange(k: int) -> tuple[int, int, int]:
    """Columns, rows, and the query's place (counted row by row) for `k` references; for eight, the middle of 3×3."""
    columns = max(3, math.isqrt(k))
    while columns * columns < k + 1:
        columns += 1
    columns += 1 - columns % 2  # an odd number has a middle
    rows = max(1, math.ceil((k + 1) / columns))
    middle = (rows // 2) * columns + columns // 2
    if middle >= columns * rows or k == 0:
        middle = 1
    return columns, rows, middle


def _corner(place: int, columns: int, top: int) -> tuple[int, int]:
    row, column = divmod(place, columns)
    return _MARGIN + column * (_TILE + _GAP), top + row * (_TILE + _CAPTION + _GAP)


def _bands(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines that stand out above the cells: ("warning" or "note", text)."""
    bands = []
    doubted, centring = doubt(answer.get("quality")), remark(answer.get("cell"))
    if doubted is not None:
        bands.append(("warning", doubted.text))
    elif centring is not None and centring.kind == "warning":
        bands.append(("warning", centring.text))
    novelty = answer["novelty"]
    if novelty["is_novel"]:
        bands.append(("warning", f"Nothing in this lab resembles this cell: {_how_novel(novelty)}"))
    elif novelty.get("no_class"):
        bands.append(("warning", "No class of this lab resembles this cell"))
    if answer["duplicate_of"]:
        bands.append(("note", f"This cell is already in the store: duplicate of {answer['duplicate_of']}"))
    return bands


def how_far(p: float, *, novel: bool = True) -> str:
    """How far a cell lies, in words. p : of its distance, as `labref.asking.novelty` has it; where that of a novel cell
    is above 1 %, the lab has too few cells for less, and none lies as far."""
    few = novel and p > _UNUSUAL
    return "none of the lab's own lies as far off" if few else f"{p:.1%} of the lab's own lie as far off"


def _how_novel(novelty: Mapping[str, Any]) -> str:
    if novelty["score"] is None:
        return "no cell is stored yet"
    if novelty.get("p") is not None:
        return how_far(novelty["p"]).replace("%", " %")
    return f"novelty {novelty['score']:.2f}, where 1 is the limit"


def _prediction(answer: Mapping[str, Any]) -> tuple[str, str]:
    """The lines under the query about its class: the prediction, small, or that it is withheld, and why."""
    said = answer.get("prediction") or {**answer["predicted"], "shown": True, "reason": None}
    if not said["shown"]:
        return f"prediction withheld ({said['label']})", str(said["reason"])
    return f"predicted: {said['label']}, {said['probability']:.1%}".replace("%", " %"), ""


def _about(cell: Mapping[str, Any] | None) -> tuple[str, str]:
    """The line under the query about its place in the picture, and the colour of the line."""
    if cell is not None and not cell["found"]:
        return "the picture's middle", SOFT
    if cell is not None and is_off_middle(cell["moved"]):
        return f"{cell['moved']:.0f} px off the middle", _ACCENT
    return "the cell asked about", SOFT


def _shares(weights: Mapping[str, float]) -> list[tuple[str, float, str]]:
    """(class, share, colour) of each bar, the largest first; classes that do not fit share the last bar."""
    shares = [(label, share, class_colour(label)) for label, share in sorted(weights.items(), key=lambda i: -i[1])]
    if len(shares) <= _BARS_MOST:
        return shares
    rest = shares[_BARS_MOST - 1 :]
    return [*shares[: _BARS_MOST - 1], (f"{len(rest)} other classes", sum(s for _, s, _ in rest), "#98a1aa")]


def _start(centre: float, side: int, length: int) -> int:
    """The first pixel of a piece of `side` pixels around `centre`, along an image's side of `length` pixels. The piece
    stays within the image."""
    return min(max(math.floor(centre - (side - 1) / 2), 0), length - side)


def _mark(tile: Image.Image, where: tuple[int, int], half: int) -> None:
    """Draw the corners of a square around `where` (row, column). half : half its side, pixels. The corners are white
    with a dark edge, so they are visible on any cell."""
    pen = ImageDraw.Draw(tile)
    row, column = where
    for grow, colour in ((1, _MARK_EDGE), (0, PAPER)):
        for down in (-1, 1):
            for right in (-1, 1):
                y, x = row + down * half, column + right * half
                for dy, dx in ((0, -right * _ARM), (-down * _ARM, 0)):
                    top, left = min(y, y + dy), min(x, x + dx)
                    pen.rectangle(
                        (left - grow, top - grow, left + abs(dx) + 1 + grow, top + abs(dy) + 1 + grow), fill=colour
                    )


class _Page(Page):
    """A picture being drawn."""

    def band(self, box: tuple[int, int, int, int], kind: str, line: str) -> None:
        paper, ink = (_WARN_PAPER, _WARN_INK) if kind == "warning" else (_NOTE_PAPER, _NOTE_INK)
        self.pen.rounded_rectangle(box, 8, fill=paper)
        x, y = box[0] + 16, box[1] + 11
        if kind == "warning":
            self.pen.polygon([(x, y + 21), (x + 12, y), (x + 24, y + 21)], fill=ink)
            self.pen.line([(x + 12, y + 8), (x + 12, y + 14)], fill=paper, width=3)
            self.pen.rectangle((x + 11, y + 16, x + 13, y + 18), fill=paper)
        else:
            self.pen.rectangle((x, y + 5, x + 14, y + 19), outline=ink, width=2)
            self.pen.rectangle((x + 6, y, x + 20, y + 14), fill=paper, outline=ink, width=2)
        self.text((x + 38, y), line, 18, bold=True, colour=ink, room=box[2] - x - 54)

    def image(
        self,
        at: tuple[int, int],
        image: NDArray[np.uint8] | None,
        centre: tuple[float, float] | None = None,
        size: int = _TILE,
    ) -> None:
        """Draw a tile with the piece of `image` around `centre` (row, column), by default the image's middle. size :
        side of the tile, pixels."""
        x, y = at
        if image is None:
            self.pen.rectangle((x, y, x + size - 1, y + size - 1), fill="#f1f3f5", outline=LINE)
            self.text((x + size / 2, y + size / 2 - 9), "no image kept", 16, colour=SOFT, align="centre")
            return
        height, width = image.shape[:2]
        row, column = centre or ((height - 1) / 2, (width - 1) / 2)
        side = min(height, width, _PIECE)
        left, upper = _start(column, side, width), _start(row, side, height)
        box = (left, upper, left + side, upper + side)
        tile = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS, box=box)
        if is_off_middle(distance_from_middle((row, column), (height, width))):
            scale = size / side
            where = (round((row + 0.5 - upper) * scale), round((column + 0.5 - left) * scale))
            _mark(tile, where, min(round(_MARK * scale), _MARK_MOST))
        self.picture.paste(tile, at)

    def reference(
        self,
        at: tuple[int, int],
        rank: int,
        reference: Mapping[str, Any],
        image: NDArray[np.uint8] | None,
        centre: tuple[float, float] | None,
    ) -> None:
        x, y = at
        label, source = str(reference["label"]), str(reference["label_source"])
        colour = class_colour(label)
        self.image(at, image, centre)
        self.pen.rectangle((x, y + _TILE, x + _TILE - 1, y + _TILE + 4), fill=colour)
        self.pen.rounded_rectangle((x + 8, y + 8, x + 20 + 11 * len(str(rank)), y + 32), 6, fill=PAPER)
        self.text((x + 14 + 5.5 * len(str(rank)), y + 10), str(rank), 16, bold=True, colour=SOFT, align="centre")
        if reference.get("may_be_same"):
            self._badge((x, y), "may be the very cell", 178)
        elif reference.get("duplicate_of"):
            self._badge((x, y), "captured again", 136)
        if reference.get("origin") == "central":
            self._badge((x, y), "central")
        elif reference.get("origin") == "shared":
            self._badge((x, y), "other lab")
        line = y + _TILE + 12
        self._name((x, line), label, INK)
        self._source(x, line + 32, source)
        self.text((x + _TILE, line + 31), _number(reference["distance"]), 16, colour=SOFT, align="right")
        parts = {"central": ("source", "licence"), "shared": ("lab", "analyser")}.get(
            reference.get("origin", "lab"), ("slide", "analyser")
        )
        where = "  ·  ".join(str(reference[key]) for key in parts if reference.get(key))
        self.text((x, line + 56), where, 14, colour=SOFT, room=_TILE, cut="middle")

    def _badge(self, at: tuple[int, int], words: str, width: int = 94) -> None:
        """Write words into the upper right corner of a tile, on a ground of `width` pixels."""
        x, y = at
        self.pen.rounded_rectangle((x + _TILE - 8 - width, y + 8, x + _TILE - 8, y + 34), 6, fill=_NOTE_PAPER)
        self.text((x + _TILE - 8 - width // 2, y + 12), words, 15, bold=True, colour=_NOTE_INK, align="centre")

    def contrast(
        self, at: tuple[int, int], size: int, cells: Sequence[Mapping[str, Any]], images: Sequence[Shown]
    ) -> None:
        """Draw the row of contrast: a title, and smaller tiles of `size` pixels."""
        x, y = at
        self.text((x, y), "Other classes to compare", 20, bold=True)
        for place, (cell, (image, centre)) in enumerate(zip(cells, images, strict=True)):
            left, upper = x + place * (size + _GAP), y + _TITLE
            label = str(cell["label"])
            self.image((left, upper), image, centre, size)
            self.pen.rectangle((left, upper + size, left + size - 1, upper + size + 4), fill=class_colour(label))
            line = upper + size + 12
            self._name((left, line), label, INK, size)
            self._source(left, line + 30, str(cell["label_source"]), size)
            said = f"distance {_number(cell['distance'])}"
            if cell.get("origin") == "central":
                said += f"  ·  {cell['licence']}  ·  {cell['source']}"
            if cell.get("may_be_same"):
                said += "  ·  may be the very cell"
            self.text((left, line + 53), said, 14, colour=SOFT, room=size)

    def _name(self, at: tuple[int, int], label: str, colour: str, room: int = _TILE) -> None:
        """Write a class in bold. A long name is set in a smaller size first, and then shortened."""
        size = next((s for s in (22, 20, 18) if length(label, s, True) <= room), 16)
        self.text((at[0], at[1] + (22 - size)), label, size, bold=True, room=room, colour=colour)

    def _source(self, x: int, y: int, source: str, room: int = _TILE) -> None:
        """Draw the source of a label: a full disc for a person, half a disc for the analyser, a ring for a
        prediction."""
        box = (x, y + 3, x + 13, y + 16)
        ink = "#2b7a3d" if source == "reviewed" else SOFT
        self.pen.ellipse(box, outline=ink, width=2, fill=ink if source == "reviewed" else PAPER)
        if source == "analyser":
            self.pen.pieslice(box, 90, 270, fill=ink)
        self.text((x + 21, y), _SOURCES.get(source, source), 15, colour=ink, room=room - 21)

    def query(self, at: tuple[int, int], answer: Mapping[str, Any], image: NDArray[np.uint8]) -> None:
        x, y = at
        self.pen.rounded_rectangle(
            (x - 11, y - 11, x + _TILE + 10, y + _TILE + _CAPTION + 5),
            10,
            fill="#f0f5fa",
            outline=_ACCENT,
            width=3,
        )
        cell = answer.get("cell")
        self.image(at, image, None if cell is None else (cell["row"], cell["column"]))
        said, why = _prediction(answer)
        self.pen.rectangle((x, y + _TILE, x + _TILE - 1, y + _TILE + 4), fill=SOFT if why else _ACCENT)
        line = y + _TILE + 12
        about, colour = _about(cell)
        self.text((x, line), about, 18, bold=True, colour=_ACCENT if colour == SOFT else colour, room=_TILE)
        self.text((x, line + 30), said, 15, colour=SOFT if why else INK, room=_TILE)
        for number, part in enumerate(_wrapped(why, 13, _TILE, 3)):
            self.text((x, line + 49 + 15 * number), part, 13, colour=SOFT, room=_TILE)

    def spread(self, at: tuple[int, int], room: int, n: int, shares: Sequence[tuple[str, float, str]]) -> None:
        x, y = at
        self.pen.line((x, y, x + room, y), fill=LINE, width=2)
        cells = "the one stored cell" if n == 1 else f"the {n} nearest cells"
        title = f"Classes of {cells}, weighted by likeness" if n else "No cell is stored yet, so there is no spread"
        self.text((x, y + 14), title, 20, bold=True, room=room)
        names = min(max((length(name, 18, True) for name, _, _ in shares), default=0) + 18, room * 0.4)
        left, right = x + names, x + room - 84
        for i, (name, share, colour) in enumerate(shares):
            line = y + 52 + 34 * i
            self.text((x, line + 1), name, 18, bold=True, room=names - 14)
            self.pen.rectangle((left, line, right, line + 24), fill="#eef1f3")
            if share > 0:
                self.pen.rectangle((left, line, max(left + 2, left + (right - left) * share), line + 24), fill=colour)
            self.text((x + room, line + 1), f"{share:.1%}".replace("%", " %"), 18, align="right")

    def foot(self, answer: Mapping[str, Any], width: int, height: int) -> None:
        parts = [f"bundle {str(answer['bundle'])[:12]}"]
        novelty = answer["novelty"]
        if novelty.get("p") is not None:
            if novelty["is_novel"]:
                parts.append(_how_novel(novelty))
            else:
                limit = f"novel: at most {_UNUSUAL:.0%}"
                parts.append(f"{how_far(novelty['p'], novel=False)} ({limit})".replace("%", " %"))
        elif novelty["score"] is not None:
            parts.append(f"novelty {novelty['score']:.2f} (above 1: unlike anything here)")
        parts.append("distance: mean squared error of latents")
        line = "  ·  ".join(parts)
        self.text((_MARGIN, height - _MARGIN - 14), line, 14, colour=SOFT, room=width - 2 * _MARGIN)


def _wrapped(text: str, size: int, room: int, most: int) -> list[str]:
    """`text` in at most so many lines; the last is cut where it is drawn."""
    words, lines = text.split(), list[str]()
    while words and len(lines) < most - 1:
        line = words.pop(0)
        while words and length(f"{line} {words[0]}", size, False) <= room:
            line = f"{line} {words.pop(0)}"
        lines.append(line)
    return [*lines, " ".join(words)] if words else lines


def _number(distance: float) -> str:
    """A distance with three significant figures."""
    return f"{distance:#.3g}".rstrip(".") if 1e-3 <= abs(distance) < 1000 else f"{distance:.3g}"
