"""Whether the same cell is recognised when it is captured again, and different cells are kept apart; beside it the
thesis' rule.

    python -m tests.benchmarks.duplicates --json
    python -m tests.benchmarks.duplicates --json --sheet pairs.png

The sheet shows every reported pair, except identical files, for a person to look at.

Real cells of ../shared/data. One run measures:

`pairs`: every pair of all cells, of any class and optics, through the stages of an ingest: fingerprints, then
registration of the candidates. Counts by verdict, and the lowest score of each. `highest_different`: the most alike
pair that is called different although the middles of its pictures lie where they should. Only a person can say whether
a reported pair is one cell: see the sheet.

`recaptures`: simulated captures of the same cells. `mild`: shift up to 4 px, gain ±5 % for each channel, blur 0.7 px,
JPEG 90. `strong`: 8 px, ±8 %, 1 px, ±1° of rotation. Shares that are called `duplicate` and `duplicate_or_possible` of
the cell that they were made from. `candidate`: the share that the search finds at all. `candidate_by_fingerprint`: the
share that it finds without landmarks, as in a lab where many cells came in between. --edge: what fills the border that
a shift leaves, the nearest pixels or black.

`neighbours`: fields with two cells of pbc, 60 to 130 px apart; of two pictures laid over each other, the darker pixel
is taken. A picture is taken around each cell. `ruling`: shares by verdict of the two pictures alone. `end_to_end`: the
same where one is stored among those of all other fields, and then the other comes. `not_compared`: the search did not
bring them together. Each is measured for two pieces of one capture (`one_capture`), and for two captures with changes
as in `mild` (`captured_apart`).

`thesis`: its rule, on the same cells and recaptures: average hash and same class; a Hamming distance below 2 is a
duplicate, up to 3 is judged by hand (section 4.2).

`look_up`: milliseconds to find the candidates of one cell among `cells` made-up fingerprints. `cpu_`: the thread's own
CPU time, which other work on the computer (`load`) does not lengthen.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from labref.cells.hashes import DUPLICATE_BELOW, POSSIBLE_UP_TO, average_hash, digest
from labref.cells.image import decode, prepare_pixels
from labref.cells.registration import Alignment, View, align, view
from labref.cells.sameness import DEFAULTS, marks, ruling, without_frame
from labref.pictures.sheet import Tile, draw_sheet
from labref.store.memory.books import HashBook, id_to_int
from labref.store.recording import Search, stored_landmarks
from labref.words import Fingerprint, Landmark, Verdict, hamming

DATA: Final = Path(os.environ.get("LABREF_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SETS: Final = ("pbc", "chula", "bccd", "bonemarrow")
_MOST_ON_SHEET: Final = 240


@dataclass(frozen=True)
class Recapture:
    """How a cell is captured again. Most shift in pixels, gain of each channel, blur (σ, pixels), rotation in
    degrees."""

    shift: float
    gain: float
    blur: float
    rotation: float


KINDS: Final = {"mild": Recapture(4, 0.05, 0.7, 0), "strong": Recapture(8, 0.08, 1.0, 1)}


@dataclass(frozen=True)
class Seen:
    """The fingerprints, landmarks and picture by which a cell is compared."""

    path: Path | None
    digest: str
    label: str
    average: int
    marks: tuple[Fingerprint, ...]
    landmarks: tuple[Landmark, ...]
    view: View


def see(data: bytes, label: str, path: Path | None = None) -> Seen:
    """What the agent makes of a file."""
    pixels = decode(data)
    cell = prepare_pixels(pixels)
    own, beside = marks(pixels, cell)
    shown = view(without_frame(pixels, cell))
    return Seen(path, digest(data), label, average_hash(cell.surroundings), own, beside, shown)


def recapture(pixels: NDArray[np.uint8], how: Recapture, rng: np.random.Generator, edge: str = "nearest") -> bytes:
    """The cell in uint8[h, w, 3] captured again, as a JPEG of quality 90. edge : "nearest" or "black"."""
    shift = rng.uniform(-how.shift, how.shift, 2)
    angle = np.radians(rng.uniform(-how.rotation, how.rotation))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = (np.array(pixels.shape[:2]) - 1) / 2
    offset = middle - turn @ middle - shift
    mode = "constant" if edge == "black" else edge
    moved = np.stack(
        [
            ndimage.affine_transform(pixels[..., i].astype(np.float32), turn, offset, order=1, mode=mode)
            for i in range(3)
        ],
        axis=-1,
    )
    moved = ndimage.gaussian_filter(moved, (how.blur, how.blur, 0)) * (1 + rng.uniform(-how.gain, how.gain, 3))
    return jpeg(np.clip(np.rint(moved), 0, 255).astype(np.uint8))


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """The picture uint8[h, w, 3] as a JPEG of quality 90."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def field_of_two(
    a: NDArray[np.uint8], b: NDArray[np.uint8], offset: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One field with the cells of two pictures uint8[h, w, 3], as two pictures: the parts of it where the given ones
    lie.

    offset : (rows, columns) in pixels from the upper left corner of `a` to that of `b`. Where both lie, the darker
    pixel of each colour counts: light goes through both cells.
    """
    corners = [[max(0, -step) for step in offset], [max(0, step) for step in offset]]
    places = [
        (slice(top, top + picture.shape[0]), slice(left, left + picture.shape[1]))
        for (top, left), picture in zip(corners, (a, b), strict=True)
    ]
    height, width = (max(place[axis].stop for place in places) for axis in (0, 1))
    field = np.full((height, width, 3), 255, np.uint8)
    for place, picture in zip(places, (a, b), strict=True):
        field[place] = np.minimum(field[place], picture)
    return field[places[0]], field[places[1]]


def files_of(data: Path, limit: int | None) -> list[Path]:
    """The images of all sets; of each class only the first `limit`."""
    found: list[Path] = []
    for name in SETS:
        for folder in sorted(path for path in (data / name).iterdir() if path.is_dir()):
            found += sorted(folder.glob("*.jpg"))[:limit]
    return found


def book_of(cells: Sequence[Seen]) -> HashBook:
    """Fingerprints as a store keeps them; a cell's number is its id."""
    return _book([(number, cell.marks[0]) for number, cell in enumerate(cells)])


