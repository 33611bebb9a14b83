"""Where something is wrong, people get one line that says what, and never a traceback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from labref import files
from labref.bundles.bundle import Bundle, pack, unpacked
from labref.cli import app
from labref.config import load_config
from labref.errors import BundleError, ConfigError, LabError
from labref.lab import Lab, absolute
from labref.store import Store
from labref.tasks.backup import Backup
from tests.labs import ledger, make_lab, once, running_agent


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> Lab:
    """A lab of two cells, which no test changes."""
    folder = tmp_path_factory.mktemp("no_tracebacks")
    (folder / "export").mkdir()
    for number, path in enumerate(sorted(drawn_cells.rglob("*.jpg"))[:2]):
        shutil.copy(path, folder / "export" / f"{number}.jpg")
    made = make_lab(folder / "lab", folder / "export", starter)
    once(made)
    return made


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Path:
    """The starter bundle as one file."""
    out = tmp_path_factory.mktemp("packed") / "good.labref"
    pack(starter.folder, out)
    return out


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, lab: Lab) -> Path:
    """A backup of the lab as one file."""
    out = tmp_path_factory.mktemp("backups") / "good.zip"
    assert command("store", "backup", out, "--lab", lab.folder)[0] == 0
    return out


def command(*words: str | Path) -> tuple[int, str]:
    """Exit code of a command and all that it says; any exception but its own ending is raised."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def refused(*words: str | Path, said: Sequence[str] = ()) -> str:
    """What a command says that has to fail with one line."""
    code, output = command(*words)
    assert code in (1, 2), output
    assert "error" in output.lower()
    assert "Traceback" not in output
    for part in said:
        assert part in output
    return output


# archives


