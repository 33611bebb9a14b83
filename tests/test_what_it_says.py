"""What labref says is so: exit codes, times, help, figures, and what to do about a mistake."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from labref.agent.service import Summary
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.cli._fields import described
from labref.config import load_config, starting_config, watch_instead
from labref.cpus import usable_cpus
from labref.errors import ConfigError
from labref.lab import Lab
from labref.operations import every_operation
from labref.operations.lab import AgentSummary, LabMade, LabRestored
from labref.operations.ledger import LedgerCheck
from labref.operations.status import Status
from labref.tasks.backup import write
from labref.times import local, utc
from labref.web import desk
from labref.web.client import AgentClient
from labref.web.desk import status
from tests.labs import make_lab, once, running_agent, wait_until
from tests.test_agent import request


@pytest.fixture(autouse=True)
def _no_lab_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABREF_LAB", raising=False)


def labref(*arguments: str | Path, code: int = 0, **environment: str) -> tuple[str, str]:
    """Runs the command in this process; returns stdout and stderr."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="labref", env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    """A lab with 8 cells and a file that is no image; tests leave it as it is."""
    root = tmp_path_factory.mktemp("says")
    for folder in sorted(path for path in drawn_cells.iterdir() if path.is_dir()):
        (root / "export" / folder.name).mkdir(parents=True)
        shutil.copy(min(folder.iterdir()), root / "export" / folder.name)
    (root / "export" / "notes.jpg").write_text("no image")
    (root / "export" / "readme.txt").write_text("no image by its name")
    made = make_lab(root / "lab", root / "export", starter)
    assert once(made).found == 9
    return made


@pytest.fixture
def empty(tmp_path: Path, starter: Bundle) -> Lab:
    """A lab without cells that watches two folders, the second of which has gone."""
    for name in ("here", "gone"):
        (tmp_path / name).mkdir()
    made = Lab.create(tmp_path / "lab", [tmp_path / "here", tmp_path / "gone"], starter.folder)
    (tmp_path / "gone").rmdir()
    return made


# --- a watched folder that is not there ---


def test_status_exits_1_while_a_watched_folder_is_missing(empty: Lab) -> None:
    stdout, stderr = labref("status", "--lab", empty.folder, code=1)
    gone = empty.watched[1]
    assert f"{gone} (missing)" in stdout
    assert stderr.startswith(f"error: the lab needs attention: the watched folder {gone} is not there")
    assert "mount it" in stderr and str(empty.config_file) in stderr
    assert len(stderr.splitlines()) == 1
    stdout, _ = labref("status", "--json", "--lab", empty.folder, code=1)
    (found,) = json.loads(stdout)["attention"]
    assert str(gone) in found
    gone.mkdir()
    stdout, stderr = labref("status", "--json", "--lab", empty.folder)
    assert (json.loads(stdout)["attention"], stderr) == ([], "")


def test_a_file_where_a_watched_folder_should_be_is_a_missing_folder(empty: Lab) -> None:
    empty.watched[1].write_text("a file")
    assert "is not there" in labref("status", "--lab", empty.folder, code=1)[1]


def test_the_agent_says_which_folders_it_watches_and_which_are_missing(empty: Lab) -> None:
    here, gone = empty.watched
    command = [sys.executable, "-m", "labref", "agent", "--lab", str(empty.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        told = [process.stdout.readline().rstrip("\n")]
        while not told[-1].startswith("watching"):
            assert told[-1], told
            told.append(process.stdout.readline().rstrip("\n"))
        assert told[-1] == f"watching {here}; Ctrl-C ends it"
        (warning,) = [line for line in told if "WARNING" in line]
        assert warning.startswith(f"WARNING: {gone} is not there; mount it")

        wait_until(lambda: json.loads(request(empty, "GET", "/health")[1])["status"] == "folder")
        assert len(status(empty)["attention"]) == 1
        assert labref("status", "--lab", empty.folder, code=1)[1].startswith("error: the lab needs attention")
        gone.mkdir()
        wait_until(lambda: json.loads(request(empty, "GET", "/health")[1])["status"] == "ok")
        assert labref("status", "--lab", empty.folder)[1] == ""
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_agent_s_ready_line_names_missing_folders(empty: Lab) -> None:
    with running_agent(empty):
        pass  # which reads the line itself
    for folder in empty.watched:
        folder.mkdir(exist_ok=True)
        folder.rmdir()
    command = [sys.executable, "-m", "labref", "agent", "--json", "--lab", str(empty.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["missing"] == [str(folder) for folder in empty.watched]
    finally:
        process.terminate()
        process.communicate(timeout=60)


# --- what the ledger has nothing of ---


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuchfile.jpg", "no such file is there"),
        ("", "it is a folder"),
        ("readme.txt", "does not end like an image's"),
    ],
)
def test_a_file_without_an_outcome_is_said_with_the_reason(lab: Lab, name: str, said: str) -> None:
    for json_too in ([], ["--json"]):
        stdout, stderr = labref("ledger", "--path", lab.watched[0] / name, *json_too, "--lab", lab.folder, code=1)
        assert stdout == ""
        assert stderr.startswith(f"error: no outcome is recorded of {lab.watched[0] / name}")
        assert said in stderr


def test_a_file_outside_the_watched_folders_is_said_to_be(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "cell.jpg").write_bytes(b"x")
    stderr = labref("ledger", "--path", tmp_path / "cell.jpg", "--lab", lab.folder, code=1)[1]
    assert "lies in no watched folder" in stderr and str(lab.watched[0]) in stderr


def test_a_file_that_waits_for_the_agent_is_said_to(empty: Lab) -> None:
    (empty.watched[0] / "cell.jpg").write_bytes(b"x")
    assert (
        "labref agent --once"
        in labref("ledger", "--path", empty.watched[0] / "cell.jpg", "--lab", empty.folder, code=1)[1]
    )


def test_a_file_with_another_outcome_is_said_to_have_it(lab: Lab) -> None:
    notes = lab.watched[0] / "notes.jpg"
    stderr = labref("ledger", "--path", notes, "--outcome", "stored", "--lab", lab.folder, code=1)[1]
    assert f"{notes} is rejected, not stored" in stderr
    assert str(notes) in labref("ledger", "--path", notes, "--outcome", "rejected", "--lab", lab.folder)[0]


def test_a_list_that_is_empty_says_so(lab: Lab, empty: Lab) -> None:
    assert labref("ledger", "--lab", empty.folder)[0] == "No file has an outcome yet.\n"
    assert labref("ledger", "--outcome", "duplicate", "--lab", lab.folder)[0] == "No file is duplicate.\n"
    assert labref("ledger", "--outcome", "duplicate", "--json", "--lab", lab.folder)[0] == ""


def test_a_cell_that_is_not_there_has_no_history_of_decisions(lab: Lab) -> None:
    stdout, stderr = labref("duplicates", "history", "0123456789abcdef", "--lab", lab.folder, code=1)
    assert (stdout, stderr.startswith("error: ")) == ("", True)
    cell = next(row["cell_id"] for row in desk.ledger_rows(lab) if row["cell_id"])
    assert "nobody has decided" in labref("duplicates", "history", cell, "--lab", lab.folder)[0]


# --- times ---


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This computer in Japan, nine hours before UTC."""
    if not hasattr(time, "tzset"):
        pytest.skip("Windows takes its time zone from the system alone")
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo" if Path("/usr/share/zoneinfo/Asia/Tokyo").exists() else "JST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("tokyo")
def test_people_read_their_own_time_with_its_offset() -> None:
    assert local("2026-11-26T20:00:00Z") == "2026-11-27 05:00:00+09:00"
    assert local("2026-11-26T20:00:00.123456+00:00") == "2026-11-27 05:00:00+09:00", "as an earlier labref wrote it"
    assert local("2026-11-26T20:00:00Z", day=True) == "2026-11-27"
    assert local("9999-12-31T23:00:00Z") == "9999-12-31 23:00:00+00:00"
    assert local("yesterday") == "yesterday"


