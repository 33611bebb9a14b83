"""Whether training the map slows the agent down: `python -m tests.benchmarks.map --json`.

A lab gets `--cells` made-up cells (latents of a mixture of 12 clusters), so that its map has as many nodes as the
thesis recommends. Its agent runs in a process of its own and watches an empty export folder. `--rounds` times in turn,
`--files` real cells (else drawn ones) are copied into the folder while the agent does nothing else, and as many again
while it trains the map from the start. Each time the clock runs from the moment when the agent takes the first of them
until the last is embedded. Trainings follow each other until all cells are embedded. Queries for references by map are
asked one after the other: at rest, while the agent trains, and while it trains and takes in cells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from labref.bundles.bundle import starter_bundle
from labref.demo.analyser import Source
from labref.errors import LabrefError
from labref.lab import Lab
from labref.web import desk
from labref.web.client import AgentClient
from labref.web.desk import Desk
from tests.benchmarks.exports import choose_source, labref_process, write_cells
from tests.stores import new_cell

__all__ = ["main", "measure"]

_AT_ONCE = 512
_LONGEST_SECONDS = 900.0


def measure(
    folder: Path, *, bundle_file: Path, cells: int, files: int, rounds: int, queries: int, images: Path | None
) -> dict[str, Any]:
    """Measure in `folder`, an empty one; returns the figures. Raises RuntimeError where the agent does not do what it
    is asked."""
    source, what = choose_source(images, 1)
    export = folder / "export"
    export.mkdir()
    lab = Lab.create(folder / "lab", [export], bundle_file, unsigned=True)
    _fill(lab, cells)
    settings = lab.config_file.read_text(encoding="utf-8").replace("# enabled = true", "enabled = false")
    lab.config_file.write_text(settings, encoding="utf-8")
    process = labref_process("agent", "--json", "--lab", lab.folder, stable_seconds=0.3)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"the agent did not start: {process.communicate()[1]}")
        return {"source": what} | _serve(lab, source, export, cells=cells, files=files, rounds=rounds, queries=queries)
    finally:
        process.terminate()
        process.communicate(timeout=120)


def _serve(
    lab: Lab, source: Source, export: Path, *, cells: int, files: int, rounds: int, queries: int
) -> dict[str, Any]:
    agent = AgentClient.find(lab)
    if agent is None:
        raise RuntimeError("the agent does not answer")
    (first,) = [row for row in desk.run(lab, "map.train") if "progress" not in row]
    asked = Desk(lab, agent, None)
    question = write_cells(source, lab.folder.parent / "questions", 1)[0].read_bytes()
    written = 0

    def take_in() -> float:
        nonlocal written
        before = int(next(agent.perform("status", {}))["agent"]["embedded"])
        write_cells(source, export, files, first=written)
        written += files
        return _rate(agent, before, files)

    take_in()  # warm
    usual, training, seconds = [], [], []
    at_rest = [_ask(asked, question) for _ in range(queries)]
    while_training: list[float] = []
    with_both: list[float] = []
    for _ in range(rounds):
        usual.append(take_in())
        with _Trainings(lab) as trainings:
            while_training += [_ask(asked, question) for _ in range(queries // rounds)]
            asking = threading.Event()
            asker = threading.Thread(target=_ask_on, args=(asked, question, asking, with_both))
            training.append(take_in())
            # apart, so that the ingest is compared without queries beside it
            asker.start()
            take_in()
            asking.set()
            asker.join()
        seconds += trainings.seconds
    p99 = {
        "rest": _p99(at_rest),
        "training": _p99(while_training),
        "training_and_ingest": _p99(with_both),
    }
    return {
        "ingest_ratio": round(statistics.median(training) / statistics.median(usual), 4),
        "ingest_usual_cells_per_s": round(statistics.median(usual), 2),
        "ingest_training_cells_per_s": round(statistics.median(training), 2),
        "ingest_usual_each": [round(rate, 2) for rate in usual],
        "ingest_training_each": [round(rate, 2) for rate in training],
        "query_p99_ms": p99["training"],
        "query_p99_ms_by_load": p99,
        "query_median_ms_at_rest": round(statistics.median(at_rest), 2),
        "query_median_ms_training": round(statistics.median(while_training), 2),
        "queries": {"rest": len(at_rest), "training": len(while_training), "training_and_ingest": len(with_both)},
        "map": {name: first[name] for name in ("rows", "columns", "qe", "te", "seconds")},
        "trainings": len(seconds),
        "training_seconds": [round(value, 2) for value in seconds],
        "cells": cells,
        "files_each": files,
        "cpu_count": os.cpu_count(),
    }


class _Trainings:
    """Trains maps from the start, one after the other, until the block ends. seconds : duration of each training."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._end = lab, threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seconds: list[float] = []
        self._failed: list[LabrefError] = []

    def __enter__(self) -> _Trainings:
        self._thread.start()
        if not self._begun.wait(_LONGEST_SECONDS):
            raise RuntimeError("the training did not begin")
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self._failed:
            raise RuntimeError(f"a training failed: {self._failed[0]}")

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                for row in desk.run(self._lab, "map.train", full=True):
                    if "progress" in row and "radius" in row["progress"]["text"]:
                        self._begun.set()
                    if "progress" not in row:
                        self.seconds.append(row["seconds"])
                        self._begun.set()
        except LabrefError as error:
            self._failed.append(error)
            self._begun.set()


