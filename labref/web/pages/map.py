"""The map: drawn in tiles, looked at in a deep-zoom viewer, or, without its script, as one picture.

What a tile shows stands in its address, `/map/tiles/VERSION/LAYER/LEVEL/X_Y.png`: the version is that of `map.picture`,
and the layer says what is drawn of which cells by keys that name nobody (`Layer`). A tile is drawn from what
`map.picture` answered once for its layer, in some milliseconds, so tiles are kept in memory only.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np
from PIL import Image
from starlette.responses import Response

from labref.errors import LabrefError, UnreadableImageError
from labref.lab.kept import Kept
from labref.pictures.colours import colour_of
from labref.pictures.tiles import NODE, TILE, Kind, Terrain, draw_picture, draw_tile, levels, side_in_picture, size
from labref.progress import Row
from labref.web.pages import NotThereError, Visit, page, page_number, whole_number

_SOURCES: Final = ("reviewed", "analyser", "predicted")
_CELLS_A_PAGE: Final = 60
_SUSPECTS: Final = 40
_PICTURE: Final = 1024  # longer side of the map as one picture, pixels
_FRESH: Final = {"Cache-Control": "private, max-age=86400, immutable"}
_NOT_KEPT: Final = {"Cache-Control": "no-store"}


@dataclass(frozen=True)
class Layer:
    """What is drawn, as text such as `classes-light~c1a2b3c4d.5e6f7a8b~s<key>~a1a2b3c4d~f20260101~lreviewed~m`.

    what : of `labref.pictures.tiles`.  classes : style names of `classes.list` without "c-".  slide, against : keys of
    slides; with both, `what` is "compare".  analysers : beginnings of the digests of their names.  since, until : days.
    sources : who gave the class.  doubtful : whether nodes with doubtful labels are red.
    """

    what: Kind = "classes"
    dark: bool = False
    classes: tuple[str, ...] = ()
    slide: str = ""
    against: str = ""
    analysers: tuple[str, ...] = ()
    since: date | None = None
    until: date | None = None
    sources: tuple[str, ...] = ()
    doubtful: bool = False

    @staticmethod
    def of_text(text: str) -> Layer | None:
        """The layer of an address; None where it is none."""
        head, *parts = text.split("~")
        what, _, theme = head.partition("-")
        if what not in ("classes", "umatrix", "compare") or theme not in ("light", "dark"):
            return None
        values: dict[str, Any] = {"what": what, "dark": theme == "dark"}
        for part in parts:
            name, rest = part[:1], part[1:]
            if name in "ca" and re.fullmatch(r"[0-9a-f]{8}(\.[0-9a-f]{8})*", rest):
                values["classes" if name == "c" else "analysers"] = tuple(rest.split("."))
            elif name in "sv" and re.fullmatch("[0-9a-f]{20}", rest):
                values["slide" if name == "s" else "against"] = rest
            elif name in "ft" and (day := _day(rest)) is not None:
                values["since" if name == "f" else "until"] = day
            elif name == "l" and rest and all(source in _SOURCES for source in rest.split(".")):
                values["sources"] = tuple(rest.split("."))
            elif part == "m":
                values["doubtful"] = True
            else:
                return None
        return Layer(**values)

    @staticmethod
    def of_query(visit: Visit) -> Layer:
        """What the address of the page asks for; what is no such thing is passed over."""
        query = visit.request.query_params

        def all_of(name: str, pattern: str) -> tuple[str, ...]:
            return tuple(sorted({value for value in query.getlist(name)[:200] if re.fullmatch(pattern, value)}))

        one, other = (next(iter(all_of(name, "[0-9a-f]{20}")), "") for name in ("slide", "against"))
        return Layer(
            "compare" if one and other else "umatrix" if query.get("what") == "umatrix" else "classes",
            False,
            all_of("class", "[0-9a-f]{8}"),
            one,
            other,
            all_of("analyser", "[0-9a-f]{8}"),
            _day(query.get("since", "")),
            _day(query.get("until", "")),
            tuple(source for source in _SOURCES if source in query.getlist("source")),
            query.get("doubtful") == "1",
        )

    def text(self, *, dark: bool) -> str:
        """As it stands in addresses."""
        parts = [f"{self.what}-{'dark' if dark else 'light'}"]
        parts += [f"c{'.'.join(self.classes)}"] if self.classes else []
        parts += [f"s{self.slide}"] if self.slide else []
        parts += [f"v{self.against}"] if self.against else []
        parts += [f"a{'.'.join(self.analysers)}"] if self.analysers else []
        parts += [f"f{self.since:%Y%m%d}"] if self.since else []
        parts += [f"t{self.until:%Y%m%d}"] if self.until else []
        parts += [f"l{'.'.join(self.sources)}"] if self.sources else []
        return "~".join([*parts, *(["m"] if self.doubtful else [])])

    def query(self) -> list[tuple[str, str]]:
        """As parameters in the address of a page."""
        return [
            *(("class", style) for style in self.classes),
            *((name, value) for name, value in (("slide", self.slide), ("against", self.against)) if value),
            *(("analyser", key) for key in self.analysers),
            *((name, day.isoformat()) for name, day in (("since", self.since), ("until", self.until)) if day),
            *(("source", source) for source in self.sources),
            *([("doubtful", "1")] if self.doubtful else []),
            *([("what", "umatrix")] if self.what == "umatrix" else []),
        ]

    def parameters(self, visit: Visit) -> dict[str, Any]:
        """As parameters of `map.picture` and its kin."""
        asked: dict[str, Any] = {}
        if self.classes:
            styles = {one["style"]: one["label"] for one in visit.ask("classes.list")}
            asked["classes"] = [styles[f"c-{style}"] for style in self.classes if f"c-{style}" in styles]
        if self.slide:
            asked["slides"] = [self.slide, *([self.against] if self.against else [])]
        if self.analysers:
            names = _analysers(visit)
            asked["analysers"] = [names[key] for key in self.analysers if key in names]
        asked |= {name: day.isoformat() for name, day in (("since", self.since), ("until", self.until)) if day}
        return asked | ({"sources": list(self.sources)} if self.sources else {})


def _analysers(visit: Visit) -> dict[str, str]:
    """The names of the microscopes whose cells are on the map, by key."""
    return {key_of(name): name for name in visit.one("map.facets")["analysers"]}


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text.isascii() else None
    except ValueError:
        return None


def key_of(analyser: str) -> str:
    """What stands for an analyser in addresses."""
    return sha256(b"analyser:" + analyser.encode("utf-8", "surrogatepass")).hexdigest()[:8]


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What the tiles of one layer are drawn from. map, version, analyser : of `map.picture`.  cell_id : of each node,
    row by row."""

    map: int
    version: str
    analyser: str | None
    terrain: Terrain
    cell_id: list[str | None]
    by_class: list[int]
    chosen: int
    placed: int


