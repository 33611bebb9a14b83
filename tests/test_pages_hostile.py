"""What somebody with ill will sends to the pages and the API: refused, or harmless. The routes are those of the
application itself, so a new page is tried as well."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from starlette.routing import Route

from labref.bundles.bundle import Bundle
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from labref.lab.pictures import Pictures
from labref.operations import Operation, every_operation
from labref.printing import unprintable
from labref.roles import Role
from labref.web import pages
from labref.web.application import Answers, make_app
from labref.web.desk import run
from labref.web.guard import Guard
from labref.web.metrics import Metrics
from labref.web.visitors import Entrance
from tests.hostile import huge_png
from tests.labs import make_lab, once, running_agent
from tests.pages import Answered, Browser, let_in
from tests.stores import new_store

PATIENT = "Testsson"
NASTY = f"{PATIENT}, Anna 19620101-1234 <script>alert(1)\n\x07\x1b[31m\u202e\"'&amp;"
"""Name of a slide that an analyser's export may hold, and a page has to show harmlessly."""
LABEL = "<img src=x onerror=alert(1)>\"'"
PERSON = "<svg onload=alert(1)>\"'"
JSON = {"Content_Type": "application/json"}
HOSTILE = (
    *("..", "../../../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/passwd", "C:\\", "\\\\evil\\share"),
    *(
        "%2e%2e%2fpasswd",
        "\0",
        "a\0.jpg",
        "\n",
        "\r\nX-Evil: 1",
        "\u202e",
        "𝒜é\u0301",
        "\udcff",
        "'; DROP TABLE cell; --",
    ),
    *("{{7*7}}", "${7*7}", "<script>", "-1", "99999999999999999999", "1e999", "x" * 10_000, "٣"),
)
"""Values for a part of an address."""


def _routes() -> list[Route]:
    nobody = Entrance(sign_in=lambda *_: None, signed_in=lambda _: None, stays=lambda _: False, sign_out=lambda _: None)
    answers = Answers(
        perform=lambda *_: iter(()),
        image=lambda _: None,
        healthy=lambda: "ok",
        proof=lambda *_: None,
        entrance=nobody,
        latest=lambda: 0,
        pictures=Pictures(None, lambda _: False),  # type: ignore[arg-type]
    )
    guard = make_app(answers, Metrics(), token="t" * 43, max_bytes=1, log=None)  # type: ignore[arg-type]
    assert isinstance(guard, Guard)
    return [route for route in guard._app.routes if isinstance(route, Route)]  # type: ignore[attr-defined]


ROUTES = _routes()
ADMINS = {one.path for one in pages._PAGES if one.role is Role.ADMIN}
OPERATIONS = every_operation()


@dataclass(frozen=True)
class Stage:
    """A lab with hostile names, and who is signed in. known : values of parts of an address that there are."""

    lab: Lab
    viewer: Browser
    reviewer: Browser
    admin: Browser
    revoked: Browser
    known: dict[str, str]

    def addresses(self) -> list[str]:
        """Of every page, and of every question by GET, but of the events, which do not end."""
        return [
            re.sub(r"{(\w+)[^}]*}", lambda part: self.known.get(part[1], "1"), route.path)
            for route in ROUTES
            if "GET" in (route.methods or ()) and not route.path.startswith("/static/") and route.path != "/events"
        ]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Iterator[Stage]:
    export = tmp_path_factory.mktemp("export")
    made = make_slides(2, seed=4)
    for number in range(72):  # a map needs 64
        slide = os.fsencode(NASTY) if number % 3 else os.fsencode(PATIENT) + b"\xff<marquee>"
        place = Path(os.fsdecode(os.fsencode(export) + b"/" + slide)) / "Signed slides" / LABELS[number % 8]
        place.mkdir(parents=True, exist_ok=True)
        look = made[number % 2]
        picture = draw_cell(LABELS[number % 8], OPTICS[look.optics], look, np.random.default_rng([7, number]))
        (place / f"{PATIENT} {number} <marquee>.jpg").write_bytes(encode_jpeg(picture))
    (place / f"{PATIENT} broken \x1b<marquee>.jpg").write_bytes(b"\xff\xd8 no picture")
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter, analyser="<marquee>DC-1")
    once(lab)
    cell = next(row["cell_id"] for row in run(lab, "ledger") if row["outcome"] == "stored")
    list(run(lab, "label.set", cell=cell, label=LABEL, who="<marquee>who", new=True))
    list(run(lab, "map.train", rows=4, columns=4, seed=1))
    spot = next(run(lab, "map.spot", cell=cell))
    key = next(row["slide"] for row in run(lab, "slide.list") if row.get("name") == NASTY)
    known = {"cell_id": cell, "key": key, "row": str(spot["row"]), "column": str(spot["column"]), "number": "1"}
    with running_agent(lab, max_file_megabytes=1):
        people = {role: let_in(lab, f"{role} {PERSON}", role) for role in ("view", "review", "admin")}
        revoked = let_in(lab, "Leaver", "admin")
        list(run(lab, "user.revoke", name="Leaver"))
        yield Stage(lab, people["view"], people["review"], people["admin"], revoked, known)


