"""The page of one cell: it stands in the middle, and the eight cells most like it around it (figure 34 of the thesis).

The same page shows a picture that somebody dropped, pasted or chose, of which nothing is stored.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

from starlette.responses import Response

from labref.errors import LabrefError, UnreadableImageError
from labref.lab.pictures import View
from labref.progress import Row
from labref.web.pages import Visit, page
from labref.web.pages.map import key_of

_VIEWS: Final[tuple[View, ...]] = ("cell", "normalised", "nucleus")
_BY: Final = ("latent", "map")
_OPTICS: Final = ("same", "any")
_LABS: Final = ("own", "optics", "all")  # whose cells are references: of nobody else, of the same optics, of all labs
_BARS: Final = 8  # classes of the spread; the rest stand together
_LEAST_BAR: Final = 0.005  # a smaller share would be written as 0 %
_AROUND: Final = 8
_MOST_PARTS: Final = 20  # of a form; the page's own has one


@page("/cell/{cell_id}", brief=True)
def cell(visit: Visit, cell_id: str) -> Response:
    chosen = _chosen(visit)
    (shown,) = visit.named(
        "cell.show", cell=cell_id, by=chosen["by"], any_optics=chosen["optics"] == "any", shared=_labs(visit, chosen)
    )
    sources: dict[str, str] = {view: f"/cell/{shown['cell_id']}/picture?view={view}" for view in _VIEWS}
    return _show(visit, shown, chosen, sources)


@page("/ask")
def choose(visit: Visit) -> Response:
    return visit.show("ask.html", problem=None)


@page("/ask", methods=("POST",))
def ask(visit: Visit) -> Response:
    chosen = _chosen(visit)
    try:
        data = upload(visit.request.headers.get("content-type", ""), visit.body)
        if not data:
            raise UnreadableImageError(visit.texts.gettext("No picture was chosen."))
        asked = visit.one(
            "query", data=data, by=chosen["by"], any_optics=chosen["optics"] == "any", shared=_labs(visit, chosen)
        )
        sources: dict[str, str] = {view: inline(visit.pictures.of_bytes(data, view)) for view in _VIEWS}
    except LabrefError as error:
        return visit.show("ask.html", status=422, problem=visit.problem(error))
    asked |= {"cell_id": None, "label": asked["predicted"]["label"], "label_source": "predicted"}
    return _show(visit, asked, chosen, sources)


def _show(visit: Visit, shown: Row, chosen: Mapping[str, str], sources: Mapping[str, str]) -> Response:
    classes = list(visit.ask("classes.list"))
    place = shown["map"]
    own_map = None if place is None or place["analyser"] is None else key_of(place["analyser"])
    on_map = {name: value for name, value in (("cell", shown["cell_id"]), ("analyser", own_map)) if value}
    return visit.show(
        "cell.html",
        shown=shown,
        chosen=chosen,
        sources=sources,
        views=_VIEWS,
        classes=classes,
        styles={row["label"]: row["style"] for row in classes},
        bars=_bars(shown["distribution"]["weights"]),
        tiles=_tiles(shown["references"]),
        address=lambda **other: "?" + urlencode({**chosen, **other}),
        three=three,
        own_map=own_map,
        map_query="?" + urlencode(on_map) if on_map else "",
        shares=visit.pictures.shares,
        thumbnail=lambda one: "/shared/picture?" + urlencode({"lab": one["lab"], "cell": one["cell_id"]}),
    )


def _chosen(visit: Visit) -> dict[str, str]:
    """What the address asks for; the first of each where it says nothing that there is."""
    wanted = visit.query
    return {
        name: value if (value := wanted.get(name, "")) in known else known[0]
        for name, known in (("by", _BY), ("optics", _OPTICS), ("view", _VIEWS), ("labs", _LABS))
    }


def _labs(visit: Visit, chosen: Mapping[str, str]) -> str:
    """Whose cells are wanted; an address can be of a time when the lab had a shared store."""
    return chosen["labs"] if visit.pictures.shares else "own"


def _tiles(references: Sequence[Row]) -> list[Row | None]:
    """The places of the nine, row by row; None for the middle and for those that stay empty."""
    around: list[Row | None] = [*references[:_AROUND], *[None] * (_AROUND - len(references))]
    return [*around[: _AROUND // 2], None, *around[_AROUND // 2 :]]


def _bars(weights: Mapping[str, float]) -> list[tuple[str | None, float]]:
    """Class and share of each bar, the largest first; what does not fit is one bar of no class."""
    shares = sorted(weights.items(), key=lambda item: -item[1])
    seen = [item for item in shares if item[1] >= _LEAST_BAR or item is shares[0]][:_BARS]
    rest = math.fsum(share for _, share in shares[len(seen) :])
    return [*seen, (None, rest)] if len(seen) < len(shares) else [*seen]


def three(value: float) -> str:
    """A number with three figures."""
    if value == 0 or not math.isfinite(value):
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits < 7 else f"{value:.2e}"


def inline(data: bytes) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def upload(kind: str, body: bytes) -> bytes:
    """The picture in what a form sent (multipart/form-data), or in a body that is the picture itself."""
    main, _, more = kind.partition(";")
    if main.strip().lower() != "multipart/form-data":
        return body
    parameters: dict[str, Any] = {
        name.strip().lower(): value.strip().strip('"')
        for name, _, value in (part.partition("=") for part in more.split(";"))
    }
    boundary = parameters.get("boundary", "").encode("latin-1", "replace")
    if not boundary:
        raise UnreadableImageError("the form was sent without its boundary; choose the picture again")
    start = b"--" + boundary
    for part in (b"\r\n" + body).split(b"\r\n" + start, _MOST_PARTS + 1)[1 : _MOST_PARTS + 1]:
        head, found, content = part.partition(b"\r\n\r\n")
        if found and b'name="image"' in head:
            return content
    return b""
