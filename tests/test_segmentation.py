"""The cell in the middle is the one that is asked about, and its neighbours do not speak."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy
from PIL import Image

from labref.cells.centring import distance_from_middle
from labref.cells.examination import TASKS
from labref.cells.image import BACKGROUND, CROP_SIZE, colour_densities, decode, nuclear_density, prepare_pixels
from labref.cells.segmentation import highest_around, segment
from labref.demo.cells import OPTICS, draw_cell, make_slides
from labref.words import Fingerprint
from tests.benchmarks.neighbours import changed
from training.augmentation.composites import beside


def pictures(real_cells: Path, label: str, count: int) -> list[np.ndarray]:
    return [decode(path.read_bytes()) for path in sorted((real_cells / "pbc" / label).glob("*.jpg"))[:count]]


def field(height: int, width: int, cells: list[tuple[np.ndarray, int, int]]) -> np.ndarray:
    """A field uint8[height, width, 3] of smear with cells whose middles lie at (row, column)."""
    ground = np.percentile(cells[0][0].reshape(-1, 3), 90, axis=0).astype(np.uint8)
    made = np.broadcast_to(ground, (height, width, 3)).copy()
    for cell, row, column in cells:
        made = beside(made, cell, row - height / 2, column - width / 2)
    return made


@pytest.mark.parametrize("label", ["platelet", "lymphocyte", "erythroblast", "monocyte", "neutrophil", "eosinophil"])
def test_the_middle_cell_is_chosen_beside_a_darker_one(real_cells: Path, label: str) -> None:
    dark = pictures(real_cells, "basophil", 5)
    stayed, seen = [], []
    for number, picture in enumerate(pictures(real_cells, label, 5)):
        alone = prepare_pixels(picture)
        for down, right in ((0, 105), (-80, 70), (118, 0)):
            both = prepare_pixels(beside(picture, dark[number], down, right))
            slip = np.hypot(*np.subtract(both.centre, alone.centre))
            stayed.append(distance_from_middle(both.centre, both.size) <= 43 and slip <= 40)
            places = np.array(both.others) - [side / 2 for side in both.size] - (down, right)
            seen.append(np.hypot(*places.T).min() <= 50)
    assert all(stayed)
    assert np.mean(seen) >= 0.9


def alone_in_the_middle(real_cells: Path, label: str) -> list[tuple[np.ndarray, tuple[float, float]]]:
    """Pictures of one cell, cut around it, and its centre in each."""
    prepared = [(picture, prepare_pixels(picture)) for picture in pictures(real_cells, label, 16)]
    return [
        (picture, cell.centre)
        for picture, cell in prepared
        if not cell.others and distance_from_middle(cell.centre, cell.size) < 25
    ]


@pytest.mark.parametrize("label", ["lymphocyte", "basophil", "monocyte", "neutrophil"])
def test_a_cell_off_the_middle_is_centred_on(real_cells: Path, label: str) -> None:
    """The centre was once drawn back towards the middle, though only red cells lay there."""
    slips = []
    for picture, (row, column) in alone_in_the_middle(real_cells, label):
        for down, right in ((55, 0), (0, -60), (42, 42)):
            top, left = round(row - 120 - down), round(column - 120 - right)
            part = picture[max(top, 0) : top + 240, max(left, 0) : left + 240]
            found = prepare_pixels(part).centre
            slips.append(np.hypot(found[0] + max(top, 0) - row, found[1] + max(left, 0) - column))
    assert len(slips) >= 12
    assert np.mean(np.array(slips) < 15) >= 0.8 and max(slips) < 60


@pytest.mark.parametrize("label", ["lymphocyte", "basophil"])
def test_a_large_nucleus_is_whole_at_a_larger_scale(real_cells: Path, label: str) -> None:
    """A microscope that shows cells 1.7 times as large: halves of one nucleus were once taken for two cells."""
    times, whole = 1.7, []
    for picture, centre in alone_in_the_middle(real_cells, label):
        size = (round(times * picture.shape[1]), round(times * picture.shape[0]))
        cell = prepare_pixels(np.asarray(Image.fromarray(picture).resize(size)))
        inner = np.s_[64:-64, 64:-64]
        faded = np.abs(cell.surroundings[inner].astype(int) - cell.crop[inner]).max(axis=2) > 40
        slip = np.hypot(cell.centre[0] - times * centre[0], cell.centre[1] - times * centre[1])
        whole.append(faded.mean() < 0.02 and slip < 15 * times)
    assert len(whole) >= 4 and all(whole)


def test_a_neighbour_is_faded_and_the_cell_is_not(real_cells: Path) -> None:
    for cell, other in zip(pictures(real_cells, "lymphocyte", 6), pictures(real_cells, "neutrophil", 6), strict=True):
        picture = beside(cell, other, 0, 120)
        made = prepare_pixels(picture)
        there = made.surroundings.astype(int)
        assert np.abs(there - made.crop).max() > 60, "something was faded"
        middle = slice(CROP_SIZE // 2 - 24, CROP_SIZE // 2 + 24)
        assert np.abs(there - made.crop)[middle, middle].max() <= 12
        # where the neighbour's nucleus stands in the picture, the crop shows background
        column = min(CROP_SIZE - 1, round(CROP_SIZE / 2 + picture.shape[1] / 2 + 120 - made.centre[1]))
        row = round(CROP_SIZE / 2 + picture.shape[0] / 2 - made.centre[0])
        strip = np.s_[row - 20 : row + 20, column - 8 : column + 8]
        assert made.surroundings[strip].mean() < 190
        assert np.abs(made.crop[strip].astype(int) - BACKGROUND).mean() < 25


@pytest.mark.parametrize("label", ["lymphocyte", "monocyte", "neutrophil", "platelet"])
def test_a_cell_that_stands_alone_is_left_as_it_is(real_cells: Path, label: str) -> None:
    alone = [prepare_pixels(picture) for picture in pictures(real_cells, label, 12)]
    whole = [np.array_equal(cell.crop, cell.surroundings) for cell in alone if not cell.others]
    assert whole and all(whole)
    for cell in alone:
        middle = slice(CROP_SIZE // 2 - 24, CROP_SIZE // 2 + 24)
        assert np.abs(cell.crop.astype(int) - cell.surroundings)[middle, middle].mean() < 2


def test_the_centre_stays_on_the_cell_under_shift_colour_and_blur(real_cells: Path) -> None:
    rng = np.random.default_rng(3)
    slips = []
    for path in sorted((real_cells / "pbc").rglob("*.jpg"))[::80]:
        picture = decode(path.read_bytes())
        again, shift = changed(picture, rng)
        slips.append(np.hypot(*(np.subtract(prepare_pixels(again).centre, shift) - prepare_pixels(picture).centre)))
    assert np.mean(np.array(slips) < 3) >= 0.97


def disc(picture: np.ndarray, row: int, column: int, radius: int, colour: tuple[int, int, int]) -> None:
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    picture[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = colour


@pytest.mark.parametrize(("height", "width", "bar"), [(480, 640, 150), (3000, 4000, 1200)])
def test_a_large_dark_area_is_one_object_and_costs_no_memory(height: int, width: int, bar: int) -> None:
    """The edge of a slide, an ink spot: every pixel of it was once an object of its own, and a picture asked for 162
    GB."""
    picture = np.full((height, width, 3), 245, np.uint8)
    picture[:, :bar] = 0
    disc(picture, height // 2, width // 2, 45, (90, 60, 140))
    tracemalloc.start()
    found = prepare_pixels(picture)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.hypot(*np.subtract(found.centre, (height / 2, width / 2))) < 2
    assert len(found.others) <= 1
    assert most < 60 * height * width + 20_000_000


def test_a_large_nucleus_is_one_object() -> None:
    picture = np.full((500, 500, 3), 245, np.uint8)
    disc(picture, 250, 250, 110, (90, 50, 140))
    found = prepare_pixels(picture)
    assert found.others == () and np.array_equal(found.crop, found.surroundings)


@pytest.mark.parametrize(("row", "column"), [(60, 60), (240, 430), (130, 320)])
def test_a_pale_cell_in_the_middle_is_chosen_however_dark_another_is(row: int, column: int) -> None:
    picture = np.full((480, 640, 3), 245, np.uint8)
    disc(picture, 240, 320, 22, (170, 140, 190))
    disc(picture, row, column, 45, (60, 30, 90))
    assert distance_from_middle(prepare_pixels(picture).centre, picture.shape[:2]) < 3


def test_a_lobe_of_a_large_cell_is_not_faded(real_cells: Path) -> None:
    """Eosinophils at bccd's magnification: the second lobe was once faded as if it were another cell's nucleus."""
    faded = []
    for path in sorted((real_cells / "bccd").rglob("*.*"))[::9]:
        if path.suffix.lower() not in {".jpg", ".jpeg", ".png", ".bmp"}:
            continue
        cell = prepare_pixels(decode(path.read_bytes()))
        inner = np.s_[48:-48, 48:-48]
        dark = cell.surroundings[inner].min(axis=2) < 130
        changed_there = np.abs(cell.surroundings[inner].astype(int) - cell.crop[inner]).max(axis=2) > 40
        faded.append((changed_there & dark).sum() > 0.15 * max(1, dark.sum()))
    assert len(faded) > 20 and np.mean(faded) <= 0.12


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_turned_and_mirrored_maps_are_divided_alike(real_cells: Path, turns: int, mirror: bool) -> None:
    cell, other = pictures(real_cells, "ig", 1)[0], pictures(real_cells, "eosinophil", 1)[0]
    picture = beside(cell, other, 60, 90)[: 4 * 90, : 4 * 90]
    small = picture.reshape(90, 4, 90, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
    colours = colour_densities(small, (240.0, 230.0, 225.0))
    density = nuclear_density(colours)

    def change(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(values[:, ::-1] if mirror else values, turns))

    straight, turned = segment(density, colours), segment(change(density), change(colours))
    assert straight is not None and turned is not None
    # a pixel as far from two other nuclei may be taken for either's, which only tells how wide its cytoplasm is thought
    differ = np.abs(turned.keep - change(straight.keep))
    assert differ.max() < 0.2 and (differ > 0.02).mean() < 0.001
    place = np.zeros((90, 90))
    place[round(straight.centre[0]), round(straight.centre[1])] = 1
    expected = np.argwhere(change(place))[0]
    assert np.abs(expected - turned.centre).max() <= 0.6


def test_a_large_field_is_searched_within_a_limit(real_cells: Path) -> None:
    cell = pictures(real_cells, "lymphocyte", 1)[0]
    alone = prepare_pixels(cell)
    off = np.subtract(alone.centre, [side / 2 for side in cell.shape[:2]])
    near = prepare_pixels(field(480, 640, [(cell, 240, 430)]))
    assert near.nucleus_found
    assert np.hypot(*(np.array(near.centre) - off - (240, 430))) <= 6
    nearest = prepare_pixels(field(480, 640, [(cell, 240, 260), (cell, 240, 480)]))
    assert np.hypot(*(np.array(nearest.centre) - off - (240, 260))) <= 6


def test_a_picture_without_a_cell_near_its_middle_says_so(real_cells: Path) -> None:
    cell = pictures(real_cells, "lymphocyte", 1)[0]
    for picture in (
        np.full((363, 360, 3), 228, np.uint8),
        field(800, 1000, [(cell[90:270, 90:270], 110, 110)]),
    ):
        made = prepare_pixels(picture)
        assert not made.nucleus_found
        assert made.centre == ((picture.shape[0] - 1) / 2, (picture.shape[1] - 1) / 2)
        assert not made.others


def grey(density: np.ndarray) -> np.ndarray:
    """What absorbs every colour alike."""
    return np.repeat(density[..., None], 3, axis=2)


def test_nothing_in_a_map_is_no_cell() -> None:
    noise = np.random.default_rng(0).uniform(0, 0.06, (64, 80)).astype(np.float32)
    for density in (np.zeros((90, 90), np.float32), np.full((20, 300), 0.05, np.float32), noise):
        assert segment(density, grey(density)) is None


def two_spots(colour: tuple[float, float, float], radius: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    """A nucleus in the middle and a spot as dark in red light 30 pixels beside it, of another colour."""
    rows, columns = np.indices((90, 90))
    own = np.hypot(rows - 44.5, columns - 44.5) <= 10.0
    other = np.hypot(rows - 44.5, columns - 74.5) <= radius
    colours = own[..., None] * np.array([0.6, 1.0, 0.3]) + other[..., None] * np.array(colour)
    return colours[..., 0].astype(np.float32), colours.astype(np.float32)


def test_a_red_cell_as_dark_as_a_nucleus_is_no_other_cell_and_is_not_faded() -> None:
    nucleus = segment(*two_spots((0.6, 0.95, 0.28)))
    assert nucleus is not None and len(nucleus.others) == 1 and nucleus.keep[44, 74] < 0.1
    red = segment(*two_spots((0.6, 0.8, 0.9)))
    assert red is not None and red.others == () and red.keep.min() == 1.0
    small = segment(*two_spots((0.6, 0.95, 0.28), radius=5.0))
    assert small is not None and len(small.others) == 1 and small.keep.min() == 1.0, "a lobe of the cell, perhaps"


def test_the_dark_red_cells_of_other_microscopes_stay_in_the_crop(real_cells: Path) -> None:
    changed_at_all = []
    for path in sorted((real_cells / "raabin").rglob("*.jpg"))[::9]:
        cell = prepare_pixels(decode(path.read_bytes()))
        changed_at_all.append(np.abs(cell.crop.astype(int) - cell.surroundings).mean() > 2.55)
    assert len(changed_at_all) > 20 and np.mean(changed_at_all) <= 0.1


@pytest.mark.parametrize("shape", [(8, 8), (9, 200), (128, 8), (91, 90)])
def test_maps_of_any_shape_are_divided(shape: tuple[int, int]) -> None:
    density = np.zeros(shape, np.float32)
    density[shape[0] // 2 - 3 : shape[0] // 2 + 3, shape[1] // 2 - 3 : shape[1] // 2 + 3] = 0.9
    found = segment(density, grey(density))
    assert found is not None and found.keep.shape == shape
    assert np.abs(np.subtract(found.centre, [shape[0] // 2 - 0.5, shape[1] // 2 - 0.5])).max() <= 1.0
    assert found.others == () and found.keep.min() == 1.0


def drawn(label: str, number: int) -> np.ndarray:
    slide = make_slides(2, seed=3)[number]
    return draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng(3))


def framed() -> np.ndarray:
    picture = drawn("monocyte", 0).copy()
    picture[:9] = 0
    picture[:, :6] = 0
    return picture


# of the code at fee1bd9, before it was made faster: centre, other cells, mean of the crop, fingerprint, landmarks;
# darkness, focus, chroma, inverted; measures of the optics
FOUND_BEFORE = {
    "neutrophil": (
        ((175.136, 196.242), 0, 214.0048, Fingerprint(0xAA9A9D1E472E18B8, 0x4D878732F0DCFC3F), 1),
        (1.4094, 1.1725, 0.2407, -7.5670),
        (251.0, 226.0, 203.0, 0.6868, 0.1361, 0.2166, 0.0610),
    ),
    "lymphocyte": (
        ((188.172, 171.118), 0, 224.8918, Fingerprint(0xD1F0CC8E8ECD3839, 0xFFE0C2433DBC9AC7), 1),
        (1.1906, 0.5386, 0.2882, -9.1940),
        (218.0, 214.0, 227.0, 0.2349, 0.1362, 0.2228, 0.0403),
    ),
    "platelet": (
        ((185.520, 170.197), 1, 222.1842, Fingerprint(0x31503C0CCC595819, 0x2ECFE1631D9822D7), 1),
        (0.7005, 1.2512, 0.1983, -7.3085),
        (251.0, 226.0, 203.0, 0.8230, 0.0529, 0.0770, 0.0253),
    ),
    "two": (
        ((185.429, 171.140), 1, 205.1614, Fingerprint(0xD94C8E161D08C8CC, 0x8240809CEF6C7F9F), 2),
        (1.1404, 1.7014, 0.3178, -7.1261),
        (250.0, 226.0, 203.0, 0.7962, 0.2497, 0.3992, 0.0877),
    ),
    "framed": (
        ((186.090, 170.626), 0, 205.4009, Fingerprint(0xF94C8F171F0FCEDC, 0xA2418196DF6E7E9D), 1),
        (1.1330, 1.5648, 0.3227, -7.9513),
        (251.0, 226.0, 203.0, 0.8310, 0.2640, 0.4151, 0.0836),
    ),
    "part": (
        ((90.259, 105.847), 0, 218.8126, Fingerprint(0xEDCE9F9F8787CCDC, 0x224181B0727E3C40), 2),
        (1.1382, 0.8079, 0.3973, -9.3934),
        (224.0, 220.0, 233.0, 0.3428, 0.1453, 0.2953, 0.0983),
    ),
}


@pytest.mark.parametrize("name", FOUND_BEFORE)
def test_what_is_found_in_a_picture_stays_what_it_was(name: str) -> None:
    made = {
        "neutrophil": lambda: drawn("neutrophil", 0),
        "lymphocyte": lambda: drawn("lymphocyte", 1),
        "platelet": lambda: drawn("platelet", 0),
        "two": lambda: beside(drawn("monocyte", 0), drawn("basophil", 0), 20, 95),
        "framed": framed,
        "part": lambda: np.ascontiguousarray(drawn("eosinophil", 1)[100:310, 60:300]),
    }
    file = io.BytesIO()
    Image.fromarray(made[name]()).save(file, "PNG")
    (centre, others, mean, fingerprint, marks), judged_by, measures = FOUND_BEFORE[name]
    examined, searched = (TASKS[task](file.getvalue(), 10**7) for task in ("examine", "search"))
    assert searched.cell.centre == pytest.approx(centre, abs=0.002)
    assert len(searched.cell.others) == others
    assert examined.crop.mean() == pytest.approx(mean, abs=0.001)
    assert np.array_equal(examined.crop, searched.cell.crop)
    assert examined.fingerprints[0] == fingerprint
    assert (len(examined.landmarks), examined.landmarks) == (marks, searched.landmarks)
    found = examined.judged_by
    assert found == searched.judged_by
    assert (found.darkness, found.focus, found.chroma, found.inverted) == pytest.approx(judged_by, abs=2e-4)
    assert examined.measures.tolist() == pytest.approx(measures, abs=2e-4)


@pytest.mark.parametrize("reach", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (31, 47)])
def test_the_highest_value_around_is_that_of_scipys_filter(shape: tuple[int, int], reach: int) -> None:
    values = np.random.default_rng(reach).random(shape, np.float32)
    assert np.array_equal(
        highest_around(values, reach), scipy.ndimage.maximum_filter(values, 2 * reach + 1, mode="nearest")
    )
