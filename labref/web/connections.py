"""Limits on connections, so that no program on this computer can use up the agent's connections.

Every program of the computer can reach the agent's port. A client that has not shown the lab's token is a stranger. It
has `STRANGER_SECONDS` for everything; where all connections are in use, the oldest stranger's is closed for the next
client. A client that has shown the token has `SILENT_SECONDS` for each piece of its body, and `BODY_SECONDS` for the
whole body. A person who is signed in is a client like that, has `MOST_EACH` connections at most, and has to read what
they asked for: nothing read for `UNREAD_SECONDS` is no reader. A command may wait: its output may go to a pager.

By HTTPS every computer of the network can connect. A client that does not say in `HANDSHAKE_SECONDS` how it encrypts
is gone, and `MOST_HANDSHAKES` may be about to at once: a silent one costs a file descriptor, which cells need too.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import socket
import sys
import time
from typing import Any, Final

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from labref.web.certificate import HANDSHAKE_SECONDS

__all__ = [
    "BACKLOG",
    "BODY_SECONDS",
    "CONNECTION",
    "HEADER_BYTES",
    "MOST",
    "MOST_EACH",
    "MOST_HANDSHAKES",
    "SILENT_SECONDS",
    "STRANGER_SECONDS",
    "UNREAD_SECONDS",
    "Connection",
    "Listening",
]

MOST: Final = 128
"""The most connections at once; each takes a file descriptor. A browser has up to six."""
MOST_EACH: Final = 32
"""The most requests of one person that are answered at once; a browser makes six."""
MOST_HANDSHAKES: Final = 64
"""The most handshakes of TLS at once."""
BACKLOG: Final = 8
"""The most connections that are accepted at once, before one of them can be refused."""
HEADER_BYTES: Final = 32 * 1024
"""Largest request line with all its headers: a path of 4096 bytes in the address takes 12 kB."""
STRANGER_SECONDS: Final = 10.0
"""Seconds from the connection, or from the previous answer, to the end of headers with the token; a stranger's request
must end within them."""
SILENT_SECONDS: Final = 20.0
"""Seconds between two pieces of a body."""
BODY_SECONDS: Final = 300.0
"""Seconds for a whole body."""
UNREAD_SECONDS: Final = 60.0
"""Seconds that an answer to a person waits to be read on, or to a stranger."""
CONNECTION: Final = "labref.connection"
"""Key of the ASGI scope under which an application finds the `Connection`."""

_silent: Final = logging.Logger("labref.http")  # malformed requests of strangers must not fill the agent's stderr
_silent.disabled = True


_handshakes: Final[dict[int, float]] = {}
"""Until when those that have begun and are not done may last, monotonic seconds, by the identity of the connection."""


class Listening(socket.socket):
    """A listening socket that accepts nobody while too many handshakes are not done."""

    def accept(self) -> tuple[socket.socket, Any]:
        """As of `socket`; a connection that is refused is closed, and ConnectionAbortedError raised."""
        accepted, address = super().accept()
        now = time.monotonic()
        for one, until in list(_handshakes.items()):
            if until < now:  # it failed: nobody is told
                _handshakes.pop(one, None)
        if len(_handshakes) >= MOST_HANDSHAKES:
            accepted.close()
            raise ConnectionAbortedError("too many handshakes")
        return accepted, address


class Connection(H11Protocol):
    """One HTTP connection. The application calls `admit` once it has seen the token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _silent
        self.admitted = False
        self.person: str | None = None
        """who is signed in, where somebody is"""
        self.since = 0.0
        self.leaving = asyncio.Event()
        """set when the agent ends: an answer that would go on for ever ends then"""
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._body_until = 0.0
        if self.config.is_ssl:
            _handshakes[id(self)] = time.monotonic() + HANDSHAKE_SECONDS
        app = self.app

        async def with_connection(scope: Scope, receive: Receive, send: Send) -> None:
            scope[CONNECTION] = self
            await app(scope, receive, send)

        self.app = with_connection

    def admit(self, person: str | None) -> bool:
        """Mark the present request as one with the lab's token (None), or of this person. False where as many of this
        person's requests are being answered as may be: this one is not to be."""
        if person is not None:
            beside = sum(isinstance(one, Connection) and one.person == person for one in self.connections)
            if beside >= MOST_EACH:
                return False
        self.admitted, self.person = True, person
        self._body_until = self.loop.time() + BODY_SECONDS
        self._time_body()
        return True

    # what asyncio and uvicorn call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        _handshakes.pop(id(self), None)
        super().connection_made(transport)
        self._begin()
        if len(self.connections) > MOST:
            strangers = [one for one in self.connections if isinstance(one, Connection) and not one.admitted]
            strangers.remove(self)
            if strangers:
                min(strangers, key=lambda one: one.since)._end()
            else:
                self._refuse(503, f"{MOST} requests are being answered already; ask again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        self._untimed()
        self._read_on()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.person is not None or not self.admitted:
            self._unread = self.loop.call_later(UNREAD_SECONDS, self._end)

    def resume_writing(self) -> None:
        self._read_on()
        super().resume_writing()

    def shutdown(self) -> None:
        super().shutdown()
        self.leaving.set()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.admitted:
            self._time_body()

    def on_response_complete(self) -> None:
        self._begin()  # the next request has to show the token again
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431:
            msg = f"address and headers of a request take at most {HEADER_BYTES // 1024} kB"
        elif status == 400:
            msg = "this is no HTTP request that can be read"
        self._refuse(status, msg)

    # time

    def _begin(self) -> None:
        self.admitted, self.person = False, None
        self.since = self.loop.time()
        self._time(STRANGER_SECONDS)

    def _time(self, seconds: float) -> None:
        self._untimed()
        self._timer = self.loop.call_later(seconds, self._too_late)

    def _read_on(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _untimed(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_body(self) -> None:
        if self.cycle is not None and self.cycle.more_body:
            self._time(min(SILENT_SECONDS, max(0.0, self._body_until - self.loop.time())))
        else:
            self._untimed()

    def _too_late(self) -> None:
        self._timer = None
        waiting = self.cycle is None or self.cycle.response_complete
        if self.admitted and self.flow.read_paused:
            self._time(SILENT_SECONDS)  # it is the agent that does not read on
        elif waiting and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, f"the headers of a request have to be here within {STRANGER_SECONDS:.0f} seconds")
        elif self.admitted and not waiting and not self.cycle.response_started:
            self._refuse(408, "the body of the request did not come on")
        else:
            self._end()

    # leaving

    def _end(self) -> None:
        self._untimed()
        self.connections.discard(self)  # removed at once, so that the next client does not choose the same connection
        self.transport.abort()

    def _refuse(self, status: int, message: str) -> None:
        """Answer instead of the application, and close the connection."""
        self._untimed()
        body = json.dumps({"error": {"kind": "AgentError", "message": message}}).encode()
        reason = http.HTTPStatus(status).phrase
        head = (
            f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            # past h11, which the application may still be using; what that writes once this is closing is dropped
            self.transport.write(head.encode() + body)
        self.transport.close()
