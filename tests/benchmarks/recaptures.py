"""Whether real recaptures are found: pictures of one cell that were taken again, in other light and focus.

    python -m tests.benchmarks.recaptures --json

The lists of pictures of one cell are in `tests/recaptures/`, made by eye. Real cells of ../shared/data. Each set is
stored as a lab stores it: the search for candidates, registration, the ruling. By set:

`images`, `cells`: how many pictures, and how many cells they are of.  `recaptures`: pictures of which another of the
same cell was stored before.  `linked`: the share of these that are called a duplicate or a possible one of an earlier
picture of their cell; `duplicate`: the share called a duplicate. Mean over recaptures, and over `orders` orders of
storing: that of the file names, and random ones.  `joined`: of all pairs of one cell, the share that chains of such
links join.  `not_compared`: the share of recaptures that the search brought together with no earlier picture of their
cell.

`pairs`: verdicts on all pairs of one cell when laid over each other, whether the search finds them or not; shares.

`different_called_duplicate`, `different_called_possible`: pairs of two cells that storing called so, in the order of
the names. Pairs in doubt are left out.  `compared_per_image`: registrations.

`answers`, with --answers: the set is stored in a lab by an agent, from an export folder, with the starter bundle. Each
cell of the store is asked about, for eight references; then pictures from outside: of each cell of which there are two
pictures or more the last one is not stored and asked about. Of both: `queries`; `twice`, the share of answers in which
two references are of one cell, by the lists; `unmarked`, the share in which a reference is of the very cell that is
asked about and does not say that it may be; `wrongly_marked`, the share in which one says so and is not, pairs in
doubt left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np

from labref.asking.answer import answer, open_embedder
from labref.bundles.bundle import install, starter_bundle
from labref.cells.sameness import DEFAULTS, compared
from labref.store.memory.books import HashBook, id_to_int, int_to_id
from labref.store.recording import Search
from labref.words import Verdict
from tests.benchmarks.duplicates import DATA, Seen, note, see
from tests.labs import make_lab, once

SETS: Final = ("chula", "bccd", "raabin", "bonemarrow", "pbc")
LISTS: Final = Path(__file__).resolve().parents[1] / "recaptures"


def same_cells(name: str) -> dict[str, str]:
    """The cell of each picture of a set that has others: {class/file: cell}."""
    with (LISTS / "cells.csv").open(newline="") as file:
        return {row["image"]: row["cell"] for row in csv.DictReader(file) if row["set"] == name}


def looked_at(name: str, verdict: str) -> list[tuple[str, str]]:
    """Pairs of pictures of a set that look alike, "different" or "cannot tell"."""
    with (LISTS / "pairs.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if (row["set"], row["verdict"]) == (name, verdict)]
    return [(row["first"], row["second"]) for row in found]


def _files(data: Path, name: str, limit: int | None) -> list[Path]:
    return [
        path
        for folder in sorted(path for path in (data / name).iterdir() if path.is_dir())
        for path in sorted(folder.glob("*.jpg"))[:limit]
    ]


def measure(data: Path, name: str, *, orders: int = 3, limit: int | None = None, threads: int = 2) -> dict[str, Any]:
    """What the module's docstring describes, of one set. limit : only so many pictures of each class."""
    files = _files(data, name, limit)
    with ThreadPoolExecutor(threads) as pool:
        seen = list(pool.map(lambda path: see(path.read_bytes(), path.parent.name, path), files))
    return measure_seen(name, seen, orders=orders)


