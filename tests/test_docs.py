"""What the pages for people say of files is true: paths, names in them, links, and the table of rooms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
