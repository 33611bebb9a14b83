"""Whether cells that lie alone are told apart: on the empty ground of a body fluid, or of a picture that is masked.

Real cells of `pbc`, everything beyond some distance from the middle made empty ground (simulated). Two of one class are
compared, each with each, and each with simulated recaptures of itself; the kinds are those of
`tests.benchmarks.duplicates`. `different`: verdicts on two cells; `recaptured`: on a cell and its recaptures; `detail`:
the largest agreement in detail of two cells that agree in colours or structure, and the smallest of recaptures.

    python -m tests.benchmarks.alone [--cells 24] [--seed 11] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labref.cells.image import decode
from labref.cells.registration import View
from labref.cells.sameness import DEFAULTS, compared, seen
from tests.benchmarks.duplicates import DATA, KINDS, jpeg, recapture
from tests.benchmarks.exports import tell

CLASSES = ("basophil", "eosinophil", "erythroblast", "lymphocyte", "monocyte", "neutrophil", "platelet")
GROUND = (232.0, 222.0, 230.0)


def alone(pixels: NDArray[np.uint8], radius: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture uint8[h, w, 3] in which only a disc about the middle is left, the rest empty ground with little noise.
    radius : pixels."""
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    away = np.hypot(rows - height / 2, columns - width / 2)
    kept = (1 / (1 + np.exp((away - radius) / 4)))[..., None]
    made = pixels * kept + np.array(GROUND) * (1 - kept) + rng.normal(0, 1, pixels.shape)
    return np.asarray(np.clip(made, 0, 255), np.uint8)


def measure(
    data: Path, classes: Sequence[str] = CLASSES, *, cells: int = 24, seed: int = 11
) -> dict[str, dict[str, Any]]:
    """What the module's docstring describes, by class."""
    draw, found = random.Random(seed), {}
    for label in classes:
        files = draw.sample(sorted((data / "pbc" / label).glob("*.jpg")), cells)
        radius = 30 if label == "platelet" else 75
        pictures = [
            alone(decode(file.read_bytes()), radius, np.random.default_rng([seed, n])) for n, file in enumerate(files)
        ]
        views = [_seen(jpeg(picture)) for picture in pictures]
        pairs = [compared(one, other, DEFAULTS) for one, other in itertools.combinations(views, 2)]
        agreeing = [
            pair.found.detail
            for pair in pairs
            if pair.found.score >= DEFAULTS.possible_from or pair.found.agrees_in_structure
        ]
        again = {
            name: [
                compared(views[n], _seen(recapture(picture, how, np.random.default_rng([seed, n]))), DEFAULTS)
                for n, picture in enumerate(pictures)
            ]
            for name, how in KINDS.items()
        }
        found[label] = {
            "cells": cells,
            "different": dict(Counter(str(pair.verdict) for pair in pairs)),
            "recaptured": {name: dict(Counter(str(one.verdict) for one in ones)) for name, ones in again.items()},
            "detail": {
                "different": round(max(agreeing, default=0.0), 3),
                "recaptured": round(min(one.found.detail for ones in again.values() for one in ones), 3),
            },
        }
    return found


def _seen(data: bytes) -> View:
    return seen(decode(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cells", type=int, default=24, help="of each class")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tell(measure(options.data, cells=options.cells, seed=options.seed), as_json=options.json)


if __name__ == "__main__":
    main()
