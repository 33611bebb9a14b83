"""A lab changes to another bundle while its agent is killed: `python -m tests.benchmarks.reembed --json`.

A real `labref agent --once` fills a lab with cells of pbc (or drawn ones); another bundle, the starter with its latents
mixed at random into another space, is activated with a running agent. The agent is killed (SIGKILL, or what Windows has
for it) when a sixth, two sixths, ... of the cells are embedded again, and started anew; all the while `labref query`'s
own code asks for references, by the agent or, between two agents, from the store. In the end every cell must have its
latent in the new space, equal to what the networks give for its bytes, and the new bundle must answer. The rate is
given beside that of the bare networks: the same cells prepared and embedded in this process, with nothing stored.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from labref.bundles.bundle import install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.image import prepare
from labref.errors import LabrefError
from labref.lab import Lab
from labref.web import desk
from labref.web.desk import ask, status
from tests.benchmarks.exports import choose_source, labref_process, write_cells
from tests.bundles import another

__all__ = ["change_while_killed", "main"]

_COMPARED: Final = 256  # cells embedded again here, for their latents and for the time it takes
_PAUSE_SECONDS: Final = 0.3
_LOOK_SECONDS: Final = 0.2  # between two looks at how far the change is
_TRIES: Final = (
    5  # starts of an agent, as a service manager starts it again, while a question without agent has the store
)
_TOLERANCE: Final = 1e-2  # of latents about 1 to 10 in size: batches differ in the last bits
_QUIET: Final[dict[str, Any]] = {"stable_seconds": 0.05, "complete_seconds": 0.1}


def change_while_killed(
    folder: Path, *, cells: int, kills: int, seed: int, images: Path | None = None, minutes: float = 240.0
) -> dict[str, Any]:
    """Run the benchmark in `folder`, an empty folder. Returns the figures; `faults` is empty where all is well.

    minutes : the longest that it may take; it is then given up.
    """
    source, what = choose_source(images, seed)
    export = folder / "export"
    export.mkdir()
    files = write_cells(source, export, cells)
    starter = install(starter_bundle(), folder / "starter")
    other = another(starter, folder)
    lab = Lab.create(folder / "lab", [export], starter.folder)
    process = labref_process("agent", "--once", "--json", "--lab", lab.folder, **_QUIET)
    out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"labref agent --once exited {process.returncode}: {err.strip()}")
    taken = json.loads(out)
    list(desk.run(lab, "bundle.install", file=str(other), unsigned=True))
    faults: list[str] = []
    killed_at: list[int] = []
    deadline = time.monotonic() + 60 * minutes
    with _asking(lab, files[0]) as asked:
        agent = _start(lab)
        try:
            started = time.monotonic()
            (*_, change) = desk.run(lab, "bundle.activate", bundle="other", yes=True)
            total = change["cells"]
            done = change["embedded"]
            lost = 0.0
            while True:
                if time.monotonic() > deadline:
                    faults.append(f"not done after {minutes:g} minutes")
                    break
                found = status(lab)
                if found["bundle"]["name"] == "other":
                    break
                pending = found["bundle_change"]
                if pending is None:  # the switch fell between the two reads of the status, or the change is lost
                    lost = lost or time.monotonic()
                    if time.monotonic() - lost > 60:
                        faults.append("the wish to change was lost")
                        break
                    time.sleep(_LOOK_SECONDS)
                    continue
                if pending["embedded"] < done:
                    faults.append(f"latents were lost: {done} before, {pending['embedded']} after")
                done = pending["embedded"]
                if len(killed_at) < kills and done >= total * (len(killed_at) + 1) / (kills + 1):
                    agent.kill()
                    agent.communicate()
                    killed_at.append(done)
                    agent = _start(lab)
                time.sleep(_LOOK_SECONDS)
            seconds = time.monotonic() - started
            asked.switched.wait(60)
        finally:
            if agent.poll() is None:
                agent.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
            agent.communicate()
    if len(killed_at) < kills:
        faults.append(f"it was done before kill {len(killed_at) + 1} of {kills}")
    if sum(first != second for first, second in itertools.pairwise(asked.bundles)) != 1:
        faults.append("answers did not go from the old bundle to the new one once")
    faults += asked.problems
    with lab.open_store() as store, Embedder.open(lab.bundle(store), device="cpu") as embedder:
        coverage = store.changes.coverage(embedder.bundle.digest)
        if coverage.embedded != coverage.cells or coverage.failed:
            faults.append(f"{coverage.embedded} of {coverage.cells} cells are embedded, {coverage.failed} could not be")
        every = sorted(store.digests())
        digests = [every[i] for i in np.random.default_rng(seed).permutation(len(every))[:_COMPARED]]
        bare_started = time.monotonic()
        crops = np.stack([prepare(lab.read_image(digest)).crop for digest in digests])
        fresh = embedder.embed(crops).latents
        bare = len(digests) / (time.monotonic() - bare_started)
        kept = store.latents([digest[:16] for digest in digests], bundle=embedder.bundle.digest)
        away = [
            float(np.abs(kept[digest[:16]] - latent).max()) if digest[:16] in kept else float("inf")
            for digest, latent in zip(digests, fresh, strict=True)
        ]
        if max(away) > _TOLERANCE:
            faults.append(f"a stored latent is {max(away):.3g} away from what the networks give")
    times = np.array(asked.seconds)
    rate = total / seconds
    return {
        "cells": total,
        "source": what,
        "taken_in_cells_per_second": taken["cells_per_second"],
        "killed_at_cells": killed_at,
        "seconds": round(seconds, 1),
        "cells_per_second": round(rate, 2),
        "bare_networks_cells_per_second": round(bare, 2),
        "share_of_bare": round(rate / bare, 3),
        "largest_difference": max(away),
        "latents_compared": len(away),
        "queries": len(times),
        "query_seconds": {
            "median": round(float(np.median(times)), 3),
            "p99": round(float(np.quantile(times, 0.99)), 3),
            "largest": round(float(times.max()), 3),
        },
        "seed": seed,
        "faults": faults,
        "ok": not faults,
    }


class _Asked:
    """The answers to the queries that are asked all the time. switched : set once the new bundle has answered."""

    def __init__(self, old: str) -> None:
        self.old = old
        self.bundles: list[str] = []
        self.seconds: list[float] = []
        self.problems: list[str] = []
        self.switched = threading.Event()


@contextmanager
def _asking(lab: Lab, image: Path) -> Iterator[_Asked]:
    """Ask for references of `image` until the block ends."""
    data = image.read_bytes()
    asked = _Asked(ask(lab, data, name="first")["bundle"])
    ended = threading.Event()

    def ask_on() -> None:
        failed_since = None
        while not ended.is_set():
            started = time.monotonic()
            try:
                answer = ask(lab, data, name="cell")
            except LabrefError as error:
                # the agent was killed during the query: it is asked again, as a person would
                failed_since = failed_since or started
                if time.monotonic() - failed_since > 60:
                    asked.problems.append(f"no answer for a minute: {error}")
                    return
                continue
            if len(answer["references"]) != 8:
                asked.problems.append(f"{len(answer['references'])} references")
            asked.seconds.append(time.monotonic() - (failed_since or started))
            failed_since = None
            asked.bundles.append(answer["bundle"])
            if answer["bundle"] != asked.old:
                asked.switched.set()
            # between two agents the store itself is asked, and the next agent has to get hold of it
            ended.wait(_PAUSE_SECONDS)

    thread = threading.Thread(target=ask_on, name="asking")
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()


def _start(lab: Lab) -> Any:
    """An agent that serves, ready."""
    for _ in range(_TRIES):
        process = labref_process("agent", "--json", "--lab", lab.folder, **_QUIET)
        assert process.stdout is not None
        if process.stdout.readline():
            return process
        said = process.communicate()[1].strip()
    raise RuntimeError(f"labref agent did not start: {said}")


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=8091)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=Path, help="a folder of images; default ../shared/data/pbc, else drawn cells")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="labref-reembed-", ignore_cleanup_errors=True) as folder:
        found = change_while_killed(
            Path(folder), cells=asked.cells, kills=asked.kills, seed=asked.seed, images=asked.images
        )
    print(json.dumps(found) if asked.json else "\n".join(f"{name}: {value}" for name, value in found.items()))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
