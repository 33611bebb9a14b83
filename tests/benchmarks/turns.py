"""How many of a cell's eight references stay where its picture is turned and mirrored at any angle.

    python -m tests.benchmarks.turns --json
    python -m tests.benchmarks.turns --json --bundle mine.labref --cells 300

Real cells of ../shared/data/pbc: references are those that the starter was trained on, queries are drawn from the
held-out ones, as many of each class. Each query's picture is turned by --views / 2 angles, evenly over the circle, and
by the same ones mirrored; it is prepared as in a lab each time. Of the eight references of the picture as it is,
`stay` tells how many are among the eight of the turned one: the mean over queries and views, with its 95 % interval
over queries; the view at which the fewest stay (`worst`); and the mean over quarter turns and mirrors (`quarters`).
`precision`: share of the references of all views that are of the query's class. `ms_per_cell`: milliseconds of a
processor to embed a cell, the median of batches of 16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.bundles.bundle import install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.image import prepare
from tests.benchmarks.duplicates import DATA
from tests.benchmarks.query import note
from training.data.images import Item, list_images, make_split
from training.measure.evaluate import K, embed_tree, nearest
from training.measure.statistics import bootstrap

_TIMED: Final = 16  # crops in a batch that is timed


def views_of(count: int) -> list[tuple[float, bool]]:
    """Degrees and whether mirrored, of so many views; the first is the picture as it is. Raises ValueError where the
    number is odd."""
    if count < 2 or count % 2:
        raise ValueError(f"views must be an even number, not {count}")
    angles = 720.0 * np.arange(count // 2) / count  # so that a quarter turn is one to the last bit
    return [(float(angle), mirrored) for mirrored in (False, True) for angle in angles]


def draw_queries(held: Sequence[Item], cells: int, seed: int) -> list[Item]:
    """So many of the held-out cells, about as many of each class."""
    order = np.random.default_rng(seed).permutation(len(held)).tolist()
    taken: dict[str, int] = {}
    ranked = []
    for number in order:
        label = held[number].label
        taken[label] = taken.get(label, 0) + 1
        ranked.append((taken[label], number))
    return [held[number] for _, number in sorted(ranked)[:cells]]


def measure(source: Path, data: Path, *, cells: int, views: int, references: int | None, seed: int) -> dict[str, Any]:
    """All figures. references : at most so many, evenly taken; None: all."""
    changes = views_of(views)
    pbc = data / "pbc"
    split = make_split(list_images(pbc), holdout=0.2, validation=0.0)
    known = list(split.train)
    if references is not None:
        known = [known[number] for number in np.unique(np.linspace(0, len(known) - 1, references).astype(int)).tolist()]
    asked = draw_queries(split.holdout, cells, seed)
    with (
        tempfile.TemporaryDirectory(prefix="labref-turns-") as folder,
        Embedder.open(install(source, Path(folder)), device="cpu") as embedder,
    ):
        note(f"{len(known):,} references")
        there = embed_tree(embedder, pbc, known)
        found = []
        for number, change in enumerate(changes):
            note(f"view {number + 1} of {len(changes)}")
            turned = embed_tree(embedder, pbc, asked, change)
            if len(turned.items) != len(asked):
                raise ValueError(f"{turned.unreadable[0]} cannot be read")
            found.append(nearest(turned.latents, there.latents, None)[0])
        crops = np.stack([prepare((pbc / item.path).read_bytes()).crop for item in asked[:_TIMED]])
        took = [_seconds(lambda: embedder.embed(crops)) for _ in range(7)]
        digest = embedder.bundle.digest
    labels = np.array([item.label for item in there.items])
    rows = np.stack(found)  # [views, queries, K]
    stay = np.array([[len(np.intersect1d(*both)) for both in zip(rows[0], view, strict=True)] for view in rows])
    exact = np.array([angle % 90 == 0 for angle, _ in changes])
    exact[0] = False
    worst = int(stay[1:].mean(axis=1).argmin()) + 1
    right = labels[rows] == np.array([item.label for item in asked])[None, :, None]
    return {
        "bundle": digest,
        "references": len(there.items),
        "queries": len(asked),
        "views": len(changes),
        "k": K,
        "seed": seed,
        "stay": bootstrap(stay[1:].mean(axis=0), strata=[item.label for item in asked]).to_json(),
        "worst": {"degrees": changes[worst][0], "mirrored": changes[worst][1], "stay": _rounded(stay[worst])},
        "quarters": _rounded(stay[exact]) if exact.any() else None,
        "precision": _rounded(right),
        "ms_per_cell": round(1e3 * float(np.median(took)) / len(crops), 2),
    }


def _rounded(values: NDArray[Any]) -> float:
    return round(float(values.mean()), 4)


def _seconds(work: Callable[[], Any]) -> float:
    """Seconds of processor, of all threads of this process, so that the number of cores does not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--bundle", type=Path, help="the bundle that embeds; by default the starter")
    parser.add_argument("--cells", type=int, default=200, help="queries")
    parser.add_argument("--views", type=int, default=64, help="angles and mirrors, an even number")
    parser.add_argument("--references", type=int, help="at most so many references; by default all")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    result = measure(
        asked.bundle or starter_bundle(),
        asked.data,
        cells=asked.cells,
        views=asked.views,
        references=asked.references,
        seed=asked.seed,
    )
    print(json.dumps(result) if asked.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
