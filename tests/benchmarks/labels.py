"""How long a list of labels takes, and how long ingest waits for it: python -m tests.benchmarks.labels [--rows N ...]

In one process, as in the agent: a thread stores a new cell again and again while a list for made-up cells is imported.
Prints a JSON object for each size: seconds of the import, and the longest and median time that storing one cell took
meanwhile, beside those before it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from labref.bundles.bundle import starter_bundle
from labref.lab import Lab
from labref.lab.log import open_log
from labref.operations import perform
from labref.store import NewCell, Store
from labref.tasks.context import Context
from labref.tasks.jobs import Jobs
from tests.stores import new_cell

_AT_ONCE = 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000], help="sizes of the lists")
    for rows in parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), rows)), flush=True)


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Import a list of so many rows, half of them by path, into a lab with as many cells."""
    (folder / "export").mkdir()
    lab = Lab.create(folder / "lab", [folder / "export"], starter_bundle())
    with lab.open_store() as store, open_log(lab) as log:
        bundle = next(iter(store.bundles()))
        shape = {
            "latent": np.ones(bundle.latent_size, np.float32),
            "probabilities": np.full(len(bundle.labels), 1 / len(bundle.labels), np.float32),
            "fingerprints": (),
        }
        cells = []
        for start in range(0, rows, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, rows))
            made = [new_cell(number, path=str(folder / "export" / f"{number}.jpg"), **shape) for number in numbers]
            store.record(made, bundle=bundle.digest)
            cells += [(cell.cell_id, cell.path) for cell in made]
        listed = [
            {"line": n, "label": "monocyte", **({"cell_id": cell} if n % 2 else {"path": path})}
            for n, (cell, path) in enumerate(cells)
        ]
        more = [new_cell(f"more {number}", **shape) for number in range(500)]
        before, during = _Ingest(store, bundle.digest, more), _Ingest(store, bundle.digest, more)
        with before:
            time.sleep(5)
        jobs = Jobs(log)
        context = Context(lab, store, _never, jobs, _never)
        started = time.perf_counter()
        with during:
            *_, summary = perform(context, "label.import", {"rows": listed})
        seconds = time.perf_counter() - started
        jobs.close()
    assert summary["changed"] == rows
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "longest_pause_seconds": round(max(during.took), 3),
        "longest_pause_before_seconds": round(max(before.took), 3),
        "median_seconds": round(statistics.median(during.took), 4),
        "median_before_seconds": round(statistics.median(before.took), 4),
        "cells_stored_meanwhile": len(during.took),
    }


def _never(*_: object) -> NoReturn:
    raise AssertionError("labels need no networks")


class _Ingest:
    """Stores cells, one at a time, in a thread. took : seconds that each cell took."""

    def __init__(self, store: Store, bundle: str, cells: list[NewCell]) -> None:
        self.took: list[float] = []
        self._store, self._bundle, self._cells = store, bundle, cells
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._stop.wait(0.02) and self._cells:
            cell = self._cells.pop()
            started = time.perf_counter()
            self._store.record([replace(cell, path=f"/more/{cell.cell_id}.jpg")], bundle=self._bundle)
            self.took.append(time.perf_counter() - started)

    def __enter__(self) -> _Ingest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


if __name__ == "__main__":
    main()
