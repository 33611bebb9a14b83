"""Whether a query is about the cell in the middle of the picture, where other cells lie beside it.

    python -m tests.benchmarks.neighbours --json
    python -m tests.benchmarks.neighbours --json --bundle mine.labref --sheet composites.png

Real cells of ../shared/data/pbc that the starter never saw (`python -m training split`'s held-out part), and of those
the half that the segmentation's numbers were not chosen on. All pictures with neighbours are simulated: into a cell's
picture another cell's is laid, of another class, its middle 95 to 125 px away at any angle; of the two pixels the
darker one is taken, channel by channel. With two neighbours, the second lies at least 60° round from the first.

`middle`: how far the chosen cell's centre lies from the picture's middle, pixels: the mean, and the shares beyond 25,
40 and 60. `pbc`: pictures of all of pbc, evenly taken, up to ten times `--cells`; `alone`, `one`, `two`: those of this
benchmark, with so many neighbours.
`steady`: the same picture shifted by up to 8 px, each channel's gain changed by up to 8 %, blurred by 1 px (σ): how far
the centre moves on the cell, and the share below 3 px.
`precision`: class precision@8 of the cells against all cells that the starter was trained on, mean over the classes and
of each, with the 95 % interval over cells; embedded by `--bundle`.
`fields`: two pictures of one field, each around its own cell: see `tests.benchmarks.duplicates.measure_neighbours`.
`prepare`: milliseconds to decode and prepare one picture, and to decode it alone, of the thread's own time; the
medians.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from labref.bundles.bundle import install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cells.centring import distance_from_middle
from labref.cells.image import decode, prepare, prepare_pixels
from tests.benchmarks.duplicates import DATA, measure_neighbours
from training.augmentation.composites import beside
from training.data.images import Item, list_images, make_split, name_fraction
from training.measure.evaluate import K, nearest
from training.measure.statistics import bootstrap

_DISTANCE: Final = (95.0, 125.0)  # pixels between the middles
_APART: Final = np.pi / 3  # least angle between two neighbours
_KINDS: Final = ("alone", "one", "two")
_SHOWN: Final = 24

U8 = NDArray[np.uint8]


def judged(held: Sequence[Item]) -> list[Item]:
    """The half of held-out cells that nothing was chosen on."""
    return [item for item in held if name_fraction(item.path.rsplit("/", 1)[-1], "labref-neighbours") >= 0.5]


def composite(data: Path, items: Sequence[Item], number: int, neighbours: int, seed: int) -> U8:
    """The picture of item `number` with so many others laid beside its cell."""
    rng = np.random.default_rng([seed, neighbours, number])
    item = items[number]
    picture = decode((data / item.path).read_bytes())
    angle = rng.uniform(0, 2 * np.pi)
    for _ in range(neighbours):
        other = items[int(rng.integers(len(items)))]
        while other.label == item.label:
            other = items[int(rng.integers(len(items)))]
        distance = rng.uniform(*_DISTANCE)
        laid = decode((data / other.path).read_bytes())
        picture = beside(picture, laid, distance * np.sin(angle), distance * np.cos(angle))
        angle += rng.uniform(_APART, 2 * np.pi - _APART)
    return picture


def changed(picture: U8, rng: np.random.Generator) -> tuple[U8, tuple[int, int]]:
    """The picture as another capture of the cell would show it, and by how many pixels (down, right) it was shifted."""
    down, right = (int(step) for step in rng.integers(-8, 9, 2))
    moved = ndimage.shift(picture, (down, right, 0), order=0, mode="nearest").astype(np.float32)
    blurred = ndimage.gaussian_filter(moved, (1.0, 1.0, 0.0)) * (1 + rng.uniform(-0.08, 0.08, 3))
    return np.clip(np.rint(blurred), 0, 255).astype(np.uint8), (down, right)


def distances(moved: Sequence[float]) -> dict[str, Any]:
    """JSON of how far centres lie from the middle."""
    away = np.array(moved)
    beyond = {f"beyond_{limit}": round(float((away > limit).mean()), 4) for limit in (25, 40, 60)}
    return {"pictures": len(away), "mean": round(float(away.mean()), 2), **beyond}


def measure(
    data: Path, *, cells: int, seed: int, bundle: Path | None, fields: int, threads: int, sheet: Path | None
) -> dict[str, Any]:
    """Measure everything that this module's docstring describes. cells : the most of each kind.  bundle : None measures
    no precision."""
    pbc = data / "pbc"
    split = make_split(list_images(pbc), holdout=0.2, validation=0.0)
    items = judged(split.holdout)
    chosen = np.random.default_rng(seed).permutation(len(items))[:cells].tolist()
    result: dict[str, Any] = {"cells": len(chosen), "seed": seed, "middle": {}, "steady": {}}
    with ThreadPoolExecutor(threads) as pool:
        note(f"{len(split.train) + len(split.holdout):,} pictures of pbc")

        def whole(item: Item) -> float:
            cell = prepare((pbc / item.path).read_bytes())
            return distance_from_middle(cell.centre, cell.size)

        all_of_it = split.train + split.holdout
        every = all_of_it[:: max(1, round(len(all_of_it) / (10 * cells)))]
        result["middle"]["pbc"] = distances(list(pool.map(whole, every)))
        crops: dict[str, U8] = {}
        tiles: list[tuple[U8, U8, tuple[float, float]]] = []
        for neighbours, kind in enumerate(_KINDS):
            note(f"{len(chosen):,} cells {kind}")

            def one(number: int, neighbours: int = neighbours) -> tuple[U8, float, float, Any]:
                picture = composite(pbc, items, number, neighbours, seed)
                cell = prepare_pixels(picture)
                again, shift = changed(picture, np.random.default_rng([seed, 9, number]))
                found = prepare_pixels(again).centre
                slip = np.hypot(found[0] - shift[0] - cell.centre[0], found[1] - shift[1] - cell.centre[1])
                kept = (picture, cell.crop, cell.centre) if neighbours and number in chosen[: _SHOWN // 2] else None
                return cell.crop, distance_from_middle(cell.centre, cell.size), float(slip), kept

            made = list(pool.map(one, chosen))
            crops[kind] = np.stack([crop for crop, _, _, _ in made])
            result["middle"][kind] = distances([away for _, away, _, _ in made])
            slips = np.array([slip for _, _, slip, _ in made])
            result["steady"][kind] = {
                "below_3_px": round(float((slips < 3).mean()), 4),
                "median": round(float(np.median(slips)), 2),
            }
            tiles += [kept for _, _, _, kept in made if kept is not None]
    if sheet is not None:
        draw(tiles, sheet)
    result["fields"] = measure_neighbours([pbc / item.path for item in items], fields, seed, threads=threads)
    result["prepare"] = measure_prepare([(pbc / items[number].path).read_bytes() for number in chosen[:200]])
    if bundle is not None:
        labels = [items[number].label for number in chosen]
        result |= measure_precision(pbc, split.train, crops, labels, bundle, threads)
    return result


def measure_precision(
    pbc: Path, known: Sequence[Item], crops: dict[str, U8], labels: Sequence[str], source: Path, threads: int
) -> dict[str, Any]:
    """Class precision@8 of crops uint8[n, 256, 256, 3] of each kind, with the classes `labels`, among the cells
    `known`."""
    with tempfile.TemporaryDirectory(prefix="labref-neighbours-") as folder:
        bundle = install(source, Path(folder))
        with Embedder.open(bundle, device="cpu") as embedder, ThreadPoolExecutor(threads) as pool:
            note(f"{len(known):,} references are embedded")
            parts = []
            for start in range(0, len(known), 64):
                prepared = pool.map(
                    lambda item: prepare((pbc / item.path).read_bytes()).crop, known[start : start + 64]
                )
                parts.append(embedder.embed(np.stack(list(prepared))).latents)
            references, names = np.concatenate(parts), np.array([item.label for item in known])
            precision: dict[str, Any] = {}
            for kind, pictures in crops.items():
                note(f"{len(pictures):,} cells {kind} are embedded")
                rows, _ = nearest(embedder.embed(pictures).latents, references, None)
                hits = (names[rows] == np.array(labels)[:, None]).mean(axis=1)
                precision[kind] = bootstrap(hits, strata=list(labels)).to_json() | {
                    "per_class": {
                        label: round(float(hits[np.array(labels) == label].mean()), 4) for label in sorted(set(labels))
                    }
                }
            return {"bundle": bundle.digest, "references": len(known), "k": K, "precision": precision}


def measure_prepare(files: Sequence[bytes]) -> dict[str, float]:
    """Milliseconds of one thread to prepare each file, with decoding and to decode it alone: medians."""
    took: dict[str, list[float]] = {"decode_and_prepare_ms": [], "decode_ms": []}
    for data in files:
        for name, work in (("decode_and_prepare_ms", prepare), ("decode_ms", decode)):
            started = time.thread_time()
            work(data)
            took[name].append(1e3 * (time.thread_time() - started))
    return {name: round(float(np.median(times)), 2) for name, times in took.items()}


def draw(tiles: Sequence[tuple[U8, U8, tuple[float, float]]], out: Path) -> None:
    """Pictures with the chosen centre marked, each beside the crop that is embedded."""
    side, columns = 256, 8
    page = Image.new("RGB", (columns * side, -(-2 * len(tiles) // columns) * side), "white")
    for number, (picture, crop, centre) in enumerate(tiles):
        left, top = (2 * number) % columns * side, (2 * number) // columns * side
        shown = Image.fromarray(picture)
        ImageDraw.Draw(shown).ellipse(
            (centre[1] - 8, centre[0] - 8, centre[1] + 8, centre[0] + 8), outline="yellow", width=4
        )
        page.paste(shown.resize((side, side)), (left, top))
        page.paste(Image.fromarray(crop), (left + side, top))
    page.save(out)


def note(text: str) -> None:
    """Say on standard error how far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cells", type=int, default=1000, help="cells of each kind, at most")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--bundle", type=Path, help="the bundle that embeds; by default the starter")
    parser.add_argument("--no-precision", action="store_true", help="measure the middle alone, without networks")
    parser.add_argument("--fields", type=int, default=500, help="fields with two cells that are made")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--sheet", type=Path, help="picture of some composites and their crops")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    result = measure(
        asked.data,
        cells=asked.cells,
        seed=asked.seed,
        bundle=None if asked.no_precision else asked.bundle or starter_bundle(),
        fields=asked.fields,
        threads=asked.threads,
        sheet=asked.sheet,
    )
    print(json.dumps(result) if asked.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
