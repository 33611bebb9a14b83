"""Strangers on the lab's computer: programs without its token, other users, and a copy of the lab."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.errors import AgentError, LabError, LabrefError
from labref.lab import Lab
from labref.lab.log import Log
from labref.lab.pictures import Pictures
from labref.progress import Row
from labref.web import client, connections, events
from labref.web.application import Answers, make_app
from labref.web.client import AgentClient
from labref.web.desk import ledger_rows, run
from labref.web.metrics import Metrics
from labref.web.server import Server
from labref.web.serving import serving
from labref.web.visitors import Entrance
from tests.benchmarks.exports import labref_process
from tests.labs import make_lab, once, running_agent, served, wait_until

TOKEN = "t" * 43
KNOWN = f"Authorization: Bearer {TOKEN}\r\n"


class _NoLog:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def perform(name: str, asked: Mapping[str, Any] | BaseModel, data: bytes | None) -> Iterator[Row]:
    """Answers in the place of a lab: a query says how much it was given, the ledger fails after its second row."""
    if name == "query":
        yield {"bytes": len(data or b"")}
    elif name == "ledger":
        yield {"path": "a"}
        yield {"path": "b"}
        raise ZeroDivisionError
    else:
        raise LabrefError(f"{name} is not played here")


def server_of_its_own() -> Server:
    """A server as the agent's is."""
    log: Log = _NoLog()  # type: ignore[assignment]
    nobody = Entrance(sign_in=lambda *_: None, signed_in=lambda _: None, stays=lambda _: False, sign_out=lambda _: None)
    answers = Answers(
        perform=perform,
        image=lambda _: None,
        healthy=lambda: "ok",
        proof=lambda *_: None,
        entrance=nobody,
        latest=lambda: 0,
        pictures=Pictures(None, lambda _: False),  # type: ignore[arg-type]
    )
    return served(make_app(answers, Metrics(), token=TOKEN, max_bytes=1_000_000, log=log))


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server as the agent's is, with shorter times."""
    monkeypatch.setattr(connections, "STRANGER_SECONDS", 1.0)
    monkeypatch.setattr(connections, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(connections, "BODY_SECONDS", 3.0)
    with server_of_its_own() as server:
        yield server.port


def connect(port: int, start: str = "") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=20)
    with contextlib.suppress(OSError):  # put out already
        made.sendall(start.encode())
    return made


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON of what is answered, up to the end of the connection, which must come."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    connection.close()
    if not data:
        return 0, {}
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def request(target: str, headers: str = "", method: str = "GET", host: str = "127.0.0.1") -> str:
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# connections


@pytest.mark.parametrize(
    "start",
    [
        "",
        "GET",
        "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        request("/api/v1/status"),
        request("/health"),
        request("/api/v1/query", "Content-Length: 900000\r\n", "POST"),
        request("/health", "Content-Length: 900000\r\n", "POST"),
    ],
    ids=["nothing", "a word", "half the headers", "no token", "health", "no token, half a body", "health with a body"],
)
def test_strangers_cannot_keep_the_lab_s_own_requests_out(port: int, start: str) -> None:
    before = descriptors() if sys.platform == "linux" else 0
    held = [connect(port, start) for _ in range(300)]
    if sys.platform == "linux":
        # both ends of these connections are this process'
        assert descriptors() - before - len(held) <= connections.MOST + 8 * connections.BACKLOG
    own = request("/api/v1/query", KNOWN + "Connection: close\r\nContent-Length: 2\r\n", "POST") + "xx"
    status, body = answer(connect(port, own))
    assert (status, body) == (200, {"bytes": 2})
    for connection in held:
        connection.close()


@pytest.mark.parametrize("start", ["", "GET /he", request("/health")[:-2], request("/health", "X: " + "x" * 9000)[:-2]])
def test_who_does_not_send_on_is_put_out_in_time(port: int, start: str) -> None:
    started = time.monotonic()
    status, body = answer(connect(port, start))
    assert time.monotonic() - started < 8
    if start:
        assert status == 408
        assert "within" in body["error"]["message"]