# one agent serves one lab in this process; a version stands for its map, its cells and their labels
_drawn: Kept[_Drawn] = Kept(24)
_tiles: Kept[bytes] = Kept(48_000_000)
_cells: Kept[Image.Image] = Kept(400)


def _terrain(visit: Visit, version: str | None, layer: Layer) -> _Drawn:
    """What the tiles of a layer are drawn from. version : the one that is wanted; where it is gone, or None, the
    newest."""
    text = layer.text(dark=False)
    found = _drawn.get((version, text))
    if found is not None:
        return found
    with _drawn.making((version, text)):
        found = _drawn.get((version, text))
        if found is None:
            found = _read(visit, layer)
            _drawn.put((found.version, text), found)
        return found


def _read(visit: Visit, layer: Layer) -> _Drawn:
    asked = layer.parameters(visit)
    row = visit.one("map.picture", **asked)
    shape = row["rows"], row["columns"]
    known = {one["label"]: one for one in visit.ask("classes.list")}
    nothing = np.zeros(shape, np.bool_)
    one = other = nothing
    if layer.what == "compare":
        one, other = (
            np.array(visit.one("map.picture", **(asked | {"slides": [key]}))["cells"]).reshape(shape) > 0
            for key in (layer.slide, layer.against)
        )
    terrain = Terrain(
        np.array(row["u"], np.float32).reshape(shape),
        np.array(row["label"], np.int32).reshape(shape),
        np.array(row["area"], np.int32).reshape(shape),
        (np.array(row["doubtful"]).reshape(shape) > 0) if layer.doubtful else nothing,
        one,
        other,
        np.array(row["cells"], np.int32).reshape(shape),
        row["classes"],
        [known[label]["code"] if label in known else "?" for label in row["classes"]],
        [(known[label]["key"] if label in known else None) or "+" for label in row["classes"]],
        [colour_of(label).light for label in row["classes"]],
        [colour_of(label).dark for label in row["classes"]],
        pale=layer.doubtful,
        whole=not asked,
    )
    return _Drawn(
        row["map"],
        row["version"],
        row["analyser"],
        terrain,
        row["cell_id"],
        row["by_class"],
        row["chosen"],
        row["placed"],
    )