def test_programs_read_utc_with_a_z() -> None:
    assert utc(datetime(2026, 11, 26, 8, 0, 0, 5, tzinfo=UTC)) == "2026-11-26T08:00:00.000005Z"
    assert utc(datetime.fromisoformat("2026-11-26T08:00:00.5+02:00"), timespec="seconds") == "2026-11-26T06:00:00Z"
    with pytest.raises(ValueError, match="no time zone"):
        utc(datetime(2026, 11, 26))


ANY_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(\S*)")


@pytest.mark.usefixtures("tokyo")
def test_every_time_that_is_printed_says_of_which_zone_it_is(lab: Lab, tmp_path: Path, drawn_cells: Path) -> None:
    own = Lab.open(Path(shutil.copytree(lab.folder, tmp_path / "own")))
    cell = next(row["cell_id"] for row in desk.ledger_rows(own) if row["cell_id"])
    labref("label", "set", cell, "monocyte", "--lab", own.folder)
    labref("store", "backup", tmp_path / "backup", "--lab", own.folder)
    asked = [
        ["ledger"],
        ["label", "history", cell],
        ["bundle", "list"],
        ["query", str(next(drawn_cells.rglob("*.jpg")))],
        ["store", "restore", str(tmp_path / "backup"), str(tmp_path / "back")],
    ]
    for words in asked:
        where = [] if words[1:2] == ["restore"] else ["--lab", str(own.folder)]
        text, _ = labref(*words, *where)
        shutil.rmtree(tmp_path / "back", ignore_errors=True)
        as_json, _ = labref(*words, *where, "--json")
        assert words[0] == "query" or ANY_TIME.findall(text), words
        assert ANY_TIME.findall(as_json), words
        for mark in ANY_TIME.findall(text):
            assert mark.startswith("+09:00"), (words, text)
        for mark in ANY_TIME.findall(as_json):
            assert mark.startswith('Z"'), (words, as_json)