def search_of(cells: Sequence[Seen]) -> Search:
    """Fingerprints and landmarks as a store keeps them; a cell's number is its id."""
    places = [(number, mark) for number, cell in enumerate(cells) for mark in stored_landmarks(cell.landmarks)]
    return Search(book_of(cells), _book(places))


def searched(stored: Search, cell: Seen) -> list[int]:
    """The numbers of the cells that one is compared with when it comes into a store."""
    return list(map(id_to_int, stored.candidates(cell.marks, cell.landmarks, DEFAULTS.candidate_bits)))


def _book(numbered: Sequence[tuple[int, Fingerprint]]) -> HashBook:
    book = HashBook()
    numbers = np.array([number for number, _ in numbered], np.uint64)
    across = np.array([mark.across for _, mark in numbered], np.uint64)
    down = np.array([mark.down for _, mark in numbered], np.uint64)
    book.add(across, down, numbers, numbers.astype(np.uint32))
    return book


def measure_pairs(
    cells: Sequence[Seen], pool: ThreadPoolExecutor
) -> tuple[dict[str, Any], list[tuple[int, int, Alignment]]]:
    """Every pair of cells: what is reported, and the reported pairs but identical files, most alike first."""
    stored = search_of(cells)
    pairs = [
        (other, i)
        for i, cell in enumerate(cells)
        for other in searched(stored, cell)
        if other < i  # each as if it came after those before it
    ]
    aligned = list(pool.map(lambda pair: align(cells[pair[0]].view, cells[pair[1]].view), pairs))
    verdicts = [ruling(found, DEFAULTS) for found in aligned]
    identical = [cells[i].digest == cells[j].digest for i, j in pairs]
    reported: list[tuple[int, int, Alignment]] = []
    for (i, j), found, verdict, same in zip(pairs, aligned, verdicts, identical, strict=True):
        if verdict is not Verdict.DIFFERENT and not same:
            reported.append((i, j, found))
    reported.sort(key=lambda pair: -pair[2].score)
    by_set: dict[str, dict[str, Any]] = {}
    for name in SETS:
        of_set = [k for k, (i, _) in enumerate(pairs) if _set_of(cells[i]) == name]
        different = [
            aligned[k].score
            for k in of_set
            if verdicts[k] is Verdict.DIFFERENT and aligned[k].middles <= DEFAULTS.same_within
        ]
        by_set[name] = {
            "cells": sum(_set_of(cell) == name for cell in cells),
            "candidates": len(of_set),
            "identical": sum(identical[k] for k in of_set),
            **{
                str(verdict): sum(verdicts[k] is verdict and not identical[k] for k in of_set)
                for verdict in (Verdict.DUPLICATE, Verdict.POSSIBLE, Verdict.NEIGHBOUR)
            },
            "lowest_duplicate": _least([aligned[k].score for k in of_set if verdicts[k] is Verdict.DUPLICATE]),
            "highest_different": None if not different else round(max(different), 4),
        }
    labels = np.array([cell.label for cell in cells])
    averages = np.array([cell.average for cell in cells], np.uint64)
    by_rule = {"duplicate": 0, "by_hand": 0}
    kept = 0
    real = {(i, j) for (i, j), verdict in zip(pairs, verdicts, strict=True) if verdict.is_one_cell}
    for i, cell in enumerate(cells):
        bits = hamming(cell.average, averages[i + 1 :])
        same = labels[i + 1 :] == cell.label
        close = np.flatnonzero(same & (bits < DUPLICATE_BELOW)) + i + 1
        by_rule["duplicate"] += len(close)
        by_rule["by_hand"] += int((same & (bits >= DUPLICATE_BELOW) & (bits <= POSSIBLE_UP_TO)).sum())
        kept += sum((i, int(j)) in real for j in close)
    return {
        "cells": len(cells),
        "pairs": len(cells) * (len(cells) - 1) // 2,
        "candidates": len(pairs),
        "candidates_per_cell_of_a_million": round(1e6 * len(pairs) / max(1, len(cells) * (len(cells) - 1) / 2), 2),
        "by_set": by_set,
        "thesis": by_rule | {"duplicate_that_registration_confirms": kept},
    }, reported


