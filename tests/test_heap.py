"""What is freed goes back to the system: an agent that runs for months takes no more memory for what is gone."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import psutil
import pytest
import structlog

from labref import heap
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder
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


@glibc
def test_networks_that_were_closed_leave_nothing_behind(starter: Bundle) -> None:
    crops = np.random.default_rng(0).integers(0, 255, (16, 256, 256, 3), dtype=np.uint8)
    after = []
    active = Embedder.open(starter, device="cpu")
    for _ in range(3):  # the bundle is changed: the networks of two are open for a while
        other = Embedder.open(starter, device="cpu")
        other.embed(crops)
        active.close()
        active = other
        after.append(held())
    active.close()
    assert after[-1] < after[0] + 15


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_trim", lambda: None)
    heap.give_back()
