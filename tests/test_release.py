"""What `make release` asks of a commit before it is one. The building itself is tried by it, in empty environments."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import labref

ROOT = Path(__file__).parents[1]


def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "deploy" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


release = program()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit that is version 1.2.0 and says so everywhere."""
    (tmp_path / "labref").mkdir()
    (tmp_path / "labref" / "__init__.py").write_text('__version__ = "1.2.0"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (2026-12-01)\n\n- All.\n", encoding="utf-8")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "all")
    git(tmp_path, "tag", "v1.2.0")
    return tmp_path


def git(root: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *who, *words], check=True, capture_output=True)


def test_a_commit_whose_tag_code_and_changelog_agree_is_a_release(checkout: Path) -> None:
    assert list(release.problems(checkout)) == []


def test_a_commit_without_its_tag_is_none(checkout: Path) -> None:
    git(checkout, "tag", "-d", "v1.2.0")
    assert [line for line in release.problems(checkout) if "git tag v1.2.0" in line]
    git(checkout, "tag", "v1.3.0")
    assert [line for line in release.problems(checkout) if "v1.3.0" in line and "1.2.0" in line]


def test_changes_that_are_in_no_commit_are_told(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("mine", encoding="utf-8")
    (line,) = release.problems(checkout)
    assert "notes.txt" in line


def test_a_python_that_pyenv_has_and_nobody_chose_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = tmp_path / "shims" / "python3.12"
    own = tmp_path / "versions" / "3.12.1" / "bin" / "python"
    for program, code in ((shim, 127), (own, 0)):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\nexit {code}\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(shim.parent))
    assert release.program_of("3.12") == str(own)
    assert release.program_of("3.13") is None


@pytest.mark.parametrize("trial", [True, False])
def test_a_release_is_tried_with_every_python_and_a_trial_with_those_that_are_there(
    trial: bool, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = checkout / "a.tar.gz", checkout / "a.whl"
    monkeypatch.setattr(release, "ROOT", checkout)
    monkeypatch.setattr(release, "program_of", lambda python: None if python == "3.13" else f"python{python}")
    monkeypatch.setattr(release, "try_it", lambda wheel, python, train: f"{python}: {wheel.name}")

    def build(root: Path, into: Path) -> tuple[Path, Path]:
        for file in built:
            file.touch()
        return built

    monkeypatch.setattr(release, "build", build)
    done = release.main(["--into", str(checkout / "dist"), *(["--trial"] if trial else [])])
    out, err = capsys.readouterr()
    assert "python3.11: a.whl" in out and "no Python 3.13 here" in out
    assert (done, "Python 3.13 as well" in err) == ((0, False) if trial else (1, True))


@pytest.mark.parametrize("heading", ["## 1.2.0 (unreleased)", "## 1.2.0", "## 1.1.0 (2026-12-01)", "## Unreleased"])
def test_the_changelog_has_to_begin_with_the_version_and_its_date(checkout: Path, heading: str) -> None:
    (checkout / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n\n- All.\n", encoding="utf-8")
    git(checkout, "commit", "-q", "-a", "-m", "other")
    git(checkout, "tag", "-f", "v1.2.0")
    (line,) = release.problems(checkout)
    assert "CHANGELOG.md" in line


def test_the_version_stands_in_the_code_and_the_changelog_goes_by_versions() -> None:
    assert release.version_of(ROOT) == labref.__version__
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    for heading in headings:
        assert re.fullmatch(r"Unreleased|\d+\.\d+\.\d+ \((\d{4}-\d{2}-\d{2}|unreleased)\)", heading), heading
    assert headings[0].split(" ")[0] in ("Unreleased", labref.__version__)


def test_the_source_distribution_holds_what_its_wheel_is_built_from() -> None:
    """Without the lock of the pages' scripts no wheel came of it."""
    kept = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    assert "recursive-include labref/web/scripts *.json" in kept
    for part in ("training", "exporters", "tests", "deploy"):
        assert f"graft {part}" in kept
        assert (ROOT / part).is_dir()
