"""What is freed goes back to the system: an agent that runs for months takes no more memory for what is gone."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog

from labref import heap
from labref.tasks.jobs import Job, Jobs

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library"
)


def held() -> float:
    """What this process holds, MB."""
    return psutil.Process().memory_info().rss / 1e6


def freed_below_something_kept() -> bytearray:
    """100 MB are freed; glibc keeps them, as the last piece lives on above."""
    pieces = [bytearray(50_000) for _ in range(2000)]
    return pieces[-1]


@glibc
def test_what_was_freed_goes_back() -> None:
    kept = freed_below_something_kept()
    before = held()
    heap.give_back()
    assert held() < before - 50
    assert len(kept) == 50_000


@glibc
def test_a_job_that_ended_holds_nothing() -> None:
    kept: list[bytearray] = []
    before = held()
    jobs = Jobs(structlog.get_logger())
    try:
        assert jobs.submit(Job("report", lambda running: kept.append(freed_below_something_kept())))
        assert jobs.wait_idle(30)
        assert held() < before + 40
    finally:
        jobs.close()


NETWORKS = """
import json, sys
import numpy as np
from pathlib import Path
from labref.bundles.bundle import install, starter_bundle
from labref.bundles.inference import Embedder
from labref.heap import give_back
from tests.test_heap import held

bundle = install(starter_bundle(), Path(sys.argv[1]))
crops = np.random.default_rng(0).integers(0, 255, (16, 256, 256, 3), dtype=np.uint8)
active = Embedder.open(bundle, device="cpu")
alone = active.embed(crops[:1])
told = {"alone": held()}
active.embed(crops)
told["many"] = held()
again = active.embed(crops[:1])
told["same"] = bool((again.latents == alone.latents).all())
give_back()
told["few"] = held()
told["changed"] = []
for _ in range(3):  # the bundle is changed: the networks of two are open for a while
    other = Embedder.open(bundle, device="cpu")
    other.embed(crops)
    active.close()
    active = other
    told["changed"].append(held())
print(json.dumps(told))
"""
"""In a process of its own: those of the tests share one session, which remembers its answers."""


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process held, MB: after one cell, after many, after one again; after each change of the bundle."""
    words = [sys.executable, "-c", NETWORKS, str(tmp_path_factory.mktemp("networks"))]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@glibc
def test_networks_that_were_closed_leave_nothing_behind(networks: dict[str, Any]) -> None:
    first, _, last = networks["changed"]
    assert last < first + 15


@glibc
def test_after_many_cells_at_once_a_few_let_go_of_their_memory(networks: dict[str, Any]) -> None:
    assert networks["many"] > networks["alone"] + 40
    assert networks["few"] < networks["alone"] + 15
    assert networks["same"], "it is the same answer"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_trim", lambda: None)
    heap.give_back()
