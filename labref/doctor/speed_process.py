"""Measures one way to run the networks: `python -m labref.doctor.speed_process JSON`; see `labref.doctor.speed`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder
from labref.cpus import usable_cpus
from labref.errors import LabrefError
from labref.processes import lower_own_priority

__all__ = ["cells_a_second", "main", "other_programs", "work_of"]

# another program, which wants one processor for each that there is: it counts how much it gets done
_OTHER: Final = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    until, done = time.perf_counter() + float(line), 0
    while time.perf_counter() < until:
        sum(range(2000))
        done += 1
    print(done, flush=True)
"""


def main(given: dict[str, Any]) -> dict[str, Any]:
    """What `labref.operations.condition.Speed` has beside the way: cells a second in batches, milliseconds of a single
    cell, and the share of its work that another program keeps beside; or {"problem": why it cannot be run}."""
    seconds = float(given["seconds"])
    with other_programs(usable_cpus()) as others:  # started first: they have the priority that this process had
        if given["priority"] == "low":
            lower_own_priority()
        try:
            bundle = Bundle.open(Path(given["bundle"]))
            embedder = Embedder.open(
                bundle,
                device=given["device"],
                threads=given["threads"],
                batch_size=given["batch_size"],
                precision=given["precision"],
            )
            embedder.golden_difference()
        except LabrefError as error:
            return {"problem": str(error)}
        alone = work_of(others, seconds)
        in_batches = cells_a_second(embedder, embedder.batch_size, seconds)
        waited = 1000 / cells_a_second(embedder, 1, seconds)
        crops = _crops(embedder, embedder.batch_size)
        beside = work_of(others, seconds, lambda: embedder.embed(crops))
        return {
            "trunk": embedder.precision,
            "batch_size": embedder.batch_size,
            "cells_a_second": in_batches,
            "milliseconds_a_cell": waited,
            "left": min(1.0, beside / max(alone, 1e-9)),
        }


def cells_a_second(embedder: Embedder, cells: int, seconds: float) -> float:
    """Cells a second where so many are embedded at once, measured for so many seconds."""
    crops, done = _crops(embedder, cells), 0
    embedder.embed(crops)  # the first is slower
    began = time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        embedder.embed(crops)
        done += cells
    return done / took


def _crops(embedder: Embedder, cells: int) -> NDArray[np.uint8]:
    golden = embedder.bundle.golden(embedder.precision).crops
    return np.resize(golden, (cells, *golden.shape[1:]))


@contextlib.contextmanager
def other_programs(count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many programs that want a processor each, once `work_of` lets them."""
    others = [
        subprocess.Popen(
            [sys.executable, "-c", _OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        for _ in range(count)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        yield others
    finally:
        for other in others:
            other.kill()
            other.communicate()


def work_of(others: list[subprocess.Popen[str]], seconds: float, beside: Callable[[], object] | None = None) -> float:
    """How much all other programs get done in so many seconds, while `beside` is done again and again."""
    for other in others:
        assert other.stdin is not None
        other.stdin.write(f"{seconds}\n")
        other.stdin.flush()
    until = time.perf_counter() + seconds
    while beside is not None and time.perf_counter() < until:
        beside()
    done = 0
    for other in others:
        assert other.stdout is not None
        done += int(other.stdout.readline())
    return float(done)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
