"""A reading room: pages over a shared store, without a lab, which write nothing."""

from __future__ import annotations

import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import SharedError
from labref.shared.labs import remove
from labref.tasks.publishing import publish
from labref.web.room import OpenRoom, _Door, open_room
from labref.web.visitors import IDLE
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


# as an enemy, a bad server and a tired person


def test_no_address_breaks_a_room(browser: Browser) -> None:
    odd = [
        "%00",
        "%ff",
        "..%2f..%2fetc%2fpasswd",
        "%27%20OR%201=1--",
        "%3Cscript%3E",
        "%ed%b3%a5",
        "x" * 3000,
        "%E2%80%AE",
    ]
    for value in odd:
        for path in (
            f"/cells?lab={value}", f"/cells?optics={value}", f"/cells?label={value}", f"/cells?page={value}",
            f"/shared/picture?lab={value}&cell={value}", f"/shared/picture?lab=Lund&cell={value}",
            f"/static/{value}", f"/{value}", f"/sign-in?next={value}",
        ):  # fmt: skip
            answer = browser.get(path)
            assert answer.status < 500 and b"<script>" not in answer.body, (path, answer.status)
            assert b"root:" not in answer.body
    for page in ("-1", "0", "9" * 400, "1e9", "%D9%A3"):
        assert browser.get(f"/cells?page={page}").status in (200, 400, 404)
    for path in ("/language", "/sign-in"):  # what is no form
        assert browser.ask("POST", path, b"\xff\x00=%", Content_Type="text/plain").status < 500


def test_a_bomb_is_refused_in_words(browser: Browser) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + bytes(64)
    answer = browser.ask("POST", "/ask", bomb, Content_Type="image/png")
    assert answer.status == 422 and 'role="alert"' in answer.text
    assert browser.ask("POST", "/ask", bytes(50_000_001), Content_Type="image/png").status == 413
    form = b"--x\r\nContent-Disposition: form-data; name=f; filename=../../x\r\n\r\n" + bomb
    assert browser.ask("POST", "/ask", form, Content_Type="multipart/form-data; boundary=x").status == 422


def test_a_session_of_a_room_ends_when_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    door, now = _Door(), [1000.0]
    monkeypatch.setattr("labref.web.room.time.monotonic", lambda: now[0])
    entrance = door.entrance()
    assert entrance.sign_in(door.code, "mine") is not None
    for _ in range(3):
        now[0] += IDLE.total_seconds() - 1
        assert entrance.signed_in("mine") is not None and entrance.signed_in("theirs") is None
    now[0] += IDLE.total_seconds() - 1
    assert entrance.stays("mine")
    now[0] += 2
    assert not entrance.stays("mine") and entrance.signed_in("mine") is None
    assert entrance.sign_in(door.code, "again") is None, "the link was used"


def test_who_may_write_opens_no_room(shared: Database) -> None:
    with pytest.raises(SharedError, match="may write there"), open_room(shared.owner, shared.secret):
        pass


def test_a_reader_takes_the_role_of_nobody_else(shared: Database) -> None:
    """Names that make one name of a role: of two readers, of a lab and a reader, of two shared stores on one server."""
    first = shared.lab("Läsesal 1", reads_only=True)
    lab = shared.lab("reader ward")
    others = [shared.lab("lasesal-1", reads_only=True), shared.lab("ward", reads_only=True)]
    elsewhere = Database(shared.server).lab("Läsesal 1", reads_only=True)
    names = [address.user for address, _ in (first, lab, *others, elsewhere)]
    assert len(set(names)) == 5, names
    for access in (first, lab, *others):
        shared.as_lab(access).close()  # its password is still good
    with shared.as_lab(others[1]) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM cell")
    again = shared.lab("Läsesal 1", reads_only=True)
    assert again[0] == first[0] and again[1] != first[1]
    shared.as_lab(again).close()
    with pytest.raises(psycopg.OperationalError):
        shared.as_lab(first)
    with password(shared.secret):
        words = ["shared", "lab", "remove", "La\u0308sesal 1", "--reader", "--url", shared.url()]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0 and "reads the shared store no more" in done.output, done.output
        assert CliRunner().invoke(app, words).exit_code == 1
    for access in (lab, *others):
        shared.as_lab(access).close()
    with pytest.raises(psycopg.OperationalError):
        shared.as_lab(again)


def test_a_room_lasts_while_its_server_is_gone_and_a_lab_is_taken_out(
    starter: Bundle, drawn_cells: Path, tmp_path: Path
) -> None:
    with server() as running:
        store_ = database(running)
        for number in (1, 2):
            export = tmp_path / f"lab{number}-export"
            for picture in sorted(drawn_cells.glob("*/*_00[01].jpg"))[number::4][:2]:
                (export / picture.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, export / picture.parent.name)
            once(make_lab(tmp_path / f"lab{number}", export, starter))
            with lab_of(tmp_path / f"lab{number}", starter, store_.lab(f"Lab {number}")) as (lab, store):
                for _ in publish(lab, store):
                    pass
        address, secret = store_.lab("room", reads_only=True)
        with open_room(address, secret) as opened:
            browser, code = stranger((opened, secret))
            browser.sign_in(code)
            assert browser.get("/cells?lab=Lab+1").status == 200
            remove(store_.owner, store_.secret, "Lab 1")
            asked = next(drawn_cells.rglob("*.jpg")).read_bytes()
            answer = browser.ask("POST", "/ask", asked, Content_Type="image/jpeg")
            assert answer.status == 200 and "Lab 2" in answer.text and "Lab 1" not in answer.text
            assert browser.get("/cells?lab=Lab+1").status == 200, "it was there a moment ago"
            gone = browser.get("/shared/picture?lab=Lab+1&cell=0123456789abcdef")
            assert gone.headers["content-type"] == "image/svg+xml", "nothing is kept of it"
            running.stop()
            pages = [browser.get("/cells"), browser.ask("POST", "/ask", asked, Content_Type="image/jpeg")]
            assert pages[0].status == 503 and "cannot be reached" in pages[0].text
            assert pages[1].status in (200, 422) and "cannot be reached" in pages[1].text
            assert browser.get("/ask").status == 200
            for page in pages:
                assert secret not in page.text and "Traceback" not in page.text
            running.start()
            assert browser.get("/cells?lab=Lab+2").status == 200
            answer = browser.ask("POST", "/ask", asked, Content_Type="image/jpeg")
            assert answer.status == 200 and "Lab 2" in answer.text
            # a newer labref changes the store
            with running.connect(store_.name) as owner:
                owner.execute("INSERT INTO labref.migration (version, name, labref_version) VALUES (99, 'x', '9')")
                owner.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [address.user]
                )
            newer = browser.get("/cells")
            assert newer.status == 503 and "Install a newer labref" in newer.text