def measure_neighbours(
    cells: Sequence[Path], pairs: int, seed: int, *, apart: tuple[float, float] = (60.0, 130.0), threads: int = 2
) -> dict[str, Any]:
    """Two pictures of one field, each around its own cell: shares by verdict, of the ruling alone and with the search
    before it.

    cells : files of single cells, drawn from at random.  pairs : how many fields.  apart : least and most distance,
    pixels, of the pictures' middles, which is where the analyser found their cells.
    """

    def taken(number: int, how: Recapture | None) -> tuple[Seen, Seen]:
        rng = np.random.default_rng([seed, number])
        one, two = (decode(cells[i].read_bytes()) for i in rng.choice(len(cells), 2, replace=False))
        away, angle = rng.uniform(*apart), rng.uniform(0, 2 * np.pi)
        middles = np.subtract(one.shape[:2], two.shape[:2]) / 2
        rows, columns = np.rint(middles + away * np.array([np.sin(angle), np.cos(angle)])).astype(int).tolist()
        pictures = field_of_two(one, two, (rows, columns))
        data = [jpeg(picture) if how is None else recapture(picture, how, rng) for picture in pictures]
        return see(data[0], "first"), see(data[1], "second")

    found: dict[str, Any] = {"pairs": pairs, "pixels_apart": list(apart)}
    with ThreadPoolExecutor(threads) as pool:
        for name, how in (("one_capture", None), ("captured_apart", KINDS["mild"])):
            fields = list(pool.map(partial(taken, how=how), range(pairs)))
            alone = [str(ruling(align(second.view, first.view), DEFAULTS)) for first, second in fields]
            stored = search_of([first for first, _ in fields])
            compared = [searched(stored, second) for _, second in fields]
            whole = [
                verdict if number in others else "not_compared"
                for number, (verdict, others) in enumerate(zip(alone, compared, strict=True))
            ]
            others = sum(other != number for number, others in enumerate(compared) for other in others)
            found[name] = {
                "ruling": _shares(alone),
                "end_to_end": _shares(whole),
                "landmarks_per_picture": round(sum(len(second.landmarks) for _, second in fields) / pairs, 2),
                "registered_with_others_per_picture": round(others / pairs, 4),
            }
    return found