def test_headers_in_drops_gain_no_time(port: int) -> None:
    connection = connect(port, request("/health")[:-2])
    started = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - started < 15:
            connection.sendall(b"x: y\r\n")
            time.sleep(0.1)
    assert time.monotonic() - started < 10
    connection.close()


def test_a_body_in_drops_is_given_up_and_one_that_is_slow_is_not(port: int) -> None:
    head = request("/api/v1/query", KNOWN + "Connection: close\r\nContent-Length: 8\r\n", "POST")
    slow = connect(port, head)
    for _ in range(8):
        time.sleep(0.2)
        slow.sendall(b"x")
    assert answer(slow) == (200, {"bytes": 8})
    started = time.monotonic()
    status, body = answer(connect(port, head + "xx"))
    assert (status, body["error"]["message"]) == (408, "the body of the request did not come on")
    dropping = connect(port, head.replace("Length: 8", "Length: 1000"))
    with pytest.raises(OSError):
        while time.monotonic() - started < 20:
            dropping.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - started < 15
    dropping.close()


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("/api/v1/status", "", 401),
        ("/api/v1/status", "Authorization: Bearer wrong\r\n", 401),
        ("/nothing", "", 401),
        ("/health", "", 200),
    ],
)
def test_a_stranger_gets_one_answer(port: int, target: str, headers: str, status: int) -> None:
    connection = connect(port, request(target, headers) * 3)
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    assert data.count(b"HTTP/1.1 ") == 1
    assert data.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in data.lower()
    connection.close()


def test_a_body_is_not_read_before_the_token_is_seen(port: int) -> None:
    connection = connect(port, request("/api/v1/query", "Content-Length: 900000000\r\n", "POST"))
    sent = 0
    connection.settimeout(5)
    with contextlib.suppress(OSError):
        while sent < 300_000_000:
            sent += connection.send(b"x" * 1_000_000)
    assert sent < 60_000_000  # what the system's own buffers take
    connection.close()
    # who waits to be told to send the body is told not to
    asking = connect(port, request("/api/v1/query", "Content-Length: 9\r\nExpect: 100-continue\r\n", "POST"))
    assert answer(asking)[0] == 401


@pytest.mark.parametrize(
    ("path", "length", "kind"),
    [("/api/v1/query", 1_000_001, "UnreadableImageError"), ("/api/v1/label/import", 64_000_001, "LabrefError")],
)
def test_a_body_that_is_too_large_is_refused_by_its_length_and_without_one(
    port: int, path: str, length: int, kind: str
) -> None:
    headers = KNOWN + "Content-Type: application/json\r\n"
    status, body = answer(connect(port, request(path, headers + f"Content-Length: {length}\r\n", "POST")))
    assert (status, body["error"]["kind"]) == (413, kind)
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    connection = connect(port, request(path, headers + "Transfer-Encoding: chunked\r\n", "POST"))
    with contextlib.suppress(OSError):
        for _ in range(length // len(chunk) + 2):
            connection.sendall(chunk)
    status, body = answer(connection)
    assert status in (0, 413)  # the system may drop the answer where bytes are still under way


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("NONSENSE\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\n\r\n", 400),
        (request("/health", "Content-Length: x\r\n"), 400),
        (request("/health", "X: " + "x" * 400_000 + "\r\n"), 431),
        (request("/" + "x" * 400_000), 431),
        (request("/api/v1/query", KNOWN + "Transfer-Encoding: chunked\r\n", "POST") + "zz\r\n", 400),
    ],
)
def test_what_is_no_request_is_said_so_as_json(port: int, said: str, status: int, capfd: Any) -> None:
    found, body = answer(connect(port, said))
    assert found == status
    assert body["error"]["kind"] == "AgentError"
    assert capfd.readouterr().err == ""


