"""How fast this computer runs the lab's networks, by device, threads, precision and priority, and what is left
meanwhile for another program such as the analyser's own.

Each way is measured in a process of its own (`labref.doctor.speed_process`), so that none profits from what the one
before has loaded, and one that crashes is told.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from labref.bundles.bundle import Bundle
from labref.bundles.inference import cuda_problem
from labref.cpus import usable_cpus
from labref.lab import Lab
from labref.operations.condition import Speed
from labref.processes import start_child
from labref.web.desk import Desk

__all__ = ["LEFT", "Way", "best", "bundle_in_use", "measure", "of_best_batch", "other_batches", "ways"]

LEFT: Final = 0.75
"""Share of their work that programs on all processors are to keep while cells are embedded."""
_START_SECONDS: Final = 120.0
_GAIN: Final = 1.05  # by so much another size of a batch has to be faster


@dataclass(frozen=True)
class Way:
    """One way to run the networks, by the words of labref.toml. threads : of the CPU.  batch_size : crops at once; None
    takes the device's own."""

    device: str
    threads: int
    precision: str
    priority: str
    batch_size: int | None = None


def ways(bundle: Bundle) -> list[Way]:
    """The ways to run a bundle that can differ on this computer."""
    precisions = {trunk.precision for trunk in bundle.manifest.trunks if trunk.admitted}
    cpus = usable_cpus()
    counts = sorted({1, *(count for count in (2, 4, 8, 16, 32, cpus // 2, cpus - 1, cpus) if 1 <= count <= cpus)})
    found = [
        Way("cpu", count, precision, priority)
        for precision in ("auto", "full")
        if precision == "full" or "int8" in precisions
        for count in counts
        for priority in ("normal", "low")
    ]
    if cuda_problem() is None:
        found += [
            Way("cuda", cpus, precision, "normal")
            for precision in ("auto", "full")
            if precision == "full" or "float16" in precisions
        ]
    return found


def other_batches(chosen: Speed) -> list[Way]:
    """The same way with smaller and larger batches."""
    sizes = (4, 8, 32) if chosen.device == "cpu" else (32, 256, 512)
    return [Way(chosen.device, chosen.threads, chosen.precision, chosen.priority, size) for size in sizes]


def of_best_batch(chosen: Speed, others: Sequence[Speed], left: float = LEFT) -> Speed:
    """The chosen way, or the one of `others`, which differ from it in their batches alone, that is better by more than
    the figures vary."""
    found = best([chosen, *others], left)
    gain = ((found.cells_a_second or 0.0) if found else 0.0) / (chosen.cells_a_second or 1.0)
    return found if found is not None and gain > _GAIN else chosen


def bundle_in_use(lab: Lab) -> Bundle:
    """The bundle that the lab's agent runs, verified. Raises `LabrefError` where there is none."""
    with Desk.open(lab) as desk:
        (status,) = desk.run("status")
    return Bundle.installed(lab.bundles, status["bundle"]["digest"])


def best(found: Sequence[Speed], left: float = LEFT) -> Speed | None:
    """The way that embeds most cells a second of those that leave another program its share; where none does, the one
    that leaves it most. None where none can be run."""
    works = [speed for speed in found if speed.problem is None]
    enough = [speed for speed in works if speed.left is not None and speed.left >= left]
    if enough:
        return max(enough, key=lambda speed: speed.cells_a_second or 0.0)
    return max(works, key=lambda speed: speed.left or 0.0, default=None)


def measure(bundle: Bundle, way: Way, seconds: float) -> Speed:
    """Measure one way, four times for so many seconds."""
    given = json.dumps({"bundle": str(bundle.folder), "seconds": seconds, **asdict(way)})
    try:
        process = start_child(
            "labref.doctor.speed_process", given, errors=subprocess.DEVNULL, low_priority=way.priority == "low"
        )
    except OSError as error:
        return Speed(**asdict(way), problem=f"no process could be started: {error.strerror}")
    with process:
        try:
            said, _ = process.communicate(timeout=_START_SECONDS + 10 * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return Speed(**asdict(way), problem="it did not end in time")
        except BaseException:  # Ctrl-C: the child goes too
            process.kill()
            raise
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        return Speed(**asdict(way), problem=f"its process ended with {process.returncode}")
    return Speed(**(asdict(way) | answer))