def methods(path: Path, method: int, out: Path) -> None:
    """A copy of a zip file whose members all say that they are packed by another method."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            struct.pack_into("<H", data, info.header_offset + 8, method)
    at = data.find(b"PK\x01\x02")
    while at != -1:
        struct.pack_into("<H", data, at + 10, method)
        at = data.find(b"PK\x01\x02", at + 4)
    out.write_bytes(data)


def damaged(good: Path, folder: Path) -> list[Path]:
    """Copies of a zip file, each damaged in another way: headers, methods, flags, sizes, ends."""
    whole = good.read_bytes()
    central, end = whole.find(b"PK\x01\x02"), whole.rfind(b"PK\x05\x06")
    changed = {f"method{method}": b"" for method in (1, 8, 9, 12, 14, 93, 99, 65535)}
    for name, at, size, value in [
        ("encrypted", central + 8, 2, 1),
        ("strong encryption", central + 8, 2, 0x41),
        ("patched data", central + 8, 2, 0x20),
        ("version", central + 6, 2, 99),
        ("crc", central + 16, 4, 1),
        ("small", central + 20, 4, 3),
        ("large", central + 20, 4, 0x7FFFFFFF),
        ("unpacked large", central + 24, 4, 0x7FFFFFFF),
        ("unpacked none", central + 24, 4, 0),
        ("name length", central + 28, 2, 60000),
        ("extra length", central + 30, 2, 60000),
        ("zip64", central + 20, 4, 0xFFFFFFFF),
        ("offset", central + 42, 4, 0x7FFFFFFF),
        ("local name", 26, 2, 60000),
        ("local", 0, 4, 0),
        ("entries", end + 10, 2, 65535),
        ("directory size", end + 12, 4, 0x7FFFFFFF),
        ("directory", end + 16, 4, 0x7FFFFFFF),
        ("utf-8 name", central + 46, 1, 0xFF),
        ("nul in a name", central + 47, 1, 0),
    ]:
        data = bytearray(whole)
        data[at : at + size] = value.to_bytes(size, "little")
        changed[name] = bytes(data)
    changed |= {f"first {share}": whole[: int(len(whole) * share)] for share in (0.0, 0.5, 0.99)}
    changed |= {"junk": os.urandom(5000), "junk in it": whole[:2000] + os.urandom(3000) + whole[5000:]}
    paths = []
    for number, (name, data) in enumerate(changed.items()):
        path = folder / f"{number}{good.suffix}"
        if name.startswith("method"):
            if (name == "method8") == (good.suffix == ".labref"):
                continue  # what it is packed by
            methods(good, int(name.removeprefix("method")), path)
        else:
            path.write_bytes(data)
        paths.append(path)
    return paths


def test_a_damaged_bundle_is_refused_by_name(tmp_path: Path, lab: Lab, packed: Path) -> None:
    there = sorted(lab.bundles.iterdir())
    bad = damaged(packed, tmp_path)
    for path in bad:
        with contextlib.suppress(BundleError), unpacked(path):  # some change nothing that is read
            pass
    for path in (bad[3], bad[-1]):
        refused("bundle", "install", path, "--lab", lab.folder, said=[str(path)])
    assert sorted(lab.bundles.iterdir()) == there


def test_a_damaged_backup_is_refused_and_nothing_is_left(tmp_path: Path, archive: Path) -> None:
    sources = tmp_path / "damaged"
    sources.mkdir()
    bad = damaged(archive, sources)
    for path in bad:
        with contextlib.suppress(LabError), Backup.open(path) as backup:
            for _ in backup.verify():
                pass
    for path in (bad[3], bad[-1]):
        refused("store", "restore", path, tmp_path / "again", said=[str(path)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["damaged"]


RECORDS = [
    "[" * 100_000,
    "{" * 100_000,
    "[]",
    "null",
    '"x"',
    "\x00",
    '{"format": Infinity}',
    '{"format": 1e400, "labref": "1"}',
    '{"format": NaN, "labref": "1"}',
    '{"format": ' + "9" * 10_000 + "}",
]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_a_record_of_a_backup_or_a_manifest_that_is_nonsense_is_refused(
    tmp_path: Path, lab: Lab, starter: Bundle, record: str
) -> None:
    backup, bundle = tmp_path / "backup", tmp_path / "bundle"
    backup.mkdir()
    (backup / "backup.json").write_text(record)
    refused("store", "restore", backup, tmp_path / "again", said=[str(backup), "no backup of a lab, or is damaged"])
    shutil.copytree(starter.folder, bundle)
    (bundle / "manifest.json").write_text(record.replace('"format"', '"format_version"'))
    refused("bundle", "install", bundle, "--lab", lab.folder, said=[str(bundle)])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "Infinity"),
        ("tables", '{"cell": Infinity}'),
        ("files", "[]"),
        ("at", "5"),
        ("at", '"soon"'),
        ("format", "0"),
    ],
)
def test_a_value_of_a_backup_s_record_that_is_nonsense_is_refused(
    tmp_path: Path, archive: Path, key: str, value: str
) -> None:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "backup")
    file = tmp_path / "backup" / "backup.json"
    record = json.loads(file.read_text())
    record[key] = "?"
    file.write_text(json.dumps(record).replace(f'"{key}": "?"', f'"{key}": {value}'))
    refused("store", "restore", tmp_path / "backup", tmp_path / "again", said=["is damaged"])


@pytest.mark.parametrize("text", ["[watch]\nfolders = 3", "nonsense", "[watch]\nfoldrs = []", "\xff"])
@pytest.mark.parametrize("watch", [False, True])
def test_a_backup_with_a_configuration_that_cannot_be_used_is_refused_before_anything_is_there(
    tmp_path: Path, archive: Path, text: str, watch: bool
) -> None:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "backup")
    backup = tmp_path / "backup"
    record = json.loads((backup / "backup.json").read_text())
    data = text.encode("latin-1")
    entry = record["files"]["labref.toml"]
    entry["sha256"], entry["bytes"] = sha256(data).hexdigest(), len(data)
    (backup / "files" / entry["sha256"]).write_bytes(data)
    (backup / "backup.json").write_text(json.dumps(record))
    more = ["--watch", str(tmp_path)] if watch else []
    output = refused(
        "store", "restore", backup, tmp_path / "again", *more, said=["labref.toml", "nothing was restored"]
    )
    assert ".labref-restore" not in output
    assert [entry.name for entry in tmp_path.iterdir()] == ["backup"]


# files that are the user's


def test_a_backup_and_an_export_leave_the_user_s_own_files_alone(tmp_path: Path, lab: Lab, archive: Path) -> None:
    own = ["x.zip.part", "cells.parquet.part", "backup/letter.part", "backup/files/notes.part", "backup/images/x.part"]
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "backup")
    for name in own:
        (tmp_path / name).write_text("mine")
    assert command("store", "backup", tmp_path / "x.zip", "--lab", lab.folder)[0] == 0
    assert command("store", "backup", tmp_path / "backup", "--lab", lab.folder)[0] == 0
    assert command("store", "export", tmp_path / "cells.parquet", "--lab", lab.folder)[0] == 0
    refused("store", "export", tmp_path / "cells.parquet", "--lab", lab.folder)
    for name in own:
        assert (tmp_path / name).read_text() == "mine"
    # folders of the names that a backup uses
    for name in ("files", "images"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "holiday.jpg").write_text("mine")
        refused("store", "backup", tmp_path / "own", "--lab", lab.folder, said=["holiday.jpg"])
        assert (tmp_path / "own" / name / "holiday.jpg").read_text() == "mine"
        shutil.rmtree(tmp_path / "own")
    assert not list(tmp_path.glob(".labref-*"))


# paths


@pytest.mark.parametrize("path", ["~nobody-here", "~nobody-here/x", "a\0b"])
def test_a_path_that_can_be_none_is_refused(path: str) -> None:
    with pytest.raises(LabError, match=r"home folder|NUL"):
        absolute(Path(path))


def test_no_command_meets_a_path_of_nobody_with_a_traceback(tmp_path: Path, lab: Lab) -> None:
    nobody = "~nobody-here/x"
    at = ["--lab", str(lab.folder)]
    for words in [
        ["status", "--lab", nobody],
        ["init", nobody, "--watch", str(tmp_path)],
        ["init", str(tmp_path / "new"), "--watch", nobody],
        ["store", "backup", nobody, *at],
        ["store", "export", nobody, *at],
        ["bundle", "install", nobody, *at],
        ["query", nobody, *at],
        ["label", "import", nobody, *at],
        ["ledger", "--path", nobody, *at],
        ["label", "set", nobody, "x", *at],
    ]:
        refused(*words, said=[nobody])


@pytest.mark.parametrize("path", ["", " ", "~nobody-here/x.png"])
def test_no_command_takes_an_empty_path_for_the_current_folder(
    tmp_path: Path, lab: Lab, archive: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    at, cell = ["--lab", str(lab.folder)], str(lab.watched[0] / "0.jpg")
    for words in [
        ["init", path, "--watch", str(lab.watched[0])],
        ["init", "new", f"--watch={path}"],
        ["init", "new", "--watch", str(lab.watched[0]), f"--bundle={path}"],
        ["status", f"--lab={path}"],
        ["ledger", f"--path={path}", *at],
        ["query", path, *at],
        ["query", cell, f"--grid={path}", *at],
        ["duplicates", f"--grid={path}", *at],
        ["map", "show", f"--out={path}", *at],
        ["map", "node", "0", "0", f"--grid={path}", *at],
        ["map", "classify", path, *at],
        ["store", "backup", path, *at],
        ["store", "export", path, *at],
        ["store", "restore", path, "new"],
        ["store", "restore", str(archive), path],
        ["store", "restore", str(archive), "new", f"--watch={path}"],
        ["bundle", "install", path, *at],
        ["label", "import", path, *at],
        ["demo", f"--images={path}"],
        ["demo", f"--keep={path}"],
    ]:
        refused(*words, said=["home folder" if path.strip() else f"{path!r} is no path"])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no folder that somebody is in")
def test_a_current_folder_that_is_gone_is_said(tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    at = ["--lab", lab.folder]
    for words in (["status"], ["ledger", "--path", "x", *at], ["init", "new", "--watch", lab.watched[0]]):
        refused(*words, said=["the folder that labref was called in is not there any more"])
    assert command("status", *at)[0] == 0, "it needs none"


@pytest.mark.parametrize("name", ["", "images", "logs"])
def test_a_lab_that_would_watch_itself_is_refused(tmp_path: Path, lab: Lab, archive: Path, name: str) -> None:
    new = tmp_path / "new"
    new.mkdir()
    told = "the lab's own folder and cannot be watched"
    refused("store", "restore", archive, new, "--watch", new / name, said=[told])
    assert not list(new.iterdir())
    (new / name).mkdir(exist_ok=True)
    if not name:
        refused("init", new, "--watch", new, said=[told])
    edited = tmp_path / "edited"
    edited.mkdir()
    (edited / "labref.toml").write_text(f"[watch]\nfolders = ['{name or '.'}']\n")
    refused("status", "--lab", edited, said=[told])


@pytest.mark.parametrize("name", ["images/new", "bundles", "logs/a/b"])
def test_no_lab_is_made_in_what_another_works_with(lab: Lab, archive: Path, name: str) -> None:
    told = "is what the lab in"
    before = sorted(lab.folder.rglob("*"))
    refused("init", lab.folder / name, "--watch", lab.watched[0], said=[told])
    if name != "bundles":  # which is not empty
        refused("store", "restore", archive, lab.folder / name, said=[told])
    assert sorted(lab.folder.rglob("*")) == before


@pytest.mark.parametrize("left", [[], ["bundles"]])
def test_a_bundle_whose_files_are_gone_is_listed_and_fails_the_check(
    lab: Lab, tmp_path: Path, starter: Bundle, left: list[str]
) -> None:
    shutil.copytree(lab.folder, tmp_path / "lab", ignore=lambda *_: {"bundles"})
    for name in left:
        (tmp_path / "lab" / name).mkdir()
    at = ["--lab", tmp_path / "lab"]
    code, said = command("bundle", "list", *at)
    assert code == 0
    assert f"({starter.short})" in said and "CANNOT BE USED" in said
    code, said = command("bundle", "verify", *at)
    assert code == 1
    assert starter.short in said and "no bundle at" in said


def test_a_folder_in_the_place_of_a_file_and_the_other_way_round_is_said(tmp_path: Path, lab: Lab) -> None:
    at = ["--lab", str(lab.folder)]
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("x")
    for words in [
        ["query", folder, *at],
        ["label", "import", folder, *at],
        ["bundle", "install", folder, *at],
        ["store", "export", folder, *at],
        ["store", "export", file / "x", *at],
        ["store", "backup", file, *at],
        ["store", "backup", file / "x", *at],
        ["store", "restore", file, tmp_path / "new"],
        ["store", "restore", folder, tmp_path / "new"],
        ["init", file, "--watch", folder],
        ["init", file / "lab", "--watch", folder],
        ["init", tmp_path / "new", "--watch", file],
        ["status", "--lab", file],
    ]:
        refused(*words)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("name", ["token", "labref.toml", "store.duckdb", "images", "bundles", "agent.json", "logs"])
def test_a_lab_of_which_a_part_is_of_the_wrong_kind_says_so(tmp_path: Path, lab: Lab, name: str) -> None:
    broken = tmp_path / "lab"
    shutil.copytree(lab.folder, broken)
    path = broken / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("x")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    query = lab.watched[0] / "0.jpg"
    asked: list[list[str | Path]] = [["status"], ["query", query], ["store", "check"]]
    if name in ("token", "logs"):
        asked = [["agent", "--once"]]  # nobody else needs these while no agent runs
    codes = []
    for words in asked:
        code, output = command(*words, "--lab", broken)
        assert "Traceback" not in output
        codes.append(code)
    assert any(codes) or name in ("agent.json", "images")


# output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_an_error_and_a_reader_that_goes_is_none(lab: Lab) -> None:
    words = [sys.executable, "-m", "labref", "ledger", "--lab", str(lab.folder)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a POSIX shell does")
def test_a_command_whose_streams_are_closed_works_and_no_file_takes_their_numbers(lab: Lab, tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    script = (
        "import os, pathlib, labref.cli as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        f"pathlib.Path({str(said)!r}).write_text(f'{{code}} {{os.open(os.devnull, os.O_RDONLY)}}')\n"
    )
    words = [sys.executable, "-c", script, "slide", "list", "--lab", str(lab.folder)]
    subprocess.run(["/bin/sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words], check=False, timeout=120)
    code, number = said.read_text().split()
    assert code == "0"
    assert int(number) > 2


# every command


HOSTILE = {
    "nowhere": "no/such/place",
    "folder": "a folder",
    "file": "a file",
    "nobody": "~nobody-here/x",
    "empty": "",
    "NUL": "a\0b",
    "escape": "\x1b[31mred",
    "long": "x" * 10_000,
    "nan": "nan",
    "inf": "inf",
    "minus": "-1",
    "huge": str(10**30),
    "unknown": "nothing-is-called-so",
}
"""What people and programs get wrong, whatever is asked for."""
SHARE = 7
"""One in so many attempts is made, which is no multiple of their kinds: all 1,300 take minutes."""
LEFT_OUT = {
    *("demo", "map train", "bench"),  # they draw, train, measure and take minutes where the value happens to be good
    *("service install", "service remove"),  # they change this computer: tests/test_service.py
}
ALWAYS = {"agent": ["--once"], "store empty-trash": ["--yes"]}


def commands(group: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command of labref, by its words."""
    for name, inner in group.commands.items():
        if hasattr(inner, "commands"):
            yield from commands(inner, (*above, name))
        else:
            yield " ".join((*above, name)), inner