# who is let in


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.1@evil.example",
            "evil.example:80",
        ),
        *("[::1]", "0.0.0.0", "127.1", "2130706433", "localhost.", "localhost:80:80", "xn--lcalhost-o0a", "local host"),
    ],
)
def test_a_name_that_was_rebound_to_this_computer_is_refused_everywhere(stage: Stage, host: str) -> None:
    for path in ("/", "/sign-in", "/health", "/metrics", "/api/v1/status", "/static/labref.css"):
        assert stage.admin.get(path, Host=host).status in (400, 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Origin": "", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "", "Sec_Fetch_Site": "same-site"},
        {"Origin": "", "Referer": "http://evil.example/"},
    ],
)
def test_what_another_site_sends_changes_nothing_at_any_address(stage: Stage, headers: dict[str, str]) -> None:
    before = len(list(run(stage.lab, "user.list")))
    tried = 0
    for route in ROUTES:
        if route.path.startswith("/static/") or route.path == "/health":
            continue
        path = re.sub(r"{[^}]*}", "1", route.path)
        for method in {"POST", *(route.methods or ())} - {"GET", "HEAD"}:
            form = {"Content_Type": "application/x-www-form-urlencoded"}
            answered = stage.admin.ask(method, path, b"what=add&name=Sneak&role=admin", **form, **headers)
            assert answered.status == 403, (method, path, answered.status)
            tried += 1
    assert tried > 50 and len(list(run(stage.lab, "user.list"))) == before


def test_who_was_revoked_sees_no_page(stage: Stage) -> None:
    browser = Browser(stage.revoked.port, dict(stage.revoked.cookies))
    for path in (*stage.addresses(), "/events"):
        answered = browser.get(path)
        if path in ("/health", "/metrics", "/sign-in"):
            assert answered.status == 200 and PATIENT not in answered.text
        else:
            assert answered.status in (303, 401), path
    for path in stage.addresses():
        if path.startswith("/api/"):
            assert browser.get(path).status == 401


@pytest.mark.parametrize(
    "end", ["code expired", "expired meanwhile", "too old", "idle", "revoked", "renewed", "other code"]
)
def test_a_session_ends(tmp_path: Path, end: str) -> None:
    hours = timedelta(hours=1)
    with new_store(tmp_path) as store:
        past = datetime.now(UTC) - hours
        person = store.people.add("A", Role.ADMIN, "CODE", past if end == "code expired" else None)
        entered = store.people.sign_in("CODE", "token", timedelta(0) if end == "too old" else hours)
        assert (entered is None) == (end == "code expired")
        if end == "expired meanwhile":
            store.people.renew(person, "CODE", None)
            assert store.people.sign_in("CODE", "token", hours) is not None
            store.people.renew(person, "CODE", past)
        elif end == "revoked":
            store.people.revoke(person)
        elif end == "renewed":
            store.people.renew(person, "CODE 2", None)
        elif end == "other code":
            assert store.people.sign_in("CODE 2", "token 2", hours) is None
            assert store.people.of_session("token", hours) is not None
        idle = timedelta(microseconds=-1) if end == "idle" else hours
        assert store.people.of_session("token 2" if end == "other code" else "token", idle) is None


def _above(least: Role) -> list[Operation]:
    return [operation for operation in OPERATIONS if not least.covers(operation.role)]