@pytest.mark.usefixtures("tokyo")
def test_the_times_of_the_agent_say_of_which_zone_they_are(lab: Lab, tmp_path: Path) -> None:
    own = Lab.open(Path(shutil.copytree(lab.folder, tmp_path / "own")))
    with running_agent(own, passed=["TZ"]):
        wait_until(lambda: status(own)["agent"]["last_scan_at"] is not None)
        found = json.dumps(status(own))
        assert len(ANY_TIME.findall(found)) >= 2 and {mark[:1] for mark in ANY_TIME.findall(found)} == {"Z"}
        text, _ = labref("status", "--lab", own.folder)
        assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+09:00", text)
        assert {mark[:6] for mark in ANY_TIME.findall(text)} == {"+09:00"}
        client = AgentClient.find(own)
        assert client is not None and client.record.started_at.endswith("Z")
        assert "+09:00" in labref("agent", "--once", "--lab", own.folder, code=1)[1]


# --- help ---


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


LABREF: Any = typer.main.get_command(app)
"""Made once: it takes 0.06 s of a core."""


def find_command(path: tuple[str, ...]) -> Any:
    command = LABREF
    for name in path:
        command = command.commands[name]
    return command


EVERY_COMMAND = sorted(commands(LABREF))


@pytest.mark.parametrize("path", EVERY_COMMAND, ids=" ".join)
def test_help_fits_the_terminal_and_shows_no_marks(path: tuple[str, ...]) -> None:
    texts = {}
    for columns in (80, 120):
        done = CliRunner().invoke(app, [*path, "--help"], prog_name="labref", terminal_width=columns - 2)
        texts[columns] = done.stdout
        assert done.exit_code == 0
        assert "\\" not in done.stdout.replace("\\\n", "") and "\b" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= columns
    for text in texts.values():
        description = text.partition("\n\n")[2].partition("\nOptions:")[0].partition("\nArguments:")[0]
        for paragraph in description.split("\n\n"):
            examples = [line for line in paragraph.splitlines() if line.startswith("    labref ")]
            assert not re.search(r"\S {3,}labref ", paragraph), "examples run together"
            if examples:
                assert not re.search(r"^  [^ ].*\. ", paragraph, re.MULTILINE), "an example stands in a line of its own"


# --- labref.toml ---


def load(folder: Path, text: str) -> Any:
    file = folder / "labref.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (r'folders = ["D:\transfer"]', r"'D:\transfer'"),
        (r'folders = ["D:\new\run"]', r"'D:\new\run'"),
        (r'folders = ["D:\backup"]', r"'D:\backup'"),
        (r'folders = ["D:\files"]', r"'D:\files'"),
        (r'folders = ["D:\\a\transfer"]', r"'D:\a\transfer'"),
        (r'folders = ["\\server\transfer"]', r"'\\server\transfer'"),
        (r'folders = ["/ok", "export\today"]', r"'export\today'"),
        ('folders = ["/a"]\nanalysers = { "D:\\transfer" = "DC-1" }', r"'D:\transfer'"),
        (r'analyser = "DC\1"'.replace("1", "t1"), r"'DC\t1'"),
        (r'layout = [{ pattern = "(?P<slide>.*)\b.*" }]', r"'(?P<slide>.*)\b.*'"),
    ],
)
def test_a_backslash_that_double_quotes_ate_is_recognised(tmp_path: Path, line: str, meant: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, f"[watch]\n{line}")
    message = str(error.value)
    assert str(tmp_path / "labref.toml") in message and "watch" in message
    assert f"in single quotes: {meant}" in message
    assert message.isprintable(), "no raw control character on the terminal"


