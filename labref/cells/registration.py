"""Two pictures laid over each other: where they fit best, and how well they agree there.

What a microscope changes between two captures of one cell (place, a slight turn, gain and offset of each colour,
sharpness) changes the agreement little; another cell of the same class agrees far less. The shift is found by masked
normalised cross-correlation over all shifts at once (Padfield, IEEE Trans. Image Process. 21:2706, 2012), then shift
and turn are refined below the pixel by Gauss-Newton steps on that correlation (Lucas & Kanade 1981; Evangelidis &
Psarakis, IEEE PAMI 30:1858, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from labref.cells.image import BACKGROUND, CROP_SIZE, CellImage

__all__ = ["SIDE", "Alignment", "View", "align", "view"]

SIDE: Final = 64
"""Side of the thumbs that are compared, pixels; one is four of the crop's."""
_SCALE: Final = CROP_SIZE // SIDE
_LEAST_OVERLAP: Final = 0.25  # of a thumb: less than that says little of two cells, unless an image is no larger
_HOPELESS: Final = 0.6  # below this the first correlation is not refined; recaptures begin at 0.9
_STEPS: Final = 8
_MOST_TURN: Final = 0.1  # radians; beyond it the steps have lost their way
_HAZE: Final = 0.1  # optical density in red light of what is no nucleus
_AROUND: Final = 5  # pixels of a thumb about a middle, in which the nucleus has to be
_FIELD: Final = 1.75 * CROP_SIZE  # pixels; an image with a longer side shows a field, and its middle means nothing

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """What is compared of a prepared cell.

    thumb : uint8[64, 64, 3], the cell's surroundings at a quarter of their scale.  box : (top, left, bottom, right),
    the part of the thumb that shows
    the image and not the fill about it.  middle : (row, column) of the image's own middle from the crop's, crop pixels.
    stained : how dark the image's own middle is in red light, as a share of the crop's, 0 to 1: a nucleus or none; 0
    for a field.
    """

    thumb: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    middle: tuple[float, float]
    stained: float = 0.0


@dataclass(frozen=True)
class Alignment:
    """How one view lies on another.

    score : normalised cross-correlation where they overlap, mean of the three colours, -1 to 1.  shift : (rows,
    columns) that the second's centre lies from the first's, crop pixels.  turn : degrees.  middles : distance of the
    images' middles, crop pixels.
    overlap : share of the thumb that both show.  stained : as of `View`, of the view that has less.
    """

    score: float
    shift: tuple[float, float]
    turn: float
    middles: float
    overlap: float
    stained: float = 0.0


