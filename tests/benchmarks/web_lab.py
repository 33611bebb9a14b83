"""The lab that `tests.benchmarks.web` looks at: made-up cells on slides and on a map, and some with pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np

from labref.bundles.bundle import Bundle, starter_bundle
from labref.demo.analyser import Specimen
from labref.lab import Lab
from labref.words import MEASURES
from tests.benchmarks.exports import choose_source, labref_process
from tests.benchmarks.query import build, note
from tests.benchmarks.web_tiles import place

__all__ = ["deliver", "make_lab", "running_agent"]


def make_lab(folder: Path, *, cells: int, side: int, pictures: int, seed: int = 0) -> Lab:
    """A lab with the starter bundle in `folder`/lab, its export folder beside it.

    cells : made-up ones, 200 a slide, captured in the last two years; three quarters carry the analyser's label, the
    others a predicted one. There are no pictures of them.  side : rows and columns of the map.  pictures : further
    cells, whose files an agent will find.
    """
    export = folder / "export"
    export.mkdir(parents=True)
    lab = Lab.create(folder / "lab", [export], starter_bundle())
    with lab.open_store() as store:
        bundle = lab.bundle(store)
    manifest = bundle.manifest
    lab.store_file.unlink()
    build(lab.store_file, "clustered", cells, manifest.latent_size, digest=bundle.digest, labels=manifest.labels)
    with duckdb.connect(str(lab.store_file), config={"memory_limit": "2GiB", "threads": 2}) as connection:
        apart = 2 * 365 * 86_400 / cells
        connection.execute(
            "UPDATE cell SET captured_at = added_at - to_seconds((? - number) * ?), "
            "label_source = CASE WHEN number % 4 = 0 THEN 'predicted' ELSE 'analyser' END",
            [cells, apart],
        )
    tend(lab, bundle)
    place(lab, bundle.digest, side, manifest.latent_size, np.random.default_rng(seed))
    note(f"{pictures} cells with pictures")
    for number, specimen in enumerate(choose_source(None, seed)[0].take(pictures)):
        deliver(export, number, specimen, slide=f"pictured {number // 100}")
    return lab


def tend(lab: Lab, bundle: Bundle) -> None:
    """Write what the agent measured of the pictures of other cells: else it would look for those of a million cells
    while the pages are measured."""
    with lab.open_store():  # brings the tables up to date
        pass
    optics = bundle.manifest.optics["measures"]
    with duckdb.connect(str(lab.store_file), config={"memory_limit": "2GiB", "threads": 2}) as connection:
        connection.execute("DELETE FROM measure WHERE focus IS NULL")
        values = [f"{optics[name]['median']} + {optics[name]['deviation']} * (random() - 0.5)" for name in MEASURES]
        connection.execute(
            f"INSERT INTO measure (cell_id, analyser, added_at, number, {', '.join(MEASURES)}) "
            f"SELECT cell_id, analyser, added_at, number, {', '.join(values)} "
            "FROM cell ANTI JOIN measure USING (cell_id) ORDER BY number"
        )
        connection.execute("DELETE FROM quality WHERE is_cell IS NULL")
        connection.execute(
            "INSERT INTO quality SELECT cell_id, true, NULL, 1 + random() "
            "FROM cell ANTI JOIN quality USING (cell_id) ORDER BY number"
        )


def deliver(export: Path, number: int, specimen: Specimen, *, slide: str) -> Path:
    """Write a cell's file as an analyser does. slide : the smear."""
    path = export / slide / str(specimen.label) / f"{number:06d}{specimen.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(specimen.data)
    return path


@contextmanager
def running_agent(lab: Lab) -> Iterator[int]:
    """A `labref agent` of the lab in a process of its own, which trains no map meanwhile; its process id."""
    os.environ["LABREF_MAP__ENABLED"] = "false"
    process = labref_process("agent", "--json", "--lab", lab.folder, passed=("LABREF_MAP__ENABLED",))
    try:
        assert process.stdout is not None and process.stderr is not None
        if not process.stdout.readline():
            raise RuntimeError(process.stderr.read())
        yield process.pid
    finally:
        process.terminate()
        process.communicate()
        del os.environ["LABREF_MAP__ENABLED"]