@pytest.mark.parametrize("who", ["viewer", "reviewer"])
def test_nobody_does_what_their_role_does_not_allow(stage: Stage, who: str) -> None:
    browser: Browser = getattr(stage, who)
    role = Role.VIEW if who == "viewer" else Role.REVIEW
    asked = json.dumps({"cell": stage.known["cell_id"], "label": "monocyte", "slide": stage.known["key"]}).encode()
    assert len(_above(role)) > 5
    for operation in _above(role):
        for path in (operation.path, operation.path.replace("api", "%61pi"), operation.path + "?x=1"):
            assert browser.ask(operation.method, path, asked, **JSON).status == 403, path
        for path in (
            *(operation.path + end for end in ("/", "%0A", "%0a?x=1", "%0D%0A", "%00", "%20")),
            *("/" + operation.path, operation.path.upper(), f"http://127.0.0.1{operation.path}"),
        ):
            assert browser.ask(operation.method, path, asked, **JSON).status in (403, 404, 405), path
    for page in pages._PAGES:
        if page.role is not None and not role.covers(page.role):
            for method in page.methods:
                assert browser.ask(method, re.sub(r"{[^}]*}", "1", page.path), b"").status == 403


def test_nobody_in_a_browser_names_a_file_of_the_lab_s_computer(stage: Stage, tmp_path: Path) -> None:
    found = 0
    for operation in OPERATIONS:
        for name in {"file", "folder", "target"} & set(operation.request.model_fields):
            found += 1
            asked: dict[str, Any] = {
                "cell": "x",
                "label": "x",
                "rows": [],
                "consent": "x",
                "why": "x",
                name: str(tmp_path / "there"),
            }
            fields = {key: value for key, value in asked.items() if key in operation.request.model_fields}
            answered = stage.admin.ask(operation.method, operation.path, json.dumps(fields).encode(), **JSON)
            assert answered.status == 403 and "lab's computer" in answered.text, (operation.name, answered.text)
    assert found >= 5 and not list(tmp_path.iterdir())


# what is in an address


def test_no_part_of_an_address_reaches_a_file_or_fails(stage: Stage) -> None:
    tried = 0
    for route in ROUTES:
        for part in re.findall(r"{[^}]*}", route.path):
            for value in HOSTILE:
                for written in {
                    quote(value, safe="", errors="surrogateescape"),
                    quote(value, safe="/.", errors="surrogateescape"),
                }:
                    rest = route.path.replace(part, written)
                    path = re.sub(r"{(\w+)[^}]*}", lambda name: stage.known.get(name[1], "1"), rest)
                    answered = (stage.admin if route.path in ADMINS else stage.reviewer).get(path)
                    assert answered.status in (200, 303, 304, 400, 404, 405, 422), (path[:200], answered.status)
                    assert b"root:" not in answered.body and "x-evil" not in answered.headers
                    assert b"Traceback" not in answered.body and b"<script>" not in answered.body.replace(
                        b"<script>\n", b""
                    )
                    tried += 1
    assert tried > 100


def test_nothing_in_a_query_fails_or_comes_back_raw(stage: Stage) -> None:
    names = ("page", "order", "view", "next", "slide", "search", "class", "analyser", "since", "until", "what", "by")
    for path in stage.addresses():
        if path.startswith("/api/"):
            continue
        for value in ("<script>alert(1)", "\0../../etc/passwd", "9" * 400):
            query = "&".join(f"{name}={quote(value)}" for name in names)
            answered = stage.reviewer.get(f"{path}?{query}")
            assert answered.status < 500, (path, value, answered.text[:300])
            assert b"<script>alert" not in answered.body and b"root:" not in answered.body


@pytest.mark.parametrize(
    "address",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/\t/evil.example",
        "/\r\nSet-Cookie: a=b",
    ],
)
def test_signing_in_leads_nowhere_else(stage: Stage, address: str) -> None:
    assert "evil" not in stage.admin.get(f"/sign-in?next={quote(address)}").text
    chosen = stage.admin.post("/language", {"language": "en", "next": address})
    assert chosen.status == 303 and chosen.headers["location"] == "/"
    stage.admin.cookies.pop("labref-language")


def test_an_address_with_a_line_feed_at_its_end_is_none(stage: Stage) -> None:
    # a route takes it as well, but no role and no limit is looked up by it
    for route in ROUTES:
        if not route.path.startswith("/static/"):
            path = re.sub(r"{(\w+)[^}]*}", lambda part: stage.known.get(part[1], "1"), route.path)
            for method in {"GET", "POST", *(route.methods or ())}:
                answered = stage.admin.ask(method, f"{path}%0A", b"" if method == "POST" else None)
                assert answered.status == 404, (method, path, answered.status)


