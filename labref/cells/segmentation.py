"""Segmentation: which cell a picture is about, and which parts of the picture belong to other cells.

An analyser cuts its picture around the cell that it means. So the object at the middle of the picture is chosen, or
else one near it; of two equally near objects, the darker one. The cell is separated from what touches it in three
steps:

1. The map of nuclear density is divided into catchment basins, one for each peak (a watershed; Vincent & Soille, IEEE
   PAMI 13:583, 1991).
2. Basins without a valley between them are merged, as long as the result is as compact as a nucleus.
3. A mean shift with a flat kernel as wide as a nucleus (Comaniciu & Meer, IEEE PAMI 24:603, 2002) starts at the middle
   and ends at the cell's centre. The basins near the centre are the cell's own. The shift is repeated over these basins
   until they no longer change.

The shift ends at the cell's centre of density, so a recapture that is shifted by some pixels ends at the same place.
The centre is pulled back towards the middle under three conditions: the picture is not much larger than a cell, the
cell lies in the middle, by its nucleus, and the centre ended far from the middle. What drew the centre away is then
most likely part of a neighbour. A cell alone that lies to one side of the middle is itself off the middle.

A nucleus much thicker than any at the analyser's scale shows that the picture has a larger scale. The map is then
reduced by as much before it is segmented.

All lengths are pixels of the map, which has a quarter of the analyser's scale: one pixel is 0.4 µm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Segmented", "highest_around", "segment"]

F32 = NDArray[np.float32]

# these values were chosen on pictures of pbc's training part and on composites of them; `tests.benchmarks.neighbours`
# measures on held-out pictures
_BASE: Final = 0.10  # density of haze and of the palest red cells
_PEAK_BLUR: Final = 2.5  # σ of the blur before the peaks are found among which the cell is chosen
_LEAST_PEAK: Final = 0.04  # density above the base; nuclei in the palest optics have 0.06
_LEAST_SHARE: Final = 0.55  # share of the highest peak within reach: lower peaks are red cells
_PALE: Final = 0.2  # density above the base that no red cell reaches
_PRIOR: Final = 9.0  # σ of the cell's distance from the middle, in the choice among the peaks
_FULL_PEAK: Final = 0.3  # higher peaks count as this: a darker cell is not a likelier one
_SEARCH: Final = 40.0  # the farthest from the middle that the cell is looked for
_SEEN: Final = 110  # of a larger map only the part this near to its middle is looked at: a crop can show no more
_LEVEL: Final = (8, 2.5, 1.1)  # density of a nucleus: search radius around the peak, σ of the blur, upper limit
_NUCLEAR: Final = (
    0.45,
    0.70,
)  # shares of the nucleus' density: below the first no nucleus, above the second surely one
_STAINED: Final = (
    0.30,
    0.90,
)  # shares of the nucleus' density: weight in the centre 0 below the first, 1 above the second
_BASIN_BLUR: Final = 3.0
_VALLEY: Final = 0.8  # share of the lower peak: two basins with a higher saddle between them have no valley
_COMPACT: Final = 14.0  # the largest distance between the centres of density of two parts that are merged
_NEAR: Final = 18.0  # a part belongs to the cell where its centre is at most this far from the cell's
_IN_MIDDLE: Final = 13.5  # a peak at most this far from the middle counts as the cell in the middle
_APPROACHES: Final = 6
_KERNEL: Final = (18.5, 2.5)  # radius of the flat kernel, and the softness of its edge
_STEPS: Final = 16
_CUT: Final = 100  # a picture with a longer side is a field, not cut around a cell: its middle tells less
_TRUSTED: Final = 7.8  # a centre up to this far from the middle is not pulled back
# of the distance beyond _TRUSTED, a share of 0.6 stays up to 11.3, a share of 0.02 from there to 13.5, and none beyond
_DRAWN: Final = ((11.3, 0.6), (13.5, 0.02))
_NARROW: Final = (12.0, 1.5)  # radius around the middle, and its softness, that a neighbour of a cell there lies beyond
# how far the centre of density within that radius lies from the middle: up to the first the cell surrounds the middle,
# from the second on it lies beside
_EVEN: Final = (4.5, 7.0)
# distance between nucleus and middle: up to the first the cell is near the middle, from the second on it is not
_HOLDS: Final = (5.0, 11.0)
_CROWD_WITHIN: Final = 36.0  # of the centre, where nuclear pixels are counted
_CROWD: Final = (800.0, 950.0)  # nuclear pixels: one cell has not more than the first, several have the second
_THICK: Final = 14.5  # radius of the largest disc in a large nucleus at the analyser's scale
_LARGER: Final = 1.1  # times as thick a nucleus is of another scale
_LARGEST: Final = 2.5  # times
_LEAST_SOLID: Final = 700  # pixels; a disc of a large nucleus has more
_AROUND: Final = 50  # the radius around a nucleus' peak that its thickness is looked for in
_NEAR_PEAK: Final = 10  # the farthest from the peak that the middle of its thickest place lies
_LEAST_PART: Final = 8.0  # the fewest nuclear pixels of a part that counts as another cell
# the same, of another cell that is removed from the crop: a smaller part is more often a lobe or granules of the cell
_LEAST_FADED: Final = 200.0
# cosine between two stains' colours: other nuclei of a smear have 0.98 and more, red cells 0.77 to 0.965
_SAME_STAIN: Final = 0.975
# the least distance of another cell that is removed: a lobe of a large cell can lie nearer, and looks the same
_FADED: Final = 21.0
_BODY: Final = 8.0  # the radius around the centre that always belongs to the chosen cell
_MARGIN: Final = (4.0, 0.9)  # width of the cytoplasm around another nucleus: a constant, plus this share of its radius
_BORDER: Final = 1.5  # the softness of the border between two cells


@dataclass(frozen=True)
class Segmented:
    """The segmentation of a map of nuclear density.

    centre : (row, column) of the chosen cell, pixels of the map.
    others : (row, column) of other nuclei or their parts, nearest to the centre first; red cells are not included.
    keep : float32[h, w], 1 where the map shows the chosen cell or no cell, 0 where it shows another cell; the values in
    between form a soft border.
    """

    centre: tuple[float, float]
    others: tuple[tuple[float, float], ...]
    keep: F32


def segment(density: F32, colours: F32, *, may_reduce: bool = True) -> Segmented | None:
    """Find the cell near the middle of a map; None where the map shows nothing that could be a cell.

    density : float32[h, w], optical density of the nuclear stain, slightly smoothed, at a quarter of the analyser's
    scale.
    colours : float32[h, w, 3], optical density in red, green and blue light. A part whose colour differs from that of
    the chosen cell's nucleus is no nucleus, however dark it is: in some optics, red cells are as dark in red light as
    a pale nucleus.
    may_reduce : whether a map of a larger scale is reduced first.
    """
    height, width = density.shape
    if max(height, width) > 2 * _SEEN + 2:
        return _segment_part(density, colours)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    chosen = _choose(density, middle)
    if chosen is None:
        return None
    level = _level(density, chosen)
    nuclear = _between(density, level, _NUCLEAR)
    if may_reduce:
        times = _thickness(nuclear, chosen) / _THICK
        if times > _LARGER:
            return _segment_reduced(density, colours, min(times, _LARGEST))
    part_of, centres, masses = _parts(nuclear)
    if not len(centres):
        return None
    centre, own = _settle(_between(density, level, _STAINED), part_of, centres, chosen, middle)
    if max(height, width) <= _CUT:
        centre = _pulled_back(centre, middle, nuclear, own[part_of])
    other = ~own[:-1] & (masses >= _LEAST_PART) & _stained_like(colours, nuclear, part_of, own)
    away = np.hypot(*(centres - centre).T)
    order = [number for number in np.argsort(away, kind="stable").tolist() if other[number]]
    spared = own | np.append((away <= _FADED) | (masses < _LEAST_FADED), False)
    keep = _territory(nuclear, part_of, spared, other & ~spared[:-1], masses, centre)
    return Segmented((float(centre[0]), float(centre[1])), tuple((float(y), float(x)) for y, x in centres[order]), keep)


def _segment_part(density: F32, colours: F32) -> Segmented | None:
    """`segment` of a large map: only the part around its middle is looked at."""
    # the part is symmetric: the same number of rows is left out above and below, and of columns left and right
    top, left = (max(0, size // 2 - _SEEN) for size in density.shape)
    bottom, right = (size - start for size, start in zip(density.shape, (top, left), strict=True))
    found = segment(density[top:bottom, left:right], colours[top:bottom, left:right])
    if found is None:
        return None
    keep = np.ones(density.shape, np.float32)
    keep[top:bottom, left:right] = found.keep
    others = tuple((row + top, column + left) for row, column in found.others)
    return Segmented((found.centre[0] + top, found.centre[1] + left), others, keep)


def _thickness(nuclear: F32, peak: NDArray[np.float64]) -> float:
    """The radius of the largest disc in the nucleus at `peak`, pixels; 0 where no large disc can be there. A touching
    nucleus does not make it larger."""
    row, column = (int(at) for at in peak)
    top, left = max(row - _AROUND, 0), max(column - _AROUND, 0)
    window = np.pad(nuclear[top : row + _AROUND + 1, left : column + _AROUND + 1] > 0.5, 1)
    grounds, _ = scipy.ndimage.label(~window)
    solid = grounds != grounds[0, 0]  # the nucleus, and the holes in it
    if np.count_nonzero(solid) < _LEAST_SOLID:
        return 0.0
    depth = scipy.ndimage.distance_transform_edt(solid)[1:-1, 1:-1]
    row, column, near = row - top, column - left, _NEAR_PEAK
    return float(depth[max(row - near, 0) : row + near + 1, max(column - near, 0) : column + near + 1].max())


def _segment_reduced(density: F32, colours: F32, times: float) -> Segmented | None:
    """`segment` of a map whose nuclei are so many times as large as usual: of the map reduced by as much."""
    height, width = density.shape
    size = (max(8, round(width / times)), max(8, round(height / times)))

    def resized(plane: F32, to: tuple[int, int]) -> F32:
        return np.asarray(Image.fromarray(plane).resize(to, Image.Resampling.BILINEAR))

    small = np.stack([resized(np.ascontiguousarray(colours[..., i]), size) for i in range(3)], axis=-1)
    found = segment(resized(density, size), small, may_reduce=False)
    if found is None:
        return None
    by_row, by_column = height / size[1], width / size[0]

    def back(place: tuple[float, float]) -> tuple[float, float]:
        return (place[0] + 0.5) * by_row - 0.5, (place[1] + 0.5) * by_column - 0.5

    return Segmented(back(found.centre), tuple(map(back, found.others)), resized(found.keep, (width, height)))


def _choose(density: F32, middle: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The peak (row, column) of the cell that the picture is about; None where there is none."""
    smooth = scipy.ndimage.gaussian_filter(np.clip(density - _BASE, 0.0, 0.8), _PEAK_BLUR, mode="constant")
    is_peak = (smooth == highest_around(smooth, 2)) & (smooth > _LEAST_PEAK)
    peaks = np.argwhere(is_peak).astype(float)
    if not len(peaks):
        return None
    heights = smooth[is_peak]
    squares = ((peaks - middle) ** 2).sum(axis=1)
    likely = np.log(np.minimum(heights, _FULL_PEAK)) - squares / (2 * _PRIOR**2)
    within = squares <= _SEARCH**2
    if not within.any():
        return None
    stained = heights >= _LEAST_SHARE * heights[within].max()
    # a pale cell in the middle may be chosen, however dark another cell is
    stained |= (heights >= _PALE) & (squares <= _IN_MIDDLE**2)
    likely[~(within & stained)] = -np.inf
    return np.asarray(peaks[int(np.argmax(likely))], np.float64)


