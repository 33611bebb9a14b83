"""What the pages for people say of files is true: paths, names in them, links, and the table of rooms."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from exporters.keys import SigningKey, new_key, sign
from labref import errors
from labref.agent.service import _Agent
from labref.asking.room import wanting
from labref.bundles.bundle import Bundle
from labref.cli import app as labref_app
from labref.doctor.examination import NAMES
from labref.lab import Lab
from labref.operations import every_operation
from labref.web.client import AgentClient
from labref.words import Outcome, Reason
from tests.bundles import another
from tests.labs import wait_until
from tests.test_imports import ROOMS, UP

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "labref" / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", CONTRIBUTING, ARCHITECTURE, *sorted((ROOT / "deploy").glob("*.md"))]
SUFFIXES = (".py", ".md", ".toml", ".yaml", ".txt", ".onnx", ".labref", ".duckdb")


def quoted(page: Path) -> list[str]:
    """What stands in backticks, but for the pictures."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def paths(page: Path) -> list[str]:
    """The paths among it: words with a slash, or that end as a file does. Placeholders and what is typed are none."""
    words = [
        word for word in quoted(page) if not re.search(r"[\s<>*…=]", word) and not word.startswith(("/api", "../"))
    ]
    return [word for word in words if "/" in word or word.endswith(SUFFIXES)]


