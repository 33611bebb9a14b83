"""The agent's addresses. They are bound when it starts; what answers there is made when somebody asks."""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Self

from labref.errors import AgentError
from labref.web.certificate import TLS, Certificate

__all__ = ["STOP_SECONDS", "WAITING", "Serve", "Server", "bound_socket"]

STOP_SECONDS: Final = 5
WAITING: Final = 512
"""Callers that the system keeps until they are accepted."""
_LOOPBACK: Final = "127.0.0.1"
_SWITCH_SECONDS: Final = 0.001
"""How long a thread keeps Python to itself while others wait for it. A page asks for it again a hundred times, after
each look into the store; with Python's 5 ms it waited most of the time."""

Serve = Callable[[socket.socket, TLS | None, Certificate | None], AbstractContextManager[None]]
"""Serves a socket until the context ends, which closes it; by HTTPS where TLS and certificate are given."""


class Server:
    """Serves on 127.0.0.1, and by HTTPS at another address where one is given.

    Both are bound from the start, and callers wait in the system's queue. The application, which costs a second, is
    made for the first of them, or at `begin`: a pass over the folder that nobody watches does without.
    """

    def __init__(self, make: Callable[[], Serve], port: int, tls: TLS | None = None) -> None:
        """make : makes what serves; called once, in a thread.  port : of 127.0.0.1; 0 takes any free one."""
        self._make = make
        self._wanted = port
        self._tls = tls
        self._bound = contextlib.ExitStack()
        self._serving = contextlib.ExitStack()
        self._certificate: Certificate | None = None
        self._failure: Exception | None = None
        self._ended = False
        self.port = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as bound:
            sockets = [
                bound.enter_context(bound_socket(_LOOPBACK, self._wanted, "[agent] port, or 0 for any free one"))
            ]
            self.port = sockets[0].getsockname()[1]
            if self._tls is not None:
                self._certificate = Certificate(self._tls)
                sockets.append(
                    bound.enter_context(bound_socket(self._tls.address, self._tls.port, "[web] address and port"))
                )
            self._waked, self._waking = (bound.enter_context(end) for end in socket.socketpair())
            self._starting = threading.Thread(
                target=self._start, args=(sockets,), name="labref-http-start", daemon=True
            )
            self._starting.start()
            self._bound = bound.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self.begin()
        self._starting.join(2 * STOP_SECONDS)
        self._serving.close()
        self._bound.close()

    def begin(self) -> None:
        """Make what answers now, without waiting for it."""
        with contextlib.suppress(OSError):
            self._waking.send(b"\0")

    def check(self) -> None:
        """Raise `AgentError` where nothing answers, as what does could not be made."""
        if self._failure is not None:
            error = self._failure
            raise AgentError(f"the agent's HTTP side did not start: {type(error).__name__}: {error}") from error

    def certificate_problem(self) -> str | None:
        """Why the certificate that is on the disk now is not used; None where it is, or there is none."""
        if self._certificate is None:
            return None
        self._certificate.newest()
        return self._certificate.problem

    def _start(self, sockets: list[socket.socket]) -> None:
        with selectors.DefaultSelector() as selector:
            for one in (self._waked, *sockets):
                selector.register(one, selectors.EVENT_READ)
            selector.select()
        if self._ended:
            return
        try:
            serve = self._make()
            self._serving.callback(sys.setswitchinterval, sys.getswitchinterval())
            sys.setswitchinterval(_SWITCH_SECONDS)
            for one, tls in zip(sockets, (None, self._tls), strict=False):
                self._serving.enter_context(serve(one, tls, self._certificate if tls is not None else None))
        except Exception as error:
            self._failure = error


def bound_socket(address: str, port: int, setting: str) -> socket.socket:
    """A socket that listens there. Raises `AgentError` that names the setting to change."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # by its protocol asyncio knows that it may send at once: else the end of each answer waits until the beginning is
    # acknowledged, which the other side puts off by 40 ms
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: or another program could listen on the same port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(WAITING)
    except OSError as error:
        listening.close()
        where = "" if address == _LOOPBACK else f" at {address}"
        raise AgentError(
            f"port {port} of this computer{where} cannot be used ({error.strerror}). Choose another in labref.toml, {setting}."
        ) from None
    return listening
