"""Whether cells that lie alone are told apart: on the empty ground of a body fluid, or of a picture that is masked.

Real cells of `pbc`, everything beyond some distance from the middle made empty ground (simulated). Two of one class are
compared, each with each, and each with simulated recaptures of itself; the kinds are those of
`tests.benchmarks.duplicates`. `different`: verdicts on two cells; `recaptured`: on a cell and its recaptures; `detail`:
the largest agreement in detail of two cells that agree in colours or structure, and the smallest of recaptures.

    python -m tests.benchmarks.alone [--cells 24] [--seed 11] [--json]

With --masks the same of pictures as programs mask them, of every class of every set: round, square and flat, of several
sizes, on white, black, coloured and noisy ground, with hard and soft edges, saved as JPEG and PNG. Pairs are of one
class, at most 40 each. `pairs`: those called one cell.

    python -m tests.benchmarks.alone --masks --cells 4 [--seed 31] [--only "circle 75 black"] [--json]
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


@dataclass(frozen=True)
class Mask:
    """What a program leaves of a picture.

    shape : "circle", "square", or "flat", wider than high.  radius : pixels, half of its width.  ground : R, G, B of
    the rest.  soft : pixels over which its edge fades.  noise : grey values, standard deviation, of the ground.
    quality : of the JPEG; None for PNG.
    """

    shape: str
    radius: float
    ground: tuple[int, int, int]
    soft: float = 0.01
    noise: float = 0.0
    quality: int | None = 95

    def of(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """The picture uint8[h, w, 3] masked."""
        height, width = pixels.shape[:2]
        rows, columns = np.mgrid[:height, :width]
        down, right = rows - height / 2, columns - width / 2
        away = {
            "circle": np.hypot(down, right),
            "square": np.maximum(abs(down), abs(right)),
            "flat": np.maximum(abs(down) / 0.7, abs(right)),
        }[self.shape]
        kept = (1 / (1 + np.exp(np.clip((away - self.radius) / self.soft, -50, 50))))[..., None]
        ground = np.array(self.ground, float) + rng.normal(0, self.noise, pixels.shape)
        return np.asarray(np.clip(pixels * kept + ground * (1 - kept), 0, 255), np.uint8)

    def save(self, picture: NDArray[np.uint8]) -> bytes:
        """As a file."""
        out = io.BytesIO()
        if self.quality is None:
            Image.fromarray(picture).save(out, "PNG")
        else:
            Image.fromarray(picture).save(out, "JPEG", quality=self.quality)
        return out.getvalue()


WHITE, BLACK, SMEAR = (255, 255, 255), (0, 0, 0), (232, 222, 230)
MASKS = {
    "circle 50 white": Mask("circle", 50, WHITE),
    "circle 50 black": Mask("circle", 50, BLACK),
    "circle 75 white": Mask("circle", 75, WHITE),
    "circle 75 white, JPEG 30": Mask("circle", 75, WHITE, quality=30),
    "circle 75 black": Mask("circle", 75, BLACK),
    "circle 75 grey": Mask("circle", 75, (150, 150, 150)),
    "circle 75 blue": Mask("circle", 75, (0, 0, 255)),
    "circle 75 smear, soft, JPEG 30": Mask("circle", 75, SMEAR, soft=8, quality=30),
    "circle 90 smear, soft, noise": Mask("circle", 90, SMEAR, soft=4, noise=1),
    "circle 90 black, soft": Mask("circle", 90, BLACK, soft=8),
    "circle 100 white": Mask("circle", 100, WHITE),
    "circle 100 black": Mask("circle", 100, BLACK),
    "circle 115 white": Mask("circle", 115, WHITE),
    "circle 115 white, JPEG 30": Mask("circle", 115, WHITE, quality=30),
    "circle 115 black": Mask("circle", 115, BLACK),
    "circle 115 smear, soft, noise": Mask("circle", 115, SMEAR, soft=4, noise=1),
    "circle 130 white": Mask("circle", 130, WHITE),
    "circle 130 black": Mask("circle", 130, BLACK),
    "circle 150 black": Mask("circle", 150, BLACK),
    "circle 170 black": Mask("circle", 170, BLACK),
    "square 60 white": Mask("square", 60, WHITE),
    "square 60 black": Mask("square", 60, BLACK),
    "square 80 white": Mask("square", 80, WHITE),
    "square 80 black": Mask("square", 80, BLACK),
    "square 80 smear, noise, JPEG 30": Mask("square", 80, SMEAR, soft=1, noise=1, quality=30),
    "square 100 white, PNG": Mask("square", 100, WHITE, quality=None),
    "square 100 black, PNG": Mask("square", 100, BLACK, quality=None),
    "square 120 black": Mask("square", 120, BLACK),
    "flat 90 white": Mask("flat", 90, WHITE),
    "flat 90 black": Mask("flat", 90, BLACK),
}


def classes_of(data: Path) -> Iterator[tuple[str, list[Path]]]:
    """Each class of each set, as `pbc/basophil`, with its pictures."""
    for folder in sorted(data.glob("*/*/")):
        if files := sorted(folder.glob("*.jpg")):
            yield f"{folder.parent.name}/{folder.name}", files


def masked(
    data: Path, mask: Mask, classes: Sequence[str] | None = None, *, cells: int = 4, seed: int = 11, most: int = 40
) -> dict[str, Any]:
    """What the module's docstring describes of one mask. classes : as `classes_of` names them; by default all."""
    draw, different, recaptured = random.Random(seed), Counter[str](), Counter[str]()
    called: list[dict[str, Any]] = []
    for label, files in classes_of(data):
        chosen = draw.sample(files, min(cells, len(files)))
        if classes is not None and label not in classes:
            continue
        fits = replace(mask, radius=mask.radius * (0.45 if label.endswith("platelet") else 1.0))
        pictures = [
            fits.of(decode(file.read_bytes()), np.random.default_rng([seed, n])) for n, file in enumerate(chosen)
        ]
        views = [_seen(fits.save(picture)) for picture in pictures]
        pairs = list(itertools.combinations(range(len(views)), 2))
        for one, other in draw.sample(pairs, min(most, len(pairs))):
            found = compared(views[one], views[other], DEFAULTS)
            different[str(found.verdict)] += 1
            if found.verdict.is_one_cell:
                called.append(
                    {
                        "class": label,
                        "cells": [chosen[one].name, chosen[other].name],
                        "verdict": str(found.verdict),
                        "score": round(found.found.score, 3),
                        "structure": round(found.found.structure, 3),
                        "detail": round(found.found.detail, 3),
                    }
                )
        for n in range(0, len(pictures), 2):
            again = recapture(pictures[n], KINDS["strong"], np.random.default_rng([seed, n]))
            recaptured[str(compared(views[n], _seen(again), DEFAULTS).verdict)] += 1
    return {"different": dict(different), "recaptured": dict(recaptured), "pairs": called}


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
    parser.add_argument("--masks", action="store_true", help="pictures as programs mask them, of every class")
    parser.add_argument("--only", default="", help="of the masks, those whose name begins so")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.masks:
        chosen = {name: mask for name, mask in MASKS.items() if name.startswith(options.only)}
        how = {"cells": options.cells, "seed": options.seed}
        tell({name: masked(options.data, mask, **how) for name, mask in chosen.items()}, as_json=options.json)
        return
    tell(measure(options.data, cells=options.cells, seed=options.seed), as_json=options.json)


if __name__ == "__main__":
    main()
