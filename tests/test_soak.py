"""The soak: a minute of it, and what its figures are made of."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.benchmarks import soak as benchmark
from tests.benchmarks.exports import REPOSITORY


def test_a_day_of_an_analyser_leaves_a_balanced_ledger() -> None:
    """Everything that happens in twenty minutes, one after another; too short to judge what grows."""
    # started, not forked from another process of the tests: it has mounts of its own, and so have its children
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.soak", "--json", "--minutes", "0.2", "--seed", "3"],
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


def test_a_rise_is_that_of_most_samples_and_not_of_a_peak() -> None:
    at = [number / 50 for number in range(50)]
    steady = [300.0 + (40.0 if number in (7, 8, 30) else 0.0) for number in range(50)]
    assert benchmark._slope(at, steady) == 0
    rising = [value + 20 * share for value, share in zip(steady, at, strict=True)]
    assert benchmark._slope(at, rising) == pytest.approx(20, abs=1)
