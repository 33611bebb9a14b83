"""The pages on other computers: by HTTPS only, or behind a proxy that speaks it, and without the lab's token."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from labref.errors import AgentError, LabrefError
from labref.lab.log import Log
from labref.lab.pictures import Pictures
from labref.progress import Row
from labref.roles import Role
from labref.web import connections
from labref.web.application import Answers, make_app
from labref.web.certificate import TLS
from labref.web.connections import MOST_EACH
from labref.web.guard import Elsewhere
from labref.web.metrics import Metrics
from labref.web.visitors import Entrance, Visitor, Visitors
from tests.labs import served, wait_until
from tests.test_strangers import _NoLog

TOKEN = "t" * 43
NAME = "labref.hospital.example"


def made(folder: Path, name: str = NAME) -> tuple[Path, Path]:
    """A certificate for a name that signs itself, and its key."""
    files = (folder / "certificate.pem", folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-out", str(files[0]), "-keyout", str(files[1])),
        ],
        check=True,
        capture_output=True,
    )
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return made(tmp_path_factory.mktemp("tls"))


def application(
    elsewhere: Elsewhere,
    *,
    image: bytes | None = None,
    rows: Callable[[], Iterator[Row]] = lambda: iter([{"label": "x", "style": "c-0"}]),
    role: Role = Role.ADMIN,
    **more: int,
) -> Any:
    log: Log = _NoLog()  # type: ignore[assignment]
    sessions: set[str] = set()

    def sign_in(code: str, session: str) -> Visitor | None:
        if code != "AAAA":
            return None
        sessions.add(session)
        return Visitor("A", role)

    entrance = Entrance(
        sign_in=sign_in,
        signed_in=lambda session: Visitor("A", role) if session in sessions else None,
        stays=sessions.__contains__,
        sign_out=sessions.discard,
    )
    answers = Answers(
        perform=lambda *_: rows(),
        image=lambda _: image,
        healthy=lambda: "ok",
        proof=lambda *_: "proof",
        entrance=entrance,
        latest=lambda: 0,
        pictures=Pictures(None, lambda _: False),  # type: ignore[arg-type]
    )
    return make_app(answers, Metrics(), token=TOKEN, max_bytes=1000, log=log, elsewhere=elsewhere, **more)


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def ports(files: tuple[Path, Path]) -> Iterator[tuple[int, int]]:
    """Of a server: of 127.0.0.1, and of HTTPS."""
    tls = TLS("127.0.0.1", free_port(), *files)
    with served(application(Elsewhere(frozenset({NAME}))), 0, tls) as server:
        yield server.port, tls.port


@pytest.fixture(scope="module")
def proxied() -> Iterator[int]:
    with served(application(Elsewhere(frozenset({NAME}), proxy=True)), 0) as server:
        yield server.port


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **headers: str
) -> http.client.HTTPResponse:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Accept": "text/html", **sent})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


class _Named(http.client.HTTPSConnection):
    """Connects to this computer, and expects the certificate of NAME."""

    def __init__(self, port: int, trusted: Path) -> None:
        self._checking = ssl.create_default_context(cafile=str(trusted))
        super().__init__(NAME, port, timeout=30, context=self._checking)

    def connect(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.sock = self._checking.wrap_socket(plain, server_hostname=NAME)


def test_people_sign_in_by_https_with_a_cookie_that_never_goes_in_plain(
    ports: tuple[int, int], files: tuple[Path, Path]
) -> None:
    own = f"{NAME}:{ports[1]}"
    form = {"Content_Type": "application/x-www-form-urlencoded", "Host": own}
    entered = ask(
        _Named(ports[1], files[0]), "POST", "/sign-in", b"code=AAAA&next=/map", Origin=f"https://{own}", **form
    )
    assert (entered.status, entered.headers["location"]) == (303, "/map")
    cookie = entered.headers["set-cookie"]
    assert "; secure" in cookie.lower() and "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
    assert entered.headers["strict-transport-security"].startswith("max-age=")
    session = cookie.partition(";")[0]
    assert ask(_Named(ports[1], files[0]), "GET", "/classes.css", Host=own, Cookie=session).status == 200
    for origin in (f"http://{own}", f"https://{NAME}:1", "https://evil.example", "null"):
        refused = ask(_Named(ports[1], files[0]), "POST", "/sign-out", Origin=origin, Cookie=session, **form)
        assert refused.status == 403, origin
    assert (
        ask(_Named(ports[1], files[0]), "POST", "/sign-out", Origin=f"https://{own}", Cookie=session, **form).status
        == 303
    )


def test_elsewhere_the_token_is_worth_nothing_and_only_the_own_name_is_answered(
    ports: tuple[int, int], files: tuple[Path, Path]
) -> None:
    token, accepted = f"Bearer {TOKEN}", "application/json"
    for path in ("/api/v1/status", "/api/v1/user/list", "/health", "/metrics", "/health?nonce=abc"):
        for host in (NAME, f"{NAME.upper()}:{ports[1]}"):
            outside = ask(_Named(ports[1], files[0]), "GET", path, Host=host, Authorization=token, Accept=accepted)
            assert outside.status == 401, path
    for host in ("127.0.0.1", "localhost", "evil.example", f"{NAME}.evil.example", f"{NAME}:1:2", "[::1]", ""):
        assert ask(_Named(ports[1], files[0]), "GET", "/sign-in", Host=host or "x").status == 421, host
    local = http.client.HTTPConnection("127.0.0.1", ports[0], timeout=30)
    inside = ask(local, "GET", "/api/v1/status", Authorization=token)
    assert inside.status == 200 and "strict-transport-security" not in inside.headers
    for headers in ({"Host": NAME}, {"Host": NAME, "X_Forwarded_Proto": "https"}, {"X_Forwarded_For": "10.0.0.1"}):
        assert ask(local, "GET", "/api/v1/status", Authorization=token, **headers).status == 421, headers


def test_plain_http_gets_nothing_where_https_is(ports: tuple[int, int]) -> None:
    with closing(socket.create_connection(("127.0.0.1", ports[1]), timeout=30)) as plain:
        plain.sendall(f"GET /sign-in HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        with suppress(ConnectionResetError):
            assert b"200" not in plain.recv(1000)


def test_a_proxy_is_believed_only_where_it_is_set_and_does_its_part(proxied: int) -> None:
    def through(method: str = "GET", path: str = "/sign-in", body: bytes | None = None, **headers: str) -> Any:
        return ask(http.client.HTTPConnection("127.0.0.1", proxied, timeout=30), method, path, body, **headers)

    passed = {"Host": NAME, "X_Forwarded_Proto": "https", "X_Forwarded_For": "1.1.1.1, 10.0.0.5"}
    entered = through(
        "POST",
        body=b"code=AAAA",
        Content_Type="application/x-www-form-urlencoded",
        Origin=f"https://{NAME}",
        **passed,
    )
    assert entered.status == 303 and "; secure" in entered.headers["set-cookie"].lower()
    assert "strict-transport-security" in entered.headers
    token = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json"}
    assert through(path="/api/v1/status", **passed, **token).status == 401
    assert through(path="/metrics", **passed).status in (303, 401)
    for wrong in (
        {"Host": NAME},
        passed | {"X_Forwarded_Proto": "http"},
        passed | {"Host": "evil.example"},
        passed | {"Host": f"127.0.0.1:{proxied}"},
    ):
        assert through(**wrong).status == 421, wrong
        assert through(path="/api/v1/status", **wrong, **token).status == 421, wrong
    assert through(path="/api/v1/status", **token).status == 200, "the command goes on"


def test_wrong_codes_are_counted_by_whom_the_proxy_names_last(proxied: int) -> None:
    def attempt(forwarded: str) -> int:
        return ask(
            http.client.HTTPConnection("127.0.0.1", proxied, timeout=30),
            *("POST", "/sign-in", b"code=WRONG"),
            Content_Type="application/x-www-form-urlencoded",
            Host=NAME,
            Origin=f"https://{NAME}",
            X_Forwarded_Proto="https",
            X_Forwarded_For=forwarded,
        ).status

    assert [attempt(f"9.9.9.{number}, 10.0.0.7") for number in range(12)] == [401] * 10 + [429] * 2
    assert attempt("10.0.0.8") == 401


def test_a_person_asks_about_so_many_pictures_a_minute_and_the_command_about_any() -> None:
    with served(application(Elsewhere(), pictures_a_minute=4), 0) as server:
        local, own = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30), f"127.0.0.1:{server.port}"
        sent = {"Host": own, "Origin": f"http://{own}"}
        entered = ask(local, "POST", "/sign-in", b"code=AAAA", **sent)
        person = {**sent, "Cookie": entered.headers["set-cookie"].partition(";")[0]}
        answers = [ask(local, "POST", "/api/v1/query", b"picture", **person) for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 429, 429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 16
        token = {"Authorization": f"Bearer {TOKEN}"}
        assert {ask(local, "POST", "/api/v1/query", b"picture", **token).status for _ in range(8)} == {200}
        assert ask(local, "POST", "/ask", b"picture", **person).status == 429, "it is the same count"
        assert ask(local, "GET", "/classes.css", **person).status == 200, "pages are looked at all the same"


def entered(port: int) -> dict[str, str]:
    """Headers of somebody who signed in."""
    sent = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}"}
    local = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    answered = ask(local, "POST", "/sign-in", b"code=AAAA", **sent)
    return {**sent, "Cookie": answered.headers["set-cookie"].partition(";")[0]}


def test_one_person_cannot_take_all_connections() -> None:
    with served(application(Elsewhere()), 0) as server:
        person = entered(server.port)
        head = "".join(f"{name}: {value}\r\n" for name, value in person.items())
        held = []
        try:
            for _ in range(MOST_EACH):
                one = socket.create_connection(("127.0.0.1", server.port), timeout=30)
                one.sendall(f"POST /api/v1/classes/list HTTP/1.1\r\n{head}Content-Length: 10\r\n\r\n".encode())
                held.append(one)
            local = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            deadline = time.monotonic() + 30
            while (refused := ask(local, "GET", "/classes.css", **person)).status == 200:
                assert time.monotonic() < deadline
            assert refused.status == 503 and refused.headers["retry-after"]
            assert ask(local, "GET", "/api/v1/status", Authorization=f"Bearer {TOKEN}").status == 200, "others go on"
        finally:
            for one in held:
                one.close()
        while ask(local, "GET", "/classes.css", **person).status != 200:
            assert time.monotonic() < deadline


def test_a_person_who_reads_nothing_is_not_waited_for_and_a_command_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.2)
    picture = b"\xff\xd8" + bytes(30_000_000)
    with served(application(Elsewhere(), image=picture), 0) as server:
        host = {"Host": f"127.0.0.1:{server.port}"}
        got = []
        for sent in (entered(server.port), {**host, "Authorization": f"Bearer {TOKEN}"}):
            head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
            with closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as one:
                one.sendall(f"GET /api/v1/reference/0/image HTTP/1.1\r\n{head}\r\n".encode())
                one.recv(100)
                time.sleep(1.0)
                size = 0
                with suppress(ConnectionResetError):
                    while size < len(picture) and (data := one.recv(1_000_000)):
                        size += len(data)
                got.append(size)
        assert got[0] < len(picture) <= got[1]


def test_silent_clients_of_the_network_take_few_connections_and_not_for_long(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_HANDSHAKES", 8)
    monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 1.0)
    monkeypatch.setattr("labref.web.serving.HANDSHAKE_SECONDS", 1.0)
    tls = TLS("127.0.0.1", free_port(), *files)
    with served(application(Elsewhere(frozenset({NAME}))), 0, tls), ExitStack() as opened:
        silent = [opened.enter_context(socket.create_connection(("127.0.0.1", tls.port), 30)) for _ in range(40)]
        begun = time.monotonic()
        ended = []
        for one in silent:
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""
            ended.append(time.monotonic() - begun)
        assert max(ended) < 20, "asyncio itself waits for a minute"
        own = f"{NAME}:{tls.port}"
        assert ask(_Named(tls.port, files[0]), "GET", "/sign-in", Host=own).status == 200


def test_guesses_from_many_addresses_do_not_free_the_one_that_waits() -> None:
    nobody = Entrance(sign_in=lambda *_: None, signed_in=lambda _: None, stays=lambda _: False, sign_out=lambda _: None)
    visitors = Visitors(nobody, TOKEN)
    for _ in range(10):
        visitors.sign_in("AAAA", "10.0.0.7")
    for number in range(999):
        visitors.sign_in("AAAA", f"2001:db8::{number:x}")
    assert visitors.wait_seconds("10.0.0.7") > 0 and visitors.wait_seconds("2001:db8::1") == 0
    for number in range(999, 5000):
        visitors.sign_in("AAAA", f"2001:db8::{number:x}")
    assert len(visitors._failures) <= 1000


@pytest.mark.parametrize("what", ["missing", "no PEM", "a pipe", "of another", "with a password", "port in use"])
def test_what_cannot_be_served_is_said(files: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    certificate, key = files
    port = free_port()
    if what == "missing":
        key = tmp_path / "none.pem"
    elif what == "no PEM":
        certificate = tmp_path / "text.pem"
        certificate.write_text("nothing")
    elif what == "a pipe":
        if sys.platform == "win32":
            pytest.skip("no such pipes here")
        key = tmp_path / "pipe"
        os.mkfifo(key)
    elif what == "with a password":
        key = tmp_path / "locked.pem"
        command = ["openssl", "pkey", "-in", str(files[1]), "-aes128", "-passout", "pass:abcd", "-out", str(key)]
        subprocess.run(command, check=True, capture_output=True)
    elif what == "of another":
        key = tmp_path / "other.pem"
        command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)]
        subprocess.run(command, check=True, capture_output=True)
    with closing(socket.socket()) as taken:
        if what == "port in use":
            taken.bind(("127.0.0.1", port))
            taken.listen()
        with (
            pytest.raises(AgentError, match=r"labref\.toml, \[web\]"),
            served(application(Elsewhere()), 0, TLS("127.0.0.1", port, certificate, key)),
        ):
            pass


def given(port: int) -> str:
    """The certificate that a browser gets."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=20)