@pytest.mark.parametrize(
    "path",
    [
        *("/map/node/{digits}/1", "/map/node?row={digits}&column=1", "/map/node?row=1&column={digits}"),
        *("/map/at/{digits}?1,1", "/map/region/0/0/0/{digits}", "/reading/{digits}", "/reading/1.0/report"),
        *("/map/tiles/x/classes-light/{digits}/0_0.png", "/slides?page={digits}", "/?before={digits}"),
    ],
)
def test_a_number_of_thousands_of_digits_is_refused_or_passed_over(stage: Stage, path: str) -> None:
    for digits in ("9" * 19, "9" * 400, "9" * 4150, "9" * 5000):
        assert stage.admin.get(path.format(digits=digits)).status in (200, 303, 400, 404)


def test_a_form_of_many_fields_is_refused_in_words_even_to_strangers(stage: Stage) -> None:
    for path in ("/sign-in", "/language", "/slides", "/users", "/reading"):
        answered = (Browser(stage.admin.port) if path == "/sign-in" else stage.admin).post(
            path, {f"field{number}": "x" for number in range(2000)}
        )
        assert answered.status == 400 and "fields" in answered.text, (path, answered.status)


@pytest.mark.parametrize("days", ["9" * 5000, "3.5", "-1", "0", "a week", "\u0663 "])
def test_nobody_is_let_in_for_ever_because_their_days_could_not_be_read(stage: Stage, days: str) -> None:
    before = list(run(stage.lab, "user.list"))
    answered = stage.admin.post("/users", {"what": "add", "name": "Guest", "role": "view", "days": days})
    assert answered.status == 400 and "days" in answered.text
    assert list(run(stage.lab, "user.list")) == before


