"""What deploy/ holds is true of the code beside it."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic import BaseModel
from typer.testing import CliRunner

from labref.cli import app
from labref.config import Config, load_config

DEPLOY = Path(__file__).parent.parent / "deploy"
EXAMPLE = DEPLOY / "labref.example.toml"
ROOT = DEPLOY.parent


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LABREF_LAB", "LABREF_WATCH__FOLDERS", "LABREF_AGENT__PORT"):
        monkeypatch.delenv(name, raising=False)


def test_the_example_configuration_loads_and_holds_the_defaults() -> None:
    example = load_config(EXAMPLE)
    changed = {"folders": (Path("/mnt/analyser/export"),), "analyser": "DC-1"}
    assert example.watch == Config().watch.model_copy(update=changed)
    assert (example.agent, example.inference) == (Config().agent, Config().inference)


def test_the_example_configuration_names_every_key() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    for section, field in Config.model_fields.items():
        assert f"[{section}]" in text
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for key in model.model_fields:
            assert re.search(rf"^(# )?(\[+watch\.)?{key}(\]+| = )", text, re.MULTILINE), f"{section}.{key}"


def test_every_commented_example_in_the_configuration_loads_too(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    text = re.sub(r"^# (folders = |\[\[watch|pattern|label_source|'Segs')", r"\1", text, flags=re.MULTILINE)
    text = text.replace("folders = ['/mnt/analyser/export']\n", "")
    file = tmp_path / "labref.toml"
    file.write_text(text, encoding="utf-8")
    config = load_config(file)
    assert len(config.watch.folders) == 2
    assert config.watch.layout[0].label_source == "analyser"
    assert config.watch.labels == {"Segs": "neutrophil"}


def test_the_systemd_unit_runs_a_command_that_exists() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "labref-agent.service", encoding="utf-8")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"].removeprefix(":"))
    assert (Path(program).name, arguments[:2]) == ("python", ["-m", "labref"])
    arguments = arguments[2:]
    assert CliRunner().invoke(app, [*arguments, "--help"]).exit_code == 0
    assert unit["Service"]["KillSignal"] == "SIGTERM"


def test_every_labref_command_in_the_notes_exists_with_its_options() -> None:
    pages = [DEPLOY.parent / "README.md", *DEPLOY.glob("*.md")]
    notes = "\n".join(page.read_text(encoding="utf-8") for page in pages).replace(" ^\n", " ")
    commands = re.findall(r"labref(?:\.exe)? ((?:init|agent|query|status|ledger|demo)\b[^\n`#]*)", notes)
    assert len(commands) >= 15
    for command in commands:
        name, *arguments = command.split()
        text = CliRunner().invoke(app, [name, "--help"]).output
        for option in (a for a in arguments if a.startswith("--")):
            assert option.strip('"') in text, command


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("constraints.txt", ("shared",)),
        ("constraints-test.txt", ("train", "test", "release")),
        ("constraints-cuda.txt", ("cuda", "shared")),
    ],
)
def test_the_constraints_hold_all_that_is_needed_in_versions_that_are_allowed(
    name: str, extras: tuple[str, ...]
) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text, "no address of an index"
    pinned: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=\w)", text):
        found = re.match(r"([\w.-]+)==(\S+)", block)
        if found:
            assert "--hash=sha256:" in block, found[1]
            pinned.setdefault(found[1].lower().replace("_", "-"), []).append(found[2])
    needed = list(project()["dependencies"])
    for extra in extras:
        needed += project()["optional-dependencies"][extra]
    for requirement in map(Requirement, needed):
        versions = pinned.get(requirement.name.lower().replace("_", "-"), [])
        assert versions, f"{name} lacks {requirement.name}: make constraints"
        assert all(requirement.specifier.contains(version) for version in versions), f"{requirement}: make constraints"


def test_the_versions_of_python_are_the_same_everywhere() -> None:
    allowed = SpecifierSet(project()["requires-python"])
    versions = ["3.11", "3.12", "3.13"]
    assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in allowed] == versions
    for page in ("README.md", "CONTRIBUTING.md", "Makefile", "deploy/README.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert "3.11, 3.12 or 3.13" in text, page


@pytest.mark.slow
def test_the_wheel_holds_labref_only(tmp_path: Path) -> None:
    """Built from a copy, because a build leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77", reason="an older setuptools cannot build labref: make test")
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("labref", "training", "exporters"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, copy / part)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(copy)], check=True)
    (wheel,) = tmp_path.glob("labref-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"labref"}
    assert {"labref/starter/starter.labref", "labref/som/nearest.onnx", "labref/py.typed"} <= set(names)
