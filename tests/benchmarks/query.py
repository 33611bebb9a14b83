"""What one query costs in a store of a million cells, without inference: eight nearest and the spread of a hundred.

    python -m tests.benchmarks.query --json

Three ways answer the same questions in one run: the agent's index in memory, DuckDB's scan (a command without an
agent), and a plain NumPy scan of all latents. The cells are made up. `--latents clustered` (default) resembles what
the starter bundle gives for real cells, half as concentrated: classes of five clusters, 95 % of the variance in ten
directions; `--latents even` has no structure at all, the worst case for any index.

Fields: `find` is a whole answer (references, spread, novelty, duplicates left out), `nearest` its hundred neighbours
alone; each by `index`, `duckdb`, and `numpy` (differences squared and averaged) or `numpy_product` (norms and one
matrix product, its candidates measured again); `p50_ms` and `p99_ms` over `queries`. `ratio_*`: p50 of that way over
that of the index. `agree`: every way gave the same cells at the same distances.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psutil
from numpy.typing import NDArray

from labref.asking import references
from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.cells.sameness import DEFAULTS
from labref.store import Store
from labref.words import VERSION, Fingerprint
from tests.benchmarks.exports import tell
from tests.stores import BUNDLE, LABELS, activate

SPREAD = 100
ROWS = 100_000


def latents_of(kind: str, seed: int, n: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Latents float32[n, size] and class numbers int64[n]; the same clusters for every seed."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(0)
    if kind == "even":
        return rng.standard_normal((n, size), np.float32), rng.integers(0, len(LABELS), n)
    scale = (0.86 ** np.arange(size)).astype(np.float32)
    turn = np.linalg.qr(fixed.standard_normal((size, size)))[0].astype(np.float32)
    centres = 2 * fixed.standard_normal((5 * len(LABELS), size)).astype(np.float32)
    of = rng.integers(0, len(centres), n)
    values = (centres[of] + rng.standard_normal((n, size), np.float32)) * scale @ turn
    return values.astype(np.float32, copy=False), of // 5


def build(path: Path, kind: str, n: int, size: int, *, digest: str = BUNDLE, labels: Sequence[str] = LABELS) -> None:
    """A store of n made-up cells, written past `record` because that one embeds, compares and confirms every batch.

    digest, labels : of the bundle in whose space they lie; cells carry the first five labels.
    """
    with Store.create(path) as store:
        activate(store, digest, latent_size=size, labels=labels)
    with duckdb.connect(str(path), config={"memory_limit": "2GiB", "threads": 2}) as connection:
        connection.execute(
            "CREATE TEMP TABLE class AS SELECT unnest(?) AS label, unnest(range(?)) AS number",
            [list(labels), len(labels)],
        )
        numbers = ", ".join(f"l{i}" for i in range(size))
        for start in range(0, n, ROWS):
            rows = min(ROWS, n - start)
            latents, classes = latents_of(kind, 1 + start, rows, size)
            chunk: dict[str, NDArray[Any]] = {f"l{i}": np.ascontiguousarray(latents[:, i]) for i in range(size)}
            chunk |= {"number": np.arange(start, start + rows), "class": classes}
            connection.begin()
            connection.execute(
                "CREATE OR REPLACE TEMP TABLE made AS SELECT *, sha256(made.number::VARCHAR) AS digest, "
                "'/export/Signed slides/' || label || '/' || made.number || '.jpg' AS path "
                "FROM chunk AS made JOIN class ON made.class = class.number"
            )
            connection.execute(
                "INSERT INTO cell SELECT digest[1:16], digest, path, 30000, 360, 363, label, 'analyser', "
                "'slide ' || number // 200, 'DC-1', now()::TIMESTAMP, NULL, NULL, NULL, now()::TIMESTAMP, number + 1, '/export' FROM made"
            )
            connection.execute(
                f"INSERT INTO fingerprint SELECT digest[1:16], {VERSION}, hash(number), hash(number + 0.5) FROM made"
            )
            connection.execute(
                "INSERT INTO file SELECT path, 30000, 1700000000000000000 + number, 'stored', NULL, digest[1:16], label, "
                "'analyser', 'slide ' || number // 200, NULL, now()::TIMESTAMP, NULL, NULL, '/export' FROM made"
            )
            connection.execute(
                f"INSERT INTO embedding_1 SELECT digest[1:16], array_value({numbers}), "
                f"{[1 / len(labels)] * len(labels)}::FLOAT[{len(labels)}], label, 0.2 FROM made"
            )
            # there are no images, so nothing could be measured of them
            connection.execute(
                "INSERT INTO measure (cell_id, analyser, added_at, number) SELECT digest[1:16], 'DC-1', now(), number + 1 FROM made"
            )
            connection.execute("UPDATE sequence SET last_number = (SELECT max(number) FROM cell)")
            connection.commit()
            note(f"{start + rows:,} of {n:,} cells")


def note(text: str) -> None:
    """Say on standard error how far it is."""
    print(text, file=sys.stderr, flush=True)


def times(questions: Sequence[Any], ask: Callable[[Any], object]) -> dict[str, float | int]:
    """Ask every question once, after two that do not count."""
    for question in questions[:2]:
        ask(question)
    took = []
    for question in questions:
        started = time.perf_counter()
        ask(question)
        took.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.percentile(took, [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3), "queries": len(took)}


class NumPyScan:
    """All latents in one array, looked at in full for every query."""

    def __init__(self, path: Path, size: int) -> None:
        numbers = ", ".join(f"latent[{i}] AS l{i}" for i in range(1, size + 1))
        with duckdb.connect(str(path), config={"memory_limit": "2GiB", "threads": 2}) as connection:
            columns = connection.execute(f"SELECT cell_id, {numbers} FROM embedding_1").fetchnumpy()
        self.ids = columns.pop("cell_id")
        self.latents = np.stack(list(columns.values()), axis=1)
        self.squares = np.square(self.latents).sum(axis=1)

    def plain(self, query: NDArray[np.float32]) -> list[tuple[str, float]]:
        """The hundred nearest by the mean of squared differences."""
        away = np.square(self.latents - query).mean(axis=1)
        return self._nearest(np.argpartition(away, SPREAD)[: SPREAD + 20], query)

    def product(self, query: NDArray[np.float32]) -> list[tuple[str, float]]:
        """The hundred nearest by one matrix product; not exact by itself, so more candidates are taken."""
        away = self.squares - 2 * (self.latents @ query)
        return self._nearest(np.argpartition(away, 2 * SPREAD)[: 2 * SPREAD], query)

    def _nearest(self, candidates: NDArray[np.intp], query: NDArray[np.float32]) -> list[tuple[str, float]]:
        difference = self.latents[candidates].astype(np.float64) - query
        away = np.square(difference).sum(axis=1) / len(query)
        best = np.lexsort((self.ids[candidates], away))[:SPREAD]
        return list(zip(self.ids[candidates[best]].tolist(), away[best].tolist(), strict=True))


def measure(folder: Path, kind: str, cells: int, size: int, queries: int) -> dict[str, Any]:
    """Make the store, ask the queries, and return the fields that this module's docstring describes."""
    path = folder / "store.duckdb"
    started = time.perf_counter()
    build(path, kind, cells, size)
    result: dict[str, Any] = {
        "cells": cells,
        "latent_size": size,
        "latents": kind,
        "build_seconds": round(time.perf_counter() - started, 2),
        "store_mb": round(path.stat().st_size / 1e6),
    }
    starter = install(starter_bundle(), folder / "bundles")
    bundle = Bundle(starter.folder, BUNDLE, replace(starter.manifest, latent_size=size, labels=LABELS))
    asked, _ = latents_of(kind, 0, queries, size)
    marks = np.random.default_rng(0).integers(0, 2**64, (queries, 2), np.uint64).tolist()
    questions = [(query, Fingerprint(across, down)) for query, (across, down) in zip(asked, marks, strict=True)]
    few = questions[: min(queries, 50)]

    started = time.perf_counter()
    with Store.open(path) as store:
        result["open_seconds"] = round(time.perf_counter() - started, 3)

        def find(question: tuple[NDArray[np.float32], Fingerprint]) -> references.Found:
            repeats = store.candidates([question[1]] * 5, DEFAULTS.candidate_bits)
            return references.find(store, bundle=bundle, latent=question[0], digest=None, repeats=repeats)

        def nearest(question: tuple[NDArray[np.float32], Fingerprint]) -> list[tuple[str, float]]:
            found = store.nearest(question[0], bundle=BUNDLE, k=SPREAD)
            return [(neighbour.cell_id, neighbour.distance) for neighbour in found]

        started = time.perf_counter()
        store.has_digest("0" * 64)
        result["ids_and_hashes_load_seconds"] = round(time.perf_counter() - started, 3)
        note("DuckDB's scan")
        result["find"] = {"duckdb": times(few, find)}
        result["nearest"] = {"duckdb": times(few, nearest)}
        by_duckdb = [nearest(question) for question in few[:10]]

        before = psutil.Process().memory_info().rss
        started = time.perf_counter()
        store.build_index()
        result["index_load_seconds"] = round(time.perf_counter() - started, 3)
        result["index_mb"] = round(store.index_bytes / 1e6, 1)
        result["rss_mb_before_index"] = round(before / 1e6)
        result["rss_mb_with_index"] = round(psutil.Process().memory_info().rss / 1e6)
        note("the index")
        result["find"]["index"] = times(questions, find)
        result["nearest"]["index"] = times(questions, nearest)
        by_index = [nearest(question) for question in few[:10]]

    note("NumPy's scans")
    scan = NumPyScan(path, size)
    result["nearest"]["numpy"] = times(few, lambda question: scan.plain(question[0]))
    result["nearest"]["numpy_product"] = times(few, lambda question: scan.product(question[0]))
    by_numpy = [scan.plain(question[0]) for question in few[:10]]
    result["agree"] = by_index == by_duckdb == by_numpy
    for way in ("duckdb", "numpy", "numpy_product"):
        result[f"ratio_{way}"] = round(result["nearest"][way]["p50_ms"] / result["nearest"]["index"]["p50_ms"], 2)
    result["machine"] = f"{psutil.cpu_count()} cores, {platform.machine()}, load {psutil.getloadavg()[0]:.1f}"
    return result


def main() -> int:
    """Run the benchmark. Returns 1 where the ways do not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000, help="cells in the store (default: 1,000,000)")
    parser.add_argument("--latent-size", type=int, default=50, help="numbers in a latent (default: 50)")
    parser.add_argument(
        "--queries", type=int, default=300, help="queries by the index; others get at most 50 (default: 300)"
    )
    parser.add_argument("--latents", choices=("clustered", "even"), default="clustered", help="what the cells are like")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on standard output")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-query-") as folder:
        result = measure(Path(folder), options.latents, options.cells, options.latent_size, options.queries)
    tell(result, as_json=options.json)
    return 0 if result["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
