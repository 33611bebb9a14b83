"""Figures count cells and not images: recaptures of a cell are found among real ones, and left out of an evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from labref.bundles.bundle import starter_bundle
from labref.cells.image import decode
from labref.store.memory.books import HashBook, int_to_id
from labref.store.recording import Search
from labref.words import Fingerprint, Landmark
from tests.benchmarks.duplicates import KINDS, recapture
from training.cli.app import app
from training.data.recaptures import recapture_groups


@pytest.fixture
def tree(real_cells: Path, tmp_path: Path) -> Path:
    """Ten real cells of each of two classes; the first is there twice more, captured again and as the same file, in the
    other class too, and one image cannot be read."""
    for label in ("eosinophil", "neutrophil"):
        (tmp_path / label).mkdir()
        for number, image in enumerate(sorted((real_cells / "pbc" / label).glob("*.jpg"))[:10]):
            shutil.copy(image, tmp_path / label / f"{number}.jpg")
    first = (tmp_path / "eosinophil" / "0.jpg").read_bytes()
    again = recapture(decode(first), KINDS["mild"], np.random.default_rng(3))
    (tmp_path / "eosinophil" / "again.jpg").write_bytes(again)
    (tmp_path / "neutrophil" / "same.jpg").write_bytes(first)
    (tmp_path / "neutrophil" / "torn.jpg").write_bytes(first[:300])
    for label in ("eosinophil", "neutrophil"):  # nothing to lay over each other: the same bytes all the same
        Image.new("RGB", (90, 90), (230, 225, 228)).save(tmp_path / label / "plain.png")
    return tmp_path


def test_recaptures_are_one_cell_whatever_their_class(tree: Path) -> None:
    files = sorted(tree.glob("*/*.*"))
    names = [file.name for file in files]
    done: list[int] = []
    groups = recapture_groups(files, done.append)
    assert sum(done) == len(files) == 25
    first = files.index(tree / "eosinophil" / "0.jpg")
    expected = np.arange(len(files))
    expected[[names.index("again.jpg"), names.index("same.jpg")]] = first
    expected[files.index(tree / "neutrophil" / "plain.png")] = files.index(tree / "eosinophil" / "plain.png")
    assert groups.tolist() == expected.tolist()


def test_a_search_that_is_kept_open_finds_as_a_new_one_does() -> None:
    """What was added once was once added again by every `apply`, until copies of one cell took all the places."""
    rng = np.random.default_rng(4)
    prints = [Fingerprint(int(a), int(b)) for a, b in rng.integers(0, 2**63, (45, 2))]
    prints[1] = prints[0]
    kept = Search(HashBook(), HashBook())
    for number, fingerprint in enumerate(prints):
        places = [Landmark((fingerprint,), Fingerprint(2**64 - 1, 2**64 - 1))] * 2
        kept.add(int_to_id(number), [fingerprint], places)
        kept.apply()
    landmark = Landmark((prints[0],), Fingerprint(2**64 - 1, 2**64 - 1))
    assert kept.candidates([prints[0]], [], 0) == [int_to_id(0), int_to_id(1)]
    assert kept.candidates([prints[9]], [landmark], 0) == [int_to_id(9), int_to_id(0), int_to_id(1)]


def test_an_evaluation_counts_cells(tree: Path) -> None:
    words = [
        "evaluate",
        "--bundle",
        str(starter_bundle()),
        "--references",
        str(tree),
        "--queries",
        str(tree),
        "--no-rotations",
    ]
    found = {}
    for more in ((), ("--distinct",)):
        done = CliRunner().invoke(app, [*words, "--json", *more])
        assert done.exit_code == 0, done.output
        found[more] = json.loads(done.stdout)
    images, cells = found.values()
    assert (images["n_queries"], cells["n_queries"], cells["n_references"]) == (24, 21, 21)
    assert "recaptures_left_out" not in images
    assert cells["recaptures_left_out"] == {"references": 3, "queries": 3}
    assert cells["precision_at_8"]["micro"] > 0.8