def measure_recaptures(
    cells: Sequence[Seen], how: Recapture, seed: int, edge: str, pool: ThreadPoolExecutor
) -> dict[str, Any]:
    """Each cell captured again: what share is recognised, by labref and by the thesis' rule."""

    def again(numbered: tuple[int, Seen]) -> tuple[Seen, Alignment]:
        number, cell = numbered
        assert cell.path is not None
        data = recapture(decode(cell.path.read_bytes()), how, np.random.default_rng([seed, number]), edge)
        made = see(data, cell.label)
        return made, align(made.view, cell.view)

    made = list(pool.map(again, enumerate(cells)))
    own = np.array(
        [
            len(book_of([old]).within(new.marks, DEFAULTS.candidate_bits)) == 1
            for (new, _), old in zip(made, cells, strict=True)
        ]
    )
    candidate = np.array([searched(search_of([old]), new) == [0] for (new, _), old in zip(made, cells, strict=True)])
    verdicts = [ruling(found, DEFAULTS) for _, found in made]
    duplicate = candidate & np.array([verdict is Verdict.DUPLICATE for verdict in verdicts])
    either = candidate & np.array([verdict.is_one_cell for verdict in verdicts])
    bits = np.array([(new.average ^ old.average).bit_count() for (new, _), old in zip(made, cells, strict=True)])
    scores = np.sort([found.score for _, found in made])
    return {
        "cells": len(cells),
        "duplicate": _share(duplicate),
        "duplicate_or_possible": _share(either),
        "candidate": _share(candidate),
        "candidate_by_fingerprint": _share(own),
        "scores": {str(q): round(float(np.quantile(scores, q)), 4) for q in (0, 0.005, 0.01, 0.05, 0.5)},
        "thesis": {"duplicate": _share(bits < DUPLICATE_BELOW), "duplicate_or_by_hand": _share(bits <= POSSIBLE_UP_TO)},
    }


def measure_look_up(cells: int, queries: int, marks: Sequence[Sequence[Fingerprint]]) -> dict[str, Any]:
    """Milliseconds to find the candidates of one cell among so many: real fingerprints, copied with some bits
    changed."""
    rng = np.random.default_rng(0)
    of = rng.integers(0, len(marks), cells)
    real = np.array([mark[0] for mark in marks], np.uint64)
    book = HashBook()
    hashes = []
    for k in (0, 1):
        changed = np.zeros(cells, np.uint64)
        for _ in range(16):  # a lab's cells look alike, but are not the same
            changed ^= np.uint64(1) << rng.integers(0, 64, cells).astype(np.uint64)
        hashes.append(real[of, k] ^ changed)
    across, down = hashes
    book.add(across, down, np.arange(cells, dtype=np.uint64), np.arange(cells, dtype=np.uint32))
    took, worked, found = [], [], 0
    for number in rng.integers(0, len(marks), queries + 2):
        started, begun = time.perf_counter(), time.thread_time()
        found += len(book.within(marks[number], DEFAULTS.candidate_bits))
        worked.append(1e3 * (time.thread_time() - begun))
        took.append(1e3 * (time.perf_counter() - started))
    took, worked = took[2:], worked[2:]
    return {
        "cells": cells,
        "queries": queries,
        "candidates_each": round(found / (queries + 2), 2),
        "p50_ms": round(float(np.percentile(took, 50)), 3),
        "p99_ms": round(float(np.percentile(took, 99)), 3),
        "cpu_p50_ms": round(float(np.percentile(worked, 50)), 3),
        "cpu_p99_ms": round(float(np.percentile(worked, 99)), 3),
        "load": None if not hasattr(os, "getloadavg") else round(os.getloadavg()[0], 1),
    }


