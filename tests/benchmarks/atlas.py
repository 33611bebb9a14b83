"""What an atlas brings a lab: `python -m tests.benchmarks.atlas --json`. And what the row of contrast holds.

**Atlas.** The centre is pbc: of the part that the starter was trained on, 60 cells of each class are chosen, as
`python -m exporters atlas` chooses them. Labs are drawn, and the references of other cells are compared: the lab's
`own`, those of the `central` cells alone, and `both`, as a query gives them. Basophils and eosinophils are rare on
purpose, one per cent of a lab each, as in a hospital.

- `pbc`: labs of 50 to 5,000 other cells of pbc, thus of the centre's own microscope. Cells that were held out are
  asked.
- `chula`, `bccd`, `raabin`: labs of another microscope, of as many cells as leave a third to ask. A physical cell is
  there once (`tests/recaptures`).

Class precision@8, over cells and over classes, mean of several draws of the lab; `won`: both minus the better of own
and central, with the 95 % interval over the cells asked. `share` of central cells in the eight.

The numbers of `labref.asking.central` were chosen on the other half of pbc's held-out cells, and on half of chula:
these are not asked here.

**Contrast.** Whether the references or the row beside them hold the query's class: cells of pbc that were held out,
among all that were trained on; each cell of chula, bccd and raabin among all others of its set. No atlas.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exporters.atlas import covering, trusted
from labref.asking.central import Central
from labref.asking.references import Found, find
from labref.bundles.atlas import CENTRAL_ID, Atlas, AtlasSource
from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.export.layout import ClassNames
from labref.store import NewCell, Store
from tests.benchmarks.duplicates import DATA, note
from tests.benchmarks.novelty import cell_of, embedded
from tests.benchmarks.recaptures import same_cells
from training.data.images import Item, name_fraction
from training.measure.statistics import bootstrap

__all__ = ["Cells", "main", "measure", "measure_contrast"]

SIZES: Final = (50, 200, 1000, 5000)
OTHERS: Final = ("chula", "bccd", "raabin")
RARE: Final = ("basophil", "eosinophil")
_RARE_SHARE: Final = 0.01
_PER_CLASS: Final = 60
_K: Final = 8
_KINDS: Final = ("own", "central", "both")


@dataclass(frozen=True)
class Cells:
    """n embedded cells. labels : str[n].  latents : float32[n, L].  probabilities : float32[n, c]."""

    items: tuple[Item, ...]
    labels: NDArray[np.str_]
    latents: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def rows(self, chosen: NDArray[np.int64]) -> Cells:
        """Only these."""
        items = tuple(self.items[row] for row in chosen.tolist())
        return Cells(items, self.labels[chosen], self.latents[chosen], self.probabilities[chosen])

    def fractions(self, salt: str) -> NDArray[np.float64]:
        """Of each cell the number in [0, 1) that its name gives."""
        return np.array([name_fraction(item.path.rsplit("/", 1)[-1], salt) for item in self.items])

    def stored(self, bundle: Bundle) -> list[NewCell]:
        """As cells of a store."""
        rows = zip(self.items, self.latents, self.probabilities, strict=True)
        return [cell_of(item, latent, probabilities, bundle) for item, latent, probabilities in rows]


def measure(
    pbc: Cells,
    others: dict[str, Cells],
    *,
    bundle: Bundle,
    folder: Path,
    sizes: Sequence[int] = SIZES,
    repeats: int = 3,
    seed: int = 1,
) -> dict[str, Any]:
    """Measure the atlas, with stores in `folder`. others : cells of other microscopes, by set, each physical cell
    once."""
    held = pbc.fractions("labref-holdout") < 0.2
    asked = held & (pbc.fractions("labref-neighbours") >= 0.5)
    trained = np.flatnonzero(~held)
    bearing = trained[trusted(pbc.latents[trained], pbc.labels[trained])]
    chosen = bearing[covering(pbc.latents[bearing], pbc.labels[bearing], _PER_CLASS)]
    central = _central(pbc.rows(chosen), bundle)
    rest = np.setdiff1d(np.flatnonzero(~asked), chosen)
    rng = np.random.default_rng(seed)
    result: dict[str, Any] = {
        "bundle": bundle.short,
        "seed": seed,
        "repeats": repeats,
        "atlas": len(chosen),
        "labs": [],
    }
    for size in sizes:
        drawn = [pbc.rows(rest[_lab(pbc.labels[rest], size, rng)]) for _ in range(repeats)]
        labs = [(lab, pbc.rows(np.flatnonzero(asked))) for lab in drawn if len(lab.items) == size]
        if labs:
            result["labs"].append({"set": "pbc", "cells": size, **_compared(labs, central, bundle, folder)})
    for name, cells in others.items():
        usable = cells.rows(np.flatnonzero(cells.fractions("half") >= 0.5)) if name == "chula" else cells
        for size in (size for size in sizes if size <= 2 * len(usable.items) // 3):
            labs = []
            for _ in range(repeats):
                order = rng.permutation(len(usable.items))
                others_, queries = order[len(order) // 3 :], order[: len(order) // 3]
                taken = _lab(usable.labels[others_], size, rng)
                labs.append((usable.rows(others_[taken]), usable.rows(queries)))
            result["labs"].append(
                {"set": name, "cells": len(labs[0][0].items), **_compared(labs, central, bundle, folder)}
            )
    return result


def measure_contrast(queries: Cells, among: Cells, *, bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Whether the references or the row of contrast hold a query's class: shares of the queries, over cells and over
    classes. A query that is itself among the others is left out there."""
    known = bundle.manifest.labels
    held, beside, rows = [], [], []
    with _store(folder / "contrast.duckdb", among, bundle) as store:
        for cell, label, said in zip(queries.stored(bundle), queries.labels, queries.probabilities, strict=True):
            probabilities = dict(zip(known, said.tolist(), strict=True))
            found = _ask(store, bundle, cell.latent, probabilities, None, digest=cell.digest, contrast=True)
            references = {one.label for one in found.references}
            row = {one.label for one in found.contrast}
            held.append(str(label) in references | row)
            beside.append(str(label) in references)
            rows.append(len(row))
    (folder / "contrast.duckdb").unlink()
    return {
        "queries": len(held),
        "among": len(among.items),
        "classes": len(set(among.labels.tolist())),
        "held": bootstrap(held).to_json(),
        "held_over_classes": bootstrap(held, strata=queries.labels.tolist()).to_json(),
        "by_references_alone": round(float(np.mean(beside)), 4),
        "cells_in_the_row": round(float(np.mean(rows)), 2),
    }