def _level(density: F32, peak: NDArray[np.float64]) -> float:
    """The density of the nucleus at `peak`, where it is darkest."""
    reach, blur, most = _LEVEL
    row, column = (int(at) for at in peak)
    window = density[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
    return min(most, float(scipy.ndimage.gaussian_filter(window, blur, mode="nearest").max()))


def _between(density: F32, level: float, shares: tuple[float, float]) -> F32:
    """The density scaled so that the first share of `level` becomes 0 and the second 1, and limited: float32[h, w]."""
    low, high = (share * level for share in shares)
    between: F32 = np.clip((density - low) / (high - low), 0.0, 1.0)
    return between


def _parts(nuclear: F32) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """The n nuclei of the map, or their parts. Three arrays: the number of each pixel's part, intp[h, w] (n for a pixel
    without a part); the parts' centres of density, float64[n, 2]; their masses, float64[n], in fully nuclear pixels."""
    smooth = scipy.ndimage.gaussian_filter(nuclear, _BASIN_BLUR, mode="constant")
    is_peak = (smooth == highest_around(smooth, 1)) & (smooth > 0.03)
    # a plateau of equal pixels, as a large dark nucleus has, is one peak
    plateaus, count = scipy.ndimage.label(is_peak, np.ones((3, 3)))
    if not count:
        return np.zeros(nuclear.shape, np.intp), np.empty((0, 2)), np.empty(0)
    basin = plateaus.ravel()[_uphill(smooth)].astype(np.intp) - 1
    basin[basin < 0] = count
    at = np.flatnonzero(nuclear)
    weight, basin_at = nuclear.ravel()[at], basin.ravel()[at]
    sums = [
        np.bincount(basin_at, weights=values, minlength=count + 1)[:count]
        for values in (weight, *(weight * along for along in np.divmod(at, nuclear.shape[1])))
    ]
    mass, by_row, by_column = (values.tolist() for values in (sums[0] + 1e-9, sums[1], sums[2]))
    heights = np.zeros(count, np.float32)
    heights[plateaus[is_peak] - 1] = smooth[is_peak]
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for saddle, one, two in _saddles(smooth, basin, count):
        a, b = root(one), root(two)
        if a == b or saddle < _VALLEY * min(heights[a], heights[b]):
            continue
        distance = np.hypot(by_row[a] / mass[a] - by_row[b] / mass[b], by_column[a] / mass[a] - by_column[b] / mass[b])
        if distance > _COMPACT:
            continue
        if heights[a] < heights[b]:
            a, b = b, a
        parent[b] = a
        mass[a], by_row[a], by_column[a] = mass[a] + mass[b], by_row[a] + by_row[b], by_column[a] + by_column[b]
    roots, numbers = np.unique([root(number) for number in range(count)], return_inverse=True)
    part_of = np.append(numbers, len(roots))[basin]
    centres = np.array([[by_row[number] / mass[number], by_column[number] / mass[number]] for number in roots.tolist()])
    return part_of, centres, np.array([mass[number] for number in roots.tolist()])


def _uphill(smooth: F32) -> NDArray[np.intp]:
    """For each pixel the peak that the steepest ascent leads to, as an index into the flattened map: intp[h, w]."""
    height, width = smooth.shape
    wide = width + 2  # with an edge that nothing leads to, all neighbours are slices of one line
    padded = np.full((height + 2) * wide + 2, -1.0, np.float32)
    padded[: (height + 2) * wide].reshape(height + 2, wide)[1:-1, 1:-1] = smooth
    first, size = wide + 1, height * wide
    highest, steps = padded[first : first + size].copy(), np.zeros(size, np.intp)
    for down in (-wide, 0, wide):
        for right in (-1, 0, 1):
            neighbour = padded[first + down + right : first + down + right + size]
            np.copyto(steps, down + right, where=neighbour > highest)
            np.maximum(highest, neighbour, out=highest)
    ends = np.arange(size) + steps
    while not np.array_equal(further := ends.take(ends), ends):
        ends = further
    row, column = np.divmod(ends.reshape(height, wide)[:, :width], wide)
    return np.asarray(row * width + column)


def _saddles(smooth: F32, basin: NDArray[np.intp], count: int) -> list[tuple[float, int, int]]:
    """The borders between basins: (height of the saddle, basin, basin), the highest first."""
    heights = np.zeros(count * count, np.float32)
    for here, there in (
        (np.s_[1:, :], np.s_[:-1, :]),
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[1:, 1:], np.s_[:-1, :-1]),
        (np.s_[1:, :-1], np.s_[:-1, 1:]),
    ):
        at = np.flatnonzero(basin[here] != basin[there])
        a, b = basin[here].ravel()[at], basin[there].ravel()[at]
        inner = np.flatnonzero((a < count) & (b < count))
        at, a, b = at[inner], a[inner], b[inner]
        lower = np.minimum(smooth[here].ravel()[at], smooth[there].ravel()[at])
        np.maximum.at(heights, np.minimum(a, b) * count + np.maximum(a, b), lower)
    touching = np.flatnonzero(heights)
    order = np.argsort(-heights[touching], kind="stable")
    return [(float(heights[at]), *divmod(at, count)) for at in touching[order].tolist()]


