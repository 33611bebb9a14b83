"""The arrows between the parts, and between the rooms of labref and of training: none leads up, and the tables of them
are true."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest
from tests.benchmarks.exports import process_of_tests

ROOT = Path(__file__).parents[1]
TRAINING_ONLY = {"tensorflow", "keras", "tf2onnx", "onnx", "matplotlib"}
FORBIDDEN = {
    "labref": {"training", "exporters", "tests"} | TRAINING_ONLY,
    "training": {"exporters", "tests"},
    "exporters": {"tests"},
}
# labref's rooms, lowest first, and which rooms below each imports; see labref/README.md
ROOMS = {
    "words": "",
    "errors": "",
    "failpoints": "",
    "files": "",
    "progress": "",
    "printing": "",
    "times": "",
    "cpus": "",
    "heap": "",
    "roles": "",
    "processes": "",
    "config": "words errors files printing",
    "cells": "words errors processes cpus",
    "bundles": "words errors failpoints files printing cpus heap processes cells",
    "som": "errors failpoints processes bundles",
    "pictures": "printing cells",
    "packs": "words errors files cells bundles",
    "export": "words errors printing config",
    "store.text": "",
    "store.memory": "words",
    "store.values": "words",
    "store.recording": "words errors store.text store.memory store.values",
    "store.duckdb": "words errors failpoints files store.text store.memory store.values store.recording roles",
    "store": "words errors failpoints store.text store.memory store.values store.recording store.duckdb",
    "shared": "words errors failpoints files progress store.memory",
    "lab": "words errors failpoints files config cells bundles som export store.values store",
    "asking": "words errors files progress times cells bundles som export store.memory store shared lab",
    "tasks": "words errors failpoints files progress times heap config cells bundles som export store.memory store.duckdb store shared lab asking",
    "operations": "words errors failpoints files progress printing times config cells bundles som export store.memory store.duckdb store lab asking tasks packs roles",
    "web": "words errors files progress printing cpus bundles pictures export store shared lab asking tasks operations roles",
    "service": "errors files lab",
    "doctor": "errors files processes cpus times bundles export lab asking operations web service",
    "agent": "words errors failpoints files processes printing times cpus cells bundles export store lab asking tasks operations web",
    "cli": "errors files progress printing times config cells som pictures export shared lab tasks operations web service doctor agent roles",
    "demo": "errors cells bundles lab web cli",
    "__main__": "cli",
    "labref": "",
}
UP = {("cli", "demo")}  # the demo shows its answers as `labref query` does, and is itself a command
# training's rooms, likewise
TRAINING = {
    "progress": "",
    "settings": "",
    "config": "settings",
    "data": "",
    "run": "settings config data",
    "environment": "run",
    "augmentation": "config",
    "networks": "settings config data run augmentation",
    "measure": "config data run networks",
    "report": "data run networks measure",
    "cli": "progress settings config data run environment networks measure report",
    "__main__": "cli",
    "training": "",
}
PARTS = {"labref": (ROOMS, UP), "training": (TRAINING, set[tuple[str, str]]())}
LEAVES = ("memory", "duckdb", "values", "recording", "text")  # of the store


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("part", sorted(FORBIDDEN))
def test_imports_point_one_way(part: str) -> None:
    files = sorted((ROOT / part).rglob("*.py"))
    assert len(files) >= 5
    wrong = {str(f.relative_to(ROOT)): imported(f) & FORBIDDEN[part] for f in files if imported(f) & FORBIDDEN[part]}
    assert not wrong


def test_training_prepares_cells_by_the_lab_code() -> None:
    assert "labref" in imported(ROOT / "training" / "data" / "images.py")


def test_the_command_and_the_agent_load_without_tensorflow() -> None:
    code = (
        "import sys, labref.cli, labref.bundles.inference, labref.asking.answer, training.measure.evaluate;"
        f"print(sorted(set({sorted(TRAINING_ONLY)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_no_file_of_tests_loads_tensorflow_before_a_test_runs() -> None:
    """All workers of a run import all files of tests, and each would load it."""
    assert not conftest.LOADED_TO_COLLECT


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")
def test_a_forked_process_has_imported_what_a_picture_needs(drawn_cells: Path) -> None:
    """Hundreds are forked in a run, and each would import it anew."""
    process = process_of_tests("late_imports", str(sorted(drawn_cells.rglob("*.jpg"))[0]))
    said, errors = process.communicate()
    assert (process.returncode, said.split()) == (0, []), errors


def room_of(module: str) -> str:
    part, *parts = module.split(".")
    if part == "labref" and parts[:1] == ["store"] and parts[1:2] and parts[1] in LEAVES:
        return ".".join(parts[:2])
    return parts[0] if parts else part


def arrows(part: str) -> dict[tuple[str, str], set[str]]:
    """(room, room it imports) and the modules that do so; imports inside functions, and for types only, count as
    well."""
    files = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / part).rglob("*.py")}
    modules = {name.removesuffix(".__init__") for name in files.values()}
    found: dict[tuple[str, str], set[str]] = {}
    for path, name in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name} imports relatively"
            targets = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    targets.append(inner if inner in modules else node.module)
            for target in targets:
                if target.startswith(f"{part}."):
                    pair = room_of(name.removesuffix(".__init__")), room_of(target)
                    if pair[0] != pair[1]:
                        found.setdefault(pair, set()).add(name)
    return found


@pytest.mark.parametrize("part", PARTS)
def test_every_arrow_between_rooms_is_in_the_table(part: str) -> None:
    rooms, up = PARTS[part]
    listed = {(room, below) for room, names in rooms.items() for below in names.split()} | up
    found = arrows(part)
    assert {pair: found[pair] for pair in found.keys() - listed} == {}
    assert listed - found.keys() == set(), "the table lists arrows that are no more"


@pytest.mark.parametrize("part", PARTS)
def test_no_arrow_leads_up(part: str) -> None:
    rooms, up = PARTS[part]
    order = list(rooms)
    assert {(a, b) for a, b in arrows(part) if order.index(b) >= order.index(a)} == up


@pytest.mark.parametrize("part", PARTS)
def test_every_room_says_what_it_holds(part: str) -> None:
    for package in sorted((ROOT / part).rglob("__init__.py")):
        assert ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))), package


def test_the_store_loads_without_pictures_and_networks() -> None:
    code = "import sys, labref.store; print(sorted({'PIL', 'imagehash', 'onnxruntime', 'minisom'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_agent_loads_without_the_pages_until_somebody_asks_for_one() -> None:
    code = (
        "import sys, labref.cli, labref.agent.service;"
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'jinja2', 'labref.web.pages'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