def test_a_renewed_certificate_is_taken_without_a_restart_and_one_that_is_none_never(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    certificate, key = made(tmp_path)
    first, renewed = certificate.read_text(), [file.read_text() for file in made(tmp_path / "new", "new.example")]
    port = free_port()
    with served(application(Elsewhere()), 0, TLS("127.0.0.1", port, certificate, key)) as server:
        assert given(port).split() == first.split() and server.certificate_problem() is None
        certificate.write_text(renewed[0])  # its key is not there yet
        assert given(port).split() == first.split()
        assert "cannot be used" in str(server.certificate_problem())
        key.write_text(renewed[1])
        assert given(port).split() == renewed[0].split() and server.certificate_problem() is None
        key.unlink()
        assert given(port).split() == renewed[0].split() and "cannot be read" in str(server.certificate_problem())
        key.write_text("nothing")
        assert given(port).split() == renewed[0].split() and "cannot be used" in str(server.certificate_problem())
    with served(application(Elsewhere()), 0) as plain:
        assert plain.certificate_problem() is None


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n"])
def test_a_handshake_that_does_not_end_is_ended_and_keeps_nobody_out(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("labref.web.serving.HANDSHAKE_SECONDS", 0.5)
    port = free_port()
    with served(application(Elsewhere()), 0, TLS("127.0.0.1", port, *files)):
        given(port)  # the first caller of all has the server made
        wait_until(lambda: all(thread.name != "labref-http-start" for thread in threading.enumerate()))
        before = threading.active_count()
        with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as half:
            half.sendall(sent)
            given(port)
            assert threading.active_count() == before, "it holds no thread"
            while half.recv(1000):  # until it is closed; a timeout fails the test
                pass


def test_a_failure_on_the_way_of_an_answer_names_no_command_to_who_has_none() -> None:
    said = "it is damaged; `labref store restore` brings a backup back."

    def failing() -> Iterator[Row]:
        yield {"label": "x"}
        raise LabrefError(said)

    def told(role: Role) -> str:
        with served(application(Elsewhere(frozenset()), rows=failing, role=role), 0) as server:
            local = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            form = {"Content_Type": "application/x-www-form-urlencoded", "Origin": f"http://127.0.0.1:{server.port}"}
            session = ask(local, "POST", "/sign-in", b"code=AAAA", **form).headers["set-cookie"].partition(";")[0]
            sent = {"Cookie": session, "Origin": form["Origin"], "Content-Type": "application/json"}
            local.request("POST", "/api/v1/classes/list", b"{}", sent)
            with closing(local), local.getresponse() as response:
                *_, last = response.read().splitlines()
            return str(json.loads(last)["error"]["message"])

    assert told(Role.ADMIN) == said
    assert told(Role.VIEW) == "it is damaged. Whoever looks after labref in your lab can help."