def view(cell: CellImage) -> View:
    """The view of a prepared cell."""
    thumb = np.asarray(Image.fromarray(cell.surroundings).resize((SIDE, SIDE), Image.Resampling.BOX))
    box = []
    for axis in (0, 1):
        start = round(cell.centre[axis] - (CROP_SIZE - 1) / 2)
        first = -(-max(0, -start) // _SCALE)
        last = min(CROP_SIZE, cell.size[axis] - start) // _SCALE
        box.append((min(first, SIDE - 1), max(last, first + 1)))
    (top, bottom), (left, right) = box
    middle = ((cell.size[0] - 1) / 2 - cell.centre[0], (cell.size[1] - 1) / 2 - cell.centre[1])
    stained = 0.0 if max(cell.size) > _FIELD else _stained(thumb, middle)
    return View(thumb, (top, left, bottom, right), middle, stained)


def _stained(thumb: NDArray[np.uint8], middle: tuple[float, float]) -> float:
    density = np.log((BACKGROUND + 1.0) / (thumb[:, :, 0].astype(np.float32) + 1.0)) - _HAZE
    smooth = ndimage.gaussian_filter(density, 2.0)
    here, own = ([round((SIDE - 1) / 2 + at / _SCALE) for at in place] for place in ((0.0, 0.0), middle))
    if not all(0 <= at < SIDE for at in own):
        return 0.0
    there, chosen = (
        float(smooth[max(0, row - _AROUND) : row + _AROUND + 1, max(0, column - _AROUND) : column + _AROUND + 1].max())
        for row, column in (own, here)
    )
    return 0.0 if chosen <= 0.0 else min(1.0, max(0.0, there / chosen))


def align(a: View, b: View) -> Alignment:
    """Lay `b` on `a` where they agree best. Symmetric but for the last digits; some milliseconds."""
    first, second = a.thumb.astype(np.float32), b.thumb.astype(np.float32)
    score, shift, overlap = _best_shift(first.mean(axis=2), _mask(a), second.mean(axis=2), _mask(b))
    pose = np.array([shift[0], shift[1], 0.0])
    if score >= _HOPELESS:
        score, pose, overlap = _refine(first, _mask(a), second, _mask(b), pose)
    rows, columns = float(pose[0] * _SCALE), float(pose[1] * _SCALE)
    apart = (rows + b.middle[0] - a.middle[0], columns + b.middle[1] - a.middle[1])
    return Alignment(
        score,
        (rows, columns),
        float(np.degrees(pose[2])),
        float(np.hypot(apart[0], apart[1])),
        float(overlap),
        min(a.stained, b.stained),
    )


def _mask(shown: View) -> F32:
    top, left, bottom, right = shown.box
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[top:bottom, left:right] = 1.0
    return mask


def _least(a_mask: F32, b_mask: F32) -> float:
    """Pixels that two views must have in common."""
    return min(_LEAST_OVERLAP * SIDE**2, 0.5 * float(min(a_mask.sum(), b_mask.sum())))


def _best_shift(a: F32, a_mask: F32, b: F32, b_mask: F32) -> tuple[float, tuple[int, int], float]:
    """Highest correlation of grey pictures over whole shifts of b, the shift, and the overlap there."""
    size = 2 * SIDE

    def forward(picture: F32) -> NDArray[np.complex64]:
        return np.asarray(fft.rfft2(picture, (size, size)))

    def back(spectrum: NDArray[np.complex64]) -> F32:
        return np.asarray(fft.irfft2(spectrum, (size, size)))

    a = (a - float((a * a_mask).sum() / a_mask.sum())) * a_mask
    b = (b - float((b * b_mask).sum() / b_mask.sum())) * b_mask
    fa, fa2, fam = forward(a), forward(a * a), forward(a_mask)
    fb, fb2, fbm = forward(b).conj(), forward(b * b).conj(), forward(b_mask).conj()
    pixels = back(fam * fbm)
    count = np.maximum(pixels, 1.0)
    sum_a, sum_b = back(fa * fbm), back(fam * fb)
    common = back(fa * fb) - sum_a * sum_b / count
    spread = np.maximum(back(fa2 * fbm) - sum_a**2 / count, 0.0) * np.maximum(back(fam * fb2) - sum_b**2 / count, 0.0)
    # a flat overlap correlates with nothing; its spread is rounding error
    enough = (pixels >= _least(a_mask, b_mask)) & (spread > (0.25 * count) ** 2)
    scores = np.where(enough, common / np.sqrt(np.maximum(spread, 1e-6)), -1.0)
    row, column = divmod(int(np.argmax(scores)), size)
    shift = (row - size if row >= SIDE else row, column - size if column >= SIDE else column)
    return float(scores[row, column]), shift, float(pixels[row, column]) / SIDE**2


def _refine(a: F32, a_mask: F32, b: F32, b_mask: F32, pose: F64) -> tuple[float, F64, float]:
    """Best correlation of the colours near a pose (rows, columns, radians), that pose, and the overlap there."""
    middle = (SIDE - 1) / 2
    rows = np.broadcast_to((np.arange(SIDE) - middle)[:, None], (SIDE, SIDE))
    columns = rows.T
    best: tuple[float, F64, float] = (-1.0, pose, 0.0)
    # a little blur: two captures differ in sharpness, and steps are as good as the gradients are smooth
    a, b = (ndimage.gaussian_filter(picture, (0.7, 0.7, 0)) for picture in (a, b))
    for _ in range(_STEPS):
        cosine, sine = np.cos(pose[2]), np.sin(pose[2])
        turn = np.array([[cosine, -sine], [sine, cosine]])
        offset = np.array([middle, middle]) - turn @ (np.array([middle, middle]) + pose[:2])
        moved = np.stack(
            [ndimage.affine_transform(b[..., i], turn, offset, order=1, mode="nearest") for i in range(3)], axis=-1
        )
        shown = (a_mask > 0) & (ndimage.affine_transform(b_mask, turn, offset, order=1, mode="constant") > 0.999)
        if shown.sum() < 0.9 * _least(a_mask, b_mask):
            break
        target, found = a[shown] - a[shown].mean(axis=0), moved[shown] - moved[shown].mean(axis=0)
        energy = np.maximum((found**2).sum(axis=0), 1.0)
        size = np.maximum((target**2).sum(axis=0), 1.0)
        product = (target * found).sum(axis=0)
        score = float((product / np.sqrt(energy * size)).mean())
        if score > best[0]:
            gained = score - best[0]
            best = (score, pose.copy(), float(shown.mean()))
            if gained < 1e-4:
                break
        by_row, by_column = np.gradient(moved, axis=0)[shown], np.gradient(moved, axis=1)[shown]
        away = by_column * rows[shown][:, None] - by_row * columns[shown][:, None]
        steps = np.stack([-by_row, -by_column, away], axis=-1) * (product / energy / np.sqrt(size))[None, :, None]
        steps = (steps - steps.mean(axis=0)).reshape(-1, 3)
        rest = ((target - found * (product / energy)) / np.sqrt(size)).reshape(-1)
        pose = pose + np.linalg.solve(steps.T @ steps + 1e-9 * np.eye(3), steps.T @ rest)
        if abs(pose[2]) > _MOST_TURN or abs(pose[:2] - best[1][:2]).max() > 4:
            break
    return best