def measure_seen(name: str, seen: Sequence[Seen], *, orders: int = 3) -> dict[str, Any]:
    """The same, of pictures that are prepared."""
    keys = [f"{picture.label}/{picture.path.name}" if picture.path else "" for picture in seen]
    known = same_cells(name)
    cells = [known.get(key, key) for key in keys]
    # pictures with the same bytes are one cell in the store
    first = {picture.digest: cell for picture, cell in zip(reversed(seen), reversed(cells), strict=True)}
    cells = [first[picture.digest] for picture in seen]
    doubtful = {frozenset(known.get(key, key) for key in pair) for pair in looked_at(name, "cannot tell")}
    verdicts: dict[tuple[int, int], Verdict] = {}

    def judged(one: int, two: int) -> Verdict:
        pair = (min(one, two), max(one, two))
        if pair not in verdicts:
            same_bytes = seen[one].digest == seen[two].digest
            found = Verdict.DUPLICATE if same_bytes else compared(seen[two].view, seen[one].view, DEFAULTS).verdict
            verdicts[pair] = found
        return verdicts[pair]

    shares: dict[str, list[float]] = {"linked": [], "duplicate": [], "not_compared": [], "joined": []}
    wrong: Counter[Verdict] = Counter()
    wrong_pairs: list[list[str]] = []
    registered = 0
    pairs = [(i, j) for j in range(len(seen)) for i in range(j) if cells[i] == cells[j]]
    for number in range(orders):
        note(f"{name}: {len(seen):,} pictures, order {number + 1} of {orders}")
        order = np.arange(len(seen)) if number == 0 else np.random.default_rng(number).permutation(len(seen))
        search, before, group = Search(HashBook(), HashBook()), set[str](), list(range(len(seen)))
        told: list[tuple[bool, bool, bool]] = []
        for at in order.tolist():
            picture = seen[at]
            others = [
                id_to_int(found)
                for found in search.candidates(picture.marks, picture.landmarks, DEFAULTS.candidate_bits)
            ]
            said = {other: judged(at, other) for other in others}
            own = [verdict for other, verdict in said.items() if cells[other] == cells[at]]
            if cells[at] in before:
                told.append((any(v.is_one_cell for v in own), Verdict.DUPLICATE in own, not own))
            for other, verdict in said.items():
                if not verdict.is_one_cell:
                    continue
                if cells[other] == cells[at]:
                    low, high = sorted((group[at], group[other]))
                    group = [low if one == high else one for one in group]
                elif number == 0 and frozenset((cells[at], cells[other])) not in doubtful:
                    wrong[verdict] += 1
                    wrong_pairs.append([keys[other], keys[at], str(verdict)])
            registered += len(others) if number == 0 else 0
            before.add(cells[at])
            search.add(int_to_id(at), picture.marks, picture.landmarks)
            search.apply()
        for key, values in zip(("linked", "duplicate", "not_compared"), zip(*told, strict=True), strict=False):
            shares[key].append(float(np.mean(values)))
        if pairs:
            shares["joined"].append(float(np.mean([group[i] == group[j] for i, j in pairs])))
    counted = Counter(str(judged(i, j)) for i, j in pairs)
    return {
        "images": len(seen),
        "cells": len(set(cells)),
        "recaptures": len(seen) - len(set(cells)),
        "orders": orders,
        **{key: None if not values else round(float(np.mean(values)), 4) for key, values in shares.items()},
        "pairs": {"number": len(pairs)} | {verdict: round(n / len(pairs), 4) for verdict, n in counted.items()},
        "different_called_duplicate": wrong[Verdict.DUPLICATE],
        "different_called_possible": wrong[Verdict.POSSIBLE],
        "called_so": wrong_pairs[:50],
        "compared_per_image": round(registered / max(1, len(seen)), 3),
    }


def measure_answers(data: Path, name: str, folder: Path, *, limit: int | None = None) -> dict[str, Any]:
    """`answers` of the module's docstring, of one set. folder : where the labs are made."""
    files = {f"{path.parent.name}/{path.name}": path for path in _files(data, name, limit)}
    known = same_cells(name)
    doubtful = {frozenset(known.get(key, key) for key in pair) for pair in looked_at(name, "cannot tell")}
    last = {cell: key for key, cell in sorted(known.items()) if key in files}
    often = {cell for cell, count in Counter(known[key] for key in files if key in known).items() if count > 1}
    outside = {key for cell, key in last.items() if cell in often}
    bundle = install(starter_bundle(), folder / "bundles")
    found = {}
    for which, stored, queries in (
        ("stored", files.keys(), files.keys()),
        ("outside", files.keys() - outside, outside),
    ):
        note(f"{name}: answers, {len(queries)} {which}")
        export = folder / name / which / "export"
        for key in stored:
            (export / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(files[key], export / key)
        lab = make_lab(export.parent / "lab", export, bundle)
        once(lab)
        answers = []
        with lab.open_store() as store:
            embedder = open_embedder(lab, bundle)
            for key in sorted(queries):
                answers.append((key, answer(lab, store, embedder, files[key].read_bytes(), name=key)["references"]))
        counts: Counter[str] = Counter(queries=len(answers))
        for key, references in answers:
            asked = known.get(key, key)
            shown = ["/".join(Path(one["path"]).parts[-2:]) for one in references]
            cells = [known.get(one, one) for one in shown]
            marked = [one["may_be_same"] for one in references]
            counts["twice"] += len(set(cells)) < len(cells)
            counts["unmarked"] += any(cell == asked and not said for cell, said in zip(cells, marked, strict=True))
            counts["wrongly_marked"] += any(
                said and cell != asked and frozenset((cell, asked)) not in doubtful
                for cell, said in zip(cells, marked, strict=True)
            )
        found[which] = {"queries": counts["queries"]} | {
            kind: round(counts[kind] / len(answers), 4) for kind in ("twice", "unmarked", "wrongly_marked")
        }
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--sets", nargs="*", choices=SETS, default=SETS)
    parser.add_argument("--orders", type=int, default=3, help="orders in which the pictures are stored")
    parser.add_argument("--limit", type=int, help="only so many images of each class")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--answers", action="store_true", help="measure answers too; a minute for 500 pictures")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    found = {
        name: measure(asked.data, name, orders=asked.orders, limit=asked.limit, threads=asked.threads)
        for name in asked.sets
    }
    if asked.answers:
        with tempfile.TemporaryDirectory() as folder:
            for name in asked.sets:
                found[name]["answers"] = measure_answers(asked.data, name, Path(folder), limit=asked.limit)
    print(json.dumps(found) if asked.json else json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
