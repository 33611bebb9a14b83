"""One map for all analysers, or a map each: `python -m tests.benchmarks.map_optics --json`.

Real cells of several microscopes, each an analyser of the same lab, embedded by the bundle. They go into one store,
whose map is trained as the agent trains it; and each microscope's into a store of its own, with a map of its own.

agree     share of the cells whose neighbourhood on the map tells their label, by cells of the same analyser, the cell
          itself left out (`labref map classify`): `one` map for all, `own` map
found     of 5 % of labels that were changed by chance, the share among as many first suspects twice over
          (`labref map suspects`), by the same two; the mean over `--seeds`
nodes     of the map: of the one for all, and of the own one
own_area  share of the nodes with cells of this microscope on the one map that have no cells of another
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.config import MapConfig
from labref.lab import Lab
from labref.tasks.mapping import retrain
from labref.web import desk
from tests.benchmarks.exports import REAL_CELLS
from tests.benchmarks.suspects import cell_of, embed

__all__ = ["main", "measure"]

TREES: Final = ("pbc", "chula", "bccd", "raabin")
_CHANGED: Final = 0.05


def measure(
    folder: Path, data: Path, *, bundle: Bundle, trees: Sequence[str] = TREES, cells: int = 500, seeds: int = 3
) -> dict[str, Any]:
    """Measure in `folder`, an empty one. data : the folder of the trees.  cells : at most so many of each tree."""
    images: dict[str, list[Path]] = {}
    for tree in trees:
        every = sorted(path for path in (data / tree).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        images[tree] = [every[i] for i in sorted(np.random.default_rng(0).permutation(len(every))[:cells])]
    embedded = {tree: embed(images[tree], bundle) for tree in trees}
    found: dict[str, dict[str, list[float]]] = {tree: {"one": [], "own": []} for tree in trees}
    result: dict[str, Any] = {"bundle": bundle.short, "cells": {tree: len(images[tree]) for tree in trees}}
    for seed in range(seeds):
        labels = {tree: _changed(images[tree], data / tree, seed) for tree in trees}
        for way, groups in (("one", [tuple(trees)]), ("own", [(tree,) for tree in trees])):
            for group in groups:
                lab, wrong = _lab(folder / f"{way}-{seed}-{group[0]}", images, embedded, labels, bundle, group)
                for tree in group:
                    listed = desk.run(lab, "map.suspects", limit=2 * len(wrong[tree]), analysers=[tree])
                    first = {row["cell_id"] for row in listed}
                    found[tree][way].append(len(first & wrong[tree]) / len(wrong[tree]))
    for tree in trees:
        result[tree] = {
            "found": {way: round(float(np.mean(each)), 4) for way, each in found[tree].items()},
            "found_each": found[tree],
            "agree": {},
            "nodes": {},
        }
    right: dict[str, tuple[list[str], tuple[int, ...]]] = {
        tree: ([path.relative_to(data / tree).parts[0] for path in images[tree]], ()) for tree in trees
    }
    for way, groups in (("one", [tuple(trees)]), ("own", [(tree,) for tree in trees])):
        for group in groups:
            lab, _ = _lab(folder / f"{way}-right-{group[0]}", images, embedded, right, bundle, group)
            shown = next(desk.run(lab, "map.cells"))["map"]
            for tree in group:
                *_, every_class = desk.run(lab, "map.classify", analysers=[tree])
                result[tree]["agree"][way] = round(every_class["agree"], 4)
                result[tree]["nodes"][way] = shown["rows"] * shown["columns"]
            if way == "one":
                parts = [row for row in desk.run(lab, "map.cells") if "node" in row]
                nodes = np.array([node for part in parts for node in part["node"]])
                analysers = np.array([name for part in parts for name in part["analyser"]])
                for tree in trees:
                    here, others = np.unique(nodes[analysers == tree]), np.unique(nodes[analysers != tree])
                    result[tree]["own_area"] = round(float(np.mean(~np.isin(here, others))), 4)
    return result


def _changed(images: Sequence[Path], tree: Path, seed: int) -> tuple[list[str], tuple[int, ...]]:
    """The labels of a tree's images with some changed by chance, and which."""
    labels = [path.relative_to(tree).parts[0] for path in images]
    rng, names = np.random.default_rng(seed), np.unique(labels)
    changed = tuple(rng.permutation(len(labels))[: max(1, round(_CHANGED * len(labels)))].tolist())
    for at in changed:
        labels[at] = str(rng.choice(names[names != labels[at]]))
    return labels, changed


def _lab(
    folder: Path,
    images: Mapping[str, list[Path]],
    embedded: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    labels: Mapping[str, tuple[list[str], tuple[int, ...]]],
    bundle: Bundle,
    trees: Sequence[str],
) -> tuple[Lab, dict[str, set[str]]]:
    """A lab with the cells of these trees and a map; and the ids of those whose label was changed, by tree."""
    lab = Lab.create(folder, [images[trees[0]][0].parent], bundle.folder, unsigned=True)
    known, wrong = list(bundle.manifest.labels), {}
    with lab.open_store() as store:
        for tree in trees:
            (latents, probabilities), (given, changed) = embedded[tree], labels[tree]
            cells = [
                replace(cell_of(path, given[at], latents[at], probabilities[at], known), analyser=tree)
                for at, path in enumerate(images[tree])
            ]
            wrong[tree] = {cells[at].cell_id for at in changed}
            for start in range(0, len(cells), 256):
                store.record(cells[start : start + 256], bundle=bundle.digest)
        for _ in retrain(store, MapConfig(), bundle.digest):
            pass
    return lab, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.map_optics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=REAL_CELLS.parent, help="folder of the trees")
    parser.add_argument("--cells", type=int, default=500, help="at most so many of each microscope (default 500)")
    parser.add_argument("--seeds", type=int, default=3, help="repeats, with other changed labels each (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-map-optics-") as folder:
        bundle = install(starter_bundle(), Path(folder) / "bundles")
        figures = measure(Path(folder), options.data, bundle=bundle, cells=options.cells, seeds=options.seeds)
    if options.json:
        print(json.dumps(figures))
    else:
        for tree in TREES:
            values = figures[tree]
            print(f"{tree}: agree {values['agree']}, found {values['found']}, own area {values['own_area']:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
