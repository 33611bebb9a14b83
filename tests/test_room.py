"""A reading room: pages over a shared store, without a lab, which write nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import SharedError
from labref.tasks.publishing import publish
from labref.web.room import OpenRoom, open_room
from tests.labs import make_lab, once
from tests.pages import Browser
from tests.postgres import Database, database, password, server
from tests.test_shared import lab_of

CELLS = 12


@pytest.fixture(scope="module")
def shared() -> Iterator[Database]:
    with server() as running:
        yield database(running)


@pytest.fixture(scope="module")
def room(
    tmp_path_factory: pytest.TempPathFactory, shared: Database, starter: Bundle, drawn_cells: Path
) -> Iterator[tuple[OpenRoom, str]]:
    """The pages over a lab of drawn cells, and the secret of its role."""
    folder = tmp_path_factory.mktemp("room")
    export = folder / "lab-export"
    for picture in sorted(drawn_cells.glob("*/*_00[01].jpg"))[:CELLS]:
        (export / picture.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, export / picture.parent.name)
    once(make_lab(folder / "lab", export, starter))
    with lab_of(folder / "lab", starter, shared.lab("Lund <b>1</b>")) as (lab, store):
        for _ in publish(lab, store):
            pass
    address, secret = shared.lab("room", reads_only=True)
    with open_room(address, secret) as opened:
        yield opened, secret


def stranger(room: tuple[OpenRoom, str]) -> tuple[Browser, str]:
    """Somebody who is not signed in, and the code of the link."""
    address, _, code = room[0].link.partition("/sign-in#")
    return Browser(int(address.rpartition(":")[2])), code


@pytest.fixture(scope="module")
def browser(room: tuple[OpenRoom, str]) -> Browser:
    """Signed in by the link."""
    found, code = stranger(room)
    assert found.get("/").headers["location"].startswith("/sign-in")
    answer = found.sign_in(code)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    return found


def test_a_room_shows_labs_their_cells_and_what_a_picture_looks_like(
    room: tuple[OpenRoom, str], browser: Browser, shared: Database, drawn_cells: Path
) -> None:
    assert (room[0].labs, room[0].cells) == (1, CELLS)
    before = shared.rows("SELECT count(*) FROM cell"), shared.rows("SELECT * FROM lab")
    labs = browser.get("/").text
    assert "Lund &lt;b&gt;1&lt;/b&gt;" in labs and f'<td class="count">{CELLS}</td>' in labs
    links = re.findall(r'href="(/cells\?[^"]*label=[^"]*)"', labs)
    shown = browser.get(links[0].replace("&amp;", "&")).text
    pictures = re.findall(r'src="(/shared/picture\?[^"]*)"', shown)
    label = re.findall(r"label=([^&\"]*)", links[0])[0]
    assert len(pictures) == shared.rows("SELECT count(*) FROM cell WHERE label = %s", label)[0][0] > 0
    thumbnail = browser.get(pictures[0].replace("&amp;", "&"))
    assert thumbnail.headers["content-type"] == "image/jpeg" and thumbnail.body.startswith(b"\xff\xd8")
    asked = next(drawn_cells.rglob("*.jpg"))
    answer = browser.ask("POST", "/ask", asked.read_bytes(), Content_Type="image/jpeg")
    assert answer.status == 200 and "Lund &lt;b&gt;1&lt;/b&gt;" in answer.text
    assert len(re.findall(r'src="/shared/picture', answer.text)) == 8 and "by the analyser" in answer.text
    assert browser.ask("POST", "/ask", b"no picture").status == 422
    assert (shared.rows("SELECT count(*) FROM cell"), shared.rows("SELECT * FROM lab")) == before
    assert browser.get("/classes.css").text.count("--class") >= 8
    for path in ("/cells?lab=Ystad", "/slides", "/map", "/review", "/api/v1/status", "/metrics", "/health"):
        assert browser.get(path).status == 404, path
    swedish = browser.get("/cells", Accept_Language="sv").text
    assert "Laboratorium" in swedish


def test_a_rooms_link_signs_in_once_and_strangers_see_nothing(room: tuple[OpenRoom, str], browser: Browser) -> None:
    other, code = stranger(room)
    assert other.sign_in(code).status == 401
    for path in ("/", "/cells", "/ask", "/shared/picture?lab=x&cell=0123456789abcdef", "/classes.css"):
        assert other.get(path).headers["location"].startswith("/sign-in"), path
    assert other.get("/", Host="evil.example").status == 421
    assert browser.ask("POST", "/ask", b"", Origin="https://evil.example").status == 403


def test_a_room_needs_a_role_that_only_reads_and_cells_of_its_bundle(
    room: tuple[OpenRoom, str], shared: Database, tmp_path: Path
) -> None:
    lab, secret = shared.lab("Malmö")
    with pytest.raises(SharedError, match="role of the lab Malmö, which may write"), open_room(lab, secret):
        pass
    empty = Database(shared.server)
    reader, secret = empty.lab("room 2", reads_only=True)
    with pytest.raises(SharedError, match="no cell in the space of the bundle"), open_room(reader, secret):
        pass
    with password("wrong"):
        done = CliRunner().invoke(app, ["web", "--shared", shared.url(reader.user)])
        assert done.exit_code == 1 and "does not take the password" in done.output
    done = CliRunner().invoke(app, ["web", "--shared", shared.url(reader.user)])
    assert done.exit_code == 1 and "and none was given" in done.output and "--password-file" in done.output


def test_a_cell_whose_picture_is_not_there_yet_is_drawn_as_a_circle(browser: Browser) -> None:
    answer = browser.get("/shared/picture?lab=Lund&cell=0123456789abcdef")
    assert answer.headers["content-type"] == "image/svg+xml" and "<circle" in answer.text
    assert answer.headers["cache-control"] == "no-store"
