"""Whether a picture shows one stained cell in its middle, as an analyser cuts it, and if not, why not.

A few measures are taken from the picture at a quarter of its scale. Densities are natural logarithms of background over
intensity; the stained part is what is at least 0.6 times as dense, in red light, as the middle of the cell, within 20
pixels (of 1.6 µm) of it.

    darkness   density in red light of the cell's middle. No red cell is as dark as a nucleus with a usual stain
    blueness   density in red minus that in blue light of the stained part. Nuclei and platelets, stained by azure dyes,
               are bluer than red cells, however pale the stain is: a pale nucleus is told by this
    focus      the Laplacian's standard deviation over that of the density itself, in green light, about the cell: as
               the focus of `labref.cells.optics`, but at a quarter of the scale, where the camera's noise and rounding
               no longer count
    chroma     mean distance of the three densities from their mean, over that mean. 0 for a grey picture; large where
               one channel alone is inverted or lost
    greenness, redness   share of green in the stained part's colour, and of red minus blue: channels in another order
    inverted   how much the picture looks like a negative: a weighted sum of the lightness of the picture's middle
               against its background, the share about it that is as dark as the cell, the colour of the dark part
    crowd      how many other places are as dark as the cell and at least half as large, and how many other nuclei the
               segmentation found: the geometric mean, over the cell's own diameter
    beside     the larger of these numbers, in a picture of twice a crop's side and more: a field, not cut around a cell
    cut        length of the picture's edge within the stained part, over that part's diameter

The thresholds are calibrated on labelled real cells (`python -m training quality`) and kept in a bundle's manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Final

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from numpy.typing import NDArray

from labref.cells.image import CROP_SIZE, CellImage
from labref.words import Quality, Reason

__all__ = ["DEFAULTS", "Measured", "Thresholds", "examine", "judge"]

F32 = NDArray[np.float32]

_REACH: Final = 110  # pixels of the small picture from its middle: as far as a cell is looked for
_NEAR: Final = 12.0
_AROUND: Final = 20.0
_RING: Final = 24.0
_INNERMOST: Final = 10.0
_DARK: Final = 0.6  # share of the cell's darkness: the stained part
_PEER: Final = 0.5  # share of the cell's area
_LEAST_PEER: Final = 8  # pixels
_FIELD: Final = 2  # sides of a crop: a larger picture was not cut around one cell
_NUCLEAR: Final = np.array([1.0, 0.15, 0.0], np.float32)  # as `labref.cells.image.nuclear_density`
_EQUALLY: Final = np.full(3, 1 / 3, np.float32)
# logistic regression of 911 real cells of four sets and 229 negatives of them: the calibration half of each set
_INVERTED: Final[Mapping[str, float]] = {
    "dark_about": 14.6,
    "greenness": -16.4,
    "blue": 17.5,
    "lighter": -63.8,
    "about": 0.5,
    "balance": -8.2,
}
_CONSTANT: Final = 5.7


@dataclass(frozen=True)
class Measured:
    """What a picture is judged by; see this module's description. found : whether `labref.cells.segmentation` found a
    cell."""

    found: bool
    darkness: float
    blueness: float
    focus: float
    chroma: float
    greenness: float
    redness: float
    inverted: float
    crowd: float
    beside: int
    cut: float


@dataclass(frozen=True)
class Thresholds:
    """When a picture is not that of one cell.

    darkness, blueness : where both are below, nothing is stained.  focus : below, it is out of focus.  grey, chroma :
    the least and the most chroma of a stain.  greenness, redness : the least.  inverted, crowd, beside, cut : from here
    on.  how : how they were calibrated.
    """

    darkness: float
    blueness: float
    focus: float
    grey: float
    chroma: float
    greenness: float
    redness: float
    inverted: float
    crowd: float
    beside: int
    cut: float
    how: str

    def to_json(self) -> dict[str, Any]:
        """As a bundle's manifest keeps them, under `quality`."""
        return asdict(self)

    @staticmethod
    def of(quality: Mapping[str, Any]) -> Thresholds:
        """The thresholds in a bundle's manifest; `DEFAULTS` for a bundle without any."""
        if not quality:
            return DEFAULTS
        return Thresholds(**{field.name: quality[field.name] for field in fields(Thresholds)})


DEFAULTS: Final = Thresholds(
    darkness=0.54,
    blueness=0.06,
    focus=0.183,
    grey=0.05,
    chroma=1.042,
    greenness=0.174,
    redness=-0.011,
    inverted=2.287,
    crowd=3.374,
    beside=3,
    cut=1.229,
    how="`python -m training quality`: the strictest that doubt at most 0.5 % of the real cells of each set: 400 of pbc, "
    "325 of chula, 172 of bccd, 400 of bonemarrow, 220 of raabin",
)
"""The thresholds for bundles without their own. They do not depend on the networks."""


def judge(measured: Measured, thresholds: Thresholds = DEFAULTS) -> Quality:
    """The judgement of a picture with these measures. Of several reasons the one that makes it least a cell is told."""
    reason = _reason(measured, thresholds)
    return Quality(reason in (None, Reason.CUT), reason, round(measured.focus, 4))


