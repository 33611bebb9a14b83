"""Labs with a map, made in a second: drawn cells whose latents are made up, so that no network is needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from labref import som
from labref.bundles.bundle import Bundle
from labref.cells.hashes import digest
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from labref.store import cell_id_of
from tests.labs import make_lab
from tests.stores import new_cell, use_map

__all__ = ["ANALYSERS", "FIRST_DAY", "give_own_map", "lab_with_map"]

FIRST_DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""Picture number n was captured n days later."""
ANALYSERS = "<DI-60>", "DC-1"
"""Those of the even classes, and of the odd ones."""


def lab_with_map(folder: Path, bundle: Bundle, *, each: int = 3, rows: int = 6, columns: int = 9) -> Lab:
    """A lab with `each` drawn cells of each of the eight classes, on two slides, on a map; the last cell of a class is
    called as the next class is, and a person said so."""
    (folder / "export").mkdir(parents=True)
    lab = make_lab(folder / "lab", folder / "export", bundle)
    rng, slides, cells = np.random.default_rng(5), make_slides(2, seed=3), []
    with lab.open_store() as store:
        for number, label in enumerate(LABELS):
            middle = rng.standard_normal(bundle.manifest.latent_size) * 4
            for n in range(each):
                slide = slides[n % 2]
                picture = encode_jpeg(draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng([number, n])))
                lab.store_image(picture, digest(picture))
                wrong = n == each - 1
                cells.append(
                    new_cell(
                        f"{label} {n}",
                        digest=digest(picture),
                        cell_id=cell_id_of(digest(picture)),
                        label=LABELS[(number + 1) % 8] if wrong else label,
                        label_source="reviewed" if wrong else "analyser",
                        predicted_label=label,
                        slide=f"Anna Berg {n % 2}",
                        analyser=ANALYSERS[number % 2],
                        captured_at=FIRST_DAY + timedelta(days=number * each + n),
                        latent=(middle + rng.standard_normal(bundle.manifest.latent_size)).astype(np.float32),
                        probabilities=np.full(len(bundle.manifest.labels), 1 / len(bundle.manifest.labels), np.float32),
                    )
                )
        store.record(cells, bundle=bundle.digest)
        made = som.train(np.stack([cell.latent for cell in cells]), rows=rows, cols=columns, seed=1)
        use_map(store, bundle.digest, made.get_weights())
    return lab


def give_own_map(lab: Lab, bundle: Bundle, analyser: str, *, rows: int = 4, columns: int = 5) -> None:
    """Train a map of one analyser's cells in such a lab, and put it in use."""
    with lab.open_store() as store:
        latents = np.concatenate([part for _, part in store.maps.latents(bundle.digest, analyser=analyser)])
        made = som.train(latents, rows=rows, cols=columns, seed=2)
        use_map(store, bundle.digest, made.get_weights(), analyser)
