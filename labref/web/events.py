"""What happens in the lab, as server-sent events: a page that is open asks for what is new.

    GET /events     event-stream; `data` is the number of the store's sequence, each time it has grown

An event says nothing but that there is something to ask for, so it holds no name. A stream ends at once when the agent
does, when whoever opened it is no longer signed in, and when they leave; a stream is no use of a session. While
nothing happens, a stream looks at one number a second, and at the disk never.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from labref.errors import AgentError
from labref.web.connections import CONNECTION, Connection
from labref.web.failures import failure
from labref.web.visitors import Visitors, visitor_of

__all__ = ["MOST_EACH", "MOST_STREAMS", "Events"]

MOST_STREAMS: Final = 64
"""The most streams at once: half of all connections."""
MOST_EACH: Final = 8
"""The most streams of one person."""
_SECONDS: Final = 1.0  # between two looks
_SILENT_SECONDS: Final = 20.0  # after so long a line says that the stream is alive, which also finds who has left


class Events:
    """The streams of one agent."""

    def __init__(self, latest: Callable[[], int], visitors: Visitors) -> None:
        """latest : the largest number of the store's sequence; called from any thread."""
        self._latest, self._visitors = latest, visitors
        self._open: Counter[str | None] = Counter()
        self._number, self._read_at = 0, 0.0

    async def endpoint(self, request: Request) -> Response:
        """Answer a request for the stream."""
        name = visitor_of(request).name
        if self._open.total() >= MOST_STREAMS or self._open[name] >= MOST_EACH:
            return failure(503, AgentError("too many pages that update by themselves are open; close some of them"))
        return StreamingResponse(
            self._stream(request, name), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
        )

    async def _stream(self, request: Request, name: str | None) -> AsyncIterator[bytes]:
        connection: Connection | None = request.scope.get(CONNECTION)
        leaving = asyncio.Event() if connection is None else connection.leaving
        headers = dict(request.scope["headers"])
        sent, said_at = -1, time.monotonic()
        self._open[name] += 1
        try:
            yield b"retry: 3000\n\n"
            while not leaving.is_set() and self._visitors.stays(headers):
                number = await self._now()
                if number != sent:
                    sent, said_at = number, time.monotonic()
                    yield f"data: {number}\n\n".encode()
                elif time.monotonic() - said_at > _SILENT_SECONDS:
                    said_at = time.monotonic()
                    yield b":\n\n"
                try:
                    await asyncio.wait_for(leaving.wait(), _SECONDS)
                except TimeoutError:
                    continue
        finally:
            self._open[name] -= 1
            self._open += Counter()  # only those above 0 are kept

    async def _now(self) -> int:
        """The latest number, looked up once a second for all streams."""
        if time.monotonic() - self._read_at > _SECONDS / 2:
            self._read_at = time.monotonic()
            self._number = await run_in_threadpool(self._latest)
        return self._number