def _reason(of: Measured, at: Thresholds) -> Reason | None:
    if not at.grey <= of.chroma <= at.chroma or of.inverted >= at.inverted:
        return Reason.COLOUR
    if not of.found or (of.darkness < at.darkness and of.blueness < at.blueness):
        return Reason.NOTHING
    if of.greenness < at.greenness or of.redness < at.redness:
        return Reason.COLOUR
    if of.focus < at.focus:
        return Reason.BLURRED
    if of.crowd >= at.crowd or of.beside >= at.beside:
        return Reason.SEVERAL
    return Reason.CUT if of.cut >= at.cut else None


def examine(cell: CellImage, colours: F32) -> Measured:
    """The measures of a picture. Takes less than a millisecond.

    cell, colours : prepared from the picture, and its densities, as `labref.cells.image.prepare_seen` gives them.
    """
    found = _found(colours, cell)
    names = ("darkness", "blueness", "focus", "chroma", "greenness", "redness", "crowd", "cut")
    return Measured(
        found=cell.nucleus_found,
        inverted=_CONSTANT + sum(weight * found[name] for name, weight in _INVERTED.items()),
        beside=int(found["beside"]),
        **{name: found[name] for name in names},
    )


def _found(whole: F32, cell: CellImage) -> dict[str, float]:
    height, width = whole.shape[:2]
    top, left = max(0, height // 2 - _REACH), max(0, width // 2 - _REACH)
    colours = whole[top : height - top, left : width - left]
    shape = colours.shape[:2]
    row, column = (
        (at + 0.5) * now / before - 0.5 - start
        for at, now, before, start in zip(cell.centre, (height, width), cell.size, (top, left), strict=True)
    )
    grey = colours @ _EQUALLY
    few = colours[::2, ::2]
    red = scipy.ndimage.uniform_filter(colours @ _NUCLEAR, 3, mode="nearest")
    from_cell, from_middle = _squares(shape, row, column), _middle_squares(shape)
    near, about = from_cell <= _NEAR**2, from_middle > _RING**2
    darkness = _quantile(red[near], 0.95)
    dark = red >= _DARK * darkness
    stained = dark & (from_cell <= _AROUND**2)
    area = int(stained.sum())
    colour = colours[stained if area else near].mean(axis=0)
    total = float(np.abs(colour).sum()) + 1e-6
    around = red[about]
    peers, others = _peers(dark, near), len(cell.others)
    return {
        "darkness": darkness,
        "blueness": float(colour[0] - colour[2]),
        "focus": _focus(colours[:, :, 1], row, column),
        "chroma": float(np.abs(few - grey[::2, ::2, None]).mean() / (np.abs(grey[::2, ::2]).mean() + 1e-6)),
        "greenness": float(colour[1]) / total,
        "redness": float(colour[0] - colour[2]) / total,
        "blue": float(colour[2]) / total,
        "dark_about": float((around > 0.5 * darkness).mean()) if around.size else 0.0,
        "lighter": max(min(_quantile(grey[from_middle <= _INNERMOST**2], 0.5), 0.0), -0.3),
        "about": max(min(_quantile(around, 0.5) / (abs(darkness) + 1e-6), 1.5), -1.0) if around.size else 0.0,
        "balance": min(cell.background) / max(*cell.background, 1.0),
        "crowd": 10.0 * float(np.sqrt(peers * others / (area + 1))),
        "beside": max(others - 1, peers) if min(cell.size) >= _FIELD * CROP_SIZE else 0,
        "cut": _cut(stained, area),
    }


def _squares(shape: tuple[int, int], row: float, column: float) -> F32:
    """Squares of the distances from a place, float32[h, w]."""
    rows, columns = (np.arange(length, dtype=np.float32) for length in shape)
    squares: F32 = np.add.outer((rows - np.float32(row)) ** 2, (columns - np.float32(column)) ** 2)
    return squares


@lru_cache(maxsize=8)
def _middle_squares(shape: tuple[int, int]) -> F32:
    return _squares(shape, (shape[0] - 1) / 2, (shape[1] - 1) / 2)


def _quantile(values: F32, share: float) -> float:
    at = min(int(share * values.size), values.size - 1)
    return float(np.partition(values, at)[at])


def _focus(green: F32, row: float, column: float) -> float:
    side = CROP_SIZE // 8
    # the whole square within the picture: a part of it has less contrast
    top, left = (
        max(0, min(round(at) - side // 2, size - side)) for at, size in zip((row, column), green.shape, strict=True)
    )
    middle = green[top : top + side, left : left + side]
    contrast = float(middle.std())
    if contrast < 1e-6 or min(middle.shape) < 3:
        return 0.0
    inner = 4 * middle[1:-1, 1:-1]
    inner = inner - middle[:-2, 1:-1] - middle[2:, 1:-1] - middle[1:-1, :-2] - middle[1:-1, 2:]
    return float(inner.std()) / contrast


def _peers(dark: NDArray[np.bool_], near: NDArray[np.bool_]) -> int:
    """How many other dark places are at least half as large as the cell's."""
    numbers, count = scipy.ndimage.label(dark)
    if count < 2:
        return 0
    areas = np.bincount(numbers.ravel())
    own = np.bincount(numbers[near], minlength=count + 1)
    own[0] = areas[0] = 0
    mine = int(own.argmax())
    least = max(_PEER * float(areas[mine]), _LEAST_PEER)
    areas[mine] = 0
    return int((areas >= least).sum())


def _cut(stained: NDArray[np.bool_], area: int) -> float:
    if not area:
        return 0.0
    edges = (stained[0], stained[-1], stained[:, 0], stained[:, -1])
    return max(int(edge.sum()) for edge in edges) / float(2.0 * np.sqrt(area / np.pi))