@pytest.mark.parametrize("page", [ARCHITECTURE, CONTRIBUTING], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_on_the_page_exists(page: Path) -> None:
    made_elsewhere = {"labref.toml"}  # in a lab
    named = set(paths(page)) - made_elsewhere
    assert len(named) >= 20
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


@pytest.mark.parametrize("page", [ARCHITECTURE, CONTRIBUTING], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_that_the_page_gives_beside_a_file_is_in_that_file(page: Path) -> None:
    found = re.findall(r"`([^`\s]+\.py)` \(((?:`\w+`(?:, )?)+)\)", page.read_text(encoding="utf-8"))
    assert len(found) >= 5
    missing = [
        (path, name)
        for path, names in found
        for name in re.findall(r"\w+", names)
        if not re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert missing == []


def test_the_table_of_rooms_is_that_of_the_imports() -> None:
    listed = {}
    for path, _, imports in re.findall(
        r"^\| `labref/([^`]+)` \| (.+?) \| ([^|]+) \|$", ARCHITECTURE.read_text("utf-8"), re.M
    ):
        room = path.removesuffix(".py").rstrip("/").replace("/", ".")
        if room in ROOMS:
            listed[room] = set() if imports == "nothing" else set(imports.split())
    wanted = {room: set(below.split()) | {b for a, b in UP if a == room} for room, below in ROOMS.items()}
    del wanted["labref"]  # the package itself: its version
    assert listed == wanted
    assert list(listed) == list(wanted), "lowest first"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, _, heading in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert heading in anchors, f"{page.name}: {target}#{heading}"


def anchors(page: Path) -> set[str]:
    """What a link may name on a page, as the forges make it of each heading."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_on_the_page_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_page_on_trouble_names_every_check_error_state_and_reason() -> None:
    text = (ROOT / "deploy" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = {
        row
        for line in text.splitlines()
        if line.startswith("| ")
        for row in re.findall(r"`([^`]+)`", line.split(" | ")[0])
    }
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.LabrefError)
    }
    assert set(NAMES) | kinds - {"LabrefError"} | set(Outcome) <= rows
    source = "".join(map(inspect.getsource, (_Agent._healthy, _Agent._look_ahead, wanting)))
    states = set(re.findall(r'(?:return|else|or|=) "([a-z ]+)"', source))
    assert {"ok", "storage", "no progress", "folder", "provider", "disk", "backup", "shared"} <= states
    assert states <= rows
    for reason in Reason:
        assert f"| {reason} |" in text


def test_the_page_on_the_api_lists_what_can_be_asked() -> None:
    listed = re.findall(r"^\| `.*", (ROOT / "deploy" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [
        f"| `{each.name}` | `{each.method} {each.path}` | {each.role} | {each.summary} |" for each in every_operation()
    ]


# --- every command on the pages for people ---

FOR_USERS = [ROOT / "README.md", *sorted((ROOT / "deploy").glob("*.md"))]
PROGRAMS = r"(?:sudo (?:-u labref )?)?(?:\S*[\\/])?(labref(?:\.exe)?|python3?|pip|py|make|systemctl|schtasks|useradd|install|cp)\b"

NOT_RUN = {
    r"labref key (revoke ID|trust (FILE|hospital-2))": "takes a key's trust away, or needs its successor: tests/test_trust.py runs it",
    r"make (demo|test|wheelhouse)": "sets up a virtual environment; the targets are looked for in the Makefile",
    r"py -3\.11 -m venv |python3 -m venv ": "makes a virtual environment",
    r"pip (install|wheel) ": "takes packages from the network, or needs the wheel of a release",
    r"pip install --upgrade$": "takes packages from the network",
    r"python -m pytest( tests|$)": "is what runs here",
    r"(useradd|install|cp|systemctl) ": "changes the system, as root",
    r"labref bench": "measures for a minute: tests/test_bench.py runs it",
    r"labref shared |labref query .*--shared |labref web ": "needs a server of PostgreSQL: tests/test_shared.py and test_room.py run it",
    r"labref store remove( |$)": "needs a patient's slide: tests/test_withdrawal.py runs it",
    r"labref service ": "changes the system, as root: tests/test_service.py",
    r"labref demo( --images DIR)?$": "tests/test_demo.py runs it, and it takes half a minute",
    r"labref map train$": "needs 64 cells: tests/test_map.py runs it",
    r"labref COMMAND --help$": "tests/test_what_it_says.py asks every command for its help",
    r"labref (bundle install FILE|bundle rollback|store backup FOLDER|store restore BACKUP LAB|user renew)$": "names a command in a table, for a lab that needs it",
    r"labref (query --grid|query --by map|store backup)$": "names a command in a sentence, without what it works on",
    r"python -m tests\.benchmarks\.": "takes minutes to hours; its options are looked for in its source",
    r"python -m (training|exporters)( |$)": "trains or needs a trained run; it is held against the command's own help",
}
"""Commands that do not run here, and why; each expression has to match some command."""


def commands_of(page: Path) -> list[str]:
    """The commands on a page, in its order: those in indented blocks, and those in backticks in the text."""
    text = re.sub(r" \^\n +", " ", page.read_text(encoding="utf-8"))
    found = []
    for line in text.splitlines():
        if line.startswith("    "):
            written = re.split(r"\s{2,}#", line.strip())[0].split("; ")
        else:
            written = [words for words in re.findall(r"`([^`]+)`", line) if " " in words]
        for command in written:
            command = re.sub(r"^[A-Z_]+=\S+ ", "", command)
            if program := re.match(PROGRAMS, command):
                name = re.sub(r"\.exe$", "", program[1])
                found.append(f"{name} {command[program.end() :].strip()}".strip())
    return found


def why_not_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command)), None)


def test_every_reason_not_to_run_a_command_is_still_needed() -> None:
    every = [command for page in FOR_USERS for command in commands_of(page)]
    assert len(every) >= 70
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, command) for command in every)] == []


def words_of(command: str) -> list[str]:
    return shlex.split(command.partition(" > ")[0].replace("\\", "\\\\"))[1:]


def check_words(app_: typer.Typer, words: list[str]) -> None:
    """Each word is a sub-command, an option of it, or an argument."""
    command: Any = typer.main.get_command(app_)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands") or not words or words[0].startswith("-") or command.invoke_without_command
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("-"):
            assert word in known | {"--help"}, f"{command.name} has no option {word}"


@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_exists_with_its_options(page: Path) -> None:
    from exporters.__main__ import app as exporters
    from training.cli.app import app as training

    for command in commands_of(page):
        words = [word for word in words_of(command) if word != "…"]
        if command.startswith("labref ") and "COMMAND" not in command:
            check_words(labref_app, words)
        elif command.startswith("python -m training"):
            check_words(training, words[2:])
        elif command.startswith("python -m exporters"):
            check_words(exporters, words[2:])
        elif command.startswith("python -m tests.benchmarks."):
            source = (ROOT / words[1].replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
            for word in words[2:]:
                assert not word.startswith("--") or f'"{word}"' in source, command
        elif command.startswith("make "):
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        else:
            assert why_not_run(command), command


class Bench:
    """A folder in which the commands of a page run, one after the other, as a person types them."""

    def __init__(self, folder: Path, cells: Path, bundle: Path) -> None:
        self.folder = folder
        self.export, self.lab, self.backup = folder / "export", folder / "lab", folder / "backup"
        for source in sorted(cells.iterdir()):
            (self.export / source.name).mkdir(parents=True)
            shutil.copy(min(source.iterdir()), self.export / source.name)
        shutil.copy(max(cells.rglob("*.jpg")), folder / "cell.jpg")
        assert bundle == folder / "mine.labref"
        first = min(self.export.rglob("*.jpg"))
        (folder / "review.csv").write_text(f"path,label\n{first.as_posix()},monocyte\n", encoding="utf-8")

    def meant(self, word: str) -> str:
        """What a word on a page stands for here."""
        if re.fullmatch(r"EXPORT|(D:|/mnt).*[Ee]xport", word):
            return str(self.export)
        if re.fullmatch(r"LAB|lab|.*[\\/]lab", word):
            return str(self.lab)
        return str(self.backup) if re.fullmatch(r"TARGET|.*/labref-backup", word) else word

    def run(self, command: str) -> None:
        words = [self.meant(word) for word in words_of(command)]
        if words[0] == "init" or words[:2] == ["store", "restore"]:
            shutil.rmtree(self.lab, ignore_errors=True)  # "move the lab folder away"
        if words[0] == "agent" and "--once" not in words:
            self.run_agent(words)
            return
        if str(self.lab) not in words:
            words += ["--lab", str(self.lab)]
        done = CliRunner().invoke(labref_app, words)
        # no agent runs here, and the doctor warns of that
        assert done.exit_code == (3 if words[0] == "doctor" else 0), (command, words, done.output, done.exception)

    def run_agent(self, words: list[str]) -> None:
        """Until it answers; then it is ended as a person ends it."""
        process = subprocess.Popen([sys.executable, "-m", "labref", *words], stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: AgentClient.find(Lab.open(self.lab)) is not None)
        finally:
            process.terminate()
            code = process.wait(timeout=60)
        assert code == 0 or sys.platform == "win32"


@pytest.mark.slow
@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_can_run_here_does(
    page: Path, tmp_path: Path, drawn_cells: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LABREF_LAB", raising=False)
    monkeypatch.chdir(tmp_path)
    bench = Bench(tmp_path, drawn_cells, another(starter, tmp_path, name="mine"))
    new_key(tmp_path / "hospital.key", "Our hospital")
    sign(tmp_path / "mine.labref", SigningKey.open(tmp_path / "hospital.key"))
    commands = [command for command in commands_of(page) if why_not_run(command) is None]
    assert commands or page.name in ("daily-use.md", "figures.md")
    if commands and "init" not in commands[0]:
        bench.run(f"labref init lab --watch {bench.export}")
    for command in dict.fromkeys(commands):  # what a page says again is not run again
        bench.run(command)