@pytest.mark.parametrize(
    "line",
    [
        r'folders = ["D:\Export"]',
        r'folders = ["C:\Users"]',
        r'folders = ["D:\u12"]',
        r'folders = ["D:\"]',
        r'folders = ["D:\Export\"]',
        r'folders = ["D:\x41"]',
    ],
)
def test_toml_s_own_complaint_of_a_backslash_comes_with_the_remedy(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="single quotes"):
        load(tmp_path, f"[watch]\n{line}\n")


def test_another_mistake_is_not_blamed_on_backslashes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "[watch]\nfolders = ['D:\\Export'\n[agent]\n")
    assert "single quotes" not in str(error.value)


def test_a_variable_with_such_a_backslash_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABREF_WATCH__FOLDERS", r'["D:\transfer"]')
    with pytest.raises(ConfigError, match="double each backslash"):
        load(tmp_path, "")
    monkeypatch.setenv("LABREF_WATCH__FOLDERS", r'["D:\Export"]')
    with pytest.raises(ConfigError, match="backslash doubled"):
        load(tmp_path, "")
    monkeypatch.setenv("LABREF_WATCH__FOLDERS", r'["D:\\transfer"]')
    assert load(tmp_path, "").watch.folders == (Path(r"D:\transfer"),)


@pytest.mark.skipif(sys.platform == "win32", reason="no name on Windows holds a tab")
def test_a_folder_that_truly_has_a_tab_in_its_name_can_be_watched(tmp_path: Path) -> None:
    (tmp_path / "tab\there").mkdir()
    config = load(tmp_path, starting_config([tmp_path / "tab\there"]))
    assert config.watch.folders == (tmp_path / "tab\there",)


# --- a full disk of the backup's ---


if sys.platform == "linux":  # elsewhere a test cannot mount a small disk

    @pytest.fixture
    def small_disk(tmp_path: Path) -> Iterator[Path]:
        """A disk of 16 kB, where this system lets a test mount one."""
        folder = tmp_path / "small"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=16k", "labref-test", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root of a Linux that allows it can mount a small disk")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    @pytest.mark.parametrize(
        ("command", "target"),
        [("backup", "backup"), ("backup", "backup.zip"), ("export", "cells.parquet")],
    )
    def test_a_full_disk_elsewhere_is_not_blamed_on_the_lab(
        lab: Lab, small_disk: Path, command: str, target: str
    ) -> None:
        _, stderr = labref("store", command, small_disk / target, "--lab", lab.folder, code=1)
        assert str(small_disk) in stderr
        assert "No space left" in stderr and "Look at the free space" in stderr
        assert "restore" not in stderr
        assert "damaged" not in stderr
        labref("store", "check", "--lab", lab.folder)


# --- CPUs ---


def groups(folder: Path, line: str, **files: str) -> dict[str, Path]:
    """A computer's control groups: the line of /proc/self/cgroup, and files below /sys/fs/cgroup."""
    (folder / "own").write_text(line + "\n")
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return {"own": folder / "own", "cgroups": folder / "groups"}


def allowed(monkeypatch: pytest.MonkeyPatch, cpus: int) -> None:
    import os

    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "process_cpu_count", lambda: cpus, raising=False)


def test_cpus_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed(monkeypatch, 6)
    assert usable_cpus(own=tmp_path / "none") == 6
    assert usable_cpus(**groups(tmp_path, "0::/")) == 6
    assert usable_cpus(**groups(tmp_path, "0::/", cpu_max="max 100000")) == 6
    assert usable_cpus(**groups(tmp_path, "0::/", cpu_max="250000 100000")) == 3
    assert usable_cpus(**groups(tmp_path, "0::/a/b", a__cpu_max="100000 100000")) == 1
    assert usable_cpus(**groups(tmp_path, "0::/a/b", a__b__cpu_max="nonsense", a__cpu_max="200000 100000")) == 2


