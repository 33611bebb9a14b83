"""The map against MiniSom, on real latents: `python -m tests.benchmarks.som --json`.

- `seconds`: to train a map of `--side` squared nodes on real latents, repeated with noise up to `--cells`; the median
  of `--repeats`.
- `speedup_over_minisom`: seconds of one MiniSom step at that size, measured in turn with the trainings, × 500 steps for
  each node (the thesis, 4.5), divided by `seconds`. `speedup_by_cpu`: the same in CPU seconds, which other work on the
  computer disturbs less.
- `equal_terms`: both on plain real latents, with the same size and final radius; MiniSom is given ten times our time.
- `warm`: training from the last map after 5 % more cells came: how far the earlier cells moved, and how far they would
  have moved in a training from the start.
- `memory_mib`: the most the process grew while it trained.
- `mislabels`: 2 % of labels are changed; how many of those are among the first 4 % of suspects. `chance` is 4 %.
- `svomen`: the automatic SVOMEN (training.measure.triplets) of the latent space and of the map of plain real latents.

`--sweep` trains the nine settings of the thesis' table 9, and the one it recommends, and scores each with the automatic
SVOMEN. Latents come from ../shared/data through the starter bundle (minutes), or from files that `python -m training
embed` wrote.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import minisom
import numpy as np
import psutil
from numpy.typing import NDArray

from labref import som
from labref.bundles.bundle import install, starter_bundle
from labref.bundles.inference import Embedder
from tests.benchmarks.exports import REAL_CELLS
from training.data.images import load_attributes
from training.measure.latents import Latents, embed_latents, load_latents, on_map
from training.measure.triplets import attribute_triplets, score

__all__ = ["TABLE_9", "main", "measure", "sweep", "tiled"]

NOISE: Final = 0.25
"""Of each repeated latent, in standard deviations of each dimension: about half the distance between nearest real
cells."""
GROWTH, FLIPPED, LOOKED_AT = 0.05, 0.02, 0.04
STEPS_A_NODE: Final = 500

TABLE_9: Final[tuple[tuple[int, int, float, float, float | None], ...]] = (
    (100, 1_000_000, 0.5, 30, 68.1),
    (244, 1_000_000, 0.25, 20, 74.9),
    (244, 1_000_000, 0.5, 70, 67.6),
    (244, 1_000_000, 0.5, 50, 69.5),
    (244, 2_000_000, 0.5, 50, 71.1),
    (244, 1_000_000, 0.5, 10, 73.0),
    (244, 1_000_000, 0.5, 20, 75.0),
    (244, 1_000_000, 0.5, 30, 72.7),
    (244, 1_000_000, 1.0, 20, 71.9),
    (248, 30_752_000, 0.5, 124, None),
)
"""Side, MiniSom's iterations, α, σ and SVOMEN in % of the thesis' table 9; last the setting it recommends and could not
train."""

Floats = NDArray[np.float32]


def tiled(latents: Floats, cells: int, *, seed: int) -> Floats:
    """Latents float32[n, L] repeated up to float32[cells, L], in random order; where that takes more than one of each,
    all get Gaussian noise of `NOISE` of each dimension's standard deviation."""
    rng = np.random.default_rng(seed)
    repeats = -(-cells // len(latents))
    chosen = rng.permutation(repeats * len(latents))[:cells] % len(latents)
    noise = NOISE * latents.std(axis=0) if repeats > 1 else np.zeros(latents.shape[1])
    found: Floats = (latents[chosen] + rng.standard_normal((cells, latents.shape[1])) * noise).astype(np.float32)
    return found


@contextmanager
def _growth() -> Iterator[list[float]]:
    """The most MiB by which this process grows in the block, measured every 5 ms. It is the list's only element once
    the block ends."""
    process = psutil.Process()
    before = most = process.memory_info().rss
    ended = threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, process.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    found = [0.0]
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found[0] = (most - before) / 2**20


def _minisom(side: int, data: Floats, sigma: float, seed: int) -> minisom.MiniSom:
    trained = minisom.MiniSom(side, side, data.shape[1], sigma=sigma, learning_rate=0.5, random_seed=seed)
    trained.pca_weights_init(data)
    return trained


def _a_step(side: int, data: Floats, sigma: float, steps: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, of one step of MiniSom."""
    trained = _minisom(side, data, sigma, 0)
    trained.train(data, 2, random_order=True)
    started, started_cpu = time.perf_counter(), time.process_time()
    trained.train(data, steps, random_order=True)
    return (time.perf_counter() - started) / steps, (time.process_time() - started_cpu) / steps


def _full(latents: Floats, cells: int, side: int, *, repeats: int, steps: int, seed: int) -> dict[str, Any]:
    data = tiled(latents, cells, seed=seed)
    seconds, cpu, mib = [], [], []
    step: list[float] = []
    step_cpu: list[float] = []
    for _ in range(repeats):
        for value, values in zip(_a_step(side, data, side / 2, steps), (step, step_cpu), strict=True):
            values.append(value)
        with _growth() as grown:
            started, started_cpu = time.perf_counter(), time.process_time()
            trained = som.train(data, rows=side, cols=side, seed=seed)
            seconds.append(time.perf_counter() - started)
            cpu.append(time.process_time() - started_cpu)
        mib.append(grown[0])
    figures = som.quality(trained, data, seed=seed)
    taken, a_step = statistics.median(seconds), statistics.median(step)
    minisom_steps = STEPS_A_NODE * side * side
    return {
        "seconds": round(taken, 3),
        "seconds_all": [round(value, 3) for value in seconds],
        "cpu_seconds": round(statistics.median(cpu), 3),
        "speedup_over_minisom": round(a_step * minisom_steps / taken, 1),
        "speedup_by_cpu": round(statistics.median(step_cpu) * minisom_steps / statistics.median(cpu), 1),
        "minisom_ms_a_step": round(a_step * 1000, 3),
        "minisom_steps": minisom_steps,
        "minisom_days": round(a_step * minisom_steps / 86400, 2),
        "memory_mib": round(max(mib), 1),
        "data_mib": round(data.nbytes / 2**20, 1),
        "qe": round(figures["qe"], 4),
        "te": round(figures["te"], 4),
        "trustworthiness": round(figures["trustworthiness"], 4),
        "continuity": round(figures["continuity"], 4),
    }


def _equal_terms(latents: Floats, cells: int, side: int, *, seed: int) -> dict[str, Any]:
    data = latents[np.random.default_rng(seed).permutation(len(latents))[:cells]]
    started = time.perf_counter()
    ours = som.train(data, rows=side, cols=side, seed=seed)
    taken = time.perf_counter() - started
    sigma = 3 * som.FINAL_SIGMA  # MiniSom's falls to a third
    step, _ = _a_step(side, data, sigma, 50)
    iterations = max(1, round(10 * taken / step))
    theirs = _minisom(side, data, sigma, seed)
    started = time.perf_counter()
    theirs.train(data, iterations, random_order=True)
    theirs_taken = time.perf_counter() - started
    # by MiniSom's own methods on both: the map is one of MiniSom's
    return {
        "side": side,
        "cells": len(data),
        "final_sigma": som.FINAL_SIGMA,
        "seconds": round(taken, 3),
        "minisom_seconds": round(theirs_taken, 3),
        "minisom_iterations": iterations,
        "qe": round(float(ours.quantization_error(data)), 4),
        "minisom_qe": round(float(theirs.quantization_error(data)), 4),
        "te": round(float(ours.topographic_error(data)), 4),
        "minisom_te": round(float(theirs.topographic_error(data)), 4),
    }


def _warm(latents: Floats, cells: int, side: int, *, seed: int) -> dict[str, Any]:
    data = tiled(latents, cells, seed=seed + 1)
    old = data[: round(cells / (1 + GROWTH))]
    before = som.train(old, rows=side, cols=side, seed=seed)
    started = time.perf_counter()
    after = som.train(data, rows=side, cols=side, seed=seed, initial=before.get_weights())
    taken = time.perf_counter() - started
    moved = som.moved(before, after, old)
    anew = som.moved(before, som.train(data, rows=side, cols=side, seed=seed), old)
    was, now = (som.quality(trained, data, seed=seed) for trained in (before, after))
    return {
        "seconds": round(taken, 3),
        "cells": len(data),
        "old_cells": len(old),
        "within_3_nodes": round(float((moved <= 3).mean()), 4),
        "mean_moved": round(float(moved.mean()), 3),
        "within_3_nodes_anew": round(float((anew <= 3).mean()), 4),
        "qe": round(now["qe"], 4),
        "qe_before": round(was["qe"], 4),
        "te": round(now["te"], 4),
        "te_before": round(was["te"], 4),
    }


def _mislabels(latents: Latents, labels: Sequence[str], *, repeats: int, seed: int) -> dict[str, Any]:
    rows, cols = som.size_for(len(labels))
    trained = som.train(latents.values, rows=rows, cols=cols, seed=seed)
    nodes, _ = som.winners(trained, latents.values)
    true = np.array(labels)
    names = np.unique(true)
    count = max(1, round(FLIPPED * len(true)))
    shares = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        wrong = rng.choice(len(true), count, replace=False)
        given = true.copy()
        given[wrong] = [rng.choice(names[names != label]) for label in true[wrong]]
        surprise = som.suspicion(som.neighbourhood(nodes, given, rows=rows, cols=cols), given)
        first = np.argsort(-surprise, kind="stable")[: round(LOOKED_AT * len(true))]
        shares.append(float(np.isin(wrong, first).mean()))
    about = som.neighbourhood(nodes, true, rows=rows, cols=cols)
    agree = np.array(about.labels)[about.majority] == true
    return {
        "cells": len(true),
        "classes": len(names),
        "nodes": [rows, cols],
        "flipped": count,
        "found": round(statistics.mean(shares), 4),
        "found_least": round(min(shares), 4),
        "chance": LOOKED_AT,
        "agree_with_neighbourhood": round(float(agree.mean()), 4),
    }


def _fine(latents: Latents) -> list[str]:
    """Finer classes from the file names of ../shared/data/pbc: SNE, BNE, MY, MMY, PMY … (its README)."""
    return [f"{item.label} {item.path.rsplit('/', 1)[-1].split('_')[0]}" for item in latents.items]


def measure(
    latents: Latents,
    unseen: Latents | None,
    *,
    cells: int,
    side: int,
    equal_cells: int,
    equal_side: int,
    repeats: int,
    minisom_steps: int,
    attributes: Path | None,
    seed: int,
) -> dict[str, Any]:
    """The figures. unseen : latents of cells that the bundle was not trained on, for the mislabels too."""
    figures = _full(latents.values, cells, side, repeats=repeats, steps=minisom_steps, seed=seed)
    figures |= {
        "side": side,
        "cells": cells,
        "real_latents": len(latents.paths),
        "source": latents.source,
        "equal_terms": _equal_terms(latents.values, equal_cells, equal_side, seed=seed),
        "warm": _warm(latents.values, cells, side, seed=seed),
        "mislabels": {
            "classes": _mislabels(latents, [item.label for item in latents.items], repeats=repeats, seed=seed),
            "fine_classes": _mislabels(latents, _fine(latents), repeats=repeats, seed=seed),
        },
    }
    if unseen is not None:
        labels = [item.label for item in unseen.items]
        figures["mislabels"]["unseen_optics"] = _mislabels(unseen, labels, repeats=repeats, seed=seed)
    if attributes is not None:
        figures["svomen"] = _svomen(latents, attributes, seed=seed)
    return figures | {"cores": os.cpu_count(), "load": round(psutil.getloadavg()[0], 1)}


def _svomen(latents: Latents, attributes: Path, *, seed: int) -> dict[str, Any]:
    triplets = attribute_triplets(latents.items, load_attributes(attributes), seed=seed + 1)
    rows, cols = som.size_for(len(latents.paths))
    trained = som.train(latents.values, rows=rows, cols=cols, seed=seed)
    space, places = score(triplets, latents), score(triplets, on_map(latents, trained))
    return {
        "set": triplets.digest[:12],
        "nodes": [rows, cols],
        "latent": space["svomen"],
        "map": places["svomen"],
        "difference_points": round(100 * (places["svomen"]["value"] - space["svomen"]["value"]), 2),
        "map_ties": places["ties"],
        "same_class": {"latent": space["same_class"], "map": places["same_class"]},
    }


def sweep(
    latents: Latents, attributes: Path, *, cells: int, trainer: str, share: float, scale: float, seed: int
) -> Iterator[dict[str, Any]]:
    """One row a setting of `TABLE_9`, trained on latents repeated up to `cells`, scored on the plain ones.

    trainer : "batch" starts from σ and ends at a third of it, as MiniSom does, and has neither α nor iterations; the
    recommended setting ends at `som.FINAL_SIGMA`, as Kohonen advises. "minisom" takes all four, and `share` of the
    iterations.
    scale : of side and σ, 1 for the thesis' own.
    """
    data = tiled(latents.values, cells, seed=seed)
    triplets = attribute_triplets(latents.items, load_attributes(attributes), seed=seed + 1)
    yield {"setting": "latent space", "svomen": score(triplets, latents)["svomen"]}
    done: dict[tuple[int, float], dict[str, Any]] = {}
    for side, iterations, alpha, sigma, thesis in TABLE_9:
        nodes, radius = max(2, round(side * scale)), max(1.0, sigma * scale)
        row = {"side": nodes, "sigma": radius, "alpha": alpha, "iterations": iterations, "thesis_svomen": thesis}
        final = som.FINAL_SIGMA if thesis is None else radius / 3
        started = time.perf_counter()
        if trainer == "batch":
            row |= {"alpha": None, "iterations": None}
            if (nodes, radius) not in done:
                trained = som.train(data, rows=nodes, cols=nodes, sigma=radius, final_sigma=final, seed=seed)
                done[nodes, radius] = _row(trained, data, latents, triplets, seed) | {
                    "seconds": round(time.perf_counter() - started, 2)
                }
            yield row | {"final_sigma": final} | done[nodes, radius]
            continue
        row["iterations"] = shared = max(1, round(iterations * share))
        trained = som.train(
            data,
            rows=nodes,
            cols=nodes,
            sigma=radius,
            iterations=shared,
            learning_rate=alpha,
            initial="random",
            trainer="minisom",
            seed=seed,
        )
        taken = round(time.perf_counter() - started, 2)
        yield row | {"final_sigma": radius / 3} | _row(trained, data, latents, triplets, seed) | {"seconds": taken}


def _row(trained: minisom.MiniSom, data: Floats, latents: Latents, triplets: Any, seed: int) -> dict[str, Any]:
    figures = som.quality(trained, data, seed=seed)
    return {
        "svomen": score(triplets, on_map(latents, trained))["svomen"],
        "qe": round(figures["qe"], 4),
        "te": round(figures["te"], 4),
        "trustworthiness": round(figures["trustworthiness"], 4),
    }


def _latents(file: Path | None, tree: Path) -> Latents:
    if file is not None:
        return load_latents(file)
    with (
        tempfile.TemporaryDirectory(prefix="labref-som-") as scratch,
        Embedder.open(install(starter_bundle(), Path(scratch))) as embedder,
    ):
        return embed_latents(embedder, tree)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.som", description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=62_000)
    parser.add_argument("--side", type=int, default=248, help="rows, and columns, of the map")
    parser.add_argument("--equal-cells", type=int, default=8_000)
    parser.add_argument("--equal-side", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--minisom-steps", type=int, default=100, help="steps of MiniSom to time at --side before each training"
    )
    parser.add_argument("--latents", type=Path, help="npz of real latents, instead of embedding ../shared/data/pbc")
    parser.add_argument("--unseen", type=Path, help="npz of latents, instead of embedding ../shared/data/bonemarrow")
    parser.add_argument("--attributes", type=Path, default=REAL_CELLS / "attributes.csv")
    parser.add_argument("--sweep", action="store_true", help="the settings of table 9 instead")
    parser.add_argument("--trainer", choices=("batch", "minisom"), default="batch", help="of the sweep")
    parser.add_argument("--share", type=float, default=1.0, help="of the iterations, for the sweep by MiniSom")
    parser.add_argument("--scale", type=float, default=1.0, help="of side and radius in the sweep")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.latents is None and not REAL_CELLS.is_dir():
        parser.error(f"there are no real cells in {REAL_CELLS}; give --latents FILE")
    latents = _latents(options.latents, REAL_CELLS)
    if options.sweep:
        rows = sweep(
            latents,
            options.attributes,
            cells=options.cells,
            trainer=options.trainer,
            share=options.share,
            scale=options.scale,
            seed=options.seed,
        )
        for row in rows:
            print(json.dumps(row), flush=True)
        return 0
    marrow = REAL_CELLS.parent / "bonemarrow"
    unseen = _latents(options.unseen, marrow) if options.unseen or (not options.latents and marrow.is_dir()) else None
    figures = measure(
        latents,
        unseen,
        cells=options.cells,
        side=options.side,
        equal_cells=options.equal_cells,
        equal_side=options.equal_side,
        repeats=options.repeats,
        minisom_steps=options.minisom_steps,
        attributes=options.attributes if options.attributes.is_file() else None,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"{options.side}×{options.side} nodes, {options.cells} cells: {figures['seconds']} s, QE {figures['qe']}, TE {figures['te']}"
        )
        print(f"MiniSom would take {figures['minisom_days']} days: {figures['speedup_over_minisom']:.0f} times as long")
    return 0


if __name__ == "__main__":
    sys.exit(main())