def _cell_picture(visit: Visit, of: _Drawn) -> Callable[[int, int], Image.Image | None]:
    def picture(row: int, column: int) -> Image.Image | None:
        cell_id = of.cell_id[row * of.terrain.columns + column]
        if cell_id is None:
            return None
        found = _cells.get(cell_id)
        if found is None:
            with contextlib.suppress(UnreadableImageError):
                data = visit.pictures.of_cell(cell_id, "thumb")
                if data is not None:
                    # labref made it itself: nothing from outside is decoded here
                    found = Image.open(io.BytesIO(data)).convert("RGB")
                    _cells.put(cell_id, found)
        return found

    return picture


@page("/map/tiles/{version}/{layer}/{level:int}/{x:int}_{y:int}.png")
def tile(visit: Visit, version: str, layer: str, level: int, x: int, y: int) -> Response:
    """One tile."""
    wanted = Layer.of_text(layer)
    if wanted is None or max(level, x, y) > 1_000_000:
        return Response(status_code=404)
    address = (version, wanted, level, x, y)
    found = _tiles.get(address)
    if found is not None:
        return Response(found, media_type="image/png", headers=_FRESH)
    drawn = _terrain(visit, version, wanted)
    picture = _cell_picture(visit, drawn)
    data = draw_tile(drawn.terrain, wanted.what, level, x, y, dark=wanted.dark, cell=picture)
    if data is None:
        return Response(status_code=404)
    if drawn.version != version:  # cells came or labels changed since the page was made
        return Response(data, media_type="image/png", headers=_NOT_KEPT)
    _tiles.put(address, data, len(data))
    return Response(data, media_type="image/png", headers=_FRESH)


@page("/map/picture/{version}/{layer}.png")
def whole(visit: Visit, version: str, layer: str) -> Response:
    """The whole map as one picture."""
    wanted = Layer.of_text(layer)
    if wanted is None:
        return Response(status_code=404)
    drawn = _terrain(visit, version, wanted)
    picture = draw_picture(drawn.terrain, wanted.what, side_in_picture(drawn.terrain, _PICTURE), dark=wanted.dark)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=3)
    headers = _FRESH if drawn.version == version else _NOT_KEPT
    return Response(file.getvalue(), media_type="image/png", headers=headers)


@page("/map")
def map_(visit: Visit) -> Response:
    """The map, and which cells are drawn."""
    status = visit.one("map.status")
    if status["map"] is None:
        return visit.show("map-none.html", state=status)
    layer, every = Layer.of_query(visit), visit.one("map.facets")
    analysers = [{"name": name, "key": key_of(name), "cells": cells} for name, cells in every["analysers"].items()]
    one = next((one["name"] for one in analysers if layer.analysers == (one["key"],)), None)
    facets = every if one is None else visit.one("map.facets", analyser=one)
    drawn = _terrain(visit, facets["version"], layer)
    terrain, cell = drawn.terrain, visit.query.get("cell")
    side = side_in_picture(terrain, _PICTURE)
    known = {one["label"]: one for one in visit.ask("classes.list")}
    return visit.show(
        "map.html",
        layer=layer,
        drawn=drawn,
        addresses=_addresses(drawn, layer),
        pyramid=_pyramid(terrain),
        side=side,
        classes=[
            known[label] | {"shown": count, "chosen": known[label]["style"][2:] in layer.classes}
            for label, count in zip(terrain.names, drawn.by_class, strict=True)
            if label in known
        ],
        facets=facets,
        analysers=analysers,
        own=key_of(drawn.analyser) if drawn.analyser is not None else None,
        own_maps=[{"name": row["analyser"], "key": key_of(row["analyser"])} for row in status["own"]],
        spot=_spot(visit, cell, one) if cell else None,
        chosen_key=layer.analysers[0] if one is not None else "",
        known=known,
        training=status["training"],
    )


@page("/map/suspects")
def suspects(visit: Visit) -> Response:
    """The suspect labels, of one microscope's cells where the address names it by its key; with `part`, only them. In a
    large lab these take as long as the rest of the map's page."""
    chosen, one = visit.query.get("analyser", ""), None
    if chosen:
        one = _analysers(visit).get(chosen)
        if one is None:
            raise NotThereError(visit.texts.gettext("No microscope of this lab has this key."))
    has_own = one in {row["analyser"] for row in visit.one("map.status")["own"]}
    known = {row["label"]: row for row in visit.ask("classes.list")}
    return visit.show(
        "map-suspects.html" if visit.query.get("part") else "map-doubts.html",
        suspects=[
            row | {"class": known.get(row["label"])}
            for row in visit.ask("map.suspects", limit=_SUSPECTS, analysers=None if one is None else [one])
        ],
        own=chosen if has_own else None,
        chosen_key=chosen,
        thumb=_thumb,
    )


