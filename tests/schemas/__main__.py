"""Makes the stored copy of the schema that this labref writes: `python -m tests.schemas`, once before each release.

tests/schemas/<version>.duckdb: 17 drawn cells, a copy, a file that was no image and then was one, a cell that was
unsigned and then signed. A copy that is there already is never replaced: it is what a released labref wrote.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np

from labref.agent import run
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from labref.store.duckdb import migrations


def make(target: Path) -> None:
    """Write the store of a small lab to `target`, in blocks of 16 KB, so that it stays small."""
    slides = make_slides(2, seed=5)

    def cell(label: str, number: int, seed: int) -> bytes:
        slide = slides[number]
        return encode_jpeg(
            draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng([number, LABELS.index(label), seed]))
        )

    with tempfile.TemporaryDirectory(prefix="labref-schema-") as folder:
        export = Path(folder) / "export"
        signed, unsigned = export / "p1" / "Signed slides", export / "p1" / "Unsigned slides"
        unsigned.mkdir(parents=True)
        for label in LABELS:
            (signed / label).mkdir(parents=True)
            for number, slide in enumerate(slides):
                (signed / label / f"{slide.name}_{number:03d}.jpg").write_bytes(cell(label, number, 5))
        known = sorted(signed.rglob("*.jpg"))
        (unsigned / "s1_001.jpg").write_bytes(known[0].read_bytes())
        (unsigned / "s1_002.jpg").write_bytes(b"no image at all")
        (unsigned / "s1_003.jpg").write_bytes(cell(LABELS[0], 0, 99))
        lab = Lab.create(Path(folder) / "lab", [export], analyser="DC-1")
        watch = lab.config.watch.model_copy(update={"stable_seconds": 0.1, "complete_seconds": 0.2})
        lab = replace(lab, config=lab.config.model_copy(update={"watch": watch}))
        run(lab, once=True)
        (signed / LABELS[1] / "s1_003.jpg").write_bytes((unsigned / "s1_003.jpg").read_bytes())
        (unsigned / "s1_002.jpg").write_bytes(known[3].read_bytes())
        run(lab, once=True)
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH '{lab.store_file}' AS lab (READ_ONLY)")
            connection.execute(f"ATTACH '{target}' AS copy (BLOCK_SIZE 16384)")
            connection.execute("COPY FROM DATABASE lab TO copy")


if __name__ == "__main__":
    path = Path(__file__).parent / f"{migrations.latest_version()}.duckdb"
    if path.exists():
        sys.exit(f"{path} is there already; a released schema is never changed")
    make(path)
    print(f"{path}: {path.stat().st_size} bytes")