def test_when_all_connections_are_taken_by_the_lab_s_own_the_next_is_told(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STRANGER_SECONDS", "SILENT_SECONDS", "BODY_SECONDS"):  # a busy computer reads their requests late
        monkeypatch.setattr(connections, name, 300.0)
    head = request("/api/v1/query", KNOWN + "Content-Length: 8\r\n", "POST")
    held = [connect(port, head) for _ in range(connections.MOST)]
    status, body, until = 0, {}, time.monotonic() + 60
    while not status and time.monotonic() < until:
        time.sleep(0.5)  # until their requests are read: who asks before that has one of them put out
        one_more = connect(port)
        one_more.settimeout(1)
        with contextlib.suppress(TimeoutError):
            status, body = answer(one_more)
        if not status:
            one_more.close()
            held.append(connect(port, head))  # in place of one that was ended for it: its request was not read yet
    assert status == 503
    assert "ask again" in body["error"]["message"]
    for connection in held:
        connection.close()


def test_a_stream_of_events_outlasts_every_limit_and_ends_at_once_when_the_agent_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("STRANGER_SECONDS", "SILENT_SECONDS", "BODY_SECONDS"):
        monkeypatch.setattr(connections, name, 0.5)
    with server_of_its_own() as server:
        assert answer(connect(server.port, request("/events")))[0] == 401
        streams = [connect(server.port, request("/events", KNOWN)) for _ in range(events.MOST_EACH)]
        for stream in streams:
            said = b""
            while b"data: 0" not in said:
                said += stream.recv(4096)
        more = connect(server.port, request("/events", KNOWN + "Connection: close\r\n"))
        assert answer(more)[0] == 503, "one asker has so many and no more"
        streams.pop().close()
        time.sleep(1.5)
        again = connect(server.port, request("/events", KNOWN))
        assert b" 200 " in again.recv(4096), "one that was left makes room"
        began = time.monotonic()
    assert time.monotonic() - began < 3, "the agent waited for a stream"
    for stream in (*streams, again):
        stream.settimeout(5)
        last = b""
        while part := stream.recv(4096):
            last += part
        assert last.endswith(b"0\r\n\r\n"), "it was ended, and not cut off"
        stream.close()


def test_many_of_the_lab_s_own_requests_at_once_are_all_answered(port: int) -> None:
    found: list[int] = []

    def ask() -> None:
        for _ in range(5):
            head = request("/api/v1/query", KNOWN + "Connection: close\r\nContent-Length: 1\r\n", "POST")
            found.append(answer(connect(port, head + "x"))[0])

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 80


def test_an_answer_that_fails_on_its_way_ends_with_the_error(port: int) -> None:
    connection = connect(port, request("/api/v1/ledger", KNOWN + "Connection: close\r\n"))
    data = b""
    while part := connection.recv(65536):
        data += part
    connection.close()
    assert b"200 OK" in data
    assert data.endswith(b"0\r\n\r\n")
    assert b'{"error": {"kind": "AgentError", "message": "the agent failed to answer (ZeroDivisionError)' in data


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("GET", "/api/v1/ledger?outcome=bogus", "", 400),
        ("GET", "/api/v1/ledger?limit=1e400", "", 400),
        ("GET", "/api/v1/ledger?limit=" + "9" * 5000, "", 400),
        ("GET", "/api/v1/ledger?path=%00", "", 400),
        ("GET", "/api/v1/nothing", "", 404),
        ("DELETE", "/api/v1/ledger", "", 405),
        ("POST", "/health", "", 405),
        ("POST", "/api/v1/query?k=Infinity", "x", 400),
        ("POST", "/api/v1/label/set", "[" * 100_000, 400),
        ("POST", "/api/v1/label/set", '{"cell": ' * 5000, 400),
        ("POST", "/api/v1/label/set", '{"cell": NaN, "label": Infinity}', 400),
        ("POST", "/api/v1/label/set", "9" * 10_000, 400),
        ("POST", "/api/v1/label/set", "\xff\x00", 400),
        ("POST", "/api/v1/map/train", '{"rows": 1e400}', 400),
        ("POST", "/api/v1/map/train", '{"rows": Infinity}', 400),
        ("POST", "/api/v1/map/train", '{"rows": ' + "9" * 5000 + "}", 400),
        ("POST", "/api/v1/map/node", '{"row": 99999999999999999999999, "column": -1}', 400),
        ("POST", "/api/v1/store/backup", '{"target": "a\\u0000b"}', 400),
        ("POST", "/api/v1/store/backup", '{"target": "\\ud800"}', 400),
    ],
)
def test_every_failure_is_a_json_object_of_the_same_form(
    port: int, method: str, target: str, body: str, status: int
) -> None:
    data = body.encode("latin-1")
    headers = KNOWN + f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    connection = connect(port, request(target, headers, method))
    connection.sendall(data)
    found, answered = answer(connection)
    assert found == status
    assert answered["error"].keys() == {"kind", "message"}
    assert "failed to answer" not in answered["error"]["message"]