def _settle(
    stained: F32,
    part_of: NDArray[np.intp],
    centres: NDArray[np.float64],
    peak: NDArray[np.float64],
    middle: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The chosen cell's centre (row, column), and which parts belong to it: bool[n + 1]. The last element, for pixels
    without a part, is False."""
    first = int(np.argmin(np.hypot(*(centres - peak).T)))
    centre = middle if np.hypot(*(peak - middle)) <= _IN_MIDDLE else peak
    own = np.zeros(len(centres) + 1, bool)
    at = np.flatnonzero(stained)
    part_at, mass = part_of.ravel()[at], stained.ravel()[at].astype(np.float64)
    places = np.stack(np.divmod(at, stained.shape[1])).astype(np.float64)
    for _ in range(_APPROACHES):
        near = np.append(np.hypot(*(centres - centre).T) <= _NEAR, False)
        near[first] = True
        if (near == own).all():
            break
        own = near
        mine = np.flatnonzero(own[part_at])
        centre = _shifted(mass[mine], places[:, mine], centre)
    return centre, own


def _stained_like(colours: F32, nuclear: F32, part_of: NDArray[np.intp], own: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which parts have the stain's colour of the chosen cell's own parts: bool[n]."""
    at = np.flatnonzero(nuclear)
    weight, part_at, colour_at = nuclear.ravel()[at], part_of.ravel()[at], colours.reshape(-1, 3)[at]
    sums = np.stack(
        [np.bincount(part_at, weights=weight * colour_at[:, channel], minlength=len(own)) for channel in range(3)],
        axis=1,
    )
    mine = sums[own].sum(axis=0)
    lengths = np.linalg.norm(sums[:-1], axis=1) * np.linalg.norm(mine)
    alike: NDArray[np.bool_] = sums[:-1] @ mine >= _SAME_STAIN * np.maximum(lengths, 1e-9)
    return alike


def _shifted(mass: NDArray[np.float64], places: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place (row, column) where the mean shift ends. mass, places : float64[n], and float64[2, n], row and column,
    of the pixels that it is computed over."""
    rows, columns = places
    summed = np.stack([np.ones(len(mass)), rows, columns])
    centre = start
    for _ in range(_STEPS):
        away = np.sqrt((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2)
        total, by_row, by_column = (summed @ (mass * _soft((_KERNEL[0] - away) / _KERNEL[1]))).tolist()
        if total <= 1e-6:
            break
        settled = np.array([by_row / total, by_column / total])
        moved = float(np.abs(settled - centre).sum())
        centre = settled
        if moved < 0.02:
            break
    return centre


def _pulled_back(
    centre: NDArray[np.float64], middle: NDArray[np.float64], nuclear: F32, own: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The centre, pulled back towards the middle where the cell lies in the middle: what drew the centre away is then
    part of a neighbour.

    The cell lies in the middle where its nucleus surrounds the middle evenly; or, among several nuclei, where it is
    near the middle at all. One cell alone that lies to one side of the middle is itself off the middle.
    """
    away = float(np.hypot(*(centre - middle)))
    if away <= _TRUSTED:
        return centre
    rows, columns = np.nonzero(own & (nuclear > 0.0))
    to_middle = np.hypot(rows - middle[0], columns - middle[1])
    weight = nuclear[rows, columns] * _soft((_NARROW[0] - to_middle) / _NARROW[1])
    total = max(float(weight.sum()), 1e-6)
    uneven = float(np.hypot(weight @ (rows - middle[0]), weight @ (columns - middle[1]))) / total
    stained = np.nonzero(nuclear > 0.5)
    crowd = float((np.hypot(stained[0] - centre[0], stained[1] - centre[1]) <= _CROWD_WITHIN).sum())
    gap = float(to_middle[nuclear[rows, columns] > 0.5].min(initial=np.inf))
    trust = max(1.0 - _rising(uneven, _EVEN), (1.0 - _rising(gap, _HOLDS)) * _rising(crowd, _CROWD))
    kept, begin = _TRUSTED, _TRUSTED
    for end, share in _DRAWN:
        kept += share * max(0.0, min(away, end) - begin)
        begin = end
    drawn: NDArray[np.float64] = middle + (centre - middle) * (1.0 - trust * (1.0 - kept / away))
    return drawn


def _rising(value: float, limits: tuple[float, float]) -> float:
    """0 up to the first limit, 1 from the second on, and in proportion in between."""
    low, high = limits
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _territory(
    nuclear: F32,
    part_of: NDArray[np.intp],
    own: NDArray[np.bool_],
    other: NDArray[np.bool_],
    masses: NDArray[np.float64],
    centre: NDArray[np.float64],
) -> F32:
    """`Segmented.keep`: a pixel belongs to another cell where it is nearer to that cell's nucleus than to the chosen
    cell's, and lies within that nucleus' margin."""
    theirs = np.append(other, False)[part_of] & (nuclear > 0.5) if other.any() else np.zeros(1, bool)
    if not theirs.any():
        return np.ones(nuclear.shape, np.float32)
    to_other, nearest = scipy.ndimage.distance_transform_edt(~theirs, return_indices=True)
    mine = own[part_of] & (nuclear > 0.5)
    rows, columns = np.arange(nuclear.shape[0])[:, None], np.arange(nuclear.shape[1])[None, :]
    to_own = np.hypot(rows - centre[0], columns - centre[1]) - _BODY
    if mine.any():
        to_own = np.minimum(to_own, scipy.ndimage.distance_transform_edt(~mine))
    radii = np.append(np.sqrt(masses / np.pi), 0.0)
    reach = _MARGIN[0] + _MARGIN[1] * radii[part_of[tuple(nearest)]]
    nearer = np.maximum(to_own, 0.0) - to_other
    theirs_soft = _soft(nearer / _BORDER) * _soft((reach - to_other) / _BORDER)
    return (1.0 - theirs_soft).astype(np.float32)


def _soft(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function."""
    curve: NDArray[np.float64] = 1.0 / (1.0 + np.exp(np.minimum(-values, 30.0)))
    return curve


def highest_around(values: F32, reach: int) -> F32:
    """The highest value within so many rows and columns of each pixel of a map: float32[h, w], as the map.

    As `scipy.ndimage.maximum_filter`, several times as fast for a reach of few pixels.
    """
    highest = values
    for axis in (0, 1):
        line = np.moveaxis(highest, axis, 0)
        highest = highest.copy()
        wider = np.moveaxis(highest, axis, 0)
        for step in range(1, reach + 1):
            np.maximum(wider[step:], line[:-step], out=wider[step:])
            np.maximum(wider[:-step], line[step:], out=wider[:-step])
    return highest
