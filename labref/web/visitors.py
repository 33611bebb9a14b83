"""Who is asking: a program with the lab's token, or a person who is signed in.

A person signs in with the code that `labref user add` made, and shows from then on a cookie. The cookie is for this
agent only, no script reads it, and no other site's page can send it (SameSite=Strict).
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from starlette.requests import Request, cookie_parser

from labref.roles import Role

__all__ = ["COOKIE", "IDLE", "LASTS", "VISITOR", "Entrance", "Visitor", "Visitors", "origin_is_own", "visitor_of"]

COOKIE: Final = "labref"
"""Name of the cookie that a signed-in browser shows."""
VISITOR: Final = "labref.visitor"
"""Key of the ASGI scope under which the guard puts the `Visitor`."""
LASTS: Final = timedelta(days=30)
"""A session ends so long after its beginning."""
IDLE: Final = timedelta(hours=12)
"""A session ends when it was not used for so long."""
_FAILURES: Final = 10  # from one address, in `_FAILURE_SECONDS`
_FAILURE_SECONDS: Final = 300.0
_MOST_ADDRESSES: Final = 1000


@dataclass(frozen=True)
class Visitor:
    """Who asks. name : None for a program with the lab's token.  role : what they may do."""

    name: str | None
    role: Role


@dataclass(frozen=True)
class Entrance:
    """What the agent knows of the people of its lab.

    sign_in : (code, new session token) → the person, or None where nobody has this code.  signed_in : session token →
    the person, or None.  stays : whether a session token is somebody's, which is no use of the session.  sign_out :
    ends a session.
    """

    sign_in: Callable[[str, str], Visitor | None]
    signed_in: Callable[[str], Visitor | None]
    stays: Callable[[str], bool]
    sign_out: Callable[[str], None]


class Visitors:
    """Tells who asks, and lets people in. Methods may be called from any thread."""

    def __init__(self, entrance: Entrance, token: str) -> None:
        """token : the lab's."""
        self._entrance = entrance
        self._expected = f"Bearer {token}".encode()
        self._failures: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def of(self, headers: Mapping[bytes, bytes], *, local: bool) -> Visitor | None:
        """Who sent a request with these headers; None for a stranger. local : it comes from this computer, where alone
        the lab's token is good."""
        if local and hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            return Visitor(None, Role.ADMIN)
        token = session_token(headers)
        return None if token is None else self._entrance.signed_in(token)

    def stays(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether whoever sent a request with these headers is still let in. That is no use of their session."""
        if hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            return True
        token = session_token(headers)
        return token is not None and self._entrance.stays(token)

    def wait_seconds(self, address: str) -> float:
        """How long somebody at this address has to wait before the next attempt to sign in; 0 where they need not."""
        with self._lock:
            failed = self._recent(address)
            return failed[0] + _FAILURE_SECONDS - time.monotonic() if len(failed) >= _FAILURES else 0.0

    def sign_in(self, code: str, address: str) -> tuple[Visitor, str] | None:
        """The person who has this code, and the token of their new session; None where nobody has it. Codes are taken
        in lower case too, with or without their hyphens."""
        token = secrets.token_urlsafe(32)
        plain = "".join(character for character in code.upper() if character.isalnum())
        plain = plain.replace("O", "0").replace("I", "1").replace("L", "1")
        visitor = self._entrance.sign_in("-".join(plain[at : at + 4] for at in range(0, len(plain), 4)), token)
        if visitor is None:
            with self._lock:
                failed = self._failures.pop(address, [])
                if len(self._failures) >= _MOST_ADDRESSES:  # the one that failed longest ago
                    del self._failures[next(iter(self._failures))]
                self._failures[address] = [*failed, time.monotonic()]
            return None
        return visitor, token

    def sign_out(self, headers: Mapping[bytes, bytes]) -> None:
        """End the session of whoever sent a request with these headers."""
        token = session_token(headers)
        if token is not None:
            self._entrance.sign_out(token)

    def _recent(self, address: str) -> list[float]:
        since = time.monotonic() - _FAILURE_SECONDS
        found = [moment for moment in self._failures.get(address, ()) if moment > since]
        if found:
            self._failures[address] = found
        else:
            self._failures.pop(address, None)
        return found


def session_token(headers: Mapping[bytes, bytes]) -> str | None:
    """The session token in a request's cookies, or None. Another program's cookie may be malformed: a browser sends
    all of this computer, whatever their port."""
    return cookie_parser(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)


def origin_is_own(headers: Mapping[bytes, bytes], scheme: str) -> bool:
    """Whether a request that changes something was sent by a page of this agent: its Origin is where it was sent to; a
    browser that sends none says so in Sec-Fetch-Site. scheme : "http" or "https"."""
    origin = headers.get(b"origin")
    if origin is None:
        return headers.get(b"sec-fetch-site") == b"same-origin"
    return origin.lower() == scheme.encode() + b"://" + headers.get(b"host", b"").lower()


def visitor_of(request: Request) -> Visitor:
    """Who sent a request that the guard let through."""
    visitor: Visitor = request.scope[VISITOR]
    return visitor