# a copy of the lab


def who_reviewed(lab: Lab, cell: str) -> list[str]:
    (row,) = run(lab, "label.history", cell=cell)
    return [change["label"] for change in row["changes"]]


@pytest.mark.slow
def test_a_copied_lab_is_not_answered_by_the_original_s_agent(tmp_path: Path, export: Path, starter: Bundle) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    (tmp_path / "linked").symlink_to(lab.folder, target_is_directory=True)
    with running_agent(lab):
        copied = tmp_path / "copy"
        shutil.copytree(lab.folder, copied, symlinks=True)
        assert (copied / "agent.json").exists()
        copy = Lab.open(copied)
        assert AgentClient.find(copy) is None
        cell = next(iter(ledger_rows(copy)))["cell_id"]
        commands(0o022, f"label|set|{cell}|monocyte|--new|--lab|{copied}")
        assert who_reviewed(copy, cell) == ["monocyte"]
        assert who_reviewed(lab, cell) == []
        assert AgentClient.find(lab) is not None
        # the same folder by other names
        assert AgentClient.find(Lab.open(tmp_path / "linked")) is not None
        assert AgentClient.find(Lab.open(copied / ".." / "lab")) is not None
        with monkey_identity(lambda folder: f"elsewhere {folder}"):
            assert AgentClient.find(lab) is not None  # by the mark
            assert AgentClient.find(copy) is None
            with unwritable_marks():
                assert AgentClient.find(lab) is None
        assert not list(lab.folder.glob(".labref-here-*"))
        # two agents, one of them the copy's, each of its own
        with running_agent(copy):
            assert AgentClient.find(copy) is not None
            assert who_reviewed(copy, cell) == ["monocyte"]
            assert who_reviewed(lab, cell) == []
            shutil.copy(lab.agent_file, copy.agent_file)  # the original's record, once more
            assert AgentClient.find(copy) is None


