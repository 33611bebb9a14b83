"""What a monitoring server on another computer may ask: /metrics and nothing else, with a token of its own."""

from __future__ import annotations

import hmac
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from labref.web.connections import CONNECTION, Connection
from labref.web.metrics import METRICS_TYPE, Metrics

__all__ = ["scraped_app"]

_CLOSE: Final = {"Connection": "close", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def scraped_app(metrics: Metrics, token: str) -> ASGIApp:
    """An application that answers GET /metrics to whoever has the token, 401 to others, and 404 to all else."""
    wanted = f"Bearer {token}".encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer: Response
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, wanted):
            answer = PlainTextResponse(
                "this needs the token that is in LAB/metrics-token: Authorization: Bearer TOKEN\n",
                401,
                {**_CLOSE, "WWW-Authenticate": "Bearer"},
            )
        elif scope["path"] != "/metrics" or scope["method"] not in ("GET", "HEAD"):
            answer = PlainTextResponse("here is nothing but GET /metrics\n", 404, _CLOSE)
        else:
            connection: Connection | None = scope.get(CONNECTION)
            if connection is not None:
                connection.admit(None)
            text = await run_in_threadpool(metrics.text)
            answer = Response(text, media_type=METRICS_TYPE, headers={"Cache-Control": "no-store"})
        await answer(scope, receive, send)

    return app
