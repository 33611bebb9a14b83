"""What deploy/ holds is true of the code beside it."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from labref.cli import app
from labref.config import Config, load_config

DEPLOY = Path(__file__).parent.parent / "deploy"
EXAMPLE = DEPLOY / "labref.example.toml"


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
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "labref"
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
