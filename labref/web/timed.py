"""How long requests take, for the metrics."""

from __future__ import annotations

import re
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labref.web.metrics import Metrics

__all__ = ["Timed"]

_PICTURE: Final = re.compile(r"\.png$|/picture$|/image$")


class Timed:
    """Measures how long each request takes, until its answer is sent; streams of events, which last as long as a page
    is open, are left out."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/events":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            if status:  # else nobody was answered
                seconds = time.perf_counter() - started
                self._metrics.requests.labels(kind=_kind(scope["path"]), status=f"{status // 100}xx").observe(seconds)


def _kind(path: str) -> str:
    if path in ("/health", "/metrics"):
        return "monitoring"
    if path.startswith("/static/"):
        return "static"
    if _PICTURE.search(path):
        return "picture"
    return "api" if path.startswith("/api/") else "page"
