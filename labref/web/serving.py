"""Serves an application on a socket that is bound already, by uvicorn, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from labref.errors import AgentError
from labref.web.certificate import HANDSHAKE_SECONDS, TLS, Certificate
from labref.web.connections import BACKLOG, HEADER_BYTES, Connection, Listening
from labref.web.server import STOP_SECONDS, WAITING

__all__ = ["serving"]

_START_SECONDS: Final = 20.0


class _TLSServer(uvicorn.Server):
    """A server by HTTPS that waits a moment only for a handshake, and takes renewed certificates from the disk."""

    def __init__(self, config: uvicorn.Config, certificate: Certificate) -> None:
        super().__init__(config)
        self._certificate = certificate

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert self.config.ssl is not None
        self._certificate.serve(self.config.ssl)
        loop = asyncio.get_running_loop()
        # uvicorn has no setting for it, and asyncio would wait a minute
        create = functools.partial(loop.create_server, ssl_handshake_timeout=HANDSHAKE_SECONDS)
        loop.create_server = create  # type: ignore[method-assign]
        await super().startup(sockets)


@contextlib.contextmanager
def serving(
    app: ASGIApp, bound: socket.socket, tls: TLS | None = None, certificate: Certificate | None = None
) -> Iterator[None]:
    """Serve an application on a socket that is bound, which is closed at the end. tls, certificate : None for plain
    HTTP."""
    listening = Listening(bound.family, bound.type, bound.proto, fileno=bound.detach())
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        loop="asyncio",
        http=Connection,
        h11_max_incomplete_event_size=HEADER_BYTES,
        backlog=BACKLOG,
        ws="none",
        server_header=False,
        proxy_headers=False,  # or any program of this computer could say that it is another one; see the guard
        timeout_graceful_shutdown=STOP_SECONDS,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
    )
    server = uvicorn.Server(config) if certificate is None else _TLSServer(config, certificate)
    name = "labref-http" if tls is None else "labref-https"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name=name, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise AgentError("the agent's HTTP side did not start; see its log")
            time.sleep(0.01)
        # the system may queue more callers than are accepted at once
        listening.listen(WAITING)
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=2 * STOP_SECONDS)
        listening.close()
