"""What stands before the application: it lets in only whom it knows, and only as much as is read.

A request has to name a host that this agent has: that keeps out web pages that rebind their name in the DNS. What comes
by HTTPS comes from elsewhere, where the lab's token is worth nothing. Everything
but a few plain addresses needs the lab's token, or the cookie of a person who signed in; see `labref.web.visitors`.
What a person changes has to be sent by a page of this agent, and be allowed to their role.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labref.errors import AgentError, LabrefError, UnreadableImageError
from labref.lab.log import Log
from labref.roles import Role
from labref.web.connections import CONNECTION, MOST_EACH, Connection
from labref.web.failures import failure, unexpected
from labref.web.rate import Rate
from labref.web.visitors import VISITOR, Visitors, origin_is_own

__all__ = ["Elsewhere", "Guard", "in_api"]

_LIST_BYTES: Final = 64_000_000  # parameters of who may do all; a list of 200,000 labels
_JSON_BYTES: Final = 1_000_000  # parameters of others
_FORM_BYTES: Final = 64_000  # what a page's form sends; the code that somebody signs in with
_PLAIN: Final = frozenset({"/health", "/metrics", "/favicon.ico", "/sign-in"})  # without token and session
_PLAIN_ELSEWHERE: Final = _PLAIN - {"/health", "/metrics"}  # of another computer
_STATIC: Final = "/static/"
_LOCAL: Final = frozenset({"127.0.0.1", "localhost"})
_OF_PROXIES: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})
_MOST_PATH: Final = 4200  # characters; the path of a file, which has at most 4096, can stand in an address
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SAFE: Final = frozenset({"GET", "HEAD"})
_DRAINED_BYTES: Final = 1_000_000  # of the body of a refused request, so that its sender gets to read why
_DRAINED_SECONDS: Final = 1.0
_AS_SET: Final = "as labref.toml, [web], says"
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
_HTTPS_ONLY: Final = (b"strict-transport-security", b"max-age=31536000")


@dataclass(frozen=True)
class Elsewhere:
    """How other computers reach the agent. hosts : that a request by HTTPS may name, lower case.  proxy : whether a
    reverse proxy on this computer speaks HTTPS for the agent."""

    hosts: Set[str] = frozenset()
    proxy: bool = False


class Guard:
    """Admits only requests that name this agent as their host, that come from somebody it knows, and whose body is not
    too large."""

    def __init__(
        self,
        app: ASGIApp,
        visitors: Visitors,
        *,
        elsewhere: Elsewhere,
        roles: Mapping[str, Role],
        of_images: Set[str],
        image_bytes: int,
        pictures_a_minute: int,
        log: Log,
    ) -> None:
        """elsewhere : how other computers reach the agent.  roles : what a path under /api needs a person to be at
        least.  of_images : paths whose body is an image, of at most `image_bytes`; a person may send
        `pictures_a_minute` there."""
        self._app = app
        self._visitors = visitors
        self._elsewhere = elsewhere
        self._roles = roles
        self._of_images = of_images
        self._image_bytes = image_bytes
        self._rate = Rate(max(1, pictures_a_minute // 2), pictures_a_minute / 60.0)
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        path: str = scope["path"]
        problem = self._misdirected(scope, headers)
        if problem is not None:
            await _turn_away(421, AgentError(problem), scope, receive, send)
            return
        if {b"content-length", b"transfer-encoding"} <= headers.keys():
            # a proxy before this agent may take another end for that of the body
            why: LabrefError = LabrefError("a request says how long its body is in one way, not in two")
            await _turn_away(400, why, scope, receive, send)
            return
        if _is_none(path):
            await _turn_away(404, LabrefError("nothing is at this address"), scope, receive, send)
            return
        local = scope["scheme"] == "http"
        visitor = self._visitors.of(headers, local=local)
        of_api = in_api(path)
        open_to_all = path in (_PLAIN if local else _PLAIN_ELSEWHERE) or path.startswith(_STATIC)
        if visitor is None and not open_to_all:
            if not of_api and scope["method"] in _SAFE and b"text/html" in headers.get(b"accept", b""):
                asked = path + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
                to_sign_in = RedirectResponse(f"/sign-in?next={quote(asked, safe='')}", 303, {"Connection": "close"})
                await to_sign_in(scope, receive, send)
                return
            why = AgentError("this needs the lab's token: Authorization: Bearer <content of LAB/token>")
            await _turn_away(401, why, scope, receive, send)
            return
        by_browser = visitor is None or visitor.name is not None
        if (
            by_browser
            and scope["method"] not in _SAFE
            and not (path == "/health" or origin_is_own(headers, scope["scheme"]))
        ):
            await _turn_away(
                403, AgentError("a page of another site, or none, sent this; it is refused"), scope, receive, send
            )
            return
        if visitor is not None and of_api and not visitor.role.covers(self._roles.get(path, Role.VIEW)):
            why = AgentError(f"this needs the role {self._roles[path]}, and {visitor.name} has {visitor.role}")
            await _turn_away(403, why, scope, receive, send)
            return
        scope[VISITOR] = visitor
        connection: Connection | None = scope.get(CONNECTION)
        if visitor is not None and connection is not None and not connection.admit(visitor.name):
            why = AgentError(f"{MOST_EACH} of your requests are being answered already; ask again in a moment")
            await _turn_away(503, why, scope, receive, send, wait=1.0)
            return
        of_image = path in self._of_images
        most = _FORM_BYTES
        if visitor is not None and of_image:
            most = self._image_bytes
        elif visitor is not None and of_api:
            most = _LIST_BYTES if visitor.role.covers(Role.ADMIN) else _JSON_BYTES
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
                    "headers": [*message.get("headers", ()), *_added(message, closed=visitor is None, local=local)],
                }
            await send(message)

        try:
            await self._app(scope, receive_limited, watch_start)
        except Exception as error:
            # the message may name a file, and the server would print it with a traceback; so may a part of a path
            where = path if path in self._roles else f"/{path.split('/')[1]}"
            self._log.error("a request failed", path=where, error=type(error).__name__)
            if not started:
                await failure(500, unexpected(error))(scope, receive, send)

    def _misdirected(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
        """Why a request is not for this agent, or came by no way that it has; None where it may come in.

        What a trusted proxy passes on is from here on as if it had come by HTTPS from whom the proxy names.
        """
        name, by = _name_of_host(headers), _OF_PROXIES & headers.keys()
        if scope["scheme"] == "https":
            return None if name in self._elsewhere.hosts else f"labref answers only to its own names, {_AS_SET}"
        if name in _LOCAL:
            if not by:
                return None
            # the proxy's own computer would be taken for its users', who would get what is for this computer alone
            return f"a proxy that passes on to labref has to leave the Host as it is, {_AS_SET}"
        if not self._elsewhere.proxy or name not in self._elsewhere.hosts:
            return "labref answers only to requests for 127.0.0.1 or localhost"
        if headers.get(b"x-forwarded-proto", b"").lower() != b"https":
            return f"under this name labref answers only what a proxy got by HTTPS (X-Forwarded-Proto), {_AS_SET}"
        scope["scheme"] = "https"
        client = headers.get(b"x-forwarded-for", b"").decode("latin-1").rpartition(",")[2].strip()
        scope["client"] = (client[:60] or "proxy", 0)
        return None


def _is_none(path: str) -> bool:
    """Whether a path is of nothing, whatever routes there are. It matters that this is decided here: a route takes a
    path with a line feed at its end as well, which is then not the path that roles and limits are looked up by; and a
    number of thousands of digits cannot be read."""
    return len(path) > _MOST_PATH or not path.startswith("/") or _CONTROL.search(path) is not None


def in_api(path: str) -> bool:
    """Whether a path is of the API, for programs; all else is for people and their browsers."""
    return path.startswith("/api/") or path == "/api"


def _name_of_host(headers: Mapping[bytes, bytes]) -> str:
    host = headers.get(b"host", b"").decode("latin-1").lower()
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:]*)(:[0-9]+)?", host)
    return "" if found is None else found[1]


def _added(message: Message, *, closed: bool, local: bool) -> list[tuple[bytes, bytes]]:
    """Headers that the guard adds to an answer. closed : its connection ends, as a stranger's does.  local : it is not
    by HTTPS."""
    given = {name.lower() for name, _ in message.get("headers", ())}
    added = [header for header in _HEADERS if header[0] not in given]
    if b"cache-control" not in given:
        added.append(_UNCACHED)
    if not local:
        added.append(_HTTPS_ONLY)
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
    if b"text/html" in headers.get(b"accept", b"") and not in_api(scope["path"]):
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