def test_a_body_whose_length_is_said_in_two_ways_is_refused(stage: Stage) -> None:
    head = _head(stage, "/language", "Content-Length: 5", "Transfer-Encoding: chunked")
    with closing(socket.create_connection(("127.0.0.1", stage.viewer.port), timeout=60)) as connection:
        connection.sendall(head + b"0\r\n\r\nGET /condition HTTP/1.1\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(4096), b""))
    assert received.startswith(b"HTTP/1.1 400") and received.count(b"HTTP/1.1") == 1


def test_another_program_s_cookies_sign_nobody_out(stage: Stage) -> None:
    session = stage.viewer.cookies["labref"]
    for cookie in (f"a b=1; labref={session}", f"{{}}; labref={session}; =x; ;", f'theme="a;b"; labref={session}'):
        assert stage.viewer.get("/", Cookie=cookie).status == 200, cookie
    for cookie in (
        "labref=",
        "labref=x",
        f"labre={session}",
        f"xlabref={session}",
        f"labref={session}x",
        "labref=\xff",
    ):
        assert stage.viewer.get("/", Cookie=cookie).status == 303, cookie


# names


def test_names_are_shown_harmlessly_on_every_page_and_stand_in_no_address_log_or_metric(stage: Stage) -> None:
    shown, named = "", 0
    for browser in (stage.viewer, stage.admin):
        for path in stage.addresses():
            answered = browser.get(path)
            assert answered.status < 500, (path, answered.text[:300])
            for name, value in answered.headers.items():
                assert PATIENT not in value, (path, name)
            if not answered.headers.get("content-type", "").startswith("text/html"):
                continue
            text = answered.text
            named += PATIENT in text
            for raw in ("<script>alert", "<img src=x", "<svg onload", "<marquee>"):
                assert raw not in text, (path, raw)
            hidden = [line for line in text.split("\n") if unprintable(line) is not None]
            assert not hidden, (path, hidden)
            for address in re.findall(r"""(?:href|src|srcset|action|formaction|content|poster)=["']?([^"'>]*)""", text):
                assert PATIENT not in address and "1962" not in address, (path, address)
            shown += text
    assert named > 3 and "&lt;script&gt;alert(1)" in shown and "&lt;img src=x" in shown and "&lt;svg onload" in shown
    found = stage.admin.post("/slides", {"search": PATIENT})
    assert PATIENT in found.text and PATIENT not in " ".join(re.findall(r'(?:href|src|action)="([^"]*)"', found.text))
    assert PATIENT not in stage.admin.get("/metrics").text
    logs = [file.read_text(encoding="utf-8") for file in (stage.lab.folder / "logs").rglob("*") if file.is_file()]
    assert any("agent started" in log for log in logs)  # what Python's fault handler writes stays empty without a crash
    for log in logs:
        assert PATIENT not in log and "19620101" not in log and "alert(1)" not in log


@pytest.mark.parametrize("name", ["a\nb", "\u202eevil", "a\x1b[31m", "\0", ""])
def test_no_label_is_given_that_cannot_be_seen(stage: Stage, name: str) -> None:
    asked = json.dumps({"cell": stage.known["cell_id"], "label": name, "new": True}).encode()
    assert stage.reviewer.ask("POST", "/api/v1/label/set", asked, **JSON).status == 400


# what is sent


def _uploads() -> list[str]:
    return [path for path in ("/api/v1/query", "/ask") if any(route.path == path for route in ROUTES)]


def _send(stage: Stage, path: str, data: bytes) -> Answered:
    return stage.viewer.ask("POST", path, data, Content_Type="application/octet-stream")


@pytest.mark.parametrize("path", _uploads())
def test_pictures_that_would_harm_a_decoder_are_refused(stage: Stage, path: str) -> None:
    for data in (
        huge_png(9_000, 5_000),
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0" * 1000,
    ):
        answered = _send(stage, path, data)
        assert answered.status == 422, (data[:20], answered.status, answered.text[:300])
    assert stage.viewer.get("/health").status == 200


@pytest.mark.parametrize("path", _uploads())
@pytest.mark.parametrize("announced", [2_000_000_000, 10**18])
def test_two_gigabytes_are_refused_before_they_are_sent(stage: Stage, path: str, announced: int) -> None:
    head = _head(stage, path, f"Content-Length: {announced}")
    with closing(socket.create_connection(("127.0.0.1", stage.viewer.port), timeout=60)) as connection:
        connection.sendall(head + b"x" * 1000)
        assert _status(connection) == 413


@pytest.mark.parametrize("path", [*_uploads(), "/api/v1/label/history", "/slides", "/language"])
def test_a_body_without_an_end_is_not_kept(stage: Stage, path: str) -> None:
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with closing(socket.create_connection(("127.0.0.1", stage.viewer.port), timeout=60)) as connection:
        connection.sendall(_head(stage, path, "Transfer-Encoding: chunked"))
        sent = 0
        connection.settimeout(0.01)
        data = b""
        while not data and sent < 3000:
            try:
                data = connection.recv(1000)
            except TimeoutError:
                connection.settimeout(20)
                try:
                    connection.sendall(piece)
                except OSError:
                    break
                connection.settimeout(0.0005)
                sent += 1
        assert sent < 3000, "it is read for ever"
        assert not data or int(data.split()[1]) == 413
    assert stage.viewer.get("/").status == 200


def test_forms_and_parameters_of_megabytes_are_not_read(stage: Stage) -> None:
    for path in ("/slides", "/language", "/sign-out", "/users"):
        answered = stage.admin.ask(
            "POST", path, b"search=" + b"%61" * 30_000, Content_Type="application/x-www-form-urlencoded"
        )
        assert answered.status == 413, path
    marks = json.dumps({"cells": ["a" * 16] * 100_000}).encode()
    assert stage.viewer.ask("POST", "/api/v1/live/marks", marks, **JSON).status == 413
    many = b"\r\n--x" * 150_000
    refused = stage.viewer.ask("POST", "/ask", many, Content_Type="multipart/form-data; boundary=x")
    assert refused.status == 422 and "picture" in refused.text


def _head(stage: Stage, path: str, *headers: str) -> bytes:
    cookies = "; ".join(f"{name}={value}" for name, value in stage.viewer.cookies.items())
    own = f"127.0.0.1:{stage.viewer.port}"
    lines = [f"POST {path} HTTP/1.1", f"Host: {own}", f"Origin: http://{own}", f"Cookie: {cookies}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _status(connection: socket.socket) -> int:
    answered = http.client.HTTPResponse(connection)
    answered.begin()
    return answered.status


# the last, because nobody signs in from this address for a while after it


def test_codes_are_not_to_be_guessed(stage: Stage) -> None:
    stranger = Browser(stage.admin.port)
    (row,) = run(stage.lab, "user.add", name="Late", role="admin")
    statuses = [stranger.sign_in(f"AAAA-BBBB-CCCC-{number:04d}").status for number in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    refused = stranger.sign_in(row["code"])
    assert refused.status == 429 and 0 < int(refused.headers["retry-after"]) <= 301
    # a proxy may say who is behind it, and a stranger may say anything
    for name in ("X_Forwarded_For", "X_Real_IP", "Forwarded", "X_Client_IP", "True_Client_IP"):
        assert stranger.post("/sign-in", {"code": row["code"]}, **{name: "10.0.0.1"}).status in (421, 429)
    assert stage.admin.get("/").status == 200