def _spot(visit: Visit, cell: str, analyser: str | None) -> Row | None:
    """Where a cell lies; None where the map is of another analyser's cells."""
    try:
        return visit.one("map.spot", cell=cell, analyser=analyser)
    except LabrefError:
        visit.one("map.spot", cell=cell)  # raises again where there is no such cell at all
        return None


@page("/map/at/{side:int}")
def at(visit: Visit, side: int) -> Response:
    """Where somebody clicked on the map as one picture: the browser adds ?x,y to the address of the link."""
    return _at(visit, side, "")


@page("/map/at/{side:int}/{analyser}")
def at_own(visit: Visit, side: int, analyser: str) -> Response:
    """The same on the map of one analyser's cells, by the beginning of the digest of its name."""
    return _at(visit, side, f"?analyser={analyser}" if re.fullmatch("[0-9a-f]{8}", analyser) else "")


def _at(visit: Visit, side: int, query: str) -> Response:
    found = re.fullmatch(r"(\d{1,6}),(\d{1,6})", visit.request.url.query)
    if found is None or not 1 <= side <= NODE:
        return visit.go(f"/map{query}")
    return visit.go(f"/map/node/{int(found[2]) // side}/{int(found[1]) // side}{query}")


@page("/map/node")
def go_to_node(visit: Visit) -> Response:
    """To the node that a form names."""
    row, column = (whole_number(visit.query.get(name), -1) for name in ("row", "column"))
    if min(row, column) < 0:
        raise LabrefError("a node has a row and a column, both whole numbers from 0")
    analyser = visit.query.get("analyser", "")
    return visit.go(
        f"/map/node/{row}/{column}" + (f"?analyser={analyser}" if re.fullmatch("[0-9a-f]{8}", analyser) else "")
    )


@page("/map/node/{row:int}/{column:int}")
def node(visit: Visit, row: int, column: int) -> Response:
    """The cells on a node."""
    return _region(visit, row, column, row, column)


@page("/map/region/{row:int}/{column:int}/{last_row:int}/{last_column:int}")
def region(visit: Visit, row: int, column: int, last_row: int, last_column: int) -> Response:
    """The cells on a rectangle of nodes."""
    return _region(visit, row, column, last_row, last_column)


def _region(visit: Visit, row: int, column: int, last_row: int, last_column: int) -> Response:
    """The cells there that the layer of the address asks for, some at a time; with `part`, only them."""
    layer = Layer.of_query(visit)
    number = page_number(visit.query.get("page"))
    places: dict[str, Any] = {"row": row, "column": column, "last_row": last_row, "last_column": last_column}
    asked = layer.parameters(visit)
    summary, *cells = visit.ask(
        "map.region", **places, **asked, offset=(number - 1) * _CELLS_A_PAGE, limit=_CELLS_A_PAGE
    )
    return visit.show(
        "map-cells.html" if visit.query.get("part") else "map-node.html",
        here=summary,
        cells=cells,
        known={one["label"]: one for one in visit.ask("classes.list")},
        number=number,
        pages=max(1, -(-summary["cells"] // _CELLS_A_PAGE)),
        address=visit.request.url.path,
        query=urlencode(layer.query()),
        chosen=bool(asked),
        thumb=_thumb,
    )


def _thumb(cell_id: str) -> str:
    """Address of a small picture of a cell."""
    return f"/cell/{cell_id}/picture?view=thumb"


def _addresses(drawn: _Drawn, layer: Layer) -> dict[str, str]:
    """Where the tiles and the picture are, on light and on dark ground."""
    found: dict[str, str] = {}
    for theme in ("light", "dark"):
        text = f"{drawn.version}/{layer.text(dark=theme == 'dark')}"
        found |= {theme: f"/map/tiles/{text}", f"{theme}_picture": f"/map/picture/{text}.png"}
    return found


def _pyramid(terrain: Terrain) -> dict[str, int]:
    (width, height), (first, last) = size(terrain.rows, terrain.columns), levels(terrain.rows, terrain.columns)
    return {"width": width, "height": height, "tile": TILE, "node": NODE, "first": first, "last": last}
