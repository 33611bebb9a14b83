"""The cells that come in."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from labref.progress import Row
from labref.web.pages import Visit, page, whole_number

_SHOWN: Final = 60


@page("/")
def live(visit: Visit) -> Response:
    before = whole_number(visit.query.get("before"), 0) or None
    slides, cells = _slides(visit, before=before)
    return visit.show(
        "live.html",
        slides=slides,
        latest=cells[0]["number"] if cells else 0,
        older=cells[-1]["number"] if len(cells) == _SHOWN else None,
        before=before,
        classes={row["label"]: row for row in visit.ask("classes.list")},
    )


@page("/live/new")
def new(visit: Visit) -> Response:
    """The cells after a number, as a piece of the page, which its script puts in."""
    slides, cells = _slides(visit, after=whole_number(visit.query.get("after"), 0))
    return visit.show(
        "live-new.html",
        slides=slides,
        latest=cells[0]["number"] if cells else 0,
        classes={row["label"]: row for row in visit.ask("classes.list")},
    )


def _slides(visit: Visit, **asked: int | None) -> tuple[list[tuple[str | None, list[Row]]], list[Row]]:
    """The cells by slide, newest first, and all of them."""
    cells = list(visit.ask("live.cells", data=None, limit=_SHOWN, **asked))
    slides: dict[str | None, list[Row]] = {}
    for cell in cells:
        slides.setdefault(cell["slide"], []).append(cell)
    return list(slides.items()), cells
