"""The pages for tests: a running agent's pages, asked as a browser asks them."""

from __future__ import annotations

import http.client
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from labref.lab import Lab
from labref.web.client import AgentClient
from labref.web.desk import run

__all__ = ["Answered", "Browser", "let_in"]


@dataclass(frozen=True)
class Answered:
    """What came back. headers : by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Browser:
    """Asks one agent, and keeps its cookies."""

    port: int
    cookies: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(lab: Lab) -> Browser:
        agent = AgentClient.find(lab)
        assert agent is not None
        return Browser(agent.record.port)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answered:
        """One request. headers : by name, `_` for `-`; an empty one is not sent."""
        sent = {
            "Host": f"127.0.0.1:{self.port}",
            "Accept": "text/html",
            "Origin": f"http://127.0.0.1:{self.port}" if method == "POST" else "",
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        for cookie in response.headers.get_all("set-cookie") or ():
            found = re.match(r"([^=]+)=\"?([^;\"]*)", cookie)
            assert found is not None
            if found[2]:
                self.cookies[found[1]] = found[2]
            else:
                self.cookies.pop(found[1], None)
        return Answered(response.status, {name.lower(): value for name, value in response.getheaders()}, data)

    def get(self, path: str, **headers: str) -> Answered:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, fields: dict[str, str] | None = None, **headers: str) -> Answered:
        """Send a form."""
        body = urlencode(fields or {}).encode()
        sent: dict[str, Any] = {"Content_Type": "application/x-www-form-urlencoded", **headers}
        return self.ask("POST", path, body, **sent)

    def sign_in(self, code: str, next_: str = "/") -> Answered:
        return self.post("/sign-in", {"code": code, "next": next_})


def let_in(lab: Lab, name: str, role: str = "review", **more: int) -> Browser:
    """Let somebody in, as `labref user add` does, and sign them in."""
    (row,) = run(lab, "user.add", name=name, role=role, **more)
    browser = Browser.of(lab)
    entered = browser.sign_in(row["code"])
    assert entered.status == 303, entered.text
    return browser
