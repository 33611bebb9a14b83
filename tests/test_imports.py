"""The arrows between the parts: the lab never needs what trains, and what trains prepares cells by the lab's own code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINING_ONLY = {"tensorflow", "keras", "tf2onnx", "onnx", "matplotlib"}
FORBIDDEN = {
    "labref": {"training", "exporters", "tests"} | TRAINING_ONLY,
    "training": {"exporters", "tests"},
    "exporters": {"tests"},
}


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
    assert "labref" in imported(ROOT / "training" / "data.py")


def test_the_command_and_the_agent_load_without_tensorflow() -> None:
    code = (
        "import sys, labref.cli, labref.inference, labref.query, training.evaluate;"
        f"print(sorted(set({sorted(TRAINING_ONLY)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