@contextlib.contextmanager
def mounted(kind: str, source: str, at: Path, options: str) -> Iterator[None]:
    """A mount, where this system lets a test make one."""
    at.mkdir()
    command = (
        ["mount", "-t", kind, "-o", options, source, str(at)] if kind else ["mount", "-o", options, source, str(at)]
    )
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"only root of a Linux that allows it can mount: {' '.join(command[1:5])}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bind", "bind, read-only", "overlay", "overlay, read-only", "snapshot"])
def test_a_mount_of_the_lab_is_its_agent_s_and_a_copy_in_layers_is_not(
    tmp_path: Path, export: Path, starter: Bundle, kind: str
) -> None:
    """A bind mount shows the very folder; what is written in an overlay or a snapshot never reaches the original."""
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    cell = next(iter(ledger_rows(lab)))["cell_id"]
    other = tmp_path / "other"
    with running_agent(lab), contextlib.ExitStack() as mounts:
        if kind == "snapshot":  # a file system of its own, with what the lab held at one moment
            mounts.enter_context(mounted("tmpfs", "labref-test", other, "size=256m"))
            subprocess.run(["cp", "-a", "--reflink=auto", f"{lab.folder}/.", str(other)], check=True)
            subprocess.run(["mount", "-o", "remount,ro", str(other)], check=True)
        elif kind.startswith("bind"):
            mounts.enter_context(mounted("", str(lab.folder), other, "bind"))
            if "read-only" in kind:
                subprocess.run(["mount", "-o", "remount,ro,bind", str(other)], check=True)
        else:
            layers = [tmp_path / name for name in ("upper", "work", "empty")]
            for layer in layers:
                layer.mkdir()
            upper, work, empty = layers
            over = f"lowerdir={lab.folder},upperdir={upper},workdir={work}"
            over = f"lowerdir={empty}:{lab.folder}" if "read-only" in kind else over
            mounts.enter_context(mounted("overlay", "overlay", other, over))
        seen = Lab.open(other)
        found = AgentClient.find(seen)
        assert AgentClient.find(lab) is not None
        if kind == "bind":
            assert found is not None, "the same folder by another name"
            return
        assert found is None
        if kind == "overlay":  # a copy: what is said there is not said in the original
            commands(0o022, f"label|set|{cell}|monocyte|--new|--lab|{other}")
            assert who_reviewed(seen, cell) == ["monocyte"] and who_reviewed(lab, cell) == []
        else:
            done = CliRunner().invoke(app, ["label", "set", cell, "monocyte", "--new", "--lab", str(other)])
            assert done.exit_code == 1 and "store.duckdb cannot be opened" in done.stderr
            assert "Read-only file system" in done.stderr
            assert who_reviewed(lab, cell) == []
        assert not list(lab.folder.glob(".labref-here-*"))


