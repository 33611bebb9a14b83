"""Registration of two pictures: the shift and turn at which they agree best, and how well they agree there.

Two captures of one cell differ in place, by a slight turn, in gain and offset of each colour, and in sharpness. None of
this changes the agreement much; another cell of the same class agrees far less. First the shift is found by masked
normalised cross-correlation over all shifts at once (Padfield, IEEE Trans. Image Process. 21:2706, 2012). Then shift
and turn are refined to fractions of a pixel by Gauss-Newton steps on that correlation (Lucas & Kanade 1981; Evangelidis
& Psarakis, IEEE PAMI 30:1858, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from numpy.typing import NDArray
from PIL import Image

from labref.cells.hashes import ORIENTATIONS, oriented
from labref.cells.image import BACKGROUND, CROP_SIZE, CellImage

__all__ = ["SIDE", "STAINED", "STRUCTURE_FROM", "Alignment", "View", "align", "turned", "view"]

SIDE: Final = 64
"""Side of the thumbnails that are compared, pixels; one of these pixels is four of the crop's."""
_SCALE: Final = CROP_SIZE // SIDE
_LEAST_OVERLAP: Final = 0.25  # share of a thumbnail that both must show: a smaller overlap says little about two cells
_STRUCTURE_OVERLAP: Final = 0.5  # the same for the structure, which says less where little is seen
_MUCH_SHOWN: Final = 0.65  # share of a thumbnail; where both show less, the structure has to agree further
_LITTLE_SHOWN_FROM: Final = 0.8
_HOPELESS: Final = 0.6  # a lower correlation is not refined; recaptures have 0.9 and more
_SURE: Final = 0.7  # from this on it is refined whatever the structure says: neighbours have little in common
_ENOUGH: Final = 0.93  # from this correlation on the pose is that of the colours
_HOPELESS_STRUCTURE: Final = 0.45
_WORTH_REFINING: Final = 0.85
"""A pose whose correlation would not come so far with `_MORE_GAINS` more gains like the last is refined no further. Of
the 5,286 steps of 644 pairs of five sets, recaptures and other cells, this leaves out 2,176, and none of a pair that
ended above."""
_MORE_GAINS: Final = 4
_FINE, _COARSE = 1.0, 5.0  # pixels of a thumbnail, standard deviations: of what is compared, and of its surroundings
_NOISE: Final = 3.0  # grey values: a ground that varies less has no structure
_SLIGHT: Final = 0.7  # pixels of a thumbnail, standard deviation
_CELL, _CELL_INSIDE = 26.0, 20.0  # pixels of a thumbnail from its middle: what is around a cell, and what is in it
_LITTLE_AROUND: Final = 50  # pixels of a thumbnail
_OUTLINE: Final = 2  # pixels of a thumbnail, beside what lies on even ground
_LEAST_INSIDE: Final = 60  # pixels of a thumbnail
_SURROUNDED: Final = 0.5  # of the edge of what is shown, that is even ground where something lies on it
_EVEN: Final = 2.0  # grey values; ground that varies by no more within three pixels of a thumbnail is even
_STEPS: Final = 8
_MOST_TURN: Final = 0.1  # radians; at a larger turn the steps no longer converge
_HAZE: Final = 0.1  # optical density in red light that is too low for a nucleus
_AROUND: Final = 5  # pixels of a thumbnail around a middle, in which a nucleus is looked for
_BODY: Final = 3.0  # pixels of a thumbnail, standard deviation: blurred so far, a nucleus has one peak
_CENTRED: Final = 12.0  # pixels of the crop; a picture with its middle so near to the centre was taken of that nucleus
_ASIDE: Final = 60.0  # pixels of the crop; no nucleus that touches another reaches so far from its own
_ONE_PEAK: Final = 3.0  # pixels of a thumbnail; peaks that lie closer are one
_FIELD: Final = 1.75 * CROP_SIZE  # pixels; an image with a longer side shows a field, and its middle means nothing

