"""What a cell's image says of the optics it came through: background, focus and colour; and when that drifts.

Seven numbers a cell, measured on what preparation made and without changing a pixel of it:

    background_red, _green, _blue   intensity of the smear's background as the camera gave it, 0 to 255
    focus                           fine detail over contrast in the middle 128×128 pixels of the crop: standard
    deviation of the
                                    Laplacian of the green channel's optical density at half the scale (finer, there is
                                    JPEG and noise), over that of the density itself: the normalised Laplacian energy of
                                    Subbarao, Choi & Nikzad 1993 (see Pertuz, Puig & Garcia 2013). Blur makes it
                                    smaller, a pale stain does not
    density_red, _green, _blue      mean optical density, -log10(intensity / background), in the same square: stain and
    colour

Drift is a robust effect size: how far the median moved, in standard deviations of single cells as estimated from the
median absolute deviation (Glass's Δ with median and 1.4826 MAD). Days of a hundred cells with classes mixed at random
moved no median of the real cells by one such deviation (300 days, classes by a flat Dirichlet distribution); with fifty
cells a median is known to a fifth of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.cells.image import BACKGROUND, CROP_SIZE, CellImage
from labref.words import MEASURES

__all__ = ["DRIFT", "FROM_TRAINING", "LEAST_NOW", "LEAST_PAST", "measure", "shifts", "statistics"]

DRIFT: Final = 1.0
"""A median of today's cells that is so many robust standard deviations off the lab's own past is told."""
FROM_TRAINING: Final = 2.5
"""Likewise off the cells that the bundle was trained on: many labs' cells, on which the networks can be relied."""
LEAST_NOW: Final = 50
LEAST_PAST: Final = 200
"""With fewer cells than these, today and before, nothing is said."""
_FLOOR: Final = np.array([4.0, 4.0, 4.0, 0.02, 0.01, 0.01, 0.01])
"""A robust standard deviation counts as at least this: smaller steps than these are rounding."""
_MIDDLE: Final = slice(CROP_SIZE // 4, CROP_SIZE - CROP_SIZE // 4)
_DENSITY: Final = -np.log10(np.maximum(np.arange(256), 1) / BACKGROUND).astype(np.float32)


def measure(cell: CellImage) -> NDArray[np.float32]:
    """The seven numbers of a prepared cell, float32[7], in the order of `MEASURES`. About a millisecond."""
    density = _DENSITY[cell.crop[_MIDDLE, _MIDDLE]]
    green = density[:, :, 1]
    half: NDArray[np.float32] = (
        green[::2, ::2] + green[1::2, ::2] + green[::2, 1::2] + green[1::2, 1::2]
    ) * np.float32(0.25)
    contrast = float(green.std())
    focus = float(_laplacian(half).std()) / contrast if contrast > 1e-6 else 0.0
    return np.array([*cell.background, focus, *density.mean(axis=(0, 1))], np.float32)


def statistics(values: NDArray[np.float32]) -> dict[str, Any]:
    """What a bundle's manifest may say of the cells it was trained on, from float32[n, 7], a row a cell (`optics`):
    {`cells`: n, `measures`: {name: {`median`, `deviation` (1.4826 times the median absolute deviation)}}}."""
    median, deviation = _robust(values)
    return {
        "cells": len(values),
        "measures": {
            name: {"median": round(float(median[i]), 5), "deviation": round(float(deviation[i]), 5)}
            for i, name in enumerate(MEASURES)
        },
    }


def shifts(now: NDArray[np.float32], past: NDArray[np.float32] | Mapping[str, Any]) -> dict[str, float]:
    """By how many robust standard deviations of the past each measure's median is off it now.

    now : float32[n, 7].  past : float32[m, 7], or what `statistics` made of it; of that, measures it lacks are left
    out.
    """
    median = np.median(now, axis=0)
    if isinstance(past, np.ndarray):
        known = dict(zip(MEASURES, zip(*_robust(past), strict=True), strict=True))
    else:
        known = {name: (float(entry["median"]), float(entry["deviation"])) for name, entry in past["measures"].items()}
    return {
        name: round(float((median[i] - known[name][0]) / max(known[name][1], _FLOOR[i])), 2)
        for i, name in enumerate(MEASURES)
        if name in known
    }


def _robust(values: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    median = np.median(values.astype(np.float64), axis=0)
    return median, 1.4826 * np.median(np.abs(values - median), axis=0)


def _laplacian(values: NDArray[np.float32]) -> NDArray[np.float32]:
    middle: NDArray[np.float32] = 4 * values[1:-1, 1:-1]
    return middle - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