def _fill(lab: Lab, cells: int) -> None:
    rng = np.random.default_rng(0)
    with lab.open_store() as store:
        bundle = store.bundles()[0]
        centres = rng.standard_normal((12, bundle.latent_size)) * 3
        labels = list(bundle.labels)
        probabilities = np.full(len(labels), 1 / len(labels), np.float32)
        for start in range(0, cells, _AT_ONCE):
            batch = []
            for number in range(start, min(start + _AT_ONCE, cells)):
                latent = (centres[number % 12] + rng.standard_normal(bundle.latent_size)).astype(np.float32)
                label = labels[number % 12 % len(labels)]
                batch.append(
                    new_cell(number, latent=latent, label=label, predicted_label=label, probabilities=probabilities)
                )
            store.record(batch, bundle=bundle.digest)


def _rate(agent: AgentClient, before: int, files: int) -> float:
    """Cells a second, from the moment when the agent takes the first of these cells until it has embedded the last.
    before : number of cells embedded earlier."""
    begun = None
    waited_from = time.monotonic()
    while True:
        state = next(agent.perform("status", {}))["agent"]
        now = time.monotonic()
        if begun is None and (state["in_flight"] or state["embedded"] > before):
            begun = now
        if begun is not None and state["embedded"] >= before + files:
            return files / max(now - begun, 1e-3)
        if now - waited_from > _LONGEST_SECONDS:
            raise RuntimeError(f"the agent embedded {state['embedded'] - before} of {files} cells")
        time.sleep(0.02)


def _ask(asked: Desk, image: bytes) -> float:
    """Milliseconds that one query takes, as its asker sees it."""
    started = time.perf_counter()
    asked.ask(image, name="x", k=8, by="map")
    return 1e3 * (time.perf_counter() - started)


def _ask_on(asked: Desk, image: bytes, end: threading.Event, into: list[float]) -> None:
    while not end.is_set():
        into.append(_ask(asked, image))
        end.wait(0.05)


def _p99(values: list[float]) -> float | None:
    return round(float(np.percentile(values, 99)), 2) if values else None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.map", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=62_000, help="in the store when the agent starts (default 62000)")
    parser.add_argument("--files", type=int, default=128, help="taken in each time (default 128)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way (default 3)")
    parser.add_argument("--queries", type=int, default=150, help="of each kind (default 150)")
    parser.add_argument("--images", type=Path, help="folder of images (default ../shared/data/pbc, else drawn cells)")
    parser.add_argument("--bundle", type=Path, help="bundle file (default: the starter bundle)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-map-") as folder:
        figures = measure(
            Path(folder),
            bundle_file=options.bundle or starter_bundle(),
            cells=options.cells,
            files=options.files,
            rounds=options.rounds,
            queries=options.queries,
            images=options.images,
        )
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"ingest while training: {figures['ingest_ratio']:.0%} of its usual {figures['ingest_usual_cells_per_s']} cells/s"
        )
        print(f"queries: p99 {figures['query_p99_ms_by_load']} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