_ALONE: Final = 3.0
"""A view with less around its cell (`View.around`) shows the cell alone. Of 870 pictures of five sets one has less;
pbc's cells, everything beyond 75 px from them made empty, have 2.3 at most, and 3.1 with a vignette and noise."""
STAINED: Final = 0.6
"""Share of the chosen cell's density; from this on a nucleus lies in the picture's middle as well."""
STRUCTURE_FROM: Final = 0.66
"""From this agreement of the structure on two pictures show one field, whatever light and focus: a person is asked. Of
912 pairs of one cell in `chula`, in other light and focus, 0.98 agree so far. Of pairs of other cells, most of one
class or series, none of 5,000 of `chula` (two cells of one field apart) and 2,000 of `pbc` does, and 1 of 2,000 of
`bonemarrow`."""

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """What registration compares of a prepared cell.

    thumb : uint8[64, 64, 3], the cell's surroundings at a quarter of their scale.  box : (top, left, bottom, right),
    the part of the thumbnail that shows the image, without the fill around it.  middle : (row, column) of the image's
    middle, from the middle of the crop, crop pixels.  stained : density in red light at the image's middle, as a share
    of that at the crop's middle, 0 to 1. It tells whether a nucleus lies in the image's middle; 0 for a field.
    """

    thumb: NDArray[np.uint8]
    box: tuple[int, int, int, int]
    middle: tuple[float, float]
    stained: float = 0.0

    @cached_property
    def around(self) -> float:
        """How much there is around the cell, grey values: the standard deviation of what is not smooth there; 0 where
        nothing is shown around it. It is needed only where two views agree, which few do."""
        inside = _inside(self.box) > 0
        shown = inside & (_AWAY > _CELL)
        if shown.sum() <= _LITTLE_AROUND:
            return 0.0
        grey = self.thumb.mean(axis=2, dtype=np.float32)
        return float(_rest(_without_middle(grey, inside))[shown].std())


@dataclass(frozen=True)
class Alignment:
    """The registration of a second view on a first one.

    score : normalised cross-correlation in the overlap, mean of the three colours, -1 to 1.  shift : (rows, columns)
    from the first view's centre to the second's, crop pixels.  turn : degrees.  middles : distance between the middles
    of the two images, crop pixels.  overlap : share of the thumbnail that both views show.  stained : the smaller of
    the two views' `stained`.  structure : the same correlation of the structure of the pictures in grey, where half
    a thumbnail is shown by both. Where it agrees to `STRUCTURE_FROM` and the colours agree less, the pose is that at
    which it agrees best, and the overlap that of this pose.  one_body : whether both centres lie on one
    nucleus in either view, and so does the image's middle where it is stained, and at least one of the pictures was
    taken of that nucleus; False where the views do not agree.  detail : where a view shows nothing around its cell, the
    same correlation of what is not round in the two cells; 1 elsewhere. Two round cells of one size on empty ground
    agree in colours to 0.98, whoever they are: the field around them has to tell, or what is in them.
    """

    score: float
    shift: tuple[float, float]
    turn: float
    middles: float
    overlap: float
    stained: float = 0.0
    structure: float = 0.0
    one_body: bool = False
    detail: float = 1.0

    @property
    def agrees_in_structure(self) -> bool:
        """Whether the structure says that the two show one field. A large cell fills what little two pictures share;
        another cell agrees with it to 0.79 there. Real recaptures share more, or agree further."""
        return self.structure >= (STRUCTURE_FROM if self.overlap >= _MUCH_SHOWN else _LITTLE_SHOWN_FROM)

    @property
    def agreement(self) -> float:
        """How far the two agree, in colours or in structure, whichever is more: what a person is told."""
        return max(self.score, self.structure)


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


def turned(shown: View, number: int) -> View:
    """The view of the same picture turned by `number` quarters counter-clockwise; from 4 on first mirrored, left for
    right. number : 0 to 7."""
    rows, columns = np.nonzero(oriented(_inside(shown.box), number))
    row, column = shown.middle
    if number >= ORIENTATIONS // 2:
        column = -column
    for _ in range(number % 4):
        row, column = -column, row
    box = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
    return View(np.ascontiguousarray(oriented(shown.thumb, number)), box, (row, column), shown.stained)


