"""An agent killed again and again: `python -m tests.benchmarks.kill --json --rounds 20`.

Before every round the analyser exports more cells. A real `labref agent --once` starts, and is killed (by SIGKILL, or
its equivalent on Windows) at a random moment before the end of its pass. The store is opened after every kill. At the
end one pass runs undisturbed, and the lab is checked: every file has one outcome, no cell is stored twice, every cell
has its original bytes, with the right digest, and one embedding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labref.bundles.bundle import starter_bundle
from labref.lab import Lab
from tests.benchmarks.exports import choose_source, labref_process, write_cells

__all__ = ["kill_again_and_again", "main"]


def kill_again_and_again(
    folder: Path, *, bundle: Path, rounds: int, cells: int, seed: int, images: Path | None = None
) -> dict[str, Any]:
    """Run the benchmark in `folder`, an empty folder. Returns the figures; `faults` is empty where all is well.

    cells : number of cells exported before each round. Raises RuntimeError where a pass without a kill fails.
    """
    rng = random.Random(seed)
    source, what = choose_source(images, seed)
    export = folder / "export"
    export.mkdir()
    files = write_cells(source, export, cells)
    files += _odd_files(export, files)
    lab = Lab.create(folder / "lab", [export], bundle, unsigned=True)
    # how long a start and a pass take here: moments to kill at are drawn from all of it
    rehearsal = Lab.create(folder / "rehearsal", [export], bundle, unsigned=True)
    started = time.monotonic()
    summary = _pass(rehearsal)
    took = time.monotonic() - started
    faults: list[str] = []
    kills: list[float] = []
    early = 0
    opened = 0
    stored_after: list[int] = []
    while len(kills) < rounds:
        if early > 2 * rounds:
            raise RuntimeError(f"only {len(kills)} of {rounds} kills found the agent still at work")
        moment = rng.uniform(0.02 * took, took)
        process = _agent(lab)
        try:
            process.wait(timeout=moment)
            early += 1
        except subprocess.TimeoutExpired:
            process.kill()
            kills.append(round(moment, 3))
        said = process.communicate()
        if process.returncode == 1:
            faults.append(f"the agent failed: {said[1].strip()}")
        with _opened(lab, faults) as store:
            opened += 1
            stored_after.append(store.counts().files if store is not None else -1)
        fresh = write_cells(source, export, cells, first=len(files))
        files += fresh
    _pass(lab)
    again = _pass(lab)
    if again["embedded"] or again["found"] != again["unchanged"]:
        faults.append(f"a further pass found something to do: {again}")
    faults += list(_faults(lab, files))
    return {
        "rounds": rounds,
        "killed": len(kills),
        "ended_before_the_kill": early,
        "killed_at_seconds": kills,
        "undisturbed_seconds": round(took, 3),
        "undisturbed_pass_seconds": summary["seconds"],
        "files_recorded_after_each": stored_after,
        "store_opened": opened,
        "files": len(files),
        "cells": _cells(lab),
        "source": what,
        "seed": seed,
        "faults": faults,
        "ok": not faults,
    }


def _odd_files(export: Path, cells: list[Path]) -> list[Path]:
    """A copy of a cell, a truncated one, an empty one, and one that is no image."""
    first = cells[0]
    odd = {
        export / f"copy{first.suffix}": first.read_bytes(),
        export / "truncated.jpg": first.read_bytes()[:3000],
        export / "empty.jpg": b"",
        export / "text.jpg": b"no image at all\n",
    }
    for path, data in odd.items():
        path.write_bytes(data)
    return list(odd)


def _agent(lab: Lab) -> subprocess.Popen[str]:
    # the export's files are new; waiting for them is not what is tried here
    return labref_process("agent", "--once", "--json", "--lab", lab.folder, stable_seconds=0.05, complete_seconds=0.1)


def _pass(lab: Lab) -> dict[str, Any]:
    process = _agent(lab)
    out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"labref agent --once exited {process.returncode}: {err.strip()}")
    summary: dict[str, Any] = json.loads(out)
    return summary


@contextmanager
def _opened(lab: Lab, faults: list[str]) -> Iterator[Any]:
    try:
        store = lab.open_store()
    except Exception as error:
        faults.append(f"the store did not open: {error}")
        yield None
        return
    with store:
        yield store


def _cells(lab: Lab) -> int:
    with lab.open_store() as store:
        return store.counts().cells


def _faults(lab: Lab, files: list[Path]) -> Iterator[str]:
    """The list of faults found in the lab."""
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name not in _UNUSABLE}
    with lab.open_store() as store:
        rows = list(store.ledger())
        paths = Counter(row.path for row in rows)
        if twice := [path for path, n in paths.items() if n > 1]:
            yield f"{len(twice)} files have more than one outcome"
        if lost := {str(path) for path in files} - paths.keys():
            yield f"{len(lost)} files have no outcome"
        if strange := paths.keys() - {str(path) for path in files}:
            yield f"{len(strange)} outcomes belong to no file"
        rejected = {Path(row.path).name for row in rows if row.outcome == "rejected"}
        if rejected != _UNUSABLE:
            yield f"rejected are {sorted(rejected)}, not {sorted(_UNUSABLE)}"
        ids = [digest[:16] for digest in digests]
        stored = store.cells(ids)
        if store.counts().cells != len(digests) or len(stored) != len(digests):
            yield f"{store.counts().cells} cells are stored, of {len(digests)} different images"
        bundle = store.active_bundle() or ""
        if set(store.latents(ids, bundle=bundle)) != set(stored):
            yield "not every cell has one embedding"
    kept = {path.name for path in lab.images.rglob("*") if path.is_file()}
    if kept != digests:
        yield f"{len(digests - kept)} cells lack their original bytes, {len(kept - digests)} files belong to no cell"
    for digest in digests & kept:
        try:
            lab.read_image(digest)
        except Exception as error:
            yield str(error)


_UNUSABLE = {"truncated.jpg", "empty.jpg", "text.jpg"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.kill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how many kills (default 20)")
    parser.add_argument("--cells", type=int, default=48, help="cells exported before each round (default 48)")
    parser.add_argument("--seed", type=int, default=1, help="of the cells and the moments (default 1)")
    parser.add_argument("--images", type=Path, help="folder of images (default ../shared/data/pbc, else drawn cells)")
    parser.add_argument("--bundle", type=Path, help="bundle file (default: the starter bundle)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-kill-") as folder:
        figures = kill_again_and_again(
            Path(folder),
            bundle=options.bundle or starter_bundle(),
            rounds=options.rounds,
            cells=options.cells,
            seed=options.seed,
            images=options.images,
        )
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"killed {figures['killed']} times, store opened {figures['store_opened']} times; {figures['files']} files"
        )
        print("\n".join(figures["faults"]) or "nothing lost, nothing twice")
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
