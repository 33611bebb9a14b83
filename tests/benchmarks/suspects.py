"""Are wrong labels found: `python -m tests.benchmarks.suspects --json`.

Of real cells, embedded by the bundle, 2 % (`--share`) get the label of another class by chance. They go into a store as
a lab's agent puts them there, the map is trained as the agent trains it, and `labref map suspects` is asked for the
first 4 %: the figure is the share of the changed labels among these, for each of several seeds.

`of_the_first`: of the first fifty suspects, or of as many as labels were changed where these are fewer, the share that
were changed. With `--hard` a third of the classes are rare, 3 to 12 cells each, and 3 % of the others carry the label
"Unidentified": rarity and abstention stand at the head of a list that takes them for surprises.

Beside it, on the same cells and changes: `network`, the order by the network's own probabilities, log(largest / that of
the label); and `by_chance`, what an order by chance would find. `fine` is the same with the finer classes that the file
names of PBC give (segmented and band neutrophils, myelocytes, metamyelocytes, promyelocytes), which the bundle was not
trained to tell apart.

The bundle has been trained on many of these cells with their right labels, which flatters every order; `--tree` takes
cells of another microscope.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.image import prepare
from labref.config import MapConfig
from labref.lab import Lab
from labref.store import NewCell, cell_id_of
from labref.tasks.mapping import retrain
from labref.web import desk
from tests.benchmarks.exports import REAL_CELLS

__all__ = ["cell_of", "embed", "main", "measure"]


def measure(
    folder: Path,
    tree: Path,
    *,
    bundle: Bundle,
    cells: int | None,
    share: float,
    first: float,
    seeds: int,
    hard: bool = False,
    latents: Path | None = None,
) -> dict[str, Any]:
    """Measure in `folder`, an empty one, on `cells` images (None: all) of the class folders in `tree`; returns the
    figures.

    latents : npz with `latents`, `probabilities`, `paths` and `bundle` of the tree's images, embedded before.
    """
    images = sorted(path for path in tree.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if cells is not None:
        images = [images[i] for i in sorted(np.random.default_rng(0).permutation(len(images))[:cells])]
    embedded = _cached(latents, tree, images, bundle) if latents else embed(images, bundle)
    figures: dict[str, Any] = {
        "cells": len(images),
        "share_changed": share,
        "share_looked_at": first,
        "hard": hard,
        "bundle": bundle.short,
    }
    kinds = {"classes": np.array([path.relative_to(tree).parts[0] for path in images])}
    fine = np.array([_fine(path, label) for path, label in zip(images, kinds["classes"].tolist(), strict=True)])
    if len(set(fine.tolist())) > len(set(kinds["classes"].tolist())):
        kinds["fine"] = fine
    for kind, labels in kinds.items():
        found = [
            _once(folder / f"{kind}-{seed}", images, labels, *embedded, bundle, share, first, seed, hard)
            for seed in range(seeds)
        ]
        figures[kind] = {
            "labels": len(set(labels.tolist())),
            "changed": found[0]["changed"],
            "of_the_first": round(float(np.mean([one["of_the_first"] for one in found])), 4),
            "found": round(float(np.mean([one["map"] for one in found])), 4),
            "found_each": [one["map"] for one in found],
            "network": None
            if found[0]["network"] is None
            else round(float(np.mean([one["network"] for one in found])), 4),
            "by_chance": first,
            "suspects_found_with_a_reason": found[0]["listed"],
        }
    figures["found"] = figures["classes"]["found"]
    return figures


def _once(
    folder: Path,
    images: list[Path],
    labels: NDArray[np.str_],
    latents: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    bundle: Bundle,
    share: float,
    first: float,
    seed: int,
    hard: bool,
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    names = np.unique(labels)
    if hard:
        kept = np.ones(len(labels), np.bool_)
        for name in rng.permutation(names)[: len(names) // 3].tolist():
            kept[rng.permutation(np.flatnonzero(labels == name))[rng.integers(3, 13) :]] = False
        images = [image for image, here in zip(images, kept.tolist(), strict=True) if here]
        labels, latents, probabilities = labels[kept], latents[kept], probabilities[kept]
    changed = rng.permutation(len(labels))[: round(share * len(labels))]
    given = labels.copy()
    for at in changed.tolist():
        given[at] = rng.choice(names[names != labels[at]])
    if hard:
        others = np.setdiff1d(np.arange(len(labels)), changed)
        given = given.astype(object)
        given[rng.permutation(others)[: round(0.03 * len(labels))]] = "Unidentified"
        given = given.astype(str)
    lab = Lab.create(folder, [images[0].parent], bundle.folder, unsigned=True)
    known = list(bundle.manifest.labels)
    ids = []
    with lab.open_store() as store:
        for start in range(0, len(images), 256):
            batch = [
                cell_of(images[i], str(given[i]), latents[i], probabilities[i], known)
                for i in range(start, min(start + 256, len(images)))
            ]
            ids += [cell.cell_id for cell in batch]
            store.record(batch, bundle=bundle.digest)
        for _ in retrain(store, MapConfig(), bundle.digest):
            pass
    most = round(first * len(images))
    listed = [row["cell_id"] for row in desk.run(lab, "map.suspects", limit=max(most, 50))]
    wrong = {ids[i] for i in changed.tolist()}
    head = listed[: min(50, len(wrong))]
    network = None
    if set(given.tolist()) <= set(known):
        of_label = probabilities[np.arange(len(given)), [known.index(label) for label in given.tolist()]]
        order = np.argsort(-np.log(probabilities.max(axis=1) / np.maximum(of_label, 1e-12)), kind="stable")[:most]
        network = len(wrong & {ids[i] for i in order.tolist()}) / len(wrong)
    return {
        "changed": len(wrong),
        "map": round(len(wrong & set(listed[:most])) / len(wrong), 4),
        "network": network,
        "listed": len(listed),
        "of_the_first": len(wrong & set(head)) / min(50, len(wrong)),
    }


def cell_of(
    image: Path, label: str, latent: NDArray[np.float32], probabilities: NDArray[np.float32], known: list[str]
) -> NewCell:
    """An image as a cell of the store, labelled by the analyser. known : the bundle's classes."""
    digest = hashlib.sha256(str(image).encode()).hexdigest()  # the bytes play no part here
    best = int(probabilities.argmax())
    return NewCell(
        cell_id=cell_id_of(digest),
        digest=digest,
        path=str(image),
        size_bytes=1,
        mtime_ns=1,
        width=360,
        height=363,
        label=label,
        label_source="analyser",
        slide=None,
        analyser=None,
        captured_at=None,
        predicted_label=known[best],
        predicted_probability=float(probabilities[best]),
        latent=latent,
        probabilities=probabilities,
    )