def test_a_process_is_kept_to_the_last_of_its_cpus_with_all_that_it_starts() -> None:
    told = subprocess.run(
        [sys.executable, "-c", _KEPT], capture_output=True, text=True, check=True, encoding="utf-8", timeout=60
    )
    before, after, child, number = json.loads(told.stdout)
    assert number == 1
    if before:  # macOS binds no process
        assert after == child == before[-1:]


_KEPT = """
import json, subprocess, sys, psutil
from labref.cpus import keep_to, usable_cpus
own = lambda: psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else []
before = own()
keep_to(999)
assert own() == before
keep_to(1)
code = "import psutil; print(psutil.Process().cpu_affinity() if hasattr(psutil.Process, 'cpu_affinity') else [])"
child = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
print(json.dumps([before, own(), child, usable_cpus()]))
"""


def test_the_older_kind_of_control_groups_is_known_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    allowed(monkeypatch, 6)
    quota = {"cpu__x__cpu_cfs_quota_us": "150000", "cpu__x__cpu_cfs_period_us": "100000"}
    assert usable_cpus(**groups(tmp_path, "4:cpu:/x", **quota)) == 2
    quota["cpu__x__cpu_cfs_quota_us"] = "-1"
    assert usable_cpus(**groups(tmp_path, "4:cpu:/x", **quota)) == 6


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset binds a process to CPUs")
def test_a_bound_process_takes_only_its_cpus(lab: Lab) -> None:
    command = ["taskset", "-c", "0", sys.executable, "-m", "labref", "status", "--json", "--lab", str(lab.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 thread (" in json.loads(done.stdout)["provider_line"]


# --- what the agent counts ---


def test_a_running_agent_counts_each_file_once(lab: Lab, tmp_path: Path, drawn_cells: Path) -> None:
    shutil.copytree(lab.watched[0], tmp_path / "export")
    export = tmp_path / "export"
    watched = {"polling": "true", "poll_seconds": 0.2}
    own = Lab.create(tmp_path / "lab", [export])
    assert once(own).found == 9
    fresh = sorted(drawn_cells.rglob("*.jpg"))
    fresh = [path for path in fresh if not (export / path.parent.name / path.name).exists()][:4]
    (export / "link.jpg").symlink_to(tmp_path / "nowhere")

    def scans() -> int:
        return own.log_file.read_bytes().count(b"scan ended")

    with running_agent(own, **watched) as process:
        for number, path in enumerate(fresh):
            shutil.copy(path, export / f"{number}.jpg")
        wait_until(lambda: len(list(desk.ledger_rows(own))) == 14)
        (export / "notes.jpg").write_text("no image still, and longer")  # one of before
        shutil.copy(fresh[0], export / "1.jpg")  # one that this agent took in
        wait_until(lambda: [r["outcome"] for r in desk.ledger_rows(own, path=str(export / "1.jpg"))] == ["duplicate"])
        (export / "link.jpg").unlink()
        before = scans()
        wait_until(lambda: scans() > before + 3)
        wait_until(lambda: status(own)["agent"]["in_flight"] + status(own)["agent"]["waiting"] == 0)
        process.terminate()
        stdout, _ = process.communicate(timeout=60)
    summary = json.loads(stdout.splitlines()[-1])
    outcomes = {name: summary[name] for name in ("stored", "duplicate", "possible_duplicate", "rejected", "unchanged")}
    assert outcomes == {"stored": 3, "duplicate": 1, "possible_duplicate": 0, "rejected": 2, "unchanged": 8}
    assert summary["found"] == sum(outcomes.values()) == 14
    assert once(own).found == 13


# --- a restored lab that watches other folders ---


def analysers_of(config: Any) -> dict[str, str]:
    return {str(folder): analyser for folder, analyser in config.watch.analysers.items()}


@pytest.mark.parametrize(
    ("text", "folders", "analysers"),
    [
        (
            "[watch]\nfolders = [\n  '/a',  # kept: first\n  # kept: above\n  '/b',\n]\n# kept: between\n[watch.analysers]\n"
            "# kept: of analysers\n'/a' = 'DC-1'  # kept: beside\n'/b' = 'DM96'\n[agent]\nport = 3 # kept: port\n",
            [r"D:\new", "/b"],
            {r"D:\new": "DC-1", "/b": "DM96"},
        ),
        ("[watch]\nfolders = ['/a', '/b']\nanalysers = { '/a' = 'DC-1', '/b' = 'DM96' }\n", ["/b"], {"/b": "DM96"}),
        ("[watch]\nfolders=['/a','/b']\n[watch.analysers]\n'/a'='A'\n'/b'='B'\n", ["/b", "/a"], {"/a": "A", "/b": "B"}),
        ("[watch]\nfolders=['/a','/b']\n[watch.analysers]\n'/a'='A'\n'/b'='B' # kept: B\n", ["/b", "/c"], {"/b": "B"}),
        ("[watch]\nfolders = ['/a']\n[watch.analysers]\n'/a' = 'DC-1'\n", ["/x", "/y"], {}),
        ("watch.folders = ['/a']\nwatch.analysers.'/a' = 'DC-1' # kept: dotted\n", [r"D:\it's"], {r"D:\it's": "DC-1"}),
        ("[watch]\nfolders=['/a']\n[agent]\nport=1\n[watch.analysers]\n'/a'='Q'\n", ["/n"], {"/n": "Q"}),
        ('[watch]\nfolders = ["""/a]""", "b]"] # kept: ]\n', ["/b", "/c"], {}),
        ("[watch]\n# folders = ['/kept: x']\npolling = true\n", ["/b"], {}),
        ("[[watch.layout]]\npattern = 'kept: x'\n", ["/b", "/c"], {}),
        ("# kept: alone\r\n[agent]\r\nport = 3\r\n", ["/Å b"], {}),
        ("", ["/b"], {}),
    ],
)
def test_other_folders_are_watched_and_all_else_in_the_file_stays(
    tmp_path: Path, text: str, folders: list[str], analysers: dict[str, str]
) -> None:
    file = tmp_path / "labref.toml"
    file.write_bytes(text.encode())
    before = load_config(file)
    watch_instead(file, [Path(folder) for folder in folders])
    config = load_config(file)
    assert config.watch.folders == tuple(Path(folder) for folder in folders)
    assert analysers_of(config) == analysers
    written = file.read_bytes().decode()
    assert re.findall(r"kept: \S+", written) == re.findall(r"kept: \S+", text)
    assert ("\r\n" in written) == ("\r\n" in text)
    same = {"folders", "analysers"}
    assert config.watch.model_dump(exclude=same) == before.watch.model_dump(exclude=same)
    assert config.agent == before.agent
    for folder, analyser in analysers_of(before).items():
        if folder not in analysers and analyser not in analysers.values():
            assert f"# [watch.analysers] had '{folder}' = '{analyser}'" in written, "it is not lost"


@pytest.mark.parametrize("text", ["[watch", "watch = 3\n", "[watch]\nfolders = 3\n", "[watch]\npolling = 'x'\n"])
def test_a_file_that_is_wrong_is_not_changed(tmp_path: Path, text: str) -> None:
    file = tmp_path / "labref.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="correct it first"):
        watch_instead(file, [Path("/a")])
    assert file.read_text() == text


@pytest.fixture
def backup(lab: Lab, tmp_path: Path) -> Path:
    """A backup of a lab that watches two folders, each with its analyser."""
    own = Lab.open(Path(shutil.copytree(lab.folder, tmp_path / "own")))
    watched = f"[watch]\nfolders = ['{lab.watched[0]}', '/second'] # two\n[watch.analysers]\n"
    own.config_file.write_text(f"{watched}'{lab.watched[0]}' = 'DC-1' # in room 3\n'/second' = 'DM96'\n")
    labref("store", "backup", tmp_path / "backup", "--lab", own.folder)
    return tmp_path / "backup"


def test_a_lab_with_analysers_is_restored_to_watch_other_folders(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    moved = ["--watch", tmp_path / "new", "--watch", "/elsewhere"]
    stdout, _ = labref("store", "restore", backup, tmp_path / "back", *moved)
    assert f"It watches {tmp_path / 'new'} (analyser DC-1)." in stdout
    assert "It watches /elsewhere (analyser DM96), which is not here" in stdout
    back = Lab.open(tmp_path / "back")
    assert back.analysers == {str(tmp_path / "new"): "DC-1", "/elsewhere": "DM96"}
    assert "# two" in back.config_file.read_text() and "# in room 3" in back.config_file.read_text()
    assert status(back)["watch"][0] == {"folder": str(tmp_path / "new"), "how": "unwatched"}


def test_an_analyser_without_a_folder_is_said(backup: Path, tmp_path: Path) -> None:
    stdout, _ = labref("store", "restore", backup, tmp_path / "back", "--watch", "/second")
    assert "It watches /second (analyser DM96)" in stdout
    assert re.search(r"The analyser of .*export, DC-1, has no folder any more", stdout)
    as_json, _ = labref("store", "restore", backup, tmp_path / "more", "--watch", "/second", "--json")
    found = json.loads(as_json)
    assert found["watch"] == [{"folder": "/second", "there": False, "analyser": "DM96"}]
    assert list(found["without_folder"].values()) == ["DC-1"]


def test_a_backup_whose_configuration_is_wrong_is_said_by_its_own_name(lab: Lab, tmp_path: Path) -> None:
    own = Lab.open(Path(shutil.copytree(lab.folder, tmp_path / "own")))
    own.config_file.write_text("[watch")
    with own.open_store() as store:
        for _ in write(own, store, tmp_path / "backup"):
            pass
    stderr = labref("store", "restore", tmp_path / "backup", tmp_path / "back", "--watch", "/x", code=1)[1]
    assert f"the labref.toml of the backup {tmp_path / 'backup'}" in stderr and "nothing was restored" in stderr
    assert ".labref-restore-" not in stderr and not (tmp_path / "back").exists()


# --- the fields of --json, in the help ---


COMMANDS_WITH_JSON = [
    path for path in EVERY_COMMAND if any("--json" in parameter.opts for parameter in find_command(path).params)
]


@pytest.mark.parametrize("path", COMMANDS_WITH_JSON, ids=" ".join)
def test_help_lists_the_fields_of_the_models(path: tuple[str, ...]) -> None:
    written = find_command(path).help
    models = [word.removeprefix("@") for word in written.split() if re.fullmatch(r"@[a-z]+\.[A-Z]\w+", word)]
    assert models, "the help names the models that --json prints"
    text, _ = labref(*path, "--help")
    for model in models:
        stands_for, rows = described(model)
        assert stands_for and all(description for _, description in rows), f"{model}: {rows}"
        for name, _ in rows:
            assert re.search(rf"^ +{re.escape(name.strip())}(?: |$)", text, re.MULTILINE), (model, name)


ASKED_OVER_HTTP = {  # by pages and other systems; no command asks them
    *("cell.show", "classes.list", "duplicates.overlay", "event.give", "event.labels", "event.links", "label.undo"),
    *("live.cells", "live.marks", "map.facets", "map.picture", "map.region", "map.spot", "reading.answer"),
    *("quality.judge", "reading.cell", "reading.next", "reading.undo", "reference.reject", "reference.undo"),
    "report.show",
}


def test_every_model_of_an_answer_is_in_the_help_of_some_command() -> None:
    told = " ".join(find_command(path).help or "" for path in EVERY_COMMAND)
    elsewhere = {  # rows that the commands put together, or that no command prints
        *("Progress", "CheckSummary", "Fault", "Repaired", "CheckEnded", "MapShown", "CellsOnMap"),
        *("BundleCancelled", "BundleSwitched", "ImportBegun", "Measured", "OpticsState", "PicturesJudged"),
    }
    assert {operation.name for operation in every_operation()} >= ASKED_OVER_HTTP
    for operation in every_operation():
        if operation.name in ASKED_OVER_HTTP:
            continue
        for model in operation.answers:
            assert f"@{operation.group}.{model.__name__}" in told or model.__name__ in elsewhere, operation.name


def test_what_the_commands_put_together_is_as_its_model_says(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    made = json.loads(labref("init", tmp_path / "lab", "--watch", tmp_path / "export", "--json")[0])
    LabMade.model_validate(made)
    for flags in ([], ["--quick"]):
        LedgerCheck.model_validate(json.loads(labref("ledger", "--check", *flags, "--json", "--lab", lab.folder)[0]))
    labref("store", "backup", tmp_path / "backup", "--lab", lab.folder)
    restored = json.loads(labref("store", "restore", tmp_path / "backup", tmp_path / "back", "--json")[0])
    LabRestored.model_validate(restored)
    Status.model_validate(json.loads(labref("status", "--json", "--lab", lab.folder)[0]))
    AgentSummary.model_validate(json.loads(labref("agent", "--once", "--json", "--lab", tmp_path / "back")[0]))
    assert set(AgentSummary.model_fields) == {field.name for field in dataclasses.fields(Summary)}