def _lab(labels: NDArray[np.str_], size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of a lab of that size, or of fewer where there are no more. Each rare class has as many cells as chance
    gives it."""
    rare = [rng.permutation(np.flatnonzero(labels == label))[: rng.binomial(size, _RARE_SHARE)] for label in RARE]
    few = np.concatenate(rare)
    common = rng.permutation(np.flatnonzero(~np.isin(labels, RARE)))
    return np.concatenate([few, common[: size - len(few)]])


def _central(cells: Cells, bundle: Bundle) -> Central:
    """These cells as an atlas, without pictures."""
    ids = tuple(f"{CENTRAL_ID}{row:016x}" for row in range(len(cells.items)))
    source = AtlasSource("pbc", "CC BY 4.0")
    atlas = Atlas(
        Path("no pictures"),
        ids,
        tuple(cells.labels.tolist()),
        cells.latents,
        (source,) * len(ids),
        {cell_id: row for row, cell_id in enumerate(ids)},
        (b"",) * len(ids),
        tuple(range(len(ids))),
    )
    return Central(atlas, ClassNames(bundle.manifest.labels, {}))


def _store(path: Path, cells: Cells, bundle: Bundle) -> Store:
    store = Store.create(path)
    store.set_active_bundle(
        bundle.digest,
        name="atlas",
        version="1",
        latent_size=bundle.manifest.latent_size,
        labels=bundle.manifest.labels,
    )
    store.build_index()
    store.record(cells.stored(bundle), bundle=bundle.digest)
    return store


def _ask(
    store: Store,
    bundle: Bundle,
    latent: NDArray[np.float32],
    probabilities: dict[str, float],
    central: Central | None,
    *,
    digest: str | None = None,
    contrast: bool = False,
) -> Found:
    return find(
        store,
        bundle=bundle,
        latent=latent,
        digest=digest,
        k=_K,
        probabilities=probabilities,
        contrast=contrast,
        placed=False,
        central=central,
    )


def _compared(labs: Sequence[tuple[Cells, Cells]], central: Central, bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Class precision@8 of the labs' queries by each kind of references. labs : (the lab's cells, the queries)."""
    known = bundle.manifest.labels
    hits: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    asked: list[str] = []
    shares: list[float] = []
    rare: list[list[int]] = []
    for lab, queries in labs:
        note(f"{len(lab.items)} cells of {lab.items[0].path.split('/')[0]}…: {len(queries.items)} queries")
        rare.append([int((lab.labels == label).sum()) for label in RARE])
        with _store(folder / "lab.duckdb", lab, bundle) as store:
            for label, latent, said in zip(queries.labels, queries.latents, queries.probabilities, strict=True):
                probabilities = dict(zip(known, said.tolist(), strict=True))
                own = _ask(store, bundle, latent, probabilities, None).references
                both = _ask(store, bundle, latent, probabilities, central).references
                nearest = np.argsort(central.atlas.distances(latent), kind="stable")[:_K]
                asked.append(str(label))
                hits["own"].append(sum(one.label == label for one in own) / _K)
                hits["central"].append(float((central.labels[nearest] == label).sum()) / _K)
                hits["both"].append(sum(one.label == label for one in both) / _K)
                shares.append(sum(one.origin == "central" for one in both) / len(both))
        (folder / "lab.duckdb").unlink()
    values = {kind: np.array(of_kind) for kind, of_kind in hits.items()}
    over: dict[str, Any] = {}
    for name, strata in (("cells", None), ("classes", asked)):
        means = {kind: bootstrap(values[kind], strata=strata) for kind in _KINDS}
        better = max(("own", "central"), key=lambda kind: means[kind].value)
        over[name] = {
            **{kind: round(means[kind].value, 4) for kind in _KINDS},
            "better": better,
            "won": bootstrap(values["both"] - values[better], strata=strata).to_json(),
        }
    return {
        "draws": len(labs),
        "queries": len(asked),
        "rare": {
            label: round(float(np.mean(counts)), 1) for label, counts in zip(RARE, zip(*rare, strict=True), strict=True)
        },
        "share": round(float(np.mean(shares)), 4),
        "over": over,
    }


def _cells(name: str, data: Path, bundle: Bundle, kept: Path | None) -> Cells:
    """The cells of a set, embedded; of those with several pictures, one picture, but for pbc."""
    items, latents, probabilities = embedded(data / name, bundle, None if kept is None else kept / f"{name}.npz")
    cells = Cells(tuple(items), np.array([item.label for item in items]), latents, probabilities)
    if name == "pbc":
        return cells
    same = same_cells(name)
    _, first = np.unique([same.get(item.path, item.path) for item in items], return_index=True)
    return cells.rows(np.sort(first))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.atlas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder with pbc/, chula/, bccd/ and raabin/")
    parser.add_argument("--bundle", type=Path, help="bundle file (default: the starter bundle)")
    parser.add_argument("--latents", type=Path, help="folder that keeps the embeddings, SET.npz; made where missing")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="cells of the labs")
    parser.add_argument("--repeats", type=int, default=3, help="labs drawn of each size (default 3)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.latents is not None:
        options.latents.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="labref-atlas-") as scratch:
        folder = Path(scratch)
        bundle = install(options.bundle or starter_bundle(), folder / "bundles")
        sets = {name: _cells(name, options.data, bundle, options.latents) for name in ("pbc", *OTHERS)}
        pbc = sets.pop("pbc")
        figures = measure(
            pbc,
            sets,
            bundle=bundle,
            folder=folder,
            sizes=tuple(sorted(options.sizes)),
            repeats=options.repeats,
            seed=options.seed,
        )
        held = pbc.fractions("labref-holdout") < 0.2
        asked = pbc.rows(np.flatnonzero(held & (pbc.fractions("labref-neighbours") >= 0.5)))
        figures["contrast"] = {
            "pbc": measure_contrast(asked, pbc.rows(np.flatnonzero(~held)), bundle=bundle, folder=folder),
            **{name: measure_contrast(cells, cells, bundle=bundle, folder=folder) for name, cells in sets.items()},
        }
    if options.json:
        print(json.dumps(figures))
        return 0
    for lab in figures["labs"]:
        for name, said in lab["over"].items():
            print(
                f"{lab['set']}, {lab['cells']} cells, over {name}: own {said['own']:.3f}, central {said['central']:.3f}, both "
                f"{said['both']:.3f} ({said['won']['value']:+.4f}, {said['won']['low']:+.4f} to {said['won']['high']:+.4f}); "
                f"{lab['share']:.0%} central"
            )
    for name, found in figures["contrast"].items():
        print(
            f"{name}: references and contrast hold the class of {found['held']['value']:.1%} of {found['queries']} cells"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
