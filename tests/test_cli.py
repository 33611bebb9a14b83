"""The `labref` command as a person and as a script use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from labref import __version__
from labref.cli import app
from labref.cli._app import whole_for
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides

COMMANDS = [
    "agent",
    "bench",
    "bundle",
    "config",
    "demo",
    "doctor",
    "duplicates",
    "init",
    "key",
    "label",
    "ledger",
    "map",
    "query",
    "reading",
    "report",
    "contribute",
    "review",
    "service",
    "shared",
    "slide",
    "status",
    "store",
    "user",
    "web",
]


@pytest.fixture(autouse=True)
def _no_lab_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABREF_LAB", raising=False)


def labref(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Runs the command in this process; returns stdout and stderr."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="labref")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def lines(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def cell(label: str, seed: int) -> bytes:
    slide = make_slides(2, seed=1)[seed % 2]
    return encode_jpeg(draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab that has taken in 24 drawn cells of 8 classes, a copy of one, and a file that is no image."""
    folder = tmp_path_factory.mktemp("cli")
    export = folder / "export"
    for label in LABELS:
        (export / label).mkdir(parents=True)
        for i in range(3):
            (export / label / f"{i}.jpg").write_bytes(cell(label, i))
    copied = (export / "ig" / "0.jpg").read_bytes()
    (export / "ig" / "copy Å 日本.jpg").write_bytes(copied)
    (export / "ig" / "notes.jpg").write_text("no image at all")
    labref("init", folder / "lab", "--watch", export)
    stdout, _ = labref("agent", "--once", "--json", "--lab", folder / "lab")
    (summary,) = lines(stdout)
    assert summary["found"] == 26
    assert summary["rejected"] == 1
    return folder / "lab"


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    image = tmp_path / "unseen cell.jpg"
    image.write_bytes(cell("monocyte", 77))
    return image


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_and_every_option_has_help_that_teaches(name: str) -> None:
    command: Any = typer.main.get_command(app)
    if name:
        command = command.commands[name]
        assert command.get_short_help_str(limit=60).endswith(".")
        stdout, _ = labref(name, "--help")
    else:
        assert sorted(command.commands) == sorted(COMMANDS)
        stdout, _ = labref("--help")
    assert f"labref {name}".strip() in stdout
    for parameter in command.params:
        assert (getattr(parameter, "help", None) or "").strip().endswith("."), parameter.name
        for flag in parameter.opts:
            if flag.startswith("-"):
                assert flag in stdout
    examples = [line for line in stdout.splitlines() if line.startswith("    labref ")]
    assert examples, "help shows how the command is used"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_example_in_the_help_is_a_command_that_parses(name: str) -> None:
    stdout, _ = labref(*([name] if name else []), "--help")
    for example in re.findall(r"^    labref ([^\n]+)", stdout, re.MULTILINE):
        words = re.split(r"\s{3,}|\s>\s", example)[0].split()
        assert words[0] in COMMANDS
        text, _ = labref(words[0], "--help")
        for word in words[1:]:
            if word.startswith("-"):
                assert word in text


def test_help_is_quick_because_it_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom labref.cli import app\n"
        "heavy = {'numpy', 'duckdb', 'onnxruntime', 'PIL', 'scipy', 'pydantic', 'starlette', 'fastapi', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "labref", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"labref {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["query"], ["init", "x"], ["query", "a.jpg", "-k", "0"], ["query", "a.jpg", "--by", "eye"]],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    stdout, stderr = labref(*arguments, code=2)
    assert "Usage: labref" in stdout + stderr


