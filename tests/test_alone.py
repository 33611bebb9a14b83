"""Cells on empty ground, as a body fluid's, are told apart by what is in them; their recaptures are still found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from labref.bundles.bundle import Bundle
from labref.cells.image import decode, prepare_pixels
from labref.cells.registration import turned, view
from tests.benchmarks.alone import CLASSES, alone, measure
from tests.benchmarks.duplicates import KINDS, jpeg, recapture
from tests.labs import make_lab, once


def test_cells_that_lie_alone_are_told_apart_and_their_recaptures_found(real_cells: Path) -> None:
    found = measure(real_cells, cells=5, seed=23)
    assert set(found) == set(CLASSES)
    for label, of_class in found.items():
        verdicts = of_class["different"]
        assert "duplicate" not in verdicts and verdicts["different"] >= 9, (label, verdicts)
        for kind in KINDS:  # of a platelet, which is small, a recapture in other light can be missed
            least = 4 if label == "platelet" else 5
            assert of_class["recaptured"][kind].get("duplicate", 0) >= least, (label, of_class)


def test_what_lies_around_a_cell_is_seen_in_any_turn(real_cells: Path) -> None:
    for path in sorted((real_cells / "pbc" / "basophil").glob("*.jpg"))[:4]:
        pixels = decode(path.read_bytes())
        whole = view(prepare_pixels(pixels))
        made = view(prepare_pixels(alone(pixels, 75, np.random.default_rng(1))))
        assert whole.around > 5 > 3 > made.around
        # a picture and its transpose are summed in other orders
        assert np.ptp([turned(whole, number).around for number in range(8)]) < 1e-5 * whole.around
        tight = view(prepare_pixels(pixels[130:230, 130:230]))  # nothing but the cell
        assert tight.around == 0.0


def test_a_lab_of_cells_that_lie_alone_keeps_them_apart(real_cells: Path, tmp_path: Path, starter: Bundle) -> None:
    export = tmp_path / "export"
    for label, radius in (("lymphocyte", 75), ("platelet", 30)):
        (export / label).mkdir(parents=True)
        for n, path in enumerate(sorted((real_cells / "pbc" / label).glob("*.jpg"))[:8]):
            picture = alone(decode(path.read_bytes()), radius, np.random.default_rng(n))
            (export / label / f"{n}.jpg").write_bytes(jpeg(picture))
            if n == 0:
                (export / label / "again.jpg").write_bytes(
                    recapture(picture, KINDS["strong"], np.random.default_rng(9))
                )
    summary = once(make_lab(tmp_path / "lab", export, starter))
    assert (summary.stored, summary.duplicate, summary.possible_duplicate) == (16, 2, 0)
