"""How fast the map is drawn: `python -m tests.benchmarks.web_tiles --json`.

A store of made-up cells lies on a map of 248×248 nodes in 25 clouds, a running agent answers, and tiles of each level,
chosen at random, are asked for over one connection, as a browser asks: `first` where the agent has not drawn the tile
before, `again` where it has. Beside it: the page, the first tile of a filter that nobody asked for before, a region.
Tiles with thumbnails are measured on a small lab with drawn cells; `first` makes the thumbnails too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from minisom import MiniSom
from scipy.ndimage import gaussian_filter

from labref import som
from labref.bundles.bundle import install, starter_bundle
from labref.lab import Lab
from labref.pictures import tiles
from labref.store import Placed, StoredMap
from tests.benchmarks.exports import labref_process
from tests.benchmarks.query import build, note
from tests.maps import lab_with_map
from tests.pages import let_in

__all__ = ["main", "measure", "place"]


def measure(folder: Path, *, cells: int, side: int, asked: int, seed: int = 0) -> dict[str, Any]:
    """Measure in `folder`, an empty one, `asked` tiles of each level; returns milliseconds."""
    rng = np.random.default_rng(seed)
    export = folder / "export"
    export.mkdir()
    lab = Lab.create(folder / "lab", [export], starter_bundle())
    with lab.open_store() as store:
        manifest, digest = lab.bundle(store).manifest, lab.bundle(store).digest
    lab.store_file.unlink()
    build(lab.store_file, "clustered", cells, manifest.latent_size, digest=digest, labels=manifest.labels)
    place(lab, digest, side, manifest.latent_size, rng)
    result: dict[str, Any] = {"cells": cells, "nodes": f"{side}x{side}"}
    with _agent(lab), _asking(lab) as ask:
        note("the page")
        result["page_first"] = round(ask("/map")[0], 1)
        text = ask("/map")[1].decode()
        result["page"] = _of([ask("/map")[0] for _ in range(10)])
        address, key = _found(r'data-light="([^"]+)"', text), _found(r'<option value="([0-9a-f]{20})"', text)
        classes = sorted(set(re.findall(r'name="class" value="([0-9a-f]{8})"', text)))
        first, last = tiles.levels(side, side)
        every: dict[str, list[float]] = {"first": [], "again": []}
        for level in range(first, last):  # the last shows cells
            note(f"level {level}")
            across = -(-side * (tiles.NODE >> (last - level)) // tiles.TILE)
            places = rng.permutation(across * across)[:asked].tolist()
            paths = [f"{address}/{level}/{place % across}_{place // across}.png" for place in places]
            spent = {when: [ask(path)[0] for path in paths] for when in ("first", "again")}
            result[f"level {level}, {tiles.NODE >> (last - level)} px a node"] = {
                when: _of(times) for when, times in spent.items()
            }
            for when, times in spent.items():
                every[when] += times
        result["tiles"] = {when: _of(times) for when, times in every.items()}
        note("filters")
        base = address.rsplit("/", 1)[0]
        layers = [f"classes-light~c{style}" for style in classes] + [f"classes-dark~s{key}", "classes-light~m"]
        result["first_tile_of_a_filter"] = _of([ask(f"{base}/{layer}/{first}/0_0.png")[0] for layer in layers])
        result["region_of_32x32_nodes"] = _of(
            [ask(f"/map/region/{n}/{n}/{n + 31}/{n + 31}?part=1")[0] for n in range(10)]
        )
        result["node"] = _of([ask(f"/map/node/{n * 20}/{n * 20}?part=1")[0] for n in range(10)])
    note("tiles with thumbnails")
    small = lab_with_map(folder / "small", install(starter_bundle(), folder / "bundles"), each=16, rows=12, columns=12)
    with _agent(small), _asking(small) as ask:
        address = _found(r'data-light="([^"]+)"', ask("/map")[1].decode())
        _, last = tiles.levels(12, 12)
        paths = [f"{address}/{last}/{x}_{y}.png" for x in range(6) for y in range(6)]
        first_times = [ask(path)[0] for path in paths]
        result["with thumbnails"] = {
            "first": _of(first_times),
            "thumbnails there": _of([ask(path.replace("classes-light", "classes-dark"))[0] for path in paths]),
            "again": _of([ask(path)[0] for path in paths]),
        }
    result["machine"] = f"{psutil.cpu_count()} cores, {platform.machine()}, load {psutil.getloadavg()[0]:.1f}"
    return result


def place(lab: Lab, bundle: str, side: int, length: int, rng: np.random.Generator) -> None:
    """Put a made-up map in use, with every cell on it."""
    note("the map")
    weights = gaussian_filter(rng.standard_normal((side, side, length)), (side / 30, side / 30, 0)) * 40
    made = MiniSom(side, side, length)
    made._weights = weights
    with lab.open_store() as store:
        ids = np.concatenate([part for part, _ in store.maps.latents(bundle)])
        known = store.labelled([f"{number:016x}" for number in ids.tolist()])
        classes = sorted({label for label, _ in known.values()})
        cloud = np.array([classes.index(known[f"{number:016x}"][0]) for number in ids.tolist()])
        cloud = cloud * 5 + rng.integers(0, 5, len(ids))
        middles = rng.uniform(0, side, (5 * len(classes), 2))
        at = np.clip(np.rint(middles[cloud] + rng.normal(0, side / 12, (len(ids), 2))), 0, side - 1).astype(np.int64)
        placed = Placed(ids, at[:, 0] * side + at[:, 1], rng.random(len(ids), np.float32))
        version = StoredMap(
            0, bundle, side, side, 1.0, 0, "batch", None, len(ids), 1.0, 0.0, None, None, None, "first", 1.0, datetime.now(UTC)
        )  # fmt: skip
        store.maps.switch(version, partial(som.save, made), placed)


@contextmanager
def _agent(lab: Lab) -> Iterator[None]:
    os.environ["LABREF_MAP__ENABLED"] = "false"  # or a map would be trained meanwhile
    process = labref_process("agent", "--json", "--lab", lab.folder, passed=("LABREF_MAP__ENABLED",))
    try:
        assert process.stdout is not None and process.stderr is not None
        if not process.stdout.readline():
            raise RuntimeError(process.stderr.read())
        yield
    finally:
        process.terminate()
        process.communicate()
        del os.environ["LABREF_MAP__ENABLED"]


@contextmanager
def _asking(lab: Lab) -> Iterator[Any]:
    """A function that asks for an address and returns the milliseconds and the body."""
    browser = let_in(lab, "Benchmark", "view")
    connection = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=120)
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())

    def ask(path: str) -> tuple[float, bytes]:
        begun = time.perf_counter()
        connection.request("GET", path, headers={"Cookie": cookie, "Accept": "text/html"})
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (path, response.status)
        return (time.perf_counter() - begun) * 1000, body

    try:
        yield ask
    finally:
        connection.close()


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, pattern
    return found[1]


def _of(times: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50_ms": round(float(p50), 1), "p95_ms": round(float(p95), 1), "n": len(times)}


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=248, help="rows and columns of the map")
    parser.add_argument("--tiles", type=int, default=60, help="of each level, at most")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-tiles-", ignore_cleanup_errors=True) as folder:
        result = measure(Path(folder), cells=given.cells, side=given.side, asked=given.tiles)
    print(json.dumps(result) if given.json else json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
