"""Does labref say what it does not know: `python -m tests.benchmarks.novelty --json`.

Each class of real cells is left out in turn. Cells of the others go into a store, 50, 200, 1,000 and 5,000 of them, and
references are asked for, as a query asks: of cells of the class that the store has none of, and of other cells of the
classes that it has. The figures are the shares called novel (nothing here resembles it), without a class (no class of
this lab resembles it), and either; `either` of the left-out cells shall be at least 0.80 on average, of the others at
most 0.02.

The other cells are those whose names hold them out of the starter's training (`training.data.images.name_fraction`);
the stores are made of the rest. Names also halve all cells that are asked about: what was chosen was chosen on the
first half (`--half 0`), and is judged on the second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labref.asking.references import find
from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.image import prepare
from labref.store import NewCell, Store, cell_id_of
from tests.benchmarks.exports import REAL_CELLS
from tests.stores import digest_of
from training.data.images import Item, list_images, name_fraction

__all__ = ["cell_of", "embedded", "main", "measure"]

SIZES = (50, 200, 1000, 5000)


def measure(
    folder: Path,
    items: list[Item],
    latents: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    *,
    bundle: Bundle,
    sizes: tuple[int, ...] = SIZES,
    half: int = 1,
    most: int = 200,
    holdout: float = 0.2,
) -> dict[str, Any]:
    """Measure in `folder`, an empty one. latents : float32[n, L] and probabilities float32[n, c], of the items.  most :
    cells of a class that are asked about.  holdout : share of the names that never go into a store."""
    names = [item.path.rsplit("/", 1)[-1] for item in items]
    held = np.array([name_fraction(name, "labref-holdout") < holdout for name in names])
    asked = np.array([int(name_fraction(name, "labref-novelty") < 0.5) != half for name in names])
    labels = np.array([item.label for item in items])
    order = np.argsort([name_fraction(name, "labref-order") for name in names])
    cells = [cell_of(item, latents[i], probabilities[i], bundle) for i, item in enumerate(items)]
    figures: dict[str, Any] = {"cells": len(items), "bundle": bundle.short, "half": half, "sizes": {}}
    for left_out in np.unique(labels).tolist():
        stored = [i for i in order.tolist() if labels[i] != left_out and not held[i]]
        new = [i for i in order.tolist() if labels[i] == left_out and asked[i]][:most]
        others = [i for i in order.tolist() if labels[i] != left_out and held[i] and asked[i]][:most]
        path = folder / f"{left_out}.duckdb"
        with Store.create(path) as store:
            store.set_active_bundle(
                bundle.digest,
                name="starter",
                version="1",
                latent_size=latents.shape[1],
                labels=bundle.manifest.labels,
            )
            store.build_index()
            there = 0
            for size in (size for size in sizes if size <= len(stored)):
                store.record([cells[i] for i in stored[there:size]], bundle=bundle.digest)
                there = size
                figures["sizes"].setdefault(str(size), {"classes": {}})["classes"][left_out] = {
                    "left_out": _said(store, bundle, [cells[i] for i in new]),
                    "others": _said(store, bundle, [cells[i] for i in others]),
                }
    for values in figures["sizes"].values():
        for kind in ("left_out", "others"):
            each = [one[kind] for one in values["classes"].values()]
            values[kind] = {
                name: round(float(np.mean([one[name] for one in each])), 4) for name in ("novel", "no_class", "either")
            }
    return figures


def _said(store: Store, bundle: Bundle, queries: list[NewCell]) -> dict[str, Any]:
    found = [
        find(
            store,
            bundle=bundle,
            latent=cell.latent,
            digest=None,
            probabilities={cell.predicted_label: cell.predicted_probability},
        ).novelty
        for cell in queries
    ]
    return {
        "cells": len(found),
        "novel": float(np.mean([one.is_novel for one in found])),
        "no_class": float(np.mean([one.no_class for one in found])),
        "either": float(np.mean([one.is_novel or one.no_class for one in found])),
    }


def cell_of(item: Item, latent: NDArray[np.float32], probabilities: NDArray[np.float32], bundle: Bundle) -> NewCell:
    """The item as a cell of a store. latent : float32[L].  probabilities : float32[c]."""
    digest = digest_of(item.path)  # the bytes play no part here
    best = int(probabilities.argmax())
    return NewCell(
        cell_id=cell_id_of(digest),
        digest=digest,
        path=item.path,
        size_bytes=1,
        mtime_ns=1,
        width=360,
        height=363,
        label=item.label,
        label_source="analyser",
        slide=None,
        analyser="one",
        captured_at=None,
        predicted_label=bundle.manifest.labels[best],
        predicted_probability=float(probabilities[best]),
        latent=latent,
        probabilities=probabilities,
    )


def embedded(
    tree: Path, bundle: Bundle, kept: Path | None
) -> tuple[list[Item], NDArray[np.float32], NDArray[np.float32]]:
    """Items of the tree, latents and probabilities. kept : npz with `paths`, `latents`, `probabilities`; it is written
    where it is not there."""
    if kept is not None and kept.exists():
        with np.load(kept, allow_pickle=False) as values:
            items = [Item(str(path), str(path).split("/", 1)[0]) for path in values["paths"].tolist()]
            return items, values["latents"].astype(np.float32), values["probabilities"].astype(np.float32)
    items = list(list_images(tree))
    latents, probabilities = [], []
    with Embedder.open(bundle) as embedder:
        for start in range(0, len(items), 32):
            crops = [prepare((tree / item.path).read_bytes()).crop for item in items[start : start + 32]]
            made = embedder.embed(np.stack(crops))
            latents.append(made.latents)
            probabilities.append(made.probabilities)
    if kept is not None:
        np.savez(
            kept,
            paths=np.array([item.path for item in items]),
            latents=np.concatenate(latents),
            probabilities=np.concatenate(probabilities),
        )
    return items, np.concatenate(latents), np.concatenate(probabilities)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.novelty",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tree", type=Path, default=REAL_CELLS, help="class folders of images")
    parser.add_argument("--bundle", type=Path, help="bundle file (default: the starter bundle)")
    parser.add_argument("--latents", type=Path, help="npz of the tree's embeddings; written where it is not there")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="cells of the stores")
    parser.add_argument("--half", type=int, choices=(0, 1), default=1, help="of the cells that are asked about")
    parser.add_argument("--most", type=int, default=200, help="cells of a class that are asked about (default 200)")
    parser.add_argument("--holdout", type=float, default=0.2, help="share of names that no store has (default 0.2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-novelty-") as folder:
        bundle = install(options.bundle or starter_bundle(), Path(folder) / "bundles")
        figures = measure(
            Path(folder),
            *embedded(options.tree, bundle, options.latents),
            bundle=bundle,
            sizes=tuple(sorted(options.sizes)),
            half=options.half,
            most=options.most,
            holdout=options.holdout,
        )
    if options.json:
        print(json.dumps(figures))
    else:
        for size, values in figures["sizes"].items():
            print(
                f"{size} cells: {values['left_out']['either']:.1%} of the left-out class, {values['others']['either']:.1%} of the "
                "others are called novel or of no class"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