def draw(cells: Sequence[Seen], reported: Sequence[tuple[int, int, Alignment]], out: Path) -> None:
    """A sheet of the reported pairs, least alike first, because those need a person's look most."""
    tiles = []
    for i, j, found in sorted(reported, key=lambda pair: pair[2].score)[:_MOST_ON_SHEET]:
        for cell, second in ((cells[i], str(ruling(found, DEFAULTS))), (cells[j], f"agree to {found.score:.3f}")):
            name = "" if cell.path is None else cell.path.stem
            tiles.append(Tile(cell.view.thumb, cell.label, (name, second)))
    shown = min(len(reported), _MOST_ON_SHEET)
    draw_sheet(
        "Pairs of cells that are reported", f"{shown} of {len(reported)}, least alike first", tiles, columns=8
    ).save(out)


def measure(
    data: Path,
    *,
    recaptured: int = 2000,
    neighbours: int = 1000,
    limit: int | None = None,
    look_up: int = 1_000_000,
    edge: str = "nearest",
    threads: int = 2,
    sheet: Path | None = None,
) -> dict[str, Any]:
    """Measure everything that this module's docstring describes."""
    with ThreadPoolExecutor(threads) as pool:
        files = files_of(data, limit)
        note(f"{len(files):,} images are prepared")
        cells = list(pool.map(lambda path: see(path.read_bytes(), path.parent.name, path), files))
        note("every pair is compared")
        pairs, reported = measure_pairs(cells, pool)
        if sheet is not None:
            draw(cells, reported, sheet)
        chosen = np.random.default_rng(0).permutation(len(cells))[:recaptured]
        recaptures = {}
        for seed, (name, how) in enumerate(KINDS.items()):
            note(f"{len(chosen):,} cells are captured again: {name}")
            recaptures[name] = measure_recaptures([cells[i] for i in chosen], how, seed, edge, pool)
        note(f"{neighbours:,} fields with two cells")
        of_pbc = [path for path in files if path.parent.parent.name == "pbc"]
        note(f"look-ups among {look_up:,}")
        return {
            "thresholds": DEFAULTS.to_json(),
            "pairs": pairs,
            "recaptures": recaptures | {"edge": edge},
            "neighbours": measure_neighbours(of_pbc, neighbours, 7, threads=threads),
            "look_up": measure_look_up(look_up, 300, [cell.marks for cell in cells]),
            "computer": platform.platform(),
            "cores": os.cpu_count(),
        }


def note(text: str) -> None:
    """Say on standard error how far it is."""
    print(text, file=sys.stderr, flush=True)


def _set_of(cell: Seen) -> str:
    return "" if cell.path is None else cell.path.parent.parent.name


def _least(scores: Sequence[float]) -> float | None:
    return round(min(scores), 4) if scores else None


def _shares(verdicts: Sequence[str]) -> dict[str, float]:
    return {verdict: round(verdicts.count(verdict) / len(verdicts), 4) for verdict in sorted(set(verdicts))}


def _share(found: NDArray[np.bool_]) -> float:
    return round(float(found.mean()), 4)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--recaptured", type=int, default=2000, help="cells that are captured again")
    parser.add_argument("--neighbours", type=int, default=1000, help="fields with two cells that are made")
    parser.add_argument("--limit", type=int, help="only so many images of each class")
    parser.add_argument("--look-up", type=int, default=1_000_000, help="fingerprints that are searched")
    parser.add_argument("--edge", choices=("nearest", "black"), default="nearest")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--sheet", type=Path, help="picture of all reported pairs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = vars(parser.parse_args())
    as_json = asked.pop("json")
    result = measure(asked.pop("data"), **asked)
    print(json.dumps(result) if as_json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
