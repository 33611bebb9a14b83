"""What a cell's image says about its optics (background, focus and colour), and when the optics drift.

Seven measures of each cell, taken from the prepared cell, which is not changed:

    background_red, _green, _blue   intensity of the smear's background in the camera's image, 0 to 255
    focus                           fine detail, divided by contrast, in the middle 128×128 pixels of the crop: the
                                    standard deviation of the Laplacian of the green channel's optical density at half
                                    the scale, divided by that of the density itself. This is the normalised Laplacian
                                    energy of Subbarao, Choi & Nikzad 1993 (see Pertuz, Puig & Garcia 2013). At the full
                                    scale, JPEG and noise would count. Blur makes it smaller; a pale stain does not
    density_red, _green, _blue      mean optical density, -log10(intensity / background), in the same square: stain and
                                    colour

Drift is a robust effect size (Glass's Δ with the median and 1.4826 MAD): the move of the median, in standard deviations
of single cells, which are estimated from the median absolute deviation. It was tried on 300 simulated days of a hundred
real cells with a random mixture of classes (flat Dirichlet distribution): no median moved by one such deviation. With
fifty cells, the uncertainty of a median is a fifth of a deviation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from labref.cells.image import BACKGROUND, CROP_SIZE, CellImage
from labref.words import MEASURES

__all__ = ["DRIFT", "FROM_TRAINING", "LEAST_NOW", "LEAST_PAST", "LEAST_SPREAD", "measure", "shifts", "statistics"]

DRIFT: Final = 1.0
"""A warning is given where the median of today's cells is this many robust standard deviations off the lab's past."""
FROM_TRAINING: Final = 2.5
"""The same against the cells that the bundle was trained on. It is larger, because these come from many labs."""
LEAST_NOW: Final = 50
LEAST_PAST: Final = 200
"""Drift is computed only with at least this many cells: LEAST_NOW of today, LEAST_PAST of the past."""
LEAST_SPREAD: Final = np.array([4.0, 4.0, 4.0, 0.02, 0.01, 0.01, 0.01])
"""The least robust standard deviation of each measure: smaller differences are rounding."""
_MIDDLE: Final = slice(CROP_SIZE // 4, CROP_SIZE - CROP_SIZE // 4)
_DENSITY: Final = -np.log10(np.maximum(np.arange(256), 1) / BACKGROUND).astype(np.float32)


def measure(cell: CellImage) -> NDArray[np.float32]:
    """The seven measures of a prepared cell: float32[7], in the order of `MEASURES`. Takes about a millisecond."""
    density = _DENSITY.take(np.moveaxis(cell.crop[_MIDDLE, _MIDDLE], 2, 0))
    green = density[1]
    half: NDArray[np.float32] = (
        green[::2, ::2] + green[1::2, ::2] + green[::2, 1::2] + green[1::2, 1::2]
    ) * np.float32(0.25)
    contrast = float(green.std())
    focus = float(_laplacian(half).std()) / contrast if contrast > 1e-6 else 0.0
    return np.array([*cell.background, focus, *density.mean(axis=(1, 2))], np.float32)


def statistics(values: NDArray[np.float32]) -> dict[str, Any]:
    """The field `optics` of a bundle's manifest: the optics of the cells that the bundle was trained on.

    values : float32[n, 7], one row for each cell. Returns {`cells`: n, `measures`: {name: {`median`, `deviation`}}};
    the deviation is 1.4826 times the median absolute deviation.
    """
    median, deviation = robust(values)
    return {
        "cells": len(values),
        "measures": {
            name: {"median": round(float(median[i]), 5), "deviation": round(float(deviation[i]), 5)}
            for i, name in enumerate(MEASURES)
        },
    }


def shifts(now: NDArray[np.float32], past: NDArray[np.float32] | Mapping[str, Any]) -> dict[str, float]:
    """How far each measure's median has moved, in robust standard deviations of the past: {measure: shift}.

    now : float32[n, 7].  past : float32[m, 7], or the result of `statistics`; measures that it lacks are left out.
    """
    median = np.median(now, axis=0)
    if isinstance(past, np.ndarray):
        before = dict(zip(MEASURES, zip(*robust(past), strict=True), strict=True))
    else:
        before = {name: (float(entry["median"]), float(entry["deviation"])) for name, entry in past["measures"].items()}
    return {
        name: round(float((median[i] - before[name][0]) / max(before[name][1], LEAST_SPREAD[i])), 2)
        for i, name in enumerate(MEASURES)
        if name in before
    }


def robust(values: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median and robust standard deviation, 1.4826 times the median absolute deviation, of each column of values
    float32[n, m]: float64[m] each."""
    median = np.median(values.astype(np.float64), axis=0)
    return median, 1.4826 * np.median(np.abs(values - median), axis=0)


def _laplacian(values: NDArray[np.float32]) -> NDArray[np.float32]:
    middle: NDArray[np.float32] = 4 * values[1:-1, 1:-1]
    return middle - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