def attempts(plain: dict[str, str]) -> Iterator[tuple[list[str], str]]:
    """Words for each parameter of each command with each hostile value, the others plain; the value's name."""
    for name, command in commands(get_command(app)):
        if name in LEFT_OUT:
            continue
        for tried in command.params:
            if getattr(tried, "is_flag", False) or tried.name == "help":
                continue
            for kind, value in HOSTILE.items():
                words, last = [*name.split(), *ALWAYS.get(name, ())], []
                for other in command.params:
                    given = value if other is tried else plain.get(other.name)
                    if other.param_type_name == "argument":
                        last += [given or ""] if other is tried or other.required else []
                    elif other is tried or other.required or other.name == "lab":
                        words += [
                            f"{other.opts[0]}={given}" if other.opts[0].startswith("--") else other.opts[0] + str(given)
                        ]
                yield [*words, "--", *last], kind


def names_a_person(words: Sequence[str]) -> bool:
    """Whether the hostile value of a command is the name of a person, who may be called so, or words that are searched
    for."""
    return words[0] == "user" or any(word.startswith(("--who=~", "--search=~")) for word in words)


@contextlib.contextmanager
def opened_once(lab: Path) -> Iterator[None]:
    """Commands of this process are built once, and open the store of `lab` once: each attempt takes milliseconds."""
    command, open_store = get_command(app), Store.open
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(Lab.open(lab).open_store()) as store:
        patch.setattr("typer.testing._get_command", lambda _: command)
        patch.setattr(store, "close", lambda: None)
        patch.setattr(
            Store,
            "open",
            lambda file, **named: store if file == lab / "store.duckdb" else open_store(file, **named),
        )
        yield
        patch.undo()