def _fine(image: Path, label: str) -> str:
    code = re.match(r"(SNE|BNE|MY|MMY|PMY)_", image.name)
    return f"{label} {code[1]}" if code else label


def embed(images: list[Path], bundle: Bundle) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Latents float32[n, L] and probabilities float32[n, c] of images."""
    latents, probabilities = [], []
    with Embedder.open(bundle) as embedder:
        for start in range(0, len(images), 32):
            crops = np.stack([prepare(path.read_bytes()).crop for path in images[start : start + 32]])
            found = embedder.embed(crops)
            latents.append(found.latents)
            probabilities.append(found.probabilities)
    return np.concatenate(latents), np.concatenate(probabilities)


def _cached(
    file: Path, tree: Path, images: list[Path], bundle: Bundle
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with np.load(file, allow_pickle=False) as values:
        if str(values["bundle"]) != bundle.digest:
            raise SystemExit(f"{file} holds latents of bundle {str(values['bundle'])[:12]}, not of {bundle.short}")
        at = {(tree / str(path)).as_posix(): i for i, path in enumerate(values["paths"].tolist())}
        chosen = [at[path.as_posix()] for path in images]
        return values["latents"][chosen].astype(np.float32), values["probabilities"][chosen].astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.suspects",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tree", type=Path, default=REAL_CELLS, help="class folders of images (default ../shared/data/pbc)"
    )
    parser.add_argument("--cells", type=int, help="how many (default all)")
    parser.add_argument("--share", type=float, default=0.02, help="of the labels that are changed (default 0.02)")
    parser.add_argument("--first", type=float, default=0.04, help="of the cells that are looked at (default 0.04)")
    parser.add_argument("--seeds", type=int, default=3, help="repeats, with other changes each (default 3)")
    parser.add_argument("--hard", action="store_true", help="with rare classes and labels that are no opinion")
    parser.add_argument("--bundle", type=Path, help="bundle file (default: the starter bundle)")
    parser.add_argument("--latents", type=Path, help="npz of the tree's embeddings, to save time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labref-suspects-") as folder:
        bundle = install(options.bundle or starter_bundle(), Path(folder) / "bundles")
        figures = measure(
            Path(folder),
            options.tree,
            bundle=bundle,
            cells=options.cells,
            share=options.share,
            first=options.first,
            seeds=options.seeds,
            hard=options.hard,
            latents=options.latents,
        )
    if options.json:
        print(json.dumps(figures))
    else:
        for kind in ("classes", "fine"):
            if kind in figures:
                values = figures[kind]
                print(f"{kind}: {values['found']:.1%} of the changed labels found (network alone: {values['network']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
