"""What an agent at work leaves to other programs: `python -m tests.benchmarks.beside --json`.

An agent takes in real cells as fast as it can while as many other programs as there are processors want one each, as
the analyser's own software might. `left` is the share of their work that they keep, of what they do while the agent
has nothing to do; `cells_a_second` is what the agent stores meanwhile, and `alone` what it stores without them. All for
each setting of `[agent]`: priority normal and low, all processors and one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from labref.bundles.bundle import starter_bundle
from labref.config import set_values
from labref.cpus import usable_cpus
from labref.doctor.speed_process import other_programs, work_of
from labref.lab import Lab
from labref.web.client import AgentClient
from tests.benchmarks.exports import choose_source, tell, write_cells
from tests.labs import running_agent

__all__ = ["main", "measure"]

_SETTINGS = (("normal", 0), ("low", 0), ("normal", 1), ("low", 1))
_START_SECONDS = 5.0  # from written files to an agent in full work


def measure(folder: Path, *, seconds: float, files: int, seed: int = 1) -> dict[str, Any]:
    """The figures of each setting, in `folder`, an empty one. files : pictures for each of the two measurements."""
    found = []
    with other_programs(usable_cpus()) as others:
        for priority, cpus in _SETTINGS:
            place = folder / f"{priority}-{cpus}"
            export = place / "export"
            export.mkdir(parents=True)
            lab = Lab.create(place / "lab", [export], starter_bundle())
            set_values(
                lab.config_file,
                {("agent", "priority"): priority, ("agent", "cpus"): cpus, ("map", "enabled"): False},
            )
            source, named = choose_source(None, seed)
            with running_agent(lab, stable_seconds=0.5):
                idle = work_of(others, seconds)
                write_cells(source, export / "alone", files)
                alone = _rate(lab, seconds)
                _wait_for(lab, files)
                write_cells(source, export / "beside", files, first=files)
                left: list[float] = []
                beside = _rate(lab, seconds, lambda others=others, left=left: left.append(work_of(others, seconds)))
            found.append(
                {
                    "priority": priority,
                    "cpus": cpus or usable_cpus(),
                    "alone": round(alone, 2),
                    "cells_a_second": round(beside, 2),
                    "left": round(left[0] / idle, 3),
                }
            )
            print(found[-1], file=sys.stderr)
    return {"data": named, "seconds": seconds, "processors": os.cpu_count(), "settings": found}


def _rate(lab: Lab, seconds: float, work: Any = None) -> float:
    """Cells that are stored a second, from the time on when the agent has begun; `work` is done meanwhile."""
    time.sleep(_START_SECONDS)
    before, began = _stored(lab), time.monotonic()
    if work is None:
        time.sleep(seconds)
    else:
        work()
    return (_stored(lab) - before) / (time.monotonic() - began)


def _status(lab: Lab) -> dict[str, Any]:
    client = AgentClient.find(lab)
    assert client is not None, "the agent ended"
    return dict(next(client.perform("status", {})))


def _stored(lab: Lab) -> int:
    return int(_status(lab)["cells"])


def _wait_for(lab: Lab, files: int) -> None:
    while sum(_status(lab)["outcomes"].values()) < files:
        time.sleep(0.5)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement (default 20)")
    parser.add_argument("--files", type=int, default=600, help="pictures for each (default 600)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tell(measure(Path(folder), seconds=options.seconds, files=options.files), as_json=options.json)


if __name__ == "__main__":
    main()
