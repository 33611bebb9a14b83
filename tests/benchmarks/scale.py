"""What people wait for in a lab of a million cells: `python -m tests.benchmarks.scale --json`.

A lab is made with the starter bundle and made-up cells in its space. They have no images: the reading of kept bytes is
measured apart, on --images files. Then, in this order:

agent           a real `labref agent` is started: seconds until it is ready, and until it has answered its first query
                with an image, embedded and searched; memory (RSS, MB) after ten queries; then the agent is ended
check           `labref ledger --check --quick`: seconds until the store's own summary, and until the end
store_check     `labref store check`: every block read
query           references for a latent (search, spread, novelty, rows), without inference: alone; while cells are
                recorded as fast as a microscope delivers (--rate cells a second); and while they are recorded as fast
                as the store takes them
record          milliseconds for each cell, in batches of 32, beside those queries and alone
digests         kept images per second that are read and compared with their digests
backup          seconds to copy the store while it is open, and to compare all values of the copy
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from labref.asking import references
from labref.bundles.bundle import Bundle, starter_bundle
from labref.cells.hashes import digest
from labref.cells.sameness import DEFAULTS
from labref.lab import Lab
from labref.operations import perform
from labref.store import NewCell, Resemblance, Store
from labref.tasks.context import Context
from labref.web.client import AgentClient
from labref.words import Verdict
from tests.benchmarks.exports import choose_source, labref_process, tell
from tests.benchmarks.query import build, latents_of, note, times
from tests.stores import new_cell

__all__ = ["main", "measure"]

_BATCH = 32


def measure(folder: Path, *, cells: int, queries: int, rate: float, images: int, seconds: float) -> dict[str, Any]:
    """Build and measure in `folder`, an empty folder; returns the fields described above. seconds : of each mixed
    load."""
    export = folder / "export"
    export.mkdir()
    lab = Lab.create(folder / "lab", [export], starter_bundle())
    with lab.open_store() as store:
        bundle = lab.bundle(store)
    manifest = bundle.manifest
    lab.store_file.unlink()
    build(lab.store_file, "clustered", cells, manifest.latent_size, digest=bundle.digest, labels=manifest.labels)
    result: dict[str, Any] = {"cells": cells, "store_mb": round(lab.store_file.stat().st_size / 1e6)}
    note("the agent")
    result["agent"] = _agent(lab)
    questions = list(latents_of("clustered", 0, queries, manifest.latent_size)[0])
    with lab.open_store() as store:
        note("checks")
        result["check"], result["store_check"] = _checks(lab, store)
        store.build_index()
        store.has_digest("0" * 64)

        def ask(latent: Any) -> object:
            return references.find(store, bundle=bundle, latent=latent, digest=None)

        note("queries")
        result["query"] = {"alone": times(questions, ask)}
        with _recording(store, bundle, rate) as recorded:
            result["query"]["beside_ingest"] = _for_seconds(questions, ask, seconds)
        result["record"] = {"beside_queries": recorded()}
        with _recording(store, bundle, None) as recorded:
            result["query"]["beside_bulk_ingest"] = _for_seconds(questions, ask, seconds)
        result["record"]["bulk_beside_queries"] = recorded()
        with _recording(store, bundle, None) as recorded:
            time.sleep(seconds)
        result["record"]["bulk_alone"] = recorded()
        result["rss_mb"] = round(psutil.Process().memory_info().rss / 1e6)
        note("backup")
        started = time.perf_counter()
        store.copy_to(folder / "copy.duckdb")
        result["backup"] = {"store_seconds": round(time.perf_counter() - started, 2)}
    result["digests"] = _digests(folder / "images", images)
    result["machine"] = f"{psutil.cpu_count()} cores, {platform.machine()}, load {psutil.getloadavg()[0]:.1f}"
    return result


def _agent(lab: Lab) -> dict[str, Any]:
    # a map would be trained meanwhile; its own benchmark measures that
    os.environ["LABREF_MAP__ENABLED"] = "false"
    image = next(iter(choose_source(None, 1)[0].take(1))).data
    started = time.perf_counter()
    process = labref_process("agent", "--json", "--lab", lab.folder, passed=("LABREF_MAP__ENABLED",))
    try:
        assert process.stdout is not None and process.stderr is not None
        if not process.stdout.readline():
            raise RuntimeError(process.stderr.read())
        ready = time.perf_counter() - started
        client = AgentClient.find(lab)
        assert client is not None
        answer = next(client.perform("query", {"name": "first", "k": 8, "by": "latent"}, image))
        first = time.perf_counter() - started
        assert len(answer["references"]) == 8
        asked = times(
            list(range(10)), lambda _: next(client.perform("query", {"name": "x", "k": 8, "by": "latent"}, image))
        )
        memory = psutil.Process(process.pid).memory_info().rss
    finally:
        process.terminate()
        process.communicate()
        del os.environ["LABREF_MAP__ENABLED"]
    return {
        "ready_seconds": round(ready, 2),
        "first_answer_seconds": round(first, 2),
        "answer_with_inference": asked,
        "rss_mb": round(memory / 1e6),
    }


def _checks(lab: Lab, store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    def none() -> Any:
        raise RuntimeError("no networks are needed here")

    context = Context(lab, store, none, None, lambda _: none())
    found = []
    for name, parameters in (("ledger.check", {"quick": True}), ("store.check", {})):
        started = time.perf_counter()
        first = None
        for row in perform(context, name, parameters):
            if "summary" in row:
                first = round(time.perf_counter() - started, 3)
        found.append({"first_seconds": first, "seconds": round(time.perf_counter() - started, 3), "ok": row["ok"]})
    return found[0], found[1]


@contextlib.contextmanager
def _recording(store: Store, bundle: Bundle, rate: float | None) -> Iterator[Callable[[], dict[str, Any]]]:
    """Record new cells in a thread until the block ends. The block gets a function that returns how many cells were
    recorded, the mean milliseconds for each, and the longest for a batch. rate : cells per second; None for as many as
    the store takes."""
    ended = threading.Event()
    took: list[float] = []
    manifest = bundle.manifest
    probabilities = np.full(len(manifest.labels), 1 / len(manifest.labels), np.float32)
    start = store.counts().files

    def batch(number: int) -> list[NewCell]:
        first = number * _BATCH
        latents = latents_of("clustered", start + first, _BATCH, manifest.latent_size)[0]
        return [
            new_cell(
                f"{start}-{first + row}",
                label=manifest.labels[row % 5],
                latent=latents[row],
                probabilities=probabilities,
            )
            for row in range(_BATCH)
        ]

    def work() -> None:
        number = 0
        while not ended.is_set():
            cells = batch(number)
            number += 1
            started = time.perf_counter()
            store.record(cells, bundle=bundle.digest, judge=_different, candidate_bits=DEFAULTS.candidate_bits)
            took.append(time.perf_counter() - started)
            if rate is not None:
                ended.wait(max(0.0, _BATCH / rate - took[-1]))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: {
            "cells": _BATCH * len(took),
            "ms_a_cell": round(1e3 * float(np.mean(took)) / _BATCH, 3) if took else None,
            "longest_ms": round(1e3 * max(took), 1) if took else None,
        }
    finally:
        ended.set()
        thread.join()


def _different(digest: str, other: str) -> Resemblance:
    """There are no images to compare."""
    return Resemblance(0.0, Verdict.DIFFERENT)


def _for_seconds(questions: list[Any], ask: Callable[[Any], object], seconds: float) -> dict[str, float | int]:
    """Ask the queries again and again, at most one every hundredth of a second, as people and pages do."""
    took: list[float] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        started = time.perf_counter()
        ask(questions[len(took) % len(questions)])
        took.append(1e3 * (time.perf_counter() - started))
        time.sleep(0.01)
    p50, p99 = np.percentile(took, [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "queries": len(took)}


def _digests(folder: Path, images: int) -> dict[str, Any]:
    lab = Lab(folder, Lab.open(folder.parent / "lab").config)
    data = os.urandom(30_000)
    digests = []
    for number in range(images):
        image = data + number.to_bytes(8, "big")
        digests.append(digest(image))
        lab.store_image(image, digests[-1])
    started = time.perf_counter()
    for name in digests:
        lab.read_image(name)
    return {"images": images, "a_second": round(images / (time.perf_counter() - started))}


def main() -> int:
    """Run the benchmark; 1 where a check finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000, help="cells in the lab (default: 1,000,000)")
    parser.add_argument("--queries", type=int, default=300, help="different queries (default: 300)")
    parser.add_argument("--rate", type=float, default=15.0, help="cells a second while ingest runs (default: 15)")
    parser.add_argument("--images", type=int, default=2000, help="kept images read (default: 2000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each mixed load (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on standard output")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-scale-") as folder:
        result = measure(
            Path(folder),
            cells=options.cells,
            queries=options.queries,
            rate=options.rate,
            images=options.images,
            seconds=options.seconds,
        )
    tell(result, as_json=options.json)
    return 0 if result["check"]["ok"] and result["store_check"]["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
