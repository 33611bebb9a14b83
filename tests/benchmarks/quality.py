"""Whether pictures that are none of one cell are refused or marked, and pictures of real cells are not.

    python -m tests.benchmarks.quality --json
    python -m tests.benchmarks.quality --json --sheet marked.png

Real cells of ../shared/data, of the half of each set on which no threshold was calibrated; files' names decide
(`training.measure.quality.cells_of`).

`real`: for each set the number of cells, and the share that is marked or refused, by reason; and for the platelets of
pbc. `kinds`: for each kind of bad picture that `training.measure.quality.KINDS` makes of them, and for fields of nine
at the cells' own scale and reduced to the size of one picture, how many there are, and the share that is refused or
marked: over all, `by_set`, and `as` which reason. `ms_per_cell`: CPU time of the judgement itself, in the thread, of
pictures that are prepared already, median and 95 %. --sheet: the real cells that are marked, for a person to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from labref.cells.image import U8, decode, prepare_seen, reduced
from labref.cells.quality import examine, judge
from labref.pictures.sheet import Tile, draw_sheet
from training.measure.quality import KINDS, cells_of, doubted, field_of_nine

DATA: Final = Path(os.environ.get("LABREF_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SETS: Final = ("pbc", "chula", "bccd", "bonemarrow")
_MOST: Final = 240


def measure(data: Path, sets: Sequence[str], most: int, bad: int) -> tuple[dict[str, Any], list[Tile]]:
    """The figures, and the marked real cells. most : real cells of a set.  bad : cells of a set that bad pictures are
    made of."""
    rng = np.random.default_rng(0)
    real: dict[str, Any] = {}
    tiles: list[Tile] = []
    kinds: dict[str, dict[str, Counter[str]]] = {}
    times: list[float] = []
    for name in sets:
        items = cells_of(data, name, calibration=False, most=most)
        groups = {name: items}
        if name == "pbc":
            platelets = [one for one in cells_of(data, name, calibration=False) if one.label == "platelet"]
            groups["platelets"] = platelets[:most]
        for group, chosen in groups.items():
            found: Counter[str] = Counter()
            for item in chosen:
                pixels = decode((data / item.path).read_bytes())
                said = doubted(pixels)
                found[said] += 1
                if said:
                    tiles.append(Tile(pixels, item.label, (group, said, Path(item.path).name)))
            real[group] = _shares(found)
        pictures: list[U8] = []
        for item in items[:bad]:
            pixels = decode((data / item.path).read_bytes())
            pictures.append(pixels)
            times.append(_time(pixels))
            for kind, make in KINDS.items():
                made = make(pixels, rng)
                if made is not None:
                    kinds.setdefault(kind, {}).setdefault(name, Counter())[doubted(made)] += 1
        for start in range(0, len(pictures) - 8, 3):
            nine = pictures[start : start + 9]
            for kind, scale in (("nine", 1.0), ("nine_reduced", 1 / 3)):
                said = doubted(field_of_nine(nine, scale))
                kinds.setdefault(kind, {}).setdefault(name, Counter())[said] += 1
    return {
        "real": real,
        "kinds": {
            kind: _shares(sum(by_set.values(), Counter()))
            | {"by_set": {name: _shares(found)["share"] for name, found in by_set.items()}}
            for kind, by_set in kinds.items()
        },
        "ms_per_cell": {"median": float(np.median(times)), "p95": float(np.quantile(times, 0.95))},
    }, tiles


def _shares(found: Counter[str]) -> dict[str, Any]:
    n = found.total()
    return {
        "n": n,
        "share": round(1 - found[""] / n, 4),
        "as": {reason: round(count / n, 4) for reason, count in found.most_common() if reason},
    }


def _time(pixels: U8) -> float:
    cell, colours = prepare_seen(pixels, reduced(pixels))
    started = time.thread_time()
    judge(examine(cell, colours))
    return 1e3 * (time.thread_time() - started)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with a folder for each set")
    parser.add_argument("--sets", nargs="+", default=SETS, help="which sets")
    parser.add_argument("--cells", type=int, default=400, help="at most so many real cells of a set")
    parser.add_argument("--bad", type=int, default=60, help="bad pictures of each kind from a set")
    parser.add_argument("--sheet", type=Path, help="write the marked real cells there, as one picture")
    chosen = parser.parse_args(arguments)
    figures, tiles = measure(chosen.data, chosen.sets, chosen.cells, chosen.bad)
    if chosen.sheet:
        draw_sheet("Real cells that are marked", f"{len(tiles)} cells", tiles[:_MOST], columns=10).save(chosen.sheet)
    if chosen.json:
        print(json.dumps(figures))
        return
    for kind, row in (figures["real"] | figures["kinds"]).items():
        print(f"{kind:22} {row['n']:5}  {row['share']:.4f}  {row['as']}  {row.get('by_set', '')}")
    print("ms per cell", figures["ms_per_cell"])


if __name__ == "__main__":
    main()
