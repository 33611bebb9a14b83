"""Pictures that are none of one cell, made of real ones, and the thresholds by which labref tells them apart.

`KINDS` makes each kind of bad picture from real ones. `calibrate` chooses the thresholds of `labref.cells.quality` on
real cells alone: each is the strictest that doubts at most `SHARE` of the cells of every set. The half of each set that
is not calibrated on, by its files' names, is for measuring (`python -m tests.benchmarks.quality`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy
from PIL import Image, ImageFilter

from labref.cells.image import (
    U8,
    colour_densities,
    decode,
    measure_background,
    nuclear_density,
    prepare_seen,
    reduced,
    require_content,
)
from labref.cells.quality import DEFAULTS, Measured, Thresholds, examine, judge
from labref.errors import UnreadableImageError
from training.data.images import Item, list_images, name_fraction

__all__ = ["KINDS", "SHARE", "calibrate", "cells_of", "doubted", "field_of_nine", "measured", "red_cells"]

SHARE: Final = 0.005
"""Each threshold may doubt this share of the real cells of a set."""
_SALT: Final = "quality"
_CALIBRATION: Final = 0.5
_FAR: Final = 3  # pixels of the small picture between red cells that are cut out and what is stained
_RED: Final = 0.2  # least share of the piece that red cells cover
_STEP: Final = 3

Maker = Callable[[U8, np.random.Generator], U8 | None]


def cells_of(data: Path, domain: str, *, calibration: bool, most: int | None = None) -> list[Item]:
    """The labelled pictures of a set that thresholds are calibrated on, or the others; by their names.

    Pictures of one series (`B-57_0047_0.jpg`) fall into one half, as consecutive pictures look alike. most : at most so
    many, chosen by their names.
    """
    items = [
        item
        for item in list_images(data, [domain])
        if (name_fraction(_series(item), _SALT) < _CALIBRATION) is calibration
    ]
    return sorted(items, key=lambda item: name_fraction(item.path, _SALT))[:most]


def _series(item: Item) -> str:
    stem = Path(item.path).stem
    series, _, rest = stem.partition("_")
    return series if rest and "-" in series else stem


def measured(pixels: U8) -> Measured | None:
    """The measures of a picture uint8[h, w, 3]; None where it is refused before it is measured."""
    small = reduced(pixels)
    try:
        require_content(small)
    except UnreadableImageError:
        return None
    return examine(*prepare_seen(pixels, small))


def doubted(pixels: U8, thresholds: Thresholds = DEFAULTS) -> str:
    """The name of the reason for which a picture is doubted, "refused" where it is refused at once, "" where it is
    not."""
    found = measured(pixels)
    if found is None:
        return "refused"
    reason = judge(found, thresholds).reason
    return "" if reason is None else reason.name.lower()


def _blurred(sigma: float) -> Maker:
    return lambda pixels, _: np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def _moved(pixels: U8, rng: np.random.Generator) -> U8:
    """Motion of 40 pixels during the exposure, in one direction."""
    angle = rng.uniform(0, np.pi)
    steps = np.linspace(-20, 20, 21)
    shifted = [
        scipy.ndimage.shift(
            pixels.astype(np.float32), (s * np.sin(angle), s * np.cos(angle), 0), order=1, mode="nearest"
        )
        for s in steps
    ]
    moved: U8 = np.mean(shifted, axis=0).astype(np.uint8)
    return moved


def _one_inverted(pixels: U8, rng: np.random.Generator) -> U8:
    made = pixels.copy()
    channel = int(rng.integers(3))
    made[..., channel] = 255 - made[..., channel]
    return made


def _one_left(pixels: U8, rng: np.random.Generator) -> U8:
    made = np.zeros_like(pixels)
    channel = int(rng.integers(3))
    made[..., channel] = pixels[..., channel]
    return made


def _grey(pixels: U8, _: np.random.Generator) -> U8:
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB"))


def _halved(pixels: U8, rng: np.random.Generator) -> U8:
    """The cell in the middle cut in half by the picture's edge."""
    turned = np.rot90(pixels, int(rng.integers(4)))
    return np.ascontiguousarray(turned[:, turned.shape[1] // 2 :])


def _noise(pixels: U8, rng: np.random.Generator) -> U8:
    return rng.integers(0, 256, pixels.shape, np.uint8)


def _coarse_noise(pixels: U8, rng: np.random.Generator) -> U8:
    """Noise in grains of some 24 pixels, of the picture's own colours."""
    height, width = pixels.shape[:2]
    few = pixels.reshape(-1, 3)[rng.integers(0, height * width, (height // 24 + 1) * (width // 24 + 1))]
    grains = Image.fromarray(few.reshape(height // 24 + 1, width // 24 + 1, 3))
    return np.asarray(grains.resize((width, height), Image.Resampling.BICUBIC))


def red_cells(pixels: U8, rng: np.random.Generator, side: int = 128) -> U8 | None:
    """A square uint8[side, side, 3] of a picture with red cells and nothing stained; None where there is none."""
    small = reduced(pixels)
    colours = colour_densities(small, measure_background(small))
    density = nuclear_density(colours)
    stained = density > 0.45 * scipy.ndimage.gaussian_filter(density, 1.5).max()
    far = scipy.ndimage.distance_transform_edt(~stained)
    red = colours.mean(axis=2) > 0.06
    part = side // 4
    places = [
        (row, column)
        for row in range(0, density.shape[0] - part + 1, _STEP)
        for column in range(0, density.shape[1] - part + 1, _STEP)
        if far[row : row + part, column : column + part].min() >= _FAR
        and red[row : row + part, column : column + part].mean() > _RED
    ]
    if not places:
        return None
    row, column = places[int(rng.integers(len(places)))]
    top, left = min(4 * row, pixels.shape[0] - side), min(4 * column, pixels.shape[1] - side)
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _enlarged(pixels: U8, rng: np.random.Generator) -> U8 | None:
    cut = red_cells(pixels, rng)
    return None if cut is None else np.asarray(Image.fromarray(cut).resize((360, 360), Image.Resampling.BICUBIC))


KINDS: Final[Mapping[str, Maker]] = {
    "blank": lambda pixels, _: np.full_like(pixels, np.median(pixels.reshape(-1, 3), axis=0).astype(np.uint8)),
    "noise": _noise,
    "coarse_noise": _coarse_noise,
    "red_cells": red_cells,
    "red_cells_enlarged": _enlarged,
    "blur_15": _blurred(15),
    "blur_8": _blurred(8),
    "motion_40": _moved,
    "inverted": lambda pixels, _: 255 - pixels,
    "one_channel_inverted": _one_inverted,
    "one_channel": _one_left,
    "grey": _grey,
    "halved": _halved,
}
"""Kinds of bad pictures, each made of one real picture uint8[h, w, 3]; None where that picture does not allow it."""


def field_of_nine(pictures: Sequence[U8], scale: float = 1.0) -> U8:
    """Nine pictures as one field, three in a row. scale : 1 leaves their pixels as they are."""
    side = min(min(one.shape[:2]) for one in pictures)
    rows = [np.concatenate([one[:side, :side] for one in pictures[at : at + 3]], axis=1) for at in (0, 3, 6)]
    field = Image.fromarray(np.concatenate(rows))
    length = round(3 * side * scale)
    return np.asarray(field if scale == 1 else field.resize((length, length), Image.Resampling.LANCZOS))


def calibrate(data: Path, domains: Sequence[str], most: int | None = None) -> Thresholds:
    """The thresholds for the calibration half of these sets, at most `most` cells of each.

    data : folder with a folder of class folders for each set.  Raises ValueError where a set has no usable cell.
    """
    rng = np.random.default_rng(0)
    real: dict[str, list[Measured]] = {}
    red: list[Measured] = []
    for domain in domains:
        for pixels in _pictures(data, cells_of(data, domain, calibration=True, most=most)):
            found, piece = measured(pixels), red_cells(pixels, rng)
            if found is not None:
                real.setdefault(domain, []).append(found)
            if piece is not None and (nothing := measured(piece)) is not None:
                red.append(nothing)
        if domain not in real:
            raise ValueError(f"{data / domain}: no cell to calibrate on")
    chosen = _stained(real, red, DEFAULTS)
    told: dict[str, Any] = {
        "focus": min(_strictest(real, lambda one: one.focus, low=True), 0.5),
        "chroma": max(_strictest(real, lambda one: one.chroma), 0.8),
        "greenness": min(_strictest(real, lambda one: one.greenness, low=True), 0.3),
        "redness": min(_strictest(real, lambda one: one.redness, low=True), 0.1),
        "inverted": max(_strictest(real, lambda one: one.inverted), -5.0),
        "crowd": max(_strictest(real, lambda one: one.crowd), 1.0),
        "cut": max(_strictest(real, lambda one: one.cut), 0.5),
    }
    counts = ", ".join(f"{len(cells):,} of {domain}" for domain, cells in real.items())
    how = f"the strictest that doubt at most {SHARE:.1%} of the real cells of each set: {counts}"
    return replace(chosen, **told, how=how)


def _pictures(data: Path, items: Sequence[Item]) -> Iterator[U8]:
    for item in items:
        with contextlib.suppress(UnreadableImageError):
            yield decode((data / item.path).read_bytes())


def _strictest(real: Mapping[str, Sequence[Measured]], of: Callable[[Measured], float], *, low: bool = False) -> float:
    """The strictest limit beyond which at most `SHARE` of each set lies: below it where `low`, else from it on."""
    limits = []
    for cells in real.values():
        values = np.sort([of(one) for one in cells])
        allowed = round(SHARE * len(values))
        limits.append(float(values[allowed]) if low else float(np.nextafter(values[-1 - allowed], np.inf)))
    return round(min(limits) - 5e-4, 3) if low else round(max(limits) + 5e-4, 3)


def _stained(real: Mapping[str, Sequence[Measured]], red: Sequence[Measured], start: Thresholds) -> Thresholds:
    """The least darkness and blueness of which one is enough: of the pairs that doubt at most `SHARE` of each set, the
    one that doubts the most pieces with red cells only; of equals the gentlest."""

    def share(cells: Sequence[Measured], darkness: float, blueness: float) -> int:
        return sum(one.darkness < darkness and one.blueness < blueness for one in cells)

    grid = [round(0.02 * step, 2) for step in range(2, 30)]
    fits = [
        (share(red, darkness, blueness), -darkness * blueness, darkness, blueness)
        for darkness in grid
        for blueness in grid
        if blueness <= 0.5
        and all(share(cells, darkness, blueness) <= round(SHARE * len(cells)) for cells in real.values())
    ]
    if not fits:
        return start
    *_, darkness, blueness = max(fits)
    return replace(start, darkness=darkness, blueness=blueness)
