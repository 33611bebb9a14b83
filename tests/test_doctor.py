"""`labref doctor` and `labref config`: what is wrong is found, with what to do; and what `status` and /health say of a
disk that fills, a backup that ages and a GPU that is not used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from labref.asking import room
from labref.bundles import inference
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.config import Config, every_setting
from labref.demo.cells import LABELS
from labref.doctor import NAMES, computer
from labref.doctor import lab as of_lab
from labref.lab import Lab
from labref.lab.backups import last_backup
from labref.service import Registered
from labref.web import desk
from labref.web.client import read_agent_record
from tests.labs import make_lab, once, running_agent, wait_until


def labref(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="labref")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def examined(lab: Lab | Path, code: int, *more: str) -> dict[str, dict[str, Any]]:
    """The worst finding of each check."""
    folder = lab if isinstance(lab, Path) else lab.folder
    order = ["fine", "note", "warning", "problem"]
    found: dict[str, dict[str, Any]] = {}
    for line in labref("doctor", "--json", "--no-speed", "--lab", folder, *more, code=code).splitlines():
        one = json.loads(line)
        assert one["check"] in NAMES and one["says"]
        assert (one["state"] not in ("warning", "problem")) or one["remedy"]
        before = found.get(one["check"])
        if before is None or order.index(one["state"]) > order.index(before["state"]):
            found[one["check"]] = one
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    export = tmp_path_factory.mktemp("export")
    shutil.copytree(drawn_cells / LABELS[0], export / LABELS[0])
    lab = make_lab(tmp_path_factory.mktemp("lab") / "lab", export, starter)
    once(lab)
    return lab


@pytest.fixture
def lab(filled: Lab, tmp_path: Path) -> Lab:
    """A copy with a lab and an export folder of its own."""
    export = tmp_path / "export"
    shutil.copytree(filled.watched[0], export)
    shutil.copytree(filled.folder, tmp_path / "lab")
    config = tmp_path / "lab" / "labref.toml"
    config.write_text(config.read_text().replace(str(filled.watched[0]), str(export)))
    return Lab.open(tmp_path / "lab")


@pytest.fixture(autouse=True)
def _no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_lab, "registered", lambda lab: Registered("systemd", "active, enabled", None))


def set_in(lab: Lab, section: str, line: str) -> Lab:
    text = lab.config_file.read_text()
    head = f"[{section}]\n"
    text = text.replace(head, head + line + "\n") if head in text else f"{text}\n{head}{line}\n"
    lab.config_file.write_text(text)
    return Lab.open(lab.folder)


def test_a_lab_in_order_has_no_problem_and_every_remedy_is_said(lab: Lab) -> None:
    found = examined(lab, 3)  # no agent runs
    assert {name: one["state"] for name, one in found.items() if one["state"] in ("warning", "problem")} == {
        "service": "warning"
    }
    assert set(found) >= {"python", "packages", "runtime", "gpu", "config", "permissions", "export", "store", "bundle"}
    assert set(found) >= {"device", "networks", "disk", "backup", "clock", "port", "service"}
    text = labref("doctor", "--lab", lab.folder, code=3)
    assert "0 problems, 1 warning." in text and "→ Start one: `labref agent --lab" in text
    assert "cells a second" in text


def test_with_its_agent_nothing_is_wrong(lab: Lab) -> None:
    with running_agent(lab):
        found = examined(lab, 0)
        assert "an agent runs" in found["service"]["says"]


def test_folders_that_are_gone_closed_or_on_a_share(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_lab, "is_network_folder", lambda folder: True)
    assert "is polled" in examined(lab, 3)["export"]["says"]
    told = examined(set_in(lab, "watch", "polling = false"), 3)["export"]
    assert told["state"] == "warning" and 'polling = "auto"' in told["remedy"]
    monkeypatch.setattr(of_lab.os, "access", lambda path, mode: False)
    assert "cannot be read by this user" in examined(lab, 1)["export"]["says"]
    shutil.rmtree(lab.watched[0])
    told = examined(lab, 1)["export"]
    assert "is not there" in told["says"] and "[watch] folders" in told["remedy"]


def test_a_configuration_that_is_wrong_ends_the_checks_of_the_lab(lab: Lab) -> None:
    lab.config_file.write_text(lab.config_file.read_text() + "\n[agents]\nport = 1\n")
    found = examined(lab.folder, 1)
    assert "unknown section 'agents'" in found["config"]["says"] and "store" not in found
    assert "python" in found
    assert examined(lab.folder / "nowhere", 1)["config"]["state"] == "problem"


def test_a_damaged_store_and_a_damaged_bundle_are_told_apart(lab: Lab) -> None:
    bundle = next(lab.bundles.iterdir())
    (bundle / "encoder.onnx").write_bytes(b"")
    found = examined(lab, 1)
    assert found["bundle"]["state"] == "problem" and "encoder.onnx" in found["bundle"]["says"]
    assert "networks" not in found and found["store"]["state"] == "fine"
    lab.store_file.write_bytes(b"not a database")
    assert examined(lab, 1)["store"]["state"] == "problem"


def test_networks_that_compute_wrongly(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = inference.Embedder.embed

    def wrongly(self: inference.Embedder, crops: Any) -> inference.Embeddings:
        made = embed(self, crops)
        return inference.Embeddings(made.probabilities, made.latents + 1)

    monkeypatch.setattr(inference.Embedder, "embed", wrongly)
    # opened nowhere: they are asked for two golden cells each time
    assert "golden outputs" in examined(lab, 1)["bundle"]["says"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="rights are tried as another user")
def test_rights_that_keep_labref_out_or_let_others_in(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.folder.chmod(0o755)
    (told,) = of_lab.permissions(lab)
    assert told.state == "warning" and "can be read by other users" in told.says
    lab.folder.chmod(0o700)
    monkeypatch.setattr(of_lab.os, "geteuid", lambda: 12345)
    assert [one.state for one in of_lab.permissions(lab)] == ["warning", "fine"]

    def read_only(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(of_lab.tempfile, "mkstemp", read_only)
    (told,) = of_lab.permissions(lab)
    assert told.state == "problem" and "nothing can be written" in told.says


@pytest.mark.skipif(os.name == "nt", reason="rights of POSIX")
def test_a_lab_of_another_user_is_a_finding_that_names_its_owner(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    is_file = Path.is_file

    def closed(self: Path) -> bool:  # what the system says of a folder of another user's; the tests may run as root
        if self == lab.config_file:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", closed)
    owner = lab.folder.owner()
    told = examined(lab, 1)["config"]
    assert f"{lab.folder} is closed to this user" in told["says"] and f"`sudo -u {owner} labref …`" in told["says"]
    done = CliRunner().invoke(app, ["status", "--lab", str(lab.folder)])
    assert done.exit_code == 1 and f"sudo -u {owner}" in done.stderr


def test_a_shared_store_that_is_not_told_of_cells(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:  # no server listens there
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        lab = set_in(lab, "shared", f"url = 'postgresql://lund@127.0.0.1:{port}/labref'")
        told = examined(lab, 3)["shared"]
        assert told["state"] == "fine" and "is still to be told of" in told["says"]
        with running_agent(lab):
            wait_until(lambda: desk.status(lab)["shared"]["problem"] is not None, 60)
            told = examined(lab, 3)["shared"]
            assert told["state"] == "warning" and "cannot be told of cells now" in told["says"]
            assert desk.status(lab)["attention"] == []  # within the hour
    monkeypatch.setattr("labref.tasks.publishing._BEHIND_SECONDS", 0.0)
    told = examined(lab, 3)["shared"]
    assert told["state"] == "warning" and "was not told of" in told["says"] and "publish" in told["remedy"]
    done = CliRunner().invoke(app, ["status", "--lab", str(lab.folder)])
    assert done.exit_code == 1 and f"the shared store 127.0.0.1:{port}/labref was not told of" in done.stderr


def test_a_port_that_another_program_has(lab: Lab) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        lab = set_in(lab, "agent", f"port = {taken}")
        told = examined(lab, 1)["port"]
        assert f"127.0.0.1:{taken} cannot be used" in told["says"] and "[agent] port" in told["remedy"]
    assert examined(lab, 3)["port"]["state"] == "fine"


def test_a_port_of_the_metrics_that_another_program_has(lab: Lab) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        lab = set_in(lab, "metrics", f"address = '127.0.0.1'\nport = {taken}")
        told = [one for one in of_lab.port(lab, False) if one.state == "problem"]
    assert len(told) == 1 and f"127.0.0.1:{taken} cannot be used" in told[0].says
    assert "[metrics] address or port" in (told[0].remedy or "") and "0 takes any" not in (told[0].remedy or "")


def test_a_clock_that_is_wrong(lab: Lab) -> None:
    (told,) = of_lab.clock(lab, datetime.now(UTC) + timedelta(days=3))
    assert told.state == "problem" and "newest cell" in told.says
    (told,) = of_lab.clock(lab, datetime.now(UTC) - timedelta(days=3))
    assert told.state == "fine"


def test_a_file_server_with_another_clock(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = time.time() + 3600
    monkeypatch.setattr(
        of_lab, "time", SimpleNamespace(time=lambda: ahead, tzname=time.tzname, localtime=time.localtime)
    )
    (told,) = of_lab.clock(lab, None)
    assert told.state == "warning" and "off this computer's clock" in told.says


def test_packages_that_are_missing_do_not_fit_or_are_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.state for one in computer.packages()] == ["fine"]
    versions = {"duckdb": "1.0", "onnxruntime": "1.30", "onnxruntime-gpu": "1.30", "minisom": None}
    installed = computer._installed
    monkeypatch.setattr(computer, "_installed", lambda name: versions[name] if name in versions else installed(name))
    wrong, twice = computer.packages()
    assert "duckdb 1.0 does not fit" in wrong.says and "minisom is missing" in wrong.says
    assert "both installed" in twice.says
    versions |= {"duckdb": "2.0", "minisom": "2.3", "onnxruntime-gpu": None}  # the small runtime serves as well
    assert [one.state for one in computer.packages()] == ["fine"]
    monkeypatch.setattr(computer.platform, "python_version", lambda: "3.10.4")
    (told,) = computer.python()
    assert told.state == "problem" and "3.11, 3.12 or 3.13" in str(told.remedy)


def test_a_gpu_without_its_libraries_is_named_with_what_is_missing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "cuda_problem", lambda: None)  # driver and card are there; the libraries are not
    monkeypatch.setattr(inference, "missing_library", lambda: "libcudnn.so.9")
    (state,) = desk.run(lab, "status")
    assert "libcudnn.so.9 is missing" in state["fallback"] and "labref[cuda]" in state["fallback"]
    assert any("GPU that is not used" in line for line in state["attention"])
    told = examined(lab, 3)["device"]
    assert told["state"] == "warning" and "libcudnn.so.9" in told["says"] and 'device = "cpu"' in told["remedy"]
    (state,) = desk.run(set_in(lab, "inference", 'device = "cpu"'), "status")
    assert state["fallback"] is None and state["attention"] == []


def test_the_disk_that_fills_is_told_before_it_is_full(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=2_000_000_000, total=100_000_000_000)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: usage)
    (state,) = desk.run(lab, "status")
    assert state["attention"] == [] and state["disk"]["days_left"] is None  # younger than two days
    assert state["disk"]["bytes_a_cell"] > 1000
    with lab.open_store() as store, store._transaction() as connection:
        connection.execute("UPDATE cell SET added_at = added_at - INTERVAL 3 DAY")
    (state,) = desk.run(lab, "status")
    a_day = 4 / 3
    assert state["disk"]["cells_a_day"] == pytest.approx(a_day, abs=0.1)
    left = (usage.free - room.LEAST_FREE) / (a_day * state["disk"]["bytes_a_cell"])
    assert state["disk"]["days_left"] == pytest.approx(left, rel=0.02)
    usage.free = room.LEAST_FREE + state["disk"]["bytes_a_cell"] * 9
    told = examined(lab, 3)["disk"]
    assert told["state"] == "warning" and "will be full in 7 days" in told["says"] and "[retention]" in told["remedy"]
    assert "will be full" in CliRunner().invoke(app, ["status", "--lab", str(lab.folder)]).stderr
    assert desk.status(set_in(lab, "health", "disk_days = 5"))["attention"] == []
    usage.free = 1000
    assert "is full: 0 MB are free" in examined(lab, 1)["disk"]["says"]
    with lab.open_store() as store:
        assert room.wanting(lab, store) == "disk"


def test_a_backup_is_remembered_and_asked_for_when_it_is_old(lab: Lab, tmp_path: Path) -> None:
    long_ago = time.time() - 31 * 86_400
    os.utime(lab.folder / "token", (long_ago, long_ago))  # as old as the lab
    assert "never backed up" in examined(lab, 3)["backup"]["says"]
    labref("store", "backup", tmp_path / "backup", "--lab", lab.folder)
    made = last_backup(lab)
    assert made is not None and (made.cells, made.missing) == (4, 0) and Path(made.target) == tmp_path / "backup"
    assert desk.status(lab)["backup"]["at"] == made.at
    assert examined(lab, 3)["backup"]["state"] == "fine"
    file = lab.folder / "logs" / "backup.json"
    old = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"at": old}))
    (line,) = desk.status(lab)["attention"]
    assert line.startswith("the last backup is 40 days old; make one with")
    ahead = (datetime.now(UTC) + timedelta(days=400)).isoformat()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"at": ahead}))
    (line,) = desk.status(lab)["attention"]
    assert f"the last backup is dated {ahead[:10]}, which is still to come" in line
    assert desk.status(set_in(lab, "health", "backup_days = 0"))["attention"] == []
    for spoilt in (b"", b"[]", b'{"at": 3}', b'{"at": "yesterday", "target": "x", "cells": 1, "missing": 0}'):
        file.write_bytes(spoilt)
        assert last_backup(lab) is None


def test_the_agents_health_says_what_has_to_be_seen_to(lab: Lab) -> None:
    long_ago = time.time() - 31 * 86_400
    os.utime(lab.folder / "token", (long_ago, long_ago))
    with running_agent(lab):
        record = read_agent_record(lab)
        assert record is not None

        def health() -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{record.port}/health") as answer:
                return json.load(answer)["status"]

        wait_until(lambda: health() != "ok")
        assert health() == "backup"


# config


def test_every_setting_is_shown_with_where_it_comes_from(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABREF_AGENT__PORT", "8123")
    monkeypatch.setenv("LABREF_MAP", '{"max_side": 100}')
    rows = [json.loads(line) for line in labref("config", "show", "--json", "--lab", lab.folder).splitlines()]
    found = {(row["section"], row["key"]): row for row in rows}
    assert len(found) == sum(len(field.annotation.model_fields) for field in Config.model_fields.values())  # type: ignore[union-attr]
    assert all(row["text"] for row in rows)
    assert found["agent", "port"] | {"text": ""} == {
        "section": "agent",
        "key": "port",
        "value": 8123,
        "default": 0,
        "source": "LABREF_AGENT__PORT",
        "text": "",
    }
    assert (found["map", "max_side"]["value"], found["map", "max_side"]["source"]) == (100, "LABREF_MAP")
    assert found["map", "enabled"]["source"] != "LABREF_MAP"
    assert found["watch", "folders"]["source"] == str(lab.config_file)
    assert found["retention", "days"]["source"] == "default"
    shown = labref("config", "show", "--changed", "--lab", lab.folder)
    assert "port = 8123    (LABREF_AGENT__PORT)" in shown and "trash_days" not in shown and "[watch]" in shown
    assert {setting.source for setting in every_setting(lab.config_file)} >= {"default", "LABREF_MAP"}


def test_a_configuration_is_checked(lab: Lab) -> None:
    assert json.loads(labref("config", "check", "--json", "--lab", lab.folder))["ok"] is True
    assert "can be used" in labref("config", "check", "--lab", lab.folder)
    lab.config_file.write_text(lab.config_file.read_text() + "\n[health]\nbackup_days = -1\n")
    done = CliRunner().invoke(app, ["config", "check", "--lab", str(lab.folder)])
    assert done.exit_code == 1 and "health.backup_days" in done.stderr and "correct it" in done.stderr
    done = CliRunner().invoke(app, ["config", "show", "--lab", str(lab.folder)])
    assert done.exit_code == 1


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("LABREF_LAB", raising=False)
    yield