@contextlib.contextmanager
def monkey_identity(changed: Callable[[Path], str]) -> Iterator[None]:
    """The command sees its folders under other numbers than the agent does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "identity", changed)
        yield


@contextlib.contextmanager
def unwritable_marks() -> Iterator[None]:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "touch", refused)
        yield


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder with an open file in it")
def test_an_agent_whose_lab_is_moved_ends_and_answers_for_no_copy_in_its_place(
    tmp_path: Path, export: Path, starter: Bundle
) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    moved = tmp_path / "moved"
    with running_agent(lab) as agent:
        lab.folder.rename(moved)
        shutil.copytree(moved, lab.folder, dirs_exist_ok=True)  # the agent may have made a folder there meanwhile
        assert AgentClient.find(lab) is None
        assert agent.wait(timeout=60) == 1
        assert agent.stderr is not None
        assert "was moved or replaced" in agent.stderr.read()
    with Lab.open(moved).open_store() as store:
        assert store.counts().cells <= 2


@pytest.mark.parametrize(
    "record",
    [
        "[" * 100_000,
        '{"pid": Infinity, "port": 1, "started_at": ""}',
        '{"pid": 1, "port": 1e400, "started_at": ""}',
        '{"pid": 1, "port": 99999999999999999999, "started_at": ""}',
        '{"pid": 1, "port": 0, "started_at": ""}',
        '{"pid": 1, "port": [], "started_at": ""}',
        "\0",
    ],
)
def test_a_damaged_record_of_an_agent_is_as_good_as_none(
    tmp_path: Path, export: Path, starter: Bundle, record: str
) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    lab.agent_file.write_text(record, encoding="utf-8")
    assert AgentClient.find(lab) is None


@pytest.mark.parametrize(
    "said",
    ["{}", '{"proof": "é"}', "[" * 5000, '{"proof": "\\ud800"}', "", "x" * 20_000, '{"proof": ' + "9" * 9000 + "}"],
)
def test_another_program_on_the_agent_s_port_is_not_taken_for_it(
    tmp_path: Path, export: Path, starter: Bundle, said: str
) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    body = said.encode()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    caller, _ = listening.accept()
                    heard = caller.recv(65536)
                    assert lab.token().encode() not in heard
                    caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                    caller.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        record = {"pid": 1, "port": listening.getsockname()[1], "started_at": "then"}
        lab.agent_file.write_text(json.dumps(record), encoding="utf-8")
        assert AgentClient.find(lab) is None


# other users of the computer


def commands(umask: int, *lines: str) -> str:
    """Run commands, their words apart by |, one after the other in processes with this umask; what they say on
    stderr."""
    said = ""
    before = os.umask(umask)
    try:
        for line in lines:
            done = labref_process(*line.split("|"))
            errors = done.communicate()[1]
            assert done.returncode == 0, errors
            said += errors
    finally:
        os.umask(before)
    return said


def open_to_others(*tops: Path) -> dict[str, str]:
    """What others than the owner have any right to."""
    found = {}
    for top in tops:
        for path in (top, *top.rglob("*")):
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # an agent's, on its way to its name
                continue
            assert stat.S_IMODE(mode) in ((0o700,) if path.is_dir() else (0o600,)) or mode & 0o077, path
            if mode & 0o077:
                found[str(path)] = stat.filemode(mode)
    return found


@pytest.fixture
def export(tmp_path: Path, drawn_cells: Path) -> Path:
    """A flat export of two drawn cells."""
    folder = tmp_path / "export"
    folder.mkdir()
    for number, path in enumerate(sorted(drawn_cells.rglob("*.jpg"))[:2]):
        shutil.copy(path, folder / f"{number}.jpg")
    return folder


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has lists in the place of modes")


@posix
@pytest.mark.slow
@pytest.mark.parametrize("umask", [0, 0o022])
def test_nobody_else_reads_a_lab_its_backups_and_its_exports(tmp_path: Path, export: Path, umask: int) -> None:
    before = {path: path.stat().st_mode for path in (export, *export.iterdir())}
    lab, folder, archive = tmp_path / "lab", tmp_path / "backup", tmp_path / "backup.zip"
    again, cells, picture = tmp_path / "again", tmp_path / "cells.parquet", tmp_path / "grid.png"
    commands(
        umask,
        f"init|{lab}|--watch|{export}",
        f"agent|--once|--lab|{lab}",
        f"store|backup|{folder}|--lab|{lab}",
        f"store|backup|{folder}|--lab|{lab}",
        f"store|backup|{archive}|--lab|{lab}",
        f"store|restore|{archive}|{again}",
        f"store|export|{cells}|--lab|{lab}",
        f"query|{export / '0.jpg'}|--lab|{again}|--grid|{picture}",
    )
    assert len([path for path in lab.rglob("*") if path.is_file()]) > 8
    assert open_to_others(lab, folder, archive, again, cells, picture) == {}
    assert {path: path.stat().st_mode for path in before} == before


@posix
def test_a_running_agent_s_files_are_its_owner_s(tmp_path: Path, export: Path, starter: Bundle) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    before = os.umask(0)
    try:
        with running_agent(lab):
            wait_until(lambda: any(lab.images.rglob("????????????????*")))
            assert lab.agent_file.exists()
            assert open_to_others(lab.folder) == {}
    finally:
        os.umask(before)


def loosen(top: Path) -> None:
    for path in (top, *top.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


@posix
def test_a_lab_made_before_is_closed_to_others_when_it_is_opened_and_that_is_said_once(
    tmp_path: Path, export: Path, starter: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    lab.store_image(b"bytes", "ab" * 32)
    loosen(lab.folder)
    lab.open_store().close()
    assert open_to_others(lab.folder) == {}
    assert [record.message for record in caplog.records if str(lab.folder) in record.message]
    caplog.clear()
    lab.open_store().close()
    assert not caplog.records
    # killed while it was at it: what was left open is closed the next time
    loosen(lab.images)
    lab.open_store().close()
    assert open_to_others(lab.folder) == {}
    loosen(lab.folder)
    assert "could be read by other users" in commands(0o022, f"status|--lab|{lab.folder}")


@posix
def test_a_lab_that_its_group_shares_is_open_to_the_group(tmp_path: Path, export: Path, starter: Bundle) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    with lab.config_file.open("a", encoding="utf-8") as file:
        file.write("[access]\ngroup = true\n")
    commands(0o077, f"agent|--once|--lab|{lab.folder}", f"store|backup|{tmp_path / 'backup'}|--lab|{lab.folder}")
    for top in (lab.folder, tmp_path / "backup"):
        for path in (top, *top.rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o770 if path.is_dir() else 0o660), path


@posix
def test_an_export_folder_in_the_lab_keeps_its_rights_and_can_be_reached(tmp_path: Path, starter: Bundle) -> None:
    folder = tmp_path / "lab" / "export"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    (folder / "a.jpg").write_bytes(b"")
    (folder / "a.jpg").chmod(0o644)
    lab = make_lab(tmp_path / "lab", folder, starter)
    lab.open_store().close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777
    assert stat.S_IMODE((folder / "a.jpg").stat().st_mode) == 0o644
    assert stat.S_IMODE(lab.folder.stat().st_mode) == 0o711
    assert stat.S_IMODE(lab.images.stat().st_mode) == 0o700


@posix
def test_a_folder_that_holds_other_people_s_folders_is_not_closed(
    tmp_path: Path, export: Path, starter: Bundle
) -> None:
    home = tmp_path / "home"
    (home / "documents").mkdir(parents=True)
    (home / "documents" / "letter").write_text("mine")
    loosen(home)
    lab = make_lab(home, export, starter)
    lab.open_store().close()
    for path in (home, home / "documents"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE((home / "documents" / "letter").stat().st_mode) == 0o644
    own = [path for path in home.iterdir() if path.name != "documents"]
    assert open_to_others(*own) == {}


@posix
def test_a_backup_made_before_is_closed_and_the_user_s_own_files_are_left(
    tmp_path: Path, export: Path, starter: Bundle
) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    target = tmp_path / "backup"
    commands(0o022, f"store|backup|{target}|--lab|{lab.folder}")
    loosen(target)
    commands(0o022, f"store|backup|{target}|--lab|{lab.folder}")
    assert open_to_others(target) == {}


@pytest.mark.skipif(not hasattr(os, "link"), reason="no hard links here")
def test_a_copy_made_of_hard_links_changes_nothing_in_the_original(
    tmp_path: Path, export: Path, starter: Bundle
) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    copy = Lab.open(Path(shutil.copytree(lab.folder, tmp_path / "copy", copy_function=os.link)))
    for one in (lab, copy):
        with pytest.raises(LabError, match="hard link"):
            one.open_store()
    (copy.folder / "own").write_bytes(copy.store_file.read_bytes())
    (copy.folder / "own").replace(copy.store_file)  # the remedy of the message
    for one in (lab, copy):
        one.open_store().close()


def test_what_answers_is_made_for_the_first_caller_and_never_where_nobody_calls() -> None:
    made = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def make() -> Any:
        made.append(threading.current_thread().name)
        return partial(serving, app)

    with Server(make, 0) as server:
        assert server.port > 0
        time.sleep(0.1)
        server.check()
    assert made == []
    with Server(make, 0) as server:
        for _ in range(2):
            with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as asking:
                asking.request("GET", "/")
                assert asking.getresponse().status == 204
    assert made == ["labref-http-start"]
    with Server(make, 0) as server:
        server.begin()
        wait_until(lambda: len(made) == 2, 30)
        server.begin()
    assert len(made) == 2


def test_an_agent_says_that_what_answers_cannot_be_made() -> None:
    def make() -> Any:
        raise ValueError("a page is broken")

    with Server(make, 0) as server:
        server.begin()
        with pytest.raises(AgentError, match="HTTP side did not start: ValueError: a page is broken"):
            for _ in range(300):
                server.check()
                time.sleep(0.05)
