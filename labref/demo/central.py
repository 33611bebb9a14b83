"""A bundle with an atlas for the demo: the starter, and cells that are drawn as a third microscope shows them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from labref.bundles.atlas import AtlasCell, AtlasSource, write
from labref.bundles.bundle import describe, starter_bundle, unpacked
from labref.bundles.inference import Embedder
from labref.bundles.schema import WITH_ATLAS
from labref.bundles.signing import SIGNATURE_FILE
from labref.cells.image import prepare
from labref.demo.cells import LABELS, Optics, draw_cell, encode_jpeg, make_slides

__all__ = ["CENTRAL_CELLS", "with_drawn_atlas"]

CENTRAL_CELLS: Final = 6
"""Cells of each class in the demo's atlas."""
_OPTICS: Final = Optics("central", (240.0, 232.0, 222.0), 0.9, 20, 0.92, 0.05, 1.5)
_SOURCE: Final = AtlasSource("cells drawn for labref's demo", "MIT")


def with_drawn_atlas(folder: Path, *, seed: int) -> Path:
    """A bundle in the new folder `folder`: the starter with an atlas of drawn cells of each class; unsigned. Takes
    seconds. The same seed draws the same cells."""
    rng, slides = np.random.default_rng([seed, 0xA71A5]), make_slides(CENTRAL_CELLS, seed=seed + 1)
    drawn = [(label, encode_jpeg(draw_cell(label, _OPTICS, slide, rng))) for label in LABELS for slide in slides]
    with unpacked(starter_bundle()) as (starter, _):
        shutil.copytree(starter.folder, folder, ignore=shutil.ignore_patterns(SIGNATURE_FILE))
        with Embedder.open(starter, device="cpu", precision="full") as embedder:
            latents = embedder.embed(np.stack([prepare(data).crop for _, data in drawn])).latents
        entry = write(
            folder,
            [AtlasCell(latent, label, 0, data) for latent, (label, data) in zip(latents, drawn, strict=True)],
            labels=starter.manifest.labels,
            sources=[_SOURCE],
            how=f"{CENTRAL_CELLS} of each class, drawn with seed {seed}",
        )
        describe(folder, replace(starter.manifest, format_version=WITH_ATLAS, atlas=entry))
    return folder