def _from_middle() -> F64:
    """How far each pixel of a thumbnail is from its middle, pixels: float64[64, 64]."""
    rows = np.arange(SIDE) - (SIDE - 1) / 2
    return np.asarray(np.hypot(rows[:, None], rows[None]), np.float64)


_AWAY: Final = _from_middle()
_RING: Final = np.floor(_AWAY).astype(np.intp)  # none is empty


def _without_middle(grey: F32, inside: NDArray[np.bool_]) -> F32:
    """A thumbnail in grey without what lies in its middle (`_middle`): the nearest ground takes its place. inside :
    bool[64, 64], what the thumbnail shows."""
    found = _middle(grey, inside)
    if found is None:
        return grey
    middle, ground = found
    nearest = scipy.ndimage.distance_transform_edt(~ground, return_distances=False, return_indices=True)
    return np.asarray(np.where(middle, grey[tuple(nearest)], grey), np.float32)


def _middle(grey: F32, inside: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """What lies in a thumbnail's middle, on ground around it: the cell, or all that a mask left of a picture; and the
    ground: bool[64, 64] each. None where no even ground surrounds it. inside : as of `_without_middle`."""
    span = scipy.ndimage.maximum_filter(grey, 3) - scipy.ndimage.minimum_filter(grey, 3)
    edge = inside & ~scipy.ndimage.binary_erosion(inside)
    numbers, _ = scipy.ndimage.label((span <= _EVEN) & inside)
    ground = np.isin(numbers, np.setdiff1d(numbers[edge], [0]))
    if ground[edge].mean() < _SURROUNDED:
        return None
    things, _ = scipy.ndimage.label(inside & ~ground, np.ones((3, 3)))
    near = things[(_AWAY <= _AROUND) & (things > 0)]
    return None if not len(near) else (things == np.bincount(near).argmax(), ground)


def _without_roundness(thumb: NDArray[np.uint8], within: NDArray[np.bool_]) -> F32:
    """The colours of a thumbnail less their mean at each distance from its middle: float32[64, 64, 3]. within :
    bool[64, 64], what counts."""
    counts = np.bincount(_RING.ravel(), weights=within.ravel())
    rings = np.flatnonzero(counts)
    rest = np.empty(thumb.shape, np.float32)
    for colour in range(thumb.shape[2]):
        sums = np.bincount(_RING.ravel(), weights=(thumb[..., colour] * within).ravel())
        rest[..., colour] = thumb[..., colour] - np.interp(_AWAY, rings + 0.5, sums[rings] / counts[rings])
    return rest


def _detail(a: View, b: View, pose: F64) -> float:
    """The correlation of what is not round in two cells, at a pose of `b` (rows, columns, radians). Where something
    lies on ground in the middle of either, it has to agree within its outline as well: a square is not round either,
    and all that a program cut out with it have that in common."""
    whole = np.ones((SIDE, SIDE), np.bool_)
    least = _agreement(a, whole, b, whole, pose)
    inner = _inner(a), _inner(b)
    if inner[0] is None and inner[1] is None:
        return least
    within = [whole if one is None else one for one in inner]
    return min(least, _agreement(a, within[0], b, within[1], pose))


def _inner(shown: View) -> NDArray[np.bool_] | None:
    """What lies on ground in a view's middle, without its outline: bool[64, 64]; None where nothing does."""
    found = _middle(shown.thumb.mean(axis=2, dtype=np.float32), _inside(shown.box) > 0)
    return None if found is None else scipy.ndimage.binary_erosion(found[0], iterations=_OUTLINE)


def _agreement(a: View, a_within: NDArray[np.bool_], b: View, b_within: NDArray[np.bool_], pose: F64) -> float:
    """The correlation of what is not round in the middles of two views, of these pixels; 1 where there are too few."""
    first, second = (
        scipy.ndimage.gaussian_filter(_without_roundness(shown.thumb, counted), (_SLIGHT, _SLIGHT, 0))
        for shown, counted in ((a, a_within), (b, b_within))
    )
    turn, offset = _moving(pose)
    moved = scipy.ndimage.affine_transform(b_within.astype(np.float32), turn, offset, order=1, mode="nearest") > 0.999
    within = (_AWAY <= _CELL_INSIDE) & a_within & moved
    if within.sum() < _LEAST_INSIDE:
        return 1.0
    one = first[within]
    other = np.stack(
        [scipy.ndimage.affine_transform(second[..., i], turn, offset, order=1, mode="nearest") for i in range(3)],
        axis=-1,
    )[within]
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    size = np.sqrt(np.maximum((one**2).sum(axis=0) * (other**2).sum(axis=0), 1.0))
    return float(((one * other).sum(axis=0) / size).mean())


def _moving(pose: F64) -> tuple[F64, F64]:
    """Matrix and offset by which `scipy.ndimage.affine_transform` moves a thumbnail to a pose."""
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    turn, middle = np.array([[cosine, -sine], [sine, cosine]]), np.full(2, (SIDE - 1) / 2)
    return turn, middle - turn @ (middle + pose[:2])


def _density(thumb: NDArray[np.uint8], blur: float) -> F32:
    """Optical density in red light above haze, blurred: float32[64, 64]. blur : standard deviation, pixels."""
    density = np.log((BACKGROUND + 1.0) / (thumb[:, :, 0].astype(np.float32) + 1.0)) - _HAZE
    return np.asarray(scipy.ndimage.gaussian_filter(density, blur))


def _on_thumb(place: tuple[float, float]) -> tuple[int, int] | None:
    """The pixel of a thumbnail at a place, crop pixels from the crop's middle; None outside."""
    row, column = (round((SIDE - 1) / 2 + at / _SCALE) for at in place)
    return (row, column) if 0 <= row < SIDE and 0 <= column < SIDE else None


def _one_body(shown: View, other: tuple[float, float]) -> bool:
    """Whether the crop's middle, the `other` place (crop pixels from it), and the image's middle where that is stained
    lie on one nucleus: from each of them the way up the blurred density leads to the same peak."""
    density = _density(shown.thumb, _BODY)
    places = [(0.0, 0.0), other, *([shown.middle] if shown.stained >= STAINED else [])]
    peaks = [None if (at := _on_thumb(place)) is None else _peak(density, at) for place in places]
    first = peaks[0]
    return all(
        peak is not None and first is not None and np.hypot(*np.subtract(peak, first)) <= _ONE_PEAK for peak in peaks
    )


def _one_was_taken_of_it(a: View, b: View) -> bool:
    """Whether the nucleus that was found is no mix of two, each of them in the middle of one picture: then both middles
    would lie at its sides, and not far."""
    nearer, farther = sorted(float(np.hypot(*shown.middle)) for shown in (a, b))
    return nearer <= _CENTRED or farther >= _ASIDE


def _peak(density: F32, at: tuple[int, int]) -> tuple[int, int]:
    """The peak that the steepest way up from a pixel leads to."""
    while True:
        row, column = at
        top, left = max(0, row - 1), max(0, column - 1)
        around = density[top : row + 2, left : column + 2]
        down, right = divmod(int(around.argmax()), around.shape[1])
        if around[down, right] <= density[at]:
            return at
        at = top + down, left + right


def _stained(thumb: NDArray[np.uint8], middle: tuple[float, float]) -> float:
    smooth = _density(thumb, 2.0)
    of_crop, of_image = _on_thumb((0.0, 0.0)), _on_thumb(middle)
    if of_crop is None or of_image is None:
        return 0.0
    in_image, in_crop = (
        float(smooth[max(0, row - _AROUND) : row + _AROUND + 1, max(0, column - _AROUND) : column + _AROUND + 1].max())
        for row, column in (of_image, of_crop)
    )
    return 0.0 if in_crop <= 0.0 else min(1.0, max(0.0, in_image / in_crop))


def align(a: View, b: View) -> Alignment:
    """Register `b` on `a`. The scores are symmetric except for the last digits. Takes some milliseconds."""
    masks = _inside(a.box), _inside(b.box)
    grey_a, grey_b = (shown.thumb.mean(axis=2, dtype=np.float32) for shown in (a, b))
    score, shift, overlap = _best_shift(grey_a, a.box, grey_b, b.box, _least(*masks, _LEAST_OVERLAP, 0.5))
    pose = np.array([*shift, 0.0])
    of_structure = _structure(grey_a), _structure(grey_b)
    structure, other, _ = _best_shift(
        of_structure[0], a.box, of_structure[1], b.box, _least(*masks, _STRUCTURE_OVERLAP, 0.8)
    )
    if score >= _SURE or (score >= _HOPELESS and structure >= _HOPELESS_STRUCTURE):
        first, second = a.thumb.astype(np.float32), b.thumb.astype(np.float32)
        score, pose, overlap = _refine(first, masks[0], second, masks[1], pose, _WORTH_REFINING)
    if structure >= STRUCTURE_FROM and score < _ENOUGH:
        of_both = [picture[..., None] for picture in of_structure]
        refined, pose, overlap = _refine(of_both[0], masks[0], of_both[1], masks[1], np.array([*other, 0.0]))
        structure = max(structure, refined)
    rows, columns = float(pose[0] * _SCALE), float(pose[1] * _SCALE)
    agree = max(score, structure) >= STRUCTURE_FROM
    apart = (rows + b.middle[0] - a.middle[0], columns + b.middle[1] - a.middle[1])
    return Alignment(
        score,
        (rows, columns),
        float(np.degrees(pose[2])),
        float(np.hypot(apart[0], apart[1])),
        float(overlap),
        min(a.stained, b.stained),
        structure,
        agree and _one_was_taken_of_it(a, b) and _one_body(a, (rows, columns)) and _one_body(b, (-rows, -columns)),
        _detail(a, b, pose) if agree and min(a.around, b.around) < _ALONE else 1.0,
    )


def _structure(grey: F32) -> F32:
    """Each pixel of a grey picture float32[64, 64] less its surroundings, as a share of how much these vary; in grey
    values, so that it is compared as a picture is."""
    rest = _rest(grey)
    spread = np.sqrt(scipy.ndimage.gaussian_filter(np.square(rest), _COARSE)) + _NOISE
    return np.asarray(np.clip(128.0 + 48.0 * rest / spread, 0.0, 255.0), np.float32)


def _rest(grey: F32) -> F32:
    """A grey picture float32[64, 64] less its surroundings: what is not smooth."""
    fine = scipy.ndimage.gaussian_filter(grey, _FINE)
    return np.asarray(fine - scipy.ndimage.gaussian_filter(fine, _COARSE), np.float32)


@lru_cache(16)
def _inside(box: tuple[int, int, int, int]) -> F32:
    """1 where a thumbnail shows the image, float32[64, 64], to be read alone: one for all views of a box, as of a
    `View`."""
    top, left, bottom, right = box
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[top:bottom, left:right] = 1.0
    mask.setflags(write=False)
    return mask


def _least(a_mask: F32, b_mask: F32, share: float, of_smaller: float) -> float:
    """The least number of pixels that both views must show. share : of a thumbnail.  of_smaller : of the part of the
    thumbnail that shows the image, in the view that has less of it."""
    return min(share * SIDE**2, of_smaller * float(min(a_mask.sum(), b_mask.sum())))


def _forward(picture: F32) -> NDArray[np.complex64]:
    """The spectrum of a thumbnail, with room beside it for every shift."""
    return np.asarray(scipy.fft.rfft2(picture, (2 * SIDE, 2 * SIDE)))


def _back(spectrum: NDArray[np.complex64]) -> F32:
    return np.asarray(scipy.fft.irfft2(spectrum, (2 * SIDE, 2 * SIDE)))


@lru_cache(16)
def _of_box(box: tuple[int, int, int, int]) -> NDArray[np.complex64]:
    """The spectrum of `_inside(box)`: most pictures show all of their thumbnail."""
    return _forward(_inside(box))


@lru_cache(16)
def _shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> F32:
    """How many pixels both boxes show, at every shift of the second."""
    return _back(_of_box(a) * _of_box(b).conj())


def _best_shift(
    a: F32, a_box: tuple[int, int, int, int], b: F32, b_box: tuple[int, int, int, int], least: float
) -> tuple[float, tuple[int, int], float]:
    """The highest correlation of two grey pictures over all whole shifts of `b` at which both show `least` pixels; the
    shift; the overlap there. a_box, b_box : what they show, as of a `View`."""
    size = 2 * SIDE
    a_mask, b_mask = _inside(a_box), _inside(b_box)
    a = (a - float((a * a_mask).sum() / a_mask.sum())) * a_mask
    b = (b - float((b * b_mask).sum() / b_mask.sum())) * b_mask
    fa, fa2, fam = _forward(a), _forward(a * a), _of_box(a_box)
    fb, fb2, fbm = _forward(b).conj(), _forward(b * b).conj(), _of_box(b_box).conj()
    pixels = _shared(a_box, b_box)
    count = np.maximum(pixels, 1.0)
    sum_a, sum_b = _back(fa * fbm), _back(fam * fb)
    common = _back(fa * fb) - sum_a * sum_b / count
    spread = np.maximum(_back(fa2 * fbm) - sum_a**2 / count, 0.0) * np.maximum(_back(fam * fb2) - sum_b**2 / count, 0.0)
    # a flat overlap has no correlation: its spread is only rounding error
    enough = (pixels >= least) & (spread > (0.25 * count) ** 2)
    scores = np.where(enough, common / np.sqrt(np.maximum(spread, 1e-6)), -1.0)
    row, column = divmod(int(np.argmax(scores)), size)
    shift = (row - size if row >= SIDE else row, column - size if column >= SIDE else column)
    return float(scores[row, column]), shift, float(pixels[row, column]) / SIDE**2


def _refine(a: F32, a_mask: F32, b: F32, b_mask: F32, pose: F64, worth: float = -1.0) -> tuple[float, F64, float]:
    """The best correlation of the colours near a pose (rows, columns, radians); the pose; the overlap there. a, b :
    float32[64, 64, colours].  worth : a correlation that it has to come near to, to be looked for any further."""
    least = 0.9 * _least(a_mask, b_mask, _LEAST_OVERLAP, 0.5)
    middle = (SIDE - 1) / 2
    rows = np.broadcast_to((np.arange(SIDE) - middle)[:, None], (SIDE, SIDE))
    columns = rows.T
    best: tuple[float, F64, float] = (-1.0, pose, 0.0)
    # a slight blur, as two captures differ in sharpness, and the steps need smooth gradients
    a, b = (scipy.ndimage.gaussian_filter(picture, (_SLIGHT, _SLIGHT, 0)) for picture in (a, b))
    for _ in range(_STEPS):
        turn, offset = _moving(pose)
        moved = np.stack(
            [
                scipy.ndimage.affine_transform(b[..., i], turn, offset, order=1, mode="nearest")
                for i in range(b.shape[2])
            ],
            axis=-1,
        )
        shown = (a_mask > 0) & (scipy.ndimage.affine_transform(b_mask, turn, offset, order=1, mode="constant") > 0.999)
        if shown.sum() < least:
            break
        target, found = a[shown] - a[shown].mean(axis=0), moved[shown] - moved[shown].mean(axis=0)
        energy = np.maximum((found**2).sum(axis=0), 1.0)
        size = np.maximum((target**2).sum(axis=0), 1.0)
        product = (target * found).sum(axis=0)
        score = float((product / np.sqrt(energy * size)).mean())
        if score > best[0]:
            gained = score - best[0]
            best = (score, pose.copy(), float(shown.mean()))
            if gained < 1e-4 or score + _MORE_GAINS * gained < worth:
                break
        elif best[0] < worth:
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