def test_no_command_meets_nonsense_with_a_traceback(
    tmp_path: Path, lab: Lab, starter: Bundle, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """One in `SHARE` of all values, for all commands; the lab is sound afterwards, and nothing else is written."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "a folder").mkdir()
    (work / "a file").write_text("nonsense")
    shutil.copytree(lab.folder, tmp_path / "lab")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    plain = {
        "lab": str(tmp_path / "lab"),
        "folder": str(work / "new"),
        "watch": str(work / "a folder"),
        "images": str(lab.watched[0] / "0.jpg"),
        "cell": Path(next(lab.images.rglob("*/*/*"))).name[:16],
        "label": "monocyte",
        "file": str(work / "a file"),
        "target": str(work / "target"),
        "source": str(work / "a folder"),
        "bundle": "starter",
        "name": "Eva",
        "number": "1",
        "row": "0",
        "column": "0",
        "out": str(work / "out.png"),
    }
    wrong = []
    closing = contextlib.ExitStack()
    request.addfinalizer(closing.close)  # else what it patches stays, where this test fails
    closing.enter_context(opened_once(tmp_path / "lab"))
    for number, (words, kind) in enumerate(attempts(plain)):
        if number % SHARE:
            continue
        done = CliRunner().invoke(app, words)
        said = done.stderr.strip().splitlines()
        where = words if len(str(words)) < 400 else [word[:40] for word in words]
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            wrong.append((where, kind, repr(done.exception)))
        elif (
            done.exit_code not in ((0, 1, 2, 3) if words[0] == "doctor" else (0, 1, 2))
            or "Traceback" in done.output
            or "\x1b" in done.output
            # what the doctor finds, and that no service is registered, is an answer, on stdout
            or (
                done.exit_code == 1
                and words[0] != "doctor"
                and words[:2] != ["service", "status"]
                and not (said and said[-1].startswith("error: "))
            )
        ):
            wrong.append((where, kind, done.output))
        elif kind in ("NUL", "nobody") and done.exit_code == 0 and not names_a_person(words):
            wrong.append((where, kind, "taken for good"))
    closing.close()
    assert not wrong, "\n".join(map(str, wrong))
    for words in (["ledger", "--check", "--latents", "0"], ["store", "check"]):
        assert command(*words, "--lab", tmp_path / "lab")[0] == 0
    assert {entry.name for entry in tmp_path.iterdir()} <= {"work", "lab"}


# what has no end


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """What is done in the block must end within a minute; a wait for ever ends as an error."""

    def end(*_: object) -> None:
        raise TimeoutError("it did not end")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def endless(tmp_path: Path) -> dict[str, Path]:
    """What no file is, by its kind: a device without end, a pipe that nobody writes to, a folder, a socket."""
    if sys.platform == "win32" or not Path("/dev/zero").exists():
        pytest.skip("no such devices here")
    folder = tmp_path / "endless"
    (folder / "empty").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    return {
        "a device": Path("/dev/zero"),
        "a device, by a link": folder / "link",
        "a pipe": folder / "pipe",
        "a socket": folder / "socket",
        "a folder": folder / "empty",
    }


def test_a_device_that_never_ends_is_no_picture_and_no_list(tmp_path: Path, lab: Lab, endless: dict[str, Path]) -> None:
    other = shutil.copytree(lab.folder, tmp_path / "lab")
    text = (other / "labref.toml").read_text(encoding="utf-8")
    (other / "labref.toml").write_text(text.replace("[watch]", "[watch]\nmax_file_megabytes = 3", 1), encoding="utf-8")
    with at_once():
        refused("query", endless["a device"], "--lab", other, said=["larger than 3 MB"])
        refused("map", "classify", endless["a device"], "--lab", other, said=["larger than 3 MB"])
        refused("label", "import", endless["a device"], "--who", "NN", "--lab", other, said=["is too large"])


@pytest.mark.parametrize("kind", ["a device", "a device, by a link", "a pipe", "a socket", "a folder"])
def test_what_is_no_file_is_no_backup_and_no_bundle(
    tmp_path: Path, lab: Lab, endless: dict[str, Path], kind: str
) -> None:
    path, there = endless[kind], sorted(lab.bundles.iterdir())
    said = [str(path)] if kind == "a folder" else [str(path), f"it is {kind.partition(',')[0]}, and no file"]
    with at_once():
        refused("store", "restore", path, tmp_path / "again", said=said)
        refused("bundle", "install", path, "--lab", lab.folder, said=said)
        refused("bundle", "verify", path, "--lab", lab.folder, said=[str(path)])
        refused("init", tmp_path / "new", "--watch", tmp_path, "--bundle", path, said=[str(path)])
    assert sorted(lab.bundles.iterdir()) == there
    assert [entry.name for entry in tmp_path.iterdir()] == ["endless"]


@pytest.mark.parametrize("kind", ["a device", "a pipe", "a folder"])
def test_what_is_no_file_within_a_bundle_or_a_backup_is_refused(
    tmp_path: Path, lab: Lab, starter: Bundle, archive: Path, endless: dict[str, Path], kind: str
) -> None:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "backup")
    for name in ("trunk.onnx", "manifest.json"):
        bundle = shutil.copytree(starter.folder, tmp_path / f"bundle {name}")
        (bundle / name).unlink()
        (bundle / name).symlink_to(endless[kind])
        with at_once():
            refused("bundle", "install", bundle, "--lab", lab.folder, said=[str(bundle)])
    store = json.loads((tmp_path / "backup" / "backup.json").read_text())["files"]["store.duckdb"]["sha256"]
    for name in (f"files/{store}", "backup.json"):
        (tmp_path / "backup" / name).unlink()
        (tmp_path / "backup" / name).symlink_to(endless[kind])
        with at_once():
            refused("store", "restore", tmp_path / "backup", tmp_path / "again", said=[str(tmp_path / "backup")])
    assert not (tmp_path / "again").exists()


def test_a_configuration_that_is_no_file_stops_no_command(tmp_path: Path, endless: dict[str, Path]) -> None:
    for kind in ("a pipe", "a device"):
        (tmp_path / "labref.toml").symlink_to(endless[kind])
        with at_once():
            refused("status", "--lab", tmp_path, said=["is no lab: it has no labref.toml"])
            with pytest.raises(ConfigError, match=f"it is {kind}, and no file"):
                load_config(tmp_path / "labref.toml")
        (tmp_path / "labref.toml").unlink()


def test_a_pipe_in_the_place_of_a_cell_s_file_keeps_no_command_waiting(
    tmp_path: Path, drawn_cells: Path, starter: Bundle, endless: dict[str, Path]
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    path = export / "1.jpg"
    shutil.copy(sorted(drawn_cells.rglob("*.jpg"))[0], path)
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    cell = ledger(lab)["1.jpg"]["cell_id"]
    path.unlink()
    os.mkfifo(path)
    with at_once():
        command("label", "set", path, "monocyte", "--who", "NN", "--new", "--lab", lab.folder)
        command("ledger", "--check", "--digests", "--latents", "0", "--lab", lab.folder)
        next(lab.images.glob(f"*/*/{cell}*")).unlink()
        code, output = command("ledger", "--check", "--repair", "--latents", "0", "--lab", lab.folder)
    assert code == 1, output


def test_the_agent_waits_for_no_pipe_and_reads_no_device(lab: Lab, endless: dict[str, Path]) -> None:
    with running_agent(lab), at_once():
        for kind in ("a device", "a pipe", "a socket"):
            refused("bundle", "install", endless[kind], "--lab", lab.folder, said=[f"it is {kind}, and no file"])
            refused("bundle", "verify", endless[kind], "--lab", lab.folder)
            refused("store", "backup", endless[kind], "--lab", lab.folder)
            refused("store", "export", endless[kind], "--lab", lab.folder)
        assert command("status", "--lab", lab.folder)[0] == 0


def test_a_file_that_grows_while_it_is_read_is_read_as_far_as_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, first = tmp_path / "growing", os.urandom(3_000_000)
    path.write_bytes(first)

    class Growing:
        """A digest; each part that it gets is added to the file as well."""

        def __init__(self) -> None:
            self._digest = sha256()

        def update(self, part: bytes) -> None:
            with path.open("ab") as out:
                out.write(part)
            self._digest.update(part)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", Growing)
        with at_once():
            assert files.digest_of(path) == sha256(first).hexdigest()
    assert path.stat().st_size == 6_000_000
    with pytest.raises(files.LargeFileError):
        files.read_file(path, 5_999_999)
    assert len(files.read_file(path, 6_000_000)) == 6_000_000


def test_a_file_of_a_backup_is_read_no_further_than_the_record_says(tmp_path: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "backup")
    record = json.loads((tmp_path / "backup" / "backup.json").read_text())
    name = record["files"]["labref.toml"]["sha256"]
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for path in (tmp_path / "backup").rglob("*"):
            if path.is_file() and path.name != name:
                out.write(path, path.relative_to(tmp_path / "backup").as_posix())
        out.writestr(f"files/{name}", bytes(100_000_000))
    into = tmp_path / "into"
    into.mkdir()
    with Backup.open(bomb) as backup, pytest.raises(LabError, match=r"labref\.toml .* is damaged"):
        for _ in backup.verify(into=into):
            pass
    assert (into / "labref.toml").stat().st_size < 3_000_000
    refused("store", "restore", bomb, tmp_path / "again", said=["labref.toml"])
    assert not (tmp_path / "again").exists()
