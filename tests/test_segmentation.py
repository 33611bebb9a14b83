"""The cell in the middle is the one that is asked about, and its neighbours do not speak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labref.centring import distance_from_middle
from labref.image import BACKGROUND, CROP_SIZE, decode, nuclear_density, prepare_pixels
from labref.segmentation import segment
from tests.benchmarks.neighbours import changed
from training.overlook import beside


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
    assert np.mean(np.array(slips) < 3) >= 0.95


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("mirror", [False, True])
def test_turned_and_mirrored_maps_are_divided_alike(real_cells: Path, turns: int, mirror: bool) -> None:
    cell, other = pictures(real_cells, "ig", 1)[0], pictures(real_cells, "eosinophil", 1)[0]
    picture = beside(cell, other, 60, 90)[: 4 * 90, : 4 * 90]
    small = picture.reshape(90, 4, 90, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
    density = nuclear_density(small, (240.0, 230.0, 225.0))

    def change(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(values[:, ::-1] if mirror else values, turns))

    straight, turned = segment(density), segment(change(density))
    assert straight is not None and turned is not None
    np.testing.assert_allclose(turned.keep, change(straight.keep), atol=0.02)
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


def test_nothing_in_a_map_is_no_cell() -> None:
    assert segment(np.zeros((90, 90), np.float32)) is None
    assert segment(np.full((20, 300), 0.05, np.float32)) is None
    noise = np.random.default_rng(0).uniform(0, 0.06, (64, 80)).astype(np.float32)
    assert segment(noise) is None


@pytest.mark.parametrize("shape", [(8, 8), (9, 200), (128, 8), (91, 90)])
def test_maps_of_any_shape_are_divided(shape: tuple[int, int]) -> None:
    density = np.zeros(shape, np.float32)
    density[shape[0] // 2 - 3 : shape[0] // 2 + 3, shape[1] // 2 - 3 : shape[1] // 2 + 3] = 0.9
    found = segment(density)
    assert found is not None and found.keep.shape == shape
    assert np.abs(np.subtract(found.centre, [shape[0] // 2 - 0.5, shape[1] // 2 - 0.5])).max() <= 1.0
    assert found.others == () and found.keep.min() == 1.0
