"""What stands before the application: it lets in only whom it knows, and only as much as is read.

A request has to name a host that this agent has: that keeps out web pages that rebind their name in the DNS. Everything
but a few plain addresses needs the lab's token, or the cookie of a person who signed in; see `labref.web.visitors`.
What a person changes has to be sent by a page of this agent, and be allowed to their role.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Set
from typing import Final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labref.errors import AgentError, LabrefError, UnreadableImageError
from labref.lab.log import Log
from labref.operations import PREFIX
from labref.roles import Role
from labref.web.connections import CONNECTION, Connection
from labref.web.failures import failure, unexpected
from labref.web.rate import Rate
from labref.web.visitors import VISITOR, Visitors, origin_is_own

__all__ = ["Guard"]

_JSON_BYTES: Final = 64_000_000  # parameters; a list of 200,000 labels
_PICTURES: Final = (30, 1.0)  # that a person may ask about: at once, and a second
_FORM_BYTES: Final = 64_000  # what a stranger may send: the code they sign in with
_PLAIN: Final = frozenset({"/health", "/metrics", "/favicon.ico", "/sign-in"})  # without token and session
_STATIC: Final = "/static/"
_SAFE: Final = frozenset({"GET", "HEAD"})
_DRAINED_BYTES: Final = 1_000_000  # of the body of a refused request, so that its sender gets to read why
_DRAINED_SECONDS: Final = 1.0
_CLOSE: Final = (b"connection", b"close")
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
        b"connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
)
_UNCACHED: Final = (b"cache-control", b"no-store")  # pages name patients


class Guard:
    """Admits only requests that name this agent as their host, that come from somebody it knows, and whose body is not
    too large."""

    def __init__(
        self,
        app: ASGIApp,
        visitors: Visitors,
        *,
        hosts: Set[str],
        roles: Mapping[str, Role],
        of_images: Set[str],
        image_bytes: int,
        log: Log,
    ) -> None:
        """hosts : names that a request may give, lower case.  roles : what a path under /api needs a person to be at
        least.  of_images : paths whose body is an image, of at most `image_bytes`."""
        self._app = app
        self._visitors = visitors
        self._hosts = hosts
        self._roles = roles
        self._of_images = of_images
        self._image_bytes = image_bytes
        self._rate = Rate(*_PICTURES)
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path: str = scope["path"]
        if _name_of_host(headers) not in self._hosts:
            await _turn_away(
                421, AgentError("labref answers only to requests for 127.0.0.1 or localhost"), scope, receive, send
            )
            return
        visitor = self._visitors.of(headers)
        in_api = path.startswith(f"{PREFIX}/") or path == "/api"
        open_to_all = path in _PLAIN or path.startswith(_STATIC)
        if visitor is None and not open_to_all:
            if not in_api and scope["method"] in _SAFE and b"text/html" in headers.get(b"accept", b""):
                asked = path + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
                to_sign_in = RedirectResponse(f"/sign-in?next={quote(asked, safe='')}", 303, {"Connection": "close"})
                await to_sign_in(scope, receive, send)
                return
            why: LabrefError = AgentError("this needs the lab's token: Authorization: Bearer <content of LAB/token>")
            await _turn_away(401, why, scope, receive, send)
            return
        by_browser = visitor is None or visitor.name is not None
        if by_browser and scope["method"] not in _SAFE and not (path == "/health" or origin_is_own(headers)):
            await _turn_away(
                403, AgentError("a page of another site, or none, sent this; it is refused"), scope, receive, send
            )
            return
        if visitor is not None and in_api and not visitor.role.covers(self._roles.get(path, Role.VIEW)):
            why = AgentError(f"this needs the role {self._roles[path]}, and {visitor.name} has {visitor.role}")
            await _turn_away(403, why, scope, receive, send)
            return
        scope[VISITOR] = visitor
        connection: Connection | None = scope.get(CONNECTION)
        if visitor is not None and connection is not None:
            connection.admit()
        of_image = path in self._of_images
        most = self._image_bytes if of_image else _JSON_BYTES
        if visitor is None:
            most = _FORM_BYTES
        too_large = f"too large: at most {most / 1e6:g} MB are read"
        announced = int(headers.get(b"content-length", b"0"))
        if announced > most:
            why = UnreadableImageError(too_large) if of_image else LabrefError(too_large)
            drained = announced if visitor is not None else _DRAINED_BYTES
            await _turn_away(413, why, scope, receive, send, drained=drained)
            return
        if of_image and by_browser and scope["method"] not in _SAFE:
            waiting = self._rate.wait_seconds(str(visitor.name)) if visitor is not None else 1.0
            if waiting > 0:
                why = LabrefError("too many pictures one after the other; wait a moment, then ask again")
                await _turn_away(429, why, scope, receive, send, drained=announced, wait=waiting)
                return
        size = 0
        started = False

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise HTTPException(413, too_large)
            return message

        async def watch_start(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {
                    **message,
                    "headers": [*message.get("headers", ()), *_added(message, closed=visitor is None)],
                }
            await send(message)

        try:
            await self._app(scope, receive_limited, watch_start)
        except Exception as error:
            # the message may name a file, and the server would print it with a traceback
            self._log.error("a request failed", path=path.split("/")[1:3], error=type(error).__name__)
            if not started:
                await failure(500, unexpected(error))(scope, receive, send)


def _name_of_host(headers: Mapping[bytes, bytes]) -> str:
    host = headers.get(b"host", b"").decode("latin-1").lower()
    return host.rsplit(":", 1)[0]


def _added(message: Message, *, closed: bool) -> list[tuple[bytes, bytes]]:
    """Headers that the guard adds to an answer. closed : its connection ends, as a stranger's does."""
    given = {name.lower() for name, _ in message.get("headers", ())}
    added = [header for header in _HEADERS if header[0] not in given]
    if b"cache-control" not in given:
        added.append(_UNCACHED)
    if closed or message["status"] == 413:
        added.append(_CLOSE)
    return added


async def _turn_away(
    code: int,
    error: Exception,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    drained: int = _DRAINED_BYTES,
    wait: float = 0.0,
) -> None:
    """Answer a request that is not let in and close its connection, when its sender has had a moment to hear it.

    drained : so many bytes of its body are read at most, and thrown away.  wait : seconds until it may be sent again.
    """
    headers = dict(scope["headers"])
    told = {"Connection": "close"} | ({"Retry-After": str(int(wait) + 1)} if wait else {})
    answer: Response = failure(code, error, told)
    if b"text/html" in headers.get(b"accept", b"") and not scope["path"].startswith(f"{PREFIX}/"):
        answer = PlainTextResponse(str(error), code, told)
    held: list[Message] = []

    async def send_but_the_end(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            held.append({"type": "http.response.body", "body": b"", "more_body": False})
            message = {**message, "more_body": True}
        await send(message)

    await answer(scope, receive, send_but_the_end)
    if b"expect" not in headers:  # who asks first sends no body now
        left, more = drained, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAINED_SECONDS):
                while more and left > 0:
                    message = await receive()
                    more = message.get("more_body", False)
                    left -= len(message.get("body", b""))
    for message in held:
        await send(message)