@pytest.mark.parametrize("arguments", [["status"], ["ledger"], ["query", "a.jpg"], ["agent", "--once"]])
def test_without_a_lab_a_command_says_how_to_name_one(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stdout, stderr = labref(*arguments, code=1)
    assert stdout == ""
    assert stderr.startswith("error: no lab here")
    assert "--lab DIR" in stderr
    assert len(stderr.splitlines()) == 1


def test_init_says_what_it_made_and_what_comes_next(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    stdout, _ = labref("init", tmp_path / "my lab", "--watch", tmp_path / "export")
    assert "labref agent --lab" in stdout
    assert "monocyte" in stdout
    stdout, stderr = labref("init", tmp_path / "my lab", "--watch", tmp_path / "export", code=1)
    assert "already is a lab" in stderr


def test_init_prints_json(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    stdout, _ = labref("init", tmp_path / "lab", "--watch", tmp_path / "export", "--analyser", "DC-1", "--json")
    (made,) = lines(stdout)
    assert set(made) == {"lab", "config", "store", "bundle", "signature", "watch"}
    assert Path(made["config"]).is_file()
    assert Path(made["store"]).is_file()
    assert len(made["bundle"]["digest"]) == 64
    assert made["watch"] == [str(tmp_path / "export")]


def test_init_names_the_analyser_of_each_folder(tmp_path: Path) -> None:
    from labref.lab import Lab

    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    labref("init", tmp_path / "lab", "--watch", one, "--analyser", "DM96", "--watch", other, "--analyser", "DC-1")
    assert Lab.open(tmp_path / "lab").analysers == {str(one): "DM96", str(other): "DC-1"}
    labref("init", tmp_path / "both", "--watch", one, "--watch", other, "--analyser", "DM96")
    assert Lab.open(tmp_path / "both").config.watch.analyser == "DM96"
    words = ("--watch", one, "--analyser", "DM96", "--analyser", "DC-1")
    _, stderr = labref("init", tmp_path / "third", *words, code=1)
    assert "2 analysers are named, and 1 folders watched" in stderr and not (tmp_path / "third").exists()


def test_init_on_a_folder_that_is_not_there_leaves_nothing(tmp_path: Path) -> None:
    _, stderr = labref("init", tmp_path / "lab", "--watch", tmp_path / "export", code=1)
    assert "does not exist" in stderr
    assert list(tmp_path.iterdir()) == []


def test_the_ledger_has_one_row_for_each_file(lab: Path) -> None:
    stdout, stderr = labref("ledger", "--json", "--lab", lab)
    assert stderr == ""
    rows = lines(stdout)
    assert len(rows) == 26
    assert len({row["path"] for row in rows}) == 26
    for row in rows:
        assert set(row) == {
            *("path", "outcome", "reason", "cell_id", "label", "label_source", "slide", "at", "duplicate_of"),
            "conflict",
            "neighbours",
        }
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", row["at"])
    by_name = {Path(row["path"]).name: row for row in rows}
    copied, notes = by_name["copy Å 日本.jpg"], by_name["notes.jpg"]
    assert copied["outcome"] == "duplicate"
    assert notes["outcome"] == "rejected"
    assert notes["cell_id"] is None
    assert "not an image" in notes["reason"]
    assert {row["label"] for row in rows if row["label"]} == set(LABELS)
    assert {row["label_source"] for row in rows if row["cell_id"]} == {"analyser"}


def test_the_ledger_can_be_narrowed(lab: Path) -> None:
    (row,) = lines(labref("ledger", "--json", "--lab", lab, "--outcome", "rejected")[0])
    assert Path(row["path"]).name == "notes.jpg"
    assert lines(labref("ledger", "--json", "--lab", lab, "--path", row["path"])[0]) == [row]
    assert len(lines(labref("ledger", "--json", "--lab", lab, "--limit", "5")[0])) == 5


def test_the_ledger_reads_well(lab: Path) -> None:
    stdout, _ = labref("ledger", "--lab", lab)
    assert len(stdout.splitlines()) == 26
    assert re.search(r"rejected +.*notes\.jpg +not an image", stdout)
    assert "copy Å 日本.jpg" in stdout


ANSWER = {
    *(
        "image",
        "bundle",
        "cell",
        "quality",
        "predicted",
        "prediction",
        "probabilities",
        "references",
        "contrast",
        "distribution",
        "novelty",
        "duplicate_of",
        "optics",
    ),
    *("map", "shared", "timings_ms"),
}


def test_a_query_gives_one_json_object_for_each_image(lab: Path, unseen: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jpg"
    other.write_bytes(cell("platelet", 78))
    stdout, stderr = labref("query", unseen, other, "--json", "--lab", lab)
    assert stderr == ""
    answers = lines(stdout)
    assert [answer["image"] for answer in answers] == [str(unseen), str(other)]
    text, _ = labref("query", "--help")
    for field in [*ANSWER, *answers[0]["cell"]]:
        assert re.search(rf"\b{field}\b", text), field
    for answer in answers:
        assert set(answer) == ANSWER
        assert len(answer["references"]) == 8
        distances = [r["distance"] for r in answer["references"]]
        assert distances == sorted(distances)
        assert sum(answer["distribution"]["weights"].values()) == pytest.approx(1.0)


def test_a_query_asks_for_as_many_references_as_wanted(lab: Path, unseen: Path) -> None:
    for k in (1, 3, 15):  # drawn cells look alike: some of the 24 may be one another
        (answer,) = lines(labref("query", unseen, "-k", str(k), "--json", "--lab", lab)[0])
        assert len(answer["references"]) == k


def test_a_query_reads_well(lab: Path, unseen: Path) -> None:
    stdout, _ = labref("query", unseen, "--lab", lab)
    assert stdout.startswith(f"{unseen}\n"), "the references come first"
    assert re.search(r"\n  (predicted: \w+ [\d.]+%|prediction withheld \(\w+ [\d.]+%\): .+)\n$", stdout)
    assert len(re.findall(r"^ +\d  \w+ +[\d.e-]+ +analyser", stdout, re.MULTILINE)) == 8
    assert "weighted: " in stdout


def test_a_stored_image_is_not_its_own_reference(lab: Path) -> None:
    (row, *_) = lines(labref("ledger", "--json", "--lab", lab, "--outcome", "stored")[0])
    (answer,) = lines(labref("query", row["path"], "--json", "--lab", lab)[0])
    assert answer["duplicate_of"] == row["cell_id"]
    assert row["cell_id"] not in [r["cell_id"] for r in answer["references"]]
    assert "already in the store" in labref("query", row["path"], "--lab", lab)[0]


def test_an_image_that_cannot_be_used_is_named_and_the_others_are_answered(
    lab: Path, unseen: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    stdout, stderr = labref("query", bad, tmp_path / "gone.jpg", unseen, "--json", "--lab", lab, code=1)
    assert [answer["image"] for answer in lines(stdout)] == [str(unseen)]
    first, second = stderr.splitlines()
    assert first.startswith(f"error: {bad}: not an image")
    assert second.startswith(f"error: {tmp_path / 'gone.jpg'}: cannot be read")


def test_references_by_the_map_need_a_map(lab: Path, unseen: Path) -> None:
    stdout, stderr = labref("query", unseen, "--by", "map", "--json", "--lab", lab, code=1)
    assert stdout == ""
    assert "map" in stderr


def test_a_grid_is_drawn_for_each_image(lab: Path, unseen: Path, tmp_path: Path) -> None:
    stdout, _ = labref("query", unseen, "--json", "--lab", lab, "--grid", tmp_path / "one.png")
    assert len(lines(stdout)) == 1
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width == 976
    labref("query", unseen, unseen, "-k", "3", "--lab", lab, "--grid", tmp_path / "two.png")
    assert (tmp_path / "two-1.png").is_file()
    assert (tmp_path / "two-2.png").is_file()


def test_a_grid_that_cannot_be_written_is_said_with_the_remedy(lab: Path, unseen: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "no folder" / "x.png", tmp_path / "x.nothing"):
        _, stderr = labref("query", unseen, "--lab", lab, "--grid", out, code=1)
        assert "the grid could not be written" in stderr
        assert "ends in .png" in stderr


def test_status_prints_json_with_the_documented_fields(lab: Path) -> None:
    stdout, stderr = labref("status", "--json", "--lab", lab)
    assert stderr == ""
    (status,) = lines(stdout)
    text, _ = labref("status", "--help")
    for field in status:
        assert re.search(rf"\b{field}\b", text), field
    assert status["outcomes"]["rejected"] == 1


def test_status_reads_well(lab: Path) -> None:
    stdout, _ = labref("status", "--lab", lab)
    assert "inference on the" in stdout
    assert "no agent" in stdout


@pytest.fixture
def agent(lab: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "labref", "agent", "--lab", str(lab)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (lab / "agent.json").exists():
            assert process.poll() is None
        yield process
    finally:
        process.terminate()
        # Windows ends a process at once, without an exit code of its own
        assert process.wait(timeout=60) == 0 or os.name == "nt"


@pytest.mark.slow
def test_the_answers_are_the_same_while_an_agent_runs(lab: Path, unseen: Path, request: pytest.FixtureRequest) -> None:
    def asked() -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any], str, str]:
        answers = lines(labref("query", unseen, "--json", "--lab", lab)[0])
        for answer in answers:
            del answer["timings_ms"]
        (status,) = lines(labref("status", "--json", "--lab", lab)[0])
        ledger = labref("ledger", "--json", "--lab", lab)[0]
        return answers, lines(ledger), status, labref("query", unseen, "--lab", lab)[0], ledger

    alone = asked()
    request.getfixturevalue("agent")
    beside = asked()
    assert alone[0] == beside[0]
    assert sorted(alone[1], key=lambda row: row["path"]) == sorted(beside[1], key=lambda row: row["path"])
    assert set(alone[2]) == set(beside[2])
    assert alone[2]["outcomes"] == beside[2]["outcomes"]
    assert alone[3] == beside[3]
    labref("query", unseen, "--lab", lab, "--grid", unseen.with_name("grid.png"))
    _, stderr = labref("agent", "--once", "--lab", lab, code=1)
    assert "already runs" in stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--help",
        "-h",
        "--version",
        "--nope",
        "qurey",
        "agent --help",
        "duplicates --help",
        "map show --help",
        "store chek",
    ],
)
def test_a_command_says_the_same_where_the_others_are_not_made_whole(arguments: str) -> None:
    words = arguments.split()
    whole, told = (CliRunner().invoke(made, words, prog_name="labref") for made in (app, whole_for(words)))
    assert (told.exit_code, told.output) == (whole.exit_code, whole.output)
    assert whole.output


def test_a_command_is_found_by_its_name_alone() -> None:
    groups = {info.name: info.typer_instance for info in whole_for(["store", "check"]).registered_groups}
    assert groups["store"].registered_commands  # type: ignore[union-attr]
    assert not groups["bundle"].registered_commands  # type: ignore[union-attr]
    assert {info.name: info.typer_instance for info in app.registered_groups}["bundle"].registered_commands  # type: ignore[union-attr]
