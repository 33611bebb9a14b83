"""The soak: a minute of it, and what its figures are made of."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.benchmarks import soak as benchmark
from tests.benchmarks.exports import REPOSITORY


def test_a_day_of_an_analyser_leaves_a_balanced_ledger() -> None:
    """Everything that happens in twenty minutes, one after another; too short to judge what grows.

    Background work has the agent's priority, for other tests would go before it.
    """
    # started, not forked from another process of the tests: it has mounts of its own, and so have its children
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.soak", "--json", "--minutes", "0.05", "--seed", "3", "--same-priority",
         "--remember"],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert found["ok"] and done.returncode == 0
    events = found["events"]
    assert (events["restart"], events["kill"], events["map"], events["share lost and back"]) == (1, 1, 3, 3)
    assert events["bundle"] == events["bundle back"] == events["backup"] == events["clock ahead"] == 1
    if "full disk" in found["skipped"]:
        assert "root" in found["skipped"]["full disk"] or "mount" in found["skipped"]["full disk"]
    else:
        assert events["full disk"] == 3
    assert found["agents"] == 3
    assert sum(found["outcomes"].values()) == found["files"]
    # a cell that was signed is stored under a path that is no more, and its file is a duplicate
    assert 5 < found["outcomes"]["stored"] <= found["cells"]


def grown(rise_mb: float) -> benchmark._Soak:
    """A soak whose agent rose by so much, with three peaks, and had two bundles open for a fifth of the time."""
    run = object.__new__(benchmark._Soak)
    run.day, run._minutes = benchmark._Day(), 20.0
    for number in range(100):
        at, is_changing = number / 100, 40 <= number < 60
        own = 400.0 + rise_mb * at + (250.0 if is_changing else 0.0) + (80.0 if number in (11, 70, 97) else 0.0)
        run.day.samples.setdefault(3, []).append(benchmark._Sample(at, own, 130.0, 2, is_changing, 30, 25, 1000))
    return run


def test_a_change_of_bundle_is_told_of_and_is_no_growth() -> None:
    run = grown(20.0)
    found = run.growth()
    assert run.day.faults == []
    assert found["memory_mb"]["rise"] == pytest.approx(20 * 0.83, abs=0.5) and found["memory_mb"]["allowed"] == 64.0
    assert found["memory_mb"]["changing"] == pytest.approx(400 + 20 * 0.59 + 250 + 130, abs=1)
    assert (found["decoding_mb"], found["decoding_processes"]) == ([130.0, 130.0], 2)
    run = grown(90.0)
    assert run.growth()["memory_mb"]["rise"] == pytest.approx(90 * 0.83, abs=1)
    assert run.day.faults == ["memory rose by 74 MB, 64 are allowed"]
