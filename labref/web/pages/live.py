"""The cells that come in."""

from __future__ import annotations

from starlette.responses import Response

from labref.web.pages import Visit, page


@page("/")
def live(visit: Visit) -> Response:
    return visit.show("live.html", status_now=visit.one("status"))
