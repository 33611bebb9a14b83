"""Pictures of cells, and the colours of their classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final, get_args

from starlette.responses import Response

from labref.errors import UnreadableImageError
from labref.lab.pictures import View
from labref.operations.classes import style_of
from labref.pictures.colours import colour_of
from labref.web.pages import Visit, page

__all__ = ["class_colours", "made_picture"]

_VIEWS: Final = {name: name for name in get_args(View)}
_KEPT_SECONDS: Final = 3600  # what a cell looks like does not change, but it may be removed
_NO_PICTURE: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96"><circle cx="48" cy="48" r="24" fill="none" stroke="#888" '
    'stroke-width="3" stroke-dasharray="6 5"/></svg>'
)


@page("/cell/{cell_id}/picture")
def picture(visit: Visit, cell_id: str) -> Response:
    view: View | None = _VIEWS.get(visit.query.get("view", "captured"))
    if view is None:
        return _none(f"there is no such view; there is {', '.join(_VIEWS)}", 400)
    mark = visit.pictures.mark(cell_id, view)
    if mark is None:
        return _none("there is no such cell", 404)
    headers = {"ETag": f'"{mark}"', "Cache-Control": f"private, max-age={_KEPT_SECONDS}"}
    if _has(visit, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return made_picture(lambda: visit.pictures.of_cell(cell_id, view), headers)


@page("/central/{bundle}/{cell_id}/picture")
def central(visit: Visit, bundle: str, cell_id: str) -> Response:
    """The picture of a cell of a bundle's atlas."""
    view: View | None = _VIEWS.get(visit.query.get("view", "captured"))
    if view is None:
        return _none(f"there is no such view; there is {', '.join(_VIEWS)}", 400)
    headers = {"Cache-Control": f"private, max-age={_KEPT_SECONDS}"}
    return made_picture(lambda: visit.pictures.of_central(bundle, cell_id, view), headers)


@page("/shared/picture")
def of_others(visit: Visit) -> Response:
    """The thumbnail of a cell of another lab, by the shared store; a dashed circle where that has none yet, as labs
    send pictures after all else, or cannot be reached."""
    made = visit.pictures.of_shared(visit.query.get("lab", ""), visit.query.get("cell", ""))
    if made is None:
        return Response(_NO_PICTURE, media_type="image/svg+xml", headers={"Cache-Control": "no-store"})
    return Response(made, media_type="image/jpeg", headers={"Cache-Control": f"private, max-age={_KEPT_SECONDS}"})


def made_picture(make: Callable[[], bytes | None], headers: Mapping[str, str]) -> Response:
    """The picture, JPEG or PNG, that `make` gives, or why there is none."""
    try:
        made = make()
    except UnreadableImageError as error:
        return _none(str(error), 422)
    if made is None:
        return _none("no picture is kept of this cell", 404)
    return Response(made, media_type="image/png" if made.startswith(b"\x89PNG") else "image/jpeg", headers=headers)


def class_colours(labels: Iterable[str]) -> str:
    """The style sheet with the colours of these classes, on light and on dark ground."""
    light, dark = [], []
    for label in labels:
        colour, style = colour_of(label), style_of(label)
        light.append(f".{style} {{ --class: {colour.light}; }}\n")
        dark.append(f".{style} {{ --class: {colour.dark}; }}\n")
    return "".join(light) + "@media (prefers-color-scheme: dark) {\n" + "".join(dark) + "}\n"


@page("/classes.css")
def colours(visit: Visit) -> Response:
    made = class_colours([row["label"] for row in visit.ask("classes.list")]).encode()
    # it changes with the lab's classes: asked for each time, and then mostly not sent
    headers = {"ETag": f'"{hashlib.sha256(made).hexdigest()[:20]}"', "Cache-Control": "private, no-cache"}
    if _has(visit, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(made, media_type="text/css", headers=headers)


def _has(visit: Visit, mark: str) -> bool:
    """Whether the browser has what this mark stands for."""
    known = visit.request.headers.get("if-none-match", "").split(",")
    return mark in {one.strip().removeprefix("W/") for one in known}


def _none(why: str, status: int) -> Response:
    return Response(why, status, media_type="text/plain; charset=utf-8")
